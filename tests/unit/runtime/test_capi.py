import ctypes
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from kvant.errors import EngineError
from kvant.runtime import capi


def test_struct_sizes_are_those_of_the_pinned_build() -> None:
    assert [ctypes.sizeof(s) for s in (capi.ModelParams, capi.ContextParams, capi.Batch)] == [80, 168, 56]


def test_the_library_returns_the_known_defaults() -> None:
    library = capi.load()
    capi.check_defaults(library.llama_model_default_params(), capi.MODEL_DEFAULTS, "llama_model_params")
    assert library.llama_context_default_params().n_ctx == 512


@pytest.mark.parametrize(("field", "value"), [("n_ctx", 4096), ("swa_full", False), ("moe_cache_size", 7)])
def test_a_field_elsewhere_is_refused(field: str, value: object) -> None:
    params = capi.load().llama_context_default_params()
    setattr(params, field, value)
    with pytest.raises(EngineError, match=rf"llama_context_params.{field} is {int(value)} by default"):  # type: ignore[call-overload]
        capi.check_defaults(params, capi.CONTEXT_DEFAULTS, "llama_context_params")


def test_another_version_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2027.1.1")
    with pytest.raises(EngineError, match=r"version 2027\.1\.1 is installed.*pip install xllamacpp==2026\.10\.11549"):
        capi.check_version()


def test_an_absent_engine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match="is not installed"):
        capi.library_path()


def test_windows_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineError, match="exports no C functions"):
        capi.library_path()


def test_finding_the_library_imports_nothing() -> None:
    code = "import sys; from kvant.runtime import capi; capi.load(); assert 'xllamacpp' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_users_own_spin_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(capi.SPIN_VARIABLE, "7")
    capi.load.__wrapped__()
    assert os.environ[capi.SPIN_VARIABLE] == "7"


def test_log_pieces_become_lines() -> None:
    capi.clear_log()
    for piece in (b"load", b"ing\n", b"....", b"\n", b"failed: no such tensor\n"):
        capi._append_log(2, piece, None)
    assert capi.log_tail() == "loading | failed: no such tensor"
    capi.clear_log()
    assert capi.log_tail() == "it said nothing"
