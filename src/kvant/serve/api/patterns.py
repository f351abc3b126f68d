r"""Patterns in schemas, read once from left to right: written for the engine, and how large they are.

The engine's regular expressions are Rust's, a schema's are ECMA-262's. What both mean alike is kept, what they mean
otherwise is rewritten (`\d` is ten digits there and every script's here). Look-arounds, back references, word
boundaries and what is not well formed are not understood.

Sources: ECMA-262, "Patterns"; https://docs.rs/regex-syntax.
"""

MAX_DEPTH = 32
_CLASSES = {
    "d": "0-9", "w": "A-Za-z0-9_",
    "s": r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff",
}  # fmt: skip
_DOT = r"[^\n\r\u2028\u2029]"
_SAME = frozenset("tnrfv")


def translated(pattern: str) -> tuple[str, int] | None:
    """Return a pattern for the engine and the number of characters it stands for; None for one that is not understood.

    A repetition counts its most times, one without end once more than its least; a repetition of a changing number
    whose part is longer than a character counts twice over, since the engine has to tell the ways apart.
    """
    reader = _Reader(pattern)
    try:
        size = reader.alternatives(0)
    except (ValueError, IndexError):
        return None
    return ("".join(reader.made), size) if reader.at == len(pattern) else None


class _Reader:
    """Reads one pattern; `at` is where, `made` what was written."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self.at = 0
        self.made: list[str] = []

    def alternatives(self, depth: int) -> int:
        """Read alternatives up to the end or a closing bracket, and return their size."""
        if depth > MAX_DEPTH:
            raise ValueError
        total = 0
        while self.at < len(self._text) and self._text[self.at] != ")":
            if self._text[self.at] == "|":
                self._keep(1)
                total += 1
                continue
            is_anchor = self._text[self.at] in "^$"
            size = self._atom(depth)
            times, varies = self._times()
            if times and is_anchor:
                raise ValueError
            times = times or 1
            total += size * times * (times if varies and size > 1 else 1)
        return total

    def _keep(self, n: int) -> None:
        self.made.append(self._text[self.at : self.at + n])
        self.at += n

    def _atom(self, depth: int) -> int:
        """Read one character, class, anchor or group, and return its size."""
        first = self._text[self.at]
        if first in "*+?{}]":
            raise ValueError
        if first == "(":
            return self._group(depth)
        if first == "[":
            self._class()
        elif first == "\\":
            self._escape()
        elif first == ".":
            self.made.append(_DOT)
            self.at += 1
        else:
            self._keep(1)
        return 0 if first in "^$" else 1

    def _group(self, depth: int) -> int:
        self.at += 1
        if self._text[self.at] == "?":
            if self._text[self.at + 1] != ":":
                raise ValueError
            self.at += 2
        self.made.append("(?:")
        size = self.alternatives(depth + 1)
        if self._text[self.at] != ")":
            raise ValueError
        self._keep(1)
        return size

    def _escape(self, *, in_class: bool = False) -> None:
        name = self._text[self.at + 1]
        if name.lower() in _CLASSES:
            members, negated = _CLASSES[name.lower()], name.isupper()
            if in_class and negated:
                raise ValueError
            self.made.append(members if in_class else f"[{'^' if negated else ''}{members}]")
            self.at += 2
        elif name in "xu":
            length = 2 if name == "x" else 4
            code = self._text[self.at + 2 : self.at + 2 + length]
            if len(code) < length or not code.isalnum() or 0xD800 <= int(code, 16) < 0xE000:
                raise ValueError
            self._keep(2 + length)
        elif name in _SAME or (name.isascii() and name.isprintable() and not name.isalnum() and name not in "<> "):
            self._keep(2)
        elif not name.isalnum():  # itself
            self.made.append(name)
            self.at += 2
        else:
            raise ValueError

    def _class(self) -> None:
        self._keep(2 if self._text[self.at + 1] == "^" else 1)
        if self._text[self.at] == "]":  # empty in ECMA-262, a member elsewhere
            raise ValueError
        while self._text[self.at] != "]":
            if self._text[self.at] == "[" or self._text[self.at : self.at + 2] in ("&&", "--", "~~"):
                raise ValueError  # sets of sets elsewhere
            if self._text[self.at] == "\\":
                self._escape(in_class=True)
            else:
                self._keep(1)
        self._keep(1)

    def _times(self) -> tuple[int | None, bool]:
        """Read a repetition; return how many times it counts, if there is one, and whether the number varies."""
        first = self._text[self.at : self.at + 1]
        if first not in ("*", "+", "?", "{"):
            return None, False
        times, varies = 1, False
        if first == "{":
            end = self._text.index("}", self.at)
            low, comma, high = self._text[self.at + 1 : end].partition(",")
            if not (low.isdigit() and low.isascii()) or not ((high.isdigit() and high.isascii()) or not high):
                raise ValueError
            if len(low) > 5 or len(high) > 5:
                raise ValueError
            times, varies = int(high) if high else int(low) + bool(comma), bool(comma)
            self._keep(end + 1 - self.at)
        else:
            self._keep(1)
        if self._text[self.at : self.at + 1] == "?":  # how a search prefers; what is allowed is the same
            self.at += 1
        if self._text[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise ValueError
        return max(times, 1), varies
