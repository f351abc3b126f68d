from kvant.allocate.options import Option
from kvant.recipes.measure.base import Floor
from kvant.recipes.targets.gguf.options import engine_floor

OPTIONS = {
    name: (Option(kind="Q4_0", n_bytes=18, cost=0.02), Option(kind="Q8_0", n_bytes=34, cost=0.0002))
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight")
}


def floor(name: str, kld: float) -> Floor:
    return Floor(name=name, kld_mean=kld, kld_se=0.0002, top1=0.95, n_positions=1020)


def test_what_8_bit_weights_do_not_explain_is_the_engines() -> None:
    assert abs(engine_floor([floor("F32", 0.0), floor("Q8_0", 0.0054)], OPTIONS) - 0.005) < 1e-12


def test_an_engine_that_adds_nothing_has_no_floor() -> None:
    assert engine_floor([floor("F32", 0.0), floor("Q8_0", 0.0003)], OPTIONS) == 0.0
    assert engine_floor([], OPTIONS) == 0.0
