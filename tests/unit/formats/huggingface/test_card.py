"""The front matter of model cards, and the metadata made of it."""

from pathlib import Path

import pytest

from kvant.formats.huggingface.card import read_card
from kvant.formats.huggingface.general import general_metadata

CARD = """---
license: apache-2.0   # permissive
license_link: "https://example.org/LICENSE"
language:
- en
- 'de'
tags: [text, small]
pipeline_tag: text-generation
base_model:
  - Qwen/Qwen2.5-1.5B
datasets:
- https://huggingface.co/org/Some-Data-v2
model-index:
- name: x
  results:
  - task: y
---
# Title
license: not this one
"""


def test_texts_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(CARD)
    assert read_card(path) == {
        "license": "apache-2.0",
        "license_link": "https://example.org/LICENSE",
        "language": ["en", "de"],
        "tags": ["text", "small"],
        "pipeline_tag": "text-generation",
        "base_model": ["Qwen/Qwen2.5-1.5B"],
        "datasets": ["https://huggingface.co/org/Some-Data-v2"],
    }


@pytest.mark.parametrize("text", ["", "# Title\n", "---\nlicense: mit\n", "---\n---\n", "---\n- a\n: b\n---\n"])
def test_no_front_matter_is_an_empty_card(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    assert read_card(path) == {}
    assert read_card(tmp_path / "absent.md") == {}


def test_metadata_from_card_name_and_generation_config(tmp_path: Path) -> None:
    directory = tmp_path / "Tiny-2.5M-Instruct-v1"
    directory.mkdir()
    (directory / "README.md").write_text(CARD)
    (directory / "generation_config.json").write_text('{"top_k": 20, "temperature": 0.5, "top_p": "high"}')
    found = {key: value.value for key, value in general_metadata(directory, {}, 2_492_672).items()}
    assert found == {
        "general.sampling.top_k": 20,
        "general.sampling.temp": 0.5,
        "general.name": "Tiny 2.5M Instruct v1",
        "general.version": "v1",
        "general.finetune": "Instruct",
        "general.basename": "Tiny",
        "general.size_label": "2.5M",
        "general.license": "apache-2.0",
        "general.license.link": "https://example.org/LICENSE",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Qwen2.5 1.5B",
        "general.base_model.0.organization": "Qwen",
        "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen2.5-1.5B",
        "general.dataset.count": 1,
        "general.dataset.0.name": "Some Data v2",
        "general.dataset.0.version": "v2",
        "general.dataset.0.organization": "Org",
        "general.dataset.0.repo_url": "https://huggingface.co/org/Some-Data-v2",
        "general.tags": ["text", "small", "text-generation"],
        "general.languages": ["en", "de"],
    }


def test_the_name_of_the_configuration_comes_before_the_directory(tmp_path: Path) -> None:
    found = general_metadata(tmp_path, {"_name_or_path": "org/Base-1B"}, 10**9)
    assert found["general.name"].value == "Base 1B"
    assert found["general.organization"].value == "Org"
    local = general_metadata(tmp_path, {"_name_or_path": "a/local/path"}, 10**9)
    assert "general.organization" not in local


def test_a_broken_generation_config_is_only_advice(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    assert "general.name" in general_metadata(tmp_path, {}, 0)


def test_advice_and_names_that_cannot_be_stored_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"top_k": 1e30, "temperature": 1e300, "min_p": NaN, "top_p": true}'
    )
    found = general_metadata(tmp_path, {"_name_or_path": "\ud800"}, 0)
    assert not [key for key in found if key.startswith("general.sampling")]
    assert found["general.name"].value == "?"
