"""Chat templates in Go's language, as Modelfiles carry them, translated to Jinja where they are simple.

Understood: text, `.System .Prompt .Response .Role .Content`, `range .Messages`, `if / else if / else` over these with
`eq ne and or not`, and the idiom `$last := eq (len (slice $.Messages $i)) 1`. Tools, fill-in-the-middle and functions
are not: such a template is refused, and the model's own is to be used.

Source: https://pkg.go.dev/text/template for the language; Ollama's template documentation for what the names mean: a
template without `.Messages` stands for one exchange and is repeated, the last time up to `.Response`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvant.errors import ModelfileError

MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 32
MAX_VALUES = 64

_FIELD = re.compile(r"[.$][A-Z$i]")
_END = re.compile(r"[}%]")
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|`[^`]*+`?|[()]|:=|[^\s()"`]++', re.DOTALL)
_IF = re.compile(r"(?:else\s+)?if\s+(\S.*)", re.DOTALL)
_RANGE = re.compile(r"range\s+(?:(\$\w+)\s*,\s*\$\w*\s*:=\s*)?\$?\.Messages")
_LAST = re.compile(r"(\$\w+)\s*:=\s*eq\s+\(len\s+\(slice\s+\$\.Messages\s+(\$\w+)\)\)\s+1")
_USE_OWN = "Leave TEMPLATE out to use the model's own, or write it in Jinja"


@dataclass(slots=True)
class _Node:
    """A piece of a template: `text`, `value`, `if` (pairs of condition and body) or `range`."""

    kind: str
    text: str = ""
    branches: list[tuple[str, "list[_Node]"]] = field(default_factory=list)


def is_go_template(text: str) -> bool:
    """Tell whether a chat template is written in Go's language and not in Jinja."""
    if "{%" in text:
        return False
    start = text.find("{{")
    while start >= 0:  # from one action's start to its first bracket, so that nothing is read twice
        found = _END.search(text, start)
        end = found.start() if found else len(text)
        if _FIELD.search(text, start, end):
            return True
        start = text.find("{{", end)
    return False


def jinja_of(text: str) -> str:
    """Translate a Go template to Jinja over `messages` and `add_generation_prompt`.

    Raises:
        ModelfileError: It uses what is not understood here.
    """
    if len(text) > MAX_CHARACTERS:
        raise _refusal(f"{len(text)} characters are above the limit of {MAX_CHARACTERS}")
    parser = _Parser(_pieces(text))
    nodes = parser.body(0)
    head = _SYSTEM_TEXT
    if _uses_range(nodes):
        return head + _Writer(parser.last_names).write(nodes)
    if not _uses(nodes, ".Response"):
        nodes.append(_Node("value", ".Response"))
    writer = _Writer(set())
    whole = writer.write(nodes)
    open_end = writer.write(_until_response(nodes)[0])
    return _EXCHANGES.replace("<whole>", whole).replace("<open>", open_end)


# No text stands between tags, so whatever the environment trims, nothing is lost or added.
_SYSTEM_TEXT = (
    "{%- set told = namespace(system='') -%}{%- for message in messages if message.role == 'system' -%}"
    "{%- set told.system = told.system ~ ('\\n\\n' if told.system else '') ~ message.content -%}{%- endfor -%}"
)
_EXCHANGES = (
    "{%- set told = namespace(system='', prompt='', response='', waits=false) -%}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}"
    "{%- set told.system = told.system ~ ('\\n\\n' if told.system else '') ~ message.content -%}"
    "{%- set told.waits = true -%}"
    "{%- elif message.role == 'user' -%}"
    "{%- set told.prompt = told.prompt ~ ('\\n\\n' if told.prompt else '') ~ message.content -%}"
    "{%- set told.waits = true -%}"
    "{%- elif message.role == 'assistant' -%}{%- set told.response = message.content -%}<whole>"
    "{%- set told.system = '' -%}{%- set told.prompt = '' -%}{%- set told.response = '' -%}"
    "{%- set told.waits = false -%}{%- endif -%}{%- endfor -%}{%- if told.waits -%}<open>{%- endif -%}"
)


def _refusal(what: str) -> ModelfileError:
    return ModelfileError(f"TEMPLATE: {what}. {_USE_OWN}.")


