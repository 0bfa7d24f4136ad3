"""What `--explain` says of a stage that is not in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.build.explain import explain, remember
from builder.store import Store

BODY: dict[str, Any] = {
    "format": 1,
    "kind": "files",
    "version": 1,
    "params": {"ExtraTrees": ["a:/"]},
    "files": {"a": "1"},
    "blobs": [["one.deb", "1"]],
    "epoch": 1,
    "below": "0",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_stage_that_was_never_built(store: Store) -> None:
    assert explain(store, "r", "s", BODY, {}) == "never built in this store"


def test_a_layer_that_was_removed(store: Store) -> None:
    remember(store, "r", "s", BODY, {})
    assert explain(store, "r", "s", BODY, {}) == "its layer is no longer in the store"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "the code of this kind of stage"),
        ({"below": "1"}, "the layers below"),
        ({"epoch": 2}, "SourceDateEpoch"),
        ({"params": {"ExtraTrees": ["b:/"]}}, "setting ExtraTrees"),
        ({"files": {"a": "2", "b": "1"}}, "file a, file b"),
        ({"blobs": [["one.deb", "2"]]}, "locked input one.deb"),
        ({"blobs": [[f"{n}.deb", "1"] for n in range(9)]}, "10 locked inputs, 0.deb and one.deb among them"),
    ],
)
def test_what_changed_is_named(store: Store, change: dict[str, Any], said: str) -> None:
    remember(store, "r", "s", BODY, {})
    assert explain(store, "r", "s", {**BODY, **change}, {}) == f"changed: {said}"


def test_a_damaged_record_is_no_failure(store: Store) -> None:
    remember(store, "r", "s", BODY, {})
    (store.root / "last/r/s.json").write_text("{")
    assert explain(store, "r", "s", BODY, {}) == "the record of its last build is damaged"


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        ({"a/x": "2", "a/y": "1"}, "file a/x"),
        ({"a/x": "1", "a/y": "1", "a/z": "1"}, "file a/z"),
        ({"a/x": "1", "ab": "1"}, "file a/y"),
        ({"a": "3"}, "file a, file a/x, file a/y"),
        ({}, "file a"),
    ],
)
def test_the_file_is_named_and_not_the_folder_that_it_lies_in(store: Store, listing: dict[str, str], said: str) -> None:
    remember(store, "r", "s", BODY, {"a/x": "1", "a/y": "1", "ab": "2"})
    assert explain(store, "r", "s", {**BODY, "files": {"a": "2"}}, listing) == f"changed: {said}"


def test_the_record_of_an_older_builder_names_the_folder(store: Store) -> None:
    store.write_text(Path("last/r/s.json"), json.dumps(BODY))
    assert explain(store, "r", "s", {**BODY, "files": {"a": "2"}}, {"a/x": "1"}) == "changed: file a"
