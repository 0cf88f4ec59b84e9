"""TerraMind through terratorch, whose classes hold the architecture: what each task builds of it."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tmtool.models import Decoding, Embedding, Encoding, Generation, ModelSpec, Request, TileModel, find
from tmtool.models._parts import CORE, SPARE_CORE, Filler, States, no_initialisation
from tmtool.models.families.terramind import TerraMind, vocabularies
from tmtool.models.terramind._backbone import Embedder, select_bands
from tmtool.models.terramind._tokenizer import Decoder, Encoder
from tmtool.models.terramind.architecture import terramind_register
from tmtool.models.terramind.generator import Drawer, Generator
from tmtool.models.text import SEQUENCES
from tmtool.models.weights import WeightFile, coords_file, read_checkpoint, read_state

_DECODING = ("decoder.", "decoder_norm.", "decoder_proj_context.", "mask_token")


@dataclass(frozen=True)
class Architecture:
    """Terratorch's classes at one width: its registry's builders of whole models, and its tokenizers by modality."""

    generation: Callable[..., Any]
    backbone: Callable[..., Any]
    tim: Callable[..., Any]
    tokenizer: Callable[[str], nn.Module]


def build(spec: ModelSpec) -> TileModel:
    """Build what `spec` needs of TerraMind, load its weights, and put it on its device."""
    entry = _entry(spec)
    name = f"terramind_{entry.version}_{entry.size}"
    generation, backbone, tim = (getattr(terramind_register, name + suffix) for suffix in ("_generate", "", "_tim"))
    file_of = {part_of(file): path for file, path in (spec.files or {}).items()}
    make = terramind_register.tokenizer_dict[entry.version]
    architecture = Architecture(generation, backbone, tim, lambda m: make[spec.modality(m).token_key](pretrained=False))
    return assemble(spec, architecture, lambda part: (read_state(file_of[part]), file_of[part]))


def part_of(file: WeightFile) -> str:
    """Return the part that a file holds: a modality (or coordinates) for its tokenizer, else `core`."""
    return file.repo.partition("-Tokenizer-")[2] or CORE


def _entry(spec: ModelSpec) -> TerraMind:
    entry = find(spec.name)
    assert isinstance(entry, TerraMind)  # whose module this is
    return entry


def assemble(spec: ModelSpec, architecture: Architecture, state_of: States) -> TileModel:
    """Build the parts of `architecture` that the task uses, fill each from its state, and return the adapter."""
    make: dict[type[Request], Callable[[ModelSpec, Architecture, Filler], TileModel]] = {
        Generation: _generator,
        Encoding: _encoder,
        Decoding: _decoder,
        Embedding: _embedder,
    }
    return make[type(spec.request)](spec, architecture, Filler(spec, state_of))


def _generator(spec: ModelSpec, architecture: Architecture, filler: Filler) -> TileModel:
    targets = _targets(spec)
    # terratorch embeds all outputs but the last as inputs of the next; over several steps the last sees itself too
    again = spec.request.sampling.decoding_steps > 1 and targets[-1] not in SEQUENCES
    seen = dict.fromkeys([*_inputs(spec), *(targets[-1:] if again else [])])
    with no_initialisation():
        model = architecture.generation(modalities=list(seen), output_modalities=targets, pretrained=False)
    tokenizers = _tokenizers(spec, model, filler)
    core = model.sampler.model
    filler.core(core)
    return Generator(core, tokenizers, spec, _coordinates(spec, model), vocabularies(spec))


def _inputs(spec: ModelSpec) -> list[str]:
    """Return the model's keys of the inputs."""
    modalities = [spec.modality(m) for m in spec.inputs]
    return [*(m.raw_key or m.token_key or "" for m in modalities), *(["coords"] if _coords(spec) else [])]


def _targets(spec: ModelSpec) -> list[str]:
    """Return the model's keys of the outputs."""
    return [m if m in SEQUENCES else spec.modality(m).token_key or "" for m in spec.outputs]


def _tokenizers(spec: ModelSpec, model: Any, filler: Filler) -> dict[str, nn.Module]:
    """Return the tokenizers that the job uses, by modality: encoders of tokenised inputs, decoders of outputs."""
    decoded = spec.request.decoded
    wanted = dict.fromkeys([*spec.tokenised, *decoded])
    tokenizers = {m: model.tokenizer[spec.modality(m).token_key] for m in wanted}
    for m, tokenizer in tokenizers.items():
        filler.tokenizer(tokenizer, m, encoder=m in spec.tokenised, decoder=m in decoded)
    return tokenizers


