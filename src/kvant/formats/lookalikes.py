"""What lies at a path in place of a model, so that a refusal says what to do with what is really there.

Told from the first bytes of a file, or the names in a directory. Nothing here decides whether something is a model:
readers do, and ask here for the reason when it is none.
"""

import re
import shlex
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvant.errors import UnsupportedFormatError

HEAD_BYTES = 1 << 12
"""What is read of a file to tell what it is."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Names of weights that PyTorch pickled."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "adapters.npz")
"""Weights of an adapter: PEFT's names, then mlx-lm's."""

_UNPACK = "Unpack it and give what is in it."
_AGAIN = "Download it again."

# Magics of GGML's own files before GGUF, as the bytes lie. Source: llama.cpp before August 2023, `llama.cpp`
# (LLAMA_FILE_MAGIC_*), where each is a little-endian number that reads the other way round.
_OLD_GGML = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt", b"algg": "ggla"}
_ARCHIVES = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}  # fmt: skip
_BARE_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".tmp")
_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/")
_LFS_SIZE = re.compile(rb"^size (\d{1,18})\s*$", re.MULTILINE)
_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)
_TENSOR_NAME = re.compile(rb"[\x21-\x7e]{3,}")
_ENCODERS = re.compile(
    r"(?:Bert|Roberta|Electra|MPNet|Deberta|XLM|Longformer|Nomic|GTE|T5|Bart|Whisper|CLIP|Siglip|ViT|Wav2Vec)"
    r"|For(?:SequenceClassification|TokenClassification|MaskedLM|QuestionAnswering|ImageClassification)"
)
_STATE = "params.json"


def what_is(path: Path) -> str | None:
    """Say what a file or directory is in place of a model, and what to do: `is X. Do Y.`; None if nothing is known."""
    try:
        return _directory(path) if path.is_dir() else _file(path)
    except OSError:
        return None


def pointer(head: bytes) -> str | None:
    """Say that a file is only Git LFS's note of it, or a page that a server answered with; None if it is neither."""
    if _LFS.match(head):
        size = _LFS_SIZE.search(head)
        of = f" of {int(size[1])} bytes" if size else ""
        return (
            f"is a Git LFS pointer, not the file itself{of}. Run `git lfs pull` in its directory, or download the "
            f"model with `hf download`."
        )
    if _PAGE.match(head):
        return "is a web page, not a model's file: a server answered with it. Download it again, signed in if need be."
    return None


def check_pointer(path: Path, head: bytes) -> None:
    """Refuse the content of a file that is only a note of it.

    Raises:
        UnsupportedFormatError: It is a Git LFS pointer or a web page.
    """
    found = pointer(head[:HEAD_BYTES])
    if found:
        raise UnsupportedFormatError(f"{path}: {found}")


def adapter_in(directory: Path) -> str | None:
    """Say which adapter lies in a directory and how it becomes a model; None if there is none."""
    names = [name for name in ADAPTER_FILES if (directory / name).is_file()]
    config = directory / ADAPTER_CONFIG
    if not names and not config.is_file():
        return None
    text = _start(config, 1 << 16) if config.is_file() else ""
    base = re.search(r'"(?:base_model_name_or_path|model)"\s*:\s*"([^"]{1,200})"', text)
    of = f" for {base[1]}" if base else ""
    where = f" ({names[0] if names else ADAPTER_CONFIG})"
    if any(name.startswith("adapters.") for name in names):
        model = base[1] if base else "BASE"
        words = ("mlx_lm.fuse", "--model", model, "--adapter-path", str(directory), "--save-path", "MERGED")
        return f"a LoRA adapter of mlx-lm{of}{where}, not a model. Merge it into its base first: {shlex.join(words)}"
    return (
        f"a LoRA adapter{of}{where}, not a model. Merge it into its base first: kvant convert BASE --lora "
        f"{shlex.quote(str(directory))}"
    )


