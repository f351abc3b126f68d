"""Decoders as onnxruntime-genai's model builder exports them, made from a tiny model with onnx alone.

The node and tensor names, operators and attributes are those of onnxruntime-genai 0.18 (`-p fp32 -e cpu`);
tests/e2e/test_onnx_decoder.py runs the builder itself.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvant.formats.safetensors.reader import read_safetensors
from kvant.kernels import decode
from kvant.tensors import n_rows, row_length

CONTRIB = {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"}
CONTEXT = 2048


@dataclass
class Drawing:
    """A graph as it is being drawn."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return the length of a head."""
        return int(self.config["hidden_size"] // self.config["num_attention_heads"])

    def add(self, kind: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        """Draw a node."""
        from onnx import helper

        domain = "com.microsoft" if kind in CONTRIB else ""
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def product(self, x: str, name: str, rows: np.ndarray) -> str:
        """Draw a product with a matrix, and return what its output is called."""
        tensor = name.strip("/").replace("/", ".") + ".weight"
        self.arrays[tensor] = rows.T
        self.add("MatMul", [x, tensor], [f"{name}/output_0"], name)
        return f"{name}/output_0"

    def norm(self, x: list[str], weight: str, outputs: list[str], name: str) -> None:
        """Draw a norm; of two inputs the sum is normed."""
        self.arrays[weight] = self.weights[weight]
        eps = self.config["rms_norm_eps"]
        if len(x) == 1:
            self.add("SimplifiedLayerNormalization", [*x, weight], outputs, name, epsilon=eps, axis=-1, stash_type=1)
        else:
            self.add("SkipSimplifiedLayerNormalization", [*x, weight], outputs, name, epsilon=eps)

    def layer(self, i: int, hidden: list[str]) -> list[str]:
        """Draw a layer; what comes in and goes out are the residual and what is still to be added to it."""
        own, at = f"model.layers.{i}", f"/model/layers.{i}"
        part = {k.removeprefix(own + "."): v for k, v in self.weights.items() if k.startswith(own + ".")}
        sums = [f"x{i}"] if len(hidden) == 1 else [f"x{i}", "", "", f"r{i}"]
        self.norm(hidden, f"{own}.input_layernorm.weight", sums, f"{at}/input_layernorm")
        residual = hidden[0] if len(hidden) == 1 else f"r{i}"
        fused = "self_attn.qkv_proj.weight" in part  # Phi-3, which the builder splits where it has to
        if fused:
            part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"] = np.split(part["mlp.gate_up_proj.weight"], 2)
        names = ["qkv"] if fused else list("qkv")
        qkv = np.concatenate([part[f"self_attn.{n}_proj.weight"] for n in names])
        packed = self.product(f"x{i}", f"{at}/attn/qkv_proj/MatMul", qkv)
        past, present = ([f"{p}.{i}.{n}" for n in ("key", "value")] for p in ("past_key_values", "present"))
        self.add(
            "GroupQueryAttention", [packed, "", "", *past, "lengths", "total", "cos_cache", "sin_cache"],
            [f"a{i}", *present], f"{at}/attn/GroupQueryAttention", do_rotary=1,
            num_heads=self.config["num_attention_heads"], kv_num_heads=self.config["num_key_value_heads"],
        )  # fmt: skip
        o = self.product(f"a{i}", f"{at}/attn/o_proj/MatMul", part["self_attn.o_proj.weight"])
        sums = [f"m{i}", "", "", f"s{i}"]
        self.norm([residual, o], f"{own}.post_attention_layernorm.weight", sums, f"{at}/post_attention_layernorm")
        gate = self.product(f"m{i}", f"{at}/mlp/gate_proj/MatMul", part["mlp.gate_proj.weight"])
        up = self.product(f"m{i}", f"{at}/mlp/up_proj/MatMul", part["mlp.up_proj.weight"])
        self.add("Sigmoid", [gate], [f"g{i}"], f"{at}/mlp/act_fn/Sigmoid")
        self.add("Mul", [gate, f"g{i}"], [f"b{i}"], f"{at}/mlp/act_fn/Mul")
        self.add("Mul", [f"b{i}", up], [f"c{i}"], f"{at}/mlp/Mul")
        return [f"s{i}", self.product(f"c{i}", f"{at}/mlp/down_proj/MatMul", part["mlp.down_proj.weight"])]


def draw(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Drawing:
    """Draw a llama; its embedding is tied unless there is a head of its own."""
    from onnx import TensorProto

    made = Drawing(config, weights)
    angles = np.outer(np.arange(CONTEXT), config["rope_theta"] ** (-np.arange(0, made.size, 2) / made.size))
    embedding, head = weights["model.embed_tokens.weight"], weights.get("lm_head.weight")
    made.arrays = {
        "lm_head.MatMul.weight": (embedding if head is None else head).T, "one": np.array([1], np.int64),
        "index": np.array(1, np.int64), "cos_cache": np.cos(angles).astype(np.float32),
        "sin_cache": np.sin(angles).astype(np.float32),
    }  # fmt: skip
    made.add("ReduceSum", ["attention_mask", "one"], ["sum"], "/sum", keepdims=0)
    made.add("Sub", ["sum", "one"], ["last"], "/sub")
    made.add("Cast", ["last"], ["lengths"], "/cast", to=TensorProto.INT32)
    made.add("Shape", ["attention_mask"], ["shape"], "/shape")
    made.add("Gather", ["shape", "index"], ["total64"], "/total")
    made.add("Cast", ["total64"], ["total"], "/cast2", to=TensorProto.INT32)
    table = "table" if head is None else "model.embed_tokens.weight"
    if head is None:
        made.add("Transpose", ["lm_head.MatMul.weight"], [table], "/model/embed_tokens/Transpose", perm=[1, 0])
    else:
        made.arrays[table] = embedding
    made.add("Gather", [table, "input_ids"], ["h"], "/model/embed_tokens/Gather")
    hidden = ["h"]
    for i in range(config["num_hidden_layers"]):
        hidden = made.layer(i, hidden)
    made.norm(hidden, "model.norm.weight", ["final"], "/model/final_norm_layernorm")
    made.add("MatMul", ["final", "lm_head.MatMul.weight"], ["logits"], "/lm_head/MatMul")
    return made


def _floats(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as float32, by name."""
    return {
        name: decode(t.read_bytes(0, n_rows(t)), t.block_type, row_length(t)).reshape(t.shape)
        for name, t in read_safetensors(path).items()
    }


def export_tiny(source: Path, out: Path) -> Path:
    """Write a tiny llama directory as a directory of onnxruntime-genai."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    config = json.loads((source / "config.json").read_text())
    made = draw(config, _floats(source / "model.safetensors"))
    kv, vocabulary = config["num_key_value_heads"], config["vocab_size"]
    value, floats, integers = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    caches = [f"{i}.{n}" for i in range(config["num_hidden_layers"]) for n in ("key", "value")]
    graph = helper.make_graph(
        made.nodes, "main_graph",
        [value("input_ids", integers, ["b", "s"]), value("attention_mask", integers, ["b", "t"])]
        + [value(f"past_key_values.{c}", floats, ["b", kv, "p", made.size]) for c in caches],
        [value("logits", floats, ["b", "s", vocabulary])]
        + [value(f"present.{c}", floats, ["b", kv, "t", made.size]) for c in caches],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in made.arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    out.mkdir()
    onnx.save(model, str(out / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    decoder = {
        "filename": "model.onnx", "head_size": made.size, "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"], "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": kv,
    }  # fmt: skip
    document = {"model": {"type": "llama", "vocab_size": vocabulary, "context_length": CONTEXT, "decoder": decoder}}
    (out / "genai_config.json").write_text(json.dumps(document))
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return out
