"""`merge` and `resolve` against a model that is too simple to be wrong."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.tree import Entry, Index, clashes, merge, order, resolve

NAMES = ("a", "a-b", "b", "c")
PATHS = tuple(
    "/".join(parts) for parts in [(x,) for x in NAMES] + [(x, y) for x in NAMES for y in NAMES] + [("a", "b", "c")]
)


@st.composite
def layers(draw: st.DrawFn) -> list[Index]:
    return [_layer(draw, number) for number in range(draw(st.integers(1, 4)))]


def _layer(draw: st.DrawFn, number: int) -> Index:
    chosen = draw(
        st.dictionaries(st.sampled_from(PATHS), st.sampled_from(["dir", "file", "link", "whiteout", "opaque"]))
    )
    entries = {"": Entry("", "dir", mtime=number)}
    for path in sorted(chosen, key=order):
        parents = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
        if any(parent in entries and entries[parent].type != "dir" for parent in parents):
            continue
        for parent in parents:
            entries.setdefault(parent, Entry(parent, "dir", mtime=number))
        kind = chosen[path]
        entries[path] = Entry(
            path, "dir" if kind == "opaque" else kind, mtime=number, opaque=kind == "opaque", sha256=str(number)
        )
    found = [entries[path] for path in sorted(entries, key=order)]
    if number == 0:
        found = [entry for entry in found if entry.type != "whiteout"]
    files = [entry.path for entry in found if entry.type == "file"]
    if len(files) > 1 and draw(st.booleans()):
        found = [
            Entry(entry.path, "hardlink", target=files[0], mtime=number) if entry.path in files[1:] else entry
            for entry in found
        ]
    return Index.of(found)


def naive(indexes: list[Index]) -> dict[str, tuple[int, Entry]]:
    """Apply each layer on top of a dictionary, as one would by hand."""
    world: dict[str, tuple[int, Entry]] = {}

    def remove(path: str) -> None:
        for known in [known for known in world if known == path or known.startswith(f"{path}/")]:
            del world[known]

    for number, index in enumerate(indexes):
        for entry in index.entries:
            if entry.path and (
                entry.type != "dir" or entry.opaque or world.get(entry.path, (0, entry))[1].type != "dir"
            ):
                remove(entry.path)
            if entry.type != "whiteout":
                world[entry.path] = (number, entry)
    return world


@settings(max_examples=400, deadline=None)
@given(layers())
def test_merge_is_what_applying_the_layers_gives(indexes: list[Index]) -> None:
    merged = merge(indexes)
    got = {entry.path: (number, entry) for number, entries in enumerate(merged) for entry in entries}
    expected = naive(indexes)
    assert {path: number for path, (number, _) in got.items()} == {path: n for path, (n, _) in expected.items()}
    assert sum(map(len, merged)) == len(got)
    for entries in merged:
        files = {entry.path: entry for entry in entries if entry.type == "file"}
        for entry in entries:
            assert not entry.opaque
            assert entry.type != "whiteout"
            if entry.type == "hardlink":
                assert order(entry.target) < order(entry.path)
                assert entry.target in files
        assert [entry.path for entry in entries] == sorted((entry.path for entry in entries), key=order)
    for path, (number, entry) in got.items():
        original = expected[path][1]
        if original.type != "hardlink":
            assert (entry.type, entry.mtime, entry.sha256) == (original.type, original.mtime, original.sha256)
        else:
            assert entry.type in ("file", "hardlink")
            assert entry.type == "hardlink" or entry.sha256 == str(number)


def test_a_link_whose_first_name_is_hidden_becomes_the_file() -> None:
    root = Entry("", "dir")
    low = Index.of(
        [
            root,
            Entry("a", "file", 0o644, size=5, sha256="s"),
            Entry("b", "hardlink", target="a"),
            Entry("c", "hardlink", target="a"),
        ]
    )
    high = Index.of([root, Entry("a", "whiteout")])
    assert merge([low, high])[0] == [
        Entry("b", "file", 0o644, size=5, sha256="s"),
        Entry("c", "hardlink", target="b"),
    ]


@pytest.fixture
def stack(tmp_path: Path) -> list[Path]:
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "usr/lib").mkdir(parents=True)
    (high / "usr/lib").mkdir(parents=True)
    (low / "lib").symlink_to("usr/lib")
    (low / "usr/lib/libc.so").write_text("low")
    (low / "usr/lib/only-low").write_text("low")
    (high / "usr/lib/libc.so").write_text("high")
    (high / "abs").symlink_to("/lib/only-low")
    (high / "up").symlink_to("../../../../usr/lib/libc.so")
    (high / "loop").symlink_to("loop")
    (high / "usr/rel").symlink_to("./../lib/../lib/libc.so")
    return [low, high]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/usr/lib/libc.so", "high/usr/lib/libc.so"),
        ("usr/lib/only-low", "low/usr/lib/only-low"),
        ("/lib/libc.so", "high/usr/lib/libc.so"),
        ("/abs", "low/usr/lib/only-low"),
        ("/up", "high/usr/lib/libc.so"),
        ("/../../usr/lib", "high/usr/lib"),
        ("/usr/rel", "high/usr/lib/libc.so"),
        ("/loop", None),
        ("/nothing", None),
        ("/usr/lib/libc.so/x", None),
        ("/", "high"),
    ],
)
def test_resolve_stays_inside_and_takes_the_topmost(stack: list[Path], path: str, found: str | None) -> None:
    base = stack[0].parent
    assert resolve(stack, path) == (None if found is None else base / found)


def test_resolve_sees_nothing_below_an_opaque_folder(stack: list[Path]) -> None:
    try:
        os.setxattr(stack[1] / "usr/lib", "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system has no user attributes")
    assert resolve(stack, "/usr/lib/only-low") is None
    assert resolve(stack, "/lib/libc.so") == stack[1] / "usr/lib/libc.so"


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (Entry("d", "dir", 0o755), Entry("d", "dir", 0o755), False),
        (Entry("d", "dir", 0o755, mtime=1), Entry("d", "dir", 0o755, mtime=2), False),
        (Entry("d", "dir", 0o755), Entry("d", "dir", 0o755, opaque=True), True),
        (Entry("d", "dir", 0o755, opaque=True), Entry("d", "dir", 0o755, opaque=True), True),
        (Entry("d", "dir", 0o755), Entry("d", "dir", 0o700), True),
        (Entry("d", "dir", 0o755), Entry("d", "whiteout"), True),
        (Entry("d", "file", 0o644, sha256="a"), Entry("d", "file", 0o644, sha256="a"), False),
        (Entry("d", "file", 0o644, sha256="a"), Entry("d", "file", 0o755, sha256="a"), True),
        (Entry("d", "link", target="a"), Entry("d", "link", target="b"), True),
        (Entry("d", "dir", 0o755), Entry("e", "dir", 0o700, opaque=True), False),
    ],
)
def test_layers_clash_where_it_matters_which_is_on_top(one: Entry, other: Entry, clash: bool) -> None:
    assert list(clashes(Index.of([one]), Index.of([other]))) == ([other.path] if clash else [])