_UNPICKLE = (
    "import sys, torch, safetensors.torch as s; "
    "s.save_file({name: tensor.clone().contiguous() for file in sys.argv[2:] "
    "for name, tensor in torch.load(file, map_location='cpu', weights_only=True).items()}, sys.argv[1], "
    "{'format': 'pt'})"
)
"""Makes safetensors of pickles: torch's own reader makes tensors alone then, and refuses what else a pickle asks."""


def from_pickles(directory: Path, names: Sequence[str]) -> str:
    """Say how pickled weights become safetensors: by a download, or by one command that runs none of their code.

    Args:
        directory: Where they are, and where the safetensors go.
        names: Their files.
    """
    files = [shlex.quote(str(directory / name)) for name in names]
    if len(files) > 1 and all(name.startswith(_SHARDS) and name.endswith(_SHARD_END) for name in names):
        files = [f"{shlex.quote(str(directory / _SHARDS))}*{_SHARD_END}"]
    out = shlex.quote(str(directory / "model.safetensors"))
    return (
        f"Take the model's .safetensors files, or make them of these where torch and safetensors are installed; only "
        f'tensors are read: python -c "{_UNPICKLE}" {out} {" ".join(files)}'
    )


_SHARDS, _SHARD_END = "pytorch_model", ".bin"


def encoder(architecture: str) -> bool:
    """Whether a class of transformers is an encoder, classifier or the like: no language model that generates."""
    return _ENCODERS.search(architecture) is not None


def _start(path: Path, n_bytes: int) -> str:
    return start_of(path, n_bytes).decode("utf-8", "replace")


def start_of(path: Path, n_bytes: int = HEAD_BYTES) -> bytes:
    """Return a file's start: what only looks like a model's may be of any size."""
    with path.open("rb") as file:
        return file.read(n_bytes)


def _file(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if path.suffix in _UNFINISHED:
        return "is a download that did not end. Finish it, or download it again."
    if not head:
        return "is empty. Download or convert it again."
    found = pointer(head)
    if found:
        return found
    for told in (_packed, _old, _part, _other):
        found = told(path, head)
        if found:
            return found
    if not any(head):
        return f"starts with {len(head)} zeros: a download that did not end. {_AGAIN}"
    return None


def _packed(path: Path, head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()[:100]
        except (zipfile.BadZipFile, ValueError, OSError):
            names = ["data.pkl"]  # torch's files are cut short like all others
        if not any(name.endswith(".pkl") for name in names):
            return f"is a ZIP archive of {', '.join(names[:3]) or 'nothing'}. {_UNPACK}"
    elif not head.startswith(_BARE_PICKLES):
        kind = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
        kind = "tar" if head[257:262] == b"ustar" else kind
        extra = " A bundle of `kvant export` is read by `kvant import`." if kind == "tar" else ""
        return f"is a {kind} archive. {_UNPACK}{extra}" if kind else None
    return f"is a pickle, which can run code when it is opened. {from_pickles(path.parent, (path.name,))}"


def _old(_path: Path, head: bytes) -> str | None:
    old = _OLD_GGML.get(head[:4])
    if old == "ggla":
        return "is a LoRA adapter of llama.cpp before GGUF. Make it again from its PEFT directory, and merge that."
    if old:
        return f"is a GGML file ({old}) of before GGUF, which no engine reads any more. Convert the original model."
    return None


def _part(path: Path, head: bytes) -> str | None:
    """One file of something that is more."""
    if path.name in ADAPTER_FILES or path.name == ADAPTER_CONFIG:
        found = adapter_in(path.parent)
        return f"is {found}." if found else None
    if head[8:9] == b"{" or path.name == "config.json":
        missing = "" if (path.parent / "config.json").is_file() else " once it has config.json and the tokenizer too"
        return f"is one file of a model. Give the directory it is in{missing}: {path.parent}."
    if path.suffix == ".json" or head.lstrip()[:1] in (b"{", b"["):
        return f"is JSON, not weights. Give the directory of a model, e.g. {path.parent}."
    if path.name.endswith((".onnx.data", ".onnx_data")):
        return f"holds weights of an ONNX model, not the model. Give the .onnx file beside it in {path.parent}."
    return None


def _other(path: Path, head: bytes) -> str | None:
    if path.suffix == ".onnx":
        return (
            "is one ONNX graph. `kvant quantize` makes an int8 version of it; other commands take the directory of a "
            "decoder as onnxruntime-genai reads it."
        )
    if _is_importance(head):
        return "is an importance file, not a model. Give it with --imatrix, beside the model it was measured on."
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras). Use the model's .safetensors files."
    return None


def _is_importance(head: bytes) -> bool:
    """Whether bytes begin as llama.cpp's old importance file: a count, the length of a name, the name."""
    if len(head) < 12:
        return False
    count, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(0, min(length, 256))]
    return 0 < count < 1 << 17 and 3 <= length <= 256 and _TENSOR_NAME.fullmatch(name) is not None


