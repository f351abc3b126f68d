"""Which variant of a repository suits a device: by what was measured where passports say it, else by prediction.

Only the header of a candidate is downloaded; its hyperparameters and block types give the memory it will take.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kvant.devices.memory import RamPrediction, predict_ram, projector_bytes, repacked_bytes
from kvant.devices.profiles import Profile
from kvant.documents import JSON_ERRORS
from kvant.errors import BudgetError, FormatError, SourceError
from kvant.evaluate.loss import MEASURES, Measure
from kvant.formats.gguf.companions import described
from kvant.formats.gguf.header import Header, read_header
from kvant.hub.passports import PASSPORT_FORM, PASSPORT_SUFFIX
from kvant.hub.sources.huggingface import HuggingFace, RepoFile, Repository
from kvant.hub.sources.variants import RemoteVariant, choose_projector
from kvant.hub.transfer import Remote, read_range
from kvant.model import Model
from kvant.units import format_bytes

if TYPE_CHECKING:
    import httpx2

FIRST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
"""Of a header: asked for at first, and at most."""

MAX_PASSPORT_BYTES = 4 << 20
ORIGINALS = frozenset({"F32", "F16", "BF16"})


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The variant for a device, and why.

    Attributes:
        variant: Its name.
        reason: In one sentence.
        ram: Memory it is predicted to take.
        usable_bytes: Memory that models may take there.
        kld: Mean KL divergence that its passport says; None without one.
        distance: Mean cosine distance of vectors that it says instead, of an embedding model.
    """

    variant: str
    reason: str
    ram: RamPrediction
    usable_bytes: int
    kld: float | None = None
    distance: float | None = None


class Passport(msgspec.Struct, frozen=True):
    """What is read of a passport beside a file: whose it is and how good, and its form."""

    sha256: str
    score: "Score"
    passport: int = PASSPORT_FORM


class Score(msgspec.Struct, frozen=True):
    """What was measured: one of the two."""

    kld_mean: float | None = None
    distance_mean: float | None = None


class Lost(NamedTuple):
    """What a variant loses, by its passport."""

    mean: float
    measure: Measure


def fit_variant(
    hub: HuggingFace,
    client: "httpx2.Client",
    repository: Repository,
    variants: Sequence[RemoteVariant],
    *,
    device: Profile,
    context: int,
    projector: str | None = None,
) -> Fit:
    """Choose the variant that loses least among those that fit a device.

    Passports beside the files decide where there are any; without, more bytes lose less. Full precision is taken only
    where there is nothing else: beside Q8_0 it shows no difference and takes twice the memory. The projector that
    comes with a variant counts.

    Args:
        hub: The hub.
        client: What asks it.
        repository: The repository.
        variants: Its variants.
        device: What they are to fit.
        context: Tokens of context.
        projector: The projector wished for; see `choose_projector`.

    Raises:
        BudgetError: None fits.
        TransferError: The hub fails.
    """
    usable = device.usable_bytes
    small = [v for v in variants if v.preset not in ORIGINALS] or list(variants)
    chosen = {v.name: choose_projector(repository, v, projector) for v in small}
    needed = {file: projector_memory(hub, client, repository, file) for file in set(chosen.values())}
    eyes = {name: needed[file] for name, file in chosen.items()}
    possible = [v for v in small if v.size_bytes < min(usable - eyes[v.name], device.max_file_bytes or usable)]
    known = read_passports(hub, client, repository, possible)
    order = sorted(possible, key=lambda v: (known[v.name].mean if v.name in known else math.inf, -v.size_bytes))
    least: int | None = None
    for variant in order:
        ram = predict(hub, client, repository, variant, context, device.architecture, eyes[variant.name])
        if ram.total_bytes <= usable:
            return Fit(
                variant=variant.name, ram=ram, usable_bytes=usable, **_told(known.get(variant.name)),
                reason=_reason(variant, ram, usable, known, device, len(variants)),
            )  # fmt: skip
        least = min(least or ram.total_bytes, ram.total_bytes)
    smallest = min((v.size_bytes for v in small), default=0)
    raise BudgetError(
        f"hf:{repository.id}: no variant fits {device.title}: {format_bytes(usable)} are usable and the smallest "
        f"takes {format_bytes(least or smallest)}{f' at a context of {context}' if least else ''}. "
        "Use a smaller model or --context."
    )


