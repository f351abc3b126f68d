"""Presets: the published mixes of block types that llama.cpp's users know by name.

Names, numbers, mixes and fallbacks are those of llama.cpp b11434 (ggml 0.26); the files load in every engine that reads
GGUF. What a preset does to a model that is not made of rows of 256 is in docs/explanation/presets.md.
"""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.dtypes import block_type
from kvant.errors import PlanError
from kvant.model import Model
from kvant.quant.grids import kept_tensors
from kvant.quant.matching import PatternMatch, check_pattern
from kvant.quant.plan import KEEP, Fallback, Plan, fitting_type, stored_type, weight_type
from kvant.quant.roles import EMBEDDINGS, OUTPUT, Role, file_order, is_quantizable, layer_of, role_of
from kvant.quant.rules import ULTRA_LOW, Facts, expert_type, head_type, least_type, mixed_type
from kvant.tensors import Tensor, n_weights, row_length

Override = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Preset:
    """A published mix of block types.

    Attributes:
        name: llama.cpp's name.
        file_type: Its number, `general.file_type` in the file. Source: llama.h `enum llama_ftype`.
        base: Type of the tensors that no rule of the mix names.
    """

    name: str
    file_type: int
    base: str


PRESETS = {
    name: Preset(name, file_type, base)
    for name, file_type, base in (
        ("F32", 0, "F32"), ("F16", 1, "F16"), ("BF16", 32, "BF16"),
        ("Q8_0", 7, "Q8_0"), ("Q6_K", 18, "Q6_K"), ("Q5_K_M", 17, "Q5_K"), ("Q5_K_S", 16, "Q5_K"),
        ("Q5_1", 9, "Q5_1"), ("Q5_0", 8, "Q5_0"), ("Q4_K_M", 15, "Q4_K"), ("Q4_K_S", 14, "Q4_K"),
        ("Q4_1", 3, "Q4_1"), ("Q4_0", 2, "Q4_0"), ("IQ4_NL", 25, "IQ4_NL"), ("IQ4_XS", 30, "IQ4_XS"),
        ("Q3_K_L", 13, "Q3_K"), ("Q3_K_M", 12, "Q3_K"), ("Q3_K_S", 11, "Q3_K"),
        ("IQ3_M", 27, "IQ3_S"), ("IQ3_S", 26, "IQ3_S"), ("IQ3_XS", 22, "IQ3_S"), ("IQ3_XXS", 23, "IQ3_XXS"),
        ("Q2_K", 10, "Q2_K"), ("Q2_K_S", 21, "Q2_K"),
        ("IQ2_M", 29, "IQ2_S"), ("IQ2_S", 28, "IQ2_XS"), ("IQ2_XS", 20, "IQ2_XS"), ("IQ2_XXS", 19, "IQ2_XXS"),
        ("IQ1_M", 31, "IQ1_M"), ("IQ1_S", 24, "IQ1_S"),
        ("TQ2_0", 37, "TQ2_0"), ("TQ1_0", 36, "TQ1_0"), ("MXFP4_MOE", 38, "MXFP4"),
        ("Q2_0", 41, "Q2_0"), ("Q1_0", 40, "Q1_0"),
    )
}  # fmt: skip

KEPT_FILE_TYPES = {p.base: p.file_type for p in reversed(PRESETS.values())} | {"NVFP4": 39}
"""`general.file_type` of what is carried over, by its commonest block type: the first preset of that type."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}

# Architectures that llama.cpp calls 70B by their number of layers. Source: b11434 `src/models/*.cpp` load_arch_hparams.
_70B_LAYERS = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


def find_preset(name: str) -> Preset:
    """Look a preset up by its name or alias, in any case.

    Raises:
        PlanError: No such preset.
    """
    upper = name.upper()
    found = PRESETS.get(ALIASES.get(upper, upper))
    if found is None:
        near = difflib.get_close_matches(upper, PRESETS, n=1)
        guess = f"Did you mean {near[0]}? There are" if near else "Use one of"
        raise PlanError(f"preset: {name!r} is not known. {guess} {', '.join(PRESETS)}.")
    return found


def plan_preset(
    model: Model,
    preset: str,
    *,
    has_importance: bool = False,
    pure: bool = False,
    overrides: Sequence[Override] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    keep: Sequence[str] = (),
) -> Plan:
    """Decide the block type of every tensor of a model, as llama.cpp's preset does; see `plan_with_matches`."""
    return plan_with_matches(
        model, preset, has_importance=has_importance, pure=pure, overrides=overrides, output_type=output_type,
        embedding_type=embedding_type, keep=keep,
    )[0]  # fmt: skip


