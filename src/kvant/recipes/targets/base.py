"""A target: a format that models are made in, and all that the jobs ask of it.

    Target ── check a model before hours of work
      └─ open(material) ─► Workshop: one model's variants in that format
            presets() ─► candidates of the format's own types     options() ─► what every tensor may become
            mix(choice) ─► a candidate of chosen types             write(plan) ─► an artifact, and measure(it)

Nothing outside a target's folder asks which one it is. A target is a folder and an entry point of the group
`kvant.targets`; see registry.py, and `kvant.testing.TargetTests` for what every one keeps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvant.allocate.options import Option
from kvant.devices.detect import Machine
from kvant.devices.profiles import Profile
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore
from kvant.evaluate.scores import Score
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.quant.plan import Plan
from kvant.recipes.companion import Companion
from kvant.recipes.goal import Budget
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.candidate import Candidate, Matrix
from kvant.recipes.targets.limits import Limits

Options = Mapping[str, Sequence[Option]]
"""What every tensor that has a choice may become, by canonical name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What variants are made from, and what for.

    Attributes:
        model: The full-precision model.
        machine: The machine at hand.
        device: The device that they will run on.
        importance: Weights of input channels, from a file or measured by the calibration; None for none.
        calibration: What was measured of the model; None for nothing.
        budget: Limits that they are to keep, as far as it can be planned for.
        context: Tokens of context that memory is predicted for.
        threads: Threads; 0 for one per core.
        progress: Told of every step.
        companion: The model's projector, which lies beside variants in formats that have one; None if there is none.
    """

    model: Model
    machine: Machine
    device: Profile
    importance: Importance | None = None
    calibration: Calibration | None = None
    budget: Budget = field(default_factory=Budget)
    context: int = 4096
    threads: int = 0
    progress: Progress = SILENT
    companion: Companion | None = None


class Workshop(Protocol):
    """One model's variants in one format. Plans name the format's own tensors and types; options canonical ones."""

    @property
    def limits(self) -> Limits:
        """What files may take by the budget, as far as it can be planned for in this format."""
        ...

    @property
    def rest_bytes(self) -> int:
        """Bytes of a file beside those of the options, at most."""
        ...

    def presets(self, names: Sequence[str] = ()) -> list[Candidate]:
        """Plan the format's own types and predict size, memory and speed; nothing is encoded.

        Args:
            names: Those to consider; by default every sensible one that what is known of the model allows.

        Returns:
            Candidates by rising size; presets that come to the same types are one.

        Raises:
            PlanError: One that was asked for is unknown, or needs what is not at hand.
        """
        ...

    def options(self) -> Options:
        """Return what every measured tensor may become, with bytes, predicted KL divergence and seconds per token.

        Empty without calibration.
        """
        ...

    def mix(self, choice: Mapping[str, str], name: Callable[[float], str]) -> Candidate:
        """Return the candidate of a choice among the options.

        Args:
            choice: Type by canonical name, of every tensor of the options.
            name: Gives its preset from its bits per weight.
        """
        ...

    def choice(self, candidate: Candidate) -> dict[str, str] | None:
        """Return which options a candidate takes, by canonical name; None if it is none of them."""
        ...

    def engine_floor(self, floors: Sequence[Floor]) -> float:
        """Return the KLD that the engine adds to every mix beyond what its weights lose, nats per token.

        Args:
            floors: What is known to lose next to nothing, measured.
        """
        ...

    def key(self, candidate: Candidate) -> str:
        """Digest of all that decides the bytes of a candidate's artifact."""
        ...

    def make(self, candidate: Candidate, *, threads: int = 0, progress: Progress = SILENT) -> Path:
        """Return a candidate's artifact in the cache, encoding it unless it is there."""
        ...

    def forget(self, candidate: Candidate) -> None:
        """Remove a candidate's artifact from the cache."""
        ...

    def write(self, plan: Plan, out: Path, *, is_fitted: bool, threads: int = 0, progress: Progress = SILENT) -> None:
        """Write an artifact to a place where nothing is; the same bytes for the same plan and material.

        Args:
            plan: Type of every tensor.
            out: File or directory.
            is_fitted: Encode under the calibration's Hessians, not with importance.
            threads: Threads; their number does not change a bit.
            progress: Told of the work.
        """
        ...

    def measure(
        self, artifact: Path, base: BaseLogits, *, threads: int = 0, progress: Progress = SILENT
    ) -> VariantScore:
        """Measure an artifact against the full-precision model's logits, in the format's engine."""
        ...

    def memory_bytes(self, candidate: Candidate, score: Score) -> int:
        """Memory that a variant takes at the context asked for: as predicted, or as measured where that is more."""
        ...

    def provenance(self) -> dict[str, str]:
        """Return what decides an artifact's bytes beside model, plan and statistics, by name: an export's hash."""
        ...

    def matrices(self, plan: Plan) -> list[Matrix]:
        """List how matrices are stored, in file order."""
        ...

    def remarks(self, candidate: Candidate) -> tuple[str, ...]:
        """Say what was left out of the model, and what importance did not do."""
        ...

    def continuation(self, candidate: Candidate, artifact: Path | None, *, threads: int) -> str | None:
        """Return how a variant continues the prompt of samples; None if its engine is not asked.

        Args:
            candidate: The variant.
            artifact: Where it is; None to return only what is known already.
            threads: Threads of the engine.
        """
        ...


class Target(Protocol):
    """A format that models are made in.

    Attributes:
        name: As `--formats` and `--to` take it.
        title: With its engine, as tables show it.
        points: Variants that are measured even if fewer settle the question: a trade-off needs some.
        speed_margin: Share of the limit below which an unmeasured prediction of speed rules a variant out; 0 where
            predictions say too little.
        embeds: Its files run in llama.cpp, which makes vectors of texts of them as of a GGUF: variants of embedding
            models can be compared.
        takes_projector: Whether the projector of a model that sees or hears lies beside its variants.
    """

    name: str
    title: str
    points: int
    speed_margin: float
    embeds: bool
    takes_projector: bool

    def check(self, model: Model) -> None:
        """Refuse a model that cannot be made in this format, before hours of work.

        Raises:
            KvantError: It cannot.
        """
        ...

    def knows(self, preset: str) -> bool:
        """Say whether a name is one of this format's presets."""
        ...

    def label(self, preset: str) -> str:
        """Return a preset's name as tables of several formats show it."""
        ...

    def output_name(self, model: str, preset: str) -> str:
        """Return the name of an artifact's file or directory from a model's name and its preset."""
        ...

    def command(self, preset: str, source: str, out: str, imatrix: str | None) -> list[str]:
        """Return the words of the command that makes a preset without calibration, from words for its paths."""
        ...

    def finer(self, fine: str, coarse: str) -> bool:
        """Say whether a type certainly stores weights at least as finely as another."""
        ...

    def open(self, material: Material) -> Workshop:
        """Return what makes variants of a model.

        Raises:
            EngineError, UnsupportedModelError: It cannot be made in this format after all.
        """
        ...
