"""Names of tensors, both ways: what of a checkpoint becomes which canonical tensor.

Names within a block are written without the block, e.g. `self_attn.q_proj.weight`, and `{}` stands for the number of an
expert: those are stacked.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvant.formats.huggingface.architectures.transforms import Transform

GLOBAL_NAMES: Mapping[str, str] = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
"""Tensors outside the blocks: canonical stem to transformers' stem."""

ATTENTION_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
    }
)
"""Attention and norms of a block, as Llama and most of its descendants name them."""

MLP_NAMES: Mapping[str, str] = MappingProxyType(
    {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
)

BLOCK_NAMES: Mapping[str, str] = MappingProxyType({**ATTENTION_NAMES, **MLP_NAMES})
"""Tensors of a dense block, as Llama and most of its descendants name them."""

QK_NORMS: Mapping[str, str] = MappingProxyType({"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"})
"""Norms of queries and keys by head."""

ATTENTION_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP_BIASES = ("ffn_gate", "ffn_up", "ffn_down")
LLAMA_FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES}
)
"""Entries by which a config.json asks for biases, and the stems that then have one."""

SUFFIXES = ("weight", "bias")
_CANONICAL_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)")
_NUMBER = re.compile(r"\.(0|[1-9]\d{0,4})\.")


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which a canonical tensor comes from a checkpoint.

    Attributes:
        ours: Canonical name within the block, whole: `ffn_gate_exps.weight`.
        theirs: transformers' name within the block, whole; `{}` for the number of an expert.
        change: What happens to the values.
        count: Entry of config.json that says how many there are where they are no experts.
    """

    ours: str
    theirs: str
    change: Transform | None = None
    count: str | None = None

    @property
    def stem(self) -> str:
        """The canonical name without its suffix."""
        return stem_of(self.ours)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a checkpoint goes.

    Attributes:
        name: Canonical name.
        expert: Its number in the stack of experts; None if it is the whole tensor.
        change: What happens to the values.
        count: Entry of config.json that says how many there are where they are no experts.
    """

    name: str
    expert: int | None
    change: Transform | None
    count: str | None = None


class Names:
    """The names of a family in both directions, by its rules for blocks and for what is outside of them."""

    def __init__(self, block: str, inside: tuple[Rule, ...], outside: tuple[Rule, ...]) -> None:
        """Take the rules.

        Args:
            block: transformers' name of the list of blocks, e.g. `model.layers`.
            inside: Rules within a block; the first of a canonical tensor is what is written on the way back.
            outside: Rules outside the blocks, with whole names.
        """
        self._block = block
        self._in_block = re.compile(re.escape(block) + r"\.(0|[1-9]\d{0,3})\.(.+)")
        self._inside, self._outside = _by_theirs(inside), _by_theirs(outside)
        self._back_inside, self._back_outside = _by_ours(inside), _by_ours(outside)
        self._stems = {rule.stem for rule in (*inside, *outside)}

    def places(self, theirs: str) -> Iterator[Place]:
        """Yield where a tensor of a checkpoint goes; nowhere if the family has none of that name."""
        match = self._in_block.fullmatch(theirs)
        prefix, rest = (f"blk.{match[1]}.", match[2]) if match else ("", theirs)
        rules = (self._inside if match else self._outside).get(rest)
        expert = None
        if rules is None:
            number = _NUMBER.search(rest)
            if number is not None:
                expert = int(number[1])
                table = self._inside if match else self._outside
                rules = table.get(rest[: number.start()] + ".{}." + rest[number.end() :])
        for rule in rules or ():
            yield Place(prefix + rule.ours, expert, rule.change, rule.count)

    def theirs(self, ours: str) -> tuple[str, Rule] | None:
        """Return transformers' name of a canonical tensor and its rule; None if there is no such tensor."""
        match = _CANONICAL_BLOCK.fullmatch(ours)
        rule = self._back_inside.get(match[2]) if match else self._back_outside.get(ours)
        if rule is None:
            return None
        return (f"{self._block}.{match[1]}.{rule.theirs}" if match else rule.theirs), rule

    def stem(self, ours: str) -> str | None:
        """Return the stem of a canonical tensor name: `attn_q` of `blk.3.attn_q.weight`; None if it is no name here."""
        match = _CANONICAL_BLOCK.fullmatch(ours)
        stem = stem_of(match[2] if match else ours)
        return stem if stem in self._stems else None


def layer_of(ours: str) -> int | None:
    """Return the block that a canonical tensor name is in; None outside the blocks."""
    match = _CANONICAL_BLOCK.fullmatch(ours)
    return int(match[1]) if match else None


def layer_of_theirs(theirs: str) -> int:
    """Return the block that transformers' name of a tensor is in: its first number; -1 if it has none."""
    number = _NUMBER.search(theirs)
    return int(number[1]) if number else -1


def stem_of(name: str) -> str:
    """Return a name without `.weight` or `.bias`."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix in SUFFIXES else name


def rules(names: Mapping[str, str], changes: Mapping[str, Transform]) -> tuple[Rule, ...]:
    """Return the rules of a table of stems: each stands for a weight and a bias."""
    return tuple(
        Rule(f"{ours}.{suffix}", f"{theirs}.{suffix}", changes.get(ours))
        for ours, theirs in names.items()
        for suffix in SUFFIXES
    )


def _by_theirs(found: tuple[Rule, ...]) -> dict[str, tuple[Rule, ...]]:
    grouped: dict[str, tuple[Rule, ...]] = {}
    for rule in found:
        grouped[rule.theirs] = (*grouped.get(rule.theirs, ()), rule)
    return grouped


def _by_ours(found: tuple[Rule, ...]) -> dict[str, Rule]:
    back: dict[str, Rule] = {}
    for rule in found:
        back.setdefault(rule.ours, rule)
    return back
