"""Names taken apart as the GGUF naming convention puts them together."""

from pathlib import Path

import pytest

from kvant.formats.huggingface.naming import directory_identifier, parse_name, size_label, title


@pytest.mark.parametrize(
    ("identifier", "weights", "expected"),
    [
        ("SmolLM2-135M", 134515008, (None, "SmolLM2", None, None, "135M")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134515008, ("HuggingFaceTB", "SmolLM2", "Instruct", None, "135M")),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 1543714304, ("Qwen", "Qwen2.5-Coder", "Instruct", None, "1.5B")),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7241732096, ("mistralai", "Mistral", "Instruct", "v0.2", "7B")),
        ("microsoft/Phi-3-mini-128k-instruct", 3821079552, ("microsoft", "Phi-3", "128k-instruct", None, "mini")),
        ("gemma-3-270m-it", 268098176, (None, "gemma-3", "it", None, "270M")),
        ("bloom-7b1", 7069016064, (None, "bloom", None, None, "7.1B")),
        ("model", 1000, (None, None, None, None, None)),
        ("smol_hf", 1000, (None, None, None, None, None)),
        ("./x-7B", 7_000_000_000, (None, "x", None, None, "7B")),
        ("A name with spaces-7B", 7_000_000_000, (None, None, None, None, None)),
    ],
)
def test_parts(identifier: str, weights: int, expected: tuple[str | None, ...]) -> None:
    parts = parse_name(identifier, weights)
    assert (parts.organization, parts.basename, parts.finetune, parts.version, parts.size_label) == expected


def test_titles_keep_versions_and_acronyms() -> None:
    assert title("llama-3.2-1B-instruct-v2") == "Llama 3.2 1B Instruct v2"


@pytest.mark.parametrize(
    ("weights", "label"),
    [(134515008, "135M"), (1543714304, "1.5B"), (999, "1.0K"), (3085938688, "3.1B"), (70_553_706_496, "71B"),
     (2_492_672, "2.5M"), (1_500_000_000_000, "1.5T")],
)  # fmt: skip
def test_size_labels_have_two_digits(weights: int, label: str) -> None:
    assert size_label(weights) == label


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/SmolLM2-135M", "SmolLM2-135M"),
        ("/hub/models--org--a--b/snapshots/0123abcd", "org/a--b"),
        ("/hub/snapshots/x", "x"),
    ],
)
def test_a_snapshot_in_the_hub_cache_is_named_after_its_model(path: str, name: str) -> None:
    assert directory_identifier(Path(path)) == name


def test_a_relative_directory_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert directory_identifier(Path()) == tmp_path.name
