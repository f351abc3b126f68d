"""`kvant advise`: what this machine offers, and which level of compression suits a use; prediction alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.units import format_bytes, format_speed, format_weights

if TYPE_CHECKING:
    from kvant.devices.detect import Machine
    from kvant.recipes.advise import Advice, AdviceRow

COLUMNS = ("preset", "size", "bpw", "class", "RAM", "tok/s", "expected quality", "fits")

# fmt: off
Source = Annotated[Path | None, typer.Argument(help="Model to advise on; without one, this machine is described.", show_default=False)]  # noqa: E501
UseCase = Annotated[str, typer.Option(help="mobile, desktop, edge, browser, server or research.")]
Device = Annotated[str | None, typer.Option(help="Device instead of the use's own: this, phone-6gb, ...", show_default=False)]  # noqa: E501
Context = Annotated[int, typer.Option(min=16, help="Tokens of context that memory is predicted for.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def advise(
    options: typer.Context,
    model: Source = None,
    use_case: UseCase = "desktop",
    device: Device = None,
    context: Context = 4096,
    json: Json = False,
) -> None:
    """Recommend a level of compression for a use, from prediction alone; without a model, describe this machine.

    Sizes are exact, memory is within about 10 %, speed and quality are estimates. To measure, use: kvant optimize

    \b
    Examples:
      kvant advise
      kvant advise SmolLM2-135M --use-case mobile
      kvant advise model.gguf --use-case edge --context 8192
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes import advise as recipe

    if model is None:
        refuse(options, ("use_case", "device", "context"), "is about a model, and none is given")
        machine = recipe.advise_machine()
        if json:
            console.print_json(machine)
        else:
            show_machine(machine)
        return
    advice = recipe.advise(model, use_case=use_case, device=device, context=context)
    if json:
        console.print_json(advice)
    else:
        show_advice(advice)


def show_machine(machine: "Machine") -> None:
    """Print what this machine offers."""
    memory = machine.memory
    rows = [
        ("system", machine.system),
        ("processor", f"{machine.cpu} ({machine.architecture})"),
        ("instruction sets", " ".join(machine.isa) or "none that matter here"),
        ("cores", f"{machine.cores} usable of {machine.cores_machine}"),
        ("memory", f"{format_bytes(memory.total_bytes)} ({memory.limited_by})" if memory else "not told"),
        ("available now", format_bytes(memory.available_bytes) if memory else "not told"),
        (
            "memory bandwidth",
            f"{format_bytes(machine.bandwidth_bytes_s)}/s read, measured"
            if machine.bandwidth_bytes_s
            else "not measured",
        ),
        ("accelerators", ", ".join(f"{a.kind}: {a.name}" for a in machine.accelerators) or "none seen"),
        ("engines", ", ".join(f"{name} {version}" for name, version in machine.engines.items()) or "none"),
    ]
    console.table("This machine", ("", ""), rows, left=2)


def show_advice(advice: "Advice") -> None:
    """Print the recommendation and what it rests on."""
    weights = f"{format_weights(advice.weights)} weights"
    if advice.active_weights < advice.weights:
        weights += f", {format_weights(advice.active_weights)} read per token"
    console.table(
        f"{advice.model} ({advice.architecture}, {weights}) on {advice.device.title}, context {advice.context}",
        COLUMNS,
        [_row(row, is_pick=row.preset == advice.pick) for row in advice.rows],
        prose=("expected quality", "fits"),
    )
    console.say(f"For {advice.use_case}: {advice.level}. {advice.reason}")
    if advice.calibrated:
        console.say(advice.calibrated)
    for warning in advice.warnings:
        console.say(f"Note: {warning}")
    console.say(
        "Quality is estimated from the block types, not measured. To measure: kvant optimize MODEL --device ..."
    )


def _row(row: "AdviceRow", *, is_pick: bool) -> tuple[str, ...]:
    return (
        row.preset, format_bytes(row.size_bytes), f"{row.bpw:.2f}", row.precision_class,
        format_bytes(row.ram.total_bytes), format_speed(row.speed_tok_s), row.quality,
        "<- pick" if is_pick else row.obstacle or "yes",
    )  # fmt: skip
