"""Write docs/reference/ from the code: commands, recipes, Python functions, block types, presets, errors.

Run `python tools/reference_docs.py` to write them, with `--check` to fail if what is written is out of date.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

import kvant
from kvant import errors
from kvant.calibrate.decoder import ARCHITECTURES
from kvant.cli.main import app
from kvant.devices.providers import PROVIDERS
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.formats.gguf.kinds import ENCODERS
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.registry import BY_CLASS, FAMILIES
from kvant.formats.huggingface.architectures.upstream_table import TEXT
from kvant.formats.huggingface.mlx.writer import MODELS
from kvant.generate.sampling import PARAMETERS
from kvant.quant.presets import PRESETS
from kvant.recipes.optimize.fields import FIELDS, Field, Kind
from kvant.recipes.optimize.request import default_of
from kvant.serve.endpoints import PUBLIC, Endpoint
from kvant.serve.openapi import NO_EFFECT, REFUSED, described, path_of
from kvant.serve.routes import ROUTES

OUT = Path(__file__).resolve().parent.parent / "docs" / "reference"
GOLDENS = OUT.parent.parent / "tests" / "golden" / "families"
NOTE = "<!-- Written by tools/reference_docs.py; change the code's docstrings, then run `make docs`. -->\n\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *cells]) + "\n"


def describe_option(parameter: Any) -> list[str]:
    """Return name, default and help of one option or argument."""
    if parameter.param_type_name == "argument":
        names = str(parameter.metavar or parameter.name).upper()
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    shown = parameter.default if isinstance(parameter.default, str | int | float | bool) else None
    quiet = shown is None or shown is False or shown == ""
    default = "required" if parameter.required else "" if quiet else f"`{shown}`"
    return [names, default, " ".join(str(getattr(parameter, "help", None) or "").split())]


def commands() -> str:
    """Return the reference of the command line."""
    group = typer.main.get_command(app)
    subcommands: dict[str, Any] = getattr(group, "commands", {})
    parts = ["# Command line\n\nExit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.\n"]
    for name, command in sorted(subcommands.items()):
        rows = [describe_option(p) for p in command.params if p.name != "help"]
        text = inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\b", "")
        head, _, examples = text.partition("Examples:")
        parts.append(f"\n## kvant {name}\n\n{head.strip()}\n\n{table(['option', 'default', 'meaning'], rows)}")
        if examples:
            lines = "\n".join(line.strip() for line in examples.strip().splitlines() if line.strip())
            parts.append(f"\n```text\n{lines}\n```\n")
    return "".join(parts)


def recipe() -> str:
    """Return the reference of the recipe of `kvant optimize`."""
    group: Any = typer.main.get_command(app)
    helps = {name: describe_option(p)[2] for p in group.commands["optimize"].params for name in p.opts}
    kinds = {
        Kind.BYTES: "whole number, bytes", Kind.COUNT: "whole number", Kind.NUMBER: "number",
        Kind.FLAG: "true or false", Kind.WORD: "text",
        Kind.LIST: "list of texts", Kind.PATH: "path", Kind.TEXT: "`bundled`, `self`, `none` or a path",
    }  # fmt: skip
    rows = [
        [f"`{field.place}`", kinds[field.kind], _default(field), "MODEL" if field.is_argument else f"`{field.option}`",
         helps[field.option]]
        for field in FIELDS if field.place
    ]  # fmt: skip
    own = ", ".join(f"`{field.option}`" for field in FIELDS if not field.place)
    return (
        "# Recipe\n\nWhat the YAML document of `kvant optimize --recipe` may hold, beside its version, `recipe: 1`. "
        "`group.name` is a field within a group. Paths are relative to the recipe's directory. What is not listed is "
        f"refused. Not in a recipe, as it belongs to one machine or one run: {own}. How it is used: "
        "[keep a search as a recipe](../how-to/rebuild.md#recipes).\n\n"
        + table(["field", "type", "default", "command line", "meaning"], rows)
    )


def _default(field: Field) -> str:
    value = default_of(field)
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`" if value else ""
    return "" if value is None else f"`{str(value).lower()}`"


def functions() -> str:
    """Return the reference of the Python façade."""
    members = {name: getattr(kvant, name) for name in kvant.__all__}
    parts = [
        "# Python\n\nEvery command that does a job has a function of its name, with an underscore where Python has the "
        "word. `kvant run`, `serve`, `top` and `key` have none: they are processes, or keep what only these read. What "
        "stays as it is between versions: [stability](../explanation/stability.md). Tests for what others add: "
        "`kvant.testing`, see [add a format](../how-to/add-a-format.md).\n\n## Functions\n"
    ]
    for name, member in members.items():
        if inspect.isfunction(member):
            parts.append(described_member(name, f"{name}{unqualified(str(inspect.signature(member)))}", member))
    parts.append("\n## Types\n\nWhat functions take and give, and what they consist of.\n")
    for name, member in members.items():
        if inspect.isclass(member):
            parts.append(described_member(name, "\n".join([f"class {name}", *class_lines(member)]), member))
    return "".join(parts)


def described_member(name: str, head: str, member: object) -> str:
    """Return the section of a public name."""
    return f"\n### kvant.{name}\n\n```text\n{head}\n```\n\n```text\n{inspect.getdoc(member) or ''}\n```\n"


def class_lines(kind: type) -> Iterator[str]:
    """Yield the fields of a class with their types, then its methods with what each does."""
    fields = inspect.get_annotations(kind)
    for name, hint in fields.items():
        if not name.startswith("_"):
            yield f"    {name}: {unqualified(inspect.formatannotation(hint) if not isinstance(hint, str) else hint)}"
    for name, member in vars(kind).items():
        if name.startswith("_") or name in fields:
            continue
        if isinstance(member, property) and member.fget:
            hint = inspect.signature(member.fget).return_annotation
            yield f"    {name}: {unqualified(inspect.formatannotation(hint))}"
        member = getattr(member, "__func__", member)
        if inspect.isfunction(member):
            summary = (inspect.getdoc(member) or "").partition("\n")[0]
            shape = f"{name}{unqualified(str(inspect.signature(member)))}".replace("(self, ", "(").replace(
                "(self)", "()"
            )
            yield f"    {shape}: {summary}"


def unqualified(text: str) -> str:
    """Return a signature with names without their modules, and without the places of functions in memory."""
    text = re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", text)
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)


def block_types() -> str:
    """Return the table of block types."""
    rows = [
        [f"`{t.name}`", str(t.ggml_id), str(t.block_length), str(t.block_bytes), f"{t.bpw:g}", t.precision_class.value,
         t.family.value, ", ".join(sorted(t.formats))]
        for t in sorted(BLOCK_TYPES.values(), key=lambda t: t.bpw)
    ]  # fmt: skip
    return "# Block types\n\n" + table(["name", "ggml id", "block", "bytes", "bpw", "class", "family", "formats"], rows)


def presets() -> str:
    """Return the table of presets."""
    rows = [
        [f"`{p.name}`", str(p.file_type), f"`{p.base}`", block_type(p.base).precision_class.value]
        for p in PRESETS.values()
    ]
    return "# Presets\n\n" + table(["name", "GGUF file type", "base type", "class of the base type"], rows)


def models() -> str:
    """Return the reference of the model families, with the proof of each."""
    rows = [
        [", ".join(f"`{name}`" for name in family.classes), family.models, f"`{family.architecture}`", written(family),
         statistics(family), proof(family), family.since]
        for family in FAMILIES
    ]  # fmt: skip
    text = (
        "# Models\n\nClasses in `architectures` of config.json that kvant converts itself, without torch. Each was "
        "checked once on a tiny random checkpoint: tensors and metadata equal to upstream's converter, and the "
        "engine's logits on the converted file against those of transformers in float32, as mean KL divergence in nats "
        "per token, or of encoders the states of tokens, as mean cosine distance; scores of rerankers agree within "
        "1e-4 "
        "(`python tools/family_goldens.py ENVIRONMENT`; tests/golden/families). Those without a figure are "
        "checked by tests/parity/test_upstream_converter.py, below 1e-10, Gemma's below 1e-6.\n\n"
        "Written as: GGUF always, Hugging Face and MLX directories where a GGUF has all that transformers needs, "
        "byte for byte; else why not. Calibrated: by what llama.cpp shows while it runs the model, any that writes "
        "text; gradients (`--statistics gradients`) of these families.\n\n"
    )
    header = ["classes", "models", "architecture", "written as", "calibrated by", "KL or cosine distance", "since"]
    return text + table(header, rows) + "\n" + upstream_models()


def written(family: Family) -> str:
    """Return the formats that a family is written in."""
    if family.one_way:
        return f"GGUF: {family.one_way}"
    return "GGUF, HF, MLX" if family.classes[0] in MODELS else "GGUF, HF"


def statistics(family: Family) -> str:
    """Return how a family is calibrated."""
    if family.architecture in ENCODERS:
        return "importance file"
    is_differentiated = family.architecture in ARCHITECTURES and not family.experts
    return "engine, gradients" if is_differentiated else "engine"


def upstream_models() -> str:
    """Return the classes that upstream's converter alone converts, by architecture."""
    classes: dict[str, list[str]] = {}
    for name, architecture in sorted(TEXT.items()):
        if name not in BY_CLASS:
            classes.setdefault(architecture, []).append(f"`{name}`")
    text = (
        "## By upstream's converter\n\nClasses that become a GGUF through upstream's own converter, in an environment "
        "of its own (docs/how-to/convert.md).\n\n"
    )
    return text + table(["in GGUF", "classes"], [[f"`{a}`", ", ".join(found)] for a, found in sorted(classes.items())])


