"""The pages about recipes are true."""

from __future__ import annotations

import re
from pathlib import Path

from builder.recipe import load, manual
from builder.stage import KINDS

DOCS = Path(__file__).parents[3] / "docs"


def test_the_tables_of_keys_are_in_step() -> None:
    written = (DOCS / "recipe-keys.md").read_text(encoding="utf-8")
    assert written == manual(KINDS), "run: builder schema --markdown > docs/recipe-keys.md"


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.toml").write_text(example, encoding="utf-8")
    plain, debug = (load(tmp_path, KINDS, variant) for variant in (None, "debug"))
    assert (plain.full_name, debug.full_name) == ("client-plain", "client-debug")
    assert [stage.name for stage in debug.stages] == ["base", "tools", "wheels"]
    assert debug.stages[2].memory_mib == 4096
