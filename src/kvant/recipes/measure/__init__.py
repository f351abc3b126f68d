"""Everything that is measured of a model: calibration before, quality and speed after."""
