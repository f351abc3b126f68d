"""Encode weights into block types and decode them: native kernels and their reference twins."""

from kvant.kernels.codec import decode, encode, transcode

__all__ = ["decode", "encode", "transcode"]
