"""What a file that another program made is held to before it is kept.

It can be read, whole; its weights are numbers; llama.cpp opens it; and its tokens are compared with the model's own.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvant.dtypes import Family
from kvant.errors import EngineError, FormatError, MissingDependencyError, ValueRangeError
from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.kinds import PROJECTOR, kind_of
from kvant.formats.gguf.reader import read_gguf
from kvant.kernels import decode
from kvant.metadata import StringArray
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.runtime.process import EngineProcess
from kvant.runtime.tokenizers import Questions, by_llama, by_tokenizer_json
from kvant.tensors import Tensor, n_bytes, n_rows, row_length

LOOKED_AT = 1 << 22
"""Weights in memory at once."""

BOUNDS = (".input_min", ".input_max", ".output_min", ".output_max")
"""Scalars of Gemma 4's eyes and ears that values are clipped to; infinite where they are not."""

NO_VOCABULARY = ("none", "no_vocab")
_SHOWN = 40


def prove(path: Path, directory: Path, *, program: str, progress: Progress = SILENT) -> tuple[Model, tuple[str, ...]]:
    """Check a GGUF that a program made of a model's directory.

    Args:
        path: The file.
        directory: The model's directory, whose tokenizer.json is what its tokens are compared with.
        program: Who made it, for messages.
        progress: Told of the bytes looked at.

    Returns:
        The model in the file, and remarks: tokens that differ.

    Raises:
        FormatError: It cannot be read, or its embedding and vocabulary do not fit.
        ValueRangeError: A weight is no finite number.
        EngineError: llama.cpp does not open it.
    """
    model = dataclasses.replace(read_gguf(path), path=directory)
    if not model.tensors:
        raise FormatError(f"{directory}: {program} made a file without tensors of it. Check its weights.")
    check_vocabulary(model, directory)
    check_finite(model, progress=progress)
    try:
        return model, _tokens(model, path, directory)
    except EngineError as error:
        raise EngineError(
            f"{directory}: llama.cpp does not open what {program} made of it ({error}). Nothing was kept."
        ) from error


def prove_projector(
    path: Path, directory: Path, *, program: str, progress: Progress = SILENT
) -> tuple[Model, tuple[str, ...]]:
    """Check a projector that a program made of a model's directory; as `prove`, of which it has no tokens.

    Raises:
        FormatError: It cannot be read, or is no projector.
        ValueRangeError: A weight is no finite number.
        EngineError: llama.cpp does not open it.
    """
    model = dataclasses.replace(read_gguf(path), path=directory)
    if not model.tensors or kind_of(model) != PROJECTOR:
        raise FormatError(f"{directory}: {program} made no projector of it. Check its weights.")
    check_finite(model, progress=progress)
    claimed = read_projector(path)
    try:
        with EngineProcess() as engine:
            found = engine.open_projector(path)
    except EngineError as error:
        reason = str(error).removeprefix(f"{path}: ").partition(" Check ")[0]
        raise EngineError(f"{directory}: the projector that {program} made of it is not kept: {reason}") from error
    senses = (("pictures", claimed.sees, found.sees), ("sounds", claimed.hears, found.hears))
    lost = [what for what, claims, takes in senses if claims and not takes]
    return model, tuple(f"The projector takes {what}, and the engine does not by it." for what in lost)


def check_vocabulary(model: Model, subject: object) -> None:
    """Check that there is an embedding row per token.

    Raises:
        FormatError: There are more or fewer.
    """
    tokens, embedding = model.get("tokenizer.ggml.tokens"), model.tensors.get("token_embd.weight")
    if isinstance(tokens, StringArray | Sequence) and embedding is not None and embedding.shape[0] != len(tokens):
        raise FormatError(
            f"{subject}: its embedding has {embedding.shape[0]} rows for {len(tokens)} tokens. Check that the "
            f"tokenizer and vocab_size are the model's own."
        )


def check_finite(model: Model, *, progress: Progress = SILENT) -> None:
    """Look at every weight.

    Raises:
        ValueRangeError: One is NaN, or infinite and no bound that values are clipped to.
    """
    floats = [t for t in model.tensors.values() if t.block_type.family is not Family.INTEGER]
    progress.start("check", sum(map(n_bytes, floats)), "B")
    for tensor in floats:
        _check_tensor(tensor)
        progress.advance("check", n_bytes(tensor))
    progress.finish("check")


def _check_tensor(tensor: Tensor) -> None:
    length = row_length(tensor)
    step = max(1, LOOKED_AT // max(1, length))
    for start in range(0, n_rows(tensor), step):
        stop = min(start + step, n_rows(tensor))
        values = decode(tensor.read_bytes(start, stop), tensor.block_type, length)
        bad = np.isnan(values) if tensor.name.endswith(BOUNDS) else ~np.isfinite(values)
        if not bad.any():
            continue
        row, column = (int(i[0]) for i in np.nonzero(bad.reshape(-1, length)))
        beyond = "F16 ends at 65504. Use -t BF16 or F32" if tensor.block_type.name == "F16" else "Check the weights"
        raise ValueRangeError(
            f"{tensor.name}: row {start + row}, column {column} is not finite as {tensor.block_type}. {beyond}."
        )


def _tokens(model: Model, path: Path, directory: Path) -> tuple[str, ...]:
    """Have the engine open the vocabulary, and compare its tokens with those of the model's tokenizer.json."""
    questions = Questions(texts=tuple(TEXTS.values()), conversations=(), prompts=tuple)
    if model.get("tokenizer.ggml.model", NO_VOCABULARY[0]) in NO_VOCABULARY:
        with EngineProcess() as engine:
            engine.open(path, n_ctx=16, n_threads=1, vocab_only=True)
        return ("The model has no vocabulary: its tokens are not compared.",)
    ours = by_llama(path, questions)
    if not (directory / "tokenizer.json").is_file():
        return ("There is no tokenizer.json, so the tokens are the converter's word alone.",)
    try:
        theirs = by_tokenizer_json(directory, questions)
    except (EngineError, MissingDependencyError) as error:
        return (f"The tokens could not be compared with tokenizer.json's: {error}",)
    differ = [text for text, a, b in zip(questions.texts, ours.ids, theirs.ids, strict=True) if a != b]
    if not differ and ours.around == theirs.around:
        return ()
    around = "" if ours.around == theirs.around else ", and other tokens are put around a text"
    first = f" (first {differ[0][:_SHOWN]!r})" if differ else ""
    return (
        f"The engine's tokens differ from tokenizer.json's in {len(differ)} of {len(questions.texts)} odd texts{first}"
        f"{around}. `kvant parity FILE.gguf --against DIR` shows more.",
    )
