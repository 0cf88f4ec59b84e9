"""A page of products: one HTML file that asks for nothing else, with the pictures, the values and a map inside."""

import base64
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from tmtool import __version__
from tmtool.errors import InputError, UsageError
from tmtool.names import cleaned
from tmtool.pictures._drawing import Components
from tmtool.pictures._layers import Layer
from tmtool.pictures._scenes import Shown, reference, scenes_of
from tmtool.pictures._sheet import write_whole
from tmtool.pictures.product import Look, Space

_log = logging.getLogger("tmtool")

_LARGE = 100_000_000
"""Bytes of a page above which browsers get slow."""


def check_page(target: Path) -> None:
    """Raise `UsageError` for a name that is no page's: another file is not overwritten by mistake."""
    if target.suffix.lower() not in (".html", ".htm") or target.is_dir():
        raise UsageError(f"--html {target}: give the name of the page to write, ending in .html.")


def write_page(
    target: Path,
    products: Sequence[Path],
    look: Look,
    together: dict[Space, Components] | None = None,
    report: Path | None = None,
) -> int:
    """Write a page of products, and of the scenes of a run's report; returns how many products could not be read.

    Raises `UsageError`, `InputError` where there is nothing to show, and `OutputError`.
    """
    check_page(target)
    scenes, failed = scenes_of(products, look, together or {}, report)
    if not any(scene.layers for scene in scenes) and not report:
        raise InputError("None of the products could be read, so there is no page to write.")
    page = "".join(_page(scenes, reported=report is not None)).encode(errors="replace")
    write_whole(target, lambda part: part.write_bytes(page))
    if len(page) > _LARGE:
        _log.warning(
            "%s: has %.0f MB, which browsers show slowly; a smaller --size, or fewer scenes, make it smaller.",
            target,
            len(page) / 1e6,
        )
    return failed


def _page(scenes: Sequence[Shown], *, reported: bool) -> Iterator[str]:
    """Yield the page's parts."""
    library = f"/*\n{_asset('ol.LICENSE')}*/\n{_asset('ol.js')}"
    script, style = _asset("page.js"), _asset("page.css")
    parts = {
        "policy": _policy([library, script], style),
        "version": escape(__version__),
        "title": escape(_title(scenes)),
        "counts": escape(_counts(scenes, reported=reported)),
        "scenes": "\n".join(_entry(i, scene) for i, scene in enumerate(scenes)),
        "legends": "\n".join(_legend(key, layer) for key, layer in _layers(scenes)),
        "abouts": "\n".join(_about(key, layer, scene) for key, layer, scene in _with_scenes(scenes)),
        "facts": _json([_facts(i, scene) for i, scene in enumerate(scenes)]),
        "data": "\n".join(_data(key, layer) for key, layer in _layers(scenes)),
        "style": style,
        "library": library,
        "script": script,
    }
    yield Template(_asset("page.html")).substitute(parts)


