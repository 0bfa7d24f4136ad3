"""What `load` makes of a recipe, and what it says of a wrong one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import UsageError
from builder.recipe import load
from builder.recipe.keys import KindInfo

Write = Callable[[str], Path]
Kinds = Mapping[str, KindInfo]

VENV = """
[[Venv]]
Name = "main"
Path = "/opt/main"
Python = "/usr/bin/python3.11"
Requirements = ["httpx==0.28.1"]
ExcludeNewer = "2025-10-16T00:00:00Z"
"""


def test_a_minimal_recipe_is_complete(recipe: Write, kinds: Kinds, minimal: str) -> None:
    folder = recipe(minimal)
    loaded = load(folder, kinds)
    assert loaded == load(folder / "recipe.toml", kinds)
    assert (loaded.full_name, loaded.version, loaded.variant, loaded.variants) == ("small", "1", "", ())
    assert (loaded.source_date_epoch, loaded.compression_level) == (1760572800, 3)
    assert loaded.directory == folder
    assert loaded.target is None
    assert loaded.distribution.architecture == "amd64"
    assert loaded.distribution.mirror == "http://deb.debian.org/debian"
    assert loaded.distribution.components == ("main",)
    (base,) = loaded.stages
    assert (base.name, base.kind, base.skip, base.memory_mib, base.seconds) == ("base", "packages", None, 16384, 3600)
    assert base.params == {"Packages": ["systemd"], "WithDocs": False}
    assert base.lock_id == "base"


def test_ubuntu_comes_from_its_own_mirrors(recipe: Write, kinds: Kinds, minimal: str) -> None:
    text = minimal.replace('"debian"\nRelease = "bookworm"', '"ubuntu"\nRelease = "noble"\nRepositories = ["universe"]')
    distribution = load(recipe(text), kinds).distribution
    assert distribution.mirror == "http://archive.ubuntu.com/ubuntu"
    assert distribution.security_mirror == "http://security.ubuntu.com/ubuntu"
    assert distribution.components == ("main", "universe")


def test_target_venv_url_and_defaults_of_a_kind(recipe: Write, kinds: Kinds, minimal: str) -> None:
    text = f"""{minimal}{VENV}
