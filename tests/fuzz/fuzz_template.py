"""Fuzz the renderer of clients' templates: `python tests/fuzz/fuzz_template.py -runs=200000`.

Bytes choose pieces of Jinja, so that most texts parse and what they do is looked at, not how they are spelt. The
renderer is native code in a process of its own: whatever becomes of it, its owner gets one of three answers.
"""

# ruff: noqa: SIM905 - words are read more easily than lists of texts

import collections
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.errors import LimitError
from kvant.runtime import bounded
from kvant.runtime.bounded import CPU_SECONDS, Bounded, Refused, Render, Text

MAX_CHARACTERS = 1 << 16
SAID_EVERY = 1000
TICKS = os.sysconf("SC_CLK_TCK")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
VALUES = {
    "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi \u00e9\U0001f600\n\0 {{ 1 }}"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [2.5]}}}]},
    ],
    "tools": [TOOL], "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "big": 2**62,
    "tiny": 5e-324,
}  # fmt: skip
NAMES = (
    "messages m tools bos_token loop add_generation_prompt big tiny x y missing self super caller varargs true none"
).split()
ATTRIBUTES = "role content items keys get split strip upper index index0 last length previtem cycle __class__ x".split()
FILTERS = (
    "abs attr('x') batch(2) batch(0) bool capitalize chain(messages) count default('d') dictsort escape "
    "first float format(1) groupby('role') indent(2) indent(999999) int items join(',') last length lines "
    "list lower map('upper') map(attribute='role') max min pprint reject('none') rejectattr('x') "
    "replace('a','aa') replace('','bb') reverse round round(400) safe select selectattr('role') slice(3) "
    "slice(0) sort split('') split(',') string sum title tojson tojson(indent=2) trim unique upper "
    "urlencode xmlattr zip(messages) nofilter"
).split()
TESTS = (
    "defined undefined none string mapping sequence iterable number odd even divisibleby(0) eq(1) in(x) sameas(x) no"
).split()
BINARY = [*"+ - * / // % ** ~ == != < <= >= and or in".split(), "not in", "is not", "if 1 else"]
CALLED = (
    "range(3) range(9999999) range(-5,5,-1) range(1,9,0) namespace(a=1) dict(a=1) raise_exception('no') "
    "strftime_now('%Y') strftime_now('%') cycler(1) joiner() lipsum() debug() f(1) x(*messages) x(**m) "
    "super() caller()"
).split()
ATOMS = (
    "0 1 -1 2 7 999999999999999999999999999999999999999999 9223372036854775807 -9223372036854775808 1.5 "
    "1e308 1e-400 0x7f 0b1 1_000 'a' \"b\" '' '\\n' '\\u0000' '\\ud800' '\\x' 'é😀' [] {} () none true"
).split()
TEXTS = ("a", "\n", " ", "é😀\u202e\u0301", "\0", "{", "}", "%}", "{#", "<|im_end|>", "\r\n", "\ufeff", "x" * 500)
REPEATED = (
    "-", "(", "[", "{{", "not ", "{% if 1 %}", "{% for x in y %}", "1+", "a.", "x|upper|", "{'a':", "~", "f(", "{#",
    "'",
)  # fmt: skip
LINES = ("include 'chat'", "extends 'chat'", "import 'chat' as x", "break", "continue")


