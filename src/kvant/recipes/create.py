"""Make a stored model from a Modelfile: weights of a file, directory or stored model, quantized if asked; settings."""

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from kvant.errors import LimitError, ModelfileError, ModelNameError, ModelNotFoundError
from kvant.formats.imatrix import read_imatrix
from kvant.hub.gotemplate import MAX_CHARACTERS, is_go_template, jinja_of
from kvant.hub.manifest import ModelSettings
from kvant.hub.modelfile import Modelfile, read_modelfile
from kvant.hub.names import ModelName
from kvant.hub.projectors import keep_projector
from kvant.hub.pull import Wish, make_downloads, pull
from kvant.hub.sources.names import is_remote, is_short_name
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress
from kvant.quant.presets import find_preset
from kvant.recipes.convert.convert import ConvertResult, convert
from kvant.recipes.targets.gguf.write import QuantizeResult, quantize
from kvant.runtime.artifacts import engine_of
from kvant.runtime.template import render


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are made.

    Attributes:
        quantize: Preset to quantize to; None keeps the source's types, F16 for a directory.
        imatrix: Importance file to quantize with.
        allow_requantize: Accept a source that is quantized already, at a loss.
        threads: Threads; 0 for one per core.
    """

    quantize: str | None = None
    imatrix: Path | None = None
    allow_requantize: bool = False
    threads: int = 0


def find_base(modelfile: Modelfile, directory: Path, store: Store) -> StoredModel | Path:
    """Return what FROM means: a path, from the Modelfile's directory on, or a stored model.

    Raises:
        ModelfileError: It is neither.
    """
    path = directory / Path(modelfile.base).expanduser()
    if path.exists():
        return path
    try:
        return store.find(modelfile.base)
    except (ModelNameError, ModelNotFoundError):
        raise ModelfileError(
            f"FROM {modelfile.base[:200]}: is neither a path nor a model in the store. `kvant list` shows what is; "
            "get it first with kvant pull."
        ) from None


def create(
    name: str | ModelName,
    modelfile: Modelfile | Path,
    base: StoredModel | Path | None = None,
    making: Making | None = None,
    *,
    store: Store | None = None,
    directory: Path | None = None,
    accepted: Collection[str] = (),
    origin: str | None = None,
    progress: Progress = SILENT,
    on_step: Callable[[str], object] = lambda _: None,
) -> StoredModel:
    """Make a stored model.

    Args:
        name: Its name; what had it before is replaced.
        modelfile: What it is, or the file that says so.
        base: Its weights, and where they come from a stored model, the settings that the Modelfile does not give; by
            default what its FROM names, which is pulled if it is not here.
        making: How weights are made.
        store: Where to; by default kvant's own.
        directory: What paths in FROM start from; by default the file's directory, or the working directory.
        accepted: Licences that the person at the keyboard accepts of what is pulled.
        origin: Where the weights come from, in words; by default what the base's settings say, or its path.
        progress: Told the bytes.
        on_step: Told each step in words.

    Raises:
        ModelfileError: An adapter, a template that is not understood, or a FROM that names nothing.
        PlanError: The preset does not fit, needs importance, or would quantize twice.
        FormatError: The base is damaged.
        QuotaError: The store is full.
        SourceError, LicenceError, TransferError: What FROM names cannot be pulled.
    """
    making, store = making or Making(), store or Store.open()
    if isinstance(modelfile, Path):
        directory, modelfile = directory or modelfile.parent, read_modelfile(modelfile)
    name = store.checked_name(name)
    if making.quantize is not None:
        find_preset(making.quantize)
    if base is None:
        base = _pulled(modelfile, accepted, store, progress) or find_base(modelfile, directory or Path(), store)
    settings = settings_of(modelfile, base.settings if isinstance(base, StoredModel) else None)
    if isinstance(base, StoredModel) and making.quantize is None:
        on_step("writing manifest")
        return store.set(name, settings, base=base)
    source = base.path if isinstance(base, StoredModel) else base
    if settings.source is None:
        settings = msgspec.structs.replace(settings, source=origin or str(source.resolve()))
    if making.quantize is None and engine_of(source).is_served:
        on_step("importing")
        return store.import_file(source, name, settings, progress=progress)
    settings = msgspec.structs.replace(settings, passport=None)
    with tempfile.TemporaryDirectory(prefix="create-", dir=make_downloads()) as place:
        out = Path(place) / "model.gguf"
        if making.quantize is None:
            on_step("converting model")
            made: ConvertResult | QuantizeResult = convert(
                source, out, to="gguf", type="F16", progress=progress, threads=making.threads
            )
        else:
            on_step(f"quantizing to {making.quantize.upper()}")
            made = quantize(
                source, making.quantize, out, importance=read_imatrix(making.imatrix) if making.imatrix else None,
                threads=making.threads, allow_requantize=making.allow_requantize, progress=progress,
            )  # fmt: skip
        for remark in made.remarks:
            if str(place) not in remark:  # where the projector was written
                progress.say(remark)
        on_step("writing manifest")
        _keep_projectors(Path(place), name, settings, store, progress)
        return store.import_file(out, name, settings, progress=progress, move=True)


def _keep_projectors(place: Path, name: ModelName, settings: ModelSettings, store: Store, progress: Progress) -> None:
    """Keep what a conversion wrote beside the language model as a tag of its name, where it is found."""
    for file in sorted(place.glob("mmproj-*.gguf")):
        keep_projector(store, file, name, source=settings.source, move=True, progress=progress)


def _pulled(
    modelfile: Modelfile, accepted: Collection[str], store: Store, progress: Progress
) -> StoredModel | Path | None:
    """Pull what FROM names if it is a remote name; None if it is none."""
    if not is_remote(modelfile.base) and (not is_short_name(modelfile.base) or store.has(modelfile.base)):
        return None
    got = pull(modelfile.base, Wish(accepted=accepted), store=store, progress=progress)
    return store.find(got.name) if got.name else Path(got.path)


def settings_of(modelfile: Modelfile, inherited: ModelSettings | None = None) -> ModelSettings:
    """Return the settings that a Modelfile gives, over those of the model it starts from.

    Raises:
        ModelfileError: An adapter, or a template that is not understood.
    """
    if modelfile.adapters:
        raise ModelfileError(
            f"ADAPTER {modelfile.adapters[0][:200]}: adapters are not applied. Merge it into its base first: "
            f"kvant convert BASE --lora DIR."
        )
    before = inherited or ModelSettings()
    return ModelSettings(
        template=before.template if modelfile.template is None else checked_template(modelfile.template),
        system=before.system if modelfile.system is None else modelfile.system,
        parameters={**before.parameters, **modelfile.parameters},
        messages=list(modelfile.messages) or before.messages,
        license=list(modelfile.licenses) or before.license,
        source=before.source,
        passport=before.passport,
    )


def checked_template(text: str) -> str:
    """Return a chat template as Jinja, tried once in the bounded process in which templates are rendered.

    Raises:
        ModelfileError: It is neither Jinja nor a Go template that is understood.
        UnsupportedModelError: It is no valid Jinja, or tries what it must not.
        LimitError: It is too long, or takes too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise LimitError(
            f"TEMPLATE: {len(text)} characters exceed the limit of {MAX_CHARACTERS}. Shorten it, or leave it out for "
            "the model's own."
        )
    template = jinja_of(text) if is_go_template(text) else text
    said = render(template, [{"role": "user", "content": "(kvant asks)"}], bos_token="<s>", eos_token="</s>")  # noqa: S106
    if "(kvant asks)" not in said:
        raise ModelfileError("TEMPLATE: what a user says does not come out of it. Correct it, or leave it out.")
    return template