def plan_with_matches(
    model: Model,
    preset: str,
    *,
    has_importance: bool = False,
    pure: bool = False,
    overrides: Sequence[Override] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    keep: Sequence[str] = (),
) -> tuple[Plan, tuple[PatternMatch, ...]]:
    """Decide the block type of every tensor of a model, and tell what each option did.

    Args:
        model: The model.
        preset: Name of the preset, in any case.
        has_importance: Whether importance will be given: some rules ask.
        pure: Switch the mix off: the preset's own type for every weight matrix whose rows it fits.
        overrides: Pairs of a regular expression and a type; the first whose expression is found in a tensor's name
            decides, before the mix. Such a tensor does not count when the mix counts layers, as upstream.
        output_type: Type of the output head; of the embedding, where that is the head too.
        embedding_type: Type of the token embedding.
        keep: Regular expressions of tensors that stay as they are.

    Returns:
        The plan, in the order in which llama.cpp writes tensors, and what each of the last four did, in that order.

    Raises:
        PlanError: An unknown preset, a malformed expression, one that decides nothing, or a row that fits neither a
            type nor its substitute.
    """
    if preset.lower() == KEEP:
        if pure or overrides or output_type or embedding_type or keep:
            raise PlanError(f"preset {KEEP}: gives each tensor the type that holds it, so no option can give another.")
        return keep_plan(model), ()
    asked = find_preset(preset)
    compiled = [(_compiled(pattern), weight_type(name)) for pattern, name in overrides]
    chooser = _Chooser(
        preset=asked,
        facts=model_facts(model, has_importance=has_importance),
        pure=pure,
        overrides=compiled,
        written=dict(zip(compiled, (name for _, name in overrides), strict=True)),
        output_type=weight_type(output_type) if output_type else None,
        embedding_type=weight_type(embedding_type) if embedding_type else None,
        keep=[_compiled(pattern) for pattern in keep],
    )
    types = {name: chooser.choose(model.tensors[name]) for name in file_order(model.tensors)}
    plan = Plan(
        preset=asked.name,
        file_type=asked.file_type,
        types=types,
        fallbacks=tuple(chooser.fallbacks),
        has_importance=has_importance,
        pure=pure,
    )
    options = [(f"--type {pattern}={name}", pattern) for pattern, name in overrides]
    options += [(f"--keep {pattern}", pattern) for pattern in keep]
    options += [("--output-tensor-type", OUTPUT)] if output_type else []
    options += [("--token-embedding-type", EMBEDDINGS[0])] if embedding_type else []
    if not options:
        return plan, ()
    plain = plan_preset(model, preset, has_importance=has_importance, pure=pure).types
    return plan, tuple(_match(option, pattern, chooser, plan, plain) for option, pattern in options)


def keep_plan(model: Model) -> Plan:
    """Plan to carry over what lies on a grid: every tensor in the type that holds its values, proven block by block.

    Raises:
        PlanError: Nothing of the model does, and it is in no blocks either.
    """
    held = kept_tensors(model)
    kinds = {
        name: held[name].block_type.name if name in held
        else stored_type(name, model.tensors[name].shape, model.tensors[name].block_type.name)
        for name in file_order(model.tensors)
    }  # fmt: skip
    if not held and not model.quantized_types:
        raise PlanError(
            f"{model.path}: -t {KEEP} carries over weights that lie on a grid, and none of these does. Choose a "
            f"preset: kvant advise {shlex.quote(str(model.path))}"
        )
    counts = Counter(kind for kind in kinds.values() if block_type(kind).is_quantized) or Counter(kinds.values())
    return Plan(preset=KEEP, file_type=KEPT_FILE_TYPES.get(counts.most_common(1)[0][0], 1), types=kinds)


def _match(option: str, pattern: str, chooser: "_Chooser", plan: Plan, plain: Mapping[str, str]) -> PatternMatch:
    """Tell what an option did, and refuse one that did nothing."""
    decided = tuple(name for name, by in chooser.decided_by.items() if by == option)
    if option.startswith(("--output", "--token")):  # one whole name, or what stands for it
        found = tuple(dict.fromkeys((*decided, *(name for name in plan.types if name == pattern))))
        if not found and EMBEDDINGS[0] in plan.types:
            by = chooser.decided_by.get(EMBEDDINGS[0], "--pure" if plan.pure else f"the preset {plan.preset}")
            raise PlanError(
                f"{option}: there is no {pattern}: the head is {EMBEDDINGS[0]}, whose type {by} decides. Give it with "
                "--token-embedding-type."
            )
    else:
        found = tuple(name for name in plan.types if re.search(pattern, name))
    check_pattern(option, pattern, found, decided, plan.types)
    changed = tuple(name for name in decided if plan.types[name] != plain[name])
    return PatternMatch(option=option, found=found, decided=decided, changed=changed)


def model_facts(model: Model, *, has_importance: bool) -> Facts:
    """Read from a model what the rules ask about it."""
    architecture = model.architecture
    n_layers = model.hyper("block_count", 0)
    heads = _first(model.get(f"{architecture}.attention.head_count"), 1)
    kv_heads = _first(model.get(f"{architecture}.attention.head_count_kv"), heads)
    is_70b = _70B_LAYERS.get(architecture) == n_layers
    if architecture == "llama":
        is_70b = is_70b and heads != kv_heads
    return Facts(
        architecture=architecture,
        n_layers=n_layers,
        n_attention_v=sum(role_of(name) is Role.ATTENTION_V for name in model.tensors),
        gqa=heads // kv_heads if kv_heads else 0,
        n_experts=model.hyper("expert_count", 0),
        is_70b=is_70b,
        is_tied=OUTPUT not in model.tensors,
        has_importance=has_importance,
    )


