"""Templates to be checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from madetemplate import Make, make_subject


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make_subject` in a folder of this test's own."""
    root = tmp_path / "root"
    root.mkdir()
    return partial(make_subject, root)
