"""Which products belong to one scene, what a run's report says of it, and where its inputs are."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmtool.errors import InputError, TmtoolError
from tmtool.modality import MODALITIES
from tmtool.names import base, cleaned
from tmtool.pictures._drawing import Components
from tmtool.pictures._layers import Layer, input_layer, product_layer
from tmtool.pictures.product import Look, Space
from tmtool.provenance import Provenance
from tmtool.settings import Reading
from tmtool.source import inspect
from tmtool.tasks import TASKS

_log = logging.getLogger("tmtool")


@dataclass
class Shown:
    """A scene on a page: its layers, inputs first, and what its run's report says of it.

    `notes` say what is not shown and why. `measured` are the measurements of products, by their paths.
    """

    name: str
    layers: list[Layer] = field(default_factory=list)
    status: str = ""
    error: str = ""
    notes: list[str] = field(default_factory=list)
    inputs: Mapping[str, str] = field(default_factory=dict)
    measured: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    reported: frozenset[Path] = frozenset()
    """The products that the report names."""


def scenes_of(
    products: Sequence[Path], look: Look, together: dict[Space, Components], report: Path | None
) -> tuple[list[Shown], int]:
    """Return the scenes of products and of a report, and how many products could not be read.

    Those are logged and noted at their scene. Raises `InputError` for a report that is none.
    """
    scenes = _reported(report) if report else []
    find = _finder(scenes)
    by_key: dict[tuple[Path, str], Shown] = {}
    failed = 0
    for path in products:
        layer, why = None, ""
        try:
            layer = product_layer(path, look, together)
        except TmtoolError as error:
            _log.error("%s", error)
            failed, why = failed + 1, str(error)
        made = layer.made if layer else None
        scene = find(path, made)
        if scene is None:
            name = _scene_name(path, made)
            scene = by_key.setdefault((path.parent, name), Shown(name))
        if layer:
            scene.layers.append(layer)
        else:
            scene.notes.append(why)
    scenes = sorted([*scenes, *by_key.values()], key=lambda scene: scene.name)
    for scene in scenes:
        _align(scene)
        _add_inputs(scene, look)
    return scenes, failed


def _reported(path: Path) -> list[Shown]:
    """Return the scenes of a report that `--report` of a run wrote. Raises `InputError`."""
    try:
        said = cleaned(json.loads(path.read_text()))
        return [_of_report(facts) for facts in said["scenes"]]
    except OSError as error:
        raise InputError(f"--report {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"--report {path}: is no report of a run of tmtool; give the file that --report of the run wrote."
        ) from error


def _of_report(facts: Mapping[str, Any]) -> Shown:
    inputs = facts["inputs"]
    named = inputs if isinstance(inputs, dict) else {str(i): path for i, path in enumerate(inputs)}
    paths = {suffix: Path(product) for suffix, product in facts["products"].items()}
    measured = facts.get("measured", {})
    notes = [str(note) for note in (facts.get("why"), *facts.get("warnings", ())) if note]
    return Shown(
        base(next(iter(named.values()), "")) or "a scene without inputs",
        status=str(facts["status"]),
        error=str(facts.get("error", {}).get("message", "")),
        notes=notes,
        inputs=named,
        measured={paths[suffix]: found for suffix, found in measured.items() if suffix in paths},
        reported=frozenset(paths.values()),
    )


def _finder(scenes: Sequence[Shown]) -> Callable[[Path, Provenance | None], Shown | None]:
    """Return what finds the scene of a report that a product is of.

    By its path; of another run by its stem, beside the products that the report names; or where a folder was moved, or the
    report names it from another one, by its stem alone, if only one scene has it.
    """
    by_path = {path.resolve(): scene for scene in scenes for path in scene.reported}
    by_stem = {(path.parent, _scene_name(path, None)): scene for path, scene in by_path.items()}
    alike: dict[str, list[Shown]] = {}
    for (_, stem), scene in by_stem.items():
        alike.setdefault(stem, []).append(scene)

    def find(path: Path, made: Provenance | None) -> Shown | None:
        own, stem = path.resolve(), _scene_name(path, made)
        named = alike.get(stem, [])
        return by_path.get(own) or by_stem.get((own.parent, stem)) or (named[0] if len(named) == 1 else None)

    return find


def _scene_name(path: Path, made: Provenance | None) -> str:
    """Return what a product's name begins with: its scene's stem."""
    task = TASKS.get(made.task) if made else None
    suffixes = task.suffixes() if task else "|".join(task.suffixes() for task in TASKS.values())
    return re.sub(rf"_({suffixes})\Z", "", path.stem, flags=re.I | re.S) or path.stem


def _align(scene: Shown) -> None:
    """Bring the layer with the finest pixels to the front, and leave out what lies on no grid like its own."""
    if not scene.layers:
        return
    first = min(scene.layers, key=lambda layer: abs(layer.grid.transform.determinant))
    kept = []
    for layer in scene.layers:
        if layer.across(first.grid):
            kept.append(layer)
        else:
            scene.notes.append(f"{layer.name} lies on another grid than {first.name}: preview it alone.")
    scene.layers = kept


def reference(scene: Shown) -> Layer:
    """Return the product with the finest pixels, whose grid a scene's layers are placed on."""
    products = [layer for layer in scene.layers if layer.path]
    return min(products, key=lambda layer: abs(layer.grid.transform.determinant))


