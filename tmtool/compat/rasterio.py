"""rasterio: the size of GDAL's block cache."""

import functools
import logging
from typing import Any

_log = logging.getLogger("tmtool")


def resize_block_cache(size_bytes: int) -> bool:
    """Set the size of GDAL's block cache, for this process and all its threads; return whether it was set.

    - Why: by default the cache grows to 5 % of the machine's memory, not of what a run may use. `rasterio.Env` sets it
      for a block of code and one thread; and each scene needs another size.
    - Uses: `set_gdal_config` of `rasterio._env`.
    - Without it: the cache stays as large as it is. Pixels are the same.
    """
    set_gdal_config = _setter()
    if set_gdal_config is None:
        return False
    set_gdal_config("GDAL_CACHEMAX", size_bytes)
    return True


@functools.cache
def _setter() -> Any:
    try:
        from rasterio._env import set_gdal_config
    except ImportError as error:
        _log.debug("GDAL's block cache stays as large as it is: %s", error)
        return None
    return set_gdal_config
