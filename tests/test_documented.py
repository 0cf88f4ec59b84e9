"""docs/COMMANDS.md holds every command and option of `tmtool` and no others; links between the documents resolve."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import ROOT
from tmtool.cli import app

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "samples").glob("*.md")])


def commands(command: Any = None, path: str = "tmtool") -> Iterator[tuple[str, Any]]:
    """Yield each command of the program and its path, as in `tmtool models list`."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, part in getattr(command, "commands", {}).items():
        yield from commands(part, f"{path} {name}")


def documented() -> dict[str, dict[str, tuple[str, str]]]:
    """Return by command the options in the tables of COMMANDS.md, with their defaults and variables.

    A table belongs to the command that its heading names, `## tmtool embed`, or to all in `## Options of embed and predict`.
    """
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    here: list[str] = []
    for line in (ROOT / "docs" / "COMMANDS.md").read_text().splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
            shared = re.split(r", | and ", title.removeprefix("Options of ")) if title.startswith("Options of ") else []
            here = [f"tmtool {name}" for name in shared] or [title]
            for command in here:
                found[command] |= {}
        elif line.startswith("| `-"):
            names, default, variable, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert meaning, line
            for name in re.findall(r"`(-[-\w]+)", names):
                for command in here:
                    assert name not in found[command], f"{command} {name} is documented twice"
                    found[command][name] = (default, variable.strip("`"))
    return found


def default_of(option: Any) -> str:
    """Return what a table says is an option's default: nothing of a flag that is off, or of what has none."""
    if isinstance(option.show_default, str):
        return option.show_default
    if option.secondary_opts:
        return (option.opts if option.default else option.secondary_opts)[0]
    return "" if option.default is None or option.default is False else str(option.default)


DOCUMENTED = documented()


def test_commands_are_those_documented() -> None:
    assert set(DOCUMENTED) == {path for path, _ in commands()}


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_options_are_those_documented(path: str, command: Any) -> None:
    options = {
        name: (default_of(option), option.envvar or "")
        for option in command.params
        if option.param_type_name == "option" and not option.hidden
        for name in (*option.opts, *option.secondary_opts)
        if name != "--help"
    }
    assert DOCUMENTED[path] == options


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_sizes_of_weights_are_those_of_the_files() -> None:
    from tmtool.cli.models import _files, _spec

    text = (ROOT / "docs" / "WEIGHTS.md").read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \| ([\d.]*) ?\|$", text, re.M)
    assert len(rows) == 10
    for model, *sizes in rows:
        for task, size in zip(("embed", "generate"), sizes, strict=True):
            if size:
                spec = _spec(model, task, "S2L2A", "S1GRD,LULC" if task == "generate" else "", coords=False)
                assert float(size) == round(sum(file.megabytes for file in _files(spec)) / 1000, 1), (model, task)


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
