"""All that tmtool uses of others beyond what they promise to keep: a module for each of them, named like it.

- `cpython`: exceptions sent into threads, to leave what nobody wants any more.
- `libc`: glibc's `mallopt`, to keep the memory of tensors on Dask's workers.
- `rasterio`: `rasterio._env`, to size GDAL's block cache for each scene.
- `torch`: `torch.ops.mkldnn` and `torch._C`, for faster layers on CPUs; `torch._dynamo`, to say why nothing compiles.
- `terratorch`: how it is laid out, for TerraMind without the rest; names in its modules, for the demo model's networks.

Each function says why it is there, what it uses, and what happens without it, which `tests/test_compat.py` shows by taking
that away. The dependencies' upper bounds in `pyproject.toml` admit what was tried; `make test-lowest` tries the lower ones.

This is the ground floor: of tmtool only `errors` is imported here. Nothing is imported by the package itself, so that who
needs one of them does not wait for another.
"""
