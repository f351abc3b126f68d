"""The Hugging Face hub, asked through its own client; the bytes of files come by `hub.transfer`.

The client of today writes every download to a new temporary file, so one that was killed starts from nothing; kvant's
own download continues, and checks the hash that the hub names.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from kvant.errors import MissingDependencyError, SourceError, TransferError
from kvant.hub.sources.names import check_member
from kvant.hub.transfer import MAX_BYTES, Remote

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_FILES = 20_000
"""Of one repository."""

MAX_FOUND = 100
TIMEOUT_S = 30


class RepoFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a repository; `sha256` of large files, `git_sha1` of small ones."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository at one commit.

    Attributes:
        id: `org/name`.
        commit: The commit its revision stands for; what is downloaded is of this one.
        files: Its files; empty where the answer was a list of repositories.
        licence: Identifier from its card, in lower case; empty if it names none.
        is_gated: Its owner asks for agreement first.
        tags: Words the hub finds it by.
        base_models: What it was made from.
        downloads: Of the last 30 days.
        n_weights: Weights, where the hub knows; 0 if not.
    """

    id: str
    commit: str
    files: tuple[RepoFile, ...]
    licence: str = ""
    is_gated: bool = False
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    downloads: int = 0
    n_weights: int = 0


class HuggingFace:
    """The hub at `HF_ENDPOINT`, with the token of the environment or of `hf auth login`.

    Raises:
        MissingDependencyError: The extra `hub` is not installed.
    """

    def __init__(self) -> None:
        try:
            from huggingface_hub import HfApi, constants, get_token
        except ImportError:
            raise MissingDependencyError(
                "huggingface_hub: is not installed, and the hub is asked through it. Run: pip install 'kvant[hub]'"
            ) from None
        # Otherwise it asks the endpoint which callers to tell apart, keeps the answer for all programs, and trusts it.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        self.endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._token = get_token()
        self._api: HfApi = HfApi(
            endpoint=self.endpoint, token=self._token or False, library_name="kvant", user_agent="kvant"
        )

    def repository(self, repo: str, revision: str | None = None) -> Repository:
        """Ask for a repository with sizes and hashes of its files.

        Raises:
            SourceError: There is no such repository or revision, or it is closed.
            TransferError: The hub cannot be reached or fails.
        """
        with _asking(f"hf:{repo}{f'@{revision}' if revision else ''}", self.endpoint):
            info = self._api.model_info(repo, revision=revision or "main", files_metadata=True, timeout=TIMEOUT_S)
            return _repository(info)

    def search(self, text: str, *, filters: list[str], limit: int) -> list[Repository]:
        """Find repositories by words of their names, most downloaded first.

        Raises:
            TransferError: The hub cannot be reached or fails.
        """
        from huggingface_hub import get_session

        with _asking(f"search for {text!r}", self.endpoint):
            # Without a network list_models tries for half a minute; this says so at once.
            get_session().head(f"{self.endpoint}/api/models", timeout=TIMEOUT_S)
            found = self._api.list_models(
                search=text, filter=filters or None, sort="downloads", limit=min(limit, MAX_FOUND), full=True,
                cardData=True,
            )  # fmt: skip
            return [_repository(info) for info in found]

    def remote(self, repository: Repository, file: RepoFile) -> Remote:
        """Return where a file of a repository is downloaded from."""
        url = f"{self.endpoint}/{repository.id}/resolve/{repository.commit}/{quote(file.path)}"
        return Remote(
            url=url, sha256=file.sha256, git_sha1=file.git_sha1, size_bytes=file.size_bytes,
            headers={"authorization": f"Bearer {self._token}"} if self._token else {},
        )  # fmt: skip


@contextlib.contextmanager
def _asking(subject: str, endpoint: str) -> Iterator[None]:
    """Turn what the client raises into errors with a remedy."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except (SourceError, TransferError):
        raise
    except errors.GatedRepoError as error:
        raise SourceError(f"{subject}: its owner asks for agreement. Agree on {endpoint} and set HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{subject}: there is no such repository, or it is private. Check the name with `kvant search`, "
            "or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{subject}: there is no such revision. Leave @revision out for the newest.") from error
    except errors.OfflineModeIsEnabled as error:
        raise TransferError(f"{subject}: HF_HUB_OFFLINE is set. Unset it to use the hub.") from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TransferError(f"{subject}: {endpoint} does not answer ({said}). Check the network.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TransferError(f"{subject}: {endpoint} sent what cannot be read ({error}). Check HF_ENDPOINT.") from error


def _repository(info: Any) -> Repository:
    """Take what is used from the client's answer; paths and hashes are checked, for a server may send anything."""
    tags = tuple(str(tag)[:200] for tag in (info.tags or [])[:500])
    siblings = info.siblings or []
    if len(siblings) > MAX_FILES:
        raise SourceError(
            f"hf:{info.id}: {len(siblings)} files are above the limit of {MAX_FILES}. Choose another one."
        )
    card = info.card_data or {}
    licence = card.get("license") or next((t.partition(":")[2] for t in tags if t.startswith("license:")), "")
    if isinstance(licence, list):
        licence = licence[0] if licence else ""
    if str(licence).lower() == "other" and card.get("license_name"):
        licence = card.get("license_name")
    bases = tuple(t.rpartition(":")[2] for t in tags if t.startswith("base_model:"))
    gguf = info.gguf if isinstance(info.gguf, dict) else {}
    weights = gguf.get("total") or getattr(info.safetensors, "total", None) or 0
    return Repository(
        id=check_member(str(info.id), f"hf:{info.id}"), commit=_hex(info.sha, 40), licence=str(licence).lower()[:80],
        files=tuple(_file(sibling, info.id) for sibling in siblings), is_gated=bool(info.gated), tags=tags,
        base_models=tuple(dict.fromkeys(bases)), downloads=int(info.downloads or 0),
        n_weights=int(weights) if isinstance(weights, int) else 0,
    )  # fmt: skip


def _file(sibling: Any, repo: str) -> RepoFile:
    lfs = sibling.lfs
    size = lfs["size"] if lfs else sibling.size
    return RepoFile(
        path=check_member(str(sibling.rfilename), f"hf:{repo}"),
        size_bytes=_size(size),
        sha256=_hex(lfs["sha256"], 64) if lfs else None,
        git_sha1=_hex(sibling.blob_id, 40) if sibling.blob_id and not lfs else None,
    )


def _size(value: object) -> int:
    """Return a file's bytes; a list of repositories leaves them out."""
    if value is not None and (not isinstance(value, int) or not 0 <= value <= MAX_BYTES):
        raise TypeError(f"{str(value)[:80]!r} is not the size of a file")
    return value or 0


def _hex(value: object, length: int) -> str:
    text = str(value or "").lower()
    if text and (len(text) != length or set(text) - set("0123456789abcdef")):
        raise TypeError(f"{text[:80]!r} is not {length} hexadecimal digits")
    return text
