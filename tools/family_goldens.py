"""Make the tables of tests/golden/families: what transformers and upstream's converter make of a tiny configuration.

    python tools/family_goldens.py ENVIRONMENT [NAME ...]     # the one of tools/upstream_converter.py

A table starts as `{"config": {...}}` with `architectures`. transformers says which tensors such a model saves; random
ones of these names and shapes are written (tests/family_cases.py), upstream's converter converts them, and the logits
of transformers in float32 are compared with the engine's on kvant's own conversion: the mean KL divergence is the
table's `kl`. Of a model that makes no text the states of all tokens are compared, or what dense layers make
of their mean: the mean cosine distance is the table's `cosine`. Of a reranker the scores of some texts are
compared: the largest difference is the table's `score`. Where a GGUF becomes a directory again, `back` is by how much
transformers' logits on that one differ from those on the first at most.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from family_cases import CASES, TABLES, digest, table, write_checkpoint  # noqa: E402
from kvant.formats.huggingface.architectures.registry import BY_CLASS  # noqa: E402
from upstream_converter import make, python  # noqa: E402

TOKENS = np.random.default_rng(5).integers(4, 500, 48).astype(np.int32)

SHAPES = """
import json, sys, warnings, tempfile, transformers, safetensors
warnings.simplefilter("ignore")
for path in sys.argv[1:]:
    case = json.load(open(path))
    directory = tempfile.mkdtemp()
    json.dump(case["config"], open(directory + "/config.json", "w"))
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, case["config"]["architectures"][0])._from_config(config)
    model.save_pretrained(directory)
    with safetensors.safe_open(directory + "/model.safetensors", "np") as file:
        case["source"] = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    json.dump(case, open(path, "w"))
"""

UPSTREAM = """
import runpy, sys
root, source, out = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
import conversion
from conversion.base import TextModel, ModelBase, ModelType
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
load = ModelBase.load_hparams
def load_hparams(directory, *a, **k):  # transformers 5 fills in experts where a Nemotron-H has none
    import json
    raw = json.load(open(str(directory) + "/config.json"))
    dense = raw.get("model_type") == "nemotron_h" and "n_routed_experts" not in raw
    return raw if dense else load(directory, *a, **k)
ModelBase.load_hparams = staticmethod(load_hparams)
get = conversion.get_model_class
def with_returned(modify):  # StableLM's norms by head are returned from a generator, where they were to be yielded
    def modify_tensors(self, *a):
        returned = yield from modify(self, *a)
        yield from returned or ()
    return modify_tensors
def patched(*a, **k):
    found = get(*a, **k)
    if hasattr(found, "_set_vocab_gpt2"):
        found.set_vocab = lambda self: self._set_vocab_gpt2()
    if hasattr(found, "_is_tokenizer_xlmroberta"):
        found._is_tokenizer_xlmroberta = lambda self: False
    if found.__name__ == "StableLMModel":
        found.modify_tensors = with_returned(found.modify_tensors)
    return found
