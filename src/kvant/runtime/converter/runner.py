"""Run upstream's converter on a directory that kvant has laid out; in an environment where kvant is not installed.

    python runner.py '{"root": DIRECTORY, "pre": NAME, "arguments": [...]}'

It answers one JSON object on standard output: `pre`, the pre-tokenizer that was put in for a vocabulary that nobody
published, and `error`, why there is no file, as `KIND: MESSAGE`. What the converter prints goes to standard error.

Nothing is trusted more than by kvant: code that a model brings is never asked for, whatever the converter wishes.
"""

import importlib
import json
import os
import runpy
import sys
from typing import Any

UNKNOWN = "UnknownPreTokenizer"
"""Kind of the error for a tokenizer that neither the converter's hashes nor kvant's table know."""

OLD_NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta", "rope_theta": "rope_theta"}
"""Entries that transformers 5 keeps in `rope_parameters`, and those names there (its `configuration_gpt_neox`, ...)."""


class UnknownPreTokenizer(Exception):  # noqa: N818 - named as the answer names it
    """A tokenizer that neither the converter's hashes nor kvant's table know."""


def main() -> None:
    """Convert, and answer."""
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer = {"pre": "", "error": ""}
    try:
        _convert(asked["root"], asked["pre"], asked["arguments"], answer)
    except SystemExit as ended:
        if ended.code:
            answer["error"] = "SystemExit: it gave up; what it said stands before"
    except BaseException as error:  # whatever it is, its owner says it
        answer["error"] = f"{type(error).__name__}: {error}"
    with answers:
        json.dump(answer, answers)


def _convert(root: str, pre: str, arguments: "list[str]", answer: "dict[str, str]") -> None:
    sys.path[:0] = [root, os.path.join(root, "gguf-py")]  # noqa: PTH118 - without pathlib's imports
    os.environ["NO_LOCAL_GGUF"] = "1"  # the path is set already
    _name_pretokenizer(pre, answer)
    _trust_no_code()
    sys.argv = [os.path.join(root, "convert_hf_to_gguf.py"), *arguments]  # noqa: PTH118
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except KeyError:  # an entry that this transformers calls otherwise than the converter
        _keep_old_names()
        runpy.run_path(sys.argv[0], run_name="__main__")


def _keep_old_names() -> None:
    """Let the converter see entries of config.json that transformers renames as it reads them.

    What transformers says goes first; only what it does not name is added.
    """
    base = importlib.import_module("conversion.base").ModelBase
    theirs = base.load_hparams

    def both(directory: Any, is_mistral: bool) -> "dict[str, Any]":
        found = theirs(directory, is_mistral)
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            raw = json.load(file)
        rope = found.get("rope_parameters")
        old = {name: rope[new] for name, new in OLD_NAMES.items() if new in rope} if isinstance(rope, dict) else {}
        return {**old, **raw, **found}

    base.load_hparams = staticmethod(both)


def _trust_no_code() -> None:
    """Take away the converter's wish to run a tokenizer's own code; it has imported transformers by now."""
    transformers = sys.modules.get("transformers")
    for name in ("AutoConfig", "AutoTokenizer", "AutoProcessor") if transformers else ():
        kind = getattr(transformers, name)
        theirs = kind.from_pretrained

        def plain(*given: Any, _theirs: Any = theirs, **options: Any) -> Any:
            return _theirs(*given, **{**options, "trust_remote_code": False})

        kind.from_pretrained = plain


def _name_pretokenizer(pre: str, answer: "dict[str, str]") -> None:
    """Answer for vocabularies whose hash the converter does not know: changed ones, and new ones."""
    model = importlib.import_module("conversion.base").TextModel
    theirs = model.get_vocab_base_pre

    def known(self: Any, tokenizer: Any) -> str:
        try:
            return str(theirs(self, tokenizer))
        except NotImplementedError as error:
            if not pre:
                raise UnknownPreTokenizer(str(error)) from None
            answer["pre"] = pre
            return pre

    model.get_vocab_base_pre = known


if __name__ == "__main__":
    main()
