"""Tasks and models own their facts: nothing else asks which task it is, or knows the side of a patch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmtool.tasks import TASKS

PACKAGE = Path(__file__).parents[1] / "tmtool"
PATCH = 16
OWN_THEIR_PATCH = ("modality.py", "models/terramind", "models/families", "models/vit", "models/demo.py")


def compares_a_task(node: ast.AST) -> bool:
    """Whether code compares with a task's name, as text or as `Generate.name`, matches one, or asks for its class."""
    if isinstance(node, ast.Compare | ast.MatchValue | ast.MatchClass):
        inside = list(ast.walk(node))
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
        inside = [inner for argument in node.args[1:] for inner in ast.walk(argument)]
    else:
        return False
    classes = {task.__name__ for task in TASKS.values()}
    return any(
        (isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value in TASKS)
        or (isinstance(n, ast.Name) and n.id in classes)
        for n in inside
    )


def sides_of_a_patch(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the numbers that code divides by, or gives to a name with `patch` in it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.FloorDiv):
        yield node.right
    elif isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any("patch" in ast.unparse(target).lower() for target in targets):
            yield from ast.walk(node.value)
    elif isinstance(node, ast.keyword) and "patch" in (node.arg or ""):
        yield node.value
    elif isinstance(node, ast.arguments):
        pairs = [
            *zip(node.args[::-1], node.defaults[::-1], strict=False),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        yield from (default for argument, default in pairs if default is not None and "patch" in argument.arg)
    elif isinstance(node, ast.Compare) and "patch" in ast.unparse(node).lower():
        yield from ast.walk(node)


def knows_a_patch(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value is not True and n.value == PATCH for n in sides_of_a_patch(node))


def places(wanted: str, path: Path) -> list[str]:
    found = {"task": compares_a_task, "patch": knows_a_patch}[wanted]
    tree = ast.parse(path.read_text())
    return [f"{path.name}: {ast.unparse(node)}" for node in ast.walk(tree) if found(node)]


def modules(*without: str) -> list[Path]:
    named = {p: p.relative_to(PACKAGE).as_posix() for p in sorted(PACKAGE.rglob("*.py"))}
    return [path for path, name in named.items() if not name.startswith(without)]


def test_nothing_but_a_task_asks_which_task_it_is() -> None:
    assert [place for path in modules("tasks/") for place in places("task", path)] == []


def test_a_patch_is_the_models() -> None:
    assert [place for path in modules(*OWN_THEIR_PATCH) for place in places("patch", path)] == []


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ("task", "if task == 'embed': pass"),
        ("task", "x = name in ('generate', 'tokenize')"),
        ("task", "x = made.task == Tokenize.name"),
        ("task", "if isinstance(task, Generate): pass"),
        ("task", "match task:\n    case 'predict': pass"),
        ("patch", "rows = height // 16"),
        ("patch", "_PATCH: int = 16"),
        ("patch", "def f(shape, patch=16): pass"),
        ("patch", "plan = TilePlan(shape, patch=16)"),
        ("patch", "if patch != 16: pass"),
    ],
)
def test_what_is_counted_is_seen(tmp_path: Path, wanted: str, code: str) -> None:
    path = tmp_path / "code.py"
    path.write_text(code)
    assert len(places(wanted, path)) == 1