class Choices:
    """Turns bytes into choices; those after the last are all the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, n: int) -> int:
        """Return a number below `n`; one byte each."""
        self._at += 1
        return self._data[self._at - 1] % n if self._at <= len(self._data) else 0

    def of(self, options: tuple[str, ...] | list[str]) -> str:
        """Return one of them."""
        return options[self.below(len(options))]


def expression(chosen: Choices, depth: int) -> str:
    """Make an expression."""
    kind = chosen.below(14) if depth else chosen.below(3)
    if kind < 3:
        return chosen.of((ATOMS, NAMES, CALLED)[kind])
    inner = expression(chosen, depth - 1)
    if kind == 3:
        return f"{inner}|{chosen.of(FILTERS)}"
    if kind == 4:
        return f"{inner} is {chosen.of(('', 'not '))}{chosen.of(TESTS)}"
    if kind == 5:
        return f"{inner}.{chosen.of(ATTRIBUTES)}{chosen.of(('', '()', '(1, 2)'))}"
    if kind == 6:
        return f"({chosen.of(('', '-', 'not ', '+'))}{inner})"
    if kind == 7:
        return (
            f"'{chosen.of(('ab', '', 'é' * 40))}' * {chosen.of(('3', '-1', '99999999', '9223372036854775807', inner))}"
        )
    other = expression(chosen, depth - 1)
    if kind == 8:
        ends = chosen.of(("", "-1", other)), chosen.of(("", "9999999999", other)), chosen.of(("", "0", "-1", other))
        return f"{inner}[{':'.join(ends)}]"
    if kind == 9:
        return f"{inner}[{other}]"
    if kind == 10:
        return f"[{inner}, {other}]"
    if kind == 11:
        return f"{{{inner}: {other}}}"
    return f"({inner} {chosen.of(BINARY)} {other})"


def statement(chosen: Choices, depth: int) -> str:
    """Make a piece of a template."""
    kind = chosen.below(13)
    if kind == 0 or not depth:
        return chosen.of(TEXTS)
    value = expression(chosen, depth - 1)
    if kind < 4:
        return chosen.of(("{{ %s }}", "{{- %s -}}", "{{+ %s}}", "{{%s")) % value
    body = statement(chosen, depth - 1)
    left, right = chosen.of(("{%", "{%-", "{%+")), chosen.of(("%}", "-%}", "+%}"))
    opening, closing = {
        4: (f"if {value}", "endif"),
        5: (f"for {chosen.of(('x', 'x, y', 'loop'))} in {value} {chosen.of(('', 'recursive', 'if x'))}", "endfor"),
        6: (f"set {chosen.of(('x', 'y', 'x.a', 'x, y'))} = {value}", ""),
        7: (f"set {chosen.of(('x', 'messages'))}", "endset"),
        8: (f"macro {chosen.of(('f', 'x', 'upper'))}(y={value}, m=1)", "endmacro"),
        9: (f"{chosen.of(('block a', 'with x = ' + value, 'filter ' + chosen.of(FILTERS), 'autoescape true'))}", ""),
        10: (chosen.of(("raw", "generation", f"call f({value})", "call(x) f(1)")), ""),
        11: (chosen.of((*LINES, f"do {value}")), ""),
        12: (f"if {value}", "endfor"),
    }[kind]  # fmt: skip
    if kind in (9, 10):
        closing = f"end{opening.split('(')[0].split()[0]}"
    middle = chosen.of(("", "{% else %}b", "{% elif x %}", "{{ f(x) }}{{ loop(messages) }}{{ self.a() }}", "{# c #}"))
    return f"{left} {opening} {right}{body}{middle}" + (f"{left} {closing} {right}" if closing else "")


def template(data: bytes) -> str:
    """Make a template of bytes: pieces, one of which may be said very often."""
    chosen = Choices(data)
    made = "".join(statement(chosen, 1 + chosen.below(5)) for _ in range(1 + chosen.below(8)))
    if chosen.below(12) == 11:
        made += chosen.of(("", "{{ ", "{% ")) + chosen.of(REPEATED) * (1 << chosen.below(16))
    if chosen.below(8) == 7:
        made = made[chosen.below(64) :]
    return made[:MAX_CHARACTERS]


class Target:
    """Renders; counts what came of it, and says so from time to time: libFuzzer ends without a word to Python."""

    def __init__(self) -> None:
        self._bounded = Bounded(n=1)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.most_cpu_s = 0.0

    def exercise(self, path: Path) -> None:
        """Have a template rendered: a text, a refusal or a limit, within the processor time of one request."""
        if self.outcomes.total() % SAID_EVERY == SAID_EVERY - 1:
            sys.stderr.write(f"{dict(self.outcomes)}, {self.most_cpu_s:.2f} s at most\n")
        before = self._cpu_s()
        try:
            reply = self._bounded.ask(Render(template(path.read_bytes()), VALUES), "template")
        except LimitError:
            self.outcomes["LimitError"] += 1
            return
        assert isinstance(reply, Text | Refused), reply
        self.outcomes[type(reply).__name__] += 1
        self.most_cpu_s = max(self.most_cpu_s, self._cpu_s() - before)
        assert self.most_cpu_s <= CPU_SECONDS + 1, self.most_cpu_s  # the kernel counts in whole seconds

    def _cpu_s(self) -> float:
        """Processor time of the renderer's processes, seconds."""
        found = [Path(f"/proc/{process._child.pid}/stat") for process in self._bounded._all if process.alive]
        fields = [path.read_text().rpartition(")")[2].split() for path in found if path.exists()]
        return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS


def main() -> None:
    """Fuzz."""
    target = Target()
    chance = random.Random(1)
    fuzzing.instrument(bounded, sys.modules[__name__])
    fuzzing.run(target.exercise, [chance.randbytes(1 << (i % 9)) for i in range(60)])


if __name__ == "__main__":
    main()
