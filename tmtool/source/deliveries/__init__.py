"""Rasters as they are delivered: one module a format, each with `claims(path)` and `read(path)`."""
