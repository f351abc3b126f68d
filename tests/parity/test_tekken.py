"""Mistral's tekken.json: tokens, merges and ids are those of mistral-common and of upstream's reader on top of it.

    PYTHONPATH=tests python tests/parity/test_tekken.py OTHER CONVERTER    # asks them again

OTHER is a Python with mistral-common and sentencepiece, CONVERTER the directory of upstream's converter, see
tools/upstream_converter.py. tests/golden/tekken.json is of mistral-common 1.13.1.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError
from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.tekken import as_tokenizer_json
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.published_tokenizers import write_tekken
from tokenizing import plain, write_vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "tekken.json"
CASES = {"listed": True, "of old": False}
"""Whether the file names its special tokens."""

ENGINE_DIFFERS = {"marks"}  # the engine's expression leaves combining marks out of words

ASK = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/gguf-py")
from pathlib import Path
from gguf.vocab import MistralVocab
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
folder, texts = Path(sys.argv[2]), json.loads(sys.stdin.read())
vocab, tokenizer = MistralVocab(folder), Tekkenizer.from_file(folder / "tekken.json")
rows = list(vocab.all_tokens())
print(json.dumps({
    "tokens": [text.decode() for text, _, _ in rows], "types": [int(kind) for _, _, kind in rows],
    "merges": vocab.extract_vocab_merges_from_model(),
    "roles": [vocab.bos_id, vocab.eos_id, vocab.unk_id, vocab.pad_id],
    "ids": {name: tokenizer.encode(text, bos=True, eos=False) for name, text in texts.items()},
}))
"""


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    kept = {key: digest(answer[key]) for key in ("tokens", "types", "merges")}
    return {**kept, "roles": answer["roles"], "ids": {name: digest(ids) for name, ids in answer["ids"].items()}}


@pytest.mark.parametrize("case", CASES)
def test_tokens_merges_and_ids_are_mistrals(case: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[case]
    write_tekken(tmp_path, lists_special=CASES[case])
    if digest((tmp_path / "tekken.json").read_text()) != golden["file"]:
        pytest.skip("this version of tokenizers trains another vocabulary than the golden file is of")

    keys = tokenizer_metadata(tmp_path, {"model_type": "mistral"})
    file = tmp_path / "vocabulary.gguf"
    write_vocabulary(file, keys)
    with LlamaCpp(file, vocab_only=True) as engine:
        ids = {name: engine.tokenize(text, add_special=True, parse_special=False) for name, text in TEXTS.items()}

    named = {name: plain(keys[f"tokenizer.ggml.{name}"]) for name in ("tokens", "merges", "add_eos_token", "pre")}
    roles = [plain(keys[f"tokenizer.ggml.{role}_token_id"]) for role in ("bos", "eos", "unknown", "padding")]
    found = shortened({
        **named, "types": plain(keys["tokenizer.ggml.token_type"]), "roles": roles,
        "ids": {name: np.asarray(numbers).tolist() for name, numbers in ids.items()},
    })  # fmt: skip
    assert {key: found[key] for key in ("tokens", "types", "merges", "roles")} == {
        key: golden[key] for key in ("tokens", "types", "merges", "roles")
    }
    assert {name for name in TEXTS if found["ids"][name] != golden["ids"][name]} == ENGINE_DIFFERS
    assert (named["add_eos_token"], named["pre"]) == (False, "tekken")


def test_a_missing_chat_template_is_said_and_one_beside_it_is_taken(tmp_path: Path) -> None:
    write_tekken(tmp_path)
    said: list[str] = []
    tokenizer_metadata(tmp_path, {}, said)
    assert any("tekken.json holds no chat template" in remark for remark in said)

    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    said.clear()
    keys = tokenizer_metadata(tmp_path, {}, said)
    assert plain(keys["tokenizer.chat_template"]) == "{{ messages }}"
    assert not any("chat template" in remark for remark in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("config"), "no object named config"),
        (lambda d: d["config"].update(pattern=None), "pattern"),
        (lambda d: d["config"].update(default_vocab_size=1 << 40), "default_vocab_size"),
        (lambda d: d["config"].update(default_num_special_tokens=True), "default_num_special_tokens"),
        (lambda d: d["config"].update(default_vocab_size=100), "leave 70 tokens"),
        (lambda d: d["config"].update(default_vocab_size=100000), "which holds"),
        (lambda d: d.update(vocab={}), "which holds 0"),
        (lambda d: d["vocab"].insert(7, d["vocab"][300]), "token 7 is"),
        (lambda d: d["vocab"][400].update(token_bytes="?"), "token 400 is"),
        (lambda d: d["vocab"].__setitem__(300, {**d["vocab"][299], "rank": 300}), "two tokens"),
        (lambda d: d["vocab"][260].update(token_bytes="AQIDBAUG"), "token 260.*of no two tokens"),
        (lambda d: d.update(special_tokens=[{"rank": 1, "token_str": "a"}]), "special token 0"),
        (lambda d: d.update(special_tokens=[3] * 31), "at most 30 tokens"),
    ],
)
def test_damage_is_refused_with_a_reason(change: Any, words: str, tmp_path: Path) -> None:
    write_tekken(tmp_path)
    document = json.loads((tmp_path / "tekken.json").read_text())
    change(document)

    with pytest.raises(FormatError, match=words):
        as_tokenizer_json(document)


def test_a_file_that_is_no_tekken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("[1]")
    with pytest.raises(KvantError, match=r"tekken\.json"):
        tokenizer_metadata(tmp_path, {})


def asked(python: str, converter: str) -> dict[str, Any]:
    """Ask mistral-common and upstream of every case."""
    found = {}
    for case, lists_special in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            write_tekken(Path(scratch), lists_special=lists_special)
            done = subprocess.run(
                [python, "-c", ASK, converter, scratch],
                input=json.dumps(TEXTS),
                capture_output=True,
                text=True,
                check=True,
            )
            text = (Path(scratch) / "tekken.json").read_text()
            found[case] = {"file": digest(text), **shortened(json.loads(done.stdout.splitlines()[-1]))}
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(asked(*sys.argv[1:3]), indent=1, sort_keys=True) + "\n")
