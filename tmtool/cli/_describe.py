"""What `tmtool info` prints."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from tmtool import errors
from tmtool.batch.rates import times
from tmtool.batch.words import duration, size_text
from tmtool.models.finetuned.config import TaskConfig
from tmtool.models.finetuned.config import Tiling as TaskTiling
from tmtool.names import base, shown
from tmtool.scene.job import Job, Prepared, Scene, empty_share, prepare
from tmtool.source import BandValues, Source, footprint, pixel_size_m, valid_share

_log = logging.getLogger("tmtool")


def describe_scenes(job: Job, found: Sequence[Scene], *, as_json: bool) -> None:
    """Print what each input is and what `job` would cost; raises `typer.Exit` if one cannot be used."""
    for note in job.check():
        _log.warning("%s", note)
    bad = 0
    for scene in found:
        try:
            facts = _facts(job, prepare(job, scene, writes=False))
        except errors.TmtoolError as error:
            bad += 1
            _log.error("%s", error)
            continue
        print(json.dumps(facts) if as_json else _text(facts), flush=True)
    if bad:
        raise typer.Exit(errors.EXIT_NOTHING_TO_DO if bad == len(found) else errors.EXIT_SOME_FAILED)


def _facts(job: Job, prepared: Prepared) -> dict[str, Any]:
    (_, first), *others = prepared.sources.items()
    plan, empty = prepared.plan, empty_share(job, prepared)
    facts = _source_facts(first) | ({"others": [_source_facts(source) for _, source in others]} if others else {})
    return facts | {
        "job": " ".join(
            filter(None, [job.task.name, ",".join(job.spec(tuple(prepared.sources)).outputs), "with", job.model])
        ),
        "tiles": len(plan),
        "tile_grid": list(plan.counts),
        "tile_px": plan.size,
        "empty_share": empty,
        "memory_bytes": prepared.memory_bytes(),
        "disk_bytes": prepared.disk_bytes,
        "seconds": times(job, prepared, 1 - empty),
    }


def _source_facts(source: Source) -> dict[str, Any]:
    grid = source.grid
    return {
        "path": shown(source.path),
        "modality": source.modality.name,
        "because": source.modality_why,
        "bands": dict(zip(source.modality.bands, source.bands, strict=True)),
        "dtype": source.dtype,
        "nodata": None if source.nodata is None else str(source.nodata),
        "nodata_because": source.nodata_why,
        "alpha": source.alpha,
        "date": source.date,
        "date_because": source.date_why,
        "s2_offset": source.offset if source.modality.is_optical else None,
        "s2_offset_because": source.offset_why,
        "shape": list(grid.shape),
        "crs": grid.crs.to_string() if grid.crs else None,
        "origin": [grid.transform.c, grid.transform.f],
        "pixel_m": pixel_size_m(grid),
        "brought": source.brought or None,
        "unit": source.modality.unit,
        "unit_because": source.unit_why or "the modality's own",
        "gain": source.gain,
        "files": {layer.name: shown(layer.path) for layer in source.delivery.layers} if source.delivery else {},
        "baseline": source.baseline,
        "footprint": footprint(source),
        "valid_share": valid_share(source) if source.scale == 1 else None,
        "values": [_value_facts(values) for values in source.values],
        "warnings": list(source.warnings),
    }


def _text(facts: dict[str, Any]) -> str:
    rows, cols = facts["tile_grid"]
    lines = [line for source in (facts, *facts.get("others", ())) for line in _source_lines(source)]
    lines += [
        f"To {facts['job']}:",
        f"  tiles         {facts['tiles']} ({rows} x {cols}) of {facts['tile_px']} px, about {100 * facts['empty_share']:.0f} % empty",
        f"  memory        {size_text(facts['memory_bytes'])} for streaming, beside the model",
        f"  disk          {size_text(facts['disk_bytes'])} at most while it runs",
    ]
    lines += [f"  time          {duration(s):>10}  {name}" for name, s in facts["seconds"].items()]
    return "\n".join([*lines, "  (times are rough: the job's operations divided by the rate that a device sustains)"])


def _source_lines(facts: dict[str, Any]) -> Iterator[str]:
    pixel = f", {facts['pixel_m']:.4g} m pixels" if facts["pixel_m"] else ""
    yield facts["path"]
    yield f"  taken for     {facts['modality']}, because of {facts['because']}"
    yield f"  bands         {' '.join(f'{band}={number}' for band, number in facts['bands'].items())} ({facts['dtype']})"
    yield from (f"    {band:<12}{base(path)}" for band, path in facts["files"].items())
    yield f"  unit          {facts['unit']} ({facts['unit_because']}){_gain(facts['gain'])}"
    yield f"  size          {facts['shape'][0]} rows x {facts['shape'][1]} columns{pixel}"
    origin = f", origin {facts['origin'][0]:.10g}, {facts['origin'][1]:.10g}" if facts["crs"] else ""
    yield f"  georeference  {facts['crs'] or 'none'}{origin}"
    if facts["brought"]:
        yield f"  read          {facts['brought']}"
    if facts["footprint"]:
        yield "  footprint     {:.6g} to {:.6g} degrees east, {:.6g} to {:.6g} north".format(
            *_east_first(facts["footprint"])
        )
    if facts["valid_share"] is not None:
        yield f"  valid         about {100 * facts['valid_share']:.3g} % of the pixels"
    yield f"  nodata        {facts['nodata'] or '-'} ({facts['nodata_because']})"
    if facts["alpha"]:
        yield f"  alpha         band {facts['alpha']}; pixels where it is 0 are empty"
    if facts["date"]:
        yield f"  date          {facts['date']} ({facts['date_because']})"
    if facts["baseline"]:
        yield f"  baseline      {facts['baseline']}"
    if facts["s2_offset"] is not None:
        yield f"  S2 offset     {facts['s2_offset']:g} ({facts['s2_offset_because']})"
    yield from _value_lines(facts["values"])
    yield from (f"  warning       {warning}" for warning in facts["warnings"])


def _gain(gain: float) -> str:
    return f", values times {gain:.6g}" if gain != 1 else ""


def _east_first(box: Sequence[float]) -> tuple[float, float, float, float]:
    west, south, east, north = box
    return west, east, south, north


def describe_task(config: TaskConfig, tiling: TaskTiling, *, as_json: bool) -> None:
    """Print what a fine-tuned task wants."""
    facts = _task_facts(config, tiling)
    print(json.dumps(facts) if as_json else "\n".join(_task_lines(facts)), flush=True)


def _task_facts(config: TaskConfig, tiling: TaskTiling) -> dict[str, Any]:
    parts = {key: config.model_args.get(key) for key in ("backbone", "decoder")}
    return {
        "task": config.kind,
        "config": config.path,
        "network": {"factory": config.factory} | {key: value for key, value in parts.items() if value},
        "channels": config.channels,
        "names": list(config.class_names),
        "dates": config.dates,
        "inputs": [
            {
                "name": entry.name,
                "modality": entry.modality,
                "bands": list(entry.bands),
                "file_bands": list(entry.file_bands),
                "means": [list(row) for row in entry.means],
                "stds": [list(row) for row in entry.stds],
                "statistics": entry.statistics,
                "scale": entry.scale,
                "fill": list(entry.filled),
            }
            for entry in config.inputs
        ],
        "tiles": {"crop": tiling.crop, "stride": tiling.stride, "delta": tiling.delta},
    }


def _task_lines(facts: dict[str, Any]) -> Iterator[str]:
    network, tiles, count = facts["network"], facts["tiles"], facts["dates"]
    dates = "any number of dates" if count is None else f"{count} dates" if count > 1 else "one date"
    names = f": {', '.join(facts['names'])}" if facts["names"] else ""
    yield facts["config"]
    yield f"  task          {facts['task']}, {facts['channels']} channel{'s' * (facts['channels'] > 1)}{names}"
    yield f"  network       {', '.join(f'{key} {value}' for key, value in network.items())}"
    yield f"  tiles         {tiles['crop']} px, {tiles['stride']} px apart, {tiles['delta']} px of margin"
    for entry in facts["inputs"]:
        scale = f", values times {entry['scale']:g}" if entry["scale"] != 1 else ""
        yield f"  input         {entry['name']} ({entry['modality'] or 'no modality that tmtool reads'}), {dates}{scale}"
        yield f"    by position {' '.join(entry['file_bands'])}, where a raster's bands have no names"
        yield f"    statistics  {entry['statistics']}"
        yield f"                {'band':<9}{'mean':>12}{'std':>12}{'no data':>12}"
        for band, mean, std, fill in zip(*(entry[key] for key in ("bands", "means", "stds", "fill")), strict=True):
            cells = (" ".join(f"{value:.5g}" for value in row) for row in (mean, std, (fill,)))
            yield f"                {band:<9}{''.join(f'{cell:>12}' for cell in cells)}"


def _value_facts(values: BandValues) -> dict[str, Any]:
    mean, std = values.expected or (None, None)
    facts = {"band": values.band, "low": values.low, "median": values.median, "high": values.high}
    return {**facts, "std": values.spread, "expected_mean": mean, "expected_std": std}


def _value_lines(values: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of what a sample of the values holds, a line a band."""
    columns = ("low", "median", "high", "std", "expected_mean", "expected_std")
    if values:
        heads = "".join(f"{head:>10}" for head in ("lowest", "median", "highest", "std", "expected", "std"))
        yield f"  values        {'sample':<9}{heads}"
    for band in values:
        cells = ("-" if band[column] is None else f"{band[column]:.5g}" for column in columns)
        yield f"                {band['band']:<9}{''.join(f'{cell:>10}' for cell in cells)}"
