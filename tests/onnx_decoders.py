"""Decoders as onnxruntime-genai's model builder exports them, made from a tiny model with onnx alone.

The node and tensor names, operators and attributes are those of onnxruntime-genai 0.18 (`-p fp32 -e cpu`); a test
marked slow compares with the builder itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def export_tiny(source: Path, out: Path) -> Path:
    """Write a tiny llama directory (tied embedding) as a directory of onnxruntime-genai."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = ("input_layernorm.weight", "post_attention_layernorm.weight")
    config = json.loads((source / "config.json").read_text())
    weights = {name: a.astype(np.float32) for name, a in load_file(source / "model.safetensors").items()}
    layers, heads, kv = (config[k] for k in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    size = width // heads
    arrays: dict[str, np.ndarray] = {"lm_head.MatMul.weight": weights["model.embed_tokens.weight"].T}
    angles = np.outer(np.arange(2048), config["rope_theta"] ** (-np.arange(0, size, 2) / size))
    arrays |= {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}
    arrays |= {"one": np.array([1], np.int64), "index": np.array(1, np.int64)}
    nodes: list[Any] = []

    def add(kind: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        domain = "com.microsoft" if kind in CONTRIB else ""
        nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def product(x: str, name: str, rows: np.ndarray) -> str:
        tensor = name.strip("/").replace("/", ".") + ".weight"
        arrays[tensor] = np.ascontiguousarray(rows.T)
        add("MatMul", [x, tensor], [f"{name}/output_0"], name)
        return f"{name}/output_0"

    add("ReduceSum", ["attention_mask", "one"], ["sum"], "/sum", keepdims=0)
    add("Sub", ["sum", "one"], ["last"], "/sub")
    add("Cast", ["last"], ["lengths"], "/cast", to=TensorProto.INT32)
    add("Shape", ["attention_mask"], ["shape"], "/shape")
    add("Gather", ["shape", "index"], ["total64"], "/total")
    add("Cast", ["total64"], ["total"], "/cast2", to=TensorProto.INT32)
    add("Transpose", ["lm_head.MatMul.weight"], ["table"], "/model/embed_tokens/Transpose", perm=[1, 0])
    add("Gather", ["table", "input_ids"], ["h"], "/model/embed_tokens/Gather")
    norm, hidden, residual = "SimplifiedLayerNormalization", ["h"], "h"
    for i in range(layers):
        own, at = f"model.layers.{i}", f"/model/layers.{i}"
        part = {k.removeprefix(own + "."): v for k, v in weights.items() if k.startswith(own + ".")}
        arrays[f"{own}.in"], arrays[f"{own}.post"] = (part[name] for name in names)
            part["input_layernorm.weight"],
            part["post_attention_layernorm.weight"],
        )
        outputs = [f"x{i}"] if i == 0 else [f"x{i}", "", "", f"r{i}"]
        add(norm, [*hidden, f"{own}.in"], outputs, f"{at}/norm", epsilon=config["rms_norm_eps"], **STASH[norm])
        residual = residual if i == 0 else f"r{i}"
        qkv = np.concatenate([part[f"self_attn.{n}_proj.weight"] for n in "qkv"])
        packed = product(f"x{i}", f"{at}/attn/qkv_proj/MatMul", qkv)
        past, present = ([f"{p}.{i}.{n}" for n in ("key", "value")] for p in ("past_key_values", "present"))
        add(
            "GroupQueryAttention", [packed, "", "", *past, "lengths", "total", "cos_cache", "sin_cache"],
            [f"a{i}", *present], f"{at}/attn/GroupQueryAttention", num_heads=heads, kv_num_heads=kv, do_rotary=1,
        )  # fmt: skip
        o = product(f"a{i}", f"{at}/attn/o_proj/MatMul", part["self_attn.o_proj.weight"])
        norm, eps = "SkipSimplifiedLayerNormalization", config["rms_norm_eps"]
        add(
            norm, [residual, o, f"{own}.post"], [f"m{i}", "", "", f"s{i}"], f"{at}/post", epsilon=config["rms_norm_eps"]
        )
        gate = product(f"m{i}", f"{at}/mlp/gate_proj/MatMul", part["mlp.gate_proj.weight"])
        up = product(f"m{i}", f"{at}/mlp/up_proj/MatMul", part["mlp.up_proj.weight"])
        add("Sigmoid", [gate], [f"g{i}"], f"{at}/mlp/act_fn/Sigmoid")
        add("Mul", [gate, f"g{i}"], [f"b{i}"], f"{at}/mlp/act_fn/Mul")
        add("Mul", [f"b{i}", up], [f"c{i}"], f"{at}/mlp/Mul")
        down = product(f"c{i}", f"{at}/mlp/down_proj/MatMul", part["mlp.down_proj.weight"])
        hidden, residual = [f"s{i}", down], f"s{i}"
    arrays["model.norm"] = weights["model.norm.weight"]
    add(norm, [*hidden, "model.norm"], ["final"], "/model/final", epsilon=config["rms_norm_eps"])
    add("MatMul", ["final", "lm_head.MatMul.weight"], ["logits"], "/lm_head/MatMul")
    value, floats, integers = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    caches = [f"{i}.{n}" for i in range(layers) for n in ("key", "value")]
    graph = helper.make_graph(
        nodes, "main_graph",
        [value("input_ids", integers, ["b", "s"]), value("attention_mask", integers, ["b", "t"])]
        + [value(f"past_key_values.{c}", floats, ["b", kv, "p", size]) for c in caches],
        [value("logits", floats, ["b", "s", vocabulary])]
        + [value(f"present.{c}", floats, ["b", kv, "t", size]) for c in caches],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    out.mkdir()
    onnx.save(model, str(out / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    decoder = {
        "filename": "model.onnx", "head_size": size, "hidden_size": width, "num_attention_heads": heads,
        "num_hidden_layers": layers, "num_key_value_heads": kv,
    }  # fmt: skip
    document = {"model": {"type": "llama", "vocab_size": vocabulary, "context_length": 2048, "decoder": decoder}}
    (out / "genai_config.json").write_text(json.dumps(document))
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return out


CONTRIB = {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"}
STASH: dict[str, dict[str, int]] = {"SimplifiedLayerNormalization": {"axis": -1, "stash_type": 1}}
STASH["SkipSimplifiedLayerNormalization"] = {}
