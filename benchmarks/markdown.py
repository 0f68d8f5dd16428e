"""Tables in Markdown, and numbers in their cells."""

from __future__ import annotations

Table = list[list[str]]


def markdown(table: Table) -> str:
    """The first line is the header."""
    header, *lines = table
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def captioned(number: int, caption: str, source: str, table: Table) -> str:
    """A table under its number, what it is of, and what made it."""
    return f"**Table {number}. {caption}.** {source}\n\n{markdown(table)}"


def number(value: float) -> str:
    """Two decimals, without a leading zero."""
    text = f"{abs(value):.2f}"
    sign = "−" if value < 0 and float(text) > 0 else ""
    return sign + text.removeprefix("0")
