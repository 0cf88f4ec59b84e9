"""What half precision changes: tokens, pixels, embeddings, beside the same model in float32 on the same chips.

Tokens are greedy (temperature 0), so that the same tokens means the same choice. Pixels are compared once with the tokens
of float32 in both, which leaves the decoders' own error, and once end to end. Noise is the same throughout. Errors of
pixels are root mean squares in standard deviations of the modality.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from tests.bench import _measure as m
from tests.specs import moments_of

Figures = Mapping[tuple[str, str], float]


def outputs_of(options: m.Options) -> tuple[str, ...]:
    """Return what is generated: two outputs of the real model, to save time, and what the demo model makes well."""
    return ("LULC", "NDVI", "S1GRD") if options.model == "demo" else m.OUTPUTS


def generated(options: m.Options, precision: str, chips: list[Any]) -> dict[tuple[str, str], list[float]]:
    """Compare `generate`; figures by output and kind, one a chip."""
    import numpy as np

    from tests.bench import _models
    from tmtool.modality import MODALITIES
    from tmtool.models.quality import drawn

    changes = {"outputs": outputs_of(options), "sampling": replace(_models.SAMPLING, temperature=0)}
    full, half = (_models.tmtool_model(options, "generate", p, **changes) for p in ("fp32", precision))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for chip in chips:
        batch = _models.batch_of(chip[None], first=0)
        tokens, exact = drawn(full, batch)
        own, whole = drawn(half, batch)
        _, decoded = drawn(half, batch, tokens)
        for name in changes["outputs"]:
            found[name, "tokens"].append(float((tokens[name] == own[name]).mean()))
            for kind, pixels in (("decoder", decoded[name]), ("end to end", whole[name])):
                if MODALITIES[name].classes:
                    found[name, kind].append(float((pixels.argmax(1) == exact[name].argmax(1)).mean()))
                else:
                    std = np.asarray(moments_of(name)[1])[None, :, None, None]
                    found[name, kind].append(float(np.sqrt((((pixels - exact[name]) / std) ** 2).mean())))
    return dict(found)


def encoded(options: m.Options, precision: str, chips: list[Any]) -> dict[tuple[str, str], list[float]]:
    """Compare `embed` and `tokenize`, one figure a chip."""
    import numpy as np

    from tests.bench import _models

    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for task in ("embed", "tokenize"):
        full, half = (_models.tmtool_model(options, task, p) for p in ("fp32", precision))
        for chip in chips:
            batch = _models.batch_of(chip[None], first=0)
            a, b = (next(iter(model(batch).values())) for model in (full, half))
            if task == "tokenize":
                found["tokenize S2L2A", "tokens"].append(float((a == b).mean()))
                continue
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            found["embed S2L2A", "error"].append(float(np.linalg.norm(a - b) / np.linalg.norm(a)))
            found["embed S2L2A", "in std"].append(float(np.sqrt(((a - b) ** 2).mean()) / a.std()))
            found["embed S2L2A", "cosine"].append(float(cosine.mean()))
            found["embed S2L2A", "least cosine"].append(float(cosine.min()))
    return dict(found)


def _chips(options: m.Options) -> list[Any]:
    from tests.bench import _scenes

    return _scenes.chips()[: 1 if options.quick else None]


def compare(options: m.Options, precision: str) -> dict[tuple[str, str], float]:
    """Return all figures, means over the chips, in this process."""
    chips = _chips(options)
    found = generated(options, precision, chips) | encoded(options, precision, chips)
    return {key: mean(values) for key, values in found.items()}


_SAID = {
    "tokens": ("equal tokens", "{:.2%}"),
    "decoder": ("pixels from the same tokens and noise, error", "{:.4f} std"),
    "end to end": ("pixels end to end, error", "{:.4f} std"),
    "error": ("relative error", "{:.4f}"),
    "in std": ("error", "{:.4f} std"),
    "cosine": ("mean cosine", "{:.6f}"),
    "least cosine": ("least cosine of a patch", "{:.6f}"),
}
_SAID_OF_CLASSES = {
    "decoder": ("pixels of the same class, from the same tokens", "{:.2%}"),
    "end to end": ("pixels of the same class, end to end", "{:.2%}"),
}


def precisions(options: m.Options) -> list[str]:
    """Return the half precisions that the device has."""
    from tmtool.models.device import resolve

    return ["bf16", "fp16"] if resolve(options.device).device.startswith("cuda") else ["bf16"]


def measure(options: m.Options) -> m.Rows:
    """Compare every half precision with float32."""
    from tests.bench import _scenes
    from tmtool.modality import MODALITIES

    where = f"mean of {len(_chips(options))} {_scenes.origin()}"
    kind = "its own weights" if options.model == "demo" else "random weights"
    for precision in m.in_own_process(precisions, options):
        for (name, figure), value in m.in_own_process(compare, options, precision).items():
            classes = name in MODALITIES and MODALITIES[name].classes
            said, form = (_SAID_OF_CLASSES if classes else {}).get(figure) or _SAID[figure]
            yield m.Row(
                f"{name}: {said}; {options.model}, {kind}", form.format(value), f"{precision} against fp32", where
            )
