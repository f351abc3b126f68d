"""Inference engines as programs: each module starts one engine's server on loopback and says where it listens."""
