from kvant.serve.buckets import Buckets


def test_a_bucket_empties_and_fills_up_again() -> None:
    now = [0.0]
    buckets = Buckets(3, 0.5, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 2]
    assert buckets.take("b") == 0
    now[0] = 1.0
    assert buckets.take("a") == 1
    now[0] = 2.0
    assert buckets.take("a") == 0
    now[0] = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 2]


def test_more_than_a_bucket_holds_can_be_taken_from_a_full_one_and_is_owed() -> None:
    now = [0.0]
    buckets = Buckets(10, 1, clock=lambda: now[0])
    assert buckets.take("a", 25) == 0
    assert buckets.take("a", 1) == 16
    now[0] = 16.0
    assert buckets.take("a", 1) == 0


def test_no_number_of_names_fills_the_memory() -> None:
    now = [0.0]
    buckets = Buckets(1, 1e-9, most=100, clock=lambda: now[0])
    for index in range(10_000):
        buckets.take(str(index))
        assert len(buckets) <= 101
    assert buckets.take("9999") > 0  # those used last are remembered
