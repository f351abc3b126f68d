"""MLX directories for mlx-lm: its types, and mixes of its groupings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.devices.limits import cores
from kvant.devices.memory import EMBEDDING, OUTPUT, predict_ram
from kvant.devices.speed import predict_speed
from kvant.dtypes import Family
from kvant.errors import PlanError, UnsupportedFormatError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore
from kvant.evaluate.scores import Score
from kvant.formats.huggingface.directory import companions
from kvant.formats.huggingface.mlx.layers import part_path
from kvant.formats.huggingface.mlx.schemes import is_type
from kvant.formats.huggingface.mlx.writer import layer_shapes, mlx_tensors, stored_bytes, stored_tensors
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.matching import importance_remarks
from kvant.quant.plan import Plan
from kvant.recipes.cache import digest, source_key
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.rounding import predicted_kld
from kvant.recipes.targets import directories
from kvant.recipes.targets.base import Material, Options
from kvant.recipes.targets.candidate import FITTED_GAIN, Candidate, Matrix
from kvant.recipes.targets.limits import Limits, limits_of
from kvant.recipes.targets.mlx.distortion import is_finer, plan_distortion
from kvant.recipes.targets.mlx.encoding import Encoding, by_importance, can_be_fitted, under_hessians
from kvant.recipes.targets.mlx.fitted import grouping_options
from kvant.recipes.targets.mlx.measure import measure
from kvant.recipes.targets.mlx.plan import (
    TYPES,
    choice_plan,
    layer_paths,
    plan_choice,
    plan_scheme,
    rest_bytes,
    type_plan,
)
from kvant.recipes.targets.mlx.write import float_type, write_plan
from kvant.tensors import LazyTensor, n_bytes, n_weights

MADE = 4
"""Raised when the same plan makes other files than before, so that older ones in the cache are left alone."""


class MLX:
    """MLX directories, which mlx-lm runs."""

    name = "mlx"
    title = "MLX in mlx-lm"
    points = 2
    speed_margin = 0.0
    embeds = False
    takes_projector = False

    def check(self, model: Model) -> None:
        """Refuse a model that is quantized already, or that mlx-lm has no names for.

        Raises:
            PlanError: It is quantized.
            UnsupportedModelError: Its architecture is not supported, or a tensor has no name there.
        """
        if model.quantized_types:
            raise PlanError(
                f"{model.path}: is {', '.join(model.quantized_types)} already, and quantizing twice loses more. Start "
                f"from the full-precision model."
            )
        mlx_tensors(model, float_type(model, None))

    def knows(self, preset: str) -> bool:
        """Say whether a name is a type or a recipe of mlx-lm's."""
        return is_type(preset)

    def label(self, preset: str) -> str:
        """Return `mlx PRESET`."""
        return f"{self.name} {preset}"

    def output_name(self, model: str, preset: str) -> str:
        """Return `MODEL-mlx-PRESET`."""
        return f"{model}-{self.name}-{preset}"

    def command(self, preset: str, source: str, out: str, imatrix: str | None) -> list[str]:
        """Return the words of the command that makes a type."""
        more = ["--imatrix", imatrix] if imatrix else []
        return ["kvant", "quantize", source, "--to", self.name, "-t", preset, *more, "-o", out]

    def finer(self, fine: str, coarse: str) -> bool:
        """Say whether a grouping certainly stores weights at least as finely as another."""
        return is_finer(fine, coarse)

    def open(self, material: Material) -> "MLXWorkshop":
        """Return what makes MLX variants of a model."""
        return MLXWorkshop(material)


