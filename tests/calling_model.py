"""A model that calls tools, made by hand: real weights that a real engine runs, with one answer to every conversation.

Its embeddings are random signs, its attention and feed-forward add nothing, and its head turns the last token into the
next one by a short table. The chat template ends its prompt in a token that says what is due: the call of a tool that
is offered, or, once its result is there or without tools, the closing sentence. Each is one token of the vocabulary.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from kvant.recipes.convert.convert import convert
from kvant.testing.tiny_models import write_safetensors
from served import TOOLS_TEMPLATE

HIDDEN, GAIN = 256, 0.25
"""The right token's logit is their product, the others' are noise of a sixteenth of it."""

END, DUE = "<|im_end|>", "<|answer|>"
_GENERATION = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"

THINKING_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


def write_calling_model(path: Path, calls: dict[str, dict[str, Any]], answer: str, *, context: int = 65536) -> Path:
    """Write the model as GGUF.

    Args:
        path: Where to.
        calls: Arguments by the name of the tool; the first one that is offered is called.
        answer: What is said when a tool's result is there.
        context: Tokens it can read.
    """
    table = {f"<|call {name}|>": _call(name, arguments) for name, arguments in calls.items()} | {DUE: answer}
    return _write(path, table, [*table], _template([*calls]), context)


def write_thinking_model(path: Path, thought: str, answer: str, *, context: int = 2048) -> Path:
    """Write, as GGUF, a model that thinks before its answer, unless its prompt ends in the empty block of thinking."""
    table = {"Ċ": f"<think>\n{thought}\n</think>\n\n{answer}", "ĊĊ": answer}  # byte-level for one and two line ends
    return _write(path, table, [], THINKING_TEMPLATE, context)


def _write(path: Path, table: dict[str, str], due: list[str], template: str, context: int) -> Path:
    """Write a model that answers a token with a text; `due` are tokens that only the template can write."""
    source = path.with_suffix("")
    source.mkdir()
    tokenizer = _tokenizer(due, [*table.values()])
    tokenizer.save(str(source / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": size,
        "tie_word_embeddings": False, "eos_token_id": tokenizer.token_to_id(END), "torch_dtype": "bfloat16",
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    write_safetensors(source / "model.safetensors", _weights(tokenizer, table), "BF16")
    convert(source, path, to="gguf")
    return path


def _call(name: str, arguments: dict[str, Any]) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def _template(names: list[str]) -> str:
    """Return the template whose prompt ends in what is due."""
    due = "".join(
        f"{{%- if tool.function.name == '{name}' and not due.call %}}"
        f"{{%- set due.call = '<|call {name}|>' %}}{{%- endif %}}"
        for name in names
    )
    turn = (
        "{%- if add_generation_prompt %}{%- set due = namespace(call='') %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if tools and messages[-1].role != 'tool' %}{%- for tool in tools %}" + due + "{%- endfor %}{%- endif %}"
        "{{- due.call or '" + DUE + "' }}{%- endif %}"
    )
    assert _GENERATION in TOOLS_TEMPLATE
    return TOOLS_TEMPLATE.replace(_GENERATION, turn)


def _tokenizer(due: list[str], texts: list[str]) -> Tokenizer:
    """Return a byte-level tokenizer in which what is due, and each text, is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, show_progress=False)
    docs = Path(__file__).parents[1] / "docs"
    tokenizer.train_from_iterator([page.read_text() for page in sorted(docs.rglob("*.md"))], trainer)
    specials = ["<|endoftext|>", "<|im_start|>", END, *due]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    return tokenizer


def _weights(tokenizer: Tokenizer, table: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the tensors: a token is followed by its text, and that by the end."""
    size = tokenizer.get_vocab_size()
    signs: np.ndarray = np.random.default_rng(1).choice([-1.0, 1.0], (size, HIDDEN)).astype(np.float32)
    head: np.ndarray = np.zeros((size, HIDDEN), np.float32)
    for due, text in table.items():
        head[tokenizer.token_to_id(text)] += GAIN * signs[tokenizer.token_to_id(due)]
        head[tokenizer.token_to_id(END)] += GAIN * signs[tokenizer.token_to_id(text)]
    layer, kv = "model.layers.0.", HIDDEN // 4
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, HIDDEN),
    }  # fmt: skip
    found: dict[str, np.ndarray] = {
        f"{layer}{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()
    }
    for name in (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"):
        found[f"{name}.weight"] = np.ones(HIDDEN, np.float32)
    return found | {"model.embed_tokens.weight": signs, "lm_head.weight": head}
