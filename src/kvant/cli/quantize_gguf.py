"""What `kvant quantize` does for GGUF."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.cli.way import Asked, Way
from kvant.files import check_apart
from kvant.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from kvant.model import Model
    from kvant.quant.importance import Importance
    from kvant.quant.matching import PatternMatch
    from kvant.quant.plan import Fallback, Plan
    from kvant.recipes.targets.gguf.write import QuantizeResult

_RULES = ("type_", "output_tensor_type", "token_embedding_type", "keep", "pure")


def run(asked: Asked) -> None:
    """Write a GGUF by a preset or a plan, or only say what would be written."""
    from kvant.quant.presets import plan_with_matches
    from kvant.recipes.source import open_model

    with console.progress(quiet=asked.json) as progress:
        source = open_model(asked.model, kinds=("model", "mmproj"), progress=progress)
    importance = asked.importance
    chosen, matches = (_checked_plan(source, asked.plan), ()) if asked.plan is not None else plan_with_matches(
        source, asked.preset or "", has_importance=importance is not None, pure=asked.pure,
        overrides=_overrides(asked.type_ or ()), output_type=asked.output_tensor_type,
        embedding_type=asked.token_embedding_type, keep=asked.keep or (),
    )  # fmt: skip
    chosen = _sized(source, chosen, importance, asked.write_plan, overwrite=asked.overwrite)
    if asked.dry_run:
        _report_plan(source, chosen, importance, matches, json=asked.json)
    else:
        console.notes([] if asked.json else [str(match) for match in matches if not match.changed])
        _write(source, chosen, asked)


def check(options: typer.Context) -> None:
    """Refuse options that make one another useless."""
    has = {name for name, value in options.params.items() if value}
    if "plan" in has:
        refuse(options, _RULES, "decides types, and --plan gives the type of every tensor")
    if not has & {"preset", "plan"}:
        raise typer.BadParameter("give a preset (-t Q4_K_M; `kvant advise MODEL` recommends one) or --plan FILE.")
    if {"preset", "plan"} <= has:
        raise typer.BadParameter("a preset and a plan both say which types. Leave -t or --plan out.")
    if {"resume", "max_file_size"} <= has:
        raise typer.BadParameter("an output that is split cannot be continued. Leave --resume or --max-file-size out.")


WAY = Way(
    name="gguf",
    takes=frozenset(
        {*_RULES, "plan", "write_plan", "dry_run", "resume", "max_file_size", "allow_requantize", "imatrix"}
    ),
    run=run, check=check,
    instead=dict.fromkeys(("calibrate", "max_size"), " `kvant optimize` takes both for GGUF."),
)  # fmt: skip


def _write(source: "Model", chosen: "Plan", asked: Asked) -> None:
    """Quantize to GGUF and print what was written."""
    from kvant.recipes.targets.gguf import write as recipe

    _say_fallbacks([] if asked.json else chosen.fallbacks, len(chosen.types))
    with console.progress(quiet=asked.json) as progress:
        result = recipe.quantize(
            source, chosen, asked.out or recipe.default_output(source, chosen), importance=asked.importance,
            threads=asked.threads, max_file_bytes=parse_bytes(asked.max_file_size) if asked.max_file_size else None,
            resume=asked.resume, overwrite=asked.overwrite, allow_requantize=asked.allow_requantize,
            progress=progress,
        )  # fmt: skip
    _report_result(result, json=asked.json)


def _checked_plan(source: "Model", path: Path) -> "Plan":
    from kvant.quant.plan import check_plan, read_plan

    chosen = read_plan(path)
    check_plan(chosen, source)
    return chosen


def _sized(
    source: "Model", chosen: "Plan", importance: "Importance | None", path: Path | None, *, overwrite: bool
) -> "Plan":
    """Return a plan with its predicted size; written to a file, too, if there is a path."""
    from kvant.quant.plan import write_plan
    from kvant.recipes.targets.gguf.write import with_size

    found = with_size(source, chosen, importance)
    if path is not None:
        check_apart(path, (source.path, *source.files))
        write_plan(found, path, overwrite=overwrite)
    return found


def _overrides(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        pattern, _, name = text.rpartition("=")
        if not pattern or not name:
            raise typer.BadParameter(f"--type {text}: is not REGEX=TYPE. Write for example --type 'attn_v=Q6_K'.")
        pairs.append((pattern, name))
    return pairs


def _report_plan(
    source: "Model", plan: "Plan", importance: "Importance | None", matches: "Sequence[PatternMatch]", *, json: bool
) -> None:
    """Print what would be written."""
    from kvant.quant.matching import match_importance
    from kvant.recipes.targets.gguf.write import remarks_on, unmeasured

    use = match_importance(importance, source, plan) if importance else None
    remarks = remarks_on(source, plan, importance)

    missing = unmeasured(source, plan, importance)
    if json:
        console.print_json({"plan": plan, "size_bytes": plan.predicted_bytes, "bpw": plan.bpw(source),
                            "needs_importance": missing, "remarks": remarks, "patterns": matches,
                            "importance": use})  # fmt: skip
        return
    console.notes(remarks)
    console.say(f"{source.name} as {plan.preset}:")
    console.table("", ("type", "tensors"), list(plan.counts().items()))
    for match in matches:
        console.say(str(match))
    if use is not None and use.used:
        console.say(
            f"{use.file}: importance for {len(use.used)} of {len(use.used) + len(use.missing)} tensors that use it"
        )
    _say_fallbacks(plan.fallbacks, len(plan.types))
    if missing:
        console.say(
            f"{len(missing)} tensors ({missing[0]}, ...) need importance: this plan is refused without --imatrix FILE."
        )
    size = plan.predicted_bytes or 0
    console.say(f"Size: {format_bytes(size)} ({size} bytes), {plan.bpw(source):.2f} bits per weight. Nothing written.")


def _report_result(result: "QuantizeResult", *, json: bool) -> None:
    """Print what was written."""
    if json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    files = "" if len(result.files) == 1 else f" in {len(result.files)} files"
    console.say(
        f"{result.path}: {result.preset}, {format_bytes(result.size_bytes)}{files} ({result.size_bytes} bytes), "
        f"{result.bpw:.2f} bits per weight, {result.wall_s:.1f} s"
    )


def _say_fallbacks(fallbacks: Sequence["Fallback"], n_tensors: int) -> None:
    """Say which tensors do not get what the preset asks for, alike ones in one row, and what that costs."""
    if not fallbacks:
        return
    groups: dict[tuple[str, str, int], list[Fallback]] = {}
    for fallback in fallbacks:
        groups.setdefault((fallback.wanted, fallback.got, fallback.row_length), []).append(fallback)
    rows = [
        (f"{wanted} -> {got}", row_length, len(group), f"{sum(f.extra_bytes for f in group):+,} B", group[0].tensor)
        for (wanted, got, row_length), group in groups.items()
    ]
    have = "has" if len(fallbacks) == 1 else "have"
    console.say(f"{len(fallbacks)} of {n_tensors} tensors {have} rows that do not divide into the blocks asked for:")
    console.table("", ("fallback", "row length", "tensors", "cost", "first"), rows)
