"""Streaming GGUF files out: pieces, shards, continuing, and nothing half-written under the final name."""

from pathlib import Path

import gguf
import numpy as np
import pytest

import raw_files as raw
from kvant.dtypes import F32, block_type
from kvant.errors import FormatError, LimitError, OutputExistsError
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import GGUFWriter, TensorInfo, write_gguf
from kvant.metadata import Value, string, u32
from kvant.tensors import LazyTensor, Tensor, array_tensor, n_rows

METADATA: dict[str, Value] = {"general.architecture": string("llama"), "llama.block_count": u32(2)}
INFOS = [
    TensorInfo("a", (3, 5), F32), TensorInfo("empty", (0,), F32), TensorInfo("b", (2, 32), block_type("Q8_0")),
    TensorInfo("c", (1,), F32),
]  # fmt: skip
BYTES = np.arange(60 + 68 + 4, dtype=np.uint8)


def tensors(count: int, rows: int = 10, length: int = 100) -> list[Tensor]:
    rng = np.random.default_rng(count)
    return [array_tensor(f"t{i}", rng.standard_normal((rows, length)).astype(np.float32), F32) for i in range(count)]


@pytest.mark.parametrize("step", [1, 7, 60, 64, 1000])
def test_pieces_may_end_anywhere(tmp_path: Path, step: int) -> None:
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, METADATA, INFOS) as writer:
        for start in range(0, len(BYTES), step):
            writer.append(BYTES[start : start + step])
        assert not path.exists()
    found = read_gguf(path).tensors
    assert b"".join(t.read_bytes(0, n_rows(t)).tobytes() for t in found.values()) == BYTES.tobytes()
    assert path.stat().st_size == writer.layout.total_bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf"]


def test_too_few_and_too_many_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(FormatError, match="'b' lacks 1 bytes"), GGUFWriter(path, METADATA, INFOS) as writer:
        writer.append(BYTES[:-5])
    more = np.append(BYTES, np.uint8(0))
    with pytest.raises(FormatError, match="1 bytes come after its"), GGUFWriter(path, METADATA, INFOS) as writer:
        writer.append(more)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_leaves_nothing_or_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the old file")
    for keep in (False, True):
        with pytest.raises(KeyboardInterrupt):
            interrupted(GGUFWriter(path, METADATA, INFOS, overwrite=True, keep_partial=keep))
        assert path.read_bytes() == b"the old file"
        assert (tmp_path / "m.gguf.partial").exists() is keep


def interrupted(writer: GGUFWriter) -> None:
    with writer:
        writer.append(BYTES[:70])
        raise KeyboardInterrupt


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_partial_file_is_continued(tmp_path: Path, done: int) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "m.gguf"
    with GGUFWriter(whole, METADATA, INFOS) as writer:
        writer.append(BYTES)
    (tmp_path / "m.gguf.partial").write_bytes(whole.read_bytes()[:-30] + b"xx" if done < 3 else whole.read_bytes())
    with GGUFWriter(path, METADATA, INFOS, done=done) as writer:
        writer.append(BYTES[[60, 60, 128, 132][done - 1] :])
    assert path.read_bytes() == whole.read_bytes()


def test_a_partial_file_of_something_else_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(FormatError, match="is not there to be continued"):
        GGUFWriter(path, METADATA, INFOS, done=1).__enter__()
    for content in (b"", raw.small_gguf()):
        (tmp_path / "m.gguf.partial").write_bytes(content)
        with pytest.raises(FormatError, match="is not the beginning of this file"):
            GGUFWriter(path, METADATA, INFOS, done=1).__enter__()


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        GGUFWriter(path, METADATA, INFOS)
    with pytest.raises(OutputExistsError):
        write_gguf(path, METADATA, tensors(1))
    assert path.read_bytes() == b"mine"
    write_gguf(path, METADATA, tensors(1), overwrite=True)
    assert len(read_gguf(path).tensors) == 1


def test_a_file_can_be_rewritten_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw.small_gguf())
    model = read_gguf(path)
    write_gguf(path, model.metadata, model.tensors.values(), overwrite=True)
    assert path.read_bytes() == raw.small_gguf()


