"""Run upstream's Hugging Face converter, the oracle of kvant's, as it is.

    python tools/upstream_converter.py ENVIRONMENT                        # make it: 1 GB, some minutes, once
    python tools/upstream_converter.py ENVIRONMENT SOURCE OUT.gguf --type f32 [--pre llama-bpe]

The environment is the one that `kvant convert` makes for classes that it has no family of, kept in a directory of its
own; `KVANT_CONVERTER_PYTHON` and `KVANT_CONVERTER_SOURCE` name one that is there. But nothing is checked, laid out or
confined here: this is what upstream does by itself. It tells tokenizers apart by hashes of published vocabularies;
`--pre` answers in its place for vocabularies that no one published.
"""

import argparse
import os
import subprocess
from pathlib import Path

from kvant.runtime.converter import environment as environments

RUNNER = """
import runpy, sys
root, pre, *sys.argv = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
if pre:
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make(environment: Path) -> environments.Converter:
    """Return the converter, which is made in a directory unless it is there in these versions."""
    environment.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("KVANT_HOME")
    os.environ["KVANT_HOME"] = str(environment)
    try:
        return environments.find() or environments.make()
    finally:
        os.environ.pop("KVANT_HOME")
        os.environ.update({} if before is None else {"KVANT_HOME": before})


def python(environment: Path) -> Path:
    """Return the environment's interpreter, which has torch and transformers."""
    return Path(make(environment).python)


def convert(environment: Path, source: Path, out: Path, kind: str, pre: str = "") -> None:
    """Convert a model directory by upstream's converter."""
    converter = make(environment)
    script = [str(converter.source), pre, str(converter.script)]
    arguments = [str(source), "--outfile", str(out), "--outtype", kind]
    done = subprocess.run(
        [converter.python, "-c", RUNNER, *script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{source}: upstream's converter failed.\n{done.stderr[-2000:]}")


def main() -> None:
    """Parse, make, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--type", default="f32", choices=["f32", "f16", "bf16", "q8_0"])
    parser.add_argument("--pre", default="", help="Name of the pre-tokenizer.")
    arguments = parser.parse_args()
    make(arguments.environment)
    if arguments.source and arguments.out:
        convert(arguments.environment, arguments.source, arguments.out, arguments.type, arguments.pre)


if __name__ == "__main__":
    main()
