from pathlib import Path

import pytest

from kvant.devices.bandwidth import read_bandwidth
from kvant.devices.speed import CORE_BYTES_S, bytes_per_token, predict_speed, weight_seconds
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.metadata import string, u32
from kvant.model import Model

Q8, F32 = BLOCK_TYPES["Q8_0"], BLOCK_TYPES["F32"]
DENSE = Model(metadata={}, tensors={}, path=Path("dense.gguf"), files=())


def test_one_row_of_an_untied_embedding_is_read() -> None:
    types = {"token_embd.weight": Q8, "output.weight": Q8, "output_norm.weight": F32}
    shapes = {"token_embd.weight": (100, 32), "output.weight": (100, 32), "output_norm.weight": (32,)}
    assert bytes_per_token(types, shapes, DENSE) == {Family.LEGACY: 3434, Family.FLOAT: 128}


def test_a_tied_embedding_is_the_head() -> None:
    assert bytes_per_token({"token_embd.weight": Q8}, {"token_embd.weight": (100, 32)}, DENSE) == {Family.LEGACY: 3400}


def test_memory_bounds_many_cores_and_cores_bound_fast_memory() -> None:
    touched = {Family.K_QUANT: 10**9}
    assert predict_speed(touched, bandwidth_bytes_s=5e9, cores=64, core_scale=1.0) == pytest.approx(5.0)
    rate = CORE_BYTES_S[Family.K_QUANT]
    assert predict_speed(touched, bandwidth_bytes_s=1e12, cores=2, core_scale=0.5) == pytest.approx(rate / 1e9)


def test_every_family_has_a_rate() -> None:
    assert set(CORE_BYTES_S) == set(Family)


def test_bandwidth_is_positive() -> None:
    assert read_bandwidth(1, bytes_per_thread=1 << 16) > 0


def test_seconds_of_weights_add_up_to_no_less_than_what_is_predicted() -> None:
    counts = {"Q8_0": 3_000_000, "IQ2_S": 5_120_000}
    touched = {BLOCK_TYPES[name].family: BLOCK_TYPES[name].row_bytes(n) for name, n in counts.items()}
    for bandwidth in (1e9, 9e9, 1e11):
        seconds = sum(
            n * weight_seconds(BLOCK_TYPES[name], bandwidth_bytes_s=bandwidth, cores=2, core_scale=0.7)
            for name, n in counts.items()
        )
        assert 1 / seconds <= predict_speed(touched, bandwidth_bytes_s=bandwidth, cores=2, core_scale=0.7) * (1 + 1e-9)


def test_one_family_takes_what_is_predicted() -> None:
    q8 = BLOCK_TYPES["Q8_0"]
    speed = predict_speed({Family.LEGACY: 34_000_000}, bandwidth_bytes_s=9e9, cores=2, core_scale=1.0)
    seconds = 32_000_000 * weight_seconds(q8, bandwidth_bytes_s=9e9, cores=2, core_scale=1.0)
    assert seconds == pytest.approx(1 / speed)


def test_experts_that_are_not_used_are_not_read() -> None:
    metadata = {"general.architecture": string("qwen3moe"), "qwen3moe.block_count": u32(1)}
    model = Model(
        metadata={**metadata, "qwen3moe.expert_used_count": u32(2)}, tensors={}, path=Path("a.gguf"), files=()
    )
    shapes = {"blk.0.ffn_up_exps.weight": (8, 10, 32), "blk.0.ffn_up_shexp.weight": (10, 32)}
    assert bytes_per_token(dict.fromkeys(shapes, Q8), shapes, model) == {Family.LEGACY: (2 + 1) * 10 * 34}
