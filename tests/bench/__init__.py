"""Benchmarks: what tmtool costs in memory and time, beside what TerraTorch costs in the same run.

    python -m tests.bench.memory      peak memory of the whole pipeline, however large the scene
    python -m tests.bench.overhead    share of the wall time that is not the model's own
    python -m tests.bench.load        loading TerraMind at full size: seconds and peak memory
    python -m tests.bench.generate    TerraMind itself: seconds a tile, or a small scene

Run them from the repository's root. Each prints one table of medians and their ratios; nothing asserts anything about
time. Times depend on the machine and on what else it does, so only numbers of one table are to be compared: what is
compared takes turns within one run. The scenes are made from the real chips in `../shared`; without that folder a
benchmark says that it is skipped, and ends.
"""
