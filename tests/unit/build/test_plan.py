"""Keys: what moves them and what must not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import canonical
from builder.build.plan import file_digest, plan, stack_digest
from builder.errors import BuilderError
from builder.lock.model import Blob, Lock, Wheel
from builder.recipe.model import Venv
from builder.stage.kind import Kind
from tests.unit.build.plain import kind, recipe, stage

BLOB = Blob(sha256="a" * 64, size=1, filename="one.deb", urls=())


def key(of: Kind, *, epoch: int = 1, below: str = "0" * 64, **settings: Any) -> str:
    nodes = plan(recipe(stage(**settings), epoch=epoch), Lock("r", ""), {"test": of})
    return nodes[0].key([below])


def test_the_same_inputs_give_the_same_key() -> None:
    assert key(kind(blobs=(BLOB,)), Packages=["a"]) == key(kind(blobs=(BLOB,)), Packages=["a"])


@pytest.mark.parametrize(
    "other",
    [
        {"of": kind(2)},
        {"of": kind(), "Packages": ["b"]},
        {"of": kind(), "epoch": 2},
        {"of": kind(), "below": "1" * 64},
        {"of": kind(blobs=(BLOB,))},
    ],
    ids=["version", "setting", "epoch", "below", "input"],
)
def test_each_input_moves_the_key(other: dict[str, Any]) -> None:
    assert key(**other) != key(kind())


def test_a_limit_does_not_move_the_key() -> None:
    assert key(kind(), memory=1) == key(kind(), memory=2)


def test_a_skipped_stage_is_not_planned() -> None:
    assert plan(recipe(stage(skip="later")), Lock("r", ""), {"test": kind()}) == ()


def test_a_wheel_that_no_stage_takes_is_told() -> None:
    other = Blob(sha256="b" * 64, size=1, filename="two.whl", urls=())
    wheels = (Wheel("one", "1", BLOB, "2025-01-01T00:00:00Z"), Wheel("two", "1", other, "2025-01-01T00:00:00Z"))
    venv = Venv("v", "/opt/v", "/usr/bin/python3", ("one", "two"), (), (), "2025-01-02T00:00:00Z", "https://index")
    lock = Lock("r", "", venvs={"v": wheels})
    takes_one = {"test": kind(blobs=(BLOB,))}
    with pytest.raises(BuilderError, match="1 wheels of environment v would be in no stage, two first"):
        plan(recipe(stage(), venvs=(venv,)), lock, takes_one)
    assert plan(recipe(stage(), venvs=(venv,)), lock, {"test": kind()}), "an environment that is not used at all"
    assert plan(recipe(stage(), stage(skip="later", Venv="v"), venvs=(venv,)), lock, takes_one)


def test_a_stage_sees_every_layer_below_not_only_the_topmost() -> None:
    assert stack_digest(["a", "c"]) != stack_digest(["b", "c"])


def test_a_stage_is_over_all_below_but_those_of_kinds_that_it_does_not_see() -> None:
    kinds = {"test": kind(), "apart": kind(name="apart", unseen=frozenset({"apart"}))}
    names = ("test", "apart", "apart", "test", "apart")
    nodes = plan(recipe(*(stage(name=f"{n}", kind=name) for n, name in enumerate(names))), Lock("r", ""), kinds)
    assert [node.over for node in nodes] == [(), (0,), (0,), (0, 1, 2), (0, 3)]


def test_a_copied_file_counts_by_content_and_x_bit_not_by_time_or_other_modes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    file.chmod(0o600)
    first = file_digest(tmp_path)
    os.utime(file, (1, 1))
    file.chmod(0o644)
    assert file_digest(tmp_path) == first
    file.chmod(0o755)
    assert file_digest(tmp_path) != first
    file.chmod(0o644)
    file.write_text("y")
    assert file_digest(tmp_path) != first


def test_a_copied_link_counts_by_its_target(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("a")
    first = file_digest(tmp_path)
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("b")
    assert file_digest(tmp_path) != first


def test_a_pipe_among_the_files_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(BuilderError, match="neither a file, a folder nor a link"):
        file_digest(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="gone"):
        file_digest(tmp_path / "gone")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    def reversed_keys(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: reversed_keys(item[name]) for name in reversed(list(item))}
        return [reversed_keys(one) for one in item] if isinstance(item, list) else item

    assert canonical.encode(reversed_keys(value)) == canonical.encode(value)


@given(st.floats())
def test_canonical_json_refuses_floats(value: float) -> None:
    with pytest.raises(TypeError):
        canonical.encode({"a": [value]})


def test_every_copied_file_is_listed_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "etc" / "empty").mkdir(parents=True)
    (tmp_path / "etc" / "a").write_text("a")
    (tmp_path / "one").write_text("1")
    of = kind(files={"files": tmp_path, "one": tmp_path / "one"})
    (node,) = plan(recipe(stage()), Lock("r", ""), {"test": of})
    assert set(node.listing) == {"files/etc/a", "files/etc/empty", "files/one", "one"}
    assert node.listing["one"] == node.listing["files/one"] == node.body["files"]["one"]
