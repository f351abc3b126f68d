"""Rerankers: what they are is said, and they are served as clients of Jina, Cohere and llama.cpp ask them."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from typer.testing import CliRunner

from family_cases import table, write_checkpoint
from kvant.cli.main import app
from kvant.errors import UnsupportedModelError
from kvant.formats.gguf.kinds import RERANKS
from kvant.formats.open import open_model
from kvant.recipes.chat import Chat
from kvant.recipes.convert.convert import convert
from kvant.recipes.inspect.inspect import inspect
from kvant.recipes.optimize.pipeline import optimize
from kvant.runtime.process import EngineProcess
from served import Served, served, write_gguf

pytestmark = pytest.mark.heavy

QUERY, DOCUMENTS = "why is the sky blue", ["light scatters", "bread and rivers", "a mill"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a tiny Qwen3-Reranker that reads its own prompt, and of a model that writes text."""
    directory = tmp_path_factory.mktemp("models")
    case = table("qwen3-reranker")
    case["config"] |= {"max_position_embeddings": 1024}
    source = write_checkpoint(case, tmp_path_factory.mktemp("source") / "tiny")
    convert(source, directory / "ranks.gguf", to="gguf", type="F32")
    write_gguf(directory / "plain.gguf")
    return directory


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Served]:
    with served(root, parallel=1) as running:
        yield running


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=120) as client:
        yield client


def test_documents_come_in_the_order_of_the_engines_scores(http: httpx2.Client, root: Path) -> None:
    asked = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS, "return_documents": True}
    answer = http.post("/v1/rerank", json=asked)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one["index"] for one in results) == [0, 1, 2]
    assert all(one["document"] == {"text": DOCUMENTS[one["index"]]} for one in results)
    assert answer.json()["usage"]["prompt_tokens"] > 300

    prompt = str(open_model(root / "ranks.gguf").get("tokenizer.chat_template.rerank"))
    with EngineProcess() as engine:
        engine.open(root / "ranks.gguf", n_ctx=1024, n_threads=1, embeddings=True, ranking=True)
        own = [
            engine.embed(engine.tokenize(prompt.format(query=QUERY, document=text), parse_special=True))
            for text in DOCUMENTS
        ]
    assert all(both.sum() == pytest.approx(1) for both in own)  # yes and no
    found = [one["relevance_score"] for one in sorted(results, key=lambda one: one["index"])]
    np.testing.assert_allclose(found, [both[0] for both in own], rtol=2e-2)  # the server keeps keys in float16

    first = http.post("/v1/rerank", json={**asked, "documents": [{"text": t} for t in DOCUMENTS], "top_n": 1}).json()
    assert [one["index"] for one in first["results"]] == [results[0]["index"]]


def test_a_pair_is_read_as_long_as_the_model_reads(http: httpx2.Client) -> None:
    asked = {"model": "ranks", "query": QUERY, "documents": ["qzj " * 100]}
    answer = http.post("/v1/rerank", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] > 512  # longer than what it was loaded for


@pytest.mark.parametrize("case", ["qwen3-reranker", "bge-reranker"])
def test_variants_are_measured_by_their_scores(case: str, root: Path, tmp_path: Path) -> None:
    base = root / "ranks.gguf"
    if case != "qwen3-reranker":
        base = tmp_path / "base.gguf"
        convert(write_checkpoint(table(case), tmp_path / "tiny"), base, to="gguf", type="F32")
    small, text = tmp_path / "small.gguf", tmp_path / "text.txt"
    convert(base, small, to="gguf", type="Q8_0")
    words = np.random.default_rng(0).choice(["ab", "cd", "efg", "hij", "kl"], (21, 60))
    text.write_text("\n\n".join(" ".join(line[:9]) + ". " + " ".join(line) for line in words))
    told = ["--against", str(base), "--text", str(text), "--threads", "1"]
    done = CliRunner().invoke(app, ["evaluate", str(base), str(small), *told, "--json"])
    assert done.exit_code == 0, done.output
    itself, quantized = (one["score"] for one in json.loads(done.stdout)["scores"])
    assert itself["difference_max"] < 1e-5
    assert itself["order"] == itself["first"] == 1
    assert 0 < quantized["difference_mean"] <= quantized["difference_max"] < 0.5
    assert quantized["n_queries"] * quantized["n_documents"] == 21 * 5
    assert "--chunks" in CliRunner().invoke(app, ["evaluate", str(small), *told, "--chunks", "2"]).output


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/rerank", {"query": "x", "documents": []}, "documents: 0 are not from 1"),
        ("/v1/rerank", {"query": "x", "documents": ["a", ""]}, "a text is empty"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query: is empty"),
        ("/v1/rerank", {"query": "x", "documents": ["a"], "top_n": 0}, "top_n: 0"),
        ("/v1/rerank", {"query": "x", "documents": ["word " * 900]}, "maximum context length is 1024 tokens"),
        ("/v1/rerank", {"query": "x", "documents": ["a"], "model": "plain"}, "does not support rerank"),
        ("/v1/embeddings", {"input": "x"}, "does not support embeddings: it scores pairs"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "scores pairs of texts"),
    ],
)
def test_what_is_refused(http: httpx2.Client, path: str, body: dict[str, object], message: str) -> None:
    answer = http.post(path, json={"model": "ranks"} | body)
    assert answer.status_code == 400, answer.text
    assert message in answer.text


def test_it_is_said_what_a_reranker_is(root: Path, http: httpx2.Client) -> None:
    path = root / "ranks.gguf"
    assert f"it {RERANKS}" in inspect(path).warnings
    for work in (Chat, optimize):
        with pytest.raises(UnsupportedModelError, match=r"a reranker.*/v1/rerank"):
            work(path)
    assert http.post("/api/show", json={"model": "ranks"}).json()["capabilities"] == ["rerank"]
