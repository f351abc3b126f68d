"""What was measured of a file, and what it was made from."""

import msgspec

from kvant.evaluate.scores import Score
from kvant.hub.passports import PASSPORT_FORM
from kvant.recipes.companion import Beside
from kvant.recipes.measure.parity import Parity
from kvant.recipes.optimize.facts import Delivered
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.report.report import Report


class Passport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a file, and what it was made from.

    Attributes:
        passport: Form of this document.
        file: Its name.
        sha256: Hash of its bytes.
        base_sha256: Identity of the full-precision model.
        preset: Preset of its plan.
        plan_sha256: Hash of the plan.
        imatrix_sha256: Hash of the importance it was encoded with; None without.
        text: Label of the text measured on.
        text_sha256: Its hash.
        score: What was measured; its `measure` says what a loss is measured in.
        tokenizer: How it reads and prompts, against the model's own tokenizer.
        projector: What lies beside it, of a model that sees or hears.
        machine: Processor it was measured on.
        versions: Of everything that took part.
    """

    passport: int = PASSPORT_FORM
    file: str
    sha256: str
    base_sha256: str
    preset: str
    plan_sha256: str
    imatrix_sha256: str | None
    text: str
    text_sha256: str
    score: Score
    tokenizer: Parity | None = None
    projector: Beside | None = None
    machine: str
    versions: dict[str, str]


def make_passport(one: Delivered, outcome: Outcome, report: Report, tokenizer: Parity) -> Passport:
    """Say what was delivered."""
    taken, material = one.search.taken, outcome.material
    return Passport(
        file=one.path.name, sha256=one.sha256, base_sha256=outcome.yardstick.original.sha256,
        preset=taken.candidate.preset, plan_sha256=taken.candidate.plan.sha256,
        imatrix_sha256=material.importance.sha256 if material.importance else None,
        text=report.text.name, text_sha256=report.text.sha256, score=taken.score, tokenizer=tokenizer,
        projector=report.projector if one.search.target.takes_projector else None,
        machine=material.machine.cpu, versions=report.versions,
    )  # fmt: skip
