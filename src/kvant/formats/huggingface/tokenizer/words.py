r"""The engine's pre-tokenizers: what each name in `tokenizer.ggml.pre` cuts text into, in published spelling.

Rows of equal patterns differ in what the engine does beside cutting, or only in name: then `families` says which models
upstream's converter gives that name to, so that a file says what upstream's would.

Source: llama-vocab.cpp `llm_tokenizer_bpe` (which regular expressions a name stands for) and `load` (which names also
take a word that is a token whole, `ignore_merges`); conversion/base.py `get_vocab_base_pre` (which model has which
name); published tokenizer.json files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvant.errors import UnsupportedModelError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD_HEAD = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_WORD_HEAD}\p{{L}}+"
LLAMA3 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"
QWEN2 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{_TAIL}"
QWEN35 = (
    rf"{CONTRACTIONS}|{_WORD_HEAD}[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_WORD_HEAD}{_UPPER}*{_LOWER}+|{_WORD_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}{_SLASH_TAIL}"
_CASED = rf"{_WORD_HEAD}{_UPPER}*{_LOWER}+{CONTRACTIONS}?|{_WORD_HEAD}{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
GPT4O = rf"{_CASED}|\p{{N}}{{1,3}}{_SLASH_TAIL}"
_ASCII_THEN_LETTERS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
DEEPSEEK3_WORDS = (
    rf"{_ASCII_THEN_LETTERS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK_AND_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
CJK_AND_HANGUL = "[一-龥\u0800-一가-\ud7ff]+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
PUNCTUATION = r"\p{P}$+<=>^|~`"
"""What `tokenizers` takes for punctuation, as members of a character class: ASCII's symbols beside category P."""

_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_WIDE_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
DEEPSEEK_LLM = (
    r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", rf"\s?[{_WIDE_PUNCTUATION}]+", r"\s+$", CJK_AND_HANGUL, DIGIT,
)  # fmt: skip
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_HANGUL, DIGIT)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One way to cut text into words.

    Attributes:
        name: The engine's name for it, `tokenizer.ggml.pre`.
        patterns: Regular expressions applied one after the other, each to the pieces of the one before.
        ignore_merges: Whether the engine takes a word that is in the vocabulary whole, without merging.
        adds_bos: Whether the engine starts a text with BOS unless the file says otherwise.
        adds_sep: Whether the engine puts a separator between two texts unless the file says otherwise.
        cleans_spaces: Whether the engine drops spaces before punctuation when it turns tokens into text.
        caveat: Where the engine's own expression cuts otherwise, in a sentence; empty if it does not.
        normalizer: Normalizer that published tokenizers have beside it; the engine itself has none.
        families: Model types that upstream gives this name to, where another row cuts alike; empty: any.
        example: A published model that has it.
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    adds_sep: bool = False
    cleans_spaces: bool = False
    caveat: str = ""
    normalizer: str | None = None
    families: frozenset[str] = frozenset()
    example: str

    def acts_like(self, other: "PreTokenizer") -> bool:
        """Whether texts get the same tokens by either."""
        return (self.patterns, self.ignore_merges) == (other.patterns, other.ignore_merges)


_BEYOND_ASCII = (
    "llama.cpp's {} cuts words with combining marks or with case beyond ASCII otherwise than tokenizer.json: such "
    "words may get other tokens."
)

