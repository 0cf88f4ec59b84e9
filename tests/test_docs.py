"""The documentation's examples give what it shows."""

import doctest
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.filterwarnings("ignore")
def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "PYTHON.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    assert blocks
    (tmp_path / "samples").mkdir()
    shutil.copy(ROOT / "samples" / "demo_scene.tif", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    failed = doctest.DocTestRunner(optionflags=_FLAGS).run(test).failed
    assert not failed, capsys.readouterr().out
