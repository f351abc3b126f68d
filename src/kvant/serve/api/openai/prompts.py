"""Prompts and inputs: a text, texts, token ids, or lists of them."""

from typing import Any

from kvant.serve.api.wire import check


def many(value: str | list[Any], name: str, limit: int) -> list[str] | list[list[int]]:
    """Return the prompts that a field gives: a text, texts, token ids, or lists of them.

    Raises:
        ApiError: They are mixed, or too many.
    """
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(item, int) for item in value):
        value = [value]
    check(bool(value), f"{name}: is empty. Give at least one.", name)
    check(len(value) <= limit, f"{name}: {len(value)} exceed the limit of {limit}. Send fewer.", name)
    kind = type(value[0])
    check(kind in (str, list) and all(type(item) is kind for item in value),
          f"{name}: is not a text, a list of texts, or lists of token ids. Mend the request.", name)  # fmt: skip
    if kind is list:
        low, high = min(map(min, filter(None, value)), default=0), max(map(max, filter(None, value)), default=0)
        check(low >= 0 and high < 1 << 31, f"{name}: {low}..{high} are no token ids. Send the model's, or text.", name)
        check(all(value), f"{name}: a list of token ids is empty. Leave it out.", name)
    return value
