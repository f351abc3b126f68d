"""Build the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run their tests on that build.

`python tools/sanitize.py [pytest arguments]`: by default TESTS below. GCC on Linux.
The build lies in build/sanitize; nothing else changes. Exits with 1 at the first finding, whose stack is printed.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = ("tests/golden", "tests/twins", "tests/unit/kernels")

# Imported by every Python that is started with the build's directory on PYTHONPATH, before kvant is.
PRELOAD = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("kvant.kernels._ext", {path!r})
spec = importlib.util.spec_from_file_location("kvant.kernels._ext", {path!r}, loader=loader)
module = sys.modules["kvant.kernels._ext"] = importlib.util.module_from_spec(spec)
loader.exec_module(module)
"""


def build() -> Path:
    """Return the sanitized module."""
    BUILD.mkdir(parents=True, exist_ok=True)
    options = ["-DCMAKE_BUILD_TYPE=None", "-DKVANT_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, *options, "-DSKBUILD_SABI_VERSION="], check=True)
    subprocess.run(["cmake", "--build", BUILD, "--target", "_ext", "--parallel", f"{os.cpu_count()}"], check=True)
    return BUILD / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}"


def libraries() -> str:
    """Return what must be loaded before Python: the sanitizer, and the library whose exceptions it follows."""
    names = ("libasan.so", "libstdc++.so.6")
    found = [
        subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True, check=True) for n in names
    ]
    return " ".join(str(Path(one.stdout.strip()).resolve()) for one in found)


def main(arguments: list[str]) -> int:
    """Build, and run pytest on the build."""
    (BUILD / "preload").mkdir(parents=True, exist_ok=True)
    (BUILD / "preload" / "sitecustomize.py").write_text(PRELOAD.format(path=str(build())))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(BUILD / "preload"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LD_PRELOAD": libraries(),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1",  # Python keeps what it has
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # Not in several processes: a finding ends its process, and pytest must end with it.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or TESTS)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
