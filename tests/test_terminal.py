"""Pictures in the terminal: where it says that it shows them, by its own protocol; elsewhere the path alone, and nothing is disturbed."""

import base64
import re
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import terminals
from tests.test_preview import made, product

pytest.importorskip("textual_image", reason="pictures in the terminal need tmtool[terminal]")

SHOWING = "from tmtool.cli._terminal import viewer; from pathlib import Path; s = viewer(); print(bool(s)); s and s(Path({!r}))"
SIXEL = re.compile(rb'\x1bP[\d;]*q"1;1;(\d+);(\d+)[^\x1b]+\x1b\\')
NO_PICTURES = (terminals.PLAIN, terminals.SILENT, terminals.FAR)
KITTY = re.compile(rb"\x1b_Gi=\d+,m=[01],f=100,q=2;([^\x1b]*)\x1b\\")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "x.png"
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(values, "RGBA").save(path)
    return path


def patiently(terminal: terminals.Terminal, command: Sequence[str], **env: str) -> terminals.Ended:
    """Run a command, again where a busy machine made the terminal answer too late for a picture."""
    for _ in range(5):
        ended = terminals.run(terminal, command, **env)
        if SIXEL.search(ended.said) or KITTY.search(ended.said):
            break
    return ended


def shown(terminal: terminals.Terminal, picture: Path, **env: str) -> terminals.Ended:
    run = terminals.run if terminal in NO_PICTURES else patiently
    ended = run(terminal, (sys.executable, "-c", SHOWING.format(str(picture))), **env)
    assert ended.status == 0, ended.said
    assert ended.as_before
    assert ended.typed == b""
    return ended


def test_kitty_is_sent_the_picture_and_places_for_it(picture: Path) -> None:
    ended = shown(terminals.KITTY, picture, NO_COLOR="1")
    sent = base64.b64decode(b"".join(KITTY.findall(ended.said)))
    with Image.open(BytesIO(sent)) as image:
        assert image.size[0] / image.size[1] == pytest.approx(1.5, rel=0.05)
        assert np.asarray(image)[..., :3].std() > 20
    number, columns, rows = map(int, re.findall(rb"\x1b_Ga=p,i=(\d+),c=(\d+),r=(\d+),U=1", ended.said)[0])
    assert ended.said.decode().count("\U0010eeee") == columns * rows
    assert rows <= 22
    colour = (
        f"38;2;{number >> 16 & 255};{number >> 8 & 255};{number & 255}"  # by which kitty knows which picture is meant
    )
    assert colour.encode() in ended.said
    assert not SIXEL.search(ended.said)


@pytest.mark.parametrize("terminal", [terminals.ITERM2, terminals.XTERM], ids=["iterm2", "xterm"])
def test_others_are_sent_sixels(picture: Path, terminal: terminals.Terminal) -> None:
    ended = shown(terminal, picture)
    (found,) = SIXEL.finditer(ended.said)
    width, height = int(found[1]), int(found[2])
    assert width <= 800
    assert height <= 22 * 20
    assert width / height == pytest.approx(1.5, rel=0.05)
    assert not KITTY.search(ended.said)


@pytest.mark.parametrize("terminal", NO_PICTURES, ids=["plain", "silent", "far"])
def test_what_shows_no_pictures_is_sent_none(picture: Path, terminal: terminals.Terminal) -> None:
    said = shown(terminal, picture).said
    assert said.endswith(b"False\r\n")
    assert len(said) < 100  # questions


def test_no_question_where_an_answer_would_help_nobody(picture: Path) -> None:
    code = SHOWING.format(str(picture))
    for command, env in (
        ((sys.executable, "-c", code), {"TERM": "dumb"}),
        (("sh", "-c", '"$0" -c "$1" | cat', sys.executable, code), {}),
        (("sh", "-c", '"$0" -c "$1" < /dev/null', sys.executable, code), {}),
    ):
        assert terminals.run(terminals.KITTY, command, **env).said == b"False\r\n", command
    piped = subprocess.run((sys.executable, "-c", code), capture_output=True, check=True)
    assert (piped.stdout, piped.stderr) == (b"False\n", b"")


def test_the_command_prints_the_path_and_then_the_picture(tmp_path: Path) -> None:
    path = product(tmp_path / "x_NDVI.tif", np.linspace(-1, 1, 1200, dtype=np.float32).reshape(1, 30, 40), made("NDVI"))
    command = (sys.executable, "-c", "from tmtool.cli import main; main()", "preview", str(path))
    ended = patiently(terminals.ITERM2, command)
    assert (ended.status, ended.as_before, ended.typed) == (0, True, b"")
    place = ended.said.index(f"{path.with_suffix('.png')}\r\n".encode())
    assert len(SIXEL.findall(ended.said, place)) == 1


def test_without_the_package_the_path_is_all(
    tmtool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tmtool.cli import _terminal

    monkeypatch.setattr(_terminal, "_terminal", lambda: (sys.stdin, sys.stdout))
    monkeypatch.setattr(_terminal, "find_spec", lambda name: None)
    path = product(tmp_path / "x_NDVI.tif", np.ones((1, 30, 40), np.float32), made("NDVI"))
    result = tmtool("preview", path, "-v")
    assert result.stdout == f"{path.with_suffix('.png')}\n"
    assert "pip install 'tmtool[terminal]'" in result.stderr
    assert "tmtool[terminal]" not in tmtool("preview", path).stderr
