"""What variants change, and the names under which the lock keeps what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from builder.errors import UsageError
from builder.recipe import load
from builder.recipe.keys import KindInfo

Write = Callable[[str], Path]
Kinds = Mapping[str, KindInfo]

BASE = """\
[Recipe]
DefaultVariant = "one"
[Distribution]
Distribution = "debian"
Release = "bookworm"
[Output]
ImageId = "small"
ImageVersion = "1"
[Content]
SourceDateEpoch = 1760572800
[[Url]]
Name = "tool"
Url = "https://example.org/tool-1"
[[Stage]]
Name = "base"
Kind = "packages"
Packages = ["systemd"]
[[Stage]]
Name = "extra"
Kind = "packages"
Packages = ["curl"]
MemoryMiB = 1024
[[Stage]]
Name = "system"
Kind = "files"
ExtraTrees = ["files:/"]
[Variant.one]
"""


def test_the_default_is_taken_and_both_are_listed(recipe: Write, kinds: Kinds) -> None:
    loaded = load(recipe(BASE + "[Variant.two.Output]\nImageVersion = '2'\n"), kinds)
    assert (loaded.variant, loaded.variants, loaded.full_name, loaded.version) == (
        "one",
        ("one", "two"),
        "small-one",
        "1",
    )
    other = load(loaded.directory, kinds, "two")
    assert (other.full_name, other.version, other.name) == ("small-two", "2", "small")
    assert [stage.lock_id for stage in other.stages] == ["base", "extra", "system"]


def test_a_stage_with_a_kind_is_replaced_whole_in_its_place(recipe: Write, kinds: Kinds) -> None:
    text = BASE + '[[Variant.two.Stage]]\nName = "extra"\nKind = "files"\nExtraTrees = ["files:/x"]\n'
    one, two = (load(recipe(text), kinds, name) for name in ("one", "two"))
    assert [stage.name for stage in two.stages] == ["base", "extra", "system"]
    assert (two.stages[1].kind, two.stages[1].memory_mib) == ("files", 16384)
    assert "Packages" not in two.stages[1].params
    assert [one.stages[1].lock_id, two.stages[1].lock_id] == ["extra-one", "extra-two"]
    assert one.stages[0].lock_id == two.stages[0].lock_id == "base"


def test_a_stage_without_a_kind_changes_only_its_keys(recipe: Write, kinds: Kinds) -> None:
    text = BASE + '[[Variant.two.Stage]]\nName = "extra"\nPackages = ["wget"]\n'
    stage = load(recipe(text), kinds, "two").stages[1]
    assert (stage.kind, stage.params["Packages"], stage.memory_mib) == ("packages", ["wget"], 1024)
    assert stage.lock_id == "extra-two"


def test_limits_and_skipping_leave_the_lock_alone(recipe: Write, kinds: Kinds) -> None:
    text = BASE + '[[Variant.two.Stage]]\nName = "extra"\nMemoryMiB = 2048\nSkip = "not here"\n'
    stage = load(recipe(text), kinds, "two").stages[1]
    assert (stage.memory_mib, stage.skip, stage.lock_id) == (2048, "not here", "extra")


def test_packages_over_other_packages_are_locked_apart(recipe: Write, kinds: Kinds) -> None:
    text = BASE + '[[Variant.two.Stage]]\nName = "base"\nPackages = ["sysvinit"]\n'
    assert [stage.lock_id for stage in load(recipe(text), kinds, "two").stages] == ["base-two", "extra-two", "system"]
    skipped = BASE + '[[Variant.two.Stage]]\nName = "base"\nSkip = "not here"\n'
    assert [stage.lock_id for stage in load(recipe(skipped), kinds, "two").stages] == ["base", "extra-two", "system"]


def test_new_stages_follow_the_one_they_name(recipe: Write, kinds: Kinds) -> None:
    new = '[[Variant.two.Stage]]\nName = "{}"\nKind = "files"\n{}\n'
    text = BASE + "".join(
        new.format(name, f'After = "{after}"' if after else "")
        for name, after in (("d", ""), ("c", "b"), ("a", "base"), ("b", "base"))
    )
    two = load(recipe(text), kinds, "two")
    assert [stage.name for stage in two.stages] == ["base", "a", "b", "c", "extra", "system", "d"]
    assert two.stages[1].lock_id == "a-two"
    assert "After" not in two.stages[1].params


def test_urls_are_added_and_replaced_by_name(recipe: Write, kinds: Kinds) -> None:
    url = '[[Variant.two.Url]]\nName = "{}"\nUrl = "https://example.org/{}"\n'
    two = load(recipe(BASE + url.format("tool", "tool-2") + url.format("new", "new")), kinds, "two")
    assert [(each.name, each.url, each.lock_id) for each in two.urls] == [
        ("tool", "https://example.org/tool-2", "tool-two"),
        ("new", "https://example.org/new", "new-two"),
    ]


def test_another_distribution_is_locked_apart(recipe: Write, kinds: Kinds) -> None:
    two = load(recipe(BASE + '[Variant.two.Distribution]\nRelease = "trixie"\n'), kinds, "two")
    assert [stage.lock_id for stage in two.stages] == ["base-two", "extra-two", "system-two"]


WRONG = {
    "unknown key": (
        '[Variant.one.Output]\nImageVersoin = "2"\n',
        '29: unknown key "ImageVersoin" in [Variant.one.Output]',
    ),
    "unknown section": ("[Variant.two.Otput]\n", '28: unknown section "Otput"; did you mean "Output"?'),
    "the recipe itself": ("[Variant.two.Recipe]\nDescription = ''\n", "28: [Recipe] cannot differ between variants"),
    "wrong name": ("[Variant.'Two x']\n", '28: the name of variant "Two x" must be lower-case'),
    "unknown stage": (
        '[[Variant.two.Stage]]\nName = "exta"\nMemoryMiB = 100\n',
        '28: [[Variant.two.Stage]] "exta" has no Kind, and no [[Stage]] has this name; did you mean "extra"?',
    ),
    "key of another kind": (
        '[[Variant.two.Stage]]\nName = "extra"\nExtraTrees = ["files:/"]\n',
        '30: unknown key "ExtraTrees" in [[Variant.two.Stage]] "extra"; it belongs in a stage with Kind "files"',
    ),
    "after a replaced one": (
        '[[Variant.two.Stage]]\nName = "extra"\nAfter = "base"\n',
        '30: [[Variant.two.Stage]] "extra" has After, which is for new stages only',
    ),
    "after nothing": (
        '[[Variant.two.Stage]]\nName = "new"\nKind = "files"\nAfter = "bsae"\n',
        '31: [[Variant.two.Stage]] "new" comes After "bsae", which is no stage of this variant',
    ),
    "after itself": (
        '[[Variant.two.Stage]]\nName = "new"\nKind = "files"\nAfter = "new"\n',
        '31: [[Variant.two.Stage]] "new" comes After "new"',
    ),
    "twice": (
        '[[Variant.two.Stage]]\nName = "extra"\n[[Variant.two.Stage]]\nName = "extra"\n',
        '31: [[Variant.two.Stage]] "extra" is there twice; the first is on line 28',
    ),
    "one name in the lock": (
        '[[Variant.two.Stage]]\nName = "extra"\nPackages = ["wget"]\n[[Stage]]\nName = "extra-one"\nKind = "files"\n',
        '[[Stage]] "extra" and "extra-one" would both be "extra-one" in the lock; rename one',
    ),
    "missing file": (
        '[[Variant.two.Stage]]\nName = "system"\nExtraTrees = ["no:/"]\n',
        '30: ExtraTrees in [[Variant.two.Stage]] "system" names "no"',
    ),
}


@pytest.mark.parametrize(("lines", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_variant_is_found_whichever_is_asked_for(recipe: Write, kinds: Kinds, lines: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(recipe(BASE + lines), kinds, "one")
    assert message in str(raised.value)


def test_asking_for_a_variant_that_is_not_there(recipe: Write, kinds: Kinds, minimal: str) -> None:
    folder = recipe(BASE)
    with pytest.raises(UsageError, match=r'recipe\.toml: has no variant "oen"; did you mean "one"\?'):
        load(folder, kinds, "oen")
    recipe(BASE.replace('"one"', '"on"', 1))
    with pytest.raises(UsageError, match=r'recipe\.toml:2: DefaultVariant is "on", .* did you mean "one"\?'):
        load(folder, kinds)
    recipe(BASE.replace('DefaultVariant = "one"', ""))
    with pytest.raises(UsageError, match="has no DefaultVariant; choose --variant: one"):
        load(folder, kinds)
    recipe(minimal)
    with pytest.raises(UsageError, match='has no variant "one"; it has none'):
        load(folder, kinds, "one")
