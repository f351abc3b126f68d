"""What `kvant convert --to onnx` does: a directory of onnxruntime-genai, without loss."""

from pathlib import Path

from kvant.cli import console
from kvant.units import format_bytes


def decoder(model: Path, out: Path | None, *, overwrite: bool, json: bool) -> None:
    """Convert a decoder and print what became of its matrices."""
    from kvant.recipes.targets.onnx.transcode import convert_decoder

    name = model.resolve().name.removesuffix(".gguf")
    with console.progress(quiet=json) as progress:
        result = convert_decoder(model, out or Path(f"{name}-onnx"), overwrite=overwrite, progress=progress)
    if json:
        console.print_json(result)
        return
    counts: dict[tuple[str, str], list[int]] = {}
    for matrix in result.matrices:
        counts.setdefault((", ".join(matrix.source), matrix.target), []).append(matrix.n_weights)
    rows = [
        (source, target, len(sizes), "bit-exact, every weight compared" if sum(sizes) else "float32, as exported")
        for (source, target), sizes in counts.items()
    ]
    console.table("", ("from", "to", "matrices", "proof"), rows, left=2)
    console.say(f"{result.path}: {format_bytes(result.size_bytes)} ({result.size_bytes} bytes), {result.wall_s:.1f} s")
