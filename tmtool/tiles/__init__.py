"""The streaming core: plan, batches, engine, stitch, lanes."""
