from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from kvant.errors import ValueRangeError
from kvant.evaluate.corpora import Corpus, Part
from kvant.evaluate.windows import Windows, cut
from kvant.runtime.messages import Opened


@dataclass
class CountingEngine:
    """Gives one token per word: its number."""

    add_bos: bool
    asked: list[bool] = field(default_factory=list)

    @property
    def opened(self) -> Opened:
        return Opened(
            n_vocab=1000, add_bos=self.add_bos, add_eos=False, bos=999, n_params=1, tensor_bytes=1, n_ctx_train=64,
            load_s=0.0,
        )  # fmt: skip

    def tokenize(self, text: str, *, add_special: bool) -> np.ndarray:
        self.asked.append(add_special)
        return np.array([int(word) for word in text.split()], "<i4")


def text(**lengths: int) -> Corpus:
    starts = dict(zip(lengths, range(0, 1000, 100), strict=False))
    parts = tuple(
        Part(domain=name, text=" ".join(map(str, range(starts[name], starts[name] + n))), sha256="")
        for name, n in lengths.items()
    )
    return Corpus(name="t", split="", text="", sha256="", parts=parts)


def windows(engine: CountingEngine, corpus: Corpus, **options: Any) -> Windows:
    return cut(cast("Any", engine), corpus, **{"context": 16, "chunks": 0, **options})


def test_windows_of_domains_alternate_until_one_runs_out() -> None:
    found = windows(CountingEngine(add_bos=False), text(prose=50, code=20, talk=33))
    assert found.domains == ("prose", "code", "talk", "prose", "talk", "prose")
    assert found.tokens[:, 0].tolist() == [0, 100, 200, 16, 216, 32]
    np.testing.assert_array_equal(found.tokens[1], range(100, 116))


def test_the_start_token_replaces_the_first_of_every_window() -> None:
    engine = CountingEngine(add_bos=True)
    found = windows(engine, text(prose=32))
    assert found.tokens[:, 0].tolist() == [999, 999]
    assert found.tokens[1, 1] == 17
    assert engine.asked == [True]


def test_the_second_half_is_scored_but_for_its_last_position() -> None:
    found = windows(CountingEngine(add_bos=False), text(prose=16))
    assert (found.context, found.first) == (16, 8)
    np.testing.assert_array_equal(found.labels, [range(9, 16)])


def test_chunks_bound_the_windows() -> None:
    found = windows(CountingEngine(add_bos=False), text(prose=50, code=50), chunks=3)
    assert found.domains == ("prose", "code", "prose")
    assert found.head(1).tokens.shape == (1, 16)


def test_what_gives_no_window_is_refused() -> None:
    engine = CountingEngine(add_bos=False)
    with pytest.raises(ValueRangeError, match="no part holds a window of 16 tokens"):
        windows(engine, text(prose=15))
    for options in ({"context": 15}, {"context": 8}, {"chunks": -1}):
        with pytest.raises(ValueRangeError, match="are not an even number from 16 on"):
            windows(engine, text(prose=50), **options)
