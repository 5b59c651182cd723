"""Tables on the terminal: with rich where it is installed, plain text otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def print_table(title: str, columns: Sequence[str], rows: Rows, *, left: int = 1) -> None:
    """Print rows of text under their column names; the first `left` columns aligned left, the others right."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain_table(title, columns, rows, left=left))
        return
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    previous = None
    for row in rows:
        if previous is not None and row[0] != previous:
            table.add_section()
        table.add_row(row[0] if row[0] != previous else "", *row[1:])
        previous = row[0]
    # A file or a pipe has no width of its own; nothing is to be cut off there.
    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, highlight=False).print(table)


def plain_table(title: str, columns: Sequence[str], rows: Rows, *, left: int = 1) -> str:
    """The same as plain text."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def text(line: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join((title, text(columns), "  ".join("-" * w for w in widths), *map(text, rows)))


def markdown_table(columns: Sequence[str], rows: Rows, *, left: int = 1) -> str:
    """The same as Markdown."""
    lines = [columns, ["---" if i < left else "---:" for i in range(len(columns))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
