"""The items of models: what each takes and gives, as STAC's `mlm` has it, of what tmtool's registry knows."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tmtool import __version__
from tmtool.catalog._documents import CATALOG, MODELS, extensions, write
from tmtool.catalog._products import Found
from tmtool.catalog._words import classes
from tmtool.models import MODELS as REGISTRY
from tmtool.models import RANDOM, Generation, ModelEntry, ModelSpec
from tmtool.models.card import Given, Taken
from tmtool.models.weights import WeightFile, digest_uri
from tmtool.provenance import Provenance
from tmtool.settings import Tiling
from tmtool.tasks import TASKS

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]")
"""What `mlm:name` may be."""
_ALWAYS = datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""When a model is for, where that is not known: mlm's best practices have these."""
_HUB = "https://huggingface.co/{repo}/resolve/main/{filename}"
_WEIGHTS = "application/octet-stream; framework=pytorch"
_ARTIFACTS = {".pt": "torch.save", ".pth": "torch.save", ".ckpt": "torch.save", ".safetensors": "safetensors"}


def write_items(root: Path, found: Iterable[Found]) -> list[Path]:
    """Write the items of the models that made products, in the folder of models below `root`. Raises `OutputError`."""
    by_path = _by_model(root, found)
    for path, made in by_path.items():
        write(path, _document(path.stem, made), "model")
    return list(by_path)


def items_of(root: Path, found: Iterable[Found]) -> list[tuple[Path, str]]:
    """Return the path of the item of each model that made products, and the model's name."""
    return [(path, _name(made[0].made)) for path, made in _by_model(root, found).items()]


def _by_model(root: Path, found: Iterable[Found]) -> dict[Path, list[Found]]:
    """Return products by the path of the item of the model that made them, but those of random or unknown models.

    A model with a checkpoint of the user's own is another than the one of its name.
    """
    grouped: dict[Path, list[Found]] = {}
    for one in found:
        made = one.made
        if made.model in REGISTRY and made.weights != RANDOM:
            name = "-".join(filter(None, ("model", made.model, _variant(made))))
            grouped.setdefault(root / MODELS / f"{name}.json", []).append(one)
    return grouped


def _variant(made: Provenance) -> str:
    """Return what sets a model apart from the one of its name: the digest of a checkpoint."""
    return next(iter(_own_weights(made).values()), "")[:8]


def _own_weights(made: Provenance) -> dict[str, str]:
    """Return the digest of the user's own checkpoint by its name, if there is one: it is of no repository."""
    files = made.weights if isinstance(made.weights, dict) else {}
    return {name: digest for name, digest in files.items() if "/" not in name}


def _name(made: Provenance) -> str:
    """Return a model's title where `mlm` allows it, else the registry's name; and what sets it apart."""
    title = REGISTRY[made.model].title
    return " ".join(filter(None, (title if _NAME.fullmatch(title) else made.model, _variant(made))))


