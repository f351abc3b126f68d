"""Statistics from llama.cpp: against kvant's own forward pass, whose inputs and attention are seen in the open."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from architectures import write_architecture
from kvant.calibrate import operators
from kvant.calibrate.decoder import Decoder
from kvant.calibrate.engine import _whole, collect
from kvant.calibrate.parts import Part, passes
from kvant.calibrate.probes import pieces_of, row_sizes
from kvant.calibrate.statistics import BORROWED, Statistics
from kvant.dtypes import F32
from kvant.errors import EngineError, ValueRangeError
from kvant.model import Model
from kvant.progress import Silent
from kvant.recipes.measure.base import f32_file
from kvant.recipes.source import open_model
from kvant.runtime import messages
from kvant.runtime.observer import EXPERTS, LINEAR
from kvant.runtime.process import EngineProcess
from kvant.tensors import array_tensor
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

TOKENS = np.random.default_rng(5).integers(3, N_VOCAB, (2, 24), dtype=np.int32)
WEIGHTS = np.array([1.0, 3.0])
RAM = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("llama", tmp_path_factory.mktemp("model"), num_hidden_layers=2))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture
def found(model: Model, directory: Path) -> Statistics:
    return collect(f32_file(model)[0], model, TOKENS, WEIGHTS, directory=directory, threads=1, ram_bytes=RAM)


def seen(model: Model, patch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Inputs by tensor, and attention by layer, [windows, heads, queries, keys]."""
    decoder, inputs, attention = Decoder(model), dict[str, np.ndarray](), list[np.ndarray]()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rest: object) -> torch.Tensor:
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        attention.append(scores.masked_fill(later, -torch.inf).softmax(-1).numpy())
        return whole(q, k, v, **rest)  # type: ignore[arg-type]

    whole = operators.attention
    patch.setattr(operators, "attention", attend)
    with torch.no_grad():
        hidden = decoder.embed(TOKENS)
        for layer in range(decoder.n_layers):
            weights = decoder.weights(layer)
            hidden = decoder.steps(
                layer, hidden, weights, lambda names, x: inputs.update(dict.fromkeys(names, x.numpy()))
            )
        inputs[decoder.head_name] = decoder.final_norm(hidden, decoder.weights(decoder.n_layers)).numpy()
    return inputs, attention


