"""A request that is not let in, and why."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """A request that is not let in.

    Attributes:
        status: HTTP status.
        reason: One word for metrics.
        message: For the caller.
        headers: To send with it.
    """

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers or {}


def later(status: int, reason: str, message: str, wait_s: int) -> Refusal:
    """Return a refusal that says when to come again."""
    return Refusal(status, reason, f"{message} Try again in {wait_s} s.", {"Retry-After": str(wait_s)})
