"""Bring a model here: from the hub, an address or a file into the store; a Hugging Face directory as a directory.

What is downloaded lies in `downloads` of kvant's own directory until it is whole and verified; what was cut off there
is continued by the next pull of the same thing.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError, ModelNotFoundError, SourceError, TransferError
from kvant.files import home, sync_directory
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.header import read_header
from kvant.hub.licences import check_licence, licence_of
from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.passports import PASSPORT_SUFFIX, check_form
from kvant.hub.projectors import keep_projector, tag_of
from kvant.hub.sources.fit import MAX_PASSPORT_BYTES, fit_variant, remote_header
from kvant.hub.sources.huggingface import HuggingFace, RepoFile, Repository
from kvant.hub.sources.names import FileSource, HubSource, UrlSource, parse_source
from kvant.hub.sources.variants import RemoteVariant, choose_projector, choose_variant, variants_of
from kvant.hub.store import Store, StoredModel
from kvant.hub.transfer import Remote, download, http_client, read_range
from kvant.progress import SILENT, Progress
from kvant.units import format_bytes

if TYPE_CHECKING:
    import httpx2

OnFiles = Callable[[dict[str, str]], object]

HUB_HOST = "hf.co"
_DIRECTORY_FILE = re.compile(
    r"(?:[^/]+\.(?:safetensors|json|jinja|model|tiktoken)|merges\.txt|vocab\.txt|README\.md|(?:LICEN[CS]E|NOTICE)[^/]*)"
)
KEPT_S = 30 * 24 * 3600
"""Parts of downloads that nobody continued for this long are removed."""

_SMALL_BYTES = 512 << 20
"""Files of a directory that are not weights are shorter than this."""


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """What came.

    Attributes:
        source: Where from, with its commit or hash.
        kind: `model`: it is in the store; `directory`: a Hugging Face directory.
        name: Name in the store; empty for a directory.
        path: The readable file or the directory.
        digest: Of the stored model; empty for a directory.
        size_bytes: Of its files.
        licence: Its licence.
        variant: Of a repository.
        reason: Why this variant.
        projector: Name in the store of the projector that came with it; empty without one.
        projector_bytes: Its size.
        was_here: Nothing had to be downloaded.
        next: What to do with it now, as a command.
    """

    source: str
    kind: str
    name: str = ""
    path: str
    digest: str = ""
    size_bytes: int
    licence: str
    variant: str = ""
    reason: str = ""
    projector: str = ""
    projector_bytes: int = 0
    was_here: bool = False
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How to pull.

    Attributes:
        name: Name in the store; by default one made from the source.
        fit: Choose the variant by what the device has.
        device: Profile to choose for; `this` by default.
        context: Tokens of context to predict memory for.
        accepted: Licences that the person at the keyboard accepts.
        offline: Ask no server.
        projector: Type or file of the projector that comes with a variant which has one, or `none`; None for the usual.
    """

    name: str | None = None
    fit: bool = False
    device: str | None = None
    context: int = 4096
    accepted: Collection[str] = field(default=())
    offline: bool = False
    projector: str | None = None


def pull(
    text: str,
    wish: Wish | None = None,
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
    on_files: OnFiles = lambda _: None,
) -> Pulled:
    """Bring a model here.

    Args:
        text: Where from; see `sources.names`.
        wish: How.
        store: Where to; by default kvant's own.
        progress: Told the bytes.
        on_files: Told the SHA-256 of every file that is going to be downloaded from the hub, by its name.

    Raises:
        SourceError: The source is not understood, or does not hold what is asked.
        LicenceError: Its licence is neither allowed nor accepted.
        TransferError: A server fails, or sends other bytes than it should.
        BudgetError: No variant fits.
        FormatError: What came is no model, or damaged.
        QuotaError: The store is full.
    """
    wish, source = wish or Wish(), parse_source(text)
    if store is None:
        store = Store.open()
    if wish.fit and isinstance(source, HubSource) and source.choice is not None:
        raise SourceError(
            f"{source.short or source}: names a variant, and --fit chooses one. Leave one of the two out."
        )
    if wish.fit and (not isinstance(source, HubSource) or _is_offline(wish)):
        what = "is one file" if not isinstance(source, HubSource) else "cannot be asked for its variants offline"
        raise SourceError(f"{source}: {what}, so there is none to choose. Leave --fit and --device out.")
    if wish.projector is not None and (not isinstance(source, HubSource) or _is_offline(wish)):
        what = "is one file" if not isinstance(source, HubSource) else "cannot be asked for projectors offline"
        raise SourceError(f"{source}: {what}, so none can be chosen. Leave --mmproj out.")
    if isinstance(source, FileSource):
        return _pull_file(source, wish, store, progress)
    if isinstance(source, UrlSource):
        return _pull_url(source, wish, store, progress)
    if _is_offline(wish):
        return _pull_offline(source, wish, store)
    return _pull_hub(source, wish, store, progress, on_files)


