"""Tables and other pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]], words: Collection[str] | None = None) -> str:
    """A table, without a newline at the end.

    Args:
        header: the titles of the columns.
        rows: their cells; each becomes text.
        words: titles of the columns of words, which are aligned to the left; default: the first. Others have numbers.
    """
    words = header[:1] if words is None else words
    rule = ["---" if title in words else "---:" for title in header]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in (header, rule, *rows))


def _cell(value: object) -> str:
    """A line, with no | that would end the cell."""
    return " ".join(str(value).split()).replace("|", r"\|")


def code_block(text: str) -> str:
    """Text as it is, whatever backticks it has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"
