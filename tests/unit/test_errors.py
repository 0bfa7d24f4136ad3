"""An error is one line that no terminal obeys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.errors import BuilderError


def test_what_where_and_the_way_out() -> None:
    assert str(BuilderError("is gone", where="stage base", hint="run it again")) == "stage base: is gone; run it again"


@given(st.text(), st.text(), st.text())
def test_it_is_one_printable_line(what: str, where: str, hint: str) -> None:
    assert str(BuilderError(what, where=where, hint=hint)).isprintable()
