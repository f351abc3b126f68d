"""A converter in the layout of upstream's, small enough for every test: it writes what it is told, or fails as asked.

It has the parts that kvant looks for (`conversion/`, `gguf-py/gguf/`, `convert_hf_to_gguf.py`) and upstream's ways: a
class by the name of the architecture, pre-tokenizers by a hash, errors by logging and ending. What it writes is written
by the official `gguf` package. Entries of config.json that begin with `test_` say what it does wrong.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from kvant.runtime.converter.environment import PYTHON, SOURCE
from kvant.testing.tiny_models import write_safetensors, write_tiny_model

BASE = """
import os, sys, time
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        if tokenizer.get("test_published"):
            return "smollm"
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
class ModelBase:
    @staticmethod
    def load_hparams(directory, is_mistral):
        import json
        with open(os.path.join(directory, "config.json")) as file:
            config = json.load(file)
        return {k: v for k, v in config.items() if k != "rotary_pct"}
"""

SCRIPT = """
import argparse, json, os, shutil, sys, time
import numpy as np
import gguf
from conversion.base import ModelBase, TextModel

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model"); parser.add_argument("--outfile"); parser.add_argument("--outtype")
    parser.add_argument("--mmproj", action="store_true")
    a = parser.parse_args()
    config = ModelBase.load_hparams(a.model, False)
    print("this is no answer")
    if config.get("test_unsupported"):
        print("ERROR:hf-to-gguf:Model is not supported", file=sys.stderr); sys.exit(1)
    if config.get("test_raises"):
        raise ValueError(config["test_raises"])
    if config.get("test_old_name"):
        config["rotary_pct"]
    if a.mmproj:
        shutil.copyfile(os.path.join(os.path.dirname(sys.argv[0]), config["test_projector"]), a.outfile); return
    if config.get("test_dies"):
        os.kill(os.getpid(), 9)
    if config.get("test_reads"):
        open(config["test_reads"]).read()
    if config.get("test_writes"):
        open(config["test_writes"], "w").write("x")
    with open(os.path.join(a.model, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    pre = TextModel().get_vocab_base_pre(tokenizer)
    write(a, config, tokenizer, pre)

def write(a, config, tokenizer, pre):
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = {t["id"] for t in tokenizer["added_tokens"]}
    w = gguf.GGUFWriter(a.outfile, "llama")
    w.add_name(os.path.basename(a.model)); w.add_description(json.dumps(sorted(os.listdir(a.model))))
    w.add_block_count(1); w.add_context_length(64); w.add_embedding_length(64); w.add_feed_forward_length(256)
    w.add_head_count(2); w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre(pre)
    w.add_token_list(sorted(vocabulary, key=vocabulary.get))
    w.add_token_types([3 if i in special else 1 for i in range(len(vocabulary))])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    kind = {"f32": np.float32, "f16": np.float16}.get(a.outtype, np.float32)
    rows = len(vocabulary) + config.get("test_rows", 0)
    embedding = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    embedding[0, 0] = config.get("test_value", 1.0)
    with np.errstate(over="ignore"):
        w.add_tensor("token_embd.weight", embedding.astype(kind))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        w.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        w.add_tensor(f"blk.0.{name}.weight", np.ones((64, 64), kind))
    for name, shape in (("ffn_gate", (256, 64)), ("ffn_up", (256, 64)), ("ffn_down", (64, 256))):
        w.add_tensor(f"blk.0.{name}.weight", np.ones(shape, kind))
    w.write_header_to_file(); w.write_kv_data_to_file()
    time.sleep(config.get("test_sleeps", 0))
    w.write_tensors_to_file(); w.close()

main()
"""


def write_converter(directory: Path) -> Path:
    """Write the converter."""
    (directory / "conversion").mkdir(parents=True)
    (directory / "conversion" / "__init__.py").write_text("")
    (directory / "conversion" / "base.py").write_text(BASE)
    (directory / "convert_hf_to_gguf.py").write_text(SCRIPT)
    shutil.copytree(Path(gguf.__file__).parent, directory / "gguf-py" / "gguf", ignore=shutil.ignore_patterns("*.pyc"))
    return directory


def use_converter(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have kvant run a converter with a Python that has its packages: the one named so, or that of the tests."""
    monkeypatch.setenv(SOURCE, str(directory))
    monkeypatch.setenv(PYTHON, os.environ.get(PYTHON, sys.executable))


def write_model(directory: Path, **entries: Any) -> Path:
    """Write a directory of a class that upstream alone converts, whose tokenizer kvant knows by its patterns."""
    write_tiny_model("llama", directory, tokenizer="smollm")
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": ["OrionForCausalLM"], "model_type": "orion", **entries}
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", {"w": np.ones((4, 8), np.float32)}, "BF16")
    return directory
