"""Programs that export a decoder to ONNX: onnxruntime-genai's model builder, and mobius for what that does not know.

Both need torch and transformers, which kvant does not: they live in an environment of their own, whose Python
`KVANT_ONNX_PYTHON` names. Neither goes online or runs code of the model.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvant.errors import EngineError, MissingDependencyError
from kvant.formats.huggingface.config import read_json
from kvant.formats.huggingface.directory import copy_companions, write_json
from kvant.formats.onnx.decoder import CONFIG, read_config, read_decoder
from kvant.recipes.targets.onnx.tied import store_tied_once
from kvant.runtime.child import Child, ask_once
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy
from kvant.runtime.tokenizers import GENAI_PYTHON
from kvant.units import format_bytes

PYTHON = GENAI_PYTHON
TIMEOUT_S = 4 * 3600
MAX_SAID_BYTES = 64 << 20
OPEN_FILES = 4096
_TAIL = 3
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_PROBE = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
_HOW = f"Make an environment as docs/how-to/onnx-language-models.md says and set {PYTHON} to its Python."


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A program that exports decoders as directories of onnxruntime-genai.

    Attributes:
        name: As people know it.
        package: What has to be installed.
        command: What Python is told: of the model's directory, the one to write, and one for its cache.
        complete: Adds what it leaves out: of the model's directory and the one written; None if that is nothing.
    """

    name: str
    package: str
    command: Callable[[Path, Path, Path], list[str]]
    complete: Callable[[Path, Path], None] | None = None

    def run(self, python: str, source: Path, out: Path, cache: Path) -> None:
        """Export a Hugging Face directory as float32, confined to reading it and to writing beside `out`.

        Raises:
            EngineError: It fails or takes longer than `TIMEOUT_S`.
        """
        folder = out.parent
        policy = Policy(
            reads=(str(source),), writes=(str(folder),), file_bytes=0, open_files=OPEN_FILES, parent=spawn.owner()
        )
        child = Child(
            policy, "-m", *self.command(source, out, cache), python=python, isolated=True,
            environment={"HOME": str(folder), "TMPDIR": str(folder), **_OFFLINE},
        )  # fmt: skip
        try:
            done = ask_once(child, b"", timeout_s=TIMEOUT_S, limit=MAX_SAID_BYTES)
        except TimeoutError as error:
            raise EngineError(
                f"{source}: {self.name} took longer than {TIMEOUT_S} s. Export a smaller model."
            ) from error
        if done.answer is None:
            raise EngineError(
                f"{source}: {self.name} writes over {format_bytes(MAX_SAID_BYTES)}. Export another model."
            )
        if done.status:
            printed = done.answer.decode("utf-8", "replace").splitlines()
            lines = done.said or [line.strip() for line in printed if line.strip()]
            raise EngineError(f"{source}: {self.name} fails ({' | '.join(lines[-_TAIL:])[-400:]}).")
        if self.complete:
            self.complete(source, out)


def exporters() -> tuple[str, tuple[Exporter, ...]]:
    """Return the Python of the exporters' environment, and those that are in it in the order to try them.

    Raises:
        MissingDependencyError: It is not named, cannot be run or has none.
    """
    python = os.environ.get(PYTHON, "")
    if not python:
        raise MissingDependencyError(f"{PYTHON}: is not set, and exporting a decoder needs it. {_HOW}")
    command = [python, "-I", "-c", _PROBE, *(exporter.package for exporter in EXPORTERS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"{PYTHON}: {python} cannot be run ({error}). {_HOW}") from error
    found = tuple(exporter for exporter in EXPORTERS if exporter.package in done.stdout.split())
    if not found:
        names = " nor ".join(exporter.package for exporter in EXPORTERS)
        raise MissingDependencyError(f"{PYTHON}: {python} has neither {names}. {_HOW}")
    return python, found


def _builder(source: Path, out: Path, cache: Path) -> list[str]:
    words = ["-i", str(source), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(cache)]
    return ["onnxruntime_genai.models.builder", *words]


def _mobius(source: Path, out: Path, _cache: Path) -> list[str]:
    words = ["--config", str(source), str(out), "--dtype", "f32", "--ep", "cpu", "--runtime", "ort-genai"]
    return ["mobius", "build", *words]


def _complete_mobius(source: Path, out: Path) -> None:
    """Add the chat template and all ends of an answer, and store a tied embedding once, which mobius 0.1 does not."""
    copy_companions(source, out)
    generation = source / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if ends is not None:
        config = read_config(out)
        config["model"]["eos_token_id"] = ends
        write_json(out / CONFIG, config)
    store_tied_once(read_decoder(out).file)


EXPORTERS = (
    Exporter(name="onnxruntime-genai's builder", package="onnxruntime_genai", command=_builder),
    Exporter(name="mobius", package="mobius", command=_mobius, complete=_complete_mobius),
)
