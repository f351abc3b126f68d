"""What became of what a user gave: which tensors an importance file serves, and which a pattern decides.

Nothing given is passed over in silence: what fits nothing is refused, and the rest is said.
"""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

import msgspec

from kvant.dtypes import BlockType, Family, block_type
from kvant.errors import PlanError
from kvant.model import Model
from kvant.quant.importance import Importance, zero_runs
from kvant.quant.plan import Plan
from kvant.quant.roles import EMBEDDINGS, OUTPUT, file_order

_WITHOUT = frozenset({"Q8_0"})
_WEIGHTED = frozenset({Family.LEGACY, Family.K_QUANT, Family.IQ4, Family.CODEBOOK})
"""Families whose encoders weigh errors by importance, but for `_WITHOUT`; the others search for no scale."""

SHOWN = 3


class ImportanceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an importance file does for a plan.

    Attributes:
        file: Its name.
        n_entries: Entries it holds.
        used: Tensors that are encoded with it.
        missing: Tensors of types that use importance, but have none in it.
        unknown: Entries that name no tensor of the model.
        unreached: Matrices that its text never reached, by tensor; of stacked experts often some. They are encoded as
            if all channels mattered alike.
        zeros: Parts of blocks without any importance, by tensor: they are encoded as if all channels mattered alike.
    """

    file: str
    n_entries: int
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    unreached: dict[str, int]
    zeros: dict[str, int]

    def remarks(self) -> tuple[str, ...]:
        """Say what a user would not expect, a sentence each."""
        said, wanted = [], len(self.used) + len(self.missing)
        if not wanted:
            said.append(f"{self.file}: is not used, since no tensor gets a type that looks at importance.")
        layers = [name for name in self.missing if name not in (*EMBEDDINGS, OUTPUT)]  # these two are seldom measured
        if layers:
            said.append(
                f"{self.file}: has no importance for {len(layers)} of {wanted} tensors (first {layers[0]}), which are "
                f"encoded without. Measure it again for all: kvant calibrate."
            )
        if self.unknown:
            said.append(
                f"{self.file}: {len(self.unknown)} of {self.n_entries} entries (first {self.unknown[0]}) name no "
                f"tensor of this model."
            )
        if self.unreached:
            said.append(
                f"{self.file}: its text never reached {sum(self.unreached.values())} matrices of "
                f"{len(self.unreached)} tensors (first {next(iter(self.unreached))}); they are encoded as without "
                f"importance."
            )
        if self.zeros:
            said.append(
                f"{self.file}: holds zeros alone for {sum(self.zeros.values())} blocks of {len(self.zeros)} tensors "
                f"(first {next(iter(self.zeros))}); they are encoded as without importance."
            )
        return tuple(said)


def match_importance(importance: Importance, model: Model, plan: Plan) -> ImportanceUse:
    """Tell which tensors of a plan an importance file serves.

    Raises:
        PlanError: It was measured on another model: no entry fits, or one is of another size.
    """
    check_fits(importance, model)
    wanted = [name for name in file_order(model.tensors) if _weighs(model, plan, name)]
    weights = {name: importance.weights_for(model.tensors[name]) for name in wanted}
    zeros = {
        name: count
        for name, found in weights.items()
        if found is not None and (count := int(zero_runs(found, run_length(block_type(plan.types[name]))).sum()))
    }
    return ImportanceUse(
        file=importance.source or "importance", n_entries=len(importance.entries),
        used=tuple(name for name in wanted if weights[name] is not None),
        missing=tuple(name for name in wanted if weights[name] is None),
        unknown=tuple(sorted(importance.entries.keys() - model.tensors.keys())), zeros=zeros,
        unreached=_unreached(importance, [name for name in wanted if weights[name] is not None]),
    )  # fmt: skip


def _unreached(importance: Importance, names: Iterable[str]) -> dict[str, int]:
    counts = {name: int((importance.entries[name].counts <= 0).sum()) for name in names}
    return {name: count for name, count in counts.items() if count}


def check_fits(importance: Importance, model: Model) -> None:
    """Refuse an importance file that names no tensor of a model.

    Raises:
        PlanError: It does not.
    """
    if importance.entries.keys() & model.tensors.keys():
        return
    first = next(iter(importance.entries), "none")
    ours = next(
        (name for name, t in model.tensors.items() if name.startswith("blk.") and len(t.shape) > 1),
        next(iter(model.tensors), "none"),
    )
    raise PlanError(
        f"{importance.source or 'importance'}: none of its {len(importance.entries)} entries (first {first}) names a "
        f"tensor of {model.path} (such as {ours}). Measure it on this model: kvant calibrate "
        f"{shlex.quote(str(model.path))}"
    )


def importance_remarks(model: Model, importance: Importance | None) -> tuple[str, ...]:
    """Say what was left out of a model, and for which matrices an importance file has nothing, whatever they become."""
    if importance is None:
        return model.remarks
    matrices = [name for name in file_order(model.tensors) if len(model.tensors[name].shape) > 1]
    use = ImportanceUse(
        file=importance.source or "importance", n_entries=len(importance.entries),
        used=tuple(name for name in matrices if name in importance.entries),
        missing=tuple(name for name in matrices if name not in importance.entries),
        unknown=tuple(sorted(importance.entries.keys() - model.tensors.keys())), zeros={},
        unreached=_unreached(importance, [name for name in matrices if name in importance.entries]),
    )  # fmt: skip
    return (*model.remarks, *use.remarks())


def run_length(kind: BlockType) -> int:
    """Weights that share a scale, or for codebooks a code: where all of them weigh nothing, nothing decides it."""
    return {Family.K_QUANT: 16, Family.CODEBOOK: 8}.get(kind.family, 32)


def uses_importance(kind: BlockType) -> bool:
    """Whether the encoder of a type looks at importance."""
    return kind.family in _WEIGHTED and kind.name not in _WITHOUT


def is_used(importance: Importance, model: Model, plan: Plan) -> bool:
    """Whether any tensor of a plan is encoded with an importance file."""
    return any(name in importance.entries and _weighs(model, plan, name) for name in model.tensors)


def _weighs(model: Model, plan: Plan, name: str) -> bool:
    kind = block_type(plan.types[name])
    return uses_importance(kind) and model.tensors[name].block_type != kind


class PatternMatch(msgspec.Struct, frozen=True, kw_only=True):
    """What an option that names tensors did.

    Attributes:
        option: As it is written: `--type attn_v=Q8_0`.
        found: Tensors that it names.
        decided: Those whose type it decided.
        changed: Those that have another type by it.
    """

    option: str
    found: tuple[str, ...]
    decided: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        changed = f"{len(self.changed)} get another type" if self.changed else "all would have these types without it"
        return f"{self.option}: {len(self.decided)} tensors (first {self.decided[0]}), {changed}"


def check_pattern(
    option: str, pattern: str, found: Sequence[str], decided: Sequence[str], names: Iterable[str]
) -> None:
    """Refuse an option that decides nothing.

    Args:
        option: As it is written.
        pattern: What it looks for.
        found: Tensors whose names it is found in.
        decided: Those whose type it decided.
        names: All tensors.

    Raises:
        PlanError: It decides nothing; the message shows near names.
    """
    if decided:
        return
    if not found:
        raise PlanError(f"{option}: is found in no tensor's name. {_near(pattern, names)}")
    raise PlanError(
        f"{option}: is found in {len(found)} tensors (first {found[0]}), none of which it can change: vectors, norms "
        f"and what an earlier option decides keep their types. Leave it out, or name a matrix."
    )


def _near(pattern: str, names: Iterable[str]) -> str:
    stems = list(dict.fromkeys(re.sub(r"^blk\.\d+\.|\.(?:weight|bias)$", "", name) for name in names))
    near = difflib.get_close_matches(re.sub(r"[^a-z_]", "", pattern.lower()), stems, n=SHOWN, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(stems[:16])}."
