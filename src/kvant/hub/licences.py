"""Which licences models may have: an allow-list that gates what is downloaded and what is worked on.

`licences.yaml` in kvant's own directory, or `KVANT_LICENCES=apache-2.0,mit` in the environment:

    allow: [apache-2.0, mit]     # in place of the open licences known here
    deny: [gpl-3.0]              # whatever `allow` says, and whatever a person accepts
    unknown: ask                 # or refuse; what to do about a source that names no licence

Everything else is asked about: `--accept-licence ID`.

Source of the identifiers: the Hugging Face hub's list of licences, https://huggingface.co/docs/hub/repositories-licenses
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from kvant.errors import LicenceError
from kvant.files import home
from kvant.metadata import Value
from kvant.model import Model

OPEN = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1",
    "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit",
    "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl",
    "zlib",
})  # fmt: skip
"""Licences without limits on who may use a model and for what."""

UNKNOWN = "unknown"
MAX_FILE_BYTES = 1 << 16
_ENVIRONMENT = "KVANT_LICENCES"
_NO_LICENCE = frozenset({"", "other", "unknown", "none", "unlicensed"})


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is allowed without asking, and what never is; identifiers in lower case."""

    allow: frozenset[str] = OPEN
    deny: frozenset[str] = frozenset()
    unknown: Literal["ask", "refuse"] = "ask"


def policy_path() -> Path:
    """Return where the policy of this machine is written."""
    return home() / "licences.yaml"


def read_policy() -> Policy:
    """Return the policy of the environment, of the file, or that of all open licences.

    Raises:
        LicenceError: The file is not what a policy looks like; nothing is allowed by a file that cannot be read.
    """
    path = policy_path()
    policy = Policy()
    if path.exists():
        import yaml

        try:
            with path.open("rb") as file:
                raw = yaml.safe_load(file.read(MAX_FILE_BYTES + 1)[:MAX_FILE_BYTES])
            policy = msgspec.convert(raw or {}, Policy)
        except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
            said = str(error).splitlines()[0]
            raise LicenceError(f"{path}: is not a licence policy ({said}). Correct it; see `allow`, `deny`.") from error
    listed = os.environ.get(_ENVIRONMENT)
    if listed is not None:
        policy = Policy(allow=frozenset(listed.split(",")), deny=policy.deny, unknown=policy.unknown)
    return Policy(allow=_lower(policy.allow), deny=_lower(policy.deny), unknown=policy.unknown)


def check_licence(
    licence: str, subject: str, *, accepted: Collection[str] = (), is_gated: bool = False, policy: Policy | None = None
) -> str:
    """Return the licence of a source if it may be used.

    Args:
        licence: Identifier, as its source names it; empty if it names none.
        subject: The source, for the message.
        accepted: Identifiers that the person at the keyboard accepts now.
        is_gated: Its owner asks for agreement to terms of their own.
        policy: What is allowed; by default what `read_policy` says.

    Raises:
        LicenceError: It is denied, or neither allowed nor accepted.
    """
    policy = policy or read_policy()
    name = re.sub(r"\s+", "-", licence.strip().lower())
    is_unknown = name in _NO_LICENCE
    name = UNKNOWN if is_unknown else name
    if name in policy.deny or (is_unknown and policy.unknown == "refuse"):
        raise LicenceError(f"{subject}: its licence is {name}, which the policy denies. Choose another model, or ask "
                           f"whoever wrote {policy_path()}.")  # fmt: skip
    if name in _lower(accepted):
        return name
    how = f"Read it, then pass --accept-licence {name}, or allow it in {policy_path()}"
    if is_unknown:
        raise LicenceError(f"{subject}: names no licence that is known. Ask its author; to use it all the same, pass "
                           f"--accept-licence {UNKNOWN}.")  # fmt: skip
    if name not in policy.allow:
        raise LicenceError(f"{subject}: its licence is {name}, which is not on the allow-list. {how}.")
    if is_gated:
        raise LicenceError(
            f"{subject}: its owner asks for agreement to terms beside its licence, {name}. Read them on the hub, then "
            f"pass --accept-licence {name}."
        )
    return name


def check_model(model: Model, *, accepted: Collection[str] = ()) -> None:
    """Gate work on a model that is here: by the licence it names; by none only where the policy refuses that.

    Raises:
        LicenceError: Its licence is denied, or neither allowed nor accepted.
    """
    licence, policy = licence_of(model.metadata), read_policy()
    if licence or policy.unknown == "refuse":
        check_licence(licence, model.name, accepted=accepted, policy=policy)


def licence_of(metadata: Mapping[str, Value]) -> str:
    """Return the licence that a model's metadata name; its own name where the identifier is `other`."""
    for key in ("general.license", "general.license.name"):
        found = metadata.get(key)
        text = found.value[:80].strip() if found is not None and isinstance(found.value, str) else ""
        if text and text.lower() not in _NO_LICENCE:
            return text
    return ""


def is_allowed(licence: str, policy: Policy, *, is_gated: bool = False) -> bool:
    """Tell whether a licence needs no asking."""
    try:
        check_licence(licence, "", is_gated=is_gated, policy=policy)
    except LicenceError:
        return False
    return True


def _lower(names: Collection[str]) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names if name.strip())
