"""Pixels of a source that is an array in memory or of dask, not a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmtool.errors import ReadError


@dataclass(frozen=True)
class Held:
    """Rows of a raster from its row `first` on: `values` `(bands, rows, W)`, of numpy or of dask.

    It is read as rasterio's datasets are.
    """

    values: Any
    first: int = 0

    @property
    def lazy(self) -> bool:
        """Whether the values are still to be computed."""
        return not isinstance(self.values, np.ndarray)

    def rows(self, rows: range) -> "Held":
        """Return these rows of the raster alone; nothing is computed."""
        return Held(self.values[:, rows.start - self.first : rows.stop - self.first], rows.start)

    def read(self, bands: Sequence[int], window: Any) -> NDArray[Any]:
        """Return the bands, counted from 1, of a rasterio window `(bands, h, w)`; computes what is lazy."""
        top, left = window.row_off - self.first, window.col_off
        if top < 0 or top + window.height > self.values.shape[1]:
            raise ReadError(
                f"rows from {window.row_off} on were asked for, but the rows held begin at {self.first}. Please report this."
            )
        part = np.asarray(self.values[:, top : top + window.height, left : left + window.width])
        return part[[band - 1 for band in bands]]

    def close(self) -> None:
        """Do nothing: there is no file."""
