"""Control files of Debian packages and archives: paragraphs of fields (deb822(5))."""

from __future__ import annotations

from collections.abc import Iterator


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of `text`, each without its blank lines."""
    for paragraph in text.split("\n\n"):
        if stripped := paragraph.strip("\n"):
            yield stripped


def fields(paragraph: str) -> dict[str, str]:
    """The fields of one paragraph; of a value of many lines only the first."""
    found = {}
    for line in paragraph.splitlines():
        if not line.startswith((" ", "\t", "#")):
            name, _, value = line.partition(":")
            found[name] = value.strip()
    return found
