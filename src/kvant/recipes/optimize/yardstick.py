"""What every variant of a search is measured against, by what the model makes: text, or vectors of texts.

    checked_measure(model) ─► what a loss is measured in
    Yardstick.original ─► the original's logits on windows of text, or its vectors of queries and passages
                          original.score(workshop, artifact) ─► a score of that measure

Nothing beyond this module asks which one it is: a score, a goal and a report know their measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from kvant.devices.detect import Machine
from kvant.devices.profiles import Profile
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.evaluate.corpora import CALIBRATION_HASH_KEY, CALIBRATION_NAME_KEY, Corpus, check_unseen
from kvant.evaluate.loss import Measure
from kvant.evaluate.scores import Score
from kvant.evaluate.vectors import base_vectors, pairs_to_measure, score_vectors
from kvant.formats.gguf.kinds import check_generates
from kvant.metadata import string
from kvant.model import Model
from kvant.progress import Progress
from kvant.recipes.goal import Budget
from kvant.recipes.measure.base import (
    Floor,
    f32_file,
    measure_floors,
    measure_of,
    measured_text,
    possible_context,
    prepare_base,
)
from kvant.recipes.measure.textname import NONE
from kvant.recipes.optimize.clock import Clock
from kvant.recipes.optimize.fields import ABSENT, FIELDS
from kvant.recipes.optimize.request import Request, default_of, value_of
from kvant.recipes.report.report import TextFacts
from kvant.recipes.targets.base import Material, Target, Workshop

WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The full-precision model's side of every comparison.

    Attributes:
        file: It as llama.cpp runs it.
        sha256: Its identity.
        key: Hash of all that its side depends on.
        engine: Engine and version that it ran in.
        text: The text that is measured on.
        score: Measures an artifact of a workshop's.
        floors: Measures losses that are noise.
    """

    file: Path
    sha256: str
    key: str
    engine: str
    text: TextFacts
    score: Callable[[Workshop, Path, Progress], Score]
    floors: Callable[[], list[Floor]]


@dataclass(frozen=True)
class Yardstick:
    """What every variant is measured against; the original is run when it is first asked for.

    Attributes:
        request: What is asked for.
        material: What variants are made from.
        measure: What a loss is measured in.
        clock: Time since the search began.
    """

    request: Request
    material: Material
    measure: Measure
    clock: Clock

    @cached_property
    def original(self) -> Original:
        """The full-precision model's side."""
        return _of_text(self) if self.measure.writes else _of_vectors(self)

    def prepare(self) -> None:
        """Have it ready before threads ask for it: each that finds it missing would make it."""
        _ = self.original

    @cached_property
    def floors(self) -> list[Floor]:
        """Losses that are noise."""
        return self.original.floors()

    @property
    def machine(self) -> Machine:
        """The machine at hand."""
        return self.material.machine

    @property
    def threads(self) -> int:
        """Threads that each variant is made and measured with."""
        return self.material.threads

    @property
    def all_threads(self) -> int:
        """Threads that the original is run with, by itself."""
        return self.request.threads or self.machine.cores

    @property
    def corpus(self) -> Corpus:
        """The text that is measured on; nothing that variants are made from may have seen it."""
        asked, known = self.request, self.material
        text = measured_text(asked.text, asked.corpus)
        if known.calibration:
            seen = {CALIBRATION_HASH_KEY: string(known.calibration.text.sha256)}
            check_unseen(text, known.model.path, seen)
        for dataset in known.importance.datasets if known.importance else ():
            check_unseen(text, asked.imatrix or known.model.path, {CALIBRATION_NAME_KEY: string(dataset)})
        return text


def checked_measure(model: Model) -> Measure:
    """Return what the loss of a model's variants is measured in.

    Raises:
        UnsupportedModelError: Its variants cannot be compared; the message says what it does.
    """
    measure = measure_of(model)
    if measure.writes:
        check_generates(model)
    return measure


def fitted_request(request: Request, model: Model, measure: Measure) -> Request:
    """Return a request with a context that the model can have: what makes vectors reads a text at once, or not at all.

    Raises:
        ValueRangeError: A field is asked for that decides nothing of such a model.
    """
    if measure.writes:
        return request
    for field in FIELDS:
        if field.of_text and value_of(request, field.name) not in (*ABSENT, default_of(field)):
            raise ValueRangeError(
                f"{field.option}: {field.of_text}, and {request.source} makes vectors of texts. Leave it out."
            )
    return msgspec.structs.replace(request, context=possible_context(model, request.context), calibrate=NONE)


def check_formats(targets: Sequence[Target], measure: Measure) -> None:
    """Refuse formats whose engine makes no vectors, if vectors are what is compared.

    Raises:
        UnsupportedFormatError: One makes none.
    """
    for target in targets:
        if not measure.writes and not target.embeds:
            raise UnsupportedFormatError(
                f"formats: {target.name}: its engine makes no vectors of texts here, so variants cannot be compared. "
                "Leave it out of --formats."
            )


def planned(budget: Budget, device: Profile, measure: Measure) -> Budget:
    """Return the limits that can be planned for. What a text takes to be read is measured, not predicted.

    Raises:
        ValueRangeError: A speed is asked for that can be neither predicted nor measured.
    """
    if measure.writes or budget.min_speed_tok_s is None:
        return budget
    if not device.is_here:
        raise ValueRangeError(
            f"--min-speed: how fast {device.name} reads texts is not predicted, and it can be measured on this machine "
            "alone. Leave --min-speed or --device out."
        )
    return msgspec.structs.replace(budget, min_speed_tok_s=None)


def _of_text(yardstick: Yardstick) -> Original:
    """Logits of a model that writes text."""
    model, progress = yardstick.material.model, yardstick.material.progress
    file, base = prepare_base(
        model, text=yardstick.corpus, context=WINDOW_TOKENS, chunks=yardstick.request.chunks,
        threads=yardstick.all_threads, progress=progress,
    )  # fmt: skip
    header, windows = base.header, base.windows
    return Original(
        file=file, sha256=header.base, key=base.key, engine=header.engine,
        text=TextFacts(
            name=header.text, sha256=header.text_sha256, tokens=int(windows.tokens.size), context=windows.context
        ),
        score=lambda workshop, artifact, progress: workshop.measure(
            artifact, base, threads=yardstick.threads, progress=progress
        ),
        floors=lambda: measure_floors(file, base, threads=yardstick.all_threads, progress=progress),
    )  # fmt: skip


def _of_vectors(yardstick: Yardstick) -> Original:
    """Vectors of a model that makes vectors of texts. It has no floors: F32 against itself is 0 to six digits."""
    model, progress, text = yardstick.material.model, yardstick.material.progress, yardstick.corpus
    pairs = pairs_to_measure(text)
    file, identity = f32_file(model, progress=progress)
    base = base_vectors(file, identity, model, text, pairs, threads=yardstick.all_threads, progress=progress)
    return Original(
        file=file, sha256=identity, key=base.key, engine=base.engine,
        text=TextFacts(
            name=base.text, sha256=base.text_sha256, tokens=base.n_tokens, context=base.longest,
            pairs=len(pairs.queries),
        ),
        score=lambda _, artifact, progress: score_vectors(
            artifact, base, threads=yardstick.threads, progress=progress
        ),
        floors=list,
    )  # fmt: skip
