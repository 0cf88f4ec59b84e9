"""Means and standard deviations of a task's inputs: from its config, its data module, a file, or the pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmtool.errors import UsageError
from tmtool.modality import S2_NAMES
from tmtool.models import MODELS
from tmtool.models.finetuned._document import read_yaml

PRETRAINING = "pretraining"
"""Value of `--means` and `--stds` that asks for what the backbone was pretrained with."""

Statistic = tuple[tuple[float, ...], ...]
"""One value a band, or one for each date of each band."""

_HLS = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")

_TERRAMIND = (("terramind_v1_", "base"), ("terramind_v01_", "v01-base"))
"""Models of tmtool's whose pretraining is that of backbones, by the beginning of their names."""


@dataclass(frozen=True)
class BuiltIn:
    """The built-in statistics of a TerraTorch data module; one value per band, by TerraTorch's band names."""

    bands: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    scale: float = 1.0
    dates: int = 1
    file_bands: tuple[str, ...] = ()


BUILT_IN: dict[str, BuiltIn] = {
    "MultiTemporalCropClassificationDataModule": BuiltIn(
        _HLS,
        (494.905781, 815.239594, 924.335066, 2968.881459, 2634.621962, 1739.579917),
        (284.925432, 357.84876, 575.566823, 896.601013, 951.900334, 921.407808),
        dates=3,
    ),
    "Sen1Floods11NonGeoDataModule": BuiltIn(
        (
            "COASTAL_AEROSOL",
            *("BLUE", "GREEN", "RED", "RED_EDGE_1", "RED_EDGE_2", "RED_EDGE_3", "NIR_BROAD", "NIR_NARROW"),
            *("WATER_VAPOR", "CIRRUS", "SWIR_1", "SWIR_2"),
        ),
        (0.16450718, 0.1412956, 0.13795798, 0.12353792, 0.1481099, 0.23991728, 0.28587557)
        + (0.26345379, 0.30902815, 0.04911151, 0.00652506, 0.2044958, 0.11912015),
        (0.06977374, 0.07406382, 0.07370365, 0.08692279, 0.07778555, 0.09105416, 0.10690993)
        + (0.10096586, 0.11798815, 0.03380113, 0.01463465, 0.09772074, 0.07659938),
        scale=0.0001,
    ),
    "FireScarsNonGeoDataModule": BuiltIn(
        _HLS,
        (0.033349706741586264, 0.05701185520536176, 0.05889748132001316)
        + (0.2323245113436119, 0.1972854853760658, 0.11944914225186566),
        (0.02269135568823774, 0.026807560223070237, 0.04004109844362779)
        + (0.07791732423672691, 0.08708738838140137, 0.07241979477437814),
    ),
}
"""Data modules by name. The values are those of terratorch 1.2.11; a test holds them equal to its tables."""

PRITHVI: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "prithvi_eo_v1": (
        (775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0),
        (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0),
    ),
    "prithvi_eo_v2": (
        (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0),
        (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0),
    ),
}
"""Means and standard deviations of Prithvi's six bands, by the beginning of the backbone's name."""


def three_ways(path: str, reason: str) -> UsageError:
    """Return the error for statistics that are not known, with the ways to give them."""
    return UsageError(
        f"{path}: {reason}, and without the means and standard deviations of its training a model's answer means "
        "nothing. Give them in one of three ways:\n"
        "  in the config: data.init_args.means and data.init_args.stds\n"
        "  --means FILE --stds FILE: JSON or YAML with 'modality: [one number a band]', or for a single modality a "
        "list or a text file of numbers\n"
        "  --means pretraining --stds pretraining: those of the backbone's pretraining, if it was fine-tuned with them"
    )


def pretraining(path: str, backbone: str, modality: str | None, bands: Sequence[str]) -> tuple[Statistic, Statistic]:
    """Return means and standard deviations of a backbone's pretraining for these bands (tmtool's names)."""
    for begin, (means, stds) in PRITHVI.items():
        if backbone.startswith(begin):
            known = {S2_NAMES[b]: (mean, std) for b, mean, std in zip(_HLS, means, stds, strict=True)}
            return _picked(path, f"{backbone}'s pretraining", known, bands)
    entry = next((MODELS.get(name) for begin, name in _TERRAMIND if backbone.startswith(begin)), None)
    if entry and modality and modality in entry.statistics:
        return _picked(path, f"TerraMind's pretraining on {modality}", entry.statistics[modality], bands)
    raise UsageError(
        f"{path}: --means pretraining: the statistics of {backbone}'s pretraining{f' on {modality}' if modality else ''} "
        "are not known here. Give --means FILE --stds FILE."
    )


def _picked(
    path: str, what: str, known: Mapping[str, tuple[float, float]], bands: Sequence[str]
) -> tuple[Statistic, Statistic]:
    if unknown := [band for band in bands if band not in known]:
        raise UsageError(
            f"{path}: {what} had no band {', '.join(unknown)}; it had {' '.join(known)}. Give --means FILE --stds FILE."
        )
    return tuple((known[b][0],) for b in bands), tuple((known[b][1],) for b in bands)


def statistic(path: str, option: str, value: Any, folder: Path) -> Statistic:
    """Return a list of numbers, one a band or one for each date of each band, or the file of them that `value` names.

    `option` is what the value is called in messages; a file is looked for where the process runs, then in `folder`.
    """
    if isinstance(value, str):
        value = _numbers_in(path, option, value, folder)
    if isinstance(value, int | float):
        value = [value]
    rows = [row if isinstance(row, list | tuple) else [row] for row in value] if isinstance(value, list | tuple) else []
    try:
        numbers = tuple(tuple(float(v) for v in row) for row in rows)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or len({len(row) for row in numbers}) != 1 or not numbers[0]:
        raise UsageError(f"{path}: {option} is {value!r:.80}, expected a list of numbers, one a band.")
    return numbers


def _numbers_in(path: str, option: str, name: str, folder: Path) -> list[Any]:
    for file in (Path(name).expanduser(), folder / name):
        if file.is_file():
            lines = [line.split("#")[0].split() for line in file.read_text(encoding="utf-8").splitlines()]
            rows = [row for row in lines if row]
            return rows[0] if len(rows) == 1 else rows
    raise UsageError(f"{path}: {option} names {name}, and there is no such file.")


def given(option: str, file: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what a file of `--means` or `--stds` says of each of the inputs `names`."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{option} {file}: no such file. Give a file with 'modality: [one number a band]', or 'pretraining'."
        )
    content = {} if path.suffix == ".txt" else read_yaml(path)
    if not isinstance(content, dict) or path.suffix == ".txt":
        if len(names) > 1:
            raise UsageError(
                f"{option} {file}: holds one list, and the task has {', '.join(names)}. Say whose each is."
            )
        return {names[0]: content if isinstance(content, list) else str(path.resolve())}
    if missing := [name for name in names if name not in content]:
        raise UsageError(
            f"{option} {file}: says nothing of {', '.join(missing)}; it has {', '.join(map(str, content)) or 'nothing'}."
        )
    return {name: content[name] for name in names}
