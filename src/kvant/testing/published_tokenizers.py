"""Small tokenizers with the published pipeline of each family beyond those of `tiny_tokenizers`, trained on its text.

Everything but the vocabulary is as published: normalizer, pre-tokenizer, post-processor, model flags, names of special
tokens. `upstream` is the class of llama.cpp's converter and the name of the pre-tokenizer that it finds by its hash of
the published vocabulary: what its `set_vocab` is asked with.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from kvant.formats.huggingface.tokenizer.tekken import BYTE_CHARACTERS, OLD_SPECIAL
from kvant.formats.huggingface.tokenizer.words import DEEPSEEK_LLM
from kvant.testing.tiny_tokenizers import GPT4O_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, TEKKEN_PATTERN, TEXT

_META = "\u2581"
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2: dict[str, Any] = {**_BYTES, "use_regex": True}
_BYTES_BACK = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": _META}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ],
}  # fmt: skip
_DIGITS = {"type": "Digits", "individual_digits": True}
_NFC = {"type": "NFC"}
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

CHARSMAP = base64.b64encode(zlib.decompress(base64.b64decode(
    "eNod01dMFUEUxvFvN2JA4cFE3zTxydgIwYKJYhTFLopd7FhQrKCo2PcCl66CHRABK9h7BRv2XKzYG4LGmCioqIj9v27yy+zMljlzzozqSGoqeTSR"
    "6jWQ6jeSPD0kLy/Zl+XyN2W5Mc6901fKbEy/hZTjzUC0KUcU/RDJMVaKGSTFDpPi+kjOICk+QEroISUukpKWScmRUsp8KZf/mXxu9TaVnso/mG8v"
    "I+6M5REHIVkO5q9L24wgmE7N0QotwdRqDR/k7pCKgk0Vuky1pd8G7dEOHeCH/Fqp4LfUifuO6Ax/dMGBNxJhqiu6oxsIWYHohZ5gOQpwN9WPti9Y"
    "mvpjIAaAZSsYQzAYpEBDMQLDQXo0EqMxCqRKYzAe4xCKCZiEiZiCyZiKMIRjGmZgOmZhJuZgNkirIjAPc0GKFYWFWADSr2gswWJQCi3FCiyHwy40"
    "YhEDJ+KQgHgkIREpSMZKpGI1ViEdaViLNViPddiIDcjAJmQhE9nYjBxsQZ5dR2zDVlBSbccu7ESBXUPswW7sk71fqB324xAO4ggO4xiO4gSO4xRO"
    "4gxOowiFOIezuIDzKMZFXMYlXMUVXMc1+1lDQzdoS+DCLdzEHdzGPdzFfZTiIR7gMR7hKZ7gOZ7hJV7gFcpQgXKwJfUab1GVb+id/U6ZofI0QxWl"
    "hj7Qf28/QyU+4SOq8Rlf8QU1+Aa2v77jJ36Ao6Bf+Is//4+/L2cgVGHhKrb0D73To+o="
))).decode()  # fmt: skip
"""A table of normalizations as SentencePiece 0.2.3 compiles it: full-width and circled characters, a ligature, an
accent composed, and white space of every kind to a space."""

QWEN35_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_PATTERN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
BAILING_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
EXAONE_MOE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2_PATTERN = (
    LLAMA3_PATTERN.removesuffix(r"|\s+(?!\S)|\s+")
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)
MINICPM5_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "+")
DEEPSEEK3_PATTERNS = (
    r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)  # fmt: skip


def _split(pattern: str, *, removed: bool = False) -> dict[str, Any]:
    behavior = "Removed" if removed else "Isolated"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": removed}


def _steps(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A family's tokenizer.

    Attributes:
        model_type: Of config.json.
        upstream: Class of the converter, and its name of the pre-tokenizer.
        pre: Pre-tokenizer.
        special: Special tokens, first of the vocabulary, or after it where `last`.
        roles: Entries of tokenizer_config.json that name special tokens, and others.
        around: Special tokens before and after a text, by their names; None: no post-processor.
        model: Flags of the model.
        config: Further entries of config.json.
    """

    model_type: str
    upstream: tuple[str, str]
    pre: Any
    special: tuple[str, ...]
    roles: Mapping[str, Any]
    last: bool = True
    plain: tuple[str, ...] = ()
    around: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    post: Any = None
    normalizer: Any = None
    model: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


_DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
             "pad_token": "<｜end▁of▁sentence｜>", "add_bos_token": True, "add_eos_token": False}  # fmt: skip
_END = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_QWEN = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
_GLM = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
        "<|observation|>")  # fmt: skip
_GLM_ROLES = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_IGNORE = {"ignore_merges": True}

PUBLISHED: Mapping[str, Published] = {
    "qwen35": Published(
        model_type="qwen3_5_text", upstream=("Qwen3_5ForCausalLM", "qwen35"), normalizer=_NFC, post=_BYTES,
        pre=_steps(_split(QWEN35_PATTERN), _BYTES), special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"), roles=_QWEN,
    ),
    "qwen3moe": Published(
        model_type="qwen3_moe", upstream=("Qwen3MoeForCausalLM", "qwen2"), normalizer=_NFC, post=_BYTES,
        pre=_steps(_split(QWEN2_PATTERN), _BYTES), special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"), roles=_QWEN,
    ),
    "gpt-oss": Published(
        model_type="gpt_oss", upstream=("GptOssForCausalLM", "gpt-4o"), post=_GPT2,
        pre=_steps(_split(GPT4O_PATTERN, removed=True), _BYTES),
        special=("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
                 "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>"),
        roles={"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    ),
    "llama4": Published(
        model_type="llama4_text", upstream=("Llama4ForCausalLM", "llama4"),
        pre=_steps(_split(GPT4O_PATTERN), _BYTES),
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|end_of_text|>"},
        around=(("<|begin_of_text|>",), ()), config={"intermediate_size_mlp": 64},
    ),
    "lfm2": Published(
        model_type="lfm2", upstream=("Lfm2ForCausalLM", "lfm2"), pre=_steps(_split(LLAMA3_PATTERN), _BYTES), last=False,
        special=("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|im_start|>", "<|im_end|>"),
        roles={"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
        around=(("<|startoftext|>",), ()), model=_IGNORE,
    ),
    "falcon-h1": Published(
        model_type="falcon_h1", upstream=("FalconH1ForCausalLM", "falcon-h1"), last=False, model=_IGNORE,
        pre=_steps(_split(LLAMA3_PATTERN), _BYTES), special=("<|pad|>", ">>ABSTRACT<<", "<|begin_of_text|>",
                                                             "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
    ),
    "glm4": Published(
        model_type="glm4", upstream=("Glm4ForCausalLM", "glm4"), pre=_steps(_split(LLAMA3_PATTERN), _BYTES),
        special=_GLM, roles=_GLM_ROLES, model=_IGNORE,
    ),
    "glm4moe": Published(
        model_type="glm4_moe", upstream=("Glm4MoeForCausalLM", "glm4"), pre=_steps(_split(LLAMA3_PATTERN), _BYTES),
        special=_GLM, roles=_GLM_ROLES, plain=("<think>", "</think>"), model=_IGNORE,
        config={"eos_token_id": None},
    ),
    "deepseek-llm": Published(
        model_type="deepseek_v2", upstream=("DeepseekV2ForCausalLM", "deepseek-llm"),
        normalizer={"type": "Sequence", "normalizers": []}, post=_GPT2,
        pre=_steps(
            _split("[\r\n]"), _split(DEEPSEEK_LLM[1]), _split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), _split("\\s+$"),
            _split("[一-龥ࠀ-一가-퟿]+"), _DIGITS, _BYTES,
        ),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), roles=_DEEPSEEK,
    ),
    "deepseek-coder": Published(
        model_type="llama", upstream=("LlamaForCausalLM", "deepseek-coder"),
        normalizer={"type": "Sequence", "normalizers": []},
        pre=_steps(
            _split("[\r\n]"), _split("\\s?\\p{L}+"), _split("\\s?\\p{P}+"), _split("[一-龥ࠀ-一가-퟿]+"), _DIGITS, _BYTES,
        ),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), plain=("<|EOT|>",), roles=_DEEPSEEK,
        around=(("<｜begin▁of▁sentence｜>",), ()),
    ),
    "deepseek-v3": Published(
        model_type="deepseek_v3", upstream=("DeepseekV3ForCausalLM", "deepseek-v3"), last=False,
        normalizer={"type": "Sequence", "normalizers": []},
        pre=_steps(*(_split(pattern) for pattern in DEEPSEEK3_PATTERNS), _BYTES),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
        plain=("<｜User｜>", "<｜Assistant｜>"), roles=_DEEPSEEK, around=(("<｜begin▁of▁sentence｜>",), ()),
    ),
    "hunyuan-dense": Published(
        model_type="hunyuan_v1_dense", upstream=("HunYuanDenseV1ForCausalLM", "hunyuan-dense"), post=_BYTES,
        pre=_steps(*(_split(pattern) for pattern in DEEPSEEK3_PATTERNS), _BYTES),
        special=("<｜hy_begin▁of▁sentence｜>", "<｜hy_end▁of▁sentence｜>", "<｜hy_User｜>", "<｜hy_▁pad▁｜>"),
        roles={"bos_token": "<｜hy_begin▁of▁sentence｜>", "eos_token": "<｜hy_end▁of▁sentence｜>",
               "pad_token": "<｜hy_▁pad▁｜>"},
        config={"eod_token_id": 2, "pad_token_id": 0},
    ),
    "cohere2": Published(
        model_type="cohere2", upstream=("Cohere2ForCausalLM", "command-r"), normalizer=_NFC,
        pre=_steps(_DIGITS, _GPT2), last=False,
        special=("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>"),
        plain=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        roles={"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>",
               "unk_token": "<UNK>", "cls_token": "<CLS>", "sep_token": "<SEP>", "mask_token": "<MASK_TOKEN>",
               "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False},
        around=(("<BOS_TOKEN>",), ()), model=_IGNORE,
    ),
    "gpt-neox": Published(
        model_type="olmo", upstream=("OlmoForCausalLM", "olmo"), normalizer=_NFC, pre=_GPT2, last=False,
        special=("<|endoftext|>", "<|padding|>"), roles={**_END, "add_prefix_space": False}, post=_GPT2,
    ),
    "olmo2": Published(
        model_type="olmo2", upstream=("Olmo2ForCausalLM", "dbrx"), pre=_steps(_split(LLAMA3_PATTERN), _BYTES),
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"), post=_GPT2,
        roles={**_END, "pad_token": "<|pad|>"},
    ),
    "exaone4": Published(
        model_type="exaone4", upstream=("Exaone4ForCausalLM", "exaone4"), pre=_GPT2, last=False, post=_GPT2,
        special=("[PAD]", "[BOS]", "[|endofturn|]", "[UNK]"), plain=("[|user|]", "[|assistant|]"),
        roles={"bos_token": "[BOS]", "eos_token": "[|endofturn|]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    ),
    "starcoder2": Published(
        model_type="starcoder2", upstream=("Starcoder2ForCausalLM", "starcoder"), pre=_steps(_DIGITS, _GPT2),
        last=False, post=_GPT2, special=("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"), roles=_END,
    ),
    "seed-oss": Published(
        model_type="seed_oss", upstream=("SeedOssForCausalLM", "seed-coder"), last=False, post=_GPT2,
        pre=_steps(_split(SEED_PATTERN), _BYTES),
        special=("<seed:bos>", "<seed:pad>", "<seed:eos>"), plain=("<seed:think>", "</seed:think>"),
        roles={"bos_token": "<seed:bos>", "eos_token": "<seed:eos>", "pad_token": "<seed:pad>"},
    ),
    "bailingmoe": Published(
        model_type="bailing_moe", upstream=("BailingMoeForCausalLM", "bailingmoe"), normalizer=_NFC, post=_GPT2,
        pre=_steps(_split(BAILING_PATTERN), _BYTES), special=("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]"),
        roles={"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
               "cls_token": "[CLS]", "add_bos_token": False, "add_eos_token": False},
    ),
    "stablelm2": Published(
        model_type="stablelm", upstream=("StableLmForCausalLM", "stablelm2"), normalizer=_NFC, post=_GPT2,
        pre=_steps(_split(QWEN2_PATTERN), _BYTES), special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), roles=_END,
    ),
    "phi2": Published(
        model_type="phi", upstream=("PhiForCausalLM", "phi-2"), pre=_GPT2, special=("<|endoftext|>",), roles=_END,
        post=_GPT2,
    ),
    "gpt2": Published(
        model_type="gpt2", upstream=("GPT2LMHeadModel", "gpt-2"), pre=_GPT2, special=("<|endoftext|>",), roles=_END,
        post=_GPT2,
    ),
    "falcon": Published(
        model_type="falcon", upstream=("FalconForCausalLM", "falcon"), last=False,
        pre=_steps(
            {"type": "Punctuation", "behavior": "Contiguous"}, _GPT2, {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
        special=(">>TITLE<<", ">>ABSTRACT<<", "<|endoftext|>"), roles={"eos_token": "<|endoftext|>"}, post=_GPT2,
    ),
    "tiny-aya": Published(
        model_type="cohere2", upstream=("Cohere2ForCausalLM", "tiny_aya"), normalizer=_NFC, last=False,
        pre=_steps(_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(GPT4O_PATTERN), _BYTES),
        special=("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>"),
        around=(("<BOS_TOKEN>",), ()), plain=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        roles={"bos_token": "<BOS_TOKEN>", "eos_token": "<EOS_TOKEN>", "pad_token": "<PAD>"},
    ),
    "exaone-moe": Published(
        model_type="exaone_moe", upstream=("ExaoneMoEForCausalLM", "exaone-moe"), last=False, normalizer=_NFC,
        pre=_steps(_split(EXAONE_MOE_PATTERN), _BYTES), special=("<|endoftext|>", "<|endofturn|>"), roles=_END,
    ),
    "minicpm5": Published(
        model_type="llama", upstream=("LlamaForCausalLM", "minicpm5"),
        pre=_steps(_split(r"\p{N}{1,3}"), _split(MINICPM5_PATTERN), _BYTES), model=_IGNORE,
        special=("<s>", "</s>", "<|im_end|>"), roles={"bos_token": "<s>", "eos_token": "</s>"}, around=(("<s>",), ()),
    ),
    "bloom": Published(
        model_type="bloom", upstream=("BloomForCausalLM", "bloom"), last=False, post=_GPT2,
        pre=_steps(_split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), _BYTES), special=("<unk>", "<s>", "</s>", "<pad>"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
    "qwen3-embedding": Published(
        model_type="qwen3", upstream=("Qwen3ForCausalLM", "qwen2"), normalizer=_NFC, around=((), ("<|endoftext|>",)),
        pre=_steps(_split(QWEN2_PATTERN), _BYTES), special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>"), roles=_QWEN,
    ),
    "viking": Published(
        model_type="llama", upstream=("LlamaForCausalLM", "viking"), last=False, post=_GPT2,
        special=("<unk>", "<s>", "</s>"),
        pre=_steps(_split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), _DIGITS, _BYTES),
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "jais2": Published(
        model_type="jais2", upstream=("Jais2ForCausalLM", "jais-2"), last=False, post=_GPT2, special=("<|endoftext|>",),
        pre=_steps(_split(JAIS2_PATTERN), _BYTES), roles=_END,
    ),
    "ufakzeka": Published(
        model_type="llama", upstream=("LlamaForCausalLM", "ufakzeka"), last=False, post=_GPT2,
        special=("<|endoftext|>",), roles=_END,
        pre=_steps(_split(QWEN2_PATTERN.removeprefix("(?i:'s|'t|'re|'ve|'m|'ll|'d)|")), _BYTES),
    ),
    "superbpe": Published(
        model_type="olmo2", upstream=("Olmo2ForCausalLM", "superbpe"), last=False, post=_GPT2,
        special=("<|endoftext|>",), pre=_steps(_split(r"\p{N}+"), _split(r"(?=(\d{3})+(?!\d))"), _BYTES), roles=_END,
    ),
    "glm": Published(
        model_type="glm", upstream=("GlmForCausalLM", "chatglm-bpe"), pre=_steps(_split(LLAMA3_PATTERN), _BYTES),
        special=_GLM, roles=_GLM_ROLES,
    ),
    "solar-open": Published(
        model_type="solar_open", upstream=("SolarOpenForCausalLM", "solar-open"), last=False, model={},
        pre=_steps(_split(QWEN2_PATTERN), _BYTES), special=("<|startoftext|>", "<|endoftext|>", "<unk>", "<|pad|>"),
        roles={"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    ),
    "bailingmoe2": Published(
        model_type="bailing_moe_v2", upstream=("BailingMoeV2ForCausalLM", "bailingmoe2"), post=_GPT2,
        pre=_steps(_split(BAILING_PATTERN), _BYTES), special=("<|startoftext|>", "<|endoftext|>", "<|role_end|>"),
        roles={"bos_token": "<|startoftext|>", "eos_token": "<|role_end|>", "pad_token": "<|endoftext|>"},
    ),
    "minimax-m2": Published(
        model_type="minimax_m2", upstream=("MiniMaxM2ForCausalLM", "minimax-m2"), post=_GPT2,
        pre=_steps(_split(GPT4O_PATTERN), _BYTES), special=("]~!b[", "[e~[", "]!d~[", "]!p~["), plain=("<think>",),
        roles={"bos_token": "]~!b[", "eos_token": "[e~[", "unk_token": "]!d~["},
    ),
    "exaone": Published(
        model_type="exaone", upstream=("ExaoneForCausalLM", "exaone"), pre=_steps(_DIGITS, _GPT2), last=False,
        post=_GPT2, special=("[PAD]", "[BOS]", "[EOS]", "[UNK]"),
        roles={"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    ),
    "mpt": Published(
        model_type="mpt", upstream=("MPTForCausalLM", "mpt"), normalizer=_NFC, pre=_GPT2, last=False,
        special=("<|endoftext|>", "<|padding|>"), roles=_END, post=_GPT2,
    ),
    "granite-embedding": Published(
        model_type="modernbert", upstream=("ModernBertModel", "granite-embed-multi-97m"), model=_IGNORE,
        pre=_steps(_split(GPT4O_PATTERN), _BYTES), special=("<|endoftext|>", "<|pad|>", "<|mask|>"),
        around=(("<|endoftext|>",), ("<|endoftext|>",)),
        roles={"cls_token": "<|endoftext|>", "sep_token": "<|endoftext|>", "pad_token": "<|pad|>",
               "mask_token": "<|mask|>"},
    ),
    "granite4": Published(
        model_type="granitemoehybrid", upstream=("GraniteForCausalLM", "dbrx"),
        pre=_steps(_split(LLAMA3_PATTERN), _BYTES),
        special=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|pad|>"), post=_GPT2,
        roles={"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"},
    ),
    "gemma4": Published(
        model_type="gemma4_text", upstream=("Gemma4ForCausalLM", "gemma4"), last=False, around=(("<bos>",), ()),
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": _META},
        pre={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        special=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>", "<channel|>",
                 "<|tool_call>", "<tool_call|>"),
        model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        roles={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
               "mask_token": "<mask>", "extra_special_tokens": ["<|turn>", "<turn|>", "<|channel>", "<channel|>",
                                                                "<|tool_call>", "<tool_call|>"]},
    ),
    "modernbert": Published(
        model_type="modernbert", upstream=("ModernBertModel", "modern-bert"), normalizer=_NFC, pre=_GPT2, last=False,
        special=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), plain=("|||IP_ADDRESS|||",),
        around=(("[CLS]",), ("[SEP]",)),
        roles={"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
               "mask_token": "[MASK]"},
    ),
    "roberta": Published(
        model_type="roberta", upstream=("RobertaModel", "roberta-bpe"), pre=_GPT2, last=False,
        special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        post={"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
              "add_prefix_space": False},
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
               "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"},
        config={"type_vocab_size": 1},
    ),
    "bert": Published(
        model_type="bert", upstream=("BertModel", "bert-bge"), last=False, around=(("[CLS]",), ("[SEP]",)),
        normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                    "lowercase": True},
        pre={"type": "BertPreTokenizer"}, special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        model={"type": "WordPiece", "unk_token": "[UNK]"},
        roles={"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
               "mask_token": "[MASK]", "do_lower_case": True},
        config={"type_vocab_size": 2},
    ),
    "bert-cased": Published(
        model_type="bert", upstream=("BertModel", "bert-bge"), last=False, around=(("[CLS]",), ("[SEP]",)),
        normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": False,
                    "lowercase": False},
        pre={"type": "BertPreTokenizer"}, special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        model={"type": "WordPiece", "unk_token": "[UNK]"},
        roles={"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
               "mask_token": "[MASK]", "do_lower_case": False, "strip_accents": False},
        config={"type_vocab_size": 2},
    ),
    "xlm-roberta": Published(
        model_type="xlm-roberta", upstream=("XLMRobertaModel", "default"), last=False, around=(("<s>",), ("</s>",)),
        normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
        pre=_steps({"type": "WhitespaceSplit"},
                   {"type": "Metaspace", "replacement": _META, "prepend_scheme": "always", "split": True}),
        special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"), model={"type": "Unigram", "unk_id": 3},
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
               "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>", "clean_up_tokenization_spaces": True},
        config={"type_vocab_size": 1},
    ),
}  # fmt: skip


def write_published(kind: str, directory: Path, vocab_size: int = 1000) -> dict[str, Any]:
    """Write the tokenizer files and config.json of a family; return what config.json holds.

    Args:
        kind: A key of `PUBLISHED`.
        directory: Exists.
        vocab_size: Most tokens beside special ones that come last; the text may not be rich enough for as many.
    """
    published = PUBLISHED[kind]
    named = [*published.special, *published.plain]
    first = [] if published.last else named
    document = _trained(published, first, vocab_size)
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {text: number for number, (text, _) in enumerate(vocab)}
    ids = {**vocab, **{text: len(vocab) + i for i, text in enumerate(t for t in named if t not in vocab)}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"] = [
        {"id": ids[text], "content": text, **flags, "special": text in published.special}
        for text in sorted(named, key=ids.__getitem__)
    ]
    document["post_processor"] = _around(published, ids) if published.around else published.post
    roles = {"clean_up_tokenization_spaces": False, **published.roles, "chat_template": _TEMPLATE}
    config = {
        "architectures": [published.upstream[0]], "model_type": published.model_type, "vocab_size": len(ids),
        **published.config,
    }  # fmt: skip
    for name, content in (("tokenizer.json", document), ("tokenizer_config.json", roles), ("config.json", config)):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return config


TEKKEN_SPECIAL = (*OLD_SPECIAL, "[ARGS]", "[CALL_ID]")


def write_tekken(directory: Path, *, n_special: int = 30, n_tokens: int = 900, lists_special: bool = True) -> None:
    """Write a tekken.json as Mistral publishes them, with the text's tokens; more of them than it says to read.

    Args:
        directory: Exists.
        n_special: Special tokens, those that nobody names included.
        n_tokens: Other tokens that it says to read.
        lists_special: Whether it names special tokens, as files since version 7 do.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_tokens + 40, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n\n"), trainer)
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
    made = [text for text in sorted(trained, key=trained.__getitem__) if len(text) > 1]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(byte_of[c] for c in text) for text in made]
    document: dict[str, Any] = {
        "config": {
            "pattern": TEKKEN_PATTERN, "num_vocab_tokens": len(tokens), "default_vocab_size": n_tokens + n_special,
            "default_num_special_tokens": n_special, "version": "v11" if lists_special else "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(data).decode(), "token_str": data.decode(errors="replace")}
            for rank, data in enumerate(tokens)
        ],
    }  # fmt: skip
    if lists_special:
        document["special_tokens"] = [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(TEKKEN_SPECIAL)
        ]
    (directory / "tekken.json").write_text(json.dumps(document), encoding="utf-8")


def _trained(published: Published, first: list[str], vocab_size: int) -> dict[str, Any]:
    """Return tokenizer.json with a vocabulary of the text."""
    model: dict[str, Any] = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": {}, "merges": [],
    }  # fmt: skip
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": published.normalizer,
        "pre_tokenizer": published.pre, "post_processor": None, "decoder": {**_BYTES, "use_regex": True},
        "model": model,
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(document))
    if published.model.get("type"):
        return {**document, "decoder": None, "model": _of_words(published, first)}
    if published.model.get("byte_fallback"):
        return {**document, "decoder": _BYTES_BACK, "model": {**model, **published.model, **_by_characters(first)}}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.split("\n\n"), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return {**document, "model": {**trained, **published.model}}


def _of_words(published: Published, first: list[str]) -> dict[str, Any]:
    """Make WordPiece or Unigram of merges of words as the family cuts them: their own trainers differ by run."""
    is_wordpiece = published.model["type"] == "WordPiece"
    frame = {
        "version": "1.0", "added_tokens": [], "normalizer": published.normalizer, "pre_tokenizer": published.pre,
        "model": json.loads(Tokenizer(models.BPE()).to_str())["model"],
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(frame))
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    tokens = [*first, *sorted(set(trained) - set(first), key=lambda text: (len(text), text))]
    if is_wordpiece:
        tokens += [f"##{text}" for text in tokens[len(first) :]]
        return {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100, **published.model,
                "vocab": {text: number for number, text in enumerate(tokens)}}  # fmt: skip
    scores = [0.0 if text in first else -12.0 + len(text) / 2 - number / 1024 for number, text in enumerate(tokens)]
    return {
        **published.model,
        "vocab": [list(pair) for pair in zip(tokens, scores, strict=True)],
        "byte_fallback": False,
    }


def _by_characters(first: list[str]) -> dict[str, Any]:
    """Train merges of characters, spaces marked, over whole lines: tokens may hold several words."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=1000, show_progress=False)
    tokenizer.train_from_iterator([line.replace(" ", _META) for line in TEXT.split("\n") if line], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    head = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"]
    tokens = [*head, *sorted(trained["vocab"], key=trained["vocab"].__getitem__)]
    merges = [["\n", "\n"], *(merge if isinstance(merge, list) else merge.split(" ") for merge in trained["merges"])]
    return {"vocab": {text: number for number, text in enumerate(tokens)}, "merges": merges}


def _around(published: Published, ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the post-processor that puts special tokens around a text, and around the first of two."""
    before, after = published.around or ((), ())

    def template(letter: str, segment: int) -> list[dict[str, Any]]:
        sides = [[{"SpecialToken": {"id": text, "type_id": segment}} for text in side] for side in (before, after)]
        return [*sides[0], {"Sequence": {"id": letter, "type_id": segment}}, *sides[1]]

    return {
        "type": "TemplateProcessing", "single": template("A", 0), "pair": template("A", 0) + template("B", 1),
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in sorted({*before, *after})},
    }  # fmt: skip