[Target]
Name = "GeForce RTX 5060 Ti"
ComputeCapability = "12.0"
Devices = 2
MemoryMiB = 16311
[[Url]]
Name = "tool"
Url = "https://example.org/tool.tar.gz"
[[Stage]]
Name = "wheels"
Kind = "wheels"
Venv = "main"
Skip = "not now"
[[Stage]]
Name = "system"
Kind = "files"
ExtraTrees = ["files:/", "url:tool:/opt/tool"]
Users = [{{ Name = "vllm" }}]
"""
    loaded = load(recipe(text), kinds)
    assert loaded.target is not None
    assert (loaded.target.compute_capability, loaded.target.devices, loaded.target.memory_mib) == ("12.0", 2, 16311)
    assert loaded.venv("main").index == "https://pypi.org/simple"
    assert (loaded.url("tool").sha256, loaded.url("tool").size) == (None, None)
    _, wheels, system = loaded.stages
    assert wheels.params == {"Venv": "main", "Only": [], "GpuCode": "all", "Compile": False}
    assert wheels.skip == "not now"
    assert system.params["Users"] == [{"Name": "vllm", "Uid": 900, "Keys": None}]
    assert system.params["Masks"] == {}


def add(lines: str) -> Callable[[str], str]:
    """The recipe with more lines, which begin on line 13."""
    return lambda text: text + lines


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


STAGE = '[[Stage]]\nName = "more"\nKind = "files"\n'
WRONG = {
    "unknown key": (
        swap("Packages", "Packges"),
        '12: unknown key "Packges" in [[Stage]] "base"; did you mean "Packages"?',
    ),
    "key of another section": (
        swap('ImageVersion = "1"', 'SourceDateEpoch = 1\nImageVersion = "1"'),
        '6: unknown key "SourceDateEpoch" in [Output]; it belongs in [Content]',
    ),
    "key of another kind": (
        add(f'{STAGE}Packages = ["vim"]\n'),
        '16: unknown key "Packages" in [[Stage]] "more"; it belongs in a stage with Kind "packages"',
    ),
    "nothing near": (
        swap("SourceDateEpoch", "Zzz"),
        '8: unknown key "Zzz" in [Content]; known are SourceDateEpoch',
    ),
    "unknown section": (swap("[Output]", "[Outptu]"), '4: unknown section "Outptu"; did you mean "Output"?'),
    "key outside": (lambda text: "Verbose = true\n" + text, '1: key "Verbose" stands in no section'),
    "section as array": (swap("[Output]", "[[Output]]"), "4: Output must be one table; write [Output]"),
    "array as section": (swap("[[Stage]]", "[Stage]"), "9: Stage must be an array of tables; write [[Stage]]"),
    "no section": (swap("[Content]\nSourceDateEpoch = 1760572800\n", ""), "1: has no [Content]"),
    "no stage": (lambda text: text[: text.index("[[Stage]]")], "1: has no [[Stage]]"),
    "only skipped stages": (add('Skip = "later"\n'), "9: every [[Stage]] is skipped"),
    "required": (swap('ImageId = "small"\n', ""), "4: [Output] has no ImageId"),
    "required of a kind": (swap('Packages = ["systemd"]', ""), '9: [[Stage]] "base" has no Packages'),
    "number for text": (swap('"1"', "1"), "6: ImageVersion in [Output] must be text, not 1; put it in quotes"),
    "text for list": (
        swap('["systemd"]', '"systemd"'),
        '12: Packages in [[Stage]] "base" must be list of text, not "systemd"; put it in brackets',
    ),
    "list of numbers": (
        swap('["systemd"]', "[1]"),
        '12: Packages in [[Stage]] "base" must be list of text, not a list',
    ),
    "boolean for number": (swap("1760572800", "true"), "8: SourceDateEpoch in [Content] must be int, not true"),
    "time for text": (
        add(VENV.replace('"2025-10-16T00:00:00Z"', "2025-10-16T00:00:00Z")),
        '19: ExcludeNewer in [[Venv]] "main" must be text, not a date or time; put it in quotes',
    ),
    "time not in UTC": (
        add(VENV.replace("00Z", "00+02:00")),
        '19: ExcludeNewer in [[Venv]] "main" must be a time in UTC',
    ),
    "no such day": (add(VENV.replace("10-16", "02-30")), '19: ExcludeNewer in [[Venv]] "main" must be a time in UTC'),
    "choice": (
        swap('"debian"', '"debain"'),
        '2: Distribution in [Distribution] is "debain", which is not allowed; did you mean "debian"?',
    ),
    "release of another distribution": (
        swap("bookworm", "noble"),
        '3: Release in [Distribution] is "noble", which is not allowed for debian; it may be bookworm, trixie',
    ),
    "range": (
        swap("[Content]", "CompressLevel = 40\n[Content]"),
        "7: CompressLevel in [Output] must be from 1 to 22, not 40",
    ),
    "name with a slash": (swap('"small"', '"a/b"'), "5: ImageId in [Output] must be letters, digits"),
    "password in a URL": (
        swap("[Output]", 'Mirror = "http://me:secret@example.org/debian"\n[Output]'),
        "4: Mirror in [Distribution] must not hold a user name or password",
    ),
    "unknown kind": (
        swap('"packages"', '"pakages"'),
        '11: unknown Kind "pakages" in [[Stage]] "base"; did you mean "packages"?',
    ),
    "no kind": (swap('Kind = "packages"\n', ""), '9: [[Stage]] "base" has no Kind; known are packages, wheels, files'),
    "no name": (swap('Name = "base"\n', ""), "9: [[Stage]] has no Name"),
    "twice": (
        add('[[Stage]]\nName = "base"\nKind = "files"\n'),
        '14: [[Stage]] "base" is there twice; the first is on line 9',
    ),
    "no requirement": (
        add(VENV.replace('["httpx==0.28.1"]', '[\n  "httpx==0.28.1",\n  "anyio=>4", # here\n]')),
        '20: Requirements in [[Venv]] "main" has "anyio=>4", which is no requirement (PEP 508): ',
    ),
    "no constraint": (
        add(f'{VENV}Constraints = ["-r other.txt"]\n'),
        '20: Constraints in [[Venv]] "main" has "-r other.txt", which is no requirement (PEP 508): ',
    ),
    "no override": (add(f'{VENV}Overrides = [""]\n'), '20: Overrides in [[Venv]] "main" has "", which is no'),
    "no such venv": (
        add(f'{VENV}[[Stage]]\nName = "w"\nKind = "wheels"\nVenv = "mian"\n'),
        '23: Venv in [[Stage]] "w" names "mian", and there is no [[Venv]] of this name; did you mean "main"?',
    ),
    "no such url": (
        add(f'{STAGE}ExtraTrees = [\n  "files:/",\n  "url:tool:/opt",\n]\n'),
        '18: ExtraTrees in [[Stage]] "more" names "tool", and there is no [[Url]] of this name',
    ),
    "missing file": (
        add(f'{STAGE}ExtraTrees = [\n  "files:/", # here\n  "flies:/",\n]\n'),
        '18: ExtraTrees in [[Stage]] "more" names "flies", which is not in ',
    ),
    "absolute file": (
        add(f'{STAGE}ExtraTrees = ["/etc:/"]\n'),
        '16: ExtraTrees in [[Stage]] "more" names "/etc": a path',
    ),
    "file outside": (add(f'{STAGE}ExtraTrees = ["../outside:/"]\n'), 'names "../outside", which lies outside of '),
    "link to the outside": (add(f'{STAGE}ExtraTrees = ["out:/"]\n'), 'names "out", which lies outside of '),
    "file that names nothing": (add(f'{STAGE}ExtraTrees = [":/"]\n'), 'has an entry that names no file: ":/"'),
    "NUL in a file's name": (add(f'{STAGE}ExtraTrees = ["a\\u0000b"]\n'), 'names "a\\u0000b", which cannot be read'),
    "missing file in an inner table": (
        add(f'{STAGE}Users = [\n  {{ Name = "a", Keys = "no" }},\n]\n'),
        '17: Keys in Users in [[Stage]] "more" names "no", which is not in ',
    ),
    "unknown key in an inner table": (
        add(f'{STAGE}Users = [\n  {{ Name = "a" }},\n  {{ Nmae = "b" }},\n]\n'),
        '18: unknown key "Nmae" in Users in [[Stage]] "more"; did you mean "Name"?',
    ),
    "required in an inner table": (
        add(f"{STAGE}Users = [{{ Uid = 1 }}]\n"),
        '16: Users in [[Stage]] "more" has no Name',
    ),
    "what the kind refuses": (
        add(f'{STAGE}Users = [{{ Name = "a" }}, {{ Name = "a" }}]\n'),
        '16: Users in [[Stage]] "more" is wrong: two of one name',
    ),
    "no TOML": (swap('"small"', '"small'), "5: is not TOML: "),
    "key twice": (swap('ImageId = "small"', 'ImageId = "small"\nImageId = "other"'), "6: is not TOML: "),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_one_line_with_its_place(
    recipe: Write, kinds: Kinds, minimal: str, change: Callable[[str], str], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        load(recipe(change(minimal)), kinds)
    said = str(raised.value)
    assert message in said
    assert "recipe.toml:" in said
    assert "\n" not in said
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("smok", 'did you mean "{}/smoke"?'),
        ("smok/recipe.toml", 'did you mean "{}/smoke"?'),
        ("", "recipes there are {0}/big, {0}/smoke"),
        ("quite/other", "give a folder that holds a recipe.toml"),
    ],
)
def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path, kinds: Kinds, asked: str, hint: str) -> None:
    for name in ("smoke", "big"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    with pytest.raises(UsageError) as raised:
        load(tmp_path / asked, kinds)
    assert raised.value.hint == hint.format(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path, kinds: Kinds) -> None:
    with pytest.raises(UsageError, match=r"recipe\.toml: No such file"):
        load(tmp_path / "recipe.toml", kinds)
    with pytest.raises(UsageError, match=r"recipe\.toml: No such file"):
        load(tmp_path, kinds)
    (tmp_path / "recipe.toml").write_bytes(b"[Output]\nImageId = '\xff'\n")
    with pytest.raises(UsageError, match=r"recipe\.toml:2: is not UTF-8"):
        load(tmp_path, kinds)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "\ufeff[Output]\n", "a = '\0'"])
def test_hostile_text_is_an_error_like_any_other(recipe: Write, kinds: Kinds, text: str) -> None:
    with pytest.raises(UsageError, match=r"recipe\.toml"):
        load(recipe(text), kinds)


def test_a_device_is_no_file_of_a_recipe(recipe: Write, kinds: Kinds, minimal: str) -> None:
    folder = recipe(minimal + f'{STAGE}ExtraTrees = ["pipe:/"]\n')
    os.mkfifo(folder / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        load(folder, kinds)


def test_recipes_of_one_project_may_share_a_folder(tmp_path: Path, kinds: Kinds, minimal: str) -> None:
    folder = tmp_path / "recipes/small"
    folder.mkdir(parents=True)
    (tmp_path / "recipes/common").mkdir()
    (tmp_path / "secret").mkdir()
    (folder / "recipe.toml").write_text(minimal + f'{STAGE}ExtraTrees = ["../common:/"]\n')
    assert load(folder, kinds).stages[1].params["ExtraTrees"] == ["../common:/"]
    (folder / "recipe.toml").write_text(minimal + f'{STAGE}ExtraTrees = ["../../secret:/"]\n')
    with pytest.raises(UsageError, match="lies outside of"):
        load(folder, kinds)


WHOLE = f"""\
[Recipe]
DefaultVariant = "a"
[Distribution]
Distribution = "debian"
Release = "bookworm"
Repositories = ["contrib"]
[Output]
ImageId = "small"
ImageVersion = "1"
[Content]
SourceDateEpoch = 1760572800
[Target]
Name = "GPU"
ComputeCapability = "12.0"
MemoryMiB = 16311
{VENV}
[[Url]]
Name = "tool"
Url = "https://example.org/tool"
Size = 1
[[Stage]]
Name = "wheels"
Kind = "wheels"
Venv = "main"
{STAGE}
ExtraTrees = ["files:/", "url:tool:/opt"]
Users = [{{ Name = "a", Uid = 1 }}]
Masks = {{ a = "b" }}
[Variant.a.Output]
ImageVersion = "2"
[[Variant.a.Stage]]
Name = "more"
MemoryMiB = 100
[[Variant.a.Stage]]
Name = "new"
Kind = "files"
After = "more"
"""

JUNK = st.sampled_from(
    """
|1|-1|1.5|nan|true|"x"|""|[]|{}|[[]]|[{}]|["url:"]|["url:x"]|[""]|[1]|{ a = 1 }|2025-10-16|'\\'|"a\\nb"|"../.."
|999999999999999999999999999999|[Stage]|[[Variant]]|[Variant.a.b]
""".replace("\n", "").split("|")
)


def test_the_whole_recipe_is_right(recipe: Write, kinds: Kinds) -> None:
    assert [stage.name for stage in load(recipe(WHOLE), kinds).stages] == ["wheels", "more", "new"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, WHOLE.count("\n")), st.sampled_from(["value", "key", "line", "drop"]), JUNK),
        max_size=3,
    )
)
def test_whatever_is_wrong_is_a_usage_error(kinds: Kinds, edits: list[tuple[int, str, str]]) -> None:
    lines = WHOLE.split("\n")
    for number, what, junk in edits:
        name, _, value = lines[number].partition(" = ")
        lines[number] = {"value": f"{name} = {junk}", "key": f"x{name} = {value}", "line": junk, "drop": ""}[what]
    with TemporaryDirectory() as folder:
        Path(folder, "files").mkdir()
        Path(folder, "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
        with suppress(UsageError):
            load(Path(folder), kinds)