def _pieces(text: str) -> list[tuple[str, str]]:
    """Split into text and actions; a `-` at an action's side takes the white space beside it away."""
    found: list[tuple[str, str]] = []
    position, trims = 0, False
    while (start := text.find("{{", position)) >= 0:
        end = text.find("}}", start)
        if end < 0:
            raise _refusal("an action is never closed")
        action = text[start + 2 : end]
        trims_before = len(action) > 1 and action[0] == "-" and action[1].isspace()
        action = action[1:] if trims_before else action
        trims_after = len(action) > 1 and action[-1] == "-" and action[-2].isspace()
        action = (action[:-1] if trims_after else action).strip()
        before = text[position:start]
        before = before.lstrip() if trims else before
        before = before.rstrip() if trims_before else before
        found += [("text", before)] if before else []
        if not action.startswith("/*"):
            found.append(("action", action))
        position, trims = end + 2, trims_after
    rest = text[position:].lstrip() if trims else text[position:]
    return found + ([("text", rest)] if rest else [])


class _Parser:
    """Builds the tree of a template."""

    def __init__(self, pieces: Sequence[tuple[str, str]]) -> None:
        self._pieces, self._next = list(pieces), 0
        self.last_names: set[str] = set()
        self._index_names: list[str] = []

    def body(self, depth: int) -> list[_Node]:
        """Read nodes up to the `else` or `end` that closes them, which stays."""
        if depth > MAX_DEPTH:
            raise _refusal(f"blocks are nested deeper than {MAX_DEPTH}")
        nodes: list[_Node] = []
        while self._next < len(self._pieces):
            kind, text = self._pieces[self._next]
            word = text.split(maxsplit=1)[0] if kind == "action" and text else ""
            if word in ("else", "end"):
                if depth == 0:
                    raise _refusal(f"{{{{ {word} }}}} closes nothing")
                return nodes
            self._next += 1
            if kind == "text":
                nodes.append(_Node("text", text))
            elif word == "if":
                nodes.append(self._if(text, depth))
            elif word == "range":
                nodes.append(self._range(text, depth))
            elif match := _LAST.fullmatch(text):
                if match[2] not in self._index_names:
                    raise _refusal(f"{text[:60]!r} is not understood")
                self.last_names.add(match[1])
            else:
                nodes.append(_Node("value", text))
        if depth:
            raise _refusal("a block is never closed")
        return nodes

    def _if(self, text: str, depth: int) -> _Node:
        node, condition = _Node("if"), self._condition(text)
        while True:
            node.branches.append((condition, self.body(depth + 1)))
            closing = self._close()
            if closing == "end":
                return node
            if not condition:
                raise _refusal(f"{{{{ {closing[:60]} }}}} comes behind an else, which must be the last branch")
            condition = "" if closing == "else" else self._condition(closing)

    def _condition(self, text: str) -> str:
        """Return the condition of `if ...` or `else if ...`."""
        match = _IF.fullmatch(text)
        if match is None:
            raise _refusal(f"{{{{ {text[:60]} }}}} is not an if with a condition, so it is not understood")
        return match[1]

    def _range(self, text: str, depth: int) -> _Node:
        match = _RANGE.fullmatch(text)
        if match is None:
            raise _refusal(f"{text[:60]!r} ranges over more than the messages")
        self._index_names.append(match[1] or "")
        node = _Node("range", branches=[("", self.body(depth + 1))])
        self._index_names.pop()
        if self._close() != "end":
            raise _refusal("range with an else is not understood")
        return node

    def _close(self) -> str:
        if self._next >= len(self._pieces):
            raise _refusal("a block is never closed")
        self._next += 1
        return self._pieces[self._next - 1][1]


