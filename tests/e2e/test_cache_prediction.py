"""Predicted memory per token of context against the buffers that the engine says it makes, for every architecture.

The engine's log is read from a child process: what it makes of a file that it refuses ends with the child.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from architectures import facts, write_architecture
from kvant.devices.cache import cache_bytes
from kvant.formats.open import open_model

pytestmark = pytest.mark.heavy

CONTEXTS = (256, 2048)
TOLERANCE = 0.10
ROUNDING_BYTES = 12_000  # the log rounds to hundredths of a MiB, several times for one cache
UNREAD = frozenset({"bert"})
"""Without a tokenizer the engine does not load it."""

ASK = """
import json, re, sys
from kvant.runtime import capi
library, lines = capi.load(), [""]
def keep(level, text, _):
    lines[0] += text.decode(errors="replace")
callback = capi.LogCallback(keep)
library.llama_log_set(callback, None)
for path in json.loads(sys.argv[1]):
    model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
    sizes = []
    for tokens in json.loads(sys.argv[2]):
        lines[0] = ""
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = tokens
        params.n_ubatch, params.flash_attn_type, params.swa_full = min(512, tokens), 1, False
        context = library.llama_init_from_model(model, params)
        found = re.findall(r"(?:KV|RS) buffer size = +([0-9.]+) MiB", lines[0])
        sizes.append(sum(map(float, found)) * 2**20)
        library.llama_free(context)
    library.llama_model_free(model)
    print(path, *sizes)
"""


def test_caches_are_predicted_within_a_tenth(tmp_path: Path) -> None:
    paths = [
        write_architecture(name, tmp_path / f"{name}.gguf", is_hollow=True) for name in facts() if name not in UNREAD
    ]
    words = [json.dumps([str(path) for path in paths]), json.dumps(CONTEXTS)]
    quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run([sys.executable, "-c", ASK, *words], env=quiet, capture_output=True, text=True, check=False)
    answers = {line.split(" ")[0]: list(map(float, line.split(" ")[1:])) for line in done.stdout.splitlines()}
    assert len(answers) == len(paths), done.stderr[-500:]
    for path in paths:
        model = open_model(path)
        for context, measured in zip(CONTEXTS, answers[str(path)], strict=True):
            predicted = cache_bytes(model, context)
            assert predicted == pytest.approx(measured, rel=TOLERANCE, abs=ROUNDING_BYTES), (path.stem, context)