def _directory(path: Path) -> str | None:
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return _cache_entry(path)
    if any(path.glob("models--*")):
        first = sorted(path.glob("models--*"))[0]
        return f"is a cache of the Hugging Face hub. Give a snapshot of one model: {first}/snapshots/..."
    if (path / "model_index.json").is_file():
        return (
            "is a pipeline of diffusers, which makes pictures. kvant takes language models, or ONNX files of any kind."
        )
    adapter = adapter_in(path)
    if adapter and not (path / "config.json").is_file():
        return f"is {adapter}."
    tellers: tuple[Callable[[Path], str | None], ...] = (_raw_release, _files_of_others, _without_config)
    for teller in tellers:
        found = teller(path)
        if found:
            return found
    return _parent_of_models(path)


def _cache_entry(path: Path) -> str:
    snapshots = sorted(p for p in (path / "snapshots").iterdir() if p.is_dir())
    if not snapshots:
        return "is a model of the Hugging Face cache without a snapshot: its download did not end. " + _AGAIN
    named = path / "refs" / "main"
    main = _start(named, 64).strip() if named.is_file() else ""
    best = next((p for p in snapshots if p.name == main), snapshots[-1])
    return f"is a model's place in the Hugging Face cache. Give the snapshot in it: {best}"


def _raw_release(path: Path) -> str | None:
    if not (path / _STATE).is_file():
        return None
    if any(path.glob("consolidated*.safetensors")) or any(path.glob("consolidated*.pth")):
        return (
            "holds a model in its maker's own layout (params.json, consolidated.*). Take the Hugging Face version of "
            "it (config.json, model*.safetensors), or convert it with transformers' convert_*_weights_to_hf.py."
        )
    return None


def _files_of_others(path: Path) -> str | None:
    ggufs = sorted(p.name for p in path.glob("*.gguf"))
    if ggufs and not (path / "config.json").is_file():
        models = [name for name in ggufs if "mmproj" not in name.lower()] or ggufs
        return f"is a directory of GGUF files. Give one of them, e.g. {path / models[0]}."
    if (path / "genai_config.json").is_file():
        return (
            "is an ONNX decoder of onnxruntime-genai: measure and run it as it is (kvant evaluate, parity, bench), and "
            "convert or quantize from the model it was made from."
        )
    onnx = sorted(p.relative_to(path).as_posix() for p in (*path.glob("*.onnx"), *path.glob("onnx/*.onnx")))
    if onnx and not any(path.glob("*.safetensors")):
        return f"holds ONNX files. Give one of them, e.g. {path / onnx[0]}, or the model they were made from."
    return None


def _without_config(path: Path) -> str | None:
    if (path / "config.json").is_file():
        return None
    if any(path.glob("*.safetensors")) or any(p for pattern in PICKLES for p in path.glob(pattern)):
        return "holds weights but no config.json. Copy the model's config.json and its tokenizer beside them."
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if any((path / name).is_file() for name in names):
        return "holds a tokenizer alone. Put the model's config.json and weights beside it, or give another directory."
    if not any(path.iterdir()):
        return "is empty. Give the directory that the model is in."
    return None


def _parent_of_models(path: Path) -> str | None:
    inside = sorted(p.parent for p in path.glob("*/config.json"))
    if inside and not (path / "config.json").is_file():
        return f"holds {len(inside)} directories with models and is none itself. Give one of them, e.g. {inside[-1]}."
    return None
