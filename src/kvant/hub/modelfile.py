"""Modelfiles: what to make a model from and how it is to be used, as one text. Read and written.

An instruction is a word at the start of a line, in any case, and a value: the rest of the line, a line between `"`, or
several lines between three `"`. Lines that start with `#` are comments.

Source: the language of Ollama's Modelfile documentation (FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, MESSAGE).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kvant.errors import ModelfileError
from kvant.hub.manifest import Message, ModelSettings

MAX_CHARACTERS = 4 << 20
"""Of a whole file; licences are the longest part of one."""

MAX_BYTES = 4 * MAX_CHARACTERS
"""What so many characters take at most; more is read of no file."""

MAX_ITEMS = 1024
"""Instructions of one file."""

ROLES = ("system", "user", "assistant")
_QUOTES = '"""'

Scalar = int | float | bool | str
ParameterValue = Scalar | list[str]

PARAMETERS: Mapping[str, type] = {
    "num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "num_thread": int, "num_keep": int,
    "num_predict": int, "draft_num_predict": int, "seed": int, "top_k": int, "repeat_last_n": int, "use_mmap": bool,
    "temperature": float, "top_p": float, "min_p": float, "typical_p": float, "repeat_penalty": float,
    "presence_penalty": float, "frequency_penalty": float, "stop": list,
}  # fmt: skip
"""Parameters and their types; `stop` may be given more than once."""

DEPRECATED = frozenset({
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta", "tfs_z", "numa",
})  # fmt: skip
"""Parameters that no engine here has any more; they are passed over and named in `Modelfile.ignored`."""

_REFUSED = {
    "RENDERER": "names code inside Ollama. Leave it out; the model's own template is used",
    "PARSER": "names code inside Ollama. Leave it out; answers are read as the engine reads them",
    "DRAFT": "names a draft model, which is an option of serving. Leave it out",
}
_COMMANDS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", *_REFUSED)


class Modelfile(msgspec.Struct, frozen=True, kw_only=True):
    """A Modelfile, read.

    Attributes:
        base: What FROM names: a stored model, a GGUF file or a Hugging Face directory.
        parameters: Values by name, typed as PARAMETERS says.
        template: Chat template as it stands there, Jinja or Go; None for the model's own.
        system: What the model is told about its part.
        adapters: Files of ADAPTER.
        licenses: Texts of LICENSE.
        messages: The conversation to start with.
        ignored: Instructions and parameters that were passed over, with no meaning here.
    """

    base: str
    parameters: dict[str, ParameterValue] = {}
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    ignored: tuple[str, ...] = ()


def read_modelfile(path: Path) -> Modelfile:
    """Read a Modelfile from a file; see `parse_modelfile`.

    Raises:
        OSError: It cannot be read.
        ModelfileError: It is not UTF-8, or no Modelfile.
    """
    with path.open("rb") as file:
        return parse_modelfile(decode_modelfile(file.read(MAX_BYTES + 1), subject=str(path)), subject=str(path))


def decode_modelfile(raw: bytes, *, subject: str) -> str:
    """Return the text of a Modelfile's bytes.

    Raises:
        ModelfileError: It is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{subject}: is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None


def parse_modelfile(text: str, *, subject: str = "Modelfile") -> Modelfile:
    """Read a Modelfile.

    Args:
        text: Its text.
        subject: What errors call it.

    Raises:
        ModelfileError: It is too long, has no FROM or two, an unknown instruction or parameter, or a value of the
            wrong type.
    """
    if len(text) > MAX_CHARACTERS:
        raise ModelfileError(f"{subject}: {len(text)} characters are above the limit of {MAX_CHARACTERS}. Shorten it.")
    single: dict[str, str] = {}
    many: dict[str, list[str]] = {"ADAPTER": [], "LICENSE": []}
    parameters: dict[str, ParameterValue] = {}
    messages: list[Message] = []
    ignored: list[str] = []
    for number, (line, command, value) in enumerate(_instructions(text.replace("\r\n", "\n"), subject), 1):
        where = f"{subject}, line {line}"
        if number > MAX_ITEMS:
            raise ModelfileError(f"{where}: more than {MAX_ITEMS} instructions. Leave some out.")
        if command in _REFUSED:
            raise ModelfileError(f"{where}: {command} {_REFUSED[command]}.")
        if command == "PARAMETER":
            _add_parameter(parameters, ignored, value, where)
        elif command == "MESSAGE":
            messages.append(_message(value, where))
        elif command == "REQUIRES":
            ignored.append(f"REQUIRES {value}")
        elif command in many:
            many[command].append(_unquoted(value))
        elif command in single:
            raise ModelfileError(f"{where}: {command} is there a second time. Keep one of them.")
        else:
            single[command] = _unquoted(value)
    if not single.get("FROM"):
        raise ModelfileError(f"{subject}: has no FROM. Begin with FROM and a model, a GGUF file or a directory.")
    return Modelfile(
        base=single["FROM"], parameters=parameters, template=single.get("TEMPLATE"), system=single.get("SYSTEM"),
        adapters=tuple(many["ADAPTER"]), licenses=tuple(many["LICENSE"]), messages=tuple(messages),
        ignored=tuple(ignored),
    )  # fmt: skip


def write_modelfile(modelfile: Modelfile) -> str:
    """Return the text of a Modelfile; reading it gives the same again, apart from what was ignored.

    Raises:
        ModelfileError: A text holds three `"` in a row, which the language cannot say.
    """
    lines = [f"FROM {_quoted(modelfile.base)}"]
    lines += [f"ADAPTER {_quoted(path)}" for path in modelfile.adapters]
    if modelfile.template is not None:
        lines.append(f"TEMPLATE {_quoted(modelfile.template)}")
    if modelfile.system is not None:
        lines.append(f"SYSTEM {_quoted(modelfile.system)}")
    for name, value in modelfile.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            lines.append(f"PARAMETER {name} {parameter_text(item)}")
    lines += [f"MESSAGE {message.role} {_quoted(message.content)}" for message in modelfile.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in modelfile.licenses]
    return "\n".join(lines) + "\n"


def modelfile_of(base: str, settings: ModelSettings) -> Modelfile:
    """Return the Modelfile that makes a model with these settings from `base`."""
    return Modelfile(
        base=base, parameters=dict(settings.parameters), template=settings.template, system=settings.system,
        licenses=tuple(settings.license), messages=tuple(settings.messages),
    )  # fmt: skip


def check_parameters(values: Mapping[str, object], *, subject: str = "parameters") -> dict[str, ParameterValue]:
    """Return parameters given as JSON, with their types checked.

    Raises:
        ModelfileError: An unknown parameter, or a value of the wrong type.
    """
    checked: dict[str, ParameterValue] = {}
    for name, value in values.items():
        if name in DEPRECATED:
            continue
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str | int | float):
                raise ModelfileError(f"{subject}: {name} {item!r} is not a number or a text. Correct it.")
            _add_parameter(checked, [], f"{name} {parameter_text(item)}", subject)
    return checked


def parameter_text(value: Scalar) -> str:
    """Return a parameter's value as Modelfiles write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _instructions(text: str, subject: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, command in capitals and raw value of every instruction."""
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        row = text[position:end]
        word = row.split(maxsplit=1)[0] if row.strip() else ""
        if not word or word.startswith("#"):
            position, line = end + 1, line + 1
            continue
        command = word.upper()
        if command not in _COMMANDS:
            raise ModelfileError(
                f"{subject}, line {line}: {word[:40]!r} is not an instruction. Use one of {', '.join(_COMMANDS[:7])}."
            )
        start = position + row.index(word) + len(word)
        end = _value_end(text, start, end, f"{subject}, line {line}: {command}")
        yield line, command, text[start:end].strip(" \t")
        line += text.count("\n", position, end) + 1
        position = end + 1


