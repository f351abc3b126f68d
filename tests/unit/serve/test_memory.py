from pathlib import Path

from kvant.serve.extent import Extent
from kvant.serve.library import DirectoryLibrary
from kvant.serve.memory import limit_bytes, predicted_bytes, start_message
from kvant.serve.settings import Settings


def test_memory_grows_with_context_slots_and_a_draft_model(models: Path) -> None:
    file = DirectoryLibrary(models).find("tiny")
    settings = Settings(parallel=1)
    one = predicted_bytes(file, Extent(512), settings)
    # Keys and values of a token: 4 layers x 4 heads x 32 numbers x 2 x 2 bytes.
    assert predicted_bytes(file, Extent(1024), settings) - one >= 512 * 4 * 4 * 32 * 2 * 2
    assert predicted_bytes(file, Extent(512), Settings(parallel=4)) > one
    assert predicted_bytes(file, Extent(512), Settings(parallel=1, prompt_cache_bytes=10**6)) == one + 10**6
    draft = Settings(parallel=1, speculate="draft", draft=file.path)
    assert predicted_bytes(file, Extent(512), draft) > one + file.size_bytes
    # Logits of a token: 4 bytes for each of the vocabulary.
    assert (
        predicted_bytes(file, Extent(2048, 2048), settings) - predicted_bytes(file, Extent(2048), settings)
        > 2048 * 4 * 256
    )
    message = start_message(file, Extent(512, 1024), one, settings)
    assert (message.context, message.batch, message.embedding) == (512, 1024, False)
    message = start_message(file, Extent(512), one, draft)
    assert (message.draft, message.speculate) == (str(file.path), "draft")
    assert message.address_space_bytes > 2 * one


def test_the_limit_is_what_is_set_or_what_is_free() -> None:
    assert limit_bytes(Settings(max_ram_bytes=5)) == 5
    assert limit_bytes(Settings()) > 1 << 20
