from pathlib import Path

from kvant.devices.limits import cores
from kvant.serve.extent import Extent
from kvant.serve.library import DirectoryLibrary
from kvant.serve.memory import limit_bytes, prediction, start_message
from kvant.serve.settings import Settings
from kvant.serve.sizing import Size


def test_memory_grows_with_context_slots_and_a_draft_model(models: Path) -> None:
    file = DirectoryLibrary(models).find("tiny")
    settings = Settings(parallel=1)
    one = prediction(file, settings)(Extent(512), 1)
    # Keys and values of a token: 4 layers x 4 heads x 32 numbers x 2 x 2 bytes.
    assert prediction(file, settings)(Extent(1024), 1) - one >= 512 * 4 * 4 * 32 * 2 * 2
    assert prediction(file, settings)(Extent(512), 4) > one
    assert prediction(file, Settings(parallel=1, prompt_cache_bytes=10**6))(Extent(512), 1) == one + 10**6
    draft = Settings(parallel=1, speculate="draft", draft=file.path)
    assert prediction(file, draft)(Extent(512), 1) > one + file.size_bytes
    # Logits of a token: 4 bytes for each of the vocabulary.
    assert (
        prediction(file, settings)(Extent(2048, 2048), 1) - prediction(file, settings)(Extent(2048), 1) > 2048 * 4 * 256
    )
    message = start_message(file, Size(extent=Extent(512, 1024), parallel=1, size_bytes=one), settings)
    assert (message.context, message.batch, message.embedding) == (512, 1024, False)
    message = start_message(file, Size(extent=Extent(512), parallel=1, size_bytes=one), draft)
    assert (message.draft, message.speculate) == (str(file.path), "draft")
    assert message.address_space_bytes > 2 * one
    assert message.threads == cores()


def test_the_limit_is_what_is_set_or_what_is_free() -> None:
    assert limit_bytes(Settings(max_ram_bytes=5)) == 5
    assert limit_bytes(Settings()) > 1 << 20
