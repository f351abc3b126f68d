"""kvant's own API about models: what each is, what was measured of it, and a plot of the variants of one base."""

import asyncio
from collections import defaultdict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import KvantError
from kvant.evaluate.loss import Measure
from kvant.hub.passports import Measured
from kvant.recipes.report.pareto import front
from kvant.recipes.report.plot import Frame, Plot, Point, layout
from kvant.serve.api.ollama.library import find
from kvant.serve.api.wire import as_json, served_size
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile
from kvant.serve.passports import measured
from kvant.units import format_bytes, format_speed

WIDE = Frame(width=860, height=380)
NARROW = Frame(width=380, height=340, left=62, right=14)
MAX_POINTS = 64
MAX_CHARACTERS = 200


class Blocks(msgspec.Struct, frozen=True):
    """How much of a model one block type holds."""

    type: str
    tensors: int
    bytes: int


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What a model lost, as it is shown to people.

    Attributes:
        brief: Its mean and error, in few words.
        rows: Names and values of all that was measured of it.
    """

    brief: str
    rows: list[tuple[str, str]]


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as it is shown to people.

    Attributes:
        name: What a client calls it.
        digest: Changes when the model does.
        size_bytes: Bytes of its files.
        modified_at: When it last changed, UTC, ISO 8601.
        architecture: llama.cpp's name of it.
        parameters: Weights.
        bpw: Bits of its files per weight.
        quantization: Preset, or the most used block type.
        blocks: Block types, the one with most bytes first.
        context_length: Tokens it was trained for; 0 if not told.
        embedding_length: Numbers in a hidden state; 0 if not told.
        capabilities: In Ollama's words.
        has_template: Whether it or its settings have a chat template.
        licence: Its licence's name, or how its text begins.
        base: What it was made from.
        source: Where it came from.
        ram_bytes: Memory predicted for it as this gateway would load it; None if it cannot be told.
        passport: What was measured of it.
        loss: The same of its quality, in words.
    """

    name: str
    digest: str
    size_bytes: int
    modified_at: str
    architecture: str
    parameters: int
    bpw: float | None
    quantization: str
    blocks: list[Blocks]
    context_length: int
    embedding_length: int
    capabilities: list[str]
    has_template: bool
    licence: str | None
    base: str | None
    source: str | None
    ram_bytes: int | None
    passport: Measured | None
    loss: Loss | None


class BasePlot(msgspec.Struct, frozen=True, kw_only=True):
    """Size against loss for the variants of one base, measured on one text.

    Attributes:
        base: Name of the base.
        text: Name of the text.
        loss: What the loss is, for a sentence.
        axis: The same for an axis.
        wide: The plot.
        narrow: The same for narrow screens.
    """

    base: str
    text: str
    loss: str
    axis: str
    wide: Plot
    narrow: Plot


