"""TerraTorch's configuration files as plain data: read as YAML, nothing in them is imported or run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tmtool.errors import UsageError

Values = Mapping[str, Any]

_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)[eE][-+]?[0-9]+|\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """Plain YAML, with 1e-4 as a number: PyYAML takes it for a string, TerraTorch's parser for what it is."""


_Loader.yaml_implicit_resolvers = {  # a table of its own, the class's is shared with all loaders
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Component:
    """A class that a configuration names, and what it is called with; `path` is as it was written."""

    path: str
    args: Values

    @property
    def name(self) -> str:
        """The class's own name, without its modules."""
        return self.path.rpartition(".")[2]


def read_yaml(path: Path) -> Any:
    """Return what a YAML (or JSON) file holds. Raises `UsageError` if it cannot be read as plain data."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path}: expected plain YAML as TerraTorch reads it, found something else ({why})."
        ) from error


def component(path: str, document: Any, key: str) -> Component:
    """Return the component under `key`: `class_path`, and `init_args` with `dict_kwargs` over them."""
    value = document.get(key) if isinstance(document, dict) else None
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, dict) or not isinstance(value.get("class_path"), str):
        raise UsageError(
            f"{path}: expected '{key}:' with a 'class_path:' and 'init_args:', as in TerraTorch's configs, found none."
        )
    args = {**_mapping(path, value, "init_args", key), **_mapping(path, value, "dict_kwargs", key)}
    return Component(value["class_path"], args)


def _mapping(path: str, value: dict[str, Any], part: str, key: str) -> dict[str, Any]:
    found = value.get(part) or {}
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {key}.{part} is {type(found).__name__}, expected names with values.")
    return found


def transforms(args: Values, key: str) -> list[Component]:
    """Return the transforms under `key`, in order; those of several modalities one after the other."""
    found = args.get(key)
    lists = found.values() if isinstance(found, dict) and "class_path" not in found else [found]
    steps = []
    for value in lists:
        for step in value if isinstance(value, list) else [value] if value else []:
            named = step if isinstance(step, dict) else {"class_path": step}
            found_args = named.get("init_args")
            steps.append(Component(str(named.get("class_path")), found_args if isinstance(found_args, dict) else {}))
    return steps