_OPENING = re.compile(r'[^\n"]*"""')
_CLOSING = re.compile(r'"{3,}')
_CLOSING_PLAIN = re.compile(r'"[ \t]*(?=\n|$)')


def _value_end(text: str, start: int, line_end: int, what: str) -> int:
    """Return where the value that starts at `start` ends; one that opens three quotes runs on until they close."""
    opening = _OPENING.match(text, start, line_end)
    before = text[start : opening.end() - 3].strip().lower() if opening else ""
    # Quotes open a value only where it begins: at once, or behind a parameter's name or a message's role.
    if opening is None or (before and before not in ROLES and before not in PARAMETERS):
        return _plain_end(text, start, line_end)
    closing = _CLOSING.search(text, opening.end())
    if closing is None:
        raise ModelfileError(f'{what}: its """ is never closed. Close it.')
    end = text.find("\n", closing.end())
    end = len(text) if end < 0 else end
    if text[closing.end() : end].strip():
        raise ModelfileError(f'{what}: more follows behind its closing """. Put it on a line of its own.')
    return closing.end()


def _plain_end(text: str, start: int, line_end: int) -> int:
    """Return where a value ends that three quotes do not open; one `"` may close lines below, as in Ollama."""
    row = text[start:line_end].strip(" \t")
    if not row.startswith('"') or (len(row) > 1 and row.endswith('"')):
        return line_end
    closing = _CLOSING_PLAIN.search(text, line_end)
    return line_end if closing is None else closing.end()


def _unquoted(value: str) -> str:
    if value.startswith(_QUOTES) and len(value) >= 2 * len(_QUOTES):
        return value[3:-3]
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def _quoted(text: str) -> str:
    """Write a text so that reading it gives the same."""
    if _QUOTES in text or "\r\n" in text:
        raise ModelfileError(f'text {text[:40]!r}: holds """ or CR LF, which a Modelfile cannot say. Change it.')
    if text and "\n" not in text and text == text.strip() and not text.startswith('"'):
        return text
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    return f"{_QUOTES}{text}{_QUOTES}"


def _add_parameter(parameters: dict[str, ParameterValue], ignored: list[str], value: str, where: str) -> None:
    """Take one `name value` in, typed."""
    name, _, raw = value.partition(" ")
    name, raw = name.strip().lower(), _unquoted(raw.strip(" \t"))
    if name in DEPRECATED:
        ignored.append(f"PARAMETER {name}")
        return
    kind = PARAMETERS.get(name)
    if kind is None:
        raise ModelfileError(f"{where}: parameter {name[:40]!r} is not known. Use one of {', '.join(PARAMETERS)}.")
    if kind is list:
        stops = parameters.setdefault(name, [])
        assert isinstance(stops, list)
        stops.append(raw)
        return
    try:
        parameters[name] = _typed(kind, raw)
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ModelfileError(f"{where}: {name} {raw[:40]!r} is not {words}. Correct it.") from None


def _typed(kind: type, raw: str) -> Scalar:
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[raw.lower()]
    if kind is int:
        number = int(raw)
        if not -(2**63) <= number < 2**63:
            raise ValueError
        return number
    value = float(raw)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError
    return value


def _message(value: str, where: str) -> Message:
    role, _, content = value.partition(" ")
    if role.lower() not in ROLES:
        raise ModelfileError(f"{where}: the role {role[:40]!r} is not one of {', '.join(ROLES)}. Correct it.")
    return Message(role=role.lower(), content=_unquoted(content.strip(" \t")))
