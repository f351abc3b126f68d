"""GGUF files for llama.cpp: its presets, and mixes of its block types."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import msgspec

from kvant.allocate.options import Option
from kvant.allocate.plan import plan_choice
from kvant.dtypes import block_type
from kvant.errors import PlanError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore, score
from kvant.evaluate.scores import Score
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.quant.plan import KEEP, Plan
from kvant.quant.presets import find_preset
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.rounding import predicted_kld
from kvant.recipes.measure.sample import continuation, kept_continuation
from kvant.recipes.targets.base import Material, Options
from kvant.recipes.targets.candidate import FITTED_GAIN, Candidate, Matrix
from kvant.recipes.targets.gguf import kept
from kvant.recipes.targets.gguf.options import engine_floor, on_device, rounding_options
from kvant.recipes.targets.gguf.pace import Pace, deadline_of, matrix_types, pace_for, paced
from kvant.recipes.targets.gguf.presets import make_candidate, make_candidates
from kvant.recipes.targets.gguf.write import predict_size, quantize, remarks_on
from kvant.recipes.targets.limits import Limits, limits_of
from kvant.tensors import n_rows, n_weights, row_length

FINER_BITS = 0.75
"""Bits per weight that make a type finer than one of another family."""

LONGEST_NAME = "kvant-0.00-0"
"""No mix has a longer preset, which a file's metadata holds."""


class Known(TypedDict):
    """What encoders know beyond the weights."""

    importance: Importance | None
    curvatures: Curvatures | None


class GGUF:
    """GGUF files, which llama.cpp runs."""

    name = "gguf"
    title = "GGUF in llama.cpp"
    points = 3
    speed_margin = 0.5
    embeds = True
    takes_projector = True

    def check(self, model: Model) -> None:
        """Every model that can be opened can be made."""

    def knows(self, preset: str) -> bool:
        """Say whether a name is one of llama.cpp's presets."""
        if preset.lower() == KEEP:
            return True
        try:
            find_preset(preset)
        except PlanError:
            return False
        return True

    def label(self, preset: str) -> str:
        """Return a preset's name: llama.cpp's are known by themselves."""
        return preset

    def output_name(self, model: str, preset: str) -> str:
        """Return `MODEL-PRESET.gguf`."""
        return f"{model}-{preset}.gguf"

    def command(self, preset: str, source: str, out: str, imatrix: str | None) -> list[str]:
        """Return the words of the command that makes a preset."""
        return ["kvant", "quantize", source, "-t", preset, "-o", out, *(["--imatrix", imatrix] if imatrix else [])]

    def finer(self, fine: str, coarse: str) -> bool:
        """Say whether a block type stores weights at least as finely as another for certain."""
        one, other = block_type(fine), block_type(coarse)
        if one == other or not one.is_quantized:
            return True
        return one.bpw >= other.bpw + (0 if one.family == other.family else FINER_BITS)

    def open(self, material: Material) -> "GGUFWorkshop":
        """Return what makes GGUF variants of a model."""
        return GGUFWorkshop(material)