def test_second_moments_are_those_of_the_inputs_and_attention_weighs_keys_and_values(
    model: Model, found: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, attention = seen(model, monkeypatch)
    assert found.groups.keys() == inputs.keys()
    assert (found.way, list(found.lookups)) == ("engine", ["token_embd.weight"])
    shares = (WEIGHTS / WEIGHTS.sum() / TOKENS.shape[1])[:, None].repeat(TOKENS.shape[1], 1)
    for name, x in inputs.items():
        weights = shares
        if ".attn_k." in name or ".attn_v." in name:
            received = (attention[int(name.split(".")[1])] ** 2).sum((1, 2))
            weights = shares * (1 + received / received.mean(1, keepdims=True))
        expected = np.einsum("wt,wti,wtj->ij", weights, x, x)
        # The engine keeps keys and values as F16.
        np.testing.assert_allclose(found.hessian(name), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    entries = found.importance(("text",)).entries
    assert entries.keys() == {name for name in inputs if name.startswith("blk.")}
    for name, entry in entries.items():
        np.testing.assert_allclose(entry.sums[0], (inputs[name] ** 2).sum((0, 1)), rtol=4e-3)
        assert entry.counts.tolist() == [TOKENS.size]


def test_what_is_finished_is_not_measured_again_and_memory_only_makes_passes(
    model: Model, found: Statistics, directory: Path, tmp_path: Path
) -> None:
    kept = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    base = f32_file(model)[0]
    again = collect(base, model, TOKENS, WEIGHTS, directory=directory, threads=1, ram_bytes=RAM)
    assert again.sha256 == found.sha256
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == kept
    narrow = collect(base, model, TOKENS, WEIGHTS, directory=tmp_path, threads=1, ram_bytes=1)
    for name in found.groups:
        np.testing.assert_allclose(narrow.hessian(name), found.hessian(name), rtol=1e-5, atol=1e-7)


def test_probes_predict_what_errors_in_a_matrix_do(model: Model, found: Statistics) -> None:
    rng = np.random.default_rng(1)
    base = f32_file(model)[0]
    for name in ("blk.0.attn_v.weight", "blk.1.ffn_down.weight"):
        tensor = model.tensors[name]
        sizes = 0.03 * row_sizes(tensor)
        error = (sizes[:, None] * rng.choice([-1.0, 1.0], tensor.shape)).astype(np.float32)
        predicted = 0.5 * float(np.sum((error @ found.risk(name)) * error)) / len(error)
        scales = messages.WeightError(name, LINEAR, sizes.astype("<f4").tobytes(), 1, 99)
        with EngineProcess() as engine:
            engine.open(base, n_ctx=24, n_threads=1, all_logits=True, repack=False, is_observed=True)
            klds = [engine.probe(window, [scales])[0].mean() for window in TOKENS]
        assert 0.5 < predicted / np.mean(klds) < 2


class Interrupt(Silent):
    """Ends the run after a number of steps, as a person would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, task: str, _amount: float) -> None:
        self.left -= task == "probes"
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_search_goes_on_where_it_was(model: Model, found: Statistics, tmp_path: Path) -> None:
    base = f32_file(model)[0]
    with pytest.raises(KeyboardInterrupt):
        collect(
            base, model, TOKENS, WEIGHTS, directory=tmp_path, threads=1, ram_bytes=RAM, progress=Interrupt(5)
        )  # fmt: skip
    tried = msgspec.json.decode((tmp_path / "probes.json").read_bytes())
    assert len(tried) == 5
    (tmp_path / "probes.json").write_bytes(msgspec.json.encode({key: [1.0, 1.0, 1.0, 1.0] for key in tried}))
    rest = collect(base, model, TOKENS, WEIGHTS, directory=tmp_path, threads=1, ram_bytes=RAM)
    for name in found.groups:
        expected = 1.0 if f"linear {name}" in tried else found.curvature(name)
        assert rest.curvature(name) == pytest.approx(expected, rel=1e-3)


def test_experts_share_what_the_router_gives_them(tmp_path: Path) -> None:
    path = write_architecture("qwen3moe", tmp_path / "moe.gguf")
    model = open_model(path)
    tokens = TOKENS % 500
    found = collect(f32_file(model)[0], model, tokens, WEIGHTS, directory=tmp_path / "s", threads=1, ram_bytes=RAM)
    stacked = sorted(name for name in found.groups if "_exps." in name)
    assert {name.split(".")[2] for name in stacked} == {"ffn_down_exps", "ffn_gate_exps", "ffn_up_exps"}
    used = model.hyper("expert_used_count")
    importance = found.importance()
    for name in stacked:
        n_experts, _, n = model.tensors[name].shape
        entry = importance.entries[name]
        assert entry.sums.shape == (n_experts, n)
        assert entry.counts.sum() == used * tokens.size
        total = found.hessian(name)
        own = [found.expert(name, number) for number in range(n_experts)]
        assert [count - BORROWED for _, count in own] == entry.counts.tolist()
        shared = total * np.float32(BORROWED / entry.counts.sum())
        np.testing.assert_allclose(sum(m - shared for m, _ in own), total, rtol=1e-4, atol=1e-5 * total.max())
    assert all(found.curvature(name) >= 0 for name in found.groups)
    tokens_of = found.expert_tokens()
    assert len(tokens_of) == model.hyper("block_count")
    assert tokens_of.keys() <= set(stacked)
    for name, counts in tokens_of.items():
        np.testing.assert_array_equal(counts, importance.entries[name].counts)
        assert (counts < BORROWED).sum() > 0


def test_what_does_not_fit_is_refused(model: Model, tmp_path: Path) -> None:
    base = f32_file(model)[0]
    with pytest.raises(ValueRangeError, match=r"window weights of sum 0"):
        collect(base, model, TOKENS, np.zeros(2), directory=tmp_path, threads=1, ram_bytes=RAM)
    with EngineProcess() as engine:
        engine.open(base, n_ctx=24, n_threads=1, all_logits=True, repack=False, is_observed=True)
        wrong = messages.WeightError("blk.0.attn_q.weight", LINEAR, np.ones(3, "<f4").tobytes(), 1, 0)
        with pytest.raises(EngineError, match=r"products of blk\.0\.attn_q\.weight are not as expected"):
            engine.probe(TOKENS[0], [wrong])
        engine.sum_up([messages.Sum("blk.0.attn_q.weight", 7, 1, moments=True, layer=-1)])
        with pytest.raises(EngineError, match=r"do not fit their weight"):
            engine.observe(TOKENS[0], np.ones(24, np.float32))


def part(name: str, role: str = LINEAR, columns: int = 8, stack: int = 1) -> Part:
    return Part(name=name, role=role, columns=columns, rows=4, stack=stack, input=name, leader=name)


def test_matrices_are_cut_into_passes_by_memory() -> None:
    parts = [part("a"), part("b", columns=4), part("c", EXPERTS, stack=3)]
    assert [p.moment_bytes for p in parts] == [256, 64, 768]
    assert list(passes(parts, 320)) == [parts[:2], parts[2:]]
    assert list(passes(parts, 1)) == [[p] for p in parts]
    assert list(passes([], 1)) == []


@pytest.mark.parametrize(
    ("domains", "parts", "windows_chosen", "length"),
    [
        ("pcdo" * 16, 212, [32, 33, 34, 35], 38),
        ("p" * 256, 100, [32, 96, 160, 224], 327),
        ("pc" * 4, 212, [4, 5], 38),
        ("pcp" * 20, 100, [15, 16, 45, 46], 76),
        ("pcdox" * 2, 100, [5, 6, 7, 8], 40),
        ("p", 4000, [0], 32),
        ("pc", 3, [0, 1], 512),
    ],
    ids=["four kinds", "one kind", "few windows", "two kinds", "more kinds than pieces", "one window", "few matrices"],
)
def test_probes_take_about_as_many_tokens_as_there_are_of_every_kind_of_text(
    domains: str, parts: int, windows_chosen: list[int], length: int
) -> None:
    tokens = np.arange(len(domains) * 512, dtype=np.int32).reshape(-1, 512)
    pieces = pieces_of(tokens, domains, parts)
    found = sorted(int(piece[0]) // 512 for piece in pieces)
    assert (found, {len(piece) for piece in pieces}) == (windows_chosen, {length})


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1100])
def test_a_triangle_is_filled_up(n: int) -> None:
    found = np.random.default_rng(n).standard_normal((n, n)).astype(np.float32)
    lower = np.tril(found)
    np.testing.assert_array_equal(_whole(found), lower + np.tril(lower, -1).T)


def test_sizes_of_rows() -> None:
    x = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_allclose(row_sizes(array_tensor("x", x, F32)), np.sqrt((x**2).mean(1)), rtol=1e-6)
