"""One scene: prepare it, compute its blocks, write its products, resume it."""
