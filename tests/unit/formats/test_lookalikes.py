"""What is given in place of a model is named, with a remedy that fits it."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kvant.errors import FormatError, KvantError, UnsupportedFormatError
from kvant.formats import lookalikes
from kvant.formats.base import sniff
from kvant.formats.mapped import map_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 269060552\n"


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")  # of no date: it is part of a test's name
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def importance() -> bytes:
    name = b"blk.0.attn_q.weight"
    return struct.pack("<ii", 1, len(name)) + name + struct.pack("<iif", 10, 1, 1.0)


SAFETENSORS = b"\x02\0\0\0\0\0\0\0{}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.gguf", LFS, "Git LFS pointer, not the file itself of 269060552 bytes. Run `git lfs pull`"),
        ("model.gguf", b"<!DOCTYPE html><html>sign in", "is a web page.*signed in"),
        ("model.gguf", b"<?xml version='1.0'?><Error>", "is a web page"),
        ("model.gguf", bytes(100), "zeros: a download that did not end"),
        ("model.gguf.incomplete", b"GG", "is a download that did not end"),
        ("model.gguf", zipped("model-Q4_K_M.gguf"), "is a ZIP archive of model-Q4_K_M.gguf. Unpack it"),
        ("model.pth", zipped("archive/data.pkl"), "is a pickle.*weights_only=True"),
        ("pytorch_model.bin", pickle.dumps([1]), "is a pickle.*weights_only=True"),
        ("model.tar", tarred(), "is a tar archive.*`kvant import`"),
        ("model.gguf.gz", b"\x1f\x8b\x08", "is a gzip archive. Unpack"),
        ("model.zst", b"\x28\xb5\x2f\xfdxx", "is a zstd archive. Unpack"),
        ("ggml-model.bin", b"tjgg\x03\0\0\0", "GGML file .ggjt. of before GGUF"),
        ("ggml-adapter.bin", b"algg\x01\0\0\0", "LoRA adapter of llama.cpp before GGUF"),
        ("imatrix.dat", importance(), "is an importance file, not a model. Give it with --imatrix"),
        ("model.onnx", b"\x08\x08\x12\x01x", "is one ONNX graph. `kvant quantize`"),
        ("model.onnx.data", b"\x01\x02\x03\x04", "holds weights of an ONNX model.*Give the .onnx file"),
        ("model.safetensors", SAFETENSORS, "one file of a model. Give the directory it is in once it has config.json"),
        ("tokenizer.json", b'{"model": 1}', "is JSON, not weights. Give the directory of a model"),
        ("weights.h5", b"\x89HDF\r\n", "is an HDF5 file"),
    ],
)  # fmt: skip
def test_files(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match=words):
        sniff(path)


def test_a_pointer_in_place_of_weights_is_told_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(LFS)
    with pytest.raises(UnsupportedFormatError, match=r"model.safetensors: is a Git LFS pointer"):
        map_file(tmp_path / "model.safetensors", least_bytes=10, suffix=".safetensors")


def files(**contents: bytes) -> Callable[[Path], Path]:
    """What writes a directory of files; `__` in a name is a slash, `_dot_` a point."""

    def write(directory: Path) -> Path:
        for name, content in contents.items():
            path = directory / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return directory

    return write


def cached(directory: Path) -> Path:
    home = directory / "models--org--name"
    for commit in ("aaa", "bbb"):
        (home / "snapshots" / commit).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("aaa")
    return home


ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}).encode()
HOSTILE_ADAPTER = json.dumps({"fine_tune_type": "lora", "model": "org/base; rm -r x"}).encode()
MLX_ADAPTER = json.dumps({"fine_tune_type": "lora", "model": "org/base"}).encode()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cached, "place in the Hugging Face cache. Give the snapshot in it: .*snapshots/aaa"),
        (lambda d: cached(d).parent, "a cache of the Hugging Face hub. Give a snapshot"),
        (files(model_index_dot_json=b"{}", unet__config_dot_json=b"{}"), "is a pipeline of diffusers"),
        (files(adapter_config_dot_json=ADAPTER, adapter_model_dot_safetensors=SAFETENSORS),
         r"is a LoRA adapter for org/base .*kvant convert BASE --lora "),
        (files(adapter_config_dot_json=MLX_ADAPTER, adapters_dot_safetensors=SAFETENSORS),
         "is a LoRA adapter of mlx-lm for org/base .*mlx_lm.fuse --model org/base"),
        (files(adapter_config_dot_json=HOSTILE_ADAPTER, adapters_dot_safetensors=SAFETENSORS),
         "mlx_lm.fuse --model 'org/base; rm -r x' --adapter-path"),
        (files(params_dot_json=b"{}", consolidated_dot_safetensors=SAFETENSORS), "its maker's own layout"),
        (files(params_dot_json=b"{}", consolidated_dot_00_dot_pth=b"PK"), "its maker's own layout"),
        (files(a_dot_gguf=b"GGUF", mmproj_dot_gguf=b"GGUF"),
         "directory of GGUF files. Give one of them, e.g. .*/a.gguf"),
        (files(genai_config_dot_json=b"{}", model_dot_onnx=b"x"), "is an ONNX decoder of onnxruntime-genai"),
        (files(onnx__model_dot_onnx=b"x"), "holds ONNX files. Give one of them, e.g. .*onnx/model.onnx"),
        (files(model_dot_safetensors=SAFETENSORS), "holds weights but no config.json"),
        (files(pytorch_model_dot_bin=b"PK"), "holds weights but no config.json"),
        (files(tokenizer_dot_json=b"{}"), "holds a tokenizer alone"),
        (files(run__checkpoint__config_dot_json=b"{}", other__config_dot_json=b"{}"), "Give one of them, e.g. .*other"),
        (lambda d: d, "is empty. Give the directory"),
    ],
)  # fmt: skip
def test_directories(write: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match=words):
        sniff(write(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:org/name", "is an address, not a path. Download the model first, e.g. `kvant pull hf:org/name`"),
        ("https://huggingface.co/org/name", "`kvant pull hf:org/name`"),
        ("https://example.org/model.gguf", "`kvant pull hf:ORG/NAME`"),
        ("store:me/model", "is a name in the store.*`kvant show me/model`"),
        ("gone.gguf", "there is no such file or directory. Give a GGUF file"),
    ],
)
def test_what_is_not_there(text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        sniff(Path(text))


def test_an_unfinished_download_beside_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf.partial").write_bytes(b"GGUF")
    with pytest.raises(FormatError, match=r"no such file or directory. There is .*model.gguf.partial"):
        sniff(tmp_path / "model.gguf")


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match=r"malli-\\xe4: this name is not UTF-8.*Rename it"):
        sniff(tmp_path / "malli-\udce4")


def test_no_more_is_read_than_the_start(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    named = tmp_path / "models--a" / "refs" / "main"
    adapter = tmp_path / "lora" / "adapter_config.json"
    for path, start in ((named, b"c0ffee\n"), (adapter, b'{"base_model_name_or_path": "base/model"}')):
        path.parent.mkdir()
        with path.open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
    assert "for base/model" in (lookalikes.adapter_in(adapter.parent) or "")
    assert "c0ffee" in lookalikes._cache_entry(tmp_path / "models--a")