def hub_name(source: HubSource, variant: str) -> ModelName:
    """Return the name that a variant of a repository has in the store: `hf.co/org/name:variant`, or its short name."""
    if source.short:
        return ModelName.parse(source.short)
    namespace, _, model = source.repo.partition("/")
    return ModelName(host=HUB_HOST, namespace=namespace, model=_part(model), tag=_part(variant))


def _is_offline(wish: Wish) -> bool:
    return wish.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _part(text: str) -> str:
    """Make a part of a name from a file's or repository's name."""
    kept = re.sub(r"\.(?:gguf|json|partial)$", "", re.sub(r"[^A-Za-z0-9_.-]", "-", text), flags=re.IGNORECASE)
    return re.sub(r"\.{2,}", ".", kept).strip(".-")[:96] or "model"


def _pull_file(source: FileSource, wish: Wish, store: Store, progress: Progress) -> Pulled:
    if source.path.is_dir():
        raise SourceError(
            f"{source.path}: is a directory, and is here already. Run: kvant optimize {shlex.quote(str(source.path))}"
        )
    licence = licence_of(read_header(source.path).metadata)
    if licence:
        check_licence(licence, str(source.path), accepted=wish.accepted)
    settings = ModelSettings(source=str(source.path.resolve()), license=[licence] if licence else [])
    model = store.import_file(source.path, wish.name or _part(source.path.stem), settings, progress=progress)
    return _stored(model, store, licence)


def _pull_url(source: UrlSource, wish: Wish, store: Store, progress: Progress) -> Pulled:
    name = ModelName.parse(wish.name or _part(source.file_name))
    found = _find_source(store, name, str(source))
    if found is not None:
        return _stored(found, store, "".join(found.settings.license), was_here=True)
    if _is_offline(wish):
        raise TransferError(f"{source.url}: is not in the store, and servers may not be asked. Leave --offline out.")
    remote = Remote(url=source.url, sha256=source.sha256)
    place = _place(str(source))
    with http_client() as client:
        with tempfile.TemporaryDirectory(prefix="kvant-header-", ignore_cleanup_errors=True) as directory:
            header = remote_header(client, remote, Path(directory) / "header.gguf")
            licence = licence_of(header.metadata)
        licence = check_licence(licence, source.url, accepted=wish.accepted)
        path = place / source.file_name
        download(client, remote, path, progress=progress)
    settings = ModelSettings(source=str(source), license=[licence])
    model = store.import_file(path, name, settings, progress=progress, move=True)
    shutil.rmtree(place, ignore_errors=True)
    return _stored(model, store, licence)


def _pull_hub(source: HubSource, wish: Wish, store: Store, progress: Progress, on_files: OnFiles) -> Pulled:
    if source.short and not wish.name:
        with contextlib.suppress(ModelNotFoundError):
            model = store.find(source.short)
            if not (model.settings.source or "").startswith(f"hf:{source.repo}@"):  # one's own: not replaced
                return _stored(model, store, "".join(model.settings.license), was_here=True)
    hub = HuggingFace()
    repository = hub.repository(source.repo, source.revision)
    subject = f"hf:{repository.id}"
    licence = check_licence(repository.licence, subject, accepted=wish.accepted, is_gated=repository.is_gated)
    variants = variants_of(repository)
    if not variants:
        return _pull_directory(hub, source, repository, licence, wish, progress)
    variant, reason = _choose(hub, source, repository, variants, wish, progress)
    first = variant.files[0].path
    origin = f"hf:{repository.id}@{repository.commit}:{first}"
    name = ModelName.parse(wish.name) if wish.name else hub_name(source, variant.name)
    eyes = _pull_projector(hub, repository, variant, name, wish, store, progress, on_files)
    found = _find_source(store, name, origin)
    if found is not None:
        return _stored(found, store, licence, variant=variant.name, reason=reason, was_here=True, eyes=eyes)
    store.ledger.check_possible(sum(file.size_bytes for file in variant.files), origin)
    place = _place(origin)
    on_files({file.path.rpartition("/")[2]: file.sha256 for file in variant.files if file.sha256})
    with http_client() as client:
        for file in variant.files:
            path = place / file.path.rpartition("/")[2]
            download(client, hub.remote(repository, file), path, progress=progress)
        passport = _passport(hub, client, repository, variant, progress)
    settings = ModelSettings(source=origin, license=[licence], passport=passport)
    path = place / first.rpartition("/")[2]
    model = store.import_file(path, name, settings, progress=progress, move=True)
    shutil.rmtree(place, ignore_errors=True)
    return _stored(model, store, licence, variant=variant.name, reason=reason, eyes=eyes)