class _Writer:
    """Writes the tree as Jinja."""

    def __init__(self, last_names: set[str]) -> None:
        self._last_names = last_names
        self._in_range = False

    def write(self, nodes: Sequence[_Node]) -> str:
        return "".join(map(self._node, nodes))

    def _node(self, node: _Node) -> str:
        if node.kind == "text":
            return f"{{{{- {_literal(node.text)} -}}}}"
        if node.kind == "value":
            return f"{{{{- {self._expression(node.text)} -}}}}"
        if node.kind == "range":
            if self._in_range:
                raise _refusal("one range inside another is not understood")
            self._in_range = True
            inner = self.write(node.branches[0][1])
            self._in_range = False
            return f"{{%- for message in messages -%}}{inner}{{%- endfor -%}}"
        parts = []
        for number, (condition, body) in enumerate(node.branches):
            word = "if" if number == 0 else "elif"
            tag = f"{word} {self._expression(condition)}" if condition else "else"
            parts.append(f"{{%- {tag} -%}}{self.write(body)}")
        return "".join(parts) + "{%- endif -%}"

    def _expression(self, text: str) -> str:
        tokens = _TOKEN.findall(text)[::-1]
        written = self._call(tokens, 0)
        if tokens:
            raise _refusal(f"{text[:60]!r} is not understood")
        return written

    def _call(self, tokens: list[str], depth: int) -> str:
        """Translate a function with its arguments, or one value, up to a closing bracket.

        Args:
            tokens: The next one last; those that are read are taken off.
            depth: Brackets that are open.
        """
        if not tokens or depth > MAX_DEPTH:
            raise _refusal("an empty or too deep expression is not understood")
        if tokens[-1] not in ("eq", "ne", "and", "or", "not"):
            return self._operand(tokens, depth)
        name, values = tokens.pop(), []
        while tokens and tokens[-1] != ")":
            values.append(self._operand(tokens, depth))
        if len(values) > MAX_VALUES:
            raise _refusal(f"{name} with {len(values)} values is not understood")
        if name == "not" and len(values) == 1:
            return f"(not {values[0]})"
        if name in ("and", "or") and len(values) > 1:
            return f"({f' {name} '.join(values)})"
        if name == "ne" and len(values) == 2:
            return f"({values[0]} != {values[1]})"
        if name == "eq" and len(values) > 1:  # equal to any of the others
            return f"({values[0]} in [{', '.join(values[1:])}])"
        raise _refusal(f"{name} with {len(values)} values is not understood")

    def _operand(self, tokens: list[str], depth: int) -> str:
        head = tokens.pop()
        if head == "(":
            value = self._call(tokens, depth + 1)
            if not tokens or tokens.pop() != ")":
                raise _refusal("a bracket is never closed")
            return value
        if head[0] in '"`':
            return _literal(_go_string(head))
        return self._name(head)

    def _name(self, name: str) -> str:
        if name in self._last_names and self._in_range:
            return "loop.last"
        inside = {".Role": "message.role", ".Content": "message.content"} if self._in_range else {}
        outside = {".System": "told.system", ".Prompt": "told.prompt", ".Response": "told.response"}
        known = {**inside, **{"$" + key: value for key, value in outside.items()}}
        if not self._in_range:
            known |= outside
        if name not in known:
            raise _refusal(f"{name[:60]!r} is not understood")
        return known[name]


def _go_string(token: str) -> str:
    if len(token) < 2 or token[-1] != token[0]:
        raise _refusal(f"the text {token[:60]} is never closed")
    if token[0] == "`":
        return token[1:-1]
    try:
        return str(json.loads(token))
    except json.JSONDecodeError:
        raise _refusal(f"the text {token[:60]} is not understood") from None


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _uses(nodes: Sequence[_Node], name: str) -> bool:
    """Whether a value is used anywhere below."""
    return any(
        (node.kind == "value" and name in node.text.split())
        or any(name in condition.split() or _uses(body, name) for condition, body in node.branches)
        for node in nodes
    )


def _uses_range(nodes: Sequence[_Node]) -> bool:
    return any(n.kind == "range" or any(_uses_range(body) for _, body in n.branches) for n in nodes)


def _until_response(nodes: Sequence[_Node]) -> tuple[list[_Node], bool]:
    """Return what stands before the answer, and whether the answer came."""
    kept: list[_Node] = []
    for node in nodes:
        if node.kind == "value" and node.text == ".Response":
            return kept, True
        if node.kind == "if" and any(".Response" in condition.split() for condition, _ in node.branches):
            return kept, True  # `if .Response` is false where the answer is still to come
        if node.kind == "if":
            cut = [(condition, *_until_response(body)) for condition, body in node.branches]
            kept.append(_Node("if", branches=[(condition, body) for condition, body, _ in cut]))
            if any(ended for _, _, ended in cut):
                return kept, True
        else:
            kept.append(node)
    return kept, False
