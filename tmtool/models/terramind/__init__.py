"""TerraMind through terratorch: its classes, and the loops that draw and decode."""