def _pull_projector(
    hub: HuggingFace, repository: Repository, variant: RemoteVariant, name: ModelName, wish: Wish, store: Store,
    progress: Progress, on_files: OnFiles,
) -> StoredModel | None:  # fmt: skip
    """Bring the projector that goes with a variant, before it: a model that is there sees.

    Raises:
        SourceError: There is none as wished for.
        TransferError: The hub fails.
        FormatError: It is no projector.
    """
    file = choose_projector(repository, variant, wish.projector)
    if file is None:
        return None
    origin = f"hf:{repository.id}@{repository.commit}:{file.path}"
    here = _find_source(store, dataclasses.replace(name, tag=tag_of(file.path, name.tag)), origin)
    if here is not None:
        return here
    store.ledger.check_possible(file.size_bytes, origin)
    place = _place(origin)
    path = place / file.path.rpartition("/")[2]
    progress.say(f"With its projector, {format_bytes(file.size_bytes)}: {file.path}. Without: --mmproj none.")
    on_files({path.name: file.sha256} if file.sha256 else {})
    with http_client() as client:
        download(client, hub.remote(repository, file), path, progress=progress)
    read_projector(path)
    kept = keep_projector(store, path, name, source=origin, move=True, progress=progress)
    shutil.rmtree(place, ignore_errors=True)
    return kept


def _choose(
    hub: HuggingFace,
    source: HubSource,
    repository: Repository,
    variants: list[RemoteVariant],
    wish: Wish,
    progress: Progress,
) -> tuple[RemoteVariant, str]:
    """Return the variant asked for, or the usual one, or the one that fits; and why."""
    chosen = None if wish.fit else choose_variant(variants, source.choice, repository.id)
    if chosen is not None:
        others = len(variants) - 1
        usual = f"the usual one of {len(variants)}; --fit chooses for this machine" if others else "the only variant"
        return chosen, "" if source.choice else f"{chosen.name} is {usual}."
    device = device_for(wish.device, detect(measure=False))
    progress.say(f"hf:{repository.id}: {len(variants)} variants; looking at their headers.")
    with http_client() as client:
        fit = fit_variant(
            hub, client, repository, variants, device=device, context=wish.context, projector=wish.projector
        )
    return next(v for v in variants if v.name == fit.variant), fit.reason


def _pull_directory(
    hub: HuggingFace, source: HubSource, repository: Repository, licence: str, wish: Wish, progress: Progress
) -> Pulled:
    """Download a Hugging Face directory: weights, configuration, tokenizer, card; never code."""
    files = [file for file in repository.files if _DIRECTORY_FILE.fullmatch(file.path)]
    weights = [file for file in files if file.path.endswith(".safetensors") and "consolidated" not in file.path]
    files = [file for file in files if file in weights or _is_small(file)]
    if not weights or not any(file.path == "config.json" for file in files):
        held = sorted({file.path.rpartition(".")[2] for file in repository.files if "." in file.path})[:12]
        raise SourceError(
            f"hf:{repository.id}: holds neither GGUF files nor a model in safetensors, "
            f"but {', '.join(held) or 'nothing'}. Choose another repository: kvant search NAME"
        )
    target = _directory(repository)
    path, size = str(target), sum(file.size_bytes for file in files)
    done = Pulled(
        source=f"hf:{repository.id}@{repository.commit}", kind="directory", path=path, size_bytes=size, licence=licence,
        next=shlex.join(("kvant", "optimize", str(path))),
    )  # fmt: skip
    if source.choice is not None:
        raise SourceError(f"{source}: holds no GGUF variants. Leave :{source.choice} out to get its safetensors.")
    if wish.projector is not None:
        raise SourceError(f"{source}: is a directory, whose projector is among its weights. Leave --mmproj out.")
    if wish.fit or wish.name:
        option = "--fit and --device choose among GGUF variants" if wish.fit else "--name names a model of the store"
        raise SourceError(f"{source}: holds no GGUF variants but a directory, and {option}. Leave them out.")
    if target.is_dir():
        return msgspec.structs.replace(done, was_here=True)
    place = _place(done.source)
    with http_client() as client:
        for file in files:
            download(client, hub.remote(repository, file), place / file.path, progress=progress)
    for lock in place.glob("*.lock"):
        lock.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    place.rename(target)
    sync_directory(target.parent)
    return done


