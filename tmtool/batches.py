"""From windows to model inputs: bounded read-ahead on its own threads, holes filled, borders reflected, tiles collated."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tmtool.grid import BoolArray, FloatArray, Tile, TileBatch, Window, reflect

Read = Callable[[Window], tuple[FloatArray, BoolArray]]


@dataclass(frozen=True)
class Feed:
    """One modality's input: how to read it, and what fills its holes (`fill`, one value a band, the pretraining mean)."""

    read: Read
    fill: tuple[float, ...]


@dataclass(frozen=True)
class TileInput:
    """One tile ready for the model: `pixels[modality]` `(C, S, S)` float32, `valid` `(S, S)`, False beyond the raster.

    `pixels` is empty where the part of the tile that is kept holds no valid pixel: nothing of it would be seen.
    """

    tile: Tile
    pixels: Mapping[str, FloatArray]
    valid: BoolArray


def load(tile: Tile, feeds: Mapping[str, Feed], shape: tuple[int, int], delta: int) -> TileInput:
    """Read one tile of a raster of `shape` from every feed; a pixel is valid where it is in all of them."""
    rows, cols = (reflect(start, start + tile.size, n) for start, n in zip((tile.row, tile.col), shape, strict=True))
    window = Window(int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
    at: tuple[Any, ...] = np.ix_(rows - window.row, cols - window.col)
    inside = np.outer(*(_inside(start, tile.size, n) for start, n in zip((tile.row, tile.col), shape, strict=True)))
    pixels = {}
    for modality, feed in feeds.items():
        values, valid = feed.read(window)
        if not valid.all():
            values = np.where(valid, values, np.asarray(feed.fill, np.float32)[:, None, None])
        pixels[modality] = values[(slice(None), *at)]
        inside = inside & valid[at]
    kept = inside[delta : tile.size - delta, delta : tile.size - delta]
    return TileInput(tile, pixels if kept.any() else {}, inside)


def _inside(start: int, size: int, length: int) -> BoolArray:
    index = np.arange(start, start + size)
    return (index >= 0) & (index < length)


def read_ahead(
    load_tile: Callable[[Tile], TileInput], tiles: Iterable[Tile], depth: int, threads: int = 1
) -> Iterator[TileInput]:
    """Yield the loaded tiles in order while `threads` read at most `depth` of them ahead.

    An exception in a thread is raised here, in its tile's turn; leaving the loop early waits for the reads under way.
    """
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


def collate(tiles: Sequence[TileInput], batch_size: int) -> TileBatch:
    """Stack tiles to a batch of exactly `batch_size`, the last tile repeated: the same shape gives the same bits."""
    padded = [*tiles, *[tiles[-1]] * (batch_size - len(tiles))]
    return TileBatch(
        pixels={m: np.stack([t.pixels[m] for t in padded]) for m in tiles[0].pixels},
        rows=np.array([t.tile.row for t in padded], np.int64),
        cols=np.array([t.tile.col for t in padded], np.int64),
    )
