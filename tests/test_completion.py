"""What the shell completes: commands, options, modalities in lists, models, fixed choices; and files, by saying nothing."""

import os
import subprocess
import sys

import pytest

from tests.test_cli import HEAVY

SCRIPT = """
import atexit, sys
atexit.register(lambda: print(*sorted({m.partition(".")[0] for m in sys.modules}), file=sys.stderr))
from tmtool.cli import main
main()
"""


def completed(line: str) -> tuple[list[str], set[str]]:
    """Return what bash is offered at the end of a line, and what was imported for it."""
    words = line.split(" ")
    asked = {"_TMTOOL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    script = [sys.executable, "-c", f"import sys; sys.argv[0] = 'tmtool'\n{SCRIPT}"]
    done = subprocess.run(script, env=os.environ | asked, capture_output=True, text=True, check=False)
    return done.stdout.split(), set(done.stderr.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tmtool re", ["reconstruct"]),
        ("tmtool models f", ["fetch"]),
        ("tmtool generate --out L", ["LULC"]),
        ("tmtool generate --out LULC,S1", ["LULC,S1GRD", "LULC,S1RTC"]),
        ("tmtool generate --out LULC,L", []),
        ("tmtool embed --in S2", ["S2L2A", "S2L1C"]),
        ("tmtool embed --normalize ", ["none", "l2"]),
        ("tmtool embed scene", []),
        ("tmtool embed --overw", ["--overwrite"]),
    ],
)
def test_what_is_offered(line: str, offered: list[str]) -> None:
    words, imported = completed(line)
    assert words == offered
    assert "typer" in imported
    assert not imported & HEAVY


def test_models_are_offered() -> None:
    assert completed("tmtool models fetch prithvi-eo-v1")[0] == ["prithvi-eo-v1-100"]
    assert completed("tmtool bench --model base,dem")[0] == ["base,demo"]
