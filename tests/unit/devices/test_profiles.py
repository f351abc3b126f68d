import msgspec
import pytest

from kvant.devices.detect import accelerators, detect
from kvant.devices.limits import Memory
from kvant.devices.profiles import PROFILES, find_profile, profile_of
from kvant.errors import BudgetError, ValueRangeError


def test_names_are_found_in_any_case() -> None:
    assert find_profile("Phone-6GB") is PROFILES["phone-6gb"]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueRangeError, match=r"'toaster' is not known\. Use one of this, .*phone-6gb"):
        find_profile("toaster")


def test_a_microcontroller_is_refused_with_a_reason() -> None:
    with pytest.raises(BudgetError, match=r"microcontroller: 512 kB .* Choose raspberry-pi-5"):
        find_profile("microcontroller")


def test_no_profile_promises_more_than_it_has() -> None:
    for profile in PROFILES.values():
        assert 0 < profile.usable_bytes < profile.ram_bytes


def test_this_machine() -> None:
    machine = detect(measure=False)
    assert machine.cores >= 1
    assert machine.bandwidth_bytes_s is None
    known = msgspec.structs.replace(machine, memory=Memory(total_bytes=1000, available_bytes=500), isa=("avx2",))
    profile = profile_of(known)
    assert (profile.ram_bytes, profile.usable_bytes, profile.is_here, profile.core_scale) == (1000, 400, True, 1.0)
    assert profile_of(msgspec.structs.replace(known, memory=None, isa=())).usable_bytes == 0


def test_accelerators_by_device_files(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    root = Path(str(tmp_path))
    monkeypatch.setenv("PATH", str(root))
    assert accelerators(root) == ()
    for name in ("dev/dri/renderD128", "dev/accel/accel0"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert [a.kind for a in accelerators(root)] == ["gpu", "npu"]
    (root / "dev/nvidia0").touch()
    assert [a.name.split()[0] for a in accelerators(root)] == ["NVIDIA", "device"]
