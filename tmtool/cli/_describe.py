"""What `tmtool info` prints."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from tmtool import errors
from tmtool.batch.rates import times
from tmtool.batch.words import duration, size_text
from tmtool.names import shown
from tmtool.scene.job import Job, Prepared, Scene, empty_share, prepare
from tmtool.source import BandValues, pixel_size_m

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
    source = next(iter(prepared.sources.values()))
    grid, plan = prepared.grid, prepared.plan
    empty = empty_share(job, prepared)
    size = pixel_size_m(grid)
    return {
        "path": shown(source.path),
        "modality": source.modality.name,
        "because": source.modality_why,
        "bands": dict(zip(source.modality.bands, source.bands, strict=True)),
        "dtype": source.dtype,
        "nodata": None if source.nodata is None else str(source.nodata),
        "nodata_because": source.nodata_why,
        "alpha": source.alpha,
        "s2_offset": source.offset if source.modality.is_optical else None,
        "s2_offset_because": source.offset_why,
        "shape": list(grid.shape),
        "crs": grid.crs.to_string() if grid.crs else None,
        "origin": [grid.transform.c, grid.transform.f],
        "pixel_m": size,
        "values": [_value_facts(values) for values in source.values],
        "warnings": list(source.warnings),
        "job": f"{job.task.name} {','.join(job.spec(tuple(prepared.sources)).outputs)} with {job.model}",
        "tiles": len(plan),
        "tile_grid": list(plan.counts),
        "tile_px": plan.size,
        "empty_share": empty,
        "memory_bytes": prepared.memory_bytes(),
        "disk_bytes": prepared.disk_bytes,
        "seconds": times(job, prepared, 1 - empty),
    }


def _text(facts: dict[str, Any]) -> str:
    rows, cols = facts["tile_grid"]
    pixel = f", {facts['pixel_m']:.4g} m pixels" if facts["pixel_m"] else ""
    lines = [
        facts["path"],
        f"  taken for     {facts['modality']}, because of {facts['because']}",
        f"  bands         {' '.join(f'{band}={number}' for band, number in facts['bands'].items())} ({facts['dtype']})",
        f"  size          {facts['shape'][0]} rows x {facts['shape'][1]} columns{pixel}",
        f"  georeference  {facts['crs'] or 'none'}"
        + (f", origin {facts['origin'][0]:.10g}, {facts['origin'][1]:.10g}" if facts["crs"] else ""),
        f"  nodata        {facts['nodata'] or '-'} ({facts['nodata_because']})",
    ]
    if facts["alpha"]:
        lines.append(f"  alpha         band {facts['alpha']}; pixels where it is 0 are empty")
    if facts["s2_offset"] is not None:
        lines.append(f"  S2 offset     {facts['s2_offset']:g} ({facts['s2_offset_because']})")
    lines += _value_lines(facts["values"])
    lines += [f"  warning       {warning}" for warning in facts["warnings"]]
    lines += [
        f"To {facts['job']}:",
        f"  tiles         {facts['tiles']} ({rows} x {cols}) of {facts['tile_px']} px, about {100 * facts['empty_share']:.0f} % empty",
        f"  memory        {size_text(facts['memory_bytes'])} for streaming, beside the model",
        f"  disk          {size_text(facts['disk_bytes'])} at most while it runs",
    ]
    lines += [f"  time          {duration(s):>10}  {name}" for name, s in facts["seconds"].items()]
    return "\n".join([*lines, "  (times are rough: the job's operations divided by the rate that a device sustains)"])


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
