"""Run upstream's Hugging Face converter, the oracle of kvant's, in an environment of its own.

    python tools/upstream_converter.py ENVIRONMENT                        # make it: 1 GB, some minutes, once
    python tools/upstream_converter.py ENVIRONMENT SOURCE OUT.gguf --type f32 [--pre llama-bpe]

The converter comes from the source distribution of llama-cpp-python, fetched by pip and not built. It tells tokenizers
apart by hashes of published vocabularies; `--pre` answers in its place for vocabularies that no one published.
"""

import argparse
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

SDIST = "llama-cpp-python==0.3.36"
PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "sentencepiece==0.2.3", "protobuf", "pyyaml", "safetensors")
PARTS = ("conversion/", "gguf-py/", "convert_hf_to_gguf.py")
RUNNER = """
import runpy, sys
root, pre, *sys.argv = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
if pre:
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make(environment: Path) -> None:
    """Make the environment, unless it is there in these versions."""
    stamp, wanted = environment / "versions.txt", "\n".join((SDIST, *PACKAGES))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    environment.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(environment / "sdist")]
    name = SDIST.split("==")[0]
    subprocess.run([*pip, "--no-binary", name, SDIST], check=True)
    extract(next((environment / "sdist").glob("*.tar.gz")), environment / "converter")
    venv.create(environment / "venv", with_pip=True)
    subprocess.run([str(python(environment)), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    stamp.write_text(wanted)


def extract(sdist: Path, directory: Path) -> None:
    """Take the converter's files out of a source distribution."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, _, path = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and path.startswith(PARTS):
                target = directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())


def python(environment: Path) -> Path:
    """Return the environment's interpreter, which has torch and transformers."""
    return environment / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def convert(environment: Path, source: Path, out: Path, kind: str, pre: str = "") -> None:
    """Convert a model directory by upstream's converter."""
    root = environment / "converter"
    script = [str(root), pre, str(root / "convert_hf_to_gguf.py")]
    arguments = [str(source), "--outfile", str(out), "--outtype", kind]
    done = subprocess.run(
        [str(python(environment)), "-c", RUNNER, *script, *arguments], capture_output=True, text=True, check=False
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
