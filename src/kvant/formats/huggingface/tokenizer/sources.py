"""Which of a directory's tokenizer files is read, and what is said where none of them can be."""

from pathlib import Path

from kvant.errors import FormatError
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, find, read_object
from kvant.formats.huggingface.tokenizer.tekken import as_tokenizer_json


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the tokenizer files of a model directory; tekken.json where there is no tokenizer.json, as upstream does.

    Raises:
        FormatError: None of tokenizer.json, tekken.json and tokenizer.model is there, or one is not what its name says.
        LimitError: A file is larger than a tokenizer can be.
    """
    tokenizer, config = read_object(directory, "tokenizer.json"), read_object(directory, "tokenizer_config.json")
    tekken = {} if tokenizer else read_object(directory, "tekken.json")
    if tekken:
        tokenizer, roles = as_tokenizer_json(tekken)
        config = {**roles, **config}
    files = TokenizerFiles(
        directory=directory,
        tokenizer=tokenizer,
        config=config,
        generation=read_object(directory, "generation_config.json"),
        sentencepiece=None if tekken else find(directory, "tokenizer.model"),
        is_tekken=bool(tekken),
    )
    if not files.tokenizer and files.sentencepiece is None:
        raise FormatError(
            f"{directory}: holds none of tokenizer.json, tekken.json and tokenizer.model. {_other_tokenizer(directory)}"
        )
    return files


# Files of tokenizers that kvant does not read, and the program each comes from.
_SLOW = (
    (("vocab.json", "merges.txt"), "the slow tokenizer's vocab.json and merges.txt are"),
    (("spiece.model",), "SentencePiece's spiece.model is"),
    (("sentencepiece.bpe.model",), "SentencePiece's sentencepiece.bpe.model is"),
    (("vocab.txt",), "WordPiece's vocab.txt is"),
    (("vocab.json",), "vocab.json is"),
)


def _other_tokenizer(directory: Path) -> str:
    """Say how a tokenizer.json is made of what the directory has."""
    tiktoken = sorted(directory.glob("*.tiktoken"))
    if tiktoken:
        return f"{tiktoken[0].name} is there, of tiktoken: take tokenizer.json from a later version of the model."
    for names, found in _SLOW:
        if all((directory / name).is_file() for name in names):
            where = repr(str(directory))
            return (
                f"But {found} there: make tokenizer.json with transformers, "
                f"AutoTokenizer.from_pretrained({where}).save_pretrained({where})."
            )
    return "Copy the tokenizer there."
