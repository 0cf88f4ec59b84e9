"""Benchmarks: what tmtool costs in memory and time, beside what TerraTorch costs in the same run.

    python -m tests.bench --only a,b --model base

Run it from the repository's root. It prints one table; nothing asserts anything about time. Times depend on the machine
and on what else it does, so only numbers of one table are to be compared: what is compared takes turns within one run.
"""