conversion.get_model_class = patched
sys.argv = [root + "/convert_hf_to_gguf.py", source, "--outfile", out, "--outtype", "f32"]
import os
if os.path.isdir(source + "/2_Dense"): sys.argv.append("--sentence-transformers-dense-modules")
import importlib.util
spec = importlib.util.spec_from_file_location("converter", sys.argv[0])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
if hasattr(module, "get_model_class"): module.get_model_class = patched
module.main()
"""

LOGITS = """
import sys, json, numpy, torch, transformers
out, tokens, source = sys.argv[1:]
tokens = torch.tensor(numpy.load(tokens)[None].astype("int64"))
name = json.load(open(source + "/config.json"))["architectures"][0]
model = getattr(transformers, name).from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    found = model(tokens, output_hidden_states=True)
is_text = name.endswith(("CausalLM", "LMHeadModel", "Generation"))
states = found.logits if is_text else getattr(found, "last_hidden_state", None)
numpy.save(out, (found.hidden_states[-1] if states is None else states)[0].numpy())
"""


SCORES = """
import sys, json, numpy, torch, transformers
out, tokens, source, *rows = sys.argv[1:]
tokens = torch.tensor(numpy.load(tokens).astype("int64"))
name = json.load(open(source + "/config.json"))["architectures"][0]
model = getattr(transformers, name).from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    logits = model(tokens).logits
numpy.save(out, (logits[:, -1, list(map(int, rows))].softmax(-1) if rows else logits).numpy())
"""


def main() -> None:
    """Make the tables named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    make(arguments.environment)
    for name in arguments.names or CASES:
        case = table(name)
        if "source" not in case:
            child(arguments.environment, SHAPES, str(TABLES / f"{name}.json"))
            case = table(name)
        with tempfile.TemporaryDirectory() as scratch:
            prove(case, arguments.environment, Path(scratch))
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items()]
        (TABLES / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(
            f"{name}: {len(case['tensors'])} tensors, KL {case.get('kl')}, cosine {case.get('cosine')}, "
            f"score {case.get('score')}"
        )


def prove(case: dict[str, Any], environment: Path, scratch: Path) -> None:
    """Fill in what upstream's converter makes of a table's checkpoint, and the divergence of the engine."""
    from gguf import GGUFReader

    source = write_checkpoint(case, scratch / "tiny")
    child(environment, UPSTREAM, str(make(environment).source), str(source), str(scratch / "theirs.gguf"))
    reader = GGUFReader(scratch / "theirs.gguf")
    case["tensors"] = {
        t.name: [t.tensor_type.name, [int(n) for n in reversed(t.shape)], digest(np.asarray(t.data).tobytes())]
        for t in reader.tensors
    }
    left_out = ("tokenizer.", "GGUF.", "general.name", "general.quantization_version", "general.file_type",
                "general.size_label")  # fmt: skip
    case["metadata"] = {f.name: f.contents() for f in reader.fields.values() if not f.name.startswith(left_out)}
    figure = "kl" if BY_CLASS[case["config"]["architectures"][0]].has_head else "cosine"
    if "cls.output.weight" in case["tensors"]:
        case["score"] = scores(source, case, environment, scratch)
    if "pooling_type" not in str(case["metadata"]) or "words" not in case:
        case[figure] = (divergence if figure == "kl" else distance)(source, environment, scratch)
    prove_back(case, environment, scratch / "again")


def prove_back(case: dict[str, Any], environment: Path, scratch: Path) -> None:
    """Fill in by how much transformers' results differ at most after the way to GGUF and back, if there is one."""
    from kvant.formats.huggingface.architectures.registry import family_of_config
    from kvant.recipes.convert.convert import convert

    family = family_of_config(case["config"], scratch)
    if family.one_way or not family.has_head or "score" in case:
        return
    source = write_checkpoint(case, scratch / "source")
    convert(source, scratch / "there.gguf", to="gguf", type="F32")
    convert(scratch / "there.gguf", scratch / "back", to="hf", type="F32")
    np.save(scratch / "tokens.npy", TOKENS)
    found = []
    for directory in (source, scratch / "back"):
        child(environment, LOGITS, str(scratch / "logits.npy"), str(scratch / "tokens.npy"), str(directory))
        found.append(np.load(scratch / "logits.npy"))
    case["back"] = float(f"{np.abs(found[0] - found[1]).max():.2g}")


def scores(source: Path, case: dict[str, Any], environment: Path, scratch: Path) -> float:
    """Return the largest difference of a reranker's scores from transformers', over some texts."""
    from kvant.recipes.convert.convert import convert
    from kvant.runtime import capi
    from kvant.runtime.llamacpp import LlamaCpp

    capi.FLASH_ATTENTION_ON, capi.TYPE_F16 = 0, 0
    texts = np.random.default_rng(6).integers(4, 500, (8, 24)).astype(np.int32)
    np.save(scratch / "texts.npy", texts)
    first = case["config"]["vocab_size"] - len(case.get("words", ()))
    rows = [str(first + i) for i, _ in enumerate(case.get("words", ()))]
    child(environment, SCORES, str(scratch / "scores.npy"), str(scratch / "texts.npy"), str(source), *rows)
    convert(source, scratch / "ranks.gguf", to="gguf", type="F32", overwrite=True)
    with LlamaCpp(scratch / "ranks.gguf", n_ctx=64, n_threads=2, embeddings=True, ranking=True) as engine:
        found = np.stack([engine.embed(text) for text in texts])
    return float(f"{np.abs(found - np.load(scratch / 'scores.npy')).max():.2g}")


def distance(source: Path, environment: Path, scratch: Path) -> float:
    """Return the mean cosine distance of the engine's states of tokens from transformers'."""
    from kvant.recipes.convert.convert import convert
    from kvant.runtime import capi
    from kvant.runtime.llamacpp import LlamaCpp

    capi.FLASH_ATTENTION_ON, capi.TYPE_F16 = 0, 0
    np.save(scratch / "tokens.npy", TOKENS)
    child(environment, LOGITS, str(scratch / "states.npy"), str(scratch / "tokens.npy"), str(source))
    convert(source, scratch / "ours.gguf", to="gguf", type="F32")
    base = np.load(scratch / "states.npy").astype(np.float64)
    layers = [read_layer(source / name) for name in ("2_Dense", "3_Dense") if (source / name).is_dir()]
    with LlamaCpp(scratch / "ours.gguf", n_ctx=64, n_threads=2, embeddings=True) as engine:
        found = engine_states(engine, base.shape[1], is_pooled=bool(layers)).astype(np.float64)
    if layers:
        base = base.mean(0, keepdims=True)
        for matrix in layers:
            base = base @ matrix.T
    base, found = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (base, found))
    return float(f"{(1 - (base * found).sum(-1)).mean():.2g}")


