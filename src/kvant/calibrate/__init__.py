"""What quantization should know of a model beyond its weights, measured on calibration text."""
