"""The item of a scene: its products as assets, and what they say of when, where and how they were made."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmtool.catalog import _models as models
from tmtool.catalog._documents import extensions, read, relative, write
from tmtool.catalog._products import Found, products, state
from tmtool.catalog._words import classes, moment, number
from tmtool.dates import parsed
from tmtool.errors import OutputError
from tmtool.files.cog import COG
from tmtool.files.facts import BandFacts, Facts
from tmtool.files.geojson import bounds_of, footprint
from tmtool.grid import Grid
from tmtool.names import shown
from tmtool.provenance import weights_text
from tmtool.source import pixel_size_m
from tmtool.tasks import TASKS, content, geoemb

if TYPE_CHECKING:
    import pystac

_log = logging.getLogger("tmtool")

_LEVEL = "L4"
"""The processing level of what models make, as the processing extension and mlm have it."""
_EMBEDDINGS = "embeddings"
"""The asset whose properties and links are those of `emb`."""
_KEPT = ("root", "parent")
"""Links of an item that catalogs put there."""


def write_item(folder: Path, stem: str, root: Path, catalogs: Mapping[str, str] | None = None) -> Path:
    """Write the item of a scene beside its products, `{stem}.json`, and below `root` those of the models that made them.

    It lists all products of the scene in the folder, whichever commands made them; where another process adds one meanwhile it is
    written again, so that of several writers the last has them all. `catalogs` are links to those that list it, by their `rel`;
    without them it keeps those that it has. Raises `OutputError`, and `ProductError` where all products are damaged.
    """
    path = folder / f"{stem}.json"
    while True:
        before = state(folder, stem)
        found, wrong = products(folder, stem)
        if not found:
            raise wrong[0] if wrong else OutputError(f"{path}: there is no product of {stem} to list in it.")
        models.write_items(root, found)
        write(path, document(stem, found, folder, root, catalogs or _links(path)), "scene")
        if state(folder, stem) == before:
            break
    for error in wrong:
        _log.warning("%s: lacks a product. %s", path, error)
    return path


def _links(path: Path) -> dict[str, str]:
    """Return the links from an item to the catalogs that list it, by their `rel`."""
    found = (read(path) or {}).get("links", [])
    return {link["rel"]: link["href"] for link in found if link.get("rel") in _KEPT}


def document(
    stem: str, found: Sequence[Found], folder: Path, root: Path, catalogs: Mapping[str, str]
) -> dict[str, Any]:
    """Return the item of a scene's products in a folder; `catalogs` are links to those that list it, by their `rel`."""
    import pystac

    keyed = _keyed(found)
    assets = dict(_assets(keyed))
    vectors = keyed.get(_EMBEDDINGS)
    properties, area = _properties(found) | (_of_vectors(vectors) if vectors else {}), _area(found)
    start, end = _taken(found)
    at_once = start == end
    item = pystac.Item(
        stem,
        area,
        bounds_of(area) if area else None,
        start if at_once else None,
        properties,
        None if at_once else start,
        None if at_once else end,
        extensions(properties, [asset.to_dict() for asset in assets.values()]),
        assets=assets,
    )
    for rel, href in catalogs.items():
        item.add_link(pystac.Link(rel, href, pystac.MediaType.JSON))
    for link in _derivations(found, vectors, folder, root):
        item.add_link(link)
    return item.to_dict(include_self_link=False, transform_hrefs=False)


# When, where and how


def _taken(found: Sequence[Found]) -> tuple[datetime, datetime]:
    """Return from when to when the inputs were taken, or where none says it twice the time of processing."""
    spans = list(_acquired(found))
    latest = max(one.written for one in found)
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else (latest, latest)


def _acquired(found: Sequence[Found]) -> Iterator[tuple[datetime, datetime]]:
    """Yield from when to when each input was taken that is known: a day, or a time."""
    for one in found:
        for said in one.made.details.get("acquired", {}).values():
            if date := parsed(str(said)):
                at = datetime.fromisoformat(date).replace(tzinfo=UTC)
                day = "T" not in date
                yield at, datetime.combine(at, time(23, 59, 59), UTC) if day else at


