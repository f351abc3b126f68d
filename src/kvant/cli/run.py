"""`kvant run`: chat with a model in the terminal."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvant.cli import console, interrupt
from kvant.cli.stored import complete_model, model_path, stored_model
from kvant.errors import KvantError, ValueRangeError
from kvant.generate.sampling import RUN_DEFAULTS

if TYPE_CHECKING:
    from kvant.formats.gguf.companions import Projector
    from kvant.recipes.chat import Answer, Chat

HELP = """\
  /bye                    end (or Ctrl-D, or Ctrl-C twice)
  /clear                  forget the conversation
  /system TEXT            say what the model is; alone: nothing
  /set NAME VALUE         temperature, top_k, top_p, min_p, typical_p, repeat_penalty,
                          repeat_last_n, presence_penalty, frequency_penalty,
                          mirostat, mirostat_tau, mirostat_eta, seed, max_tokens
  /image FILE             show a picture with the next message; /audio FILE: a sound
  /show                   what is set
  \"\"\"                     begins and ends a message of several lines
Ctrl-C stops an answer; a second one quits."""

Model = Annotated[
    str,
    typer.Argument(
        help="A stored model, a GGUF file, a Hugging Face directory, hf:org/name or a short name as smollm2:135m.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Accept = Annotated[list[str] | None, typer.Option(help="Accept this licence of what is fetched.", show_default=False)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token always.")]
TopK = Annotated[int, typer.Option(help="Choose among this many likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Choose among tokens that together have this probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one's.")]
RepeatPenalty = Annotated[float, typer.Option(help="Make recent tokens less likely; 1: do not.")]
TypicalP = Annotated[
    float | None,
    typer.Option(help="Choose among tokens as surprising as usual, of this probability.", show_default=False),
]
RepeatLastN = Annotated[
    int | None, typer.Option(help="Tokens that count as recent; -1: all of the context.", show_default=False)
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Make tokens that were there less likely.", show_default=False)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="The same, by how often they were there.", show_default=False)
]
Image = Annotated[
    list[Path] | None,
    typer.Option(help="Show this picture (PNG, JPEG, GIF, BMP) with the first message.", show_default=False),
]
Audio = Annotated[
    list[Path] | None, typer.Option(help="Play this sound (WAV, MP3) with the first message.", show_default=False)
]
Mmproj = Annotated[
    Path | None,
    typer.Option(help="The model's projector; by default mmproj-*.gguf beside it.", show_default=False),
]
Context = Annotated[
    int | None,
    typer.Option(help="Tokens of the conversation; by default the model's, at most 4096.", show_default=False),
]


def run(
    options: typer.Context,
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this once and end; `-` reads standard input.", show_default=False)
    ] = None,
    image: Image = None,
    audio: Audio = None,
    mmproj: Mmproj = None,
    system: Annotated[str | None, typer.Option(help="Tell the model what it is.", show_default=False)] = None,
    temperature: Temperature = RUN_DEFAULTS["temperature"],
    top_k: TopK = RUN_DEFAULTS["top_k"],
    top_p: TopP = RUN_DEFAULTS["top_p"],
    min_p: MinP = RUN_DEFAULTS["min_p"],
    repeat_penalty: RepeatPenalty = RUN_DEFAULTS["repeat_penalty"],
    typical_p: TypicalP = None,
    repeat_last_n: RepeatLastN = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    context: Context = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text without the chat template.")] = False,
    trust_prompt_tokens: Annotated[
        bool, typer.Option("--trust-prompt-tokens", help="Let what is said hold control tokens, as <|im_end|>.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads; 0: one per core.")] = 0,
    accept_licence: Accept = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one answer and its speed as JSON.")] = False,
) -> None:
    """Chat with a model in the terminal.

    What hf: or a short name means is fetched into the store, once. A stored model's system prompt, template and
    parameters hold unless an option says otherwise. A Hugging Face directory is converted to F16 once and kept in the
    cache. Without a prompt, and with text piped in, that text is the prompt.

    \b
    Examples:
      kvant run smollm2:135m
      kvant run model-Q4_K_M.gguf
      kvant run model-Q4_K_M.gguf "What is the capital of France?" --temperature 0
      git diff | kvant run model-Q4_K_M.gguf --system "Write a commit message."
      kvant run smollm2:q4_k_m "What is the capital of France?"
      kvant run hf:org/name-GGUF:Q4_K_M
      kvant run vision-Q4_K_M.gguf "What is in the picture?" --image photo.jpg
      kvant run base-model.gguf "Once upon a time" --raw --max-tokens 100 --seed 1
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.preset import Preset, fetched
    from kvant.devices.limits import cores
    from kvant.recipes.chat import Chat, chat_file

    prompt = _asked(prompt, as_json=as_json)
    with console.progress() as progress:
        given = fetched(model, accepted=accept_licence or (), offline=offline, progress=progress)
        stored = stored_model(given)
        path = chat_file(stored.path if stored else model_path(given), progress=progress)
    shown = _Shown(image or [], audio or [], mmproj)
    preset = Preset(stored, options)
    sampling = preset.sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
        repeat_penalty=repeat_penalty, repeat_last_n=repeat_last_n, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, seed=seed,
    )  # fmt: skip
    threads = preset.threads(threads) or cores()
    with Chat(
        path, system=preset.system(system), sampling=sampling, max_tokens=preset.max_tokens(max_tokens),
        context=preset.context(context), raw=raw, threads=threads, template=preset.template,
        trusted_system=preset.has_own_system, trust_prompt_tokens=trust_prompt_tokens,
        projector=shown.projector(path, raw=raw),
    ) as chat:  # fmt: skip
        chat.messages = preset.messages
        shown.attach(chat)
        if prompt is None:
            _talk(chat)
        elif as_json:
            with _stoppable() as stopped:
                console.print_json(_report(model, prompt, chat.ask(prompt, stopped=stopped), shown))
        else:
            _answer(chat, prompt)