def _asset(name: str) -> str:
    return files("tmtool.pictures").joinpath("page", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return the policy that lets browsers run these scripts and no other, and ask for nothing."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, style)]
    *run, look = (f"'sha256-{each}'" for each in hashes)
    return f"default-src 'none'; img-src data:; script-src {' '.join(run)}; style-src {look}; base-uri 'none'; form-action 'none'"


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _title(scenes: Sequence[Shown]) -> str:
    return scenes[0].name if len(scenes) == 1 else f"{len(scenes)} scenes"


def _counts(scenes: Sequence[Shown], *, reported: bool) -> str:
    if not reported:
        return (
            "No report: --report FILE, with the file that --report of the run wrote, adds states, errors and metrics."
        )
    statuses = [scene.status or "not in the report" for scene in scenes]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _with_scenes(scenes: Sequence[Shown]) -> Iterator[tuple[str, Layer, Shown]]:
    """Yield each layer with the key that its parts of the page have, and its scene."""
    for i, scene in enumerate(scenes):
        yield from ((f"{i}-{j}", layer, scene) for j, layer in enumerate(scene.layers))


def _layers(scenes: Sequence[Shown]) -> Iterator[tuple[str, Layer]]:
    yield from ((key, layer) for key, layer, _ in _with_scenes(scenes))


def _entry(number: int, scene: Shown) -> str:
    """Return a scene's line in the list: a button if there is something to show."""
    state = (
        f'<span class="state" data-state="{escape(scene.status)}">{escape(scene.status)}</span>' if scene.status else ""
    )
    name = f'<span class="name">{escape(scene.name)}</span>'
    below = [f'<p class="error">{escape(scene.error)}</p>'] if scene.error else []
    below += [f'<p class="note">{escape(note)}</p>' for note in scene.notes]
    if not scene.layers:
        head = f'<div class="scene">{name}{state}</div>'
        below += [] if scene.error else ['<p class="note">None of its products is among those shown.</p>']
    else:
        thumb = f'<img alt="" src="{reference(scene).thumb}">'
        head = f'<button type="button" class="scene" data-scene="{number}">{thumb}{name}{state}</button>'
    return f"<li>{head}{''.join(below)}</li>"


def _legend(key: str, layer: Layer) -> str:
    """Return what a layer's colours mean."""
    legend = layer.legend
    said = [f'<h3 class="name">{escape(layer.name)}</h3>']
    if legend.ramp:
        stops = "".join(
            f'<stop offset="{i / (len(legend.ramp) - 1):.4g}" stop-color="{escape(colour)}"/>'
            for i, colour in enumerate(legend.ramp)
        )
        bar = (
            f'<svg width="120" height="14" aria-hidden="true"><linearGradient id="ramp-{key}">{stops}</linearGradient>'
            f'<rect width="120" height="14" fill="url(#ramp-{key})"/></svg>'
        )
        words = f"{legend.text}: {legend.low}" if legend.text else legend.low
        said.append(f"<p>{escape(words)} {bar} {escape(legend.high)}</p>")
    elif legend.text:
        said.append(f"<p>{escape(legend.text)}</p>")
    if legend.entries:
        said.append(f'<ul class="classes">{"".join(_swatch(*entry) for entry in legend.entries)}</ul>')
    return f'<section class="legend" id="legend-{key}" hidden>{"".join(said)}</section>'


def _swatch(name: str, colour: str) -> str:
    square = (
        f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" fill="{escape(colour)}"/></svg>'
    )
    return f"<li>{square} {escape(name)}</li>"


def _about(key: str, layer: Layer, scene: Shown) -> str:
    """Return a layer's metrics and provenance."""
    said = [f'<h2 class="name">{escape(layer.name)}</h2>']
    if layer.path is None:
        text = f"An input, {layer.warped}." if layer.warped else "An input, in its own pixels."
        return f'<section class="about" id="about-{key}" hidden>{said[0]}<p>{escape(text)}</p></section>'
    found = _measured(layer.path, scene)
    if layer.made and layer.made.warning:
        said.append(f'<p class="error">{escape(layer.made.warning)}</p>')
    said.append(f"<h3>Metrics</h3>{_tables(found)}" if found else '<p class="note">No report has metrics of it.</p>')
    if layer.made is None:
        said.append('<p class="note">Not made by tmtool: it does not say how it was made.</p>')
    else:
        facts = cleaned(layer.made.facts())
        said.append(f"<details open><summary>Provenance</summary>{_list(facts)}</details>")
    return f'<section class="about" id="about-{key}" hidden>{"".join(said)}</section>'


def _measured(path: Path, scene: Shown) -> Mapping[str, Any]:
    """Return what the report measured of a product."""
    own = path.resolve()
    exact = [found for other, found in scene.measured.items() if other.resolve() == own]
    named = [found for other, found in scene.measured.items() if other.name == path.name]
    return (exact or named or [{}])[0]


def _tables(found: Mapping[str, Any]) -> str:
    """Return measurements: figures as a list, those of bands as a table."""
    single = {name: value for name, value in found.items() if not isinstance(value, dict)}
    said = [_list(single)] if single else []
    for name, inner in found.items():
        if isinstance(inner, dict) and inner:
            rows = (
                inner
                if all(isinstance(row, dict) for row in inner.values())
                else {k: {"": v} for k, v in inner.items()}
            )
            said.append(_table(name, rows))
    return "".join(said)


def _table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th>{"".join(f"<td>{escape(_text(row.get(c)))}</td>" for c in columns)}</tr>'
        for key, row in rows.items()
    )
    return (
        f'<div class="wide"><table><caption>{escape(name)}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(facts: Mapping[str, Any]) -> str:
    rows = (f"<dt>{escape(str(key))}</dt><dd>{escape(_text(value))}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _text(value: Any) -> str:
    """Return a value of JSON in words: figures with four digits."""
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(inner) for inner in value)
    return str(value)


def _facts(number: int, scene: Shown) -> dict[str, Any]:
    """Return what the script has to know of a scene."""
    if not scene.layers:
        return {"name": scene.name, "layers": []}
    place = reference(scene)
    crs = place.grid.crs.to_string() if place.grid.crs else ""
    return {
        "name": scene.name,
        "crs": crs if len(crs) < 40 else "its own CRS",
        "degrees": bool(place.grid.crs and place.grid.crs.is_geographic),
        "box": place.across(place.grid),
        "layers": [_layer_facts(f"{number}-{j}", layer, place) for j, layer in enumerate(scene.layers)],
    }


def _layer_facts(key: str, layer: Layer, place: Layer) -> dict[str, Any]:
    p = layer.part
    return {
        "key": key,
        "name": layer.name,
        "input": layer.path is None,
        "box": layer.across(place.grid),
        "shape": layer.shape,
        "part": (p.row, p.col, p.height, p.width),
        "transform": tuple(layer.grid.transform[:6]),
        "type": layer.values[0],
        "bands": layer.bands,
        "count": layer.count,
        "names": layer.names,
        "unit": layer.unit,
        "warped": layer.warped,
    }


def _data(key: str, layer: Layer) -> str:
    held = {"picture": layer.picture, "values": layer.values[1]}
    return f'<script type="application/json" id="data-{key}">{_json(held)}</script>'