_ROWS: Sequence[PreTokenizer] = (
    PreTokenizer(name="gpt-2", patterns=(GPT2,), cleans_spaces=True, example="GPT-2, Phi-2, OLMo"),
    PreTokenizer(name="smollm", patterns=(DIGIT, GPT2), example="SmolLM2"),
    PreTokenizer(name="refact", patterns=(DIGIT, GPT2), cleans_spaces=True, example="Granite 3, StarCoder2"),
    PreTokenizer(
        name="llama-bpe",
        patterns=(LLAMA3,),
        ignore_merges=True,
        adds_bos=True,
        cleans_spaces=True,
        example="Llama 3, SmolLM3",
    ),
    PreTokenizer(name="dbrx", patterns=(LLAMA3,), cleans_spaces=True, example="DBRX"),
    PreTokenizer(name="qwen2", patterns=(QWEN2,), normalizer="NFC", example="Qwen2, Qwen2.5, Qwen3"),
    PreTokenizer(name="qwen35", patterns=(QWEN35,), normalizer="NFC", example="Qwen3.5"),
    PreTokenizer(
        name="tekken",
        patterns=(TEKKEN,),
        ignore_merges=True,
        adds_bos=True,
        example="Mistral Nemo",
        caveat=_BEYOND_ASCII.format("tekken"),
    ),
    PreTokenizer(
        name="gpt-4o", patterns=(GPT4O,), caveat=_BEYOND_ASCII.format("gpt-4o"), example="Phi-4-mini, Llama 4"
    ),
    PreTokenizer(name="deepseek-v3", patterns=(r"\p{N}{1,3}", CJK_AND_KANA, DEEPSEEK3_WORDS), example="DeepSeek-V3"),
    PreTokenizer(
        name="deepseek-llm",
        patterns=DEEPSEEK_LLM,
        example="DeepSeek LLM, DeepSeek-V2",
        caveat="llama.cpp's deepseek-llm joins an ideographic space (U+3000) to white space before it, which "
        "tokenizer.json cuts off: such text may get other tokens.",
    ),
    PreTokenizer(name="deepseek-coder", patterns=DEEPSEEK_CODER, example="DeepSeek Coder"),
    PreTokenizer(
        name="falcon",
        patterns=(f"[{PUNCTUATION}]+", GPT2, DIGITS, "[0-9][0-9][0-9]"),
        cleans_spaces=True,
        example="Falcon 7B",
    ),
    PreTokenizer(
        name="bailingmoe",
        patterns=(rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",),
        example="Ling",
    ),
    PreTokenizer(
        name="seed-coder",
        patterns=(rf"{CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
        example="Seed-OSS, Seed-Coder",
    ),
    PreTokenizer(
        name="tiny_aya",
        patterns=(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O),
        normalizer="NFC",
        example="Tiny Aya",
        caveat="llama.cpp's tiny_aya cuts the last space off a run of them before a digit, which tokenizer.json does "
        "not: such text may get other tokens.",
    ),
    PreTokenizer(
        name="exaone-moe",
        patterns=(
            rf"{CONTRACTIONS}|{_WORD_HEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
        cleans_spaces=True,
        example="K-EXAONE",
    ),
    PreTokenizer(
        name="minicpm5",
        patterns=(r"\p{N}{1,3}", rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+{_TAIL}"),
        ignore_merges=True,
        cleans_spaces=True,
        example="MiniCPM5",
    ),
    PreTokenizer(
        name="jais-2",
        patterns=(
            rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
            rf"|{_JAIS2_SPACES}|\s{{1,2}}(?!\S)|\s{{1}}",
        ),
        cleans_spaces=True,
        example="Jais 2",
    ),
    PreTokenizer(name="ufakzeka", patterns=(rf"{_WORD}|\p{{N}}{_TAIL}",), example="Ufakzeka"),
    PreTokenizer(name="superbpe", patterns=(DIGITS, r"(?=(\d{3})+(?!\d))"), example="SuperBPE"),
    PreTokenizer(name="bloom", patterns=(BLOOM,), cleans_spaces=True, example="BLOOM"),
    PreTokenizer(name="viking", patterns=(BLOOM, DIGIT), example="Viking"),
)


def _like(name: str, other: str, *families: str, example: str, normalizer: str | None = None) -> PreTokenizer:
    """A row that cuts as another does, under the name that upstream gives to some families."""
    row = next(row for row in _ROWS if row.name == other)
    caveat = row.caveat.replace(other, name)
    return replace(
        row, name=name, families=frozenset(families), example=example, normalizer=normalizer, caveat=caveat
    )  # fmt: skip


_BY_FAMILY: Sequence[PreTokenizer] = (
    replace(_like("glm4", "llama-bpe", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "glm_moe_dsa",
                  example="GLM-4"), adds_bos=False),
    _like("chatglm-bpe", "dbrx", "glm", "chatglm", example="GLM-4-9B"),
    _like("lfm2", "llama-bpe", "lfm2", "lfm2_moe", "lfm2_vl", example="LFM2"),
    _like("falcon-h1", "llama-bpe", "falcon_h1", example="Falcon-H1"),
    _like("llama4", "gpt-4o", "llama4", "llama4_text", example="Llama 4"),
    replace(_like("granite-embed-multi-97m", "gpt-4o", "modernbert", example="Granite Embedding Multilingual"),
            ignore_merges=True, caveat="llama.cpp's granite-embed-multi-97m cuts words with case beyond ASCII "
            "otherwise than tokenizer.json: such words may get other tokens."),
    _like("minimax-m2", "gpt-4o", "minimax_m2", example="MiniMax-M2"),
    _like("command-r", "smollm", "cohere", "cohere2", example="Command R", normalizer="NFC"),
    _like("cohere2moe", "tiny_aya", "cohere2_moe", example="Cohere2 MoE", normalizer="NFC"),
    _like("starcoder", "refact", "starcoder2", "gpt_bigcode", example="StarCoder2"),
    _like("exaone", "refact", "exaone", example="EXAONE 3"),
    _like("exaone4", "gpt-2", "exaone4", example="EXAONE 4"),
    _like("olmo", "gpt-2", "olmo", "olmoe", "gpt_neox", "mamba", "mamba2", example="OLMo, Mamba", normalizer="NFC"),
    _like("mpt", "gpt-2", "mpt", example="MPT", normalizer="NFC"),
    _like("phi-2", "gpt-2", "phi", example="Phi-2"),
    _like("modern-bert", "gpt-2", "modernbert", example="ModernBERT", normalizer="NFC"),
    replace(_like("roberta-bpe", "gpt-2", "roberta", example="RoBERTa"), adds_sep=True),
    replace(_like("stablelm2", "qwen2", "stablelm", example="StableLM 2"), cleans_spaces=True),
    _like("hunyuan", "qwen2", "hunyuan_v1_moe", example="Hunyuan A13B"),
    _like("solar-open", "qwen2", "solar_open", example="Solar Open"),
    _like("grok-2", "qwen2", "grok-1", "grok", example="Grok 2"),
    _like("hunyuan-dense", "deepseek-v3", "hunyuan_v1_dense", example="Hunyuan 4B"),
    _like("bailingmoe2", "bailingmoe", "bailing_moe_v2", "bailing_moe_linear", example="Ling 2"),
)  # fmt: skip

PRE_TOKENIZERS: Sequence[PreTokenizer] = (*_ROWS, *_BY_FAMILY)

ALIASES: Mapping[str, Sequence[str]] = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "jina-v5-nano"),
    "glm4": ("glm5",),
    "dbrx": ("smaug-bpe",),
    "refact": ("codeshell", "minerva-7b", "mellum2"),
    "gpt-2": ("gigachat", "a.x-4.0", "mellum", "jais", "trillion", "granite-docling", "jina-v2-es", "jina-v2-de",
              "jina-es", "jina-de"),
    "roberta-bpe": ("jina-v1-en", "jina-v2-code"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    "gpt-4o": ("kanana2", "talkie"),
    "deepseek-v3": ("joyai-llm", "hy_v4"),
    "bailingmoe": ("llada-moe",),
    "bloom": ("poro-chat", "gpt3-finnish"),
}  # fmt: skip
"""Other names that files carry for the same patterns."""


def by_name(name: str) -> PreTokenizer:
    """Return the pre-tokenizer that a GGUF file names.

    Raises:
        UnsupportedModelError: Its patterns are not in the table.
    """
    wanted = next((known for known, others in ALIASES.items() if name in others), name)
    for pre in PRE_TOKENIZERS:
        if pre.name == wanted:
            return pre
    names = sorted([p.name for p in PRE_TOKENIZERS] + [alias for others in ALIASES.values() for alias in others])
    raise UnsupportedModelError(
        f"tokenizer.ggml.pre: {name!r} is not a pre-tokenizer that can be written as tokenizer.json."
        f" Supported: {', '.join(names)}."
    )
