"""From recipe.toml to an immutable, validated recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import UsageError
from builder.recipe.document import Document, read
from builder.recipe.keys import Key, KindInfo
from builder.recipe.model import Distribution, Recipe, Stage, Target, Url, Venv
from builder.recipe.settings import AFTER, ARCHITECTURES, ARCHIVES, SECTIONS
from builder.recipe.tables import Checker, Table, did_you_mean, file_values, source, texts
from builder.recipe.variants import Parts, apply, split, whole

FILE = "recipe.toml"

Settings = dict[str, Any]
"""A recipe with one variant applied, in the recipe's own sections and keys, defaults filled in."""

_KEYS = {section.name: section.keys for section in SECTIONS}


@dataclass(frozen=True)
class Resolved:
    """A recipe with each of its variants applied; a recipe without variants has one, called ""."""

    path: Path
    folder: Path
    default: str | None
    settings: Mapping[str, Settings]

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants, in the order of the file."""
        return tuple(name for name in self.settings if name)

    def choose(self, variant: str | None) -> str:
        """The variant that `variant` stands for, None being the default. Raises UsageError when there is none."""
        chosen = variant if variant is not None else self.default if self.variants else ""
        if chosen is None:
            raise UsageError(
                "has no DefaultVariant", where=self.path, hint=f"choose --variant: {', '.join(self.variants)}"
            )
        if chosen not in self.settings:
            listed = f"it has {', '.join(self.variants)}" if self.variants else "it has none"
            hint = did_you_mean(chosen, self.variants) or listed
            raise UsageError(f'has no variant "{chosen}"', where=self.path, hint=hint)
        return chosen


def load(path: Path, kinds: Mapping[str, KindInfo], variant: str | None = None) -> Recipe:
    """The recipe at `path` (recipe.toml or its folder) with one variant applied; None is its DefaultVariant.

    The whole recipe is validated, whichever variant is asked for. Raises UsageError with file and line.
    """
    resolved = resolve(path, kinds)
    return build(resolved, resolved.choose(variant))


def resolve(path: Path, kinds: Mapping[str, KindInfo]) -> Resolved:
    """The recipe at `path` with every variant applied, all of it validated. Raises UsageError with file and line."""
    document = read(file := _file(path))
    folder = file.parent.absolute()
    real = folder.resolve()
    checker = Checker(document, folder, real.parent if real.parent.name == "recipes" else real)
    base, variants = split(document)
    for parts in (base, *variants.values()):
        _check(checker, parts, base, kinds, is_variant=parts is not base)
    applied = {name: apply(document, base, parts) for name, parts in variants.items()} or {"": base}
    settings = {name: _settle(checker, parts, kinds) for name, parts in applied.items()}
    default = _default(document, base, variants)
    resolved = Resolved(file, folder, default, settings)
    _refuse_shared_lock_ids(resolved)
    return resolved


def build(resolved: Resolved, variant: str) -> Recipe:
    """The recipe that `variant`, one of those in `resolved`, describes."""
    settings = resolved.settings[variant]
    target = settings["Target"]
    return Recipe(
        directory=resolved.folder,
        name=settings["Output"]["ImageId"],
        version=settings["Output"]["ImageVersion"],
        variant=variant,
        variants=resolved.variants,
        source_date_epoch=settings["Content"]["SourceDateEpoch"],
        compression_level=settings["Output"]["CompressLevel"],
        distribution=_distribution(settings["Distribution"]),
        target=None
        if target is None
        else Target(target["Name"], target["ComputeCapability"], target["Devices"], target["MemoryMiB"]),
        venvs=tuple(_venv(resolved, variant, venv) for venv in settings["Venv"]),
        urls=tuple(_url(resolved, variant, url) for url in settings["Url"]),
        stages=tuple(_stage(resolved, variant, stage) for stage in settings["Stage"]),
    )


def named_files(recipe: Recipe, kinds: Mapping[str, KindInfo]) -> tuple[Path, ...]:
    """Every file and folder of the recipe that its stages name, once each, in order of first use."""
    names = {
        source(text): None
        for stage in recipe.stages
        for key, value in file_values(stage.params, kinds[stage.kind].keys)
        for text in texts(value)
        if not text.startswith("url:")
    }
    return tuple(recipe.directory / name for name in names)


def stage_keys(kind: KindInfo) -> tuple[Key, ...]:
    """All keys of a stage of this kind: those of every stage, then its own."""
    return (*_KEYS["Stage"], *kind.keys)


def _file(path: Path) -> Path:
    """The recipe.toml that `path` stands for. Raises UsageError, naming those that there are, when missing."""
    try:
        file = path / FILE if path.is_dir() else path
        if file.exists():
            return file
        beside = file.parent.parent if path.name == FILE else file.parent
        recipes = [str(recipe.parent) for recipe in sorted(beside.glob(f"*/{FILE}"))]
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=path) from error
    listed = f"recipes there are {', '.join(recipes)}" if recipes else f"give a folder that holds a {FILE}"
    near = None if path.is_dir() else did_you_mean(str(path).removesuffix(f"/{FILE}"), recipes)
    raise UsageError("No such file or directory", where=file, hint=near or listed)


def _check(checker: Checker, parts: Parts, base: Parts, kinds: Mapping[str, KindInfo], *, is_variant: bool) -> None:
    """Every table as it stands, whether or not a variant replaces it."""
    homes = {key.name: section.title for section in SECTIONS if not section.many for key in section.keys}
    for name, section in parts.sections.items():
        checker.check(section, _KEYS[name], homes)
    for array in ("Venv", "Url"):
        for member in parts.arrays[array]:
            checker.check(member, _KEYS[array], {})
    for stage in parts.arrays["Stage"]:
        kind = _kind(checker.document, whole(checker.document, base, stage) if is_variant else stage, kinds)
        others = {
            key.name: f'a stage with Kind "{other.name}"'
            for other in kinds.values()
            for key in other.keys
            if other.name != kind.name
        }
        checker.check(stage, (*stage_keys(kind), AFTER) if is_variant else stage_keys(kind), others)


def _kind(document: Document, stage: Table, kinds: Mapping[str, KindInfo]) -> KindInfo:
    name = stage.values.get("Kind")
    listed = f"known are {', '.join(kinds)}"
    if name is None:
        raise document.error(f"{stage.title} has no Kind", stage.place, hint=listed)
    if not isinstance(name, str) or name not in kinds:
        hint = did_you_mean(name, kinds) if isinstance(name, str) else None
        raise document.error(f'unknown Kind "{name}" in {stage.title}', stage.places["Kind"], hint=hint or listed)
    return kinds[name]


def _settle(checker: Checker, parts: Parts, kinds: Mapping[str, KindInfo]) -> Settings:
    """The final values of a recipe whose tables have been checked one by one."""
    settings: Settings = {}
    for section in SECTIONS:
        if section.many:
            members = parts.arrays[section.name]
            if section.required and not members:
                raise checker.document.error(f"has no {section.title}", (), hint=section.help)
            if section.name == "Stage" and all(member.values.get("Skip") for member in members):
                raise checker.document.error("every [[Stage]] is skipped", members[0].place)
            settings[section.name] = [checker.complete(m, _member_keys(section.name, m, kinds)) for m in members]
        elif section.name in parts.sections:
            settings[section.name] = checker.complete(parts.sections[section.name], section.keys)
        elif section.required:
            raise checker.document.error(f"has no {section.title}", (), hint=section.help)
        else:
            settings[section.name] = None
    _settle_distribution(checker.document, parts.sections["Distribution"], settings["Distribution"])
    names = {array: tuple(parts.named(array)) for array in parts.arrays}
    for array, members in parts.arrays.items():
        for member in members:
            checker.references(member, _member_keys(array, member, kinds), names)
    return settings


def _member_keys(array: str, member: Table, kinds: Mapping[str, KindInfo]) -> Sequence[Key]:
    return stage_keys(kinds[member.values["Kind"]]) if array == "Stage" else _KEYS[array]


def _settle_distribution(document: Document, table: Table, settings: Settings) -> None:
    archive = ARCHIVES[settings["Distribution"]]
    release = settings["Release"]
    if release not in archive.releases:
        raise document.error(
            f'Release in {table.title} is "{release}", which is not allowed for {settings["Distribution"]}',
            table.places["Release"],
            hint=did_you_mean(release, archive.releases) or f"it may be {', '.join(archive.releases)}",
        )
    settings["Mirror"] = settings["Mirror"] or archive.mirror
    settings["SecurityMirror"] = settings["SecurityMirror"] or archive.security_mirror


def _default(document: Document, base: Parts, variants: Mapping[str, Parts]) -> str | None:
    section = base.sections.get("Recipe")
    default: str | None = section.values.get("DefaultVariant") if section else None
    if section and default is not None and default not in variants:
        raise document.error(
            f'DefaultVariant is "{default}", and there is no [Variant.{default}]',
            section.places["DefaultVariant"],
            hint=did_you_mean(default, variants),
        )
    return default


def _origin(resolved: Resolved, variant: str, array: str, name: str) -> str:
    """The variant, unless the member of this name asks the same of the lock in every variant."""
    here = _asked(resolved.settings[variant], array, name)
    return "" if all(_asked(settings, array, name) == here for settings in resolved.settings.values()) else variant


def _asked(settings: Settings, array: str, name: str) -> Any:
    """All that decides what the lock holds for a member, None when there is no such member.

    Which packages come with those that a stage asks for depends on the stages below that ask for packages too.
    """
    below: list[Settings] = []
    for member in settings[array]:
        own = {key: value for key, value in member.items() if key not in _NOT_LOCKED}
        if member["Name"] == name:
            return (own, settings["Distribution"], below if "Packages" in own else []) if array == "Stage" else own
        if "Packages" in own and not member["Skip"]:
            below.append(own)
    return None


_NOT_LOCKED = ("Skip", "MemoryMiB", "TimeoutSeconds")


def _refuse_shared_lock_ids(resolved: Resolved) -> None:
    """A stage `a-b` of every variant and the stage `a` of variant `b` would have one name in the lock."""
    for array in ("Stage", "Venv", "Url"):
        taken: dict[str, tuple[str, str]] = {}
        for variant, settings in resolved.settings.items():
            for name in (member["Name"] for member in settings[array]):
                origin = _origin(resolved, variant, array, name)
                lock_id = f"{name}-{origin}" if origin else name
                if taken.setdefault(lock_id, (name, origin)) != (name, origin):
                    other = taken[lock_id][0]
                    raise UsageError(
                        f'[[{array}]] "{other}" and "{name}" would both be "{lock_id}" in the lock',
                        where=resolved.path,
                        hint="rename one",
                    )


def _distribution(settings: Settings) -> Distribution:
    return Distribution(
        name=settings["Distribution"],
        release=settings["Release"],
        architecture=ARCHITECTURES[settings["Architecture"]],
        mirror=settings["Mirror"],
        security_mirror=settings["SecurityMirror"],
        components=tuple(dict.fromkeys(("main", *settings["Repositories"]))),
    )


def _venv(resolved: Resolved, variant: str, settings: Settings) -> Venv:
    return Venv(
        name=settings["Name"],
        path=settings["Path"],
        python=settings["Python"],
        requirements=tuple(settings["Requirements"]),
        constraints=tuple(settings["Constraints"]),
        overrides=tuple(settings["Overrides"]),
        exclude_newer=settings["ExcludeNewer"],
        index=settings["Index"],
        origin=_origin(resolved, variant, "Venv", settings["Name"]),
    )


def _url(resolved: Resolved, variant: str, settings: Settings) -> Url:
    return Url(
        name=settings["Name"],
        url=settings["Url"],
        sha256=settings["Sha256"],
        size=settings["Size"],
        origin=_origin(resolved, variant, "Url", settings["Name"]),
    )


def _stage(resolved: Resolved, variant: str, settings: Settings) -> Stage:
    common = {key.name for key in _KEYS["Stage"]}
    return Stage(
        name=settings["Name"],
        kind=settings["Kind"],
        params={key: value for key, value in settings.items() if key not in common},
        skip=settings["Skip"] or None,
        origin=_origin(resolved, variant, "Stage", settings["Name"]),
        memory_mib=settings["MemoryMiB"],
        seconds=settings["TimeoutSeconds"],
    )
