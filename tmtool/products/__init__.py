"""What a product is: bands, dtype, nodata, colours, class names, units; what is measured of it."""