def _asked(prompt: str | None, *, as_json: bool) -> str | None:
    """Return the prompt, read from standard input where it is there; None for a conversation."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read().rstrip("\n")
    if as_json and prompt is None:
        raise ValueRangeError("--json: needs a prompt, and none is given. Add one, or pipe text in.")
    return prompt


@dataclass(frozen=True, slots=True)
class _Shown:
    """Pictures and sounds of the first message, and the projector for them."""

    image: list[Path]
    audio: list[Path]
    mmproj: Path | None

    def projector(self, path: Path, *, raw: bool) -> "Projector | None":
        """Return the projector that a model is started with; what cannot be shown is refused before it is loaded."""
        from kvant.recipes.chat import projector_of, read_media

        if not (self.image or self.audio or self.mmproj):
            return None
        if raw:
            raise ValueRangeError("--raw: continues a text, in which pictures have no place. Leave it or them out.")
        found = projector_of(path, self.mmproj, sees=bool(self.image), hears=bool(self.audio))
        read_media("audio", self.audio, read_media("image", self.image))
        return found

    def attach(self, chat: "Chat") -> None:
        """Let them go with the first message."""
        chat.attach("image", self.image)
        chat.attach("audio", self.audio)


def _report(model: str, prompt: str, answer: "Answer", shown: _Shown) -> dict[str, Any]:
    return {
        "model": model, "prompt": prompt, "media": [str(file) for file in (*shown.image, *shown.audio)],
        "text": answer.text,
        "thinking": answer.thinking, "stop": answer.stop, "n_prompt": answer.n_prompt,
        "n_tokens": answer.n_tokens, "prompt_s": round(answer.prompt_s, 4),
        "generate_s": round(answer.generate_s, 4), "tg_tok_s": round(answer.tokens_per_s, 2),
    }  # fmt: skip


@contextlib.contextmanager
def _stoppable() -> "Iterator[_Stop]":
    """Let the first Ctrl-C only ask for a stop; the second one interrupts as usual."""
    stop = _Stop()
    previous = signal.signal(signal.SIGINT, stop.request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


class _Stop:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self._asked = False

    def request(self, _number: int, _frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __call__(self) -> bool:
        return self._asked


def _answer(chat: "Chat", text: str) -> None:
    """Ask, and print the answer as it comes; what a model says must not control the terminal."""

    def show(piece: str) -> None:
        sys.stdout.write(console.clean(piece))
        sys.stdout.flush()

    with _stoppable() as stopped:
        answer = chat.ask(text, on_text=show, stopped=stopped)
    sys.stdout.write("\n")
    if answer.dropped_turns:
        console.fail(
            f"the context of {chat.context} tokens is full; the oldest {answer.dropped_turns} messages are gone"
        )
    if answer.stop == "stopped":
        sys.stdout.write("[stopped]\n")


def _talk(chat: "Chat") -> None:
    """Read messages and commands until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and line editing

    console.say(f"{chat.path.name}: type a message, /? for help, /bye to end.")
    if chat.template is None:
        console.say("This model has no chat template; it continues what you write.")
    interrupted = False
    while True:
        try:
            text = _read_message()
            interrupted = False
            if text.startswith("/"):
                if text.split()[0] in ("/bye", "/exit", "/quit"):
                    return
                _command(chat, text)
            elif text.strip():
                _answer(chat, text)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            interrupt.go_on()
            sys.stdout.write("\n")
            if interrupted:
                return
            interrupted = True
            console.say("Press Ctrl-C again, or type /bye, to end.")
        except KvantError as error:
            console.fail(str(error))


def _read_message() -> str:
    """Read one message: a line, lines that end in a backslash, or lines between triple quotes."""
    line = input(">>> ")
    if line.startswith('"""'):
        lines = [line[3:]]
        while not lines[-1].endswith('"""') or (len(lines) == 1 and not lines[0]):
            lines.append(input("... "))
        return "\n".join(lines)[:-3].strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("... "))
    return "\n".join(lines)


def _command(chat: "Chat", text: str) -> None:
    name, _, value = text.partition(" ")
    value = value.strip()
    if name == "/clear":
        chat.clear()
        console.say("The conversation is forgotten.")
    elif name == "/system":
        chat.system = value or None
        console.say("Set." if value else "The model is told nothing.")
    elif name in ("/image", "/audio"):
        chat.attach("image" if name == "/image" else "audio", [Path(value)])
        console.say("It goes with your next message.")
    elif name == "/set":
        _set(chat, *value.partition(" ")[::2])
    elif name == "/show":
        for key, setting in {**chat.sampling, "max_tokens": chat.max_tokens}.items():
            console.say(f"  {key:<17} {setting}")
        console.say(f"  {'context':<17} {chat.context}")
    elif name in ("/?", "/help"):
        console.say(HELP)
    else:
        raise ValueRangeError(f"command: {name!r} is not known. Type /? for those that are.")


def _set(chat: "Chat", name: str, value: str) -> None:
    """Change a setting of the conversation.

    Raises:
        ValueRangeError: No such setting, or a value out of its range.
    """
    try:
        number = float(value)
    except ValueError:
        raise ValueRangeError(f"{name or 'setting'}: {value!r} is not a number. Write: /set temperature 0.7") from None
    if name == "max_tokens":
        if number < 1 or number % 1:
            raise ValueRangeError(f"max_tokens: {value} is no whole number above 0. Choose one.")
        chat.max_tokens = int(number)
    else:
        chat.set(name, number)
    console.say(f"{name} is {value}.")