def _pull_offline(source: HubSource, wish: Wish, store: Store) -> Pulled:
    """Return what is here already."""
    names = [wish.name] if wish.name else [str(m.name) for m in store.list() if _is_from(m, source)]
    if len(names) > 1:
        raise SourceError(f"{source}: {len(names)} variants are here ({', '.join(names[:10])}). Name one of them.")
    if names:
        model = store.find(names[0])
        origin, choice = model.settings.source or "elsewhere", (source.choice or "").lower()
        if not origin.startswith(f"hf:{source.repo}@") or choice not in f"{origin} {model.name.tag}".lower():
            raise SourceError(
                f"{source}: {names[0]} in the store is from {origin}. Leave --name out, or pull without --offline."
            )
        return _stored(model, store, "".join(model.settings.license), variant=model.name.tag, was_here=True)
    directories = sorted((home() / "models" / source.repo).glob("*"))
    if directories and source.choice is None:
        path = directories[-1]
        size = sum(p.stat().st_size for p in path.iterdir())
        return Pulled(
            source=f"hf:{source.repo}@{path.name}", kind="directory", path=str(path), size_bytes=size, licence="",
            was_here=True, next=shlex.join(("kvant", "optimize", str(path))),
        )  # fmt: skip
    raise TransferError(f"{source}: is not here, and servers may not be asked. Pull it once without --offline.")


def _is_from(model: StoredModel, source: HubSource) -> bool:
    origin = model.settings.source or ""
    if not origin.startswith(f"hf:{source.repo}@"):
        return False
    commit, _, file = origin.partition("@")[2].partition(":")
    if source.revision is not None and commit != source.revision:
        return False
    choice = source.choice
    return choice is None or choice.lower() in (model.name.tag.lower(), file.lower(), file.lower().rpartition("/")[2])


def _find_source(store: Store, name: ModelName, origin: str) -> StoredModel | None:
    """Return the stored model of a name if it came from the very same place."""
    try:
        found = store.find(name)
    except ModelNotFoundError:
        return None
    return found if found.settings.source == origin else None


def _passport(
    hub: HuggingFace, client: "httpx2.Client", repository: Repository, variant: RemoteVariant,
    progress: Progress,
) -> dict[str, Any] | None:  # fmt: skip
    """Return kvant's report of the file, where one lies beside it and is of these very bytes.

    The model is of use without it, so one of a newer form is left out, and that is said.
    """
    wanted = variant.files[0].path.removesuffix(".gguf") + PASSPORT_SUFFIX
    file = next((f for f in repository.files if f.path == wanted and f.size_bytes <= MAX_PASSPORT_BYTES), None)
    if file is None:
        return None
    try:
        found = msgspec.json.decode(read_range(client, hub.remote(repository, file), MAX_PASSPORT_BYTES), type=dict)
    except JSON_ERRORS:
        return None
    try:
        check_form(found, f"hf:{repository.id}:{wanted}")
    except FormatError as error:
        progress.say(f"{error} The model is kept without it.")
        return None
    return found if found.get("sha256") == variant.files[0].sha256 else None


def _place(key: str) -> Path:
    """Return the directory in which a source's files are collected."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    downloads = make_downloads()
    path = downloads / hashlib.sha256(f"{endpoint}\0{key}".encode()).hexdigest()[:24]
    path.mkdir(exist_ok=True)
    return path


def make_downloads() -> Path:
    """Return the directory for what is not whole yet, made if absent; what nobody continued for long is removed."""
    path = home() / "downloads"
    path.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - KEPT_S
    for entry in path.iterdir():
        with contextlib.suppress(OSError):
            if max(p.stat().st_mtime for p in (entry, *entry.rglob("*"))) < oldest:
                shutil.rmtree(entry)
    return path


def _directory(repository: Repository) -> Path:
    return home() / "models" / repository.id / repository.commit[:12]


def _is_small(file: RepoFile) -> bool:
    return not file.path.endswith(".safetensors") and file.size_bytes <= _SMALL_BYTES


def _stored(
    model: StoredModel, store: Store, licence: str, *, variant: str = "", reason: str = "", was_here: bool = False,
    eyes: StoredModel | None = None,
) -> Pulled:  # fmt: skip
    path = store.find(model.name).path
    return Pulled(
        source=model.settings.source or "", kind="model", name=str(model.name), path=str(path), digest=model.digest,
        size_bytes=model.size_bytes, licence=licence, variant=variant, reason=reason, was_here=was_here,
        projector=str(eyes.name) if eyes else "", projector_bytes=eyes.size_bytes if eyes else 0,
        next=f"kvant run {model.name}",
    )  # fmt: skip
