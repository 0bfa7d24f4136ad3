"""Which stages are built, what they are built over, and what is built at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.build import Built, build, outlook, plan
from builder.errors import BuilderError
from builder.lock.model import Lock
from builder.progress import Silent
from builder.sandbox import Stop
from builder.stage.kind import Context, Kind
from builder.store import Layer, Store, upkeep
from tests.unit.build.plain import kind, recipe, stage

PATIENCE = 10
"""Seconds after which what should have met did not."""


def write(context: Context) -> None:
    """Write the stage's `files`, and in `seen/STAGE` what it sees of the other stages."""
    for path, text in context.inputs.params.get("files", {}).items():
        place = context.upper / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    seen = context.upper / "seen"
    seen.mkdir()
    found = [name for name in ("base", "one", "two") if context.lower(f"/seen/{name}") is not None]
    (seen / context.stage.name).write_text(" ".join(found))


def kinds(apart: Callable[[Context], None] = write) -> Mapping[str, Kind]:
    return {
        "test": kind(build=write),
        "apart": kind(name="apart", build=apart, unseen=frozenset({"apart"})),
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


Files = Mapping[str, str]


def stages(store: Store, of: Mapping[str, Kind], one: Files, two: Files, base: Files) -> tuple[Any, Any]:
    """A base, two stages that do not see one another, and one over all of them."""
    made = recipe(
        stage(name="base", files=base),
        stage(name="one", kind="apart", files=one),
        stage(name="two", kind="apart", files=two),
        stage(name="top"),
    )
    return made, plan(made, Lock("r", ""), of)


def make(
    store: Store,
    of: Mapping[str, Kind] | None = None,
    *,
    one: Files = {"1": "one"},  # noqa: B006
    two: Files = {"2": "two"},  # noqa: B006
    base: Files = {"0": "base"},  # noqa: B006
) -> dict[str, Built]:
    made, nodes = stages(store, of or kinds(), one, two, base)
    return {built.node.stage.name: built for built in build(made, nodes, store, Silent())}


def seen(built: Built) -> str:
    return (built.layer.tree / "seen" / built.node.stage.name).read_text()


def test_each_stage_sees_what_it_is_over(store: Store) -> None:
    built = make(store)
    assert {name: seen(each) for name, each in built.items()} == {
        "base": "",
        "one": "base",
        "two": "base",
        "top": "base one two",
    }
    assert all(each.reason == "cached" for each in make(store).values())


def test_stages_that_do_not_see_one_another_are_built_side_by_side(store: Store) -> None:
    meeting = threading.Barrier(2)

    def meet(context: Context) -> None:
        meeting.wait(PATIENCE)
        write(context)

    assert list(make(store, kinds(meet))) == ["base", "one", "two", "top"]


def test_a_change_rebuilds_the_stage_and_what_is_over_it_and_no_neighbour(store: Store) -> None:
    make(store)
    built = make(store, one={"1": "another"})
    rebuilt = {name: each.reason for name, each in built.items() if each.reason != "cached"}
    assert rebuilt == {"one": "changed: setting files", "top": "changed: the layers below"}


def test_outlook_says_the_same_without_building(store: Store) -> None:
    make(store)
    made, nodes = stages(store, kinds(), {"1": "another"}, {"2": "two"}, {"0": "base"})
    assert [(node.stage.name, why) for node, why in outlook(made, nodes, store)] == [
        ("base", "cached"),
        ("one", "changed: setting files"),
        ("two", "cached"),
        ("top", "depends on one: cached only if that comes out as before"),
    ]


def test_a_layer_that_comes_out_as_before_costs_those_over_it_nothing(store: Store) -> None:
    first = make(store)
    store.drop_layer(first["base"].layer)
    again = make(store)
    assert [name for name, each in again.items() if each.reason != "cached"] == ["base"]


CLASHES = [
    ({"x/f": "a"}, {"x/f": "b"}, "/x/f"),
    ({"x": "a"}, {"x/f": "b"}, "/x"),
    ({"x/f": "a"}, {"x": "b"}, "/x"),
]


@pytest.mark.parametrize(("one", "two", "path"), CLASHES)
def test_two_that_bring_one_path_differently_are_refused(store: Store, one: Files, two: Files, path: str) -> None:
    for _ in ("built", "cached"):
        with pytest.raises(BuilderError) as caught:
            make(store, one=one, two=two)
        assert str(caught.value) == (
            f"stage two: {path} comes with stage one too, and is not the same there; "
            "leave what brings it out of one of the two, with Only or Except"
        )


def test_two_that_bring_one_path_alike_are_fine(store: Store) -> None:
    assert make(store, one={"x/f": "a"}, two={"x/f": "a", "x/g": "b"})


def test_the_error_is_that_of_the_stage_that_failed_and_no_other_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, stopped, pull = threading.Barrier(2), threading.Event(), Stop.pull

    def pull_and_tell(stop: Stop) -> None:
        pull(stop)
        stopped.set()

    def fail_or_scan(context: Context) -> None:
        if context.stage.name == "one":
            both.wait(PATIENCE)
            raise BuilderError("broke")
        (context.upper / "large").write_bytes(bytes(64 << 20))
        both.wait(PATIENCE)
        assert stopped.wait(PATIENCE)

    monkeypatch.setattr(Stop, "pull", pull_and_tell)
    with pytest.raises(BuilderError, match=r"^stage one: broke$"):
        make(store, kinds(fail_or_scan))
    assert {layer.facts["stage"] for layer in store.layers()} == {"base"}


def test_what_was_made_over_a_damaged_layer_goes_with_it_and_no_neighbour(store: Store) -> None:
    built = make(store)
    (built["one"].layer.tree.parent / "meta.json").write_text("{")
    damages = {damage.name: damage.what for damage in upkeep.verify(store)}
    assert damages == {
        built["one"].key: "has a meta.json that does not fit",
        built["top"].key: "was made over a damaged layer",
    }


def before(store: Store, version: int = 1, *, files: Files, base: str = "base", epoch: int = 1) -> Layer | None:
    """Build a stage over `base`: the earlier layer that it is shown."""
    shown: list[Layer | None] = []

    def look(context: Context) -> None:
        shown.append(context.before())
        write(context)

    made = recipe(stage(name="base", files={"0": base}), stage(name="top", kind="looks", files=files), epoch=epoch)
    of = {"test": kind(build=write), "looks": kind(version, name="looks", build=look)}
    build(made, plan(made, Lock("r", ""), of), store, Silent())
    (layer,) = shown
    return layer


def test_a_stage_is_shown_the_layer_that_it_had_over_the_same_layers(store: Store) -> None:
    assert before(store, files={"1": "a"}) is None, "never built"
    for last, text in enumerate("bc"):
        layer = before(store, files={"1": text})
        assert layer is not None
        assert (layer.tree / "1").read_text() == "ab"[last]


@pytest.mark.parametrize("other", [{"version": 2}, {"base": "another"}, {"epoch": 2}])
def test_a_layer_of_other_code_or_over_others_is_not_shown(store: Store, other: dict[str, Any]) -> None:
    before(store, files={"1": "a"})
    assert before(store, files={"1": "b"}, **other) is None


@pytest.mark.parametrize("name", ["index", "meta.json", "key"])
def test_a_layer_that_is_damaged_or_gone_is_not_shown(store: Store, name: str) -> None:
    before(store, files={"1": "a"})
    (layer,) = (layer for layer in store.layers() if layer.facts["stage"] == "top")
    if name == "key":
        store.drop_layer(layer)
    else:
        (layer.tree.parent / name).write_text("{")
    assert before(store, files={"1": "b"}) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"listing": {}}'])
def test_a_damaged_record_shows_no_layer(store: Store, text: str) -> None:
    before(store, files={"1": "a"})
    (store.root / "last/r/top.json").write_text(text)
    assert before(store, files={"1": "b"}) is None
