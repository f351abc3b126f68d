"""Small tokenizers with the published pipeline of each family, trained in well under a second on the text below.

Everything but the vocabulary is as published: normalizer, pre-tokenizer, post-processor, decoder, model flags, the
special tokens' names and flags, and for SentencePiece-style tokenizers the merges as transformers derives them from a
SentencePiece model (every split of a piece into two pieces). Written with the `tokenizers` library alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

TEXT = """
The quick brown fox jumps over the lazy dog. It's 3 o'clock; they've 12 apples, 345 pears and 67890 plums.
"You'll see," he SAID, "we'd better go — I'M LATE!" Whether 'tis nobler in the mind to suffer the slings and arrows of
outrageous fortune, or to take arms against a sea of troubles, and by opposing end them.
def encode(text: str, *, limit: int = 1024) -> list[int]:
    # four spaces, then a tab
\tif text is None or len(text) > limit:
        raise ValueError(f"text of {len(text)} characters is over {limit}")
    return [ord(c) for c in text]

for (int i = 0; i < 100; ++i) { total += values[i] * 2; }  // a loop
SELECT name, count(*) FROM people WHERE age >= 21 GROUP BY name ORDER BY 2 DESC;
Das ist ein Straßenfest in München; die Übergröße paßt. Où est la bibliothèque? El niño comió mañana. Ça va très bien.
Привет, мир! Как дела сегодня? Всё хорошо, спасибо. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم.
你好，世界。今天天气很好，我们去公园散步吧。日本語のテキストもあります。東京は大きな都市です。
안녕하세요 세계. 한국어 문장입니다.
नमस्ते दुनिया। สวัสดีชาวโลก 🙂🙃 👍🏽 👩‍👩‍👧 🇩🇪 ✅ 1314151 ½ ² ① 3.14159 1,000,000
{"name": "value", "list": [1, 2, 3], "nested": {"a": null, "b": true}}
https://example.org/path?query=1&other=two#part user@example.org C:\\\\Windows\\\\System32 ~/bin $HOME
"""

GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {**_BYTE_LEVEL, "use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_META = "\u2581"


def _split(pattern: str, *, inverted: bool = False) -> dict[str, Any]:
    behavior = "Removed" if inverted else "Isolated"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": inverted}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _bos_first(bos: str) -> dict[str, Any]:
    """The post-processor that puts BOS before each text."""
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    second = {"SpecialToken": {"id": bos, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [start, a],
        "pair": [start, a, second, b],
        "special_tokens": {bos: {"id": bos, "ids": [None], "tokens": [bos]}},
    }


_CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

BYTE_LEVEL: dict[str, dict[str, Any]] = {
    "smollm": {
        "pre": _sequence(_DIGITS, _BYTE_LEVEL),
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"],
        "config": {
            "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>", "chat_template": _CHATML, "clean_up_tokenization_spaces": False,
        },
    },
    "llama3": {
        "pre": _sequence(_split(LLAMA3_PATTERN), _BYTES_ONLY),
        "special_last": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                         "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
        "post": {"type": "Sequence", "processors": [_BYTE_LEVEL, "bos"]},
        "ignore_merges": True,
        "config": {
            "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": _CHATML,
            "clean_up_tokenization_spaces": True,
        },
    },
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre": _sequence(_split(QWEN2_PATTERN), _BYTES_ONLY),
        "post": _BYTES_ONLY,
        "special_last": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "plain_last": ["<tool_call>", "</tool_call>"],
        "config": {
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False,
            "add_prefix_space": False, "chat_template": _CHATML, "clean_up_tokenization_spaces": False,
        },
    },
    "phi4-mini": {
        "pre": _sequence(_split(GPT4O_PATTERN, inverted=True), _BYTES_ONLY),
        "post": _BYTE_LEVEL,
        "special_last": ["<|endoftext|>", "<|endofprompt|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "config": {
            "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "add_bos_token": False, "add_eos_token": False,
            "tokenizer_class": "GPT2Tokenizer", "chat_template": _CHATML, "clean_up_tokenization_spaces": False,
        },
    },
    "granite": {
        "pre": _sequence(_DIGITS, _BYTE_LEVEL),
        "post": _BYTE_LEVEL,
        "special": ["<|end_of_text|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<reponame>"],
        "special_last": ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
        "config": {
            "bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "unk_token": "<|end_of_text|>",
            "pad_token": "<|end_of_text|>", "add_bos_token": False, "add_prefix_space": False,
            "chat_template": _CHATML, "clean_up_tokenization_spaces": True,
        },
    },
    "mistral-tekken": {
        "pre": _sequence(_split(TEKKEN_PATTERN), _BYTES_ONLY),
        "post": "bos",
        "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"],
        "ignore_merges": True,
        "config": {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
            "chat_template": _CHATML, "clean_up_tokenization_spaces": False,
        },
    },
}  # fmt: skip

_LLAMA2_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _META},
        {"type": "Replace", "pattern": {"String": " "}, "content": _META},
    ],
}
_REPLACE_META = {"type": "Replace", "pattern": {"String": _META}, "content": " "}
_BYTES_BACK = [_REPLACE_META, {"type": "ByteFallback"}, {"type": "Fuse"}]
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama2-spm": {
        "normalizer": _LLAMA2_NORMALIZER,
        "post": "bos",
        "decoder": [*_BYTES_BACK, _STRIP],
        "special": ["<unk>", "<s>", "</s>"],
        "config": {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "add_bos_token": True,
            "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "chat_template": _CHATML,
        },
    },
    "mistral-spm": {
        "pre": {"type": "Metaspace", "replacement": _META, "prepend_scheme": "first", "split": False},
        "post": "bos",
        "decoder": [*_BYTES_BACK, _STRIP],
        "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "config": {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "add_bos_token": True,
            "add_eos_token": False, "add_prefix_space": True, "tokenizer_class": "LlamaTokenizer",
            "chat_template": _CHATML,
        },
    },
    "phi3": {
        "normalizer": _LLAMA2_NORMALIZER,
        "decoder": [*_BYTES_BACK, _STRIP],
        "special": ["<unk>", "<s>", "</s>"],
        "special_last": ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        "rstrip": ["</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        "config": {
            "bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>",
            "add_bos_token": False, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer",
            "chat_template": _CHATML,
        },
    },
    "gemma3": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _META},
        "pre": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post": "bos",
        "decoder": _BYTES_BACK,
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"],
        "plain": ["\n", "\n\n", _META * 2, _META * 4, "<table>"],
        "config": {
            "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
            "add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer",
            "chat_template": _CHATML,
        },
    },
}  # fmt: skip

KINDS = (*BYTE_LEVEL, *SENTENCEPIECE)


def write_tokenizer(kind: str, directory: Path, vocab_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of a family into a directory.

    Args:
        kind: One of KINDS.
        directory: Exists.
        vocab_size: Most tokens in all, special ones included; the text may not be rich enough for as many.
    """
    recipe = BYTE_LEVEL.get(kind) or SENTENCEPIECE[kind]
    build = _byte_level_model if kind in BYTE_LEVEL else _sentencepiece_model
    model, tail = build(recipe, vocab_size)
    vocab = model["vocab"]
    plain = [*recipe.get("plain", []), *recipe.get("plain_last", [])]
    names = [*recipe.get("special", []), *recipe.get("plain", []), *tail]
    ids = {**vocab, **{text: len(vocab) + i for i, text in enumerate(tail)}}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(
            (_added(text, ids[text], text not in plain, text in recipe.get("rstrip", [])) for text in names),
            key=lambda token: int(token["id"]),
        ),
        "normalizer": recipe.get("normalizer"),
        "pre_tokenizer": recipe.get("pre"),
        "post_processor": _post_processor(recipe, ids),
        "decoder": {"type": "Sequence", "decoders": recipe["decoder"]} if "decoder" in recipe else _BYTE_LEVEL,
        "model": model,
    }
    config = {"model_max_length": 2048, **recipe["config"]}
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def _added(text: str, number: int, special: bool, rstrip: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False}
    return {"id": number, "content": text, **flags, "special": special}