def proof(family: Family) -> str:
    """Return the largest divergence or distance in the tables of a family's proof; nothing if it has none."""
    cases = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDENS.glob("*.json"))]
    found = [
        case.get("kl", case.get("cosine")) for case in cases if case["config"]["architectures"][0] in family.classes
    ]
    known = [kl for kl in found if kl is not None]
    return f"{max(known):.1g}" if known else ""


def targets() -> str:
    """Return the table of ONNX Runtime's execution providers."""

    def bits(numbers: frozenset[int]) -> str:
        return ", ".join(map(str, sorted(numbers))) or "-"

    rows = [
        [p.name, bits(p.matmul_bits), bits(p.gather_bits), bits(p.blocks) if p.matmul_bits else "-",
         "yes" if p.asymmetric else "no", "yes" if p.dynamic_int8 else "no", "yes" if p.static_int8 else "no",
         (p.activation or "any") if p.static_int8 else "-"]
        for p in PROVIDERS.values()
    ]  # fmt: skip
    header = [
        "`--target`", "bits of products", "bits of look-ups", "blocks", "zero points", "int8, dynamic", "int8, static",
        "activations",
    ]  # fmt: skip
    return (
        "# Hardware targets\n\nWhat ONNX Runtime's execution providers run, of what `kvant quantize --target` writes: "
        "decoders with weights of few bits (`MatMulNBits`, `GatherBlockQuantized`), and int8 of any model. Matrices "
        "whose blocks a target does not run get larger ones that it does, and are named; where there are none the "
        "model is refused. Only the processor was run here; the other rows are what ONNX Runtime's documentation and "
        "issues say (`kvant/devices/providers.py`).\n\n" + table(header, rows)
    )