class Cards(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /api/kvant/cards."""

    cards: list[Card]
    plots: list[BasePlot]


async def cards(request: Request) -> Response:
    """GET /api/kvant/cards: all models, and plots of those that were measured against the same base."""
    files = await asyncio.to_thread(gateway(request).library.list)
    found = [await _card(request, file) for file in files]
    return as_json(Cards(cards=found, plots=plots(found)))


async def card(request: Request) -> Response:
    """GET /api/kvant/cards/NAME: one model."""
    return as_json(await _card(request, await find(request, request.path_params["name"])))


async def _card(request: Request, file: ModelFile) -> Card:
    facts, meta = file.facts, file.facts.metadata
    try:
        ram = (await served_size(request, file)).size_bytes
    except (KvantError, OSError):
        ram = None
    passport = await asyncio.to_thread(measured, file)
    return Card(
        name=file.name, digest=file.digest, size_bytes=file.total_bytes, modified_at=file.modified_at.isoformat(),
        architecture=facts.architecture, parameters=facts.parameters,
        bpw=8 * file.size_bytes / facts.parameters if facts.parameters else None,
        quantization=facts.quantization,
        blocks=[Blocks(kind, facts.types[kind], size) for kind, size in facts.type_bytes.items()],
        context_length=facts.context_length, embedding_length=facts.embedding_length,
        capabilities=file.capabilities, has_template=facts.has_template or file.settings.template is not None,
        licence=_line(meta.get("general.license")) or _line(" ".join(file.settings.license)),
        base=_line((passport and passport.base) or meta.get("kvant.source.name") or meta.get("general.name")),
        source=_line(file.settings.source), ram_bytes=ram, passport=passport,
        loss=_loss_in_words(passport) if passport else None,
    )  # fmt: skip


def plots(found: list[Card]) -> list[BasePlot]:
    """Return a plot for every base and text that at least two models were measured with."""
    groups: dict[tuple[str, str, str], list[Card]] = defaultdict(list)
    for item in found:
        seen = item.passport
        if seen and seen.measure and seen.base_sha256 and seen.text_sha256:
            groups[seen.base_sha256, seen.text_sha256, seen.measure.name].append(item)
    return [_plot(group[:MAX_POINTS]) for group in groups.values() if len(group) > 1]


def _plot(group: list[Card]) -> BasePlot:
    best = {item.name for item in front(group, cost=lambda item: item.size_bytes, loss=_loss)}
    points = [
        Point(
            name=_label(item), size=item.size_bytes, loss=_loss(item), tone="s3", is_pick=False,
            on_front=item.name in best, notes=_notes(item),
        )
        for item in group
    ]  # fmt: skip
    first = group[0]
    assert first.passport is not None
    measure = _measure(first.passport)
    return BasePlot(
        base=first.base or first.architecture, text=first.passport.text or "", loss=f"mean {measure.long}",
        axis=f"mean {measure.noun}", wide=layout(points, WIDE), narrow=layout(points, NARROW),
    )  # fmt: skip


def _label(item: Card) -> str:
    """A short name for a point: the last part of the model's name, without what the base's name says already."""
    name = item.name.rpartition("/")[2]
    model, _, tag = name.partition(":")
    if tag and tag != "latest":
        return tag[:24]
    base = (item.base or "").lower()
    if base and model.lower().startswith(base):
        model = model[len(base) :].lstrip("-._ ") or model
    return model[-24:]


def _notes(item: Card) -> tuple[str, ...]:
    passport = item.passport
    assert passport is not None
    assert item.loss is not None
    first = _measure(passport).figures[0]
    notes = [format_bytes(item.size_bytes), item.loss.brief]
    if getattr(passport, first.field) is not None:
        notes.append(f"{first.title.lower()} {first.text(passport)}")
    speed = _speed(passport)
    if speed is not None:
        notes.append(f"{format_speed(speed)} tokens/s")
    return tuple(notes)


def _loss_in_words(passport: Measured) -> Loss:
    measure = _measure(passport)
    mean, error, high = (getattr(passport, f"{measure.name}_{end}") for end in ("mean", "se", "p99"))
    said = measure.number(mean) + (f" ± {measure.number(error)}" if error else "")
    rows = [(f"Mean {measure.noun}", said)]
    rows += [] if high is None else [("99 % below", measure.high(high))]
    rows += [(f.title, f.text(passport)) for f in measure.figures if getattr(passport, f.field) is not None]
    speed = _speed(passport)
    rows += [] if speed is None else [("Speed", f"{format_speed(speed)} tokens/s {measure.done}")]
    return Loss(brief=f"{measure.noun} {said}", rows=rows)


def _speed(passport: Measured) -> float | None:
    return passport.tg_tok_s if _measure(passport).writes else passport.pp_tok_s


def _loss(item: Card) -> float:
    assert item.passport is not None
    return _measure(item.passport).mean_of(item.passport) or 0.0


def _measure(passport: Measured) -> Measure:
    assert passport.measure is not None, "read() returns none without"
    return passport.measure


def _line(value: object) -> str | None:
    """Return the first line of a text, cut; None if there is none."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value.strip().splitlines()[0][:MAX_CHARACTERS]
