"""Models in a folder of the host: pinned to a commit, every file by sha256, fetched and looked at again.

`locks/RECIPE/models.toml` holds what was pinned. Beside a model's folder lies FOLDER.sha256, for `sha256sum -c`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from builder.deploy import hub
from builder.deploy.hub import PART, Access, Listing, Remote
from builder.deploy.profile.model import Model, Profile
from builder.deploy.shell import Shell
from builder.errors import BuilderError, UsageError
from builder.progress import Progress
from builder.recipe.document import Document, read
from builder.recipe.keys import Key, Type, between, matches
from builder.recipe.tables import Checker, table

LOCK = "models.toml"

_HEAD = "# Written by `builder models fetch`: the files of each model, at one commit of its repository.\n"
_FILES = (
    Key("Path", Type.TEXT, "Its name in the repository.", required=True),
    Key("Size", Type.INT, "In bytes.", required=True, check=between(0)),
    Key("Sha256", Type.TEXT, "Of its content.", required=True, check=matches("[0-9a-f]{64}", "a sha256")),
)
_KEYS = (
    Key("Repository", Type.TEXT, "Its name on the model hub.", required=True),
    Key("Revision", Type.TEXT, "Its commit.", required=True, check=matches("[0-9a-f]{40}", "a commit")),
    Key("Files", Type.TABLES, "Each of its files.", required=True, keys=_FILES),
)
_LIST = 'cd "$1" 2>/dev/null || exit 0; find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum -z --'
_PUT = """\
umask 022; mkdir -p -- "$(dirname -- "$1")"; cat > "$1.part"
echo "$2  $1.part" | sha256sum --check --status || { rm -f -- "$1.part"; echo "arrived damaged" >&2; exit 1; }
mv -fT -- "$1.part" "$1"
"""
_CONTENT = 'umask 022; cat > "$1.part"; mv -fT -- "$1.part" "$1"'


@dataclass(frozen=True)
class Pinned:
    """A model's files at one commit."""

    repository: str
    revision: str
    files: Mapping[str, tuple[int, str]]  # by path: size in bytes, sha256


@dataclass(frozen=True)
class Place:
    """Where a model's folder is."""

    shell: Shell
    folder: str  # absolute
    staging: Path | None = None  # None: the folder is on this machine; else where a file waits to be sent

    @property
    def sums(self) -> str:
        """The file beside it."""
        return f"{self.folder}.sha256"


@dataclass(frozen=True)
class Fault:
    """A file that is not as it was pinned."""

    path: str
    what: str  # "damaged", "missing", "extra"


def folder_of(model: Model, models: str) -> str:
    """The folder of `model` in the host's folder of models."""
    return f"{models.rstrip('/')}/{PurePosixPath(model.path).name}"


def repository_of(profile: Profile) -> str:
    """The name of its model on the hub. Raises UsageError when the model lies in the template."""
    if not profile.model.repository:
        what = f"the model of profile {profile.name} lies in the template, in {profile.model.path}: nothing to fetch"
        raise UsageError(what, where=profile.source)
    return profile.model.repository


def read_lock(path: Path) -> dict[str, Pinned]:
    """What is pinned, by repository; nothing when there is no such file. Raises UsageError with file and line."""
    if not path.exists():
        return {}
    document = read(path)
    checker = Checker(document, path.parent, path.parent)
    return {pinned.repository: pinned for pinned in _entries(document, checker)}


def write_lock(path: Path, pinned: Pinned) -> None:
    """Put `pinned` among what `path` holds, in the place of an older entry of its repository."""
    everything = {**read_lock(path), pinned.repository: pinned}
    text = _HEAD + "".join(_entry(everything[name]) for name in sorted(everything))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def fetch(
    profile: Profile,
    place: Place,
    known: Pinned | None,
    access: Access,
    pin: Callable[[Pinned], None],
    progress: Progress,
) -> Pinned:
    """Bring the profile's model to `place`; files that are there as they should be stay.

    Its commit is the profile's Revision, else the one of `known`, else the hub's newest. The small files come first:
    with them every sha256 is known, and `pin` gets all before the weights are fetched. Raises BuilderError.
    """
    repository = repository_of(profile)
    revision = profile.model.revision or (known.revision if known else None)
    listing = hub.listing(access, repository, revision)
    if known is not None and known.revision != listing.revision:
        known = None
    if known is not None and set(known.files) != {file.path for file in listing.files}:
        raise BuilderError(f"the hub lists other files for {revision} than before", where=repository)
    here = _sums(place)
    digests = {path: digest for path, (_, digest) in known.files.items()} if known else {}
    pinned = known
    with progress.task(f"fetch {repository}", sum(file.size for file in listing.files)) as task:
        for file in sorted(listing.files, key=lambda file: (file.sha256 is not None, file.path)):
            if pinned is None and file.sha256 is not None:
                pinned = _pinned(repository, listing, digests)
                pin(pinned)
            wanted = file.sha256 or digests.get(file.path)
            if wanted is not None and here.get(file.path) == wanted:
                task.advance(file.size)
                digests[file.path] = wanted
                continue
            task.note(file.path)
            digests[file.path] = _bring(place, access, repository, listing.revision, file, wanted, task)
    pinned = _pinned(repository, listing, digests)
    pin(pinned)
    _write_sums(place, pinned)
    return pinned


