"""Profiles from recipes/NAME/profiles/PROFILE.toml: strict, the first thing wrong is an error with file and line."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.deploy.profile.model import Bench, Model, Profile
from builder.deploy.profile.settings import BENCH, MODEL, NAME, PROFILE, TABLES, option_wrong, variable_wrong
from builder.errors import UsageError
from builder.recipe.document import Document, read
from builder.recipe.keys import Key
from builder.recipe.tables import Checker, Table, did_you_mean, table

_HOMES = {
    key.name: f"[{title}]" for title, keys in (("Profile", PROFILE), ("Model", MODEL), ("Bench", BENCH)) for key in keys
}
_SHAPE = "Shape"


def names(recipe_dir: Path) -> tuple[str, ...]:
    """The profiles of a recipe in order; files without a [Model] of their own or below are only extended.

    Raises UsageError, with file and line, for a file that cannot be read.
    """
    files = sorted((recipe_dir / "profiles").glob("*.toml"))
    return tuple(
        file.stem for file in files if any("Model" in document.data for document in _chain(recipe_dir, file.stem))
    )


def find(name: str, root: Path = Path("recipes")) -> Path:
    """The folder of the one recipe below `root` that has profile `name`. Raises UsageError when not exactly one has."""
    folders = [folder.parent for folder in sorted(root.glob("*/profiles"))]
    having = [folder for folder in folders if name in names(folder)]
    if len(having) == 1:
        return having[0]
    if having:
        listed = ", ".join(map(str, having))
        raise UsageError(f"several recipes have a profile {name!a}", hint=f"give --recipe: {listed}")
    known = sorted({known for folder in folders for known in names(folder)})
    hint = did_you_mean(name, known) or (f"known are {', '.join(known)}" if known else "run it in the project's folder")
    raise UsageError(f"no recipe has a profile {name!a}", where=root, hint=hint)


def load(recipe_dir: Path, name: str) -> Profile:
    """The profile `name` of a recipe. Raises UsageError with file, line and what would be right."""
    chain = _chain(recipe_dir, name)
    for document in chain:
        _check(document)
    document = chain[0]
    options = _merged(chain, "Options")
    given = _complete(chain, "Profile", PROFILE)
    model = _complete(chain, "Model", MODEL)
    bench = _complete(chain, "Bench", BENCH)
    gpus: int = given["Gpus"]
    _check_whole(document, options, gpus)
    return Profile(
        name=name,
        description=given["Description"],
        model=Model(
            repository=model["Repository"],
            revision=model["Revision"] or None,
            path=model["Path"],
            shape=_merged(chain, "Model").get(_SHAPE, {}),
        ),
        served_name=options.pop("served-model-name"),
        task="embedding" if options.get("runner") == "pooling" else "completion",
        gpus=gpus,
        share=float(options.pop("gpu-memory-utilization", 0.0)),
        port=options.pop("port", Profile.port),
        host=options.pop("host", None),
        options=options,
        environment=_merged(chain, "Environment"),
        fallback=given["Fallback"] or None,
        bench=Bench(bench["InputTokens"], bench["OutputTokens"], tuple(bench["Concurrency"]), bench["Expected"]),
        source=str(document.path),
    )


def shared_environment(recipe_dir: Path, name: str = "common") -> Mapping[str, str]:
    """What the file that a recipe's profiles extend sets for the service; nothing when there is no such file."""
    if not (recipe_dir / "profiles" / f"{name}.toml").exists():
        return {}
    chain = _chain(recipe_dir, name)
    for document in chain:
        _check(document)
    return _merged(chain, "Environment")


