"""From windows to model inputs: bounded read-ahead on its own threads, holes filled, borders reflected, tiles collated."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.grid import BoolArray, FloatArray, Strip, Tile, TileBatch, Window, reflect

Read = Callable[[Window], tuple[FloatArray, BoolArray]]


@dataclass(frozen=True)
class Feed:
    """One modality's input: how to read it, and what fills its holes (`fill`, one value a band, the pretraining mean).

    Windows are in px of `scale` source px: 16 for tokens. A feed that is `computed` is read on the caller's thread.
    """

    read: Read
    fill: tuple[float, ...]
    scale: int = 1
    computed: bool = False


@dataclass(frozen=True)
class TileInput:
    """One tile ready for the model: `pixels[modality]` `(C, S/scale, S/scale)` float32, `valid` `(S, S)` in source px.

    `valid` is False beyond the raster.

    `pixels` is empty where the part of the tile that is kept holds no valid pixel: nothing of it would be seen.
    """

    tile: Tile
    pixels: Mapping[str, FloatArray]
    valid: BoolArray


def load(tile: Tile, feeds: Mapping[str, Feed], shape: tuple[int, int], delta: int) -> TileInput:
    """Read one tile of a raster of `shape` from every feed; a pixel is valid where it is in all of them."""
    inside = np.outer(*(_inside(start, tile.size, n) for start, n in zip((tile.row, tile.col), shape, strict=True)))
    pixels = {}
    for modality, feed in feeds.items():
        values, valid = _read_reflected(tile, feed, shape)
        inside = inside & valid
        if len(values):  # a feed without bands only says what is valid
            pixels[modality] = values
    kept = inside[delta : tile.size - delta, delta : tile.size - delta]
    return TileInput(tile, pixels if kept.any() else {}, inside)


def _read_reflected(tile: Tile, feed: Feed, shape: tuple[int, int]) -> tuple[FloatArray, BoolArray]:
    """Return a tile of one feed, reflected beyond the raster, with its holes filled; and its validity in source px."""
    s = feed.scale
    origin, side = (tile.row // s, tile.col // s), tile.size // s
    rows, cols = (reflect(start, start + side, -(-n // s)) for start, n in zip(origin, shape, strict=True))
    window = Window(int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
    # where nothing is reflected the window is the tile: picking its px one by one would cost more than reading them
    straight = all(i[-1] - i[0] == side - 1 for i in (rows, cols))
    at: tuple[Any, ...] = (slice(None),) * 2 if straight else np.ix_(rows - window.row, cols - window.col)
    values, valid = feed.read(window)
    if not valid.all():
        values = np.where(valid, values, np.asarray(feed.fill, np.float32)[:, None, None])
    here = valid[at]
    return values[(slice(None), *at)], here if s == 1 else here.repeat(s, axis=0).repeat(s, axis=1)


def _inside(start: int, size: int, length: int) -> BoolArray:
    index = np.arange(start, start + size)
    return (index >= 0) & (index < length)


def read_ahead(
    load_tile: Callable[[Tile], TileInput], tiles: Iterable[Tile], depth: int, threads: int = 1
) -> Generator[TileInput, None, None]:
    """Yield the loaded tiles in order while `threads` read at most `depth` of them ahead; with none, load in turn.

    An exception in a thread is raised here, in its tile's turn; leaving the loop early waits for the reads under way.
    """
    if not threads:
        yield from map(load_tile, tiles)
        return
    pending: deque[Future[TileInput]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        try:
            for tile in tiles:
                pending.append(pool.submit(load_tile, tile))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class RollingRows:
    """A sliding buffer of the last rows of something computed from the top, read like a raster.

    `start(row)` begins the computation at a row and yields finished strips; `keep` is the number of rows that a window
    may begin above the one before. One that begins higher starts the computation again.
    """

    def __init__(self, start: Callable[[int], Generator[Strip, None, None]], keep: int) -> None:
        self._start, self._keep = start, keep
        self._strips: Generator[Strip, None, None] | None = None
        self._held: deque[Strip] = deque()

    def read(self, window: Window) -> tuple[FloatArray, BoolArray]:
        """Return values `(C, h, w)` and validity `(h, w)` of a window; compute what is missing of it."""
        if self._strips is None or (self._held and window.row < self._held[0].row):
            self.close()
            self._strips = self._start(window.row)
        stop = window.row + window.height
        while not self._held or _end(self._held[-1]) < stop:
            self._held.append(next(self._strips))
        while _end(self._held[0]) <= window.row - self._keep:
            self._held.popleft()
        rows = slice(window.row - self._held[0].row, stop - self._held[0].row)
        left = window.col - self._held[0].col
        cols = slice(left, left + window.width)
        values = np.concatenate([s.values for s in self._held], axis=1)[:, rows, cols]
        return values.astype(np.float32), np.concatenate([s.valid for s in self._held])[rows, cols]

    def close(self) -> None:
        """End the computation and forget its rows."""
        self._held.clear()
        if self._strips is not None:
            self._strips.close()


def _end(strip: Strip) -> int:
    return strip.row + len(strip.valid)


@dataclass(frozen=True)
class Told:
    """What a model is told of tiles if it wants it: `lonlat` gives a tile's centre, and `dates` `(T,)` are those of all inputs."""

    lonlat: Callable[[Tile], tuple[float, float]] | None = None
    dates: NDArray[np.datetime64] | None = None


def collate(
    tiles: Sequence[TileInput], batch_size: int, told: Told | None = None, position: tuple[int, int] = (0, 0)
) -> TileBatch:
    """Stack tiles to a batch of exactly `batch_size`, the last tile repeated: the same shape gives the same bits.

    `position` is that of the plan's corner, from which noise is counted.
    """
    lonlat, dates = (told.lonlat, told.dates) if told else (None, None)
    padded = [*tiles, *[tiles[-1]] * (batch_size - len(tiles))]
    return TileBatch(
        pixels={m: np.stack([t.pixels[m] for t in padded]) for m in tiles[0].pixels},
        rows=np.array([t.tile.row + position[0] for t in padded], np.int64),
        cols=np.array([t.tile.col + position[1] for t in padded], np.int64),
        lonlat=None if lonlat is None else np.array([lonlat(t.tile) for t in padded], np.float64),
        dates=None if dates is None else np.broadcast_to(dates, (batch_size, len(dates))),
    )
