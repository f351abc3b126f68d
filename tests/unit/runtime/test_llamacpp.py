from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import EngineError, ValueRangeError
from kvant.recipes.convert.convert import convert
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engine")
    path = directory / "tiny.gguf"
    convert(write_tiny_model("llama", directory / "hf"), path, to="gguf", type="F32")
    return path


@pytest.fixture(scope="module")
def engine(tiny_file: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(tiny_file, n_ctx=64, n_threads=1, all_logits=True) as engine:
        yield engine


TOKENS = np.arange(3, 35, dtype=np.int32)


def test_what_it_says_of_the_model(engine: LlamaCpp) -> None:
    assert engine.n_vocab == N_VOCAB
    assert 0 < engine.load_s < 60
    assert engine.tensor_bytes == 4 * engine.n_params
    assert engine.eos_ids
    assert "im_start" in (engine.chat_template or "")


def test_text_survives_tokens(engine: LlamaCpp) -> None:
    text = "the rain\nin 中文 \U0001f600"
    ids = engine.tokenize(text)
    assert ids.dtype == np.int32
    assert b"".join(engine.token_bytes(int(t)) for t in ids).decode() == text
    assert engine.tokenize("").size == 0


def test_special_tokens_are_text_unless_asked(engine: LlamaCpp) -> None:
    assert len(engine.tokenize("<|im_start|>", parse_special=True)) == 1
    assert len(engine.tokenize("<|im_start|>")) > 1


def test_logits_depend_on_what_came_before_and_on_nothing_else(engine: LlamaCpp) -> None:
    whole = engine.logits(TOKENS).copy()
    assert whole.shape == (32, N_VOCAB)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(engine.logits(TOKENS), whole)
    np.testing.assert_allclose(engine.logits(TOKENS[:16]), whole[:16], atol=1e-4)
    changed = TOKENS.copy()
    changed[20] = 400
    other = engine.logits(changed)
    np.testing.assert_allclose(other[:20], whole[:20], atol=1e-4)
    assert np.abs(other[20:] - whole[20:]).max() > 1e-2


def test_a_later_first_gives_the_last_rows(engine: LlamaCpp) -> None:
    whole = engine.logits(TOKENS).copy()
    np.testing.assert_allclose(engine.logits(TOKENS, first=16), whole[16:], atol=1e-4)


def test_greedy_generation_takes_the_likeliest_token(engine: LlamaCpp) -> None:
    told: list[int] = []
    made = engine.generate(TOKENS[:8], 5, told.append)
    assert made == told
    window = TOKENS[:8].tolist()
    for token in made:
        assert token == int(engine.logits(window)[-1].argmax())
        window.append(token)


def test_generation_goes_on_from_what_the_context_holds(engine: LlamaCpp) -> None:
    engine.clear()
    first = engine.generate(TOKENS[:8], 4)
    second = engine.generate([*TOKENS[:8].tolist(), *first], 3)
    engine.clear()
    assert engine.generate([*TOKENS[:8].tolist(), *first], 3) == second


def test_returning_false_stops(engine: LlamaCpp) -> None:
    assert len(engine.generate(TOKENS[:8], 5, lambda _: False)) == 1


def test_arguments_outside_their_range(engine: LlamaCpp) -> None:
    with pytest.raises(ValueRangeError, match=r"3\.\.512 leave the vocabulary 0\.\.511"):
        engine.logits([3, 512])
    with pytest.raises(ValueRangeError, match="break the context of 64"):
        engine.logits(np.zeros(65, np.int32))
    with pytest.raises(ValueRangeError, match="outside a window of 4 tokens"):
        engine.logits(TOKENS[:4], first=4)
    with pytest.raises(ValueRangeError, match="60 tokens and 5 to make"):
        engine.generate(np.zeros(60, np.int32), 5)


def test_sequences_side_by_side_are_what_each_is_alone(engine: LlamaCpp, tiny_file: Path) -> None:
    # Another batch shape, another order of sums, and the cache is F16.
    parts = [TOKENS[:9], TOKENS[20:25], TOKENS[3:4]]
    with LlamaCpp(tiny_file, n_ctx=32, n_threads=1, n_seq=3) as several:
        for _ in range(2):
            first = several.extend(parts).copy()
            assert first.shape == (3, N_VOCAB)
            for row, part in zip(first, parts, strict=True):
                np.testing.assert_allclose(row, engine.logits(part)[-1], atol=2e-3)
            second = several.extend([TOKENS[9:12], [], TOKENS[4:5]])
            for row, part in zip(second, (TOKENS[:12], TOKENS[3:5]), strict=True):
                np.testing.assert_allclose(row, engine.logits(part)[-1], atol=2e-3)
            several.clear()
        several.extend([TOKENS, [], []])
        with pytest.raises(ValueRangeError, match="33 break the context of 32"):
            several.extend([TOKENS[:1], [], []])
        none: list[list[int]] = [[], [], []]
        for wrong in ([TOKENS], none):
            with pytest.raises(ValueRangeError, match="not one for each of 3"):
                several.extend(wrong)


def test_a_vocabulary_alone_decodes_nothing(tiny_file: Path) -> None:
    with LlamaCpp(tiny_file, vocab_only=True) as engine:
        assert engine.tokenize("rain").size
        with pytest.raises(EngineError, match="opened without weights"):
            engine.logits([1, 2])


def test_a_file_that_is_no_model_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match=r"broken\.gguf: llama\.cpp cannot load it \(.+\)"):
        LlamaCpp(path)


def test_closing_twice_is_fine(tiny_file: Path) -> None:
    engine = LlamaCpp(tiny_file, n_ctx=32, n_threads=1)
    engine.close()
    engine.close()
