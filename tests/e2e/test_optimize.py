"""The main job on a tiny random model: every step with the real engine, in seconds."""

import base64
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import BudgetError, KvantError, OutputExistsError, UnsupportedModelError
from kvant.files import cache_dir, sha256_file
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.open import open_model
from kvant.recipes.convert.convert import convert
from kvant.recipes.goal import Budget
from kvant.recipes.measure.sample import Sample, Samples
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.report.report import Report, render
from kvant.testing.pictures import write_tiny_projector
from kvant.testing.tiny_models import write_tiny_model

runner = CliRunner()


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this module: what one of them measured, the others need not measure again."""
    return tmp_path_factory.mktemp("shared-home")


@pytest.fixture(autouse=True)
def own_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the empty home that every test gets by the shared one."""
    monkeypatch.setenv("KVANT_HOME", str(shared_home))
    return shared_home


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any cache, for tests that look into it."""
    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama")


def request(tiny: Path, out: Path, **changes: object) -> Request:
    few = {"presets": ("Q8_0", "Q4_K_M", "Q4_0", "Q2_K"), "chunks": 1, "threads": 1}
    return msgspec.structs.replace(Request(source=tiny, calibrate="none", out=out), **{**few, **changes})


class Said:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def start(self, task: str, total: float, unit: str) -> None:
        """Ignore."""

    def advance(self, task: str, amount: float) -> None:
        """Ignore."""

    def finish(self, task: str) -> None:
        """Ignore."""

    def say(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def found(tiny: Path, shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """One run for all tests that only look at what it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(shared_home))
        out = tmp_path_factory.mktemp("out")
        return optimize(request(tiny, out, measure_all=True)), out


def test_it_writes_the_pick_a_passport_and_reports(found: tuple[Report, Path]) -> None:
    report, out = found
    names = {p.name for p in out.iterdir()}
    stem = f"little-llama-{report.pick}"
    assert names == {
        f"{stem}.gguf", f"{stem}.lock.json", f"{stem}.passport.json", "recipe.yaml", "report.html", "report.json"
    }  # fmt: skip
    assert open_model(out / report.file).get("kvant.preset") == report.pick
    assert sha256_file(out / report.file) == report.sha256
    passport = json.loads((out / f"{stem}.passport.json").read_bytes())
    assert passport["passport"] == 1
    assert passport["sha256"] == report.sha256
    assert passport["score"]["kld_mean"] >= 0
    assert passport["tokenizer"]["truth"].startswith("tokenizers ")
    assert passport["tokenizer"]["n_same_texts"] == passport["tokenizer"]["n_texts"] > 60
    assert report.tokenizers[0].is_same
    assert "chat prompts as the original does" in (out / "report.html").read_text()
    assert msgspec.json.decode((out / "report.json").read_bytes(), type=Report) == report
    assert json.loads((out / "report.json").read_bytes())["report"] == 1


def test_sizes_were_predicted_to_the_byte(found: tuple[Report, Path]) -> None:
    report, out = found
    assert len(report.variants) == 4
    for variant in report.variants:
        assert variant.score.size_bytes == variant.size_bytes
    pick = next(v for v in report.variants if v.is_pick)
    assert (out / report.file).stat().st_size == pick.size_bytes


def test_more_bits_are_closer(found: tuple[Report, Path]) -> None:
    klds = {v.preset: v.score.loss for v in found[0].variants}
    assert klds["Q8_0"] < klds["Q4_K_M"] < klds["Q2_K"]


def test_the_reason_and_how_to_repeat_it(found: tuple[Report, Path]) -> None:
    report, _ = found
    assert report.reason.startswith(report.pick)
    assert report.commands[0].startswith("kvant optimize ")
    assert f"-t {report.pick}" in report.commands[1]
    assert len(report.text.sha256) == 64


def test_original_and_pick_continue_the_same_prompt(found: tuple[Report, Path]) -> None:
    report, out = found
    assert report.samples is not None
    assert report.samples.variants[0].name == report.pick
    page = (out / "report.html").read_text()
    assert "The same prompt, continued" in page
    degraded = {v.preset for v in report.variants if v.score.loss >= 0.15}
    assert {v.preset for v in report.variants if v.cost} == degraded
    assert degraded <= {sample.name for sample in report.samples.variants}


