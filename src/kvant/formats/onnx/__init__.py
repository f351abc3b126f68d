"""ONNX: models of any kind as graphs of operators, and decoders with weights of few bits."""