def _encoder(spec: ModelSpec, architecture: Architecture, filler: Filler) -> TileModel:
    tokenizer = _lone_tokenizer(spec.inputs[0], architecture)
    filler.tokenizer(tokenizer, spec.inputs[0], encoder=True)
    return Encoder(tokenizer, spec)


def _decoder(spec: ModelSpec, architecture: Architecture, filler: Filler) -> TileModel:
    tokenizer = _lone_tokenizer(spec.outputs[0], architecture)
    filler.tokenizer(tokenizer, spec.outputs[0], decoder=True)
    return Decoder(tokenizer, spec)


def _lone_tokenizer(modality: str, architecture: Architecture) -> nn.Module:
    with no_initialisation():
        return architecture.tokenizer(modality)


def _embedder(spec: ModelSpec, architecture: Architecture, filler: Filler) -> TileModel:
    options: dict[str, Any] = {"modalities": _inputs(spec), "merge_method": None, "pretrained": False}
    with no_initialisation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # terratorch warns that TiM without weights means nothing; they come now
        if spec.outputs:
            targets = _targets(spec)
            model = architecture.tim(tim_modalities=targets, **options)
        else:
            model = architecture.backbone(**options)
    tokenizers = _tokenizers(spec, model, filler)
    coords = _coordinates(spec, model)
    model.tokenizer = nn.ModuleDict()
    drawer = _fill_backbone(spec, model, tokenizers, filler)
    assert isinstance(spec.request, Embedding)  # which is what this function is called for
    return Embedder(model, tokenizers, spec, spec.request, drawer, coords)


def _coords(spec: ModelSpec) -> bool:
    return isinstance(spec.request, Embedding | Generation) and spec.request.coords


def _coordinates(spec: ModelSpec, model: Any) -> Any:
    """Return terratorch's tokenizer of coordinates with its vocabulary, or None."""
    if not _coords(spec):
        return None
    if spec.files is None:
        return model.tokenizer["coords"]  # a blank one: random weights mean nothing anyway
    file = str(spec.files[coords_file()])
    return terramind_register.tokenizer_dict["v1"]["coords"](tokenizer_file=file)


def _fill_backbone(spec: ModelSpec, model: Any, tokenizers: Mapping[str, nn.Module], filler: Filler) -> Drawer | None:
    """Fill a backbone, and the encoder-decoder that imagines modalities for it, if there is one."""
    core = model.sampler.model if spec.outputs else None
    model.sampler = None  # its keys are not the backbone's
    own_file = spec.request.checkpoint
    checkpoint = read_checkpoint(own_file) if own_file else None
    if core is not None:
        if checkpoint:
            filler = Filler(spec, lambda _: (checkpoint.sampler, checkpoint.path))
        filler.core(core)
        if not checkpoint:
            model.encoder, model.encoder_norm = core.encoder, core.encoder_norm  # the same weights, once
    if checkpoint:
        filler = Filler(spec, lambda _: (checkpoint.backbone, checkpoint.path))
    if core is None or checkpoint:
        own = _narrowed(spec, model, checkpoint.backbone if checkpoint else {})
        filler.core(model, (*SPARE_CORE, *_DECODING))
        if not own:
            _select_bands(spec, model)
    return None if core is None else Drawer(core, tokenizers, spec)


def _narrowed(spec: ModelSpec, model: Any, state: Mapping[str, Any]) -> bool:
    """Select bands before loading if the checkpoint's patch embeddings have them already; say whether they do."""
    for m in spec.bands:
        key = f"encoder_embeddings.{spec.modality(m).raw_key}.proj.weight"
        embedding = model.encoder_embeddings[spec.modality(m).raw_key]
        pixels = embedding.proj.weight.shape[1] // embedding.num_channels
        if key not in state or state[key].shape[1] != pixels * len(spec.modality(m).bands):
            return False
    if spec.bands:
        _select_bands(spec, model)
    return bool(spec.bands)


def _select_bands(spec: ModelSpec, model: Any) -> None:
    for m in spec.bands:
        modality = spec.modality(m)
        index = [spec.modalities[m].bands.index(band) for band in modality.bands]
        select_bands(model.encoder_embeddings[modality.raw_key], index)