def _post_processor(recipe: dict[str, Any], ids: dict[str, int]) -> dict[str, Any] | None:
    bos = recipe["config"]["bos_token"]

    def filled(step: Any) -> Any:
        if step != "bos":
            return step
        template = _bos_first(bos)
        template["special_tokens"][bos]["ids"] = [ids[bos]]
        return template

    post: Any = recipe.get("post")
    if isinstance(post, dict) and post["type"] == "Sequence":
        return {"type": "Sequence", "processors": [filled(step) for step in post["processors"]]}
    return None if post is None else dict(filled(post))


def _byte_level_model(recipe: dict[str, Any], vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    tail = [*recipe.get("special_last", []), *recipe.get("plain_last", [])]
    tokenizer = Tokenizer(models.BPE())
    steps = recipe["pre"]["pretokenizers"]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_build_step(step) for step in steps])
    if recipe.get("normalizer"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tail),
        special_tokens=recipe.get("special", []),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.split("\n\n"), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    model = {**_BPE, "ignore_merges": recipe.get("ignore_merges", False), "vocab": trained["vocab"]}
    return {**model, "merges": trained["merges"]}, tail


_BPE: dict[str, Any] = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip


def _build_step(step: dict[str, Any]) -> Any:
    if step["type"] == "Digits":
        return pre_tokenizers.Digits(individual_digits=step["individual_digits"])
    if step["type"] == "ByteLevel":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"])
    return pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), step["behavior"].lower(), step["invert"])


def _sentencepiece_model(recipe: dict[str, Any], vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    """Train on words that begin with the mark, then lay the vocabulary out as SentencePiece does.

    Specials, 256 byte tokens, merged pieces in the order of their scores, single characters.
    """
    tail = recipe.get("special_last", [])
    head = [*recipe["special"], *recipe.get("plain", []), *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_META)
    room = vocab_size - len(head) - len(tail)
    trainer = trainers.BpeTrainer(vocab_size=room, limit_alphabet=room // 2, show_progress=False)
    tokenizer.train_from_iterator([line for line in TEXT.split("\n") if line], trainer)
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = [text for text in sorted(trained, key=trained.__getitem__) if text not in head]
    merged, single = [p for p in pieces if len(p) > 1], [p for p in pieces if len(p) == 1]
    vocab = {text: number for number, text in enumerate([*head, *merged, *single])}
    model = {**_BPE, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab}
    runs = [text for text in recipe.get("plain", []) if len(text) > 1]
    return {**model, "merges": list(_all_splits([*runs, *merged], vocab))}, tail


def _all_splits(merged: Iterable[str], vocab: dict[str, int]) -> Iterable[list[str]]:
    """Yield merges as transformers derives them from SentencePiece: by piece, then by the ids of the two parts."""
    for piece in merged:
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        yield from (list(pair) for pair in sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]])))