@dataclass(frozen=True)
class MLXWorkshop:
    """One model's variants as MLX directories.

    Types and mixes alike are encoded under the calibration's Hessians; without one types are weighed by importance, and
    without that they are what `mlx_lm.convert` gives, as are those that no encoder of ours takes.
    """

    material: Material
    _plain: dict[str, list[LazyTensor]] = field(default_factory=dict, init=False)

    @cached_property
    def limits(self) -> Limits:
        """What files may take; time per token is not planned for."""
        m = self.material
        return limits_of(m.budget, m.device, m.model, m.context)

    @cached_property
    def rest_bytes(self) -> int:
        """Bytes of the files of weights beside those of the options, at most: their headers vary with the choice."""
        encoding = under_hessians(self.material.calibration) if self.material.calibration else self._floats
        return rest_bytes(self.material.model, self._tensors(encoding), self._options)

    def presets(self, names: Sequence[str] = ()) -> list[Candidate]:
        """Plan mlx-lm's types.

        Raises:
            PlanError: There is no such type, or its groups fit no layer.
        """
        shapes = layer_shapes(self._tensors(self._floats))
        plans: dict[tuple[tuple[str, str], ...], list[Plan]] = {}
        for name in names or TYPES:
            try:
                plan = type_plan(name, shapes)
            except UnsupportedFormatError as error:
                if names:
                    raise PlanError(str(error)) from error
                continue
            plans.setdefault(tuple(plan.types.items()), []).append(plan)
        found = [
            self._candidate(plan, aliases=tuple(other.preset for other in others)) for plan, *others in plans.values()
        ]
        return sorted(found, key=lambda c: (c.size_bytes, c.distortion))

    def options(self) -> Options:
        """Return the groupings of every measured layer, by canonical name."""
        return self._options

    def mix(self, choice: Mapping[str, str], name: Callable[[float], str]) -> Candidate:
        """Return the candidate of a choice of groupings."""
        plan = choice_plan(self.material.model, choice, "kvant")
        plan = msgspec.structs.replace(plan, preset=name(self._bpw(plan)))
        return msgspec.structs.replace(self._candidate(plan), predicted_kld=predicted_kld(self._options, choice))

    def choice(self, candidate: Candidate) -> dict[str, str] | None:
        """Return the options that a mix or a type takes; None if one of its layers is encoded otherwise."""
        if not candidate.is_fitted or not self._options:
            return None
        return plan_choice(self.material.model, candidate.plan, self._options)

    def engine_floor(self, floors: Sequence[Floor]) -> float:  # noqa: ARG002
        """Return 0: the engine that measures computes with decoded weights and adds nothing."""
        return 0.0

    def key(self, candidate: Candidate) -> str:
        """Digest of all that decides the bytes of a directory."""
        model, known = self.material.model, self._encoding(candidate.plan, is_fitted=candidate.is_fitted)
        scheme = plan_scheme(candidate.plan, self._tensors(known))
        beside = companions(model.path).values() if model.path.is_dir() else ()
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in beside]
        return digest(
            "mlx", MADE, __version__, source_key(model), stats, scheme.entries(), list(scheme.layers.items()),
            known.dtype, known.provenance, known.curvatures.sha256 if known.curvatures else None,
        )  # fmt: skip

    def make(self, candidate: Candidate, *, threads: int = 0, progress: Progress = SILENT) -> Path:
        """Return a candidate's directory in the cache, encoding it unless it is there."""

        def write(directory: Path) -> None:
            self.write(candidate.plan, directory, is_fitted=candidate.is_fitted, threads=threads, progress=progress)

        return directories.made(self.key(candidate), write)

    def forget(self, candidate: Candidate) -> None:
        """Remove a candidate's directory from the cache."""
        directories.forget(self.key(candidate))

    def write(self, plan: Plan, out: Path, *, is_fitted: bool, threads: int = 0, progress: Progress = SILENT) -> None:
        """Write the directory of a plan."""
        known = self._encoding(plan, is_fitted=is_fitted)
        write_plan(self.material.model, plan, out, known, threads=threads or cores(), progress=progress)

    def measure(
        self, artifact: Path, base: BaseLogits, *, threads: int = 0, progress: Progress = SILENT
    ) -> VariantScore:
        """Measure a directory: quality of its weights in llama.cpp, speed and memory in mlx-lm."""
        return measure(artifact, base, n_weights=self.material.model.n_weights, threads=threads, progress=progress)

    def memory_bytes(self, candidate: Candidate, score: Score) -> int:
        """Memory measured, and not less than llama.cpp is predicted to take for as many bytes.

        Cache and activations are the model's, not the format's, and are predicted for the context asked for.
        """
        return max(candidate.ram.total_bytes, score.rss_bytes or 0)

    def provenance(self) -> dict[str, str]:
        """Nothing else decides a directory's bytes."""
        return {}

    def matrices(self, plan: Plan) -> list[Matrix]:
        """List how matrices are stored: by grouping, or in the float type."""
        known = self._encoding(plan, is_fitted=self._is_fitted(plan))
        sizes: dict[str, int] = {}
        for tensor in self._stored(plan, known):
            path = part_path(tensor.name)
            sizes[path] = sizes.get(path, 0) + n_bytes(tensor)
        names = {path: name for name, path in layer_paths(self.material.model, self.material.model.tensors).items()}
        found = [(part_path(t.name), t) for t in self._tensors(known) if len(t.shape) > 1]
        return [
            Matrix(names[path], plan.types.get(path, t.block_type.name), sizes[path], n_weights(t))
            for path, t in found
            if path
        ]

    def remarks(self, candidate: Candidate) -> tuple[str, ...]:
        """Say what was left out of the model, and for which matrices an importance file has nothing."""
        importance = self.material.importance
        is_used = importance and importance.source and not candidate.is_fitted and can_be_fitted(candidate.plan)
        return importance_remarks(self.material.model, importance if is_used else None)

    def continuation(self, candidate: Candidate, artifact: Path | None, *, threads: int) -> str | None:  # noqa: ARG002
        """Return None: mlx-lm is not asked for samples."""
        return None

    @cached_property
    def _options(self) -> Options:
        m = self.material
        if m.calibration is None:
            return {}
        return grouping_options(m.model, m.calibration, threads=m.threads, progress=m.progress)

    @cached_property
    def _floats(self) -> Encoding:
        """Encode as `mx.quantize` does, in the model's own float type."""
        return Encoding(dtype=float_type(self.material.model, None))

    def _is_fitted(self, plan: Plan) -> bool:
        """Whether variants of a plan are encoded under the calibration's Hessians."""
        return self.material.calibration is not None and can_be_fitted(plan)

    def _encoding(self, plan: Plan, *, is_fitted: bool) -> Encoding:
        """Return how the layers of a plan are encoded.

        Raises:
            PlanError: Under Hessians, and there is no calibration.
        """
        m = self.material
        if is_fitted:
            if m.calibration is None:
                raise PlanError("plan: is encoded under Hessians, and nothing was measured. Calibrate the model.")
            return under_hessians(m.calibration)
        if m.importance and can_be_fitted(plan):
            return by_importance(m.importance, m.model)
        return self._floats

    def _tensors(self, encoding: Encoding) -> list[LazyTensor]:
        """The model's tensors under MLX's names."""
        found = self._plain.get(encoding.dtype)
        if found is None:
            found = self._plain[encoding.dtype] = mlx_tensors(self.material.model, encoding.dtype)
        return found

    def _stored(self, plan: Plan, encoding: Encoding) -> list[LazyTensor]:
        """What the files of weights hold."""
        plain = self._tensors(encoding)
        return stored_tensors(plain, plan_scheme(plan, plain), encoding.dtype)

    def _bpw(self, plan: Plan) -> float:
        known = self._encoding(plan, is_fitted=self._is_fitted(plan))
        return 8 * sum(map(n_bytes, self._stored(plan, known))) / self.material.model.n_weights

    def _candidate(self, plan: Plan, aliases: tuple[str, ...] = ()) -> Candidate:
        """Predict what a plan needs and loses."""
        m, is_fitted = self.material, self._is_fitted(plan)
        known = self._encoding(plan, is_fitted=is_fitted)
        size = stored_bytes(self._stored(plan, known))
        distortion = plan_distortion(plan, self._tensors(known), is_weighed=known.curvatures is not None)
        return Candidate(
            preset=plan.preset, name=MLX().label(plan.preset), plan=plan, aliases=aliases, size_bytes=size,
            bpw=self._bpw(plan), ram=predict_ram(m.model, size, m.context), speed_tok_s=self._speed(plan, known),
            distortion=distortion * (FITTED_GAIN if is_fitted else 1), is_fitted=is_fitted,
        )  # fmt: skip

    def _speed(self, plan: Plan, known: Encoding) -> float:
        """Predict tokens per second from the bytes that one touches: all but the rows of an untied embedding."""
        model, device = self.material.model, self.material.device
        untied = layer_paths(model, {EMBEDDING: 0})[EMBEDDING] if OUTPUT in model.tensors else None
        touched = {Family.LEGACY: 0, Family.FLOAT: 0}
        for tensor in self._stored(plan, known):
            path = part_path(tensor.name)
            if path != untied:  # a group's scale and bias are used as those of Q4_1's blocks
                touched[Family.LEGACY if path in plan.types else Family.FLOAT] += n_bytes(tensor)
        return predict_speed(
            touched, bandwidth_bytes_s=device.bandwidth_bytes_s, cores=device.cores, core_scale=device.core_scale
        )