def exceptions() -> str:
    """Return the exception tree."""
    return f"# Errors\n\n```text\n{inspect.getdoc(errors)}\n```\n"


def fields(operation: Endpoint) -> str:
    """Return the table of a request's fields."""
    assert operation.request is not None
    api = operation.heading
    rows = []
    for field in msgspec.structs.fields(operation.request):
        name = field.encode_name
        note = "required" if field.required else ""
        if name in NO_EFFECT[api]:
            note = "no effect"
        elif name in REFUSED[api] and not (name == "prompt" and operation.path != "/v1/responses"):
            note = "refused"
        text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", str(field.type))
        text = text.removeprefix("<class '").removesuffix("'>")
        rows.append([f"`{name}`", f"`{text}`", note])
    return table(["field", "type", ""], rows)


def apis() -> str:
    """Return the reference of the APIs that a gateway speaks."""
    options = [
        [f"`{name}`", rule.kind, "" if rule.low == float("-inf") else f"{rule.low:g} to {rule.high:g}",
         f"`{rule.engine}`" if rule.engine else "decided when a model is loaded"]
        for name, rule in PARAMETERS.items()
    ]  # fmt: skip
    parts = [
        "# APIs\n\nThe same as an OpenAPI document: `/openapi.json` of a gateway. How they are used: "
        "[use the APIs](../how-to/use-the-apis.md).\n\n"
        "Fields that are not listed are left out, and named in the answer's header `x-kvant-ignored`. `no effect`: "
        "understood, changes nothing here. `refused`: an error where it asks for something. Keys are asked for where "
        "others than this machine's users can reach the gateway: [serve](../how-to/serve.md).\n"
    ]
    for operation in described(ROUTES):
        parts.append(
            f"\n## {operation.method} {path_of(operation)}\n\n{operation.heading}. {operation.summary}. "
            f"Needs {'no key' if operation.scope == PUBLIC else f'a key for `{operation.scope}`'}.\n"
        )
        if operation.request:
            parts.append(f"\n{fields(operation)}")
    parts.append(
        "\n## Options\n\nOf Ollama's `options`, and of a model's own parameters. The engine is sent these and nothing "
        "else that a client wrote.\n\n" + table(["name", "type", "range", "engine's name"], options)
    )
    return "".join(parts)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield each page's path and text."""
    for name, text in (
        ("command-line", commands()), ("recipe", recipe()), ("python", functions()), ("block-types", block_types()),
        ("presets", presets()), ("errors", exceptions()), ("apis", apis()),
        ("targets", targets()), ("models", models()),
    ):  # fmt: skip
        yield OUT / f"{name}.md", NOTE + text


def main() -> int:
    """Write the pages, or with --check compare them."""
    stale = []
    for path, text in pages():
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs/reference: {', '.join(stale)} out of date. Run: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
