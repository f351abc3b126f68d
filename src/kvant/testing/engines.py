"""What every engine keeps, as tests.

    class TestMine(EngineTests):
        name = "mine"

        @pytest.fixture
        def files(self, tmp_path):
            return write_my_format(tmp_path / "model")

The files are a tiny model's; `write_tiny_model` makes one that most formats can be made from.
"""

from pathlib import Path

import numpy as np
import pytest

from kvant.errors import EngineError, FormatError
from kvant.runtime.artifacts import ENGINES, engine_of, open_artifact
from kvant.runtime.engines.base import Artifact, EngineSpec
from kvant.runtime.tokenizers import Questions
from kvant.testing.tiny_models import N_VOCAB

WINDOWS = np.arange(3, 3 + 3 * 16, dtype=np.int32).reshape(3, 16)


class EngineTests:
    """Tests that every engine passes; subclass it, give `name` and the fixture `files`.

    Attributes:
        name: The entry point's name.
        n_vocab: Tokens that the model of `files` gives logits of.
    """

    name: str
    n_vocab: int = N_VOCAB

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        """Return the path of a tiny model in the engine's format, made in a directory of its own."""
        raise NotImplementedError(f"{type(self).__name__}.files, for {tmp_path}")

    @pytest.fixture
    def spec(self) -> EngineSpec:
        """Return the engine as kvant finds it."""
        return ENGINES.get(self.name)

    @pytest.fixture
    def artifact(self, files: Path) -> Artifact:
        """Return the model, opened."""
        return open_artifact(files)

    def test_its_files_are_found_and_no_others(self, spec: EngineSpec, files: Path, tmp_path: Path) -> None:
        """A path is told by what it holds, and one that holds something else is nobody's error."""
        assert spec.name == self.name
        assert engine_of(files) is spec
        (tmp_path / "other.txt").write_text("no model")
        (tmp_path / "empty").mkdir()
        assert not any(spec.finds(tmp_path / name) for name in ("absent", "other.txt", "empty"))

    def test_what_is_open_says_where_its_weights_are(self, spec: EngineSpec, artifact: Artifact) -> None:
        """The files are there, so that sizes can be told."""
        assert artifact.engine is spec
        assert artifact.entry.exists()
        assert artifact.files
        assert sum(file.stat().st_size for file in artifact.files) > 0

    def test_logits_have_their_shape_and_are_the_same_every_time(self, artifact: Artifact) -> None:
        """Two processes give the same bytes; a later position needs no earlier one's logits."""
        runs = []
        for _ in range(2):
            with artifact.engine.process() as process:
                opened = process.open(artifact.entry, n_ctx=16, n_threads=1, all_logits=True)
                assert (opened.n_vocab, opened.n_params > 0, opened.tensor_bytes > 0) == (self.n_vocab, True, True)
                runs.append([rows.copy() for rows in process.logits(WINDOWS, first=8)])
        assert [rows.shape for rows in runs[0]] == [(8, self.n_vocab)] * len(WINDOWS)
        assert all(rows.dtype == np.float32 and np.isfinite(rows).all() for rows in runs[0])
        np.testing.assert_array_equal(runs[0], runs[1])
        assert not np.array_equal(runs[0][0], runs[0][1])

    def test_a_damaged_file_is_an_error_of_ours(self, artifact: Artifact, files: Path) -> None:
        """Whether the check or the engine finds that half of the weights is missing, it says so and goes on."""
        largest = max(artifact.files, key=lambda file: file.stat().st_size)
        entry, engine = artifact.entry, artifact.engine
        content = largest.read_bytes()
        del artifact
        damaged = largest.with_name("damaged.partial")
        damaged.write_bytes(content[: len(content) // 2])
        damaged.replace(largest)  # a new file: the whole one may still be mapped
        with pytest.raises((FormatError, EngineError)):  # noqa: PT012, SIM117 - either may be the one that finds it
            with engine.process() as process:
                open_artifact(files)
                process.open(entry, n_ctx=16, n_threads=1)

    def test_leaving_ends_its_process(self, artifact: Artifact) -> None:
        """No process outlives the block, whatever ended it."""
        before = children()
        with pytest.raises(ZeroDivisionError), artifact.engine.process() as process:  # noqa: PT012
            process.open(artifact.entry, n_ctx=16, n_threads=1)
            assert children() > before
            _ = 1 / 0
        assert children() == before

    def test_speed_and_memory_are_positive(self, artifact: Artifact) -> None:
        """What is measured was run as it was asked for."""
        with artifact.engine.process() as process:
            process.open(artifact.entry, n_ctx=16, n_threads=1)
            found = process.speed(n_prompt=8, n_generate=4, repeats=1)
        assert min(found.pp_tok_s, found.tg_tok_s, found.fastest_s) > 0
        assert found.rss_bytes >= found.rss_before_bytes > 0
        assert (found.n_prompt, found.n_generate, found.repeats) == (8, 4, 1)
        assert found.energy_j_per_token is not None or found.energy_reason

    def test_its_tokenizer_answers_every_question(self, artifact: Artifact) -> None:
        """Where the engine has one: ids of every text, prompts or None of every conversation."""
        if artifact.engine.speaks is None:
            pytest.skip("this engine reads tokens")
        said = (({"role": "user", "content": "the rain"},),)
        questions = Questions(texts=["the rain", "in the hills"], conversations=said, prompts=lambda: ["the rain"])
        found = artifact.engine.speaks(artifact, questions)
        assert found.engine
        assert all(0 <= token < self.n_vocab for ids in found.ids for token in ids)
        assert [len(part) for part in (found.ids, found.prompts, found.prompt_ids)] == [2, 1, 1]


def children() -> frozenset[int]:
    """Return the processes that this one has started and that have not been waited for.

    Skips the test where the system does not tell.
    """
    listed = sorted(Path("/proc/self/task").glob("*/children"))
    if not listed:
        pytest.skip("only Linux lists a process's children")
    return frozenset(int(pid) for path in listed for pid in path.read_text().split())
