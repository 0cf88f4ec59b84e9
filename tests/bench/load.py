"""Time and peak memory of loading full-size TerraMind from files in the hub's names, random weights in them.

The files (3.2 GB for base with S1GRD and LULC) are written once into the scratch folder; loading runs in processes of
its own, the files in the system's cache.
"""

import time
from pathlib import Path

from tests.bench import _measure as m


def write_files(folder: Path, size: str) -> None:
    """Write random weights of a size and of the tokenizers of S1GRD and LULC, flat, in the hub's names."""
    import torch
    from terratorch.models.backbones.terramind.model import terramind_register as register

    from tmtool.modality import MODALITIES
    from tmtool.models.weights import core_file, tokenizer_file

    if (folder / core_file(size).filename).exists():
        return
    builder = getattr(register, f"terramind_v1_{size}_generate")
    keys = [MODALITIES[name].token_key for name in m.OUTPUTS]
    model = builder(modalities=["S2L2A"], output_modalities=keys, pretrained=False)
    for name in m.OUTPUTS:
        torch.save(model.tokenizer[MODALITIES[name].token_key].state_dict(), folder / tokenizer_file(name).filename)
    torch.save(model.sampler.model.state_dict(), folder / core_file(size).filename)


def load(folder: Path, size: str, precision: str) -> tuple[float, float, int, int]:
    """Load in this process; return seconds of imports, of the model, peak bytes above the imports, bytes in use."""
    from tmtool import models
    from tmtool.device import Compute
    from tmtool.models.weights import locate

    start = time.perf_counter()
    import tmtool.models.terramind  # noqa: F401  # terratorch and torch come with it

    imported = time.perf_counter()
    base = m.peak_rss()
    files = locate(
        models.find(size).files(models.ModelSpec(size, "generate", ("S2L2A",), m.OUTPUTS)), str(folder), offline=True
    )
    spec = models.ModelSpec(size, "generate", ("S2L2A",), m.OUTPUTS, compute=Compute("cpu", precision), files=files)
    model = models.build(spec)
    done = time.perf_counter()
    parts = (model.core, *model.tokenizers.values())  # type: ignore[attr-defined]
    used = {p.data_ptr(): p.numel() * p.element_size() for part in parts for p in part.parameters()}
    return imported - start, done - imported, m.peak_rss() - base, sum(used.values())


def main() -> None:
    """Measure, and print."""
    parser = m.arguments(__doc__, repeat=3)
    parser.add_argument("--model", default="base", help="base, large, small or tiny (default base)")
    options = parser.parse_args()
    rows = []
    with m.scratch(options.scratch) as folder:
        m.in_own_process(write_files, folder, options.model)
        for precision in ("fp32", "bf16"):
            found = [m.in_own_process(load, folder, options.model, precision) for _ in range(options.repeat)]
            imports, seconds, peak, used = (sorted(column)[len(found) // 2] for column in zip(*found, strict=True))
            cells = (f"{imports:.1f}", f"{seconds:.1f}", f"{used / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{peak / used:.2f}")
            rows.append((precision, *cells))
    header = ("precision", "imports s", "model s", "weights in use GB", "peak above imports GB", "ratio")
    title = f"Loading TerraMind {options.model}, S2L2A to S1GRD and LULC, warm files, median of {options.repeat}"
    notes = ("peak counts pages of the mapped files too, which the system can drop", m.machine())
    m.print_table(title, header, rows, notes)


if __name__ == "__main__":
    main()
