"""int8 versions of any ONNX model, with the accuracy they cost measured and kept within a limit."""
