"""How an owner starts an engine's process: its command line, its environment, and what it may do."""

import ctypes
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kvant.runtime.sandbox import landlock, seccomp
from kvant.runtime.sandbox.policy import Policy

LAUNCH = Path(__file__).with_name("launch.py")
PR_SET_DUMPABLE = 4
PROBE_S = 60
POWER = ("/sys/class/powercap", "/sys/devices/virtual/powercap")
"""What tells the energy used, for those who measure it."""

WALLS: Mapping[str, str] = {
    "rlimits": "an engine can fill memory and disk",
    "user-namespace": "an engine shares the machine's users, and has rights over processes of its own",
    "net-namespace": "an engine shares the machine's network",
    "ipc-namespace": "an engine shares the machine's memory and messages by number",
    "capabilities": "an engine keeps a right to read files of other users",
    "landlock": "an engine can read every file of its user",
    "pdeathsig": "an engine may outlive its owner",
    "no_new_privs": "an engine can become another user",
    "seccomp": "an engine can start programs, signal others and reach the network",
}
"""All that can hold, by the names that `confine` gives, and what is possible without."""

# What an engine finds in its environment: where programs and libraries are, how to write text, how many threads. No
# tokens, no proxies, no names of the owner's.
KEPT = frozenset({
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "CUDA_VISIBLE_DEVICES", "NUMBER_OF_PROCESSORS",
})  # fmt: skip
QUIET = {"GGML_NO_BACKTRACE": "1"}
"""An engine that aborts says why; it would start a debugger where there is one, and the reason is lost in pages."""
KEPT_PREFIXES = ("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "MALLOC_")
"""How libraries of threads, products and memory are tuned."""


def environment(**given: str) -> dict[str, str]:
    """Return what an engine finds in its environment; `given` goes first."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **QUIET, **given}


def command(policy: Policy, *words: str, python: str = sys.executable, isolated: bool = False) -> list[str]:
    """Return the command line of a confined process.

    Args:
        policy: What it may do.
        words: `-m` and a module, or a script; then its arguments.
        python: The interpreter, of whatever environment.
        isolated: Leave out what the user has installed for themselves.
    """
    warn_if_free()
    return [python, "-I" if isolated else "-P", str(LAUNCH), policy.to_json(), *words]


def foreign(path: Path) -> Policy:
    """Return the policy of an engine in an environment of its own, which reads a model's directory.

    mlx-lm sets its limit of open files to 4096 and fails where that is more than it may.
    """
    return Policy(reads=(str(path),), address_space_bytes=address_space_bytes(), open_files=4096, parent=owner())


def address_space_bytes() -> int:
    """Return the address space an engine may have: the machine's memory and 64 GiB, since mapped files count too."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + (64 << 30)


def owner() -> int:
    """Return the process whose end should end a child that is started now.

    Linux ends a child with the thread that started it, so only the main thread can be meant: a child of another one
    ends when its standard input does.
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else 0


def shield() -> None:
    """Make this process one that others of its user can neither look into nor write to; it dumps no core either."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def probe() -> tuple[str, ...]:
    """Confine a process that does nothing, and return what held; nothing, said in a warning, where it fails."""
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603
            command(Policy(parent=os.getpid())), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=PROBE_S, check=False, env=environment(), start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        failed = f"took longer than {PROBE_S} s"
    except OSError as error:
        failed = f"cannot be started ({error})"
    else:
        if done.returncode == 0:
            return told(done.stdout.strip())
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        failed = f"ended with status {done.returncode} ({last})"
    logging.getLogger("kvant").warning(
        "engines: the process that tries what an engine cannot do %s, so it is not known what holds. Run it yourself: "
        "%s %s %s", failed, sys.executable, LAUNCH, "'{}'",
    )  # fmt: skip
    return ()


def told(text: str) -> tuple[str, ...]:
    """Return the names of what holds, as `launch` writes them into `KVANT_CONFINED`."""
    return tuple(filter(None, text.split(",")))


@functools.cache
def warn_if_free() -> None:
    """Say, once, that engines run with their user's rights, where this Linux has neither Landlock nor filters.

    A look at the kernel alone; `probe` tries.
    """
    if sys.platform == "linux" and not landlock.version(ctypes.CDLL(None)) and not seccomp.available():
        logging.getLogger("kvant").warning(
            "engines: this kernel has neither Landlock nor seccomp, so a hostile model file can do what you can. Run "
            "kvant in a container, or as a user of its own."
        )


def missing(held: Iterable[str]) -> tuple[str, ...]:
    """Return the walls that do not hold."""
    names = {name.partition("-")[0] if name.startswith("landlock") else name for name in held}
    return tuple(wall for wall in WALLS if wall not in names)


def covers(roots: Sequence[Path], path: Path) -> bool:
    """Whether a path is one of some others or beneath it."""
    path = path.absolute()
    return any(path == root or root in path.parents for root in (root.absolute() for root in roots))