def _add_inputs(scene: Shown, look: Look) -> None:
    """Put the inputs before the products, or a note of why they are not there."""
    if not scene.layers:
        return
    place, found = reference(scene), []
    for name, modality, path in _inputs(scene, look):
        if path is None:
            scene.notes.append(
                f"The input {name} was not found beside the product, above it or in the working folder; --with INPUT shows it."
            )
            continue
        try:
            source = look.beside or inspect(path, MODALITIES.get(modality), Reading(s2_offset=_offset(place, modality)))
            found.append(input_layer(source, place, look))
        except TmtoolError as error:
            scene.notes.append(f"The input {name} is not shown. {error}")
            if look.beside:
                _log.warning("%s: %s", scene.name, scene.notes[-1])
    scene.layers[:0] = found


def _offset(layer: Layer, modality: str) -> float | None:
    return layer.made.offsets.get(modality) if layer.made else None


def _inputs(scene: Shown, look: Look) -> Iterator[tuple[str, str, str | None]]:
    """Yield name, modality and path of a scene's inputs, optical ones first; no path where one is not found."""
    if look.beside:
        yield base(look.beside.path), look.beside.modality.name, look.beside.path
        return
    own = {layer.path.name for layer in scene.layers if layer.path}
    wanted: dict[str, tuple[str, str]] = {}
    for layer in scene.layers:
        if layer.made:
            states = layer.made.input_states
            named = {m: base(name) for m, name in layer.made.inputs.items()}
            wanted |= {m: (name, states.get(m, "")) for m, name in named.items() if name not in own}
    for key in sorted(wanted, key=lambda m: not (m in MODALITIES and MODALITIES[m].is_optical)):
        name, state = wanted[key]
        yield name, key.partition("@")[0], _where(name, state, _places(scene, key, name))


def _places(scene: Shown, key: str, name: str) -> Iterator[str]:
    """Yield where an input may be: as the report says, beside the product, above it, in the working folder."""
    if key in scene.inputs:
        yield scene.inputs[key]
    for folder in dict.fromkeys(
        (*(p for layer in scene.layers if layer.path for p in (layer.path.parent, layer.path.parent.parent)), Path())
    ):
        yield str(folder / name)


def _where(name: str, state: str, places: Iterator[str]) -> str | None:
    """Return the first of the places that holds a file of the size that the product's input had."""
    size = re.match(r"(\d+) bytes", state)
    for place in places:
        path = Path(place)
        if path.exists() and (size is None or not path.is_file() or path.stat().st_size == int(size[1])):
            return place
    return None
