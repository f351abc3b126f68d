import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

import kvant
from kvant.errors import ValueRangeError
from kvant.units import (
    asked_bytes,
    axis_bytes,
    counted,
    format_bytes,
    format_speed,
    format_time,
    format_weights,
    parse_bytes,
    parse_time,
)

SIZES: dict[float, str] = {
    0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 1500: "1.5 kB", 49_152: "49.2 kB", 999_949: "999.9 kB",
    999_950: "1.0 MB", 98_360_000: "98.4 MB", 105_454_240: "105.5 MB", 999_940_000: "999.9 MB", 999_960_000: "1.00 GB",
    1_500_000_000: "1.50 GB", 25e9: "25.00 GB", 999_996_000_000: "1.00 TB", 2e12: "2.00 TB", -5_500_000: "-5.5 MB",
}  # fmt: skip
WEIGHTS = {0: "0", 35_136: "35,136", 134_515_008: "134.5 M", 999_960_000: "1.00 B", 1_543_714_304: "1.54 B"}
SPEEDS = {0.051: "0.05", 6.1: "6.10", 9.996: "10.0", 72.44: "72.4", 99.96: "100", 118.4: "118", 1234.6: "1235"}


@pytest.mark.parametrize("n", [1, 99_999, 97_512_345, 999_950_000, 999_999_999, 1_000_000_000, 7_123_456_789])
def test_what_is_asked_for_has_room_for_what_is_meant(n: int) -> None:
    assert n <= parse_bytes(asked_bytes(n)) <= n + 10_000_000


TIMES = {
    0.2: "1 s", 40: "40 s", 59.6: "1 min", 60: "1 min", 410: "6 min 50 s", 600: "10 min", 1_490: "25 min", 3_600: "1 h",
    4_800: "1 h 20 min", 90_000: "25 h",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), (" 1.5 h ", 5400), ("2m", 120), ("5 SEC", 5)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "min", "-1min", "0s", "1d", "1 h 20 min"])
def test_any_other_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueRangeError, match="10min"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 100_000_000), ("1.5GiB", 1_610_612_736), ("1024", 1024), (" 2 kb ", 2000), ("3K", 3000), ("7B", 7)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "1e9", "ten MB", "5XB", "1 000 MB"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueRangeError, match="such as 100MB"):
        parse_bytes(text)


def test_quantities_for_people() -> None:
    assert {n: format_bytes(n) for n in SIZES} == SIZES
    assert {n: format_weights(n) for n in WEIGHTS} == WEIGHTS
    assert {n: format_speed(n) for n in SPEEDS} == SPEEDS
    assert {n: format_time(n) for n in TIMES} == TIMES
    assert format_speed(None) == "–"
    assert [counted(n, "model") for n in (0, 1, 2)] == ["0 models", "1 model", "2 models"]


def test_ticks_of_an_axis_share_a_unit() -> None:
    assert [axis_bytes(n, 2e9) for n in (500e6, 2e9)] == ["0.5 GB", "2 GB"]
    assert [axis_bytes(n, 1.5e9) for n in (500e6, 1.5e9)] == ["500 MB", "1500 MB"]


def test_the_page_says_the_same(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js. Install it to run the page's JavaScript.")
    module = tmp_path / "units.mjs"
    module.write_bytes(resources.files("kvant.serve").joinpath("page", "units.js").read_bytes())
    tables = {"bytes": list(SIZES), "weights": list(WEIGHTS), "digits": list(SPEEDS)}
    script = (
        f"import * as units from {json.dumps(module.as_uri())};"
        f"const tables = {json.dumps(tables)};"
        "const say = ([name, values]) => [name, values.map(units[name])];"
        "console.log(JSON.stringify(Object.fromEntries(Object.entries(tables).map(say))));"
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    assert said["bytes"] == list(SIZES.values())
    assert said["weights"] == list(WEIGHTS.values())
    assert said["digits"] == list(SPEEDS.values())


def test_no_other_module_says_sizes_in_units_of_its_own() -> None:
    root = Path(kvant.__file__).parent
    own = re.compile(r"\}\s?[kKMGT]i?B\b")  # a figure that is put in, then a unit
    files = [path for kind in ("py", "js", "j2") for path in root.rglob(f"*.{kind}")]
    found = {path.relative_to(root).as_posix() for path in files if own.search(path.read_text(encoding="utf-8"))}
    assert found == {"units.py", "serve/page/units.js"}
