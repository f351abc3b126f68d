"""Whether a backtracking matcher does a regular expression in linear time, told from the expression alone.

A pattern becomes an automaton with one place for each character it may read (Glushkov's). A matcher that backtracks
tries every path through it, and there are more than a constant number of paths of a text exactly where

- two places P and Q, not the same, have a word that leads from P to P, from P to Q and from Q to Q: two loops, one
  after the other, that read the same text (Weber and Seidl, "On the degree of ambiguity of finite automata", 1991);
- or one loop is written into another so that one step has two reasons: `(a+)*`.

`search` and its kin begin at every character, which is a loop in front that reads anything: a loop that starts after
some text which it can read itself, and that can fail, is found by the same rule. What cannot fail any more needs no
second attempt, so there places are left out from which the pattern is matched already. After a possessive repeat only
what does not begin with what it repeats is tried. Conditions such as `\b`, `$` and lookaheads are taken as if they
always held for reading, and as if they never did for having matched. Repeats of at most `FEW` are no loops: they
multiply the time by a constant.
"""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

c: Any = importlib.import_module("re._constants")
parser: Any = importlib.import_module("re._parser")

FEW = 256
COPIES = 3
"""A repeat with bounds is written out so many times: enough for all pairs of neighbours."""

ANYTHING = -1
"""The place in front, in which `search` waits."""