def _document(identifier: str, found: Sequence[Found]) -> dict[str, Any]:
    """Return the item of the model that made products."""
    import pystac

    made = found[0].made
    entry, own = REGISTRY[made.model], _variant(made)
    tasks = [task for task in TASKS.values() if task.can_be_done_by(entry)]
    taken = dict.fromkeys(part for task in tasks for part in task.takes(entry, made))
    given = dict.fromkeys(_known(part, found) for task in tasks for part in task.gives(entry, made))
    crop = made.tiling.get("crop", Tiling.crop) if own else entry.tiling[0] if entry.tiling else Tiling.crop
    bands = [{"name": band} for band in dict.fromkeys(band for part in taken for band in part.bands)]
    assets = dict(_own_files(made) or _files(made.model, entry))
    for asset in list(assets.values())[:1]:
        asset.extra_fields["bands"] = bands  # else the core does not allow them above, where mlm asks for them
    properties: dict[str, Any] = {
        "tmtool:kind": "model",
        "title": entry.title,
        "mlm:name": _name(made),
        "mlm:architecture": entry.architecture,
        "mlm:tasks": list(dict.fromkeys(work for part in given for work in part.work)),
        "mlm:framework": "PyTorch",
        "mlm:pretrained": True,
        "mlm:input": [_input(part, crop, part.bands if assets else ()) for part in taken],
        "mlm:output": [_output(part, crop) for part in given],
    }
    properties |= {} if own else {"license": entry.licence}  # that of a user's checkpoint is not known
    properties |= {"description": entry.notice} if entry.notice else {}
    properties |= {"mlm:total_parameters": entry.parameters} if entry.parameters else {}
    properties |= {"bands": bands} if assets and bands else {}
    used = extensions(properties, [asset.to_dict() for asset in assets.values()])
    item = pystac.Item(identifier, None, None, None, properties, *_ALWAYS, stac_extensions=used, assets=assets)
    for rel, href in (("root", f"../{CATALOG}"), ("parent", f"./{CATALOG}")):
        item.add_link(pystac.Link(rel, href, pystac.MediaType.JSON))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _known(part: Given, found: Sequence[Found]) -> Given:
    """Return an output with what only its products know: bands and classes."""
    like = next((one.facts for one in found if one.suffix == part.name), None)
    if part.channels is not None or like is None:
        return part
    return replace(part, channels=len(like.classes or like.bands), classes=like.classes)


def _input(part: Taken, crop: int, bands: Sequence[str]) -> dict[str, Any]:
    """Return an input; `bands` are those of it that are described."""
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(part.means, part.stds, strict=True)]
    shape = {"shape": [-1, len(part.bands), crop, crop], "dim_order": ["batch", "channel", "height", "width"]}
    taken = {"name": part.name, "bands": list(bands), "input": shape | {"data_type": "float32"}}
    return taken | ({"value_scaling": scaling} if scaling else {})


def _output(part: Given, crop: int) -> dict[str, Any]:
    channels, side = part.channels or -1, crop // part.cell_px
    shape = {"shape": [-1, channels, side, side], "dim_order": ["batch", "channel", "height", "width"]}
    given = {"name": part.name, "tasks": list(part.work), "result": shape | {"data_type": part.dtype}}
    return given | ({"classification:classes": classes(part.classes)} if part.classes else {})


def _files(name: str, entry: ModelEntry) -> Iterator[tuple[str, Any]]:
    """Yield the files of weights, all that any task uses."""
    import pystac

    spec = ModelSpec(name, Generation((*entry.outputs, *entry.sequences)), entry.inputs)
    for file in entry.files(spec):
        kind = _ARTIFACTS.get(Path(file.filename).suffix)
        roles = ["mlm:model", "mlm:weights"] if kind else ["metadata"]
        media = _WEIGHTS if kind else pystac.MediaType.JSON
        fields = {"mlm:artifact_type": kind} if kind else {}
        yield str(file), pystac.Asset(_link(file), file.filename, file.access or None, media, roles, fields)


def _own_files(made: Provenance) -> list[tuple[str, Any]]:
    """Return the user's own checkpoint, if there is one, named by its digest."""
    import pystac

    found = []
    for name, digest in _own_weights(made).items():
        kind = _ARTIFACTS.get(Path(name).suffix, "torch.save")
        fields = {"mlm:artifact_type": kind, "file:checksum": f"1220{digest}"}
        roles = ["mlm:model", "mlm:checkpoint"]
        found.append((name, pystac.Asset(digest_uri(digest), name, None, _WEIGHTS, roles, fields)))
    return found


def _link(file: WeightFile) -> str:
    """Return where a weight file is: on the hub, or as a package URL in tmtool itself."""
    if file.packaged:
        return f"pkg:pypi/tmtool@{__version__}#tmtool/models/{file.packaged.parent.name}/{file.filename}"
    return _HUB.format(repo=file.repo, filename=file.filename)


def drop(root: Path, kept: Sequence[Path]) -> None:
    """Remove the items of models that made none of the products that are left."""
    for path in (root / MODELS).glob("model-*.json"):
        if path not in kept:
            path.unlink()
