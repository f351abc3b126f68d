"""Checkpoints that their makers quantized: FP8, MXFP4, NVFP4, GPTQ, AWQ, compressed-tensors, bitsandbytes."""