SAMPLE = "aAzZ_09 \t\n\r.\"'\\/-{}[]()<>$%,:;|`\u00e9\u0130\u0661\u2028\ue000\U0001f600\0"
CATEGORIES = {
    c.CATEGORY_DIGIT: r"\d", c.CATEGORY_NOT_DIGIT: r"\D", c.CATEGORY_SPACE: r"\s", c.CATEGORY_NOT_SPACE: r"\S",
    c.CATEGORY_WORD: r"\w", c.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip
REPEATS = (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT)


@dataclass
class _Part:
    """A part of a pattern: places it can begin and end with, whether it can be empty, and that without a condition."""

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    empty: bool = True
    surely_empty: bool = True
    sure_last: set[int] = field(default_factory=set)
    holds: set[int] = field(default_factory=set)
    """Ends of possessive repeats in it."""


class _Automaton:
    """The automaton of a pattern."""

    def __init__(self, pattern: str | bytes, flags: int) -> None:
        tree = parser.parse(pattern, flags)
        self.flags = tree.state.flags
        self.is_bytes = isinstance(pattern, bytes)
        self.letters = _letters(tree)
        self.reads: list[frozenset[str]] = []
        self.steps: dict[tuple[int, int], frozenset[str]] = {}
        self.doubled: set[tuple[int, int]] = set()
        self.is_empty_twice = False
        self.groups: dict[int, frozenset[str]] = {}
        self.whole = self._sequence(tree)

    def _sequence(self, items: Iterable[tuple[Any, Any]]) -> _Part:
        made = _Part()
        barred: dict[int, frozenset[str]] = {}
        for item in items:
            part = self._item(item)
            for end in made.last:
                self._link(end, part.first, barred.get(end, frozenset()))
            if part.holds:
                reading = frozenset().union(*(self.reads[place] for place in part.first))
                barred |= dict.fromkeys(part.holds, reading)
            made.first += part.first if made.empty else []
            made.last = part.last + (made.last if part.empty else [])
            made.sure_last = part.sure_last | (made.sure_last if part.surely_empty else set())
            made.empty, made.surely_empty = made.empty and part.empty, made.surely_empty and part.surely_empty
        return made

    def _link(self, end: int, starts: Iterable[int], barred: frozenset[str] = frozenset()) -> None:
        for start in starts:
            read = self.reads[start] - barred
            if (end, start) in self.steps and read:
                self.doubled.add((end, start))
            self.steps[end, start] = self.steps.get((end, start), frozenset()) | read

    def _item(self, item: tuple[Any, Any]) -> _Part:
        kind, value = item
        if kind in (c.LITERAL, c.NOT_LITERAL, c.IN, c.ANY):
            return self._place(frozenset(letter for letter in self.letters if self._takes(kind, value, letter)))
        if kind is c.BRANCH:
            return self._either([self._sequence(branch) for branch in value[1]])
        if kind is c.SUBPATTERN:
            begun = len(self.reads)
            part = self._sequence(value[3])
            if value[0] is not None:
                self.groups[value[0]] = frozenset().union(*self.reads[begun:])
            return part
        if kind is c.ATOMIC_GROUP:
            return self._sequence(value)
        if kind is c.GROUPREF:
            return self._place(self.groups[value])
        if kind in (c.AT, c.ASSERT, c.ASSERT_NOT):
            return _Part(surely_empty=False)
        if kind in REPEATS:
            return self._repeat(kind, *value)
        raise AssertionError(f"{kind}: teach this module what it reads")

    def _place(self, read: frozenset[str]) -> _Part:
        self.reads.append(read)
        place = len(self.reads) - 1
        return _Part([place], [place], empty=False, surely_empty=False, sure_last={place})

    def _either(self, parts: list[_Part]) -> _Part:
        self.is_empty_twice |= sum(part.empty for part in parts) > 1
        return _Part(
            [place for part in parts for place in part.first], [place for part in parts for place in part.last],
            empty=any(part.empty for part in parts), surely_empty=any(part.surely_empty for part in parts),
            sure_last=set().union(*(part.sure_last for part in parts)),
        )  # fmt: skip

    def _repeat(self, kind: Any, least: int, most: Any, body: Any) -> _Part:
        is_loop = most is c.MAXREPEAT or most > FEW
        copies = max(1, min(least, COPIES)) if is_loop else min(most, COPIES)
        made = _Part()
        for number in range(copies):
            part = self._sequence(body)
            for end in made.last:
                self._link(end, part.first)
            made.first += part.first if made.empty else []
            optional = number >= least
            made.last = part.last + (made.last if part.empty or optional else [])
            made.sure_last = part.sure_last | (made.sure_last if part.surely_empty or optional else set())
            made.empty = made.empty and (part.empty or optional)
            made.surely_empty = made.surely_empty and (part.surely_empty or optional)
        if is_loop and copies:
            for end in part.last:
                self._link(end, part.first)
        if kind is c.POSSESSIVE_REPEAT:
            made.holds = set(made.last)
        return made

    def _takes(self, kind: Any, value: Any, letter: str) -> bool:
        if kind is c.ANY:
            return bool(self.flags & re.DOTALL) or letter != "\n"
        cases = (letter.lower(), letter.upper()) if self.flags & re.IGNORECASE else ()
        spellings = {letter, *(case for case in cases if len(case) == 1)}
        if kind is c.LITERAL:
            return chr(value) in spellings
        if kind is c.NOT_LITERAL:
            return chr(value) not in spellings
        negated = value[0][0] is c.NEGATE
        return negated != any(self._is_member(entry, spelling) for entry in value for spelling in spellings)

    def _is_member(self, entry: tuple[Any, Any], letter: str) -> bool:
        kind, value = entry
        if kind is c.RANGE:
            return bool(value[0] <= ord(letter) <= value[1])
        if kind is c.LITERAL:
            return bool(ord(letter) == value)
        if kind is c.CATEGORY:
            ascii_only = re.ASCII if self.is_bytes or self.flags & re.ASCII else 0
            return re.match(CATEGORIES[value], letter, ascii_only) is not None
        return False


def _letters(tree: Any) -> frozenset[str]:
    """Return characters of which each set of the pattern's holds one: every border of its ranges, and a sample."""
    found: set[int] = set(map(ord, SAMPLE))

    def walk(value: Any) -> None:
        if isinstance(value, tuple) and len(value) == 2 and value[0] in (c.LITERAL, c.NOT_LITERAL):
            found.update((value[1] - 1, value[1], value[1] + 1))
        elif isinstance(value, tuple) and len(value) == 2 and value[0] is c.RANGE:
            found.update((value[1][0] - 1, *value[1], value[1][1] + 1))
        elif isinstance(value, tuple | list | parser.SubPattern):
            for inner in value:
                walk(inner)

    walk(tree)
    return frozenset(chr(code) for code in found if 0 <= code < 0x110000)


def ambiguity(pattern: str | bytes, flags: int = 0, *, searched: bool = True, to_end: bool = False) -> str | None:
    """Tell why an expression may take more than linear time; None if it does not.

    Args:
        pattern: The expression.
        flags: Of `re`.
        searched: Whether it is looked for from every character on, by `search`, `finditer`, `sub` or `split`.
        to_end: Whether it must match all of the text, as `fullmatch` asks.
    """
    made = _Automaton(pattern, flags)
    if made.is_empty_twice:
        return "two branches are empty"
    if not made.reads:
        return None
    matched = set() if to_end else made.whole.sure_last
    if made.whole.surely_empty and not to_end:
        return None  # matches anywhere at once
    steps = {step: read for step, read in made.steps.items() if read and not matched & set(step)}
    anchored = str(pattern[:1], "latin-1") if isinstance(pattern, bytes) else pattern[:1]
    if searched and not (anchored == "^" and not made.flags & re.MULTILINE):
        steps[ANYTHING, ANYTHING] = made.letters
        for place in made.whole.first:
            if place not in matched:
                steps[ANYTHING, place] = made.reads[place]
    following: dict[int, dict[int, frozenset[str]]] = {}
    for (one, other), read in steps.items():
        following.setdefault(one, {})[other] = read
    reach = {place: _reached(following, place) for place in following}
    for one, other in made.doubled:
        if (one, other) in steps and one in reach.get(other, ()):
            return f"a loop in a loop reads {_shown(steps[one, other])} in two ways"
    loops = sorted(place for place in reach if place in reach[place])
    for one in loops:
        for other in loops:
            if one != other and other in reach[one]:
                read = _both(following, reach, one, other)
                if read:
                    return f"two loops, one after the other, read {_shown(read)}"
    return None


def _reached(following: dict[int, dict[int, frozenset[str]]], place: int) -> set[int]:
    found: set[int] = set()
    waiting = list(following.get(place, ()))
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting += following.get(at, ())
    return found


def _both(
    following: dict[int, dict[int, frozenset[str]]], reach: dict[int, set[int]], one: int, other: int
) -> frozenset[str]:
    """Return what the first step of a word reads that leads from one to one, one to other and other to other."""
    begun, wanted = (one, one, other), (one, other, other)
    seen: set[tuple[int, int, int]] = set()
    waiting: list[tuple[tuple[int, int, int], frozenset[str]]] = [(begun, frozenset())]
    while waiting:
        (a, b, d), first = waiting.pop()
        for a_next, a_read in following.get(a, {}).items():
            if one not in reach.get(a_next, ()):
                continue
            for d_next, d_read in following.get(d, {}).items():
                if other not in reach.get(d_next, ()) or not a_read & d_read:
                    continue
                for b_next, b_read in following.get(b, {}).items():
                    read = a_read & b_read & d_read
                    at = (a_next, b_next, d_next)
                    if not read or at in seen or (b_next != other and other not in reach.get(b_next, ())):
                        continue
                    if at == wanted:
                        return first or read
                    seen.add(at)
                    waiting.append((at, first or read))
    return frozenset()


def _shown(letters: frozenset[str]) -> str:
    return repr(min(letters, key=lambda letter: (not letter.isprintable(), ord(letter))))
