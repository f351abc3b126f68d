import shlex
from pathlib import Path

import pytest

from command_line import parsed
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.repeat import file_words, own_text, search_words
from kvant.recipes.optimize.request import Request
from kvant.recipes.targets.gguf.target import GGUF

M = Path("my models/m")
OUT = Path("some where/m-Q4_K_M.gguf")


def test_a_plain_search() -> None:
    assert shlex.join(search_words(Request(source=Path("m")))) == (
        "kvant optimize m --calibrate bundled --calibrate-windows 64 --calibrate-seed 1 --formats gguf --context 4096"
    )


def test_everything_that_decides_what_is_found() -> None:
    asked = Request(
        source=M, budget=Budget(max_size_bytes=90_000_000, max_kld=0.02), calibrate="self", calibrate_windows=8,
        calibrate_seed=3, statistics="gradients", keep_statistics=True,
        refinements=1, imatrix=Path("-i"), formats=("gguf", "mlx"), presets=("Q4_0", "Q8_0"),
        context=512, text=Path("a b"), chunks=2, measure_all=True, accepted_licences=("mit", "llama3.2"),
        out=Path("elsewhere"), overwrite=True, jobs=2, threads=3,
    )  # fmt: skip
    assert shlex.join(search_words(asked)) == (
        "kvant optimize 'my models/m' --max-size 90000000 --max-kld 0.02 --calibrate self --statistics gradients "
        "--calibrate-windows 8 --calibrate-seed 3 --imatrix ./-i --formats gguf,mlx --candidates Q4_0,Q8_0 "
        "--refine 1 --context 512 --text 'a b' --chunks 2 --all --accept-licence mit --accept-licence llama3.2"
    )


def test_threads_and_jobs_count_where_a_speed_must_be_reached() -> None:
    asked = Request(source=M, budget=Budget(min_speed_tok_s=20), jobs=2, threads=3)
    assert shlex.join(search_words(asked)).endswith("--jobs 2 --threads 3")


@pytest.mark.parametrize(
    ("calibrate", "imatrix", "is_fitted", "words"),
    [
        ("none", None, False, "quantize 'my models/m' -t Q4_K_M -o m-Q4_K_M.gguf"),
        ("none", "-i.gguf", False, "quantize 'my models/m' -t Q4_K_M -o m-Q4_K_M.gguf --imatrix ./-i.gguf"),
        # Beside an importance file calibration encodes fitted variants alone, and the lock of a preset knows no text.
        ("own.txt", "i.gguf", False, "quantize 'my models/m' -t Q4_K_M -o m-Q4_K_M.gguf --imatrix i.gguf"),
        ("bundled", "i.gguf", True, "rebuild 'some where/m-Q4_K_M.lock.json' --source 'my models/m'"),
        ("self", None, False, "rebuild 'some where/m-Q4_K_M.lock.json' --source 'my models/m'"),
        ("-own", None, True, "rebuild 'some where/m-Q4_K_M.lock.json' --source 'my models/m' --text ./-own"),
    ],
)  # fmt: skip
def test_the_file_is_made_again_by_what_made_it(
    calibrate: str, imatrix: str | None, is_fitted: bool, words: str
) -> None:
    asked = Request(source=M, calibrate=calibrate, imatrix=Path(imatrix) if imatrix else None)
    found = file_words(asked, GGUF(), OUT, "Q4_K_M", is_fitted=is_fitted)
    assert shlex.join(found) == f"kvant {words}"
    assert parsed(found)["source" if found[1] == "rebuild" else "model"] == str(M)


def test_a_file_called_as_a_word_is_given_again() -> None:
    assert own_text(Request(source=M, calibrate="bundled")) == []
    assert own_text(Request(source=M, calibrate="self")) == []
    assert own_text(Request(source=M, calibrate="./self")) == ["--text", "self"]
