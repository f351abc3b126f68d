"""What the machine at hand offers: processor, instruction sets, cores, memory, accelerators and engines."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from kvant.devices.bandwidth import read_bandwidth
from kvant.devices.limits import Memory, cores, memory

# Instruction sets that change how fast quantized weights are multiplied, by their names in /proc/cpuinfo and sysctl.
X86_SETS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni",
    "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
)  # fmt: skip
ARM_SETS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
# Windows' IsProcessorFeaturePresent numbers (winnt.h, PF_*).
WINDOWS_SETS = {"sse4_2": 38, "avx": 39, "avx2": 40, "avx512f": 41, "asimd": 19, "asimddp": 43}

ENGINES = ("xllamacpp", "llama-cpp-python", "onnxruntime", "onnxruntime-genai", "mlx", "mlx-lm", "vllm", "torch")
ENGINE_PROGRAMS = ("llama-cli", "llama-server", "ollama")


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or NPU that was seen.

    Attributes:
        kind: `gpu` or `npu`.
        name: As its driver or device file names it.
        memory_bytes: Its own memory; None if shared or not told.
    """

    kind: str
    name: str
    memory_bytes: int | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine at hand.

    Attributes:
        system: Operating system and release.
        cpu: Processor's name.
        architecture: `x86_64`, `aarch64`, ...
        isa: Instruction sets that matter here, from old to new.
        cores: Cores this process may keep busy.
        cores_machine: Cores of the machine.
        memory: What this process may use; None where the system does not tell.
        bandwidth_bytes_s: Measured read bandwidth of all usable cores; None if it was not measured.
        accelerators: GPUs and NPUs seen.
        engines: Inference engines installed, with their versions.
    """

    system: str
    cpu: str
    architecture: str
    isa: tuple[str, ...]
    cores: int
    cores_machine: int
    memory: Memory | None
    bandwidth_bytes_s: float | None
    accelerators: tuple[Accelerator, ...]
    engines: dict[str, str]


def detect(*, measure: bool = True) -> Machine:
    """Look at the machine; `measure` also times memory for about 0.2 s."""
    usable = cores()
    flags = _cpu_flags()
    return Machine(
        system=f"{platform.system()} {platform.release()}".strip(),
        cpu=_cpu_name(),
        architecture=platform.machine() or "unknown",
        isa=tuple(name for name in (*X86_SETS, *ARM_SETS) if name in flags),
        cores=usable,
        cores_machine=os.cpu_count() or usable,
        memory=memory(),
        bandwidth_bytes_s=read_bandwidth(usable) if measure else None,
        accelerators=accelerators(),
        engines=engines(),
    )


def accelerators(root: Path = Path("/")) -> tuple[Accelerator, ...]:
    """GPUs and NPUs that show themselves by their driver's program or device files; none of them is opened."""
    found = _nvidia()
    if not found and any(root.glob("dev/nvidia[0-9]*")):
        found.append(Accelerator(kind="gpu", name="NVIDIA (device file; nvidia-smi is not installed)"))
    if (root / "dev/kfd").exists():
        found.append(Accelerator(kind="gpu", name="AMD (ROCm device file)"))
    if not found:
        nodes = sorted(root.glob("dev/dri/renderD*"))
        found.extend(Accelerator(kind="gpu", name=f"render node {node.name} (Vulkan may work)") for node in nodes)
    found.extend(Accelerator(kind="npu", name=f"device {node.name}") for node in sorted(root.glob("dev/accel/accel*")))
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.append(Accelerator(kind="gpu", name="Apple GPU (Metal, shares main memory)"))
    return tuple(found)


def engines() -> dict[str, str]:
    """Return inference engines that are installed: Python packages and programs on the path."""
    import importlib.metadata  # slow to import, and advice on a model does not need it

    found = {}
    for name in ENGINES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found.update({name: "program" for name in ENGINE_PROGRAMS if shutil.which(name)})
    return found


def _nvidia() -> list[Accelerator]:
    """Ask nvidia-smi, if there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in lines if "," in line]
    return [
        Accelerator(kind="gpu", name=name.strip(), memory_bytes=int(mib) << 20 if mib.strip().isdigit() else None)
        for name, _, mib in rows
    ]


def _cpu_name() -> str:
    """The processor's name; its architecture if nothing better is told."""
    for key in ("model name", "Model", "Hardware"):
        if name := _cpuinfo().get(key):
            return name
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine() or "unknown"


def _cpu_flags() -> set[str]:
    """Names of the instruction sets the processor and the system offer."""
    if sys.platform.startswith("linux"):
        info = _cpuinfo()
        return set((info.get("flags") or info.get("Features") or "").lower().split())
    if sys.platform == "darwin":
        return _darwin_flags()
    if sys.platform == "win32":
        import ctypes

        kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  absent from the stubs of other systems
        return {name for name, number in WINDOWS_SETS.items() if kernel32.IsProcessorFeaturePresent(number)}
    return set()


def _darwin_flags() -> set[str]:
    if platform.machine() == "arm64":
        present = {"asimd", "asimddp"}
        keys = {"i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16", "sme": "FEAT_SME"}
        return present | {name for name, key in keys.items() if _sysctl(f"hw.optional.arm.{key}") == "1"}
    text = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower()
    return set(text.replace("sse4.2", "sse4_2").replace("avx1.0", "avx").split())


def _cpuinfo() -> dict[str, str]:
    """First value of every field of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _sysctl(name: str) -> str:
    """A value of macOS's sysctl; empty if it is not known."""
    program = shutil.which("sysctl")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "-n", name], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