def _properties(found: Sequence[Found]) -> dict[str, Any]:
    last = max(found, key=lambda one: (one.written, one.path))
    software = {"tmtool": last.made.version, **last.made.libraries}
    codes = {one.facts.grid.code for one in found if one.facts.grid}
    platforms = {str(name) for one in found for name in one.made.details.get("platforms", {}).values()}
    warnings = dict.fromkeys(one.made.warning for one in found if one.made.warning)
    said: dict[str, Any] = {
        "tmtool:kind": "scene",
        "tmtool:datetime_of": "acquisition" if any(_acquired(found)) else "processing",
        "description": " ".join(warnings),
        "platform": platforms.pop() if len(platforms) == 1 else "",
        "processing:level": _LEVEL,
        "processing:datetime": moment(last.written),
        "processing:version": last.made.version,
        "processing:software": {name: version for name, version in software.items() if version not in ("", "absent")},
        "processing:lineage": "\n".join(dict.fromkeys(map(_lineage, found))),
        "proj:code": codes.pop() if len(codes) == 1 else "",
    }
    return {key: value for key, value in said.items() if value}


def _lineage(one: Found) -> str:
    made = one.made
    inputs = ", ".join(f"{name} {shown(path)}" for name, path in made.inputs.items())
    weights = f", {weights_text(made.weights)}" if made.weights is not None else ""
    return f"tmtool {made.task}: {made.model}{weights}, from {inputs}; seed {made.seed}, {made.precision}."


def _area(found: Sequence[Found]) -> dict[str, Any] | None:
    """Return what the products cover, by those with the finest cells; None where no CRS is known."""
    known = [one.facts.extent for one in found if one.facts.extent and one.facts.extent.crs]
    rasters = [one.facts.grid for one in found if one.facts.grid and one.facts.grid.crs]
    shapes = [(grid, shape) for grid in dict.fromkeys(rasters or known) if (shape := footprint(grid))]
    if not shapes:
        return None
    finest = min(_cell(grid) for grid, _ in shapes)
    areas = [shape for grid, shape in shapes if _cell(grid) <= finest]
    return areas[0] if len(areas) == 1 else _together(areas)


def _cell(grid: Grid) -> float:
    return abs(float(grid.transform.determinant))


