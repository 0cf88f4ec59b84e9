"""Writing the products of a scene: rows as they come, with a journal; then the files; final names last."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tmtool.errors import ClusterError, InputError, ProductError
from tmtool.files.journal import Journal, Record, journal_path, read
from tmtool.files.writer import About, ProductWriter, Statistics
from tmtool.grid import Strip, Window
from tmtool.products.product import Measure, Product, check_statistics
from tmtool.provenance import Provenance, differences
from tmtool.scene.job import STRIPS_AHEAD, Prepared, target
from tmtool.source import Reader, pixel_size_m
from tmtool.tiles.engine import Block, Watch, finished
from tmtool.tiles.level import Anchor, field, level_facts, offsets
from tmtool.tiles.overlaps import Overlaps
from tmtool.tiles.seams import BorderSteps, Seams, seams_of, tile_map
from tmtool.tiles.stitch import SceneMean

_log = logging.getLogger("tmtool")


class WrittenScene:
    """The products of a finished scene: paths, sidecars, warnings, measurements, and the time of commit.

    `at` is when they got their final names, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.paths: tuple[Path, ...] = ()
        self.beside: tuple[Path, ...] = ()
        self.warnings: list[str] = []
        self.measured: dict[str, Any] = {}
        self.at = 0.0


class SceneWriter:
    """Writes all products of a scene on a thread of its own; they get their names when every one is complete and valid.

    `columns` are the parts of source columns that the scene is made in. Use as a context manager around `put` and `finish`.
    An `Exception` discards the work files. `ClusterError`, and what is no `Exception`, such as a signal, keep them for a resume.
    """

    def __init__(
        self, prepared: Prepared, provenance: Provenance, watch: Watch, columns: Sequence[range] | None = None
    ) -> None:
        self._prepared, self._provenance, self._watch = prepared, provenance, watch
        self.columns = columns or [prepared.plan.cols]
        plan = prepared.plan
        self._corners = {
            p.spec.name: (plan.product_rows(plan.rows, p.spec).start, plan.product_cols(plan.cols, p.spec).start)
            for p in prepared.products
        }
        """First row and column of each product, counted as strips are."""
        self._products = {p.spec.name: p for p in prepared.products}
        self._writers = {
            name: ProductWriter(
                target(prepared.scene, p), prepared.plan.product_grid(prepared.grid, p.spec), p.layout, p.format
            )
            for name, p in self._products.items()
        }
        self._means = {n: SceneMean(p.spec) for n, p in self._products.items() if p.spec.pool == "scene"}
        path = journal_path(prepared.scene.folder, prepared.scene.stem, provenance.task)
        header = {"making": provenance.fingerprint(), "parts": len(self.columns)}
        header |= {"batch_size": provenance.batch_size, "threads": provenance.threads}
        self._journal = Journal(path, header)
        self._stack = ExitStack()
        self._measures: dict[str, Measure] = {}
        seamed = [p for p in self._products.values() if p.spec.seams]
        self._steps = {p.spec.name: BorderSteps(plan, p.spec, len(p.layout.bands)) for p in seamed}
        self._overlaps: dict[str, list[Overlaps]] = {name: [] for name in self._steps}
        self._pending: deque[Future[None]] = deque()
        self._stopped, self._commit = False, threading.Lock()
        self.wait_seconds = 0.0
        """Time that `put` and `flush` waited for the disk."""

    @property
    def batch_size(self) -> int:
        """Tiles a batch that the scene was begun with."""
        return self._provenance.batch_size or 0

    def say(self, batch_size: int) -> None:
        """Change the batch size in the products' provenance, which is known only after the run."""
        self._provenance = replace(self._provenance, batch_size=batch_size)

    @property
    def _journalled(self) -> bool:
        """Whether resuming pays: not for a single row of tiles, and not where the product is one mean."""
        return self._prepared.plan.counts[0] > 1 and not self._means

    def __enter__(self) -> "SceneWriter":
        """Begin to write."""
        self._measures = {n: m for n, p in self._products.items() if (m := _measure(p, self._prepared, self._stack))}
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="write"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish pending writes; discard what has no final name, or keep it for a resume."""
        with self._commit:
            self._stopped = True
        failed = isinstance(error, Exception) and not isinstance(error, ClusterError)
        for future in self._pending:
            if failed:
                future.cancel()
        self._stack.close()
        if error is not None and not failed:
            for writer in self._writers.values():
                writer.keep()
            return
        self._clean()

    def _clean(self) -> None:
        """Remove all that has no final name."""
        self._journal.remove()
        for writer in self._writers.values():
            writer.discard()

    def begin(self, resume: bool) -> tuple[int, int]:
        """Open the work files; return the part and the source row to resume from, 0 and 0 for a fresh start."""
        found = read(self._journal.path) if resume and self._journalled else None
        if found is not None and self._resumed(found):
            last = self._journal.records[-1]
            return last.part, last.row
        for writer in self._writers.values():
            writer.create()
        if self._journalled:
            self._journal.records.clear()
            self._journal.begin()
        return 0, 0

    def _resumed(self, found: Journal) -> bool:
        """Resume from an earlier run's work files, up to the last row that matches the journal; return whether any does."""
        if changed := list(differences(found.header.get("making", {}), self._journal.header["making"])):
            _log.warning(
                "%s: an unfinished run had other settings or inputs (%s); starting afresh, its files are discarded at the end",
                self._prepared.scene.stem,
                "; ".join(changed),
            )
            for writer in self._writers.values():
                writer.set_aside()
            return False
        if not found.records:  # interrupted so early that the work files may be incomplete
            return False
        try:
            for writer in self._writers.values():
                writer.resume()
            for record in found.records:
                if not self._reread(record):
                    break
                self._journal.records.append(record)
        except ProductError as error:
            _log.warning("%s: cannot resume the unfinished run (%s)", self._prepared.scene.stem, error)
            return False
        if not self._journal.records:
            return False
        self._journal.begin()
        last = self._journal.records[-1]
        self._watch.varies |= last.varies
        part = f"part {last.part + 1} of {len(self.columns)}, " if len(self.columns) > 1 else ""
        where = f"{part}row {last.row - self._prepared.plan.rows.start} of {len(self._prepared.plan.rows)}"
        _log.info("%s: resuming an earlier run from %s", self._prepared.scene.stem, where)
        return True

    def _reread(self, record: Record) -> bool:
        """Read back the rows of a record; if their checksums match, count them and return True."""
        plan, before = self._prepared.plan, self._journal.records[-1:]
        first = before[0].row if before and before[0].part == record.part else self._prepared.plan.rows.start
        read_back = []
        for name, product in self._products.items():
            rows = plan.product_rows(range(first, record.row), product.spec)
            cols = plan.product_cols(self.columns[record.part], product.spec)
            if rows and cols:
                top, left = self._corners[name]
                there = range(rows.start - top, rows.stop - top), range(cols.start - left, cols.stop - left)
                values, valid, checksum = self._writers[name].reread(*there)
                if record.checksums.get(product.suffix) != checksum:
                    _log.warning(
                        "%s: rows from %d on are damaged and are computed again", self._writers[name].path.name, first
                    )
                    return False
                read_back.append((name, Strip(rows.start, values, valid, cols.start)))
        for name, text in record.overlaps.items():
            self._overlaps[name].append(Overlaps.parse(text))
        for name, strip in read_back:
            self._writers[name].count(strip.values, strip.valid)
            self._measure_rows(name, strip)
        return True

    def put(self, block: Block, part: int = 0) -> None:
        """Take finished rows of a part; wait if the disk is far behind."""
        self._pending.append(self._pool.submit(self._write, block, part))
        if len(self._pending) > STRIPS_AHEAD:
            self._wait()

    def _write(self, block: Block, part: int) -> None:
        for output, strip in (block if block.finished else finished(block, self._products)).strips:
            if output.name in self._means:
                self._means[output.name].add(strip)
            else:
                self._write_strip(output.name, strip)
            if strip.overlaps is not None:
                self._overlaps[output.name].append(strip.overlaps)
        if self._journalled:
            sums = {p.suffix: self._writers[name].checkpoint() for name, p in self._products.items()}
            apart = {
                o.name: s.overlaps.text() for o, s in block.strips if s.overlaps is not None and len(s.overlaps.counts)
            }
            self._journal.add(Record(block.row, sums, self._watch.varies, part, apart))

    def _write_strip(self, name: str, strip: Strip) -> None:
        top, left = (0, 0) if name in self._means else self._corners[name]
        self._writers[name].write(strip.row - top, strip.values, strip.valid, strip.col - left)
        self._measure_rows(name, strip)

    def _measure_rows(self, name: str, strip: Strip) -> None:
        if len(self.columns) == 1:  # else whole rows are there at the end only
            for measure in self._measuring(name):
                measure.add(strip.row, strip.values, strip.valid)

    def _measuring(self, name: str) -> list[Any]:
        """Return what takes the rows of a product as they are written."""
        return [of[name] for of in (self._measures, self._steps) if name in of]

    def _measure_afterwards(self) -> None:
        """Measure products whose rows came in parts."""
        for name in {*self._measures, *self._steps}:
            writer, step = self._writers[name], max(1, self._prepared.plan.step // self._products[name].spec.scale)
            (height, width), top = writer.grid.shape, self._corners[name][0]
            for row in range(0, height, step):
                values, valid, _ = writer.reread(range(row, min(row + step, height)), range(width))
                for measure in self._measuring(name):
                    measure.add(row + top, values, valid)

    def _tags(self, name: str, made: Provenance, written: WrittenScene) -> dict[str, str]:
        """Return the tags of a product, and say what its seams are."""
        if name not in self._steps:
            return made.tags()
        suffix, (seams, tags) = self._products[name].suffix, self._seams(name)
        written.measured.setdefault(suffix, {})["seams"] = seams.facts()
        written.warnings += seams.warning(suffix)
        if text := seams.text():
            _log.debug("%s_%s: %s", self._prepared.scene.stem, suffix, text)
        return made.with_details(seams=seams.facts()).tags() | tags

    def _level(self, name: str) -> dict[str, Any]:
        """Bring the tiles of a product to one level: its rows are written again. Return what was removed, by band."""
        plan, product, writer = self._prepared.plan, self._products[name], self._writers[name]
        bands, spec, top = product.layout.bands, product.spec, self._corners[name][0]
        writer.checkpoint()  # a work file that was never synced cannot be read
        before = Overlaps.total(self._overlaps[name], len(bands))
        found = offsets(before, self._anchor(name))
        writer.statistics, self._steps[name] = Statistics(len(bands)), BorderSteps(plan, spec, len(bands))
        for strip in field(plan, spec, found):
            rows = range(strip.row - top, strip.row - top + len(strip.valid))
            values, valid, _ = writer.reread(rows, range(writer.grid.shape[1]))
            levelled = product.finish(replace(strip, values=values + strip.values, valid=valid))
            writer.write(rows.start, levelled, valid)
            self._steps[name].add(strip.row, levelled, valid)
        after = found.applied(before)
        self._overlaps[name] = [after]
        return level_facts(bands, found, before, after)

    def _anchor(self, name: str) -> Anchor | None:
        """Return how far the raster that gives the level lies above a product, tile by tile; None where none does."""
        plan, product, writer = self._prepared.plan, self._products[name], self._writers[name]
        if self._prepared.reference is None:
            return None
        (top, left), (height, width) = self._corners[name], writer.grid.shape
        anchor = Anchor(plan, product.spec, len(product.layout.bands))
        with Reader(self._prepared.reference) as reader:
            for row in range(0, height, plan.step):
                rows = range(row, min(row + plan.step, height))
                values, valid, _ = writer.reread(rows, range(width))
                known, there = reader.read(Window(top + row, left, len(rows), width))
                anchor.add(top + row, left, known - values, valid & there)
        if not anchor.counts.any():
            raise InputError(
                f"{self._prepared.reference.path}: --level-to has no valid pixel where {product.suffix} has one."
            )
        return anchor

    def _seams(self, name: str) -> tuple[Seams, dict[str, str]]:
        """Return the seams of a product, and the tag with those of its tiles."""
        product, writer = self._products[name], self._writers[name]
        layout, total = product.layout, Overlaps.total(self._overlaps[name], self._steps[name].bands)
        seams = seams_of(layout.bands, layout.unit, product.spec, total, self._steps[name].ratios)
        return seams, tile_map(self._prepared.plan, product.spec, total, writer.statistics.std)

    def flush(self) -> None:
        """Wait until all rows are written."""
        while self._pending:
            self._wait()

    def _wait(self) -> None:
        start = time.monotonic()
        self._pending.popleft().result()
        self.wait_seconds += time.monotonic() - start

    def finish(self, check: Callable[[], None] = lambda: None) -> WrittenScene:
        """Build all products and give them their names, if `check` does not raise."""
        self.flush()
        for name, mean in self._means.items():
            strip = mean.strip()
            self._write_strip(name, replace(strip, values=self._products[name].finish(strip)))
        if len(self.columns) > 1:
            self._measure_afterwards()
        written = WrittenScene()
        for name, product in self._products.items():
            if product.level:
                written.measured.setdefault(product.suffix, {})["level"] = self._level(name)
        complete = {n for n, p in self._products.items() if p.holes and self._is_complete(n)}
        kept = {name: product for name, product in self._products.items() if name not in complete}
        for name, product in kept.items():
            written.warnings += check_statistics(product, self._writers[name].statistics, self._watch.varies)
            if name in self._measures:
                written.measured.setdefault(product.suffix, {}).update(self._measures[name].result())
        for name, product in kept.items():
            made = self._provenance_of(product, kept)
            self._writers[name].build(self._tags(name, made, written), self._about(product, made))
        check()
        with self._commit:
            if self._stopped:
                raise ProductError(f"{self._prepared.scene.stem}: stopped while its products were built.")
            paths = {name: self._writers[name].commit() for name in kept}
            for name in complete:
                self._writers[name].path.unlink(missing_ok=True)  # of an older product with holes
            self._clean()
        written.paths = tuple(path for name, path in paths.items() if not self._products[name].holes)
        written.at = time.monotonic()
        written.beside = tuple(path for name, path in paths.items() if self._products[name].holes)
        return written

    def _about(self, product: Product, made: Provenance) -> About:
        """Return what formats with a place for it say of a product."""
        cells = self._prepared.plan.cells(product.spec, pixel_size_m(self._prepared.grid))
        said = product.described(made, product.layout, cells) if product.described else {}
        return About(product.variable or product.suffix, said, cells)

    def _is_complete(self, name: str) -> bool:
        height, width = self._writers[name].grid.shape
        return self._writers[name].statistics.count == height * width

    def _provenance_of(self, product: Product, kept: Mapping[str, Product]) -> Provenance:
        """Return a product's tags: the scene's provenance, the product's modality, and the file that marks its holes."""
        about: dict[str, Any] = {"modality": product.modality} | dict(product.about)
        if any(p.holes for p in self._products.values()):
            about["validity"] = next((self._writers[n].path.name for n, p in kept.items() if p.holes), None)
        made = self._provenance.with_details(**about)
        return replace(made, task="validity") if product.holes else made


def _measure(product: Product, prepared: Prepared, stack: ExitStack) -> Measure | None:
    measuring = product.measuring
    return measuring.begin(prepared.sources[product.modality], prepared.plan.cols, stack) if measuring else None


def leftovers(prepared: Prepared, task: str) -> list[Path]:
    """Return what earlier runs of a scene left without a final name; a scene that is done has no use for it."""
    path = journal_path(prepared.scene.folder, prepared.scene.stem, task)
    files = [
        file for product in prepared.products for file in ProductWriter.work_files(target(prepared.scene, product))
    ]
    return [path, *files] if path.exists() else files
