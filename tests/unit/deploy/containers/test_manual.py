"""The pages about containers are true."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import tomli

from builder.deploy.containers import load
from builder.deploy.containers.entry import USED
from builder.deploy.containers.settings import BODY, CARD, CONTAINER, manual, schema

DOCS = Path(__file__).parents[4] / "docs"
EXAMPLE = DOCS / "containers.example.toml"


def test_the_tables_of_keys_are_in_step() -> None:
    written = (DOCS / "containers-keys.md").read_text(encoding="utf-8")
    assert written == manual(), "run: builder containers schema --markdown > docs/containers-keys.md"


def test_the_example_places_two_servers_on_card_0_and_one_on_card_1() -> None:
    loaded = load(EXAMPLE)
    assert {ctid: (made.profile, made.gpus) for ctid, made in loaded.containers.items()} == {
        920: (None, ()),
        921: ("fp8", (1,)),
        922: (None, None),
        950: ("awq", (0,)),
        951: ("embed", (0,)),
    }
    assert loaded.containers[920].template is None
    assert {made.template for ctid, made in loaded.containers.items() if ctid != 920} == {920}
    assert loaded.template_ids == (920, *range(923, 930))


def test_the_example_fits_the_schema_and_a_misspelt_key_does_not() -> None:
    data = tomli.loads(EXAMPLE.read_text(encoding="utf-8"))
    jsonschema.validate(data, schema())
    data["Container"][0]["Memory"] = 1
    assert not jsonschema.Draft202012Validator(schema()).is_valid(data)


def test_the_short_example_is_a_file_of_containers(tmp_path: Path) -> None:
    page = (DOCS / "containers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "containers.toml").write_text(example, encoding="utf-8")
    assert list(load(tmp_path / "containers.toml").containers) == [920, 921]


def test_every_key_that_is_taken_from_phoenix_is_on_the_page() -> None:
    page = (DOCS / "containers.md").read_text(encoding="utf-8")
    assert [key for key in USED if f"`{key}" not in page] == []


def test_every_key_fills_a_field() -> None:
    assert {key.name for key in CONTAINER} == {*BODY, *CARD}