def _together(areas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the union of areas, such as parts of a scene."""
    from shapely import union_all
    from shapely.geometry import mapping, shape

    union: dict[str, Any] = mapping(union_all([shape(area) for area in areas]))
    return union


def _derivations(found: Sequence[Found], vectors: Found | None, folder: Path, root: Path) -> Iterator["pystac.Link"]:
    """Yield links to the items of the inputs that still are there, and of the models; those of vectors also as `emb` has them."""
    import pystac

    of_vectors = [vectors] if vectors else []
    for some, to_inputs, to_models in (
        (found, "derived_from", "derived_from"),
        (of_vectors, "emb:source-data", "emb:model"),
    ):
        for href in _inputs(some, folder):
            yield pystac.Link(to_inputs, href, pystac.MediaType.GEOJSON)
        for path, name in models.items_of(root, some):
            said = {"mlm:name": name}
            yield pystac.Link(to_models, relative(path, folder), pystac.MediaType.GEOJSON, extra_fields=said)


def _inputs(found: Sequence[Found], folder: Path) -> Iterator[str]:
    """Yield where the items of inputs are, of those that still are there."""
    for href in dict.fromkeys(str(href) for one in found for href in one.made.details.get("items", {}).values()):
        if "://" in href:
            yield shown(href)
        elif os.path.exists(href):
            yield relative(Path(href), folder.absolute())


# What


def _keyed(found: Sequence[Found]) -> dict[str, Found]:
    """Return products by the keys of their assets."""
    keyed: dict[str, Found] = {}
    for one in sorted(found, key=lambda one: (one.suffix, -len(one.facts.bands), one.path)):
        key = TASKS[one.made.task].listed_as(one.suffix)
        keyed[f"{key}_{one.path.suffix[1:]}" if key in keyed else key] = one  # the same in another format
    return keyed


def _assets(keyed: Mapping[str, Found]) -> Iterator[tuple[str, "pystac.Asset"]]:
    """Yield the assets and their keys: products, the masks beside them, and their pictures."""
    import pystac

    for key, one in keyed.items():
        title = f"{one.suffix}: {one.made.task}, {one.made.model}"
        yield key, pystac.Asset(f"./{one.path.name}", title, None, one.media_type, ["data"], _fields(one))
        if one.beside:
            yield one.beside.stem.removeprefix(f"{one.stem}_"), _mask(one, one.beside)
        if one.picture:
            where = f"./{one.picture.name}"
            yield f"{key}_thumbnail", pystac.Asset(where, one.suffix, None, pystac.MediaType.PNG, ["thumbnail"])


def _mask(one: Found, path: Path) -> "pystac.Asset":
    """Return the mask beside a product, which is a COG."""
    import pystac

    facts = COG.look(path) if COG.look else Facts({})
    fields = {"created": moment(one.written)} | (_raster(facts, facts.grid) if facts.grid else {})
    title = f"1 where the source of {one.suffix} holds data, else 0"
    return pystac.Asset(f"./{path.name}", title, None, COG.media_type, ["data-mask"], fields)


def _fields(one: Found) -> dict[str, Any]:
    """Return the fields of an asset beyond STAC's own."""
    facts = one.facts
    fields: dict[str, Any] = {"created": moment(one.written)}
    if facts.grid:
        fields |= _raster(facts, facts.grid) | {"bands": _BANDS.get(content(one.made), _bands)(facts)}
    if facts.classes:
        fields["classification:classes"] = classes(facts.classes, facts.nodata)
    if facts.columns:
        fields["table:columns"] = [{"name": name, "type": kind} for name, kind in facts.columns.items()]
        fields |= {"table:primary_geometry": "geometry", "table:row_count": facts.rows}
    return fields


def _raster(facts: Facts, grid: Grid) -> dict[str, Any]:
    fields: dict[str, Any] = {"data_type": facts.dtype}
    if facts.nodata is not None:
        fields["nodata"] = number(facts.nodata)
    if size := pixel_size_m(grid):
        fields["raster:spatial_resolution"] = round(size, 6)
    fields |= {"raster:sampling": "area", "proj:code": grid.code}
    if grid.crs is not None and grid.code is None:
        fields["proj:wkt2"] = grid.crs.to_wkt(version="WKT2_2019")
    return fields | {"proj:shape": list(grid.shape), "proj:transform": list(grid.transform[:6])}


def _bands(facts: Facts) -> list[dict[str, Any]]:
    return [_band(band) for band in facts.bands]


def _band(band: BandFacts) -> dict[str, Any]:
    known = {name: value for name, value in band.statistics.items() if math.isfinite(value)}
    said: dict[str, Any] = {"name": band.name, "unit": band.unit, "statistics": known}
    if (band.scale, band.offset) != (1, 0):
        said |= {"raster:scale": band.scale, "raster:offset": band.offset}
    return {key: value for key, value in said.items() if value not in ("", {})}


def _dimensions(facts: Facts) -> list[dict[str, Any]]:
    """Return the bands of vectors, of which there are many: without their statistics."""
    return [_band(BandFacts(band.name, band.unit, band.scale, band.offset)) for band in facts.bands]


_BANDS: Mapping[str, Callable[[Facts], list[dict[str, Any]]]] = {"vectors": _dimensions}
"""How bands are listed by what products hold, where that is not as usual."""


def _of_vectors(one: Found) -> dict[str, Any]:
    """Return the properties of an item that has embeddings, as `emb` has them."""
    facts = one.facts
    scales = [band.scale for band in facts.bands] or json.loads(facts.tags.get("scales", "[]"))
    return geoemb.properties(one.made, scales)
