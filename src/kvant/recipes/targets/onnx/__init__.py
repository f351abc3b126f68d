"""Decoder language models as ONNX for onnxruntime-genai: exported, then quantized by weight."""
