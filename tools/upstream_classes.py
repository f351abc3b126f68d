"""Write the table of classes that upstream's converter knows, for the version that kvant pins.

    python tools/upstream_classes.py            # makes the converter's environment if there is none (about 1 GB)
    python tools/upstream_classes.py --check    # fails where the table differs

`KVANT_CONVERTER_PYTHON` and `KVANT_CONVERTER_SOURCE` name an environment that is there already.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from kvant.runtime.converter import environment, pins

TABLE = Path(__file__).resolve().parents[1] / "src/kvant/formats/huggingface/architectures/upstream_table.py"

ASK = """
import json, sys
root = sys.argv[1]
sys.path[:0] = [root, root + "/gguf-py"]
import gguf
from conversion import MMPROJ_MODEL_MAP, TEXT_MODEL_MAP, ModelBase, ModelType, load_all_models
load_all_models()
known = ModelBase._model_classes
classes = known[ModelType.TEXT]
text = {name: gguf.MODEL_ARCH_NAMES[classes[name].model_arch] for name in TEXT_MODEL_MAP if name in classes}
json.dump({
    "text": text, "projectors": sorted(set(MMPROJ_MODEL_MAP) & set(known[ModelType.MMPROJ])),
    "dead": sorted(set(TEXT_MODEL_MAP) - set(text)),
}, sys.stdout)
"""

HEAD = '''"""The classes that upstream's converter knows: written by tools/upstream_classes.py, and not by hand.

Source: {package} {version}, `conversion/__init__.py` (`TEXT_MODEL_MAP`, `MMPROJ_MODEL_MAP`), and the
architecture that the class behind each name declares; some choose another by the configuration.{dead}
"""

from collections.abc import Mapping

TEXT: Mapping[str, str] = {{
{text}
}}
"""Classes of language models, with llama.cpp's name of the architecture."""

PROJECTORS: frozenset[str] = frozenset({{
{projectors}
}})
"""Classes whose eyes or ears become a projector file (`mmproj`)."""
'''


def table() -> str:
    """Return the module, as this converter would have it."""
    converter = environment.find() or environment.make()
    words = [converter.python, "-c", ASK, str(converter.source)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    dead = (
        f"\n{' and '.join(found['dead'])}\nare listed there, and no class stands behind them." if found["dead"] else ""
    )
    return HEAD.format(
        package=pins.PACKAGE, version=pins.VERSION, dead=dead,
        text="\n".join(f'    "{name}": "{found["text"][name]}",' for name in sorted(found["text"], key=str.lower)),
        projectors="\n".join(f'    "{name}",' for name in sorted(found["projectors"], key=str.lower)),
    )  # fmt: skip


def main() -> int:
    """Write or compare; 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Compare only.")
    wanted = table()
    if not parser.parse_args().check:
        TABLE.write_text(wanted, encoding="utf-8")
        return 0
    if TABLE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{TABLE.name}: differs from the pinned converter's classes. Run python {sys.argv[0]}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