def test_the_page_is_self_contained_and_its_style_is_allowed(found: tuple[Report, Path]) -> None:
    page = (found[1] / "report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.replace("&#39;", "'")
    assert not re.search(r"<script|<link|<img|<iframe|https?://|url\(|@import| on\w+=| style=", page)


class Tags(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the base class's signature
        self.seen.add(tag)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the base class's signature
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_hostile_names_stay_text(found: tuple[Report, Path]) -> None:
    report, _ = found
    attack = "</title></style><script>alert(1)</script>\"'><svg onload=alert(1)>{{ 7*7 }}"
    hostile = msgspec.structs.replace(
        report,
        model=msgspec.structs.replace(report.model, name=attack, architecture=attack, path=attack),
        tensors=tuple(msgspec.structs.replace(t, name=attack) for t in report.tensors),
        commands=(attack,), reason=attack, fallbacks=attack, file=attack,
        samples=Samples(
            prompt=attack, tokens=48, original=attack, variants=(Sample(name=report.variants[0].preset, text=attack),)
        ),
        variants=tuple(msgspec.structs.replace(v, cost=attack) for v in report.variants),
    )  # fmt: skip
    parser = Tags()
    page = render(hostile)
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert page.count("{{ 7*7 }}") >= 5


def test_a_second_run_takes_everything_from_the_cache(tiny: Path, tmp_path: Path) -> None:
    first = optimize(request(tiny, tmp_path / "one"))
    kept = {p.name: p.stat().st_mtime_ns for name in ("scores", "logits", "base") for p in cache_dir(name).iterdir()}
    second = optimize(request(tiny, tmp_path / "two"))
    assert second.sha256 == first.sha256
    assert [v.score for v in second.variants] == [v.score for v in first.variants]  # speeds are predicted anew
    written = {p.name for name in ("scores", "logits") for p in cache_dir(name).iterdir()} - set(kept)
    assert written == set()


def test_only_the_winner_stays_in_the_cache(tiny: Path, tmp_path: Path, empty_home: Path) -> None:
    assert empty_home.parent == tmp_path
    report = optimize(request(tiny, tmp_path / "out", measure_all=True))
    (kept,) = cache_dir("variants").glob("*.gguf")
    assert sha256_file(kept) == report.sha256
    assert len(list(cache_dir("scores").iterdir())) == 4


def test_jobs_find_the_same(tiny: Path, tmp_path: Path) -> None:
    report = optimize(request(tiny, tmp_path / "out", measure_all=True, jobs=2, presets=("Q8_0", "Q4_0")))
    assert [v.preset for v in report.variants] == ["Q4_0", "Q8_0"]


def test_jobs_find_the_original_ready(tiny: Path, tmp_path: Path, empty_home: Path) -> None:  # noqa: ARG001
    """Jobs that both find it missing would both write it."""

    class Heard(Said):
        def say(self, message: str) -> None:
            super().say(f"{threading.current_thread() is threading.main_thread()} {message}")

    heard = Heard()
    optimize(request(tiny, tmp_path / "out", measure_all=True, jobs=2, presets=("Q8_0", "Q4_0")), progress=heard)
    assert [message.split()[0] for message in heard.messages if " as F32 to " in message] == ["True"]


def test_what_cannot_fit_is_never_encoded(tiny: Path, tmp_path: Path) -> None:
    said = Said()
    sizes = {v.preset: v.size_bytes for v in optimize(request(tiny, tmp_path / "all", measure_all=True)).variants}
    limit = sizes["Q4_K_M"]
    report = optimize(request(tiny, tmp_path / "out", budget=Budget(max_size_bytes=limit)), progress=said)
    measured = {v.preset for v in report.variants}
    assert "Q8_0" not in measured
    assert report.pick == "Q4_K_M"
    assert (tmp_path / "out" / report.file).stat().st_size <= limit
    assert {s.preset: s.reason for s in report.skipped}["Q8_0"].startswith("larger than")
    assert said.messages[0] == "GGUF in llama.cpp: 4 different variants, 3 keep the budget by prediction."


def test_a_bound_on_kld_takes_the_smallest(tiny: Path, tmp_path: Path) -> None:
    every = optimize(request(tiny, tmp_path / "all", measure_all=True)).variants
    bound = max(v.score.loss for v in every if v.preset != "Q2_K")
    report = optimize(request(tiny, tmp_path / "out", budget=Budget(max_kld=bound * 1.0001)))
    pick = next(v for v in report.variants if v.is_pick)
    assert pick.size_bytes == min(v.size_bytes for v in every if v.score.loss <= bound * 1.0001)


def test_a_device_takes_the_smallest_close_one_or_the_closest(tiny: Path, tmp_path: Path) -> None:
    for device in ("this", "phone-6gb"):
        report = optimize(request(tiny, tmp_path / device, budget=Budget(device=device)))
        assert report.device.name == device
        assert report.goal.kind == "size"
        assert f"--device {device}" in report.commands[0]


def test_impossible_budgets_say_what_is_possible(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"smallest possible is Q2_K with \d"):
        optimize(request(tiny, tmp_path / "out", budget=Budget(max_size_bytes=1000)))
    with pytest.raises(BudgetError, match=r"max-kld: Q8_0 comes closest with 0\.\d+, above 1e-07"):
        optimize(request(tiny, tmp_path / "out", budget=Budget(max_kld=1e-7)))
    assert not (tmp_path / "out").exists()


def test_another_file_of_the_name_is_kept(tiny: Path, tmp_path: Path) -> None:
    small = request(tiny, tmp_path, presets=("Q8_0",))
    (tmp_path / "little-llama-Q8_0.gguf").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="exists with other content"):
        optimize(small)
    assert (tmp_path / "little-llama-Q8_0.gguf").read_bytes() == b"mine"
    report = optimize(msgspec.structs.replace(small, overwrite=True))
    assert sha256_file(tmp_path / report.file) == report.sha256


def test_a_killed_run_continues(tiny: Path, tmp_path: Path, empty_home: Path) -> None:
    command = [
        sys.executable, "-m", "kvant.cli.main", "optimize", str(tiny), "--calibrate", "none", "--all",
        "--candidates", "Q8_0,Q4_K_M,Q4_0,Q2_K",
        "--chunks", "1", "--threads", "1", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cache_dir("scores").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert empty_home.is_dir()
    child.send_signal(signal.SIGKILL)
    child.wait()
    scored = {p.name: p.read_bytes() for p in cache_dir("scores").glob("*.json")}
    assert scored
    assert not (tmp_path / "out").exists()
    report = optimize(request(tiny, tmp_path / "out", measure_all=True))
    assert len(report.variants) == 4
    assert sha256_file(tmp_path / "out" / report.file) == report.sha256
    for name, content in scored.items():
        assert (cache_dir("scores") / name).read_bytes() == content


def test_the_command_prints_the_pick(tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "optimize",
        str(tiny),
        "--calibrate",
        "none",
        "--candidates",
        "Q8_0,Q4_0",
        "--chunks",
        "1",
        "-o",
        str(tmp_path / "o"),
    ]
    result = runner.invoke(app, [*arguments, "--max-size", "10MB"])
    assert result.exit_code == 0, result.stderr
    assert "<- pick" in result.stdout
    assert "Pick: Q8_0 is the closest" in result.stdout
    result = runner.invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout)["pick"] in ("Q8_0", "Q4_0")


def test_the_command_fails_with_one_line(tiny: Path, tmp_path: Path) -> None:
    result = runner.invoke(
        app, ["optimize", str(tiny), "--calibrate", "none", "--device", "microcontroller", "-o", str(tmp_path / "o")]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("kvant: microcontroller: 512 kB")


def test_advise_commands(tiny: Path) -> None:
    result = runner.invoke(app, ["advise", str(tiny), "--use-case", "mobile"])
    assert result.exit_code == 0, result.stderr
    assert "For mobile:" in result.stdout
    machine = json.loads(runner.invoke(app, ["advise", "--json"]).stdout)
    assert machine["bandwidth_bytes_s"] > 0


def test_a_projector_lies_beside_the_pick_and_counts(tiny: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    convert(tiny, place / "seer-F16.gguf", to="gguf")
    beside = write_tiny_projector(
        place / "mmproj-seer-F16.gguf", width=read_gguf(place / "seer-F16.gguf").hyper("embedding_length")
    )
    eyes = beside.stat().st_size
    words = [
        "optimize",
        place / "seer-F16.gguf",
        "--calibrate",
        "none",
        "--candidates",
        "Q8_0,Q4_0",
        "--chunks",
        "1",
        "--threads",
        "1",
    ]
    plain = optimize(request(place / "seer-F16.gguf", tmp_path / "blind", presets=("Q8_0", "Q4_0"), projector="none"))
    largest = max(v.size_bytes for v in plain.variants)
    assert plain.projector is None
    done = runner.invoke(app, [*map(str, words), "--max-size", str(largest + eyes - 1), "-o", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert report["pick"] == "Q4_0"
    assert report["projector"]["size_bytes"] == eyes
    assert (out / report["projector"]["file"]).read_bytes() == beside.read_bytes()
    assert "its projector of" in report["skipped"][0]["reason"]
    [variant] = report["variants"]
    assert variant["ram"]["projector_bytes"] == report["projector"]["memory_bytes"] > eyes
    passport = json.loads((out / "seer-Q4_0.passport.json").read_text())
    assert passport["projector"]["sha256"] == sha256_file(beside)
    said = " ".join(done.output.split())
    assert "With its projector, F16:" in said
    assert "which counts within the limits" in said
    assert "mmproj-seer-F16.gguf" in (out / "report.html").read_text()
    done = runner.invoke(app, [*map(str, words), "--max-size", str(eyes + 1), "-o", str(out)])
    assert done.exit_code == 1
    assert "--mmproj none" in done.output
    advice = json.loads(runner.invoke(app, ["advise", str(place / "seer-F16.gguf"), "--json"]).output)
    assert advice["projector"]["size_bytes"] == eyes
    assert advice["rows"][0]["ram"]["projector_bytes"] == advice["projector"]["memory_bytes"]


def test_a_projector_that_is_not_there_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no projector.*Leave --mmproj out"):
        optimize(request(tiny, tmp_path / "out", projector="q8_0"))


def test_plans_in_the_report_cover_the_matrices(found: tuple[Report, Path]) -> None:
    report, out = found
    stored = {n: t.block_type.name for n, t in open_model(out / report.file).tensors.items() if len(t.shape) > 1}
    assert {t.name: t.type for t in report.tensors} == stored
    assert isinstance(report.versions["engine"], str)


def test_an_output_that_cannot_be_written_is_refused_before_the_search(
    tiny: Path, tmp_path: Path, empty_home: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        with pytest.raises(KvantError, match="taken: is a file, not a directory"):
            optimize(request(tiny, out))
    assert taken.read_text() == "mine"
    assert not (empty_home / "cache" / "scores").exists() or not list(cache_dir("scores").iterdir())
