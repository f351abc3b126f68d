"""Form and faults of native/: clang-format on every file, clang-tidy on every source, one at a time per core.

    python tools/lint_native.py

What clang-tidy found clean is kept by content in KVANT_BUILD_CACHE (build/ by default) and not read again.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("KVANT_BUILD_CACHE", ROOT / "build")) / "clang-tidy"
PROGRAMS = Path(sys.executable).parent
HEADERS = sorted(ROOT.glob("native/include/**/*.h"))
SOURCES = sorted(ROOT.glob("native/src/*.cpp"))
FLAGS = [
    "-std=c++20", "-DKVANT_NS=baseline", f"-I{ROOT / 'native' / 'include'}", "-isystem", nanobind.include_dir(),
    "-isystem", sysconfig.get_paths()["include"],
]  # fmt: skip


def main() -> int:
    """Check everything; 1 if something is to be mended."""
    command = [f"{PROGRAMS / 'clang-format'}", "--dry-run", "-Werror", *map(str, [*HEADERS, *SOURCES])]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        print("native/: not in the form of .clang-format. Run: make fmt")
        return 1
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) as pool:
        findings = [text for text in pool.map(tidy, SOURCES) if text]
    print("\n".join(findings) or f"native/: {len(SOURCES)} sources and {len(HEADERS)} headers in form, nothing found")
    return 1 if findings else 0


def tidy(source: Path) -> str:
    """Return what clang-tidy finds in a source and the headers it reads; "" for nothing."""
    clean = CACHE / key(source)
    if clean.exists():
        return ""
    command = [PROGRAMS / "clang-tidy", "--quiet", source, "--", *FLAGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stdout + done.stderr
    CACHE.mkdir(parents=True, exist_ok=True)
    clean.touch()
    return ""


def key(source: Path) -> str:
    """Digest of all that the outcome depends on but the compiler's own headers."""
    versions = [importlib.metadata.version(name) for name in ("clang-tidy", "nanobind")]
    known = hashlib.sha256(" ".join([*versions, sys.version]).encode())
    for path in (ROOT / ".clang-tidy", Path(__file__), *HEADERS, source):
        known.update(hashlib.sha256(path.read_bytes()).digest())
    return known.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