@dataclass(frozen=True)
class GGUFWorkshop:
    """One model's variants as GGUF files: presets are encoded with importance, mixes under Hessians."""

    material: Material

    @cached_property
    def limits(self) -> Limits:
        """What files may take; time per token is planned for, too."""
        m = self.material
        return limits_of(
            m.budget,
            m.device,
            m.model,
            m.context,
            max_seconds=deadline_of(self._pace(()), m.budget),
            beside=m.companion,
        )

    @cached_property
    def rest_bytes(self) -> int:
        """Bytes of a file beside those of the options: the same for every choice."""
        least = {name: min(kinds, key=lambda o: o.n_bytes) for name, kinds in self._options.items()}
        plan = self._plan({name: option.kind for name, option in least.items()}, LONGEST_NAME)
        return predict_size(self.material.model, plan, None, self._curvatures) - sum(o.n_bytes for o in least.values())

    def presets(self, names: Sequence[str] = ()) -> list[Candidate]:
        """Plan llama.cpp's presets."""
        m = self.material
        found = make_candidates(
            m.model, m.device, context=m.context, presets=names, importance=m.importance, beside=m.companion
        )
        pace = self._pace(kind for candidate in found for kind in matrix_types(m.model, candidate.plan))
        return paced(found, m.model, pace) if pace else found

    def options(self) -> Options:
        """Return the block types of every measured matrix, with what the device makes of them."""
        return self._options

    def mix(self, choice: Mapping[str, str], name: Callable[[float], str]) -> Candidate:
        """Return the candidate of a choice of block types."""
        m = self.material
        plan = self._plan(choice, LONGEST_NAME)
        plan = msgspec.structs.replace(plan, preset=name(plan.bpw(m.model)))
        size = predict_size(m.model, plan, None, self._curvatures)
        made = make_candidate(m.model, [plan], size, m.device, m.context, m.companion)
        pace = self._pace(matrix_types(m.model, plan))
        if pace:
            (made,) = paced([made], m.model, pace)
        return msgspec.structs.replace(
            made, is_fitted=True, predicted_kld=predicted_kld(self._options, choice),
            distortion=made.distortion * FITTED_GAIN,
        )  # fmt: skip

    def choice(self, candidate: Candidate) -> dict[str, str] | None:
        """Return the options that a mix takes; presets are encoded otherwise and teach nothing of them."""
        if not candidate.is_fitted:
            return None
        return {name: candidate.plan.types[name] for name in self._options}

    def engine_floor(self, floors: Sequence[Floor]) -> float:
        """Return what llama.cpp's rounding of activations adds to every mix."""
        return engine_floor(floors, self._options)

    def key(self, candidate: Candidate) -> str:
        """Digest of all that decides a file's bytes."""
        return kept.variant_key(self.material.model, candidate.plan, **self._known(is_fitted=candidate.is_fitted))

    def make(self, candidate: Candidate, *, threads: int = 0, progress: Progress = SILENT) -> Path:
        """Return a candidate's file, encoding it unless it is in the cache; an interrupted one is continued."""
        return kept.encoded(
            self.material.model, candidate.plan, **self._known(is_fitted=candidate.is_fitted), threads=threads,
            progress=progress,
        )  # fmt: skip

    def forget(self, candidate: Candidate) -> None:
        """Remove a candidate's file from the cache."""
        kept.forget(self.material.model, candidate.plan, **self._known(is_fitted=candidate.is_fitted))

    def write(self, plan: Plan, out: Path, *, is_fitted: bool, threads: int = 0, progress: Progress = SILENT) -> None:
        """Write the file of a plan."""
        quantize(
            self.material.model, plan, out, **self._known(is_fitted=is_fitted), threads=threads, overwrite=True,
            progress=progress,
        )  # fmt: skip

    def measure(
        self, artifact: Path, base: BaseLogits, *, threads: int = 0, progress: Progress = SILENT
    ) -> VariantScore:
        """Measure a file in llama.cpp."""
        return score(artifact, base, threads=threads, progress=progress)

    def memory_bytes(self, candidate: Candidate, score: Score) -> int:  # noqa: ARG002 - of a short context
        """Memory as predicted, which is checked against the engine."""
        return candidate.ram.total_bytes

    def provenance(self) -> dict[str, str]:
        """Nothing else decides a file's bytes."""
        return {}

    def matrices(self, plan: Plan) -> list[Matrix]:
        """List how matrices are stored."""
        found = [(self.material.model.tensors[name], kind) for name, kind in plan.types.items()]
        return [
            Matrix(t.name, kind, n_rows(t) * block_type(kind).row_bytes(row_length(t)), n_weights(t))
            for t, kind in found
            if len(t.shape) > 1
        ]

    def remarks(self, candidate: Candidate) -> tuple[str, ...]:
        """Say what was left out of the model, and what an importance file did not do."""
        importance = self.material.importance
        used = None if candidate.is_fitted or importance is None or not importance.source else importance
        return remarks_on(self.material.model, candidate.plan, used)

    def continuation(self, candidate: Candidate, artifact: Path | None, *, threads: int) -> str | None:
        """Return how a variant continues the prompt of samples; both come from the cache if they can."""
        key = self.key(candidate)
        return kept_continuation(key) if artifact is None else continuation(artifact, key, threads=threads)

    @cached_property
    def _options(self) -> dict[str, tuple[Option, ...]]:
        m = self.material
        if m.calibration is None:
            return {}
        costs = rounding_options(m.model, m.calibration, threads=m.threads, progress=m.progress)
        pace = self._pace(option.kind for kinds in costs.values() for option in kinds)
        return on_device(costs, m.model, m.device, pace)

    def _pace(self, kinds: Iterable[str]) -> Pace | None:
        """How long block types take, if a speed is asked for; each is timed once for a machine."""
        m = self.material
        if not m.budget.min_speed_tok_s:
            return None
        return pace_for(m.model, m.device, m.machine, kinds, threads=m.threads, progress=m.progress)

    @property
    def _curvatures(self) -> Curvatures | None:
        return self.material.calibration.curvatures if self.material.calibration else None

    def _known(self, *, is_fitted: bool) -> Known:
        if is_fitted:
            return {"importance": None, "curvatures": self._curvatures}
        return {"importance": self.material.importance, "curvatures": None}

    def _plan(self, choice: Mapping[str, str], name: str) -> Plan:
        return plan_choice(self.material.model, choice, preset=name)