def _first(value: object, default: int) -> int:
    """Return a hyperparameter of the first layer; it is one number or a list with one per layer."""
    return default if value is None else int(np.ravel(np.asarray(value))[0])


def _compiled(pattern: str) -> re.Pattern[str]:
    if not pattern:
        raise PlanError("pattern: an empty one is found in every name. Give one like 'attn_v', or '.' for all tensors.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PlanError(f"pattern: {pattern!r}: {error}. Give a regular expression like 'attn_v'.") from error


class _Chooser:
    """Chooses types one tensor after the other, counting those of a role as it goes."""

    def __init__(
        self,
        *,
        preset: Preset,
        facts: Facts,
        pure: bool,
        overrides: Sequence[tuple[re.Pattern[str], str]],
        output_type: str | None,
        embedding_type: str | None,
        keep: Sequence[re.Pattern[str]],
        written: Mapping[tuple[re.Pattern[str], str], str],
    ) -> None:
        self.preset, self.facts, self.pure = preset, facts, pure
        self.overrides, self.keep, self.written = overrides, keep, written
        self.output_type, self.embedding_type = output_type, embedding_type
        self.fallbacks: list[Fallback] = []
        self.decided_by: dict[str, str] = {}
        self._seen = dict.fromkeys(Role, 0)

    def choose(self, tensor: Tensor) -> str:
        """Return the type of the next tensor; note a fallback."""
        is_open = is_quantizable(tensor.name, tensor.shape, self.facts.architecture)
        kept = next((pattern for pattern in self.keep if pattern.search(tensor.name)), None)
        if kept is not None:
            kind = tensor.block_type.name
            if is_open or kind != stored_type(tensor.name, tensor.shape, kind):
                self.decided_by[tensor.name] = f"--keep {kept.pattern}"
            return kind
        if not is_open:
            return stored_type(tensor.name, tensor.shape, tensor.block_type.name)
        wanted, first_choice = self._wanted(tensor)
        got = fitting_type(wanted, row_length(tensor))
        if got != first_choice:
            self._note(tensor, first_choice, got)
        return got

    def _wanted(self, tensor: Tensor) -> tuple[str, str]:
        """Return the type by the rules, and what they would say if every row fitted."""
        role, base = role_of(tensor.name), self.preset.base
        asked = self._asked_for(tensor.name, role)
        if asked is not None:
            return asked, asked
        if self.pure or not block_type(base).is_quantized:
            return base, base
        least = least_type(tensor.name, base, self.facts)
        if least is not None:
            return least, least
        if role is Role.OUTPUT or (role is Role.EMBEDDING and self.facts.is_tied):
            fits = row_length(tensor) % block_type(base).block_length == 0
            choices = (
                head_type(self.preset.name, base, self.facts, base_fits=fits),
                head_type(self.preset.name, base, self.facts, base_fits=True),
            )
            if self.output_type:
                self.decided_by[tensor.name] = "--output-tensor-type"
                return self.output_type, self.output_type
            return choices
        if self.preset.name == "MXFP4_MOE":
            n_matrices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
            wanted = expert_type(role, n_matrices, self.facts)
        else:
            wanted = mixed_type(role, self.preset.name, base, *self._position(tensor.name, role), self.facts)
        return wanted, wanted

    def _asked_for(self, name: str, role: Role) -> str | None:
        """Return the type that the caller gave this tensor by an option."""
        match = next(((pattern, kind) for pattern, kind in self.overrides if pattern.search(name)), None)
        if self.embedding_type and role is Role.EMBEDDING and not (match and name.startswith("per_layer")):
            self.decided_by[name] = "--token-embedding-type"
            return self.embedding_type
        if self.output_type and role is Role.OUTPUT:
            self.decided_by[name] = "--output-tensor-type"
            return self.output_type
        if match is None:
            return None
        self.decided_by[name] = f"--type {match[0].pattern}={self.written[match]}"
        return match[1]

    def _position(self, name: str, role: Role) -> tuple[int, int]:
        """Return where a tensor stands among those of its role, and how many there are; count it."""
        seen = self._seen[role]
        self._seen[role] += 1
        if role is Role.ATTENTION_V:
            return seen, self.facts.n_attention_v
        layer = layer_of(name)
        if self.facts.n_experts > 1 and layer is not None and self.preset.name not in ULTRA_LOW:
            return layer, self.facts.n_layers
        return seen, self.facts.n_layers

    def _note(self, tensor: Tensor, wanted: str, got: str) -> None:
        bits = (block_type(got).bpw - block_type(wanted).bpw) * n_weights(tensor)
        self.fallbacks.append(
            Fallback(
                tensor=tensor.name,
                row_length=row_length(tensor),
                wanted=wanted,
                got=got,
                extra_bytes=round(bits / 8),
            )
        )
