"""Which converter runs, of which package, beside what: the one place for these versions.

The converter is Python and comes with llama.cpp; of its source distribution three parts are taken, and nothing is
built. Its architectures are listed in `formats/huggingface/architectures/upstream_table.py`, made for this version.

Source: https://pypi.org/project/llama-cpp-python/0.3.36/#files (the SHA-256), `vendor/llama.cpp` in it.
"""

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
TITLE = f"upstream's converter ({PACKAGE} {VERSION})"

SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST = f"llama_cpp_python-{VERSION}.tar.gz"
WITHIN = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"
SCRIPT = "convert_hf_to_gguf.py"
PARTS = ("conversion/", "gguf-py/gguf/", SCRIPT)
"""What is taken of the source distribution, by its path under `WITHIN`."""

TORCH = "torch==2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch for CPUs alone is, on Linux; the package index has the one for CUDA, of several gigabytes."""

PACKAGES = (
    TORCH, "transformers==5.24.0", "sentencepiece==0.2.3", "protobuf==7.36.2", "pyyaml==6.0.4", "safetensors==0.8.0",
)  # fmt: skip

MODULES = ("torch", "transformers", "sentencepiece", "google.protobuf", "yaml", "safetensors", "numpy")
"""What the converter imports of them."""

DISK_BYTES = 1_300_000_000
DOWNLOAD_BYTES = 400_000_000
"""What making the environment takes, on Linux."""
