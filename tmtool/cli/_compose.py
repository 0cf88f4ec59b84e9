"""Commands composed of groups of options: a parameter whose type is a dataclass stands for all of its fields."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from typer.models import OptionInfo


def composed(function: Callable[..., None]) -> Callable[..., None]:
    """Return the command that takes the fields of a function's groups as options of its own, and calls it with the groups.

    Options keep the order in which they are declared; a field without a default is an option that has to be given.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}

    @functools.wraps(function)
    def command(**given: Any) -> None:
        own = {n: v for n, v in given.items() if n in hints and n not in groups}
        made = {name: group(**{f.name: given[f.name] for f in fields(group)}) for name, group in groups.items()}
        function(**own, **made)

    parameters = sorted(_parameters(function, hints, groups), key=lambda p: p.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameters(
    function: Callable[..., None], hints: dict[str, Any], groups: dict[str, Any]
) -> Iterator[inspect.Parameter]:
    """Yield the command's parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            yield parameter.replace(annotation=hints[name], kind=kind)
            continue
        of_group = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            yield inspect.Parameter(field.name, kind, default=default, annotation=of_group[field.name])


def words_of(group: Any) -> list[str]:
    """Return the words of a command line that give a group its values; those at their defaults are left out."""
    hints = get_type_hints(type(group), include_extras=True)
    words: list[str] = []
    for field in fields(group):
        value = getattr(group, field.name)
        if value == field.default:
            continue
        (option,) = (data for data in hints[field.name].__metadata__ if isinstance(data, OptionInfo))
        # typer takes the first name for a default, until it makes the command
        names = map(str, (option.default, *(option.param_decls or ())))
        name = next(name for name in names if name.startswith("--"))
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [name] if one is True else [name, str(one)]
    return words
