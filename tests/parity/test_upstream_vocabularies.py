"""What upstream's converter makes of every family's tokenizer is what tests/golden/tokenizers.json says.

    PYTHONPATH=tests python tests/parity/test_upstream_vocabularies.py ENVIRONMENT    # writes the file again

The environment is that of tools/upstream_converter.py. `set_vocab` of the family's class is called by itself, without a
model around it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kvant.testing.published_tokenizers import PUBLISHED, write_published
from tokenizing import shortened, trained

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "upstream_converter.py"
GOLDEN = ROOT / "tests" / "golden" / "tokenizers.json"

RUNNER = """
import json, logging, sys
root, *asked = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
logging.disable(logging.CRITICAL)
from pathlib import Path
import gguf
from conversion import get_model_class
from conversion.base import ModelBase, TextModel

def plain(value):
    if isinstance(value, (bytes, bytearray)):
        return value.decode() if all(b for b in value) else list(value)
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

for directory, name, pre in (one.split("|") for one in asked):
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    model = object.__new__(get_model_class(name))
    model.dir_model, model.origin_hf_arch = Path(directory), name
    model.hparams = ModelBase.load_hparams(model.dir_model, False)
    model.is_mistral_format = model.is_eagle3 = False
    model.disable_mistral_community_chat_template = True
    model._tokenizer_is_xlmroberta = False
    model.gguf_writer = gguf.GGUFWriter(path=None, arch="x")
    model.set_vocab()
    keys = {k: [int(v.type), plain(v.value)] for kv in model.gguf_writer.kv_data for k, v in kv.items()}
    print(json.dumps({k: v for k, v in keys.items() if k.startswith("tokenizer.")}))
"""


def upstream_keys(environment: Path, directory: Path) -> dict[str, Any]:
    """Return upstream's keys of every kind, written below `directory`."""
    asked = []
    for kind, published in PUBLISHED.items():
        (directory / kind).mkdir()
        write_published(kind, directory / kind)
        asked.append("|".join((str(directory / kind), *published.upstream)))
    command = [str(environment / "venv" / "bin" / "python"), "-c", RUNNER, str(environment / "converter"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        kind: {
            "trained": trained(directory / kind),
            "keys": {key: shortened(number, value) for key, (number, value) in keys.items()},
        }
        for kind, keys in zip(PUBLISHED, lines, strict=True)
    }


@pytest.fixture(scope="session")
def environment() -> Path:
    path = Path(os.environ.get("KVANT_UPSTREAM_CONVERTER", ROOT / "build" / "upstream-converter")).absolute()
    subprocess.run([sys.executable, str(TOOL), str(path)], check=True)
    return path


def test_the_golden_file_is_upstreams(environment: Path, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = upstream_keys(environment, tmp_path)
    same = {kind: entry for kind, entry in found.items() if entry["trained"] == golden[kind]["trained"]}
    if not same:
        pytest.skip("this version of tokenizers trains other vocabularies than the golden file is of")
    assert same == {kind: golden[kind] for kind in same}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        document = upstream_keys(Path(sys.argv[1]), Path(scratch))
    GOLDEN.write_text(json.dumps(document, indent=1, ensure_ascii=True, sort_keys=True) + "\n")
