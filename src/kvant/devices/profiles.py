"""Device profiles: what a model may use on a named kind of device, or on the machine at hand."""

import msgspec

from kvant.devices.detect import Machine
from kvant.errors import BudgetError, ValueRangeError

THIS = "this"
# Of the machine at hand a model may take this share of what is free, so that the machine stays usable.
USABLE_SHARE = 0.8
# If memory was not timed: one channel of DDR4.
DEFAULT_BANDWIDTH_BYTES_S = 15e9


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a device offers a model.

    Attributes:
        name: What `--device` takes.
        title: For people.
        ram_bytes: Memory of the device.
        usable_bytes: What a model may take of it, next to the system and other programs.
        bandwidth_bytes_s: Read bandwidth that programs reach.
        cores: Cores that work on a model.
        core_scale: Speed of one core as a share of an AVX2 server core.
        architecture: Processor family: `x86_64`, `aarch64`, `wasm32`.
        max_file_bytes: Largest file it can open; None if only memory limits.
        is_here: It is the machine at hand, so measured speeds hold for it.
        refusal: Why no language model runs there; empty if one does.
    """

    name: str
    title: str
    ram_bytes: int
    usable_bytes: int
    bandwidth_bytes_s: float
    cores: int
    core_scale: float
    architecture: str
    max_file_bytes: int | None = None
    is_here: bool = False
    refusal: str = ""


_GB = 10**9
# Memory that systems leave free and bandwidth that programs reach are round figures of the class, not of one product:
# Android and iOS kill a foreground program at about half of the memory; LPDDR reaches about 60 % of its peak;
# wasm32 addresses 4 GiB and a browser's ArrayBuffer holds 2 GiB.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="phone-4gb", title="phone, 4 GB", ram_bytes=4 * _GB, usable_bytes=1_600_000_000,
                bandwidth_bytes_s=10e9, cores=4, core_scale=0.4, architecture="aarch64"),
        Profile(name="phone-6gb", title="phone, 6 GB", ram_bytes=6 * _GB, usable_bytes=3 * _GB,
                bandwidth_bytes_s=15e9, cores=4, core_scale=0.5, architecture="aarch64"),
        Profile(name="phone-8gb", title="phone, 8 GB", ram_bytes=8 * _GB, usable_bytes=4 * _GB,
                bandwidth_bytes_s=25e9, cores=4, core_scale=0.7, architecture="aarch64"),
        Profile(name="raspberry-pi-5", title="Raspberry Pi 5, 8 GB", ram_bytes=8 * _GB, usable_bytes=6_500_000_000,
                bandwidth_bytes_s=9e9, cores=4, core_scale=0.45, architecture="aarch64"),
        Profile(name="laptop-8gb", title="laptop, 8 GB", ram_bytes=8 * _GB, usable_bytes=4 * _GB,
                bandwidth_bytes_s=25e9, cores=4, core_scale=1.0, architecture="x86_64"),
        Profile(name="laptop-16gb", title="laptop, 16 GB", ram_bytes=16 * _GB, usable_bytes=10 * _GB,
                bandwidth_bytes_s=40e9, cores=6, core_scale=1.0, architecture="x86_64"),
        Profile(name="server-64gb", title="server, 64 GB, no GPU", ram_bytes=64 * _GB, usable_bytes=56 * _GB,
                bandwidth_bytes_s=100e9, cores=16, core_scale=1.0, architecture="x86_64"),
        Profile(name="browser", title="browser tab (WebAssembly)", ram_bytes=4 << 30, usable_bytes=3 << 30,
                bandwidth_bytes_s=10e9, cores=4, core_scale=0.25, architecture="wasm32", max_file_bytes=2 << 30),
        Profile(name="microcontroller", title="microcontroller", ram_bytes=1 << 20, usable_bytes=1 << 19,
                bandwidth_bytes_s=1e8, cores=1, core_scale=0.001, architecture="thumb",
                refusal="512 kB of memory is below the smallest language model that says anything (tens of MB), and no "
                        "engine reads GGUF there. Choose raspberry-pi-5 or a phone, or run the model elsewhere"),
    )
}  # fmt: skip


def find_profile(name: str) -> Profile:
    """Look a device up by its name, in any case.

    Raises:
        ValueRangeError: No such profile.
        BudgetError: A device on which no language model runs.
    """
    found = PROFILES.get(name.lower())
    if found is None:
        known = ", ".join([THIS, *(p.name for p in PROFILES.values() if not p.refusal)])
        raise ValueRangeError(f"device: {name!r} is not known. Use one of {known}.")
    if found.refusal:
        raise BudgetError(f"{found.name}: {found.refusal}.")
    return found


def device_for(name: str | None, machine: Machine) -> Profile:
    """Return the device of a name; the machine at hand for `this` or no name.

    Raises:
        ValueRangeError: No such profile.
        BudgetError: A device on which no language model runs.
    """
    return profile_of(machine) if name is None or name.lower() == THIS else find_profile(name)


def profile_of(machine: Machine) -> Profile:
    """Return the machine at hand as a profile."""
    total = machine.memory.total_bytes if machine.memory else 0
    available = machine.memory.available_bytes if machine.memory else 0
    has_vectors = {"avx2", "asimddp", "sve"} & set(machine.isa)
    return Profile(
        name=THIS,
        title="this machine",
        ram_bytes=total,
        usable_bytes=int(available * USABLE_SHARE),
        bandwidth_bytes_s=machine.bandwidth_bytes_s or DEFAULT_BANDWIDTH_BYTES_S,
        cores=machine.cores,
        core_scale=1.0 if has_vectors else 0.3,
        architecture=machine.architecture,
        is_here=True,
    )