def _chain(recipe_dir: Path, name: str) -> list[Document]:
    """The file of `name`, the one that it extends, and so on. Raises UsageError for one that is not there."""
    folder = recipe_dir / "profiles"
    if not re.fullmatch(NAME, name) or not (folder / f"{name}.toml").is_file():
        known = sorted(file.stem for file in folder.glob("*.toml"))
        hint = did_you_mean(name, known) or (f"known are {', '.join(known)}" if known else None)
        raise UsageError(f"no profile {name!a}", where=folder, hint=hint)
    found = [read(folder / f"{name}.toml")]
    while (base := _extends(found[-1])) is not None:
        place = ("Profile", "Extends")
        if not re.fullmatch(NAME, base) or not (folder / f"{base}.toml").is_file():
            known = [file.stem for file in sorted(folder.glob("*.toml"))]
            raise found[-1].error(f"there is no {base!a} to extend", place, hint=did_you_mean(base, known))
        if any(document.path == folder / f"{base}.toml" for document in found):
            raise found[-1].error("it extends itself in the end", place)
        found.append(read(folder / f"{base}.toml"))
    return found


def _extends(document: Document) -> str | None:
    own = document.data.get("Profile")
    base = own.get("Extends") if isinstance(own, dict) else None
    return base if isinstance(base, str) else None


def _check(document: Document) -> None:
    """Refuse what one file may not hold."""
    for name, value in document.data.items():
        if name not in TABLES:
            home = f"it belongs in {_HOMES[name]}" if name in _HOMES else did_you_mean(name, TABLES)
            hint = home or f"known are {', '.join(TABLES)}"
            raise document.error(f"unknown key {name!a} at the top", (name,), item=name, hint=hint)
        if not isinstance(value, dict):
            raise document.error(f"{name} must be a table", (name,), hint=f"write [{name}]")
    checker = Checker(document, document.path.parent, document.path.parent)
    for title, keys in (("Profile", PROFILE), ("Model", MODEL), ("Bench", BENCH)):
        checker.check(_table(document, title), keys, _HOMES)
    shape = document.data.get("Model", {}).get(_SHAPE, {})
    if not isinstance(shape, dict) or any(isinstance(value, _DATES) for value in _leaves(shape)):
        raise document.error("Shape is wrong: it must be a table as config.json has it", ("Model", _SHAPE))
    for title, wrong in (("Options", option_wrong), ("Environment", variable_wrong)):
        for name, value in document.data.get(title, {}).items():
            if says := wrong(name, value):
                raise document.error(f"{name!a} in [{title}] {says}", (title, name))


_DATES = (datetime.date, datetime.time)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def _table(document: Document, title: str) -> Table:
    values = {name: value for name, value in document.data.get(title, {}).items() if (title, name) != ("Model", _SHAPE)}
    return table(f"[{title}]", (title,), values)


def _complete(chain: Sequence[Document], title: str, keys: Sequence[Key]) -> dict[str, Any]:
    """The values of `[title]` from all files of the chain, with defaults."""
    found = _table(chain[-1], title)
    for document in reversed(chain[:-1]):
        found = _table(document, title).over(found)
    return Checker(chain[0], chain[0].path.parent, chain[0].path.parent).complete(found, keys)


def _merged(chain: Sequence[Document], title: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for document in reversed(chain):
        values |= document.data.get(title, {})
    return values


def _check_whole(document: Document, options: Mapping[str, Any], gpus: int) -> None:
    """Refuse options that miss something, or do not go with the number of cards."""
    place = ("Options",)
    if "served-model-name" not in options:
        hint = "the name that clients ask for"
        raise document.error("[Options] has no served-model-name", place, hint=hint)
    if gpus and "gpu-memory-utilization" not in options:
        hint = "a share of the card's whole memory, such as 0.90"
        raise document.error("[Options] has no gpu-memory-utilization", place, hint=hint)
    cards = options.get("tensor-parallel-size", 1) * options.get("pipeline-parallel-size", 1)
    if cards != max(gpus, 1):
        what = f"Gpus is {gpus}, and tensor-parallel-size times pipeline-parallel-size is {cards}"
        raise document.error(what, ("Profile", "Gpus"))
