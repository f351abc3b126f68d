from kvant.serve.extent import Extent
from kvant.serve.sizing import Size, size_for

MB = 1_000_000


def predict(extent: Extent, parallel: int) -> int:
    """A model of 1,000 MB whose tokens of context take 0.1 MB each."""
    return 1000 * MB + extent.context * parallel * MB // 10 + extent.batch * MB


def sized(wanted: int | None, limit_mb: int, *, trained: int = 131_072, batch: int = 0) -> Size:
    size = size_for(wanted, batch=batch, trained=trained, parallel=4, limit_bytes=limit_mb * MB, predict=predict)
    assert size.size_bytes == predict(size.extent, size.parallel)
    return size


def shape(size: Size) -> tuple[int, int]:
    return size.extent.context, size.parallel


def test_with_memory_enough_a_model_gets_its_own_context() -> None:
    assert shape(sized(None, 200_000)) == (131_072, 4)
    assert shape(sized(None, 200_000, trained=2048)) == (2048, 4)
    assert shape(sized(None, 200_000, trained=0)) == (4096, 4)


def test_the_context_gives_way_to_half_of_the_memory_then_requests_at_a_time_do() -> None:
    assert shape(sized(None, 60_000)) == (72_448, 4)
    assert shape(sized(None, 20_000)) == (44_800, 2)
    assert shape(sized(None, 9_000)) == (34_816, 1)
    for limit_mb in (9_000, 20_000, 60_000):
        assert sized(None, limit_mb).size_bytes <= limit_mb * MB // 2


def test_a_large_model_gets_all_of_the_memory_for_one_request_and_no_less_than_is_of_use() -> None:
    assert shape(sized(None, 3_000)) == (19_968, 1)
    assert sized(None, 3_000).size_bytes <= 3_000 * MB
    assert shape(sized(None, 1_100)) == (4096, 1)  # does not fit, and the refusal names this size
    assert shape(sized(None, 1_100, trained=512)) == (512, 1)
    assert shape(sized(None, 1_000, trained=100)) == (100, 1)


def test_what_was_asked_for_is_kept() -> None:
    assert shape(sized(1000, 200_000)) == (1024, 4)
    assert shape(sized(500_000, 200_000)) == (131_072, 4)
    assert shape(sized(32_768, 8_000)) == (32_768, 2)
    assert shape(sized(32_768, 2_000)) == (32_768, 1)
    assert sized(512, 8_000, batch=512).extent == Extent(512, 512)
