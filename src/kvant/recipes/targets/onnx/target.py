"""Directories of ONNX Runtime: types of few bits by name, and mixes of their blocks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.devices.memory import predict_ram
from kvant.devices.speed import predict_speed
from kvant.dtypes import Family
from kvant.errors import PlanError, UnsupportedFormatError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore, score
from kvant.evaluate.scores import Score
from kvant.formats.onnx.weights import Weight
from kvant.kernels.nbits import nbits_type
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
from kvant.recipes.targets.onnx.distortion import is_finer, plan_distortion
from kvant.recipes.targets.onnx.encoding import Known, known_of
from kvant.recipes.targets.onnx.export import is_exported
from kvant.recipes.targets.onnx.exporters import exporters
from kvant.recipes.targets.onnx.options import Choices, choices_of
from kvant.recipes.targets.onnx.origin import Origin, open_export
from kvant.recipes.targets.onnx.plan import SCALE_BYTES, TYPES, Dtype, fitting_plan
from kvant.recipes.targets.onnx.sizes import exact_size
from kvant.recipes.targets.onnx.write import checked_plan, write_decoder

PRESETS = ("MatMulNBits4_b128", "int4", "int8")
"""Types that are worth trying unless others are asked for."""

DTYPE: Dtype = "F16"
"""Scales of float16 are a tenth of the file less for the same divergence; a processor generates 2 to 12 % slower."""

LAYOUT = 3
"""Raised when the same plan makes other files than before, so that older ones in the cache are left alone."""


class ONNX:
    """Directories of onnxruntime-genai, which ONNX Runtime runs."""

    name = "onnx"
    title = "ONNX in ONNX Runtime"
    points = 2
    speed_margin = 0.0
    embeds = False
    takes_projector = False

    def check(self, model: Model) -> None:
        """Refuse a model that was not exported yet where there is no environment to do it in."""
        if not is_exported(model):
            exporters()

    def knows(self, preset: str) -> bool:
        """Say whether a name is a type of few bits, or one of blocks."""
        try:
            return preset.lower() in TYPES or bool(nbits_type(preset))
        except UnsupportedFormatError:
            return False

    def label(self, preset: str) -> str:
        """Return `onnx PRESET`."""
        return f"{self.name} {preset}"

    def output_name(self, model: str, preset: str) -> str:
        """Return `MODEL-onnx-PRESET`."""
        return f"{model}-{self.name}-{preset}"

    def command(self, preset: str, source: str, out: str, imatrix: str | None) -> list[str]:
        """Return the words of the command that makes a preset."""
        words = ["kvant", "quantize", source, "--to", self.name, "-t", preset, "--dtype", DTYPE]
        return [*words, *(["--imatrix", imatrix] if imatrix else []), "-o", out]

    def finer(self, fine: str, coarse: str) -> bool:
        """Say whether blocks certainly store weights at least as finely as others."""
        return is_finer(fine, coarse)

    def open(self, material: Material) -> "ONNXWorkshop":
        """Export a model, unless it was before, and return what makes variants of it."""
        return ONNXWorkshop(material, open_export(material.model, progress=material.progress), label=self.label)


@dataclass(frozen=True)
class ONNXWorkshop:
    """One model's variants as ONNX directories: under Hessians with calibration, else by importance or by rounding.

    Attributes:
        material: What they are made from.
        origin: The model's export.
        label: Returns a preset's name as tables of several formats show it.
    """

    material: Material
    origin: Origin
    label: Callable[[str], str]

    @cached_property
    def limits(self) -> Limits:
        """What files may take; time per token cannot be planned for."""
        m = self.material
        return limits_of(m.budget, m.device, m.model, m.context)

    @property
    def rest_bytes(self) -> int:
        """Bytes of the graph and its weights beside those of the options, at most."""
        return self._choices.rest_bytes

    def presets(self, names: Sequence[str] = ()) -> list[Candidate]:
        """Plan types by their names."""
        same: dict[tuple[tuple[str, str], ...], list[Plan]] = {}
        for name in dict.fromkeys(names or PRESETS):
            try:
                asked = checked_plan(self.origin, name, is_known=self._best_known.curvatures is not None)
            except UnsupportedFormatError as error:
                raise PlanError(str(error)) from error
            plan, _ = fitting_plan(self.origin.weights, asked, None)
            same.setdefault(tuple(plan.types.items()), []).append(plan)
        found = [self._candidate(plans[0], aliases=[p.preset for p in plans[1:]]) for plans in same.values()]
        return sorted(found, key=lambda c: (c.size_bytes, c.distortion))

    def options(self) -> Options:
        """Return the blocks that every measured matrix may become."""
        return self._choices.options

    def mix(self, choice: Mapping[str, str], name: Callable[[float], str]) -> Candidate:
        """Return the candidate of a choice of blocks."""
        plan = self._choices.plan(choice, "")
        bpw = exact_size(self.origin, plan.types, {}, DTYPE).bpw
        plan = msgspec.structs.replace(plan, preset=name(bpw))
        return msgspec.structs.replace(
            self._candidate(plan), predicted_kld=predicted_kld(self._choices.options, choice)
        )

    def choice(self, candidate: Candidate) -> dict[str, str] | None:
        """Return the options that a plan takes, whether it is a mix or a type by its name."""
        return self._choices.choice(candidate.plan.types) if candidate.is_fitted and self._choices.options else None

    def engine_floor(self, floors: Sequence[Floor]) -> float:  # noqa: ARG002 - of another engine
        """Nothing is known to be lost by ONNX Runtime itself."""
        return 0.0

    def key(self, candidate: Candidate) -> str:
        """Digest of all that decides a directory's bytes."""
        known = self._known(is_fitted=candidate.is_fitted)
        return digest(
            "onnx", LAYOUT, __version__, source_key(self.material.model), self.origin.sha256, self.origin.stamp,
            candidate.plan.sha256, DTYPE, known.sha256, sorted(known.notes("").items()),
        )  # fmt: skip

    def make(self, candidate: Candidate, *, threads: int = 0, progress: Progress = SILENT) -> Path:
        """Return a candidate's directory, encoding it unless it is in the cache."""
        write = functools.partial(
            self.write, candidate.plan, is_fitted=candidate.is_fitted, threads=threads, progress=progress
        )
        return directories.made(self.key(candidate), write)

    def forget(self, candidate: Candidate) -> None:
        """Remove a candidate's directory from the cache."""
        directories.forget(self.key(candidate))

    def write(self, plan: Plan, out: Path, *, is_fitted: bool, threads: int = 0, progress: Progress = SILENT) -> None:
        """Write the directory of a plan."""
        known = self._known(is_fitted=is_fitted)
        write_decoder(self.origin, plan, out, known, dtype=DTYPE, threads=threads, progress=progress)

    def measure(
        self, artifact: Path, base: BaseLogits, *, threads: int = 0, progress: Progress = SILENT
    ) -> VariantScore:
        """Measure a directory in ONNX Runtime."""
        return score(artifact, base, threads=threads, progress=progress)

    def memory_bytes(self, candidate: Candidate, score: Score) -> int:
        """Return what llama.cpp is predicted to take for as many bytes, or what was measured where that is more.

        Cache and activations at the context asked for are the model's, not the format's.
        """
        return max(candidate.ram.total_bytes, score.rss_bytes or 0)

    def provenance(self) -> dict[str, str]:
        """Return what the export is, which decides the bytes of every variant."""
        return self.origin.provenance()

    def matrices(self, plan: Plan) -> list[Matrix]:
        """List how matrices are stored."""
        return [self._matrix(weight, plan.types[weight.name]) for weight in self.origin.weights]

    def remarks(self, candidate: Candidate) -> tuple[str, ...]:
        """Say what was left out of the model, and what an importance file did not do."""
        importance = self.material.importance
        used = None if candidate.is_fitted or importance is None or not importance.source else importance
        return importance_remarks(self.material.model, used)

    def continuation(self, candidate: Candidate, artifact: Path | None, *, threads: int) -> str | None:  # noqa: ARG002
        """ONNX Runtime is not asked."""
        return None

    @cached_property
    def _choices(self) -> Choices:
        m = self.material
        return choices_of(self.origin, m.calibration, DTYPE, threads=m.threads, progress=m.progress)

    @cached_property
    def _best_known(self) -> Known:
        """What presets are encoded with."""
        return known_of(self.material.model, self.material.calibration, self.material.importance)

    def _known(self, *, is_fitted: bool) -> Known:
        """What a plan is encoded with."""
        if is_fitted or self.material.calibration is None:
            return self._best_known
        return known_of(self.material.model, None, self.material.importance)

    def _candidate(self, plan: Plan, aliases: Sequence[str] = ()) -> Candidate:
        """Predict what a plan needs and loses."""
        m, known = self.material, self._best_known
        is_fitted = m.calibration is not None
        size = exact_size(self.origin, plan.types, known.notes(plan.preset), DTYPE)
        is_weighed = known.curvatures is not None
        lost = plan_distortion(self.origin.weights, plan.types, size.n_params, is_weighed=is_weighed)
        speed = predict_speed(
            {Family.LEGACY: self._token_bytes(plan)}, bandwidth_bytes_s=m.device.bandwidth_bytes_s,
            cores=m.device.cores, core_scale=m.device.core_scale,
        )  # fmt: skip
        return Candidate(
            preset=plan.preset,
            name=self.label(plan.preset),
            plan=msgspec.structs.replace(plan, has_importance=is_weighed),
            aliases=tuple(aliases),
            size_bytes=size.n_bytes,
            bpw=size.bpw,
            ram=predict_ram(m.model, size.n_bytes, m.context),
            speed_tok_s=speed,
            distortion=lost * (FITTED_GAIN if is_fitted else 1),
            is_fitted=is_fitted,
        )

    def _matrix(self, weight: Weight, kind: str) -> Matrix:
        n_bytes = weight.rows * nbits_type(kind).row_bytes(weight.columns, SCALE_BYTES[DTYPE])
        name = weight.names[0] if weight.names else weight.name
        return Matrix(name, kind, n_bytes, weight.rows * weight.columns)

    def _token_bytes(self, plan: Plan) -> int:
        """Bytes of the matrices that a token is multiplied with."""
        used = [weight for weight in self.origin.weights if weight.product is not None]
        return sum(self._matrix(weight, plan.types[weight.name]).n_bytes for weight in used)
