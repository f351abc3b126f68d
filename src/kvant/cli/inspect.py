"""`kvant inspect`: what a model file holds, how precise it is, and what is wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_model, model_path
from kvant.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvant.recipes.inspect.inspect import Entry, Inspection, Share, TensorReport, TokenizerReport

_WIDTH = 100


def inspect(
    model: Annotated[
        Path,
        typer.Argument(
            help="A GGUF file, any shard of one, a Hugging Face directory, or a stored model.",
            autocompletion=complete_model,
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List every metadata key.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a model file holds: precision, sizes by role and type, tokenizer, template, warnings.

    Only the header and samples of the weights are read, so a large file takes no longer than a small one.

    \b
    Examples:
      kvant inspect model-Q4_K_M.gguf
      kvant inspect model-Q4_K_M.gguf --tensors
      kvant inspect smollm2-135m/ --json
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.inspect.inspect import inspect as run

    found = run(model_path(model))
    if as_json:
        console.print_json(found)
        return
    _print_summary(found)
    _print_shares("By role", found.by_role, found.tensor_bytes)
    _print_shares("By type", found.by_type, found.tensor_bytes)
    _print_grids(found.tensors)
    if tensors:
        columns = ("tensor", "role", "type", "shape", "bpw", "class", "size", "grid")
        rows = [
            (
                _visible(t.name),
                t.role,
                t.type,
                _shape(t.shape),
                f"{t.bpw:.2f}",
                t.precision_class,
                format_bytes(t.bytes),
                "" if t.grid is None else f"{t.grid} {_percent(t.grid_share)}",
            )
            for t in found.tensors
        ]
        console.table("Tensors", columns, rows, left=3)
    if metadata:
        entries = [(_visible(key), _kind(entry), _shown(entry)) for key, entry in found.metadata.items()]
        console.table("Metadata", ("key", "type", "value"), entries, left=3)
    for sentence in found.fallbacks:
        console.say(f"fallback: {sentence}")
    for sentence in found.warnings:
        console.say(f"warning: {sentence}")


def _print_summary(found: "Inspection") -> None:
    files = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    rows = [
        ("name", _visible(found.name[:_WIDTH])),
        ("architecture", _visible(found.architecture[:_WIDTH])),
        ("format", found.format),
        ("preset", found.preset or "not said"),
        ("precision", f"{found.precision_class}, {found.bpw:.3f} bits per weight"),
        ("size", f"{format_bytes(found.size_bytes)} ({found.size_bytes} bytes{files})"),
        ("weights", f"{found.weights:,} in {len(found.tensors)} tensors"),
        ("active weights", f"{found.active_weights:,} read per token"),
        ("tokenizer", _tokenizer(found.tokenizer)),
        ("chat template", "yes" if found.has_chat_template else "no"),
    ]
    console.table(found.path, ("", ""), rows, left=2)


def _tokenizer(report: "TokenizerReport | None") -> str:
    if report is None:
        return "none"
    pre = f" ({report.pre})" if report.pre else ""
    return _visible(f"{report.model}{pre}, {report.tokens:,} tokens, {report.merges:,} merges, ends with {report.eos}")


def _print_shares(title: str, shares: "tuple[Share, ...]", total: int) -> None:
    percent = 100 / max(1, total)
    rows = [
        (s.name, s.tensors, f"{s.weights:,}", format_bytes(s.bytes), f"{s.bytes * percent:.1f} %", f"{s.bpw:.2f}")
        for s in shares
    ]
    console.table(title, ("", "tensors", "weights", "size", "share", "bpw"), rows)


def _print_grids(tensors: "Sequence[TensorReport]") -> None:
    """Say which weights lie on a grid, and which type holds that."""
    groups: dict[tuple[str, str], list[TensorReport]] = {}
    for tensor in tensors:
        if tensor.grid is not None:
            groups.setdefault((tensor.type, tensor.grid), []).append(tensor)
    rows = [
        (kind, grid, len(found), _percent(min(t.grid_share or 0.0 for t in found)))
        for (kind, grid), found in groups.items()
    ]
    if rows:
        columns = ("stored as", "block type", "tensors", "blocks exact, least")
        console.table("Grids: what -t keep carries over (from samples)", columns, rows, left=2)


def _percent(share: float | None) -> str:
    """A share in percent, 100 only for all."""
    text = f"{100 * (share or 0.0):.1f} %"
    return "99.9 %" if text == "100.0 %" and share != 1.0 else text.replace("100.0", "100")


def _visible(text: str) -> str:
    """Text from a file on one line: what is not printable, direction marks included, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _kind(entry: "Entry") -> str:
    value = entry.value
    return entry.type.lower() if isinstance(value, bool | int | float | str) else f"{value.item_type.lower()}[]"


def _shown(entry: "Entry") -> str:
    """A value on one line, cut to what a terminal bears."""
    value = entry.value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        text, length = _visible(value[: 2 * _WIDTH]), f"({len(value):,} characters)"
    else:
        text, length = _visible(", ".join(map(str, value.first))), f"({value.length:,} items)"
        if value.length > len(value.first):
            text += ", ..."
    if len(text) > _WIDTH:
        text = text[:_WIDTH] + " ..."
    return text if isinstance(value, str) and len(value) <= _WIDTH else f"{text} {length}"