def verify(place: Place, pinned: Pinned) -> tuple[Fault, ...]:
    """Every file in `place` that is damaged, missing or extra. Raises BuilderError when it cannot be read."""
    here = _sums(place)
    missing = [Fault(path, "missing") for path in pinned.files if path not in here]
    damaged = [Fault(path, "damaged") for path, (_, digest) in pinned.files.items() if here.get(path, digest) != digest]
    extra = [Fault(path, "extra") for path in here if path not in pinned.files]
    return tuple(sorted((*missing, *damaged, *extra), key=lambda fault: fault.path))


def notes(profile: Profile, place: Place) -> tuple[str, ...]:
    """What the model's own config.json says that the profile does not know. Raises BuilderError without one."""
    path = f"{place.folder}/config.json"
    try:
        real = json.loads(place.shell.ask("cat", "--", path).check().out)
    except ValueError as error:
        raise BuilderError("is not JSON", where=path) from error
    if not isinstance(real, dict):
        raise BuilderError("is no object", where=path)
    said = [
        f"{key} is {real[key]!a} in config.json, and {value!a} in {profile.source}"
        if key in real
        else f"config.json has no {key}, and {profile.source} says {value!a}"
        for key, value in profile.model.shape.items()
        if not _agrees(value, real.get(key))
    ]
    if "auto_map" in real:
        said.append("config.json names Python code of its own (auto_map): it was not fetched, and vLLM may want it")
    return tuple(said)


def _bring(
    place: Place, access: Access, repository: str, revision: str, file: Remote, wanted: str | None, task: Any
) -> str:
    """Fetch one file and put it in its place, readable by all: a container's root is nobody on the host."""
    target = f"{place.folder}/{file.path}"
    part = Path(target + PART) if place.staging is None else place.staging / revision / (file.path + PART)
    digest = hub.download(access, repository, revision, file, part, task)
    if wanted not in (None, digest):
        part.unlink()
        what = f"{file.path} arrived with sha256 {digest}, and {wanted} is pinned: removed"
        raise BuilderError(what, where=repository)
    if place.staging is None:
        part.chmod(0o644)
        os.replace(part, target)
    else:
        sent = place.shell.do("sh", "-ec", _PUT, "sh", target, digest, stdin=part)
        sent.check()
        part.unlink()
    return digest


def _sums(place: Place) -> dict[str, str]:
    """The sha256 of each file in the folder, by its path there; nothing when there is no folder."""
    done = place.shell.ask("sh", "-ec", _LIST, "sh", place.folder, timeout=None).check()
    found = {}
    for line in done.out.decode(errors="surrogateescape").split("\0"):
        if match := re.fullmatch(r"([0-9a-f]{64}) [ *]\./(.+)", line, re.DOTALL):
            found[match[2]] = match[1]
    return found


def _write_sums(place: Place, pinned: Pinned) -> None:
    name = PurePosixPath(place.folder).name
    lines = [f"{digest}  {name}/{path}\n" for path, (_, digest) in sorted(pinned.files.items())]
    note = f"sums of {len(lines)} files"
    place.shell.do("sh", "-ec", _CONTENT, "sh", place.sums, stdin="".join(lines).encode(), note=note).check()


def _pinned(repository: str, listing: Listing, digests: Mapping[str, str]) -> Pinned:
    files = {file.path: (file.size, file.sha256 or digests[file.path]) for file in listing.files}
    return Pinned(repository, listing.revision, files)


def _entries(document: Document, checker: Checker) -> Iterator[Pinned]:
    top = Key("Model", Type.TABLES, "Each model.", keys=_KEYS)
    checker.check(table("the file", (), document.data), (top,), {})
    for entry in document.data.get("Model", ()):
        files = {file["Path"]: (file["Size"], file["Sha256"]) for file in entry["Files"]}
        yield Pinned(entry["Repository"], entry["Revision"], files)


def _entry(pinned: Pinned) -> str:
    rows = "".join(
        f"    {{ Path = {_quote(path)}, Size = {size}, Sha256 = {_quote(digest)} }},\n"
        for path, (size, digest) in sorted(pinned.files.items())
    )
    head = f"Repository = {_quote(pinned.repository)}\nRevision = {_quote(pinned.revision)}\n"
    return f"\n[[Model]]\n{head}Files = [\n{rows}]\n"


def _quote(text: str) -> str:
    """Printable text as TOML and JSON both write it."""
    return json.dumps(text, ensure_ascii=False)


def _agrees(shape: Any, real: Any) -> bool:
    """Whether `real` has all that the shape says; what it has beyond that is no difference."""
    if isinstance(shape, Mapping):
        return isinstance(real, Mapping) and all(_agrees(value, real.get(key)) for key, value in shape.items())
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return isinstance(real, Sequence) and list(shape) == list(real)
    return bool(shape == real)
