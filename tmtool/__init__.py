"""tmtool: run the TerraMind foundation models over geospatial rasters of any size from the command line."""

__version__ = "0.1.0"
