"""What every target keeps, as tests to inherit.

    from kvant.testing.targets import TargetTests

    class TestMine(TargetTests):
        target = "mine"

That is all for a format whose entry point is installed and whose engine is here. Override `prepare` where a model needs
something before it can be opened in the format, and `weights` where other files than these count.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.formats.open import open_model
from kvant.recipes.measure.base import measured_text, prepare_base
from kvant.recipes.measure.calibration import calibrate
from kvant.recipes.output import digest_of, hashes
from kvant.recipes.targets.base import Material, Target, Workshop
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.registry import find_target
from kvant.testing.tiny_models import write_tiny_model

WEIGHTS = (".gguf", ".safetensors", ".onnx", ".data")
LINES = 90


class TargetTests:
    """The contract of `kvant.recipes.targets.base.Target`, on a tiny model with random weights.

    Attributes:
        target: Name of the format.
        architecture: Of the tiny model, see `write_tiny_model`.
    """

    target: str
    architecture = "llama"

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """A cache of its own for the class."""
        place = tmp_path_factory.mktemp("home")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KVANT_HOME", str(place))
            yield place

    @pytest.fixture(autouse=True)
    def own_home(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every test use it."""
        monkeypatch.setenv("KVANT_HOME", str(home))

    @pytest.fixture(scope="class")
    @classmethod
    def made_in(cls) -> Target:
        """The format."""
        return find_target(cls.target)

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG003 - set before
        """A full-precision model."""
        place = tmp_path_factory.mktemp("model") / "little"
        path = write_tiny_model(cls.architecture, place, num_hidden_layers=2, intermediate_size=256)
        cls.prepare(path)
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, made_in: Target, source: Path) -> Workshop:
        """A workshop that knows nothing but the weights."""
        return made_in.open(cls.material(source))

    @pytest.fixture(scope="class")
    @classmethod
    def calibrated(cls, made_in: Target, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
        """A workshop that knows what was measured of the model."""
        text = tmp_path_factory.mktemp("text") / "text.txt"
        text.write_text("".join(f"Line {i} of {i * i} on rivers, mills and bread.\n" for i in range(LINES)))
        known = calibrate(open_model(source), str(text), windows=2, threads=1)
        return made_in.open(cls.material(source, calibration=known, importance=known.importance))

    @classmethod
    def prepare(cls, source: Path) -> None:
        """Do what a model needs before it can be opened in the format; nothing by default."""

    @classmethod
    def material(cls, source: Path, **known: object) -> Material:
        """Return what variants of a model are made from, on this machine."""
        machine = detect(measure=False)
        return Material(model=open_model(source), machine=machine, device=device_for(None, machine), threads=1, **known)  # type: ignore[arg-type]

    def weights(self, artifact: Path) -> list[Path]:
        """Return the files of an artifact whose bytes are its size."""
        if artifact.is_file():
            return [artifact]
        return [path for path in sorted(artifact.rglob("*")) if path.suffix in WEIGHTS]

    def size(self, artifact: Path) -> int:
        """Bytes of an artifact's files of weights."""
        return sum(path.stat().st_size for path in self.weights(artifact))

    def test_its_names_lead_back_to_it(self, made_in: Target, plain: Workshop, source: Path) -> None:
        """Presets are known, files are named after them, and a command makes each."""
        assert made_in.name == self.target
        made_in.check(open_model(source))
        for candidate in plain.presets():
            assert made_in.knows(candidate.preset)
            assert candidate.name == made_in.label(candidate.preset)
            out = made_in.output_name("little", candidate.preset)
            words = made_in.command(candidate.preset, "source", out, "importance")
            assert words[:3] == ["kvant", "quantize", "source"]
            assert {out, candidate.preset, "importance"} <= set(words)
        assert not made_in.knows("no such preset")

    def test_a_size_is_known_to_the_byte_before_anything_is_encoded(self, plain: Workshop, tmp_path: Path) -> None:
        """Candidates are sorted by size, and the size of each is that of its files."""
        candidates = plain.presets()
        assert [c.size_bytes for c in candidates] == sorted(c.size_bytes for c in candidates)
        for candidate in (candidates[0], candidates[len(candidates) // 2], candidates[-1]):
            out = tmp_path / candidate.preset
            plain.write(candidate.plan, out, is_fitted=candidate.is_fitted)
            assert self.size(out) == candidate.size_bytes, candidate.preset
            stored = plain.matrices(candidate.plan)
            assert 0 < sum(matrix.n_bytes for matrix in stored) <= candidate.size_bytes
            assert all(matrix.n_weights > 0 for matrix in stored)

    def test_a_preset_that_is_asked_for_is_planned_alone(self, plain: Workshop) -> None:
        """Names choose among the presets."""
        first = plain.presets()[0]
        assert [c.preset for c in plain.presets([first.preset])] == [first.preset]

    def test_mixes_are_choices_among_the_options(self, plain: Workshop, calibrated: Workshop) -> None:
        """A mix takes what was chosen, and no more bytes than the options say."""
        assert not plain.options()
        options = calibrated.options()
        assert options
        for pick in (0, -1):
            choice = {name: kinds[pick].kind for name, kinds in options.items()}
            made = calibrated.mix(choice, "kvant-{:.2f}".format)
            assert made.is_fitted
            assert made.preset == f"kvant-{made.bpw:.2f}"
            assert calibrated.choice(made) == choice
            assert made.size_bytes <= calibrated.rest_bytes + sum(kinds[pick].n_bytes for kinds in options.values())
        assert all(option.cost >= 0 for kinds in options.values() for option in kinds)

    def test_the_same_plan_gives_the_same_bytes(self, calibrated: Workshop, tmp_path: Path) -> None:
        """Whatever the threads, and from the cache as well; a mix has the size predicted."""
        made = self.smallest_mix(calibrated)
        for threads in (1, 3):
            calibrated.write(made.plan, tmp_path / f"{threads}", is_fitted=True, threads=threads)
        one, other = (digest_of(p, hashes(p)) for p in (tmp_path / "1", tmp_path / "3"))
        assert one == other
        assert self.size(tmp_path / "1") == made.size_bytes
        cached = calibrated.make(made)
        assert digest_of(cached, hashes(cached)) == one
        assert calibrated.make(made) == cached
        calibrated.forget(made)
        assert not cached.exists()
        other_plan = calibrated.presets()[0]
        assert calibrated.key(made) != calibrated.key(other_plan)

    def test_finer_types_are_finer(self, made_in: Target, calibrated: Workshop) -> None:
        """A type is as fine as itself; of two different ones not both are finer."""
        kinds = sorted({option.kind for every in calibrated.options().values() for option in every})
        assert all(made_in.finer(kind, kind) for kind in kinds)
        assert not any(made_in.finer(a, b) and made_in.finer(b, a) for a in kinds for b in kinds if a < b)
        assert any(made_in.finer(a, b) for a in kinds for b in kinds if a != b)

    def test_its_engine_measures_what_was_written(self, plain: Workshop, source: Path) -> None:
        """Divergences are finite, finer presets lose less, and memory is at least the weights'."""
        text = measured_text(None)
        _, base = prepare_base(source, text=text, context=256, chunks=1, threads=1)
        candidates = plain.presets()
        scores = {}
        for candidate in (candidates[0], candidates[-1]):
            score = plain.measure(plain.make(candidate), base, threads=1)
            assert math.isfinite(score.kld_mean)
            assert score.size_bytes == candidate.size_bytes
            assert plain.memory_bytes(candidate, score) >= candidate.size_bytes
            scores[candidate.preset] = score.kld_mean
        assert scores[candidates[-1].preset] < scores[candidates[0].preset]

    def smallest_mix(self, workshop: Workshop) -> Candidate:
        """Return the mix of the smallest options."""
        least = {name: min(kinds, key=lambda o: o.n_bytes).kind for name, kinds in workshop.options().items()}
        return workshop.mix(least, "kvant-{:.2f}".format)