def predict(
    hub: HuggingFace,
    client: "httpx2.Client",
    repository: Repository,
    variant: RemoteVariant,
    context: int,
    architecture: str,
    eyes_bytes: int = 0,
) -> RamPrediction:
    """Predict the memory a remote variant will take, from its header alone, beside what its projector takes.

    Raises:
        SourceError: Its header is damaged.
        TransferError: The hub fails.
    """
    with tempfile.TemporaryDirectory(prefix="kvant-header-", ignore_cleanup_errors=True) as directory:
        remote = hub.remote(repository, variant.files[0])
        header = remote_header(client, remote, Path(directory) / "header.gguf")
        model = Model(metadata=header.metadata, tensors={}, path=Path(variant.name), files=())
        copies = repacked_bytes(
            {t.name: t.block_type for t in header.tensors}, {t.name: t.shape for t in header.tensors}, architecture
        )
        trained = model.hyper("context_length", context)
        return predict_ram(model, variant.size_bytes, min(context, trained), repacked=copies, projector=eyes_bytes)


def projector_memory(hub: HuggingFace, client: "httpx2.Client", repository: Repository, file: RepoFile | None) -> int:
    """Predict the memory a remote projector will take, from its header alone; 0 for none.

    Raises:
        SourceError: Its header is damaged.
        TransferError: The hub fails.
    """
    if file is None:
        return 0
    with tempfile.TemporaryDirectory(prefix="kvant-header-", ignore_cleanup_errors=True) as directory:
        header = remote_header(client, hub.remote(repository, file), Path(directory) / "header.gguf")
    model = Model(metadata=header.metadata, tensors={}, path=Path(file.path), files=())
    seen = described(model, Path(file.path), file.size_bytes)
    return projector_bytes(seen.size_bytes, seen.patches, seen.hidden)


def remote_header(client: "httpx2.Client", remote: Remote, place: Path) -> Header:
    """Read the header of a remote file; `place` becomes a file of its length that holds nothing but that.

    Raises:
        SourceError: It is damaged, or longer than MOST_BYTES.
        TransferError: The server refuses or fails.
    """
    wanted = FIRST_BYTES
    while True:
        start = read_range(client, remote, wanted)
        is_all = len(start) < wanted or len(start) == remote.size_bytes
        with place.open("wb") as file:  # sparse: what was not read is a hole
            file.write(start)
            file.truncate(max(remote.size_bytes or 0, len(start)))
        try:
            header = read_header(place)
            if is_all or min((t.offset for t in header.tensors), default=0) <= len(start):
                return header
            problem: FormatError | None = None
        except FormatError as error:
            problem = error
        if is_all or wanted >= MOST_BYTES:
            why = str(problem).partition(": ")[2] if problem else f"its header is longer than {MOST_BYTES} bytes."
            raise SourceError(f"{remote.url.rpartition('/')[2]}: {why}") from problem
        wanted *= 4


def read_passports(
    hub: HuggingFace, client: "httpx2.Client", repository: Repository, variants: Sequence[RemoteVariant]
) -> dict[str, Lost]:
    """Return what each variant loses that has a passport of its very bytes beside it, in the first one's measure."""
    files = {file.path: file for file in repository.files}
    found: dict[str, Lost] = {}
    for variant in variants:
        file = files.get(variant.files[0].path.removesuffix(".gguf") + PASSPORT_SUFFIX)
        if file is None or file.size_bytes > MAX_PASSPORT_BYTES:
            continue
        raw = read_range(client, hub.remote(repository, file), MAX_PASSPORT_BYTES)
        try:
            passport = msgspec.json.decode(raw, type=Passport)
        except JSON_ERRORS:
            continue
        if passport.passport > PASSPORT_FORM:  # pulling that variant says so
            continue
        lost = _lost(passport.score)
        is_alike = lost and all(lost.measure is other.measure for other in found.values())
        if lost and is_alike and passport.sha256 == variant.files[0].sha256 and 0 <= lost.mean < math.inf:
            found[variant.name] = lost
    return found


def _lost(score: Score) -> Lost | None:
    means = ((measure.mean_of(score), measure) for measure in MEASURES.values())
    return next((Lost(mean, measure) for mean, measure in means if mean is not None), None)


def _told(lost: Lost | None) -> dict[str, float]:
    return {} if lost is None else {lost.measure.name: lost.mean}


def _reason(
    variant: RemoteVariant, ram: RamPrediction, usable: int, known: dict[str, Lost], device: Profile, n: int
) -> str:
    eyes = f" with its projector, {format_bytes(ram.projector_bytes)} of it," if ram.projector_bytes else ""
    memory = (
        f"{format_bytes(ram.total_bytes)}{eyes} of {format_bytes(usable)} usable memory at a context of {ram.context}"
    )
    if variant.name in known:
        lost = known[variant.name]
        least = f"least measured {lost.measure.long}, {lost.measure.number(lost.mean)}"
        return f"{variant.name} has the {least}, and takes {memory}."
    return f"{variant.name} is the largest of {n} variants that fits {device.title}: {memory}."
