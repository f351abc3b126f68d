import subprocess
import sys

import pytest

from kvant.errors import ValueRangeError
from kvant.kernels import isa


def test_levels_start_with_the_one_every_machine_has() -> None:
    assert isa.levels()[0] == "baseline"
    assert set(isa.levels()) <= {"baseline", "avx2", "avx512"}


def test_default_is_the_fastest_and_the_environment_forces_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVANT_ISA", raising=False)
    assert isa.level() == isa.levels()[-1]
    monkeypatch.setenv("KVANT_ISA", "")
    assert isa.level() == isa.levels()[-1]
    monkeypatch.setenv("KVANT_ISA", "baseline")
    assert isa.level() == "baseline"


def test_a_level_that_cannot_run_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", "avx10")
    with pytest.raises(
        ValueRangeError, match=r"^KVANT_ISA: 'avx10' is not a level this machine can run\. Use one of base"
    ):
        isa.level()


def test_a_process_started_with_the_variable_runs_at_that_level() -> None:
    code = (
        "import numpy, kvant; from kvant.kernels import isa; "
        "kvant.encode(numpy.ones((1, 256), 'f4'), 'Q4_K'); print(isa.level())"
    )
    for level in isa.levels():
        done = subprocess.run(
            [sys.executable, "-c", code], env={"KVANT_ISA": level}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == level
