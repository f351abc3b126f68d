from kvant.progress import SILENT, Prefixed


class Seen:
    """Progress that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, task: str, total: float, unit: str) -> None:
        self.calls.append(("start", task, total, unit))

    def advance(self, task: str, amount: float) -> None:
        self.calls.append(("advance", task, amount))

    def finish(self, task: str) -> None:
        self.calls.append(("finish", task))

    def say(self, message: str) -> None:
        self.calls.append(("say", message))


def test_two_pieces_of_work_report_under_their_own_names() -> None:
    seen = Seen()
    one, two = Prefixed(seen, "Q8_0"), Prefixed(seen, "Q4_0")
    one.start("evaluate 0123abc", 10, "tokens")
    two.start("evaluate 4567def", 10, "tokens")
    one.advance("evaluate 0123abc", 5)
    two.finish("evaluate 4567def")
    one.say("hello there")
    assert seen.calls == [
        ("start", "Q8_0: evaluate", 10, "tokens"),
        ("start", "Q4_0: evaluate", 10, "tokens"),
        ("advance", "Q8_0: evaluate", 5),
        ("finish", "Q4_0: evaluate"),
        ("say", "hello there"),
    ]


def test_silence() -> None:
    quiet = Prefixed(SILENT, "x")
    quiet.start("a", 1, "B")
    quiet.advance("a", 1)
    quiet.finish("a")
    quiet.say("b")
