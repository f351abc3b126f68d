"""`kvant pull`: bring a model here."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.units import format_bytes

# fmt: off
Source = Annotated[str, typer.Argument(help="hf:org/name, a short name, an https address with a hash, or a file.", show_default=False)]  # noqa: E501
Name = Annotated[str | None, typer.Option(help="Name in the store; by default made from the source.", show_default=False)]  # noqa: E501
FitOption = Annotated[bool, typer.Option("--fit", help="Choose the variant that this machine can run best.")]
Device = Annotated[str | None, typer.Option(help="Choose for this device instead: phone-6gb, ...", show_default=False)]
Context = Annotated[int, typer.Option(min=16, help="Tokens of context to predict memory for.")]
Mmproj = Annotated[str | None, typer.Option(help="Projector that comes with it: F16 (usual), BF16, F32, Q8_0, a file's name, none.", show_default=False)]  # noqa: E501
Accept = Annotated[list[str] | None, typer.Option("--accept-licence", help="Accept this licence; can be repeated.", show_default=False)]  # noqa: E501
Offline = Annotated[bool, typer.Option("--offline", help="Ask no server; succeed if it is here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def pull(
    options: typer.Context,
    source: Source,
    name: Name = None,
    fit: FitOption = False,
    device: Device = None,
    context: Context = 4096,
    mmproj: Mmproj = None,
    accept_licence: Accept = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Bring a model here: GGUF files into the local store, a Hugging Face directory as a directory.

    Every byte is verified before the model appears. An interrupted or killed download continues where it stopped. The
    projector of a model that sees or hears comes with it, as a tag of the same name, and --fit counts it. The hub is
    HF_ENDPOINT's, with the token of HF_TOKEN; that token goes nowhere else.

    \b
    Examples:
      kvant pull smollm2:135m
      kvant pull hf:org/name-GGUF
      kvant pull hf:org/name-GGUF:Q5_K_M --name mymodel
      kvant pull hf:org/name-GGUF --fit --context 8192
      kvant pull hf:org/name@v1.0
      kvant pull hf:org/name-VL-GGUF:Q4_K_M --mmproj BF16
      kvant pull "https://host/model.gguf#sha256=HASH" --accept-licence mit
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.pull import Wish
    from kvant.hub.pull import pull as run

    if not fit and device is None:
        refuse(options, ("context",), "is for choosing a variant that fits (--fit or --device)")
    wish = Wish(
        name=name, fit=fit or device is not None, device=device, context=context, accepted=accept_licence or (),
        offline=offline, projector=mmproj,
    )  # fmt: skip
    with console.progress(quiet=json) as progress:
        got = run(source, wish, progress=progress)
    if json:
        console.print_json(got)
        return
    if got.reason:
        console.say(got.reason)
    where = f"{got.name or got.path}"
    already = " is here already" if got.was_here else ""
    console.say(f"{where}{already}: {format_bytes(got.size_bytes)}, licence {got.licence or 'not named'}, {got.source}")
    if got.projector:
        console.say(f"With its projector, {format_bytes(got.projector_bytes)}: {got.projector}")
    console.say(f"Next: {got.next}")