def read_layer(folder: Path) -> np.ndarray:
    """Return the matrix of a dense layer, float64 [out, in]."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")["linear.weight"].astype(np.float64)


def engine_states(engine: Any, width: int, *, is_pooled: bool) -> np.ndarray:
    """Return the engine's states, float32 [tokens, width], or what it makes of them all, [1, width]."""
    lib = engine._lib
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = engine.n_ctx
    params.embeddings, params.pooling_type, params.flash_attn_type = True, -1 if is_pooled else 0, 0
    lib.llama_free(engine._context)
    engine._context = lib.llama_init_from_model(engine._model, params)
    engine._decode(TOKENS, 0, 0)
    if is_pooled:
        lib.llama_get_embeddings_seq.argtypes = (ctypes.c_void_p, ctypes.c_int32)
    get = lib.llama_get_embeddings_seq if is_pooled else lib.llama_get_embeddings
    get.restype = ctypes.POINTER(ctypes.c_float)
    if not is_pooled:
        get.argtypes = (ctypes.c_void_p,)
    pointer = get(engine._context, 0) if is_pooled else get(engine._context)
    return np.ctypeslib.as_array(pointer, shape=(1 if is_pooled else len(TOKENS), width)).copy()


def divergence(source: Path, environment: Path, scratch: Path) -> float:
    """Return the mean KL divergence of the engine on kvant's conversion from transformers, in nats per token."""
    from kvant.recipes.convert.convert import convert
    from kvant.runtime import capi
    from kvant.runtime.llamacpp import LlamaCpp

    capi.FLASH_ATTENTION_ON, capi.TYPE_F16 = 0, 0
    np.save(scratch / "tokens.npy", TOKENS)
    child(environment, LOGITS, str(scratch / "logits.npy"), str(scratch / "tokens.npy"), str(source))
    convert(source, scratch / "ours.gguf", to="gguf", type="F32")
    with LlamaCpp(scratch / "ours.gguf", n_ctx=64, n_threads=2, all_logits=True) as engine:
        found = engine.logits(TOKENS).astype(np.float64)
    base = np.load(scratch / "logits.npy").astype(np.float64)
    p, q = (x - x.max(-1, keepdims=True) for x in (base, found))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float(f"{(np.exp(p) * (p - q)).sum(-1).mean():.2g}")


def child(environment: Path, script: str, *arguments: str) -> None:
    """Run a script in the environment of the oracles."""
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [str(python(environment)), "-c", script, *arguments], capture_output=True, text=True, check=False, env=quiet
    )
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
