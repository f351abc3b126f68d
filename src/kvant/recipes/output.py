"""Artifacts as outputs: one file, or a directory of them; hashed, compared, placed, and what lies beside them."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from kvant.errors import OutputExistsError
from kvant.files import atomic_write, commit_file, partial_path, sha256_file, sync_directory


def members(path: Path) -> list[Path]:
    """Return the files of an artifact, sorted."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def size_bytes(path: Path) -> int:
    """Bytes of all files of an artifact."""
    return sum(file.stat().st_size for file in members(path))


def hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a directory, by its path within; empty of a file."""
    if not path.is_dir():
        return {}
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in members(path)}


def digest_of(path: Path, files: dict[str, str]) -> str:
    """Return the SHA-256 of a file, or of the list of a directory's hashes: `HASH  PATH` lines as of sha256sum."""
    if not files:
        return sha256_file(path)
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def beside(output: Path, suffix: str) -> Path:
    """Return the name of a file that belongs to an output: `model.lock.json` of `model.gguf`."""
    stem = output.stem if output.suffix == ".gguf" else output.name
    return output.with_name(stem + suffix)


def check_place(made: Path, out: Path, *, overwrite: bool) -> bool:
    """Say whether an artifact must be put in its place still.

    Raises:
        OutputExistsError: There is one of that name with other content, and `overwrite` is false; or it is a directory
            where a file is to be, or one that holds what the artifact does not.
    """
    if not out.exists():
        return True
    if out.is_dir() and not made.is_dir():
        raise OutputExistsError(
            f"{out}: is a directory, and a file is to be written. Choose another directory with -o."
        )
    if made.is_dir() == out.is_dir() and all(_is_same(file, out / file.relative_to(made)) for file in members(made)):
        return False
    others = [file for file in members(out) if not (made / file.relative_to(out)).exists()] if out.is_dir() else []
    if others:
        raise OutputExistsError(
            f"{out}: holds {others[0].relative_to(out)}, which would be lost. Choose another directory with -o."
        )
    if not overwrite:
        raise OutputExistsError(
            f"{out}: exists with other content. Choose another directory with -o or pass --overwrite."
        )
    return True


def place(made: Path, out: Path) -> None:
    """Give a cached artifact its final name, which appears only when it is whole.

    A file gets a second name for the same bytes where the disk can; whoever edits it changes its stamp, so the cache
    notices. A directory is copied: readers of ONNX refuse weights that have two names.
    """
    if made.is_dir():
        _copy_directory(made, out)
        return
    partial = out.with_name(out.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(made)
    except OSError:
        copy_file(made, out)
        return
    partial.replace(out)
    partial.unlink(missing_ok=True)  # renaming a name of a file over another of its names leaves both
    sync_directory(out.parent)


def remove(path: Path) -> None:
    """Remove an artifact, or what there is of one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def put_directory(partial: Path, out: Path) -> None:
    """Give a finished directory its name; what had it before is gone only when the new one is there."""
    if not out.exists():
        commit_file(partial, out)
        return
    # Aside under a name that is nobody's: a directory beside it may be called anything.
    aside = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".old", dir=out.parent))
    out.rename(aside / out.name)
    commit_file(partial, out)
    remove(aside / out.name)
    aside.rmdir()


def copy_file(path: Path, out: Path) -> None:
    """Write a file's bytes under another name, which appears only when they are whole."""
    with path.open("rb") as source, atomic_write(out) as target:
        while chunk := source.read(1 << 24):
            target.write(chunk)


def _copy_directory(made: Path, out: Path) -> None:
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for file in members(made):
            (partial / file.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, partial / file.relative_to(made))
        put_directory(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_same(one: Path, other: Path) -> bool:
    if not other.is_file() or other.stat().st_size != one.stat().st_size:
        return False
    return one.samefile(other) or sha256_file(one) == sha256_file(other)
