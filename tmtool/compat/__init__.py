"""All uses of other packages' private or unstable interfaces: one module for each package, named like it.

- `cpython`: exceptions sent into threads, to interrupt work that is no longer needed.
- `libc`: glibc's `mallopt`, to keep the memory of tensors on Dask's workers.
- `rasterio`: `rasterio._env`, to size GDAL's block cache for each scene.
- `torch`: `torch.ops.mkldnn` and `torch._C`, for faster layers on CPUs; `torch._dynamo`, to say why nothing compiles.
- `terratorch`: how it is laid out, for TerraMind without the rest; names in its modules, for the demo model's networks.

Each function says why it is there, what it uses, and what happens without it, which `tests/test_compat.py` shows by taking
it away. The dependencies' upper bounds in `pyproject.toml` admit tested versions; `make test-lowest` tests the lower bounds.

This is the lowest layer: of tmtool only `errors` is imported here. The package itself imports none of its modules, so that
using one does not load the others.
"""