class TestShards:
    def test_no_file_is_longer_than_asked(self, tmp_path: Path) -> None:
        given = tensors(20)
        written = write_gguf(tmp_path / "m.gguf", METADATA, given, max_file_bytes=20_000)
        assert len(written) > 4
        assert all(path.stat().st_size <= 20_000 for path in written)
        assert [p.name for p in written] == [
            f"m-{i + 1:05d}-of-{len(written):05d}.gguf" for i in range(len(written))
        ]  # fmt: skip
        model = read_gguf(written[0])
        assert list(model.tensors) == [t.name for t in given]
        assert dict(model.metadata) == METADATA
        for tensor in given:
            found = model.tensors[tensor.name]
            assert found.read_bytes(0, 10).tobytes() == tensor.read_bytes(0, 10).tobytes()

    def test_one_file_where_all_fits(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        write_gguf(path, METADATA, tensors(2))
        size = path.stat().st_size
        assert write_gguf(path, METADATA, tensors(2), max_file_bytes=size, overwrite=True) == (path,)
        assert len(write_gguf(path, METADATA, tensors(2), max_file_bytes=size - 1, overwrite=True)) == 2

    def test_a_tensor_over_the_limit_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LimitError, match="t0: a file with it alone takes"):
            write_gguf(tmp_path / "m.gguf", METADATA, tensors(2), max_file_bytes=2_000)
        assert list(tmp_path.iterdir()) == []

    def test_alignment_holds_in_every_shard(self, tmp_path: Path) -> None:
        metadata = {**METADATA, "general.alignment": u32(512)}
        written = write_gguf(tmp_path / "m.gguf", metadata, tensors(3), max_file_bytes=6_000)
        assert len(written) == 3
        assert dict(read_gguf(written[2]).metadata) == metadata

    def test_an_error_in_the_last_shard_leaves_the_old_ones(self, tmp_path: Path) -> None:
        def fail(_start: int, _stop: int) -> np.ndarray:
            raise KeyboardInterrupt

        written = write_gguf(tmp_path / "m.gguf", METADATA, tensors(3), max_file_bytes=6_000)
        before = [path.read_bytes() for path in written]
        broken = LazyTensor(name="t2", shape=(10, 100), block_type=F32, read=fail)
        with pytest.raises(KeyboardInterrupt):
            write_gguf(tmp_path / "m.gguf", {}, [*tensors(2), broken], max_file_bytes=6_000, overwrite=True)
        assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before

    def test_shards_equal_the_official_writers(self, tmp_path: Path) -> None:
        given = tensors(4, rows=20)
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_size=17_000)
        writer.add_key_value("llama.block_count", 2, gguf.GGUFValueType.UINT32)
        for tensor in given:
            writer.add_tensor(tensor.name, tensor.read_bytes(0, 20).view(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (tmp_path / "ours").mkdir()
        ours = write_gguf(tmp_path / "ours" / "m.gguf", METADATA, given, max_file_bytes=17_000)
        theirs = sorted(tmp_path.glob("*.gguf"))
        assert [p.name for p in ours] == [p.name for p in theirs]
        assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]


def test_large_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvant.formats.gguf.writer.CHUNK_BYTES", 1000)
    asked: list[int] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return np.full((stop - start, 400), start, np.uint8)

    tensor = LazyTensor(name="t", shape=(25, 100), block_type=F32, read=read)
    write_gguf(tmp_path / "m.gguf", METADATA, [tensor])
    assert max(asked) == 2
    assert sum(asked) == 25


class Watcher:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, float]] = []

    def start(self, task: str, total: float, unit: str) -> None:
        self.events.append((f"start {task} {unit}", total))

    def advance(self, task: str, amount: float) -> None:
        self.events.append((f"advance {task}", amount))

    def finish(self, task: str) -> None:
        self.events.append((f"finish {task}", 0))

    def say(self, message: str) -> None:
        raise AssertionError(message)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    watcher = Watcher()
    write_gguf(tmp_path / "m.gguf", METADATA, tensors(3), progress=watcher)
    assert watcher.events[0] == ("start write B", 12_000)
    assert watcher.events[-1] == ("finish write", 0)
    assert sum(amount for name, amount in watcher.events if name.startswith("advance")) == 12_000
