"""The allow-list of engine parameters."""

import math

import pytest

from kvant.errors import ApiError
from kvant.generate.sampling import MAX_STOPS, OLLAMA_DEFAULTS, PARAMETERS, context_wanted, engine_options


def test_the_last_layer_decides_and_names_are_the_engines() -> None:
    sent = engine_options({"temperature": 0.8}, {"temperature": 0.1, "num_predict": 7}, {"num_predict": 9, "stop": "x"})

    assert sent == {"temperature": 0.1, "n_predict": 9, "stop": ["x"]}


def test_nothing_that_is_not_listed_reaches_the_engine() -> None:
    hostile = {"n_discard": 1, "lora": [1], "slot_id": 0, "id_slot": 1, "cache_prompt": False, "samplers": "x"}
    allowed = {rule.engine for rule in PARAMETERS.values() if rule.engine}

    assert engine_options(hostile) == {}
    assert not allowed & set(hostile)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ctx": "x"}, 'option "num_ctx" must be of type integer'),
        ({"num_predict": 1.5}, 'option "num_predict" must be of type integer'),
        ({"temperature": True}, 'option "temperature" must be of type number'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": 3}, 'option "stop" must be of type array'),
        ({"stop": [3]}, 'option "stop" must be of type array of strings'),
        ({"stop": ["x"] * (MAX_STOPS + 1)}, "stop: 65 words break the limit"),
        ({"temperature": math.nan}, "temperature: nan is not from 0 to 100"),
        ({"top_p": 1.5}, "top_p: 1.5 is not from 0 to 1"),
        ({"num_predict": 1 << 40}, "num_predict: 1099511627776 is not from"),
    ],
)
def test_wrong_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        engine_options(options)

    assert str(caught.value).startswith(message)


def test_no_bound_on_the_answer_is_left_to_the_context_and_a_negative_seed_is_any() -> None:
    assert engine_options({"num_predict": -2, "seed": -1}) == {"seed": 2**32 - 1}
    assert engine_options({"seed": 2**40 + 5})["seed"] == 5
    assert engine_options({"num_predict": 3.0})["n_predict"] == 3


def test_ollamas_defaults_are_parameters() -> None:
    assert engine_options(OLLAMA_DEFAULTS).keys() == OLLAMA_DEFAULTS.keys()


def test_the_context_asked_for() -> None:
    assert context_wanted({"num_ctx": 100}, {}) == 100
    assert context_wanted({"num_ctx": 100}, {"num_ctx": 200}) == 200
    assert context_wanted({}, {}) is None
