"""Tables that fit: in a pipe whole rows, on a narrow terminal one row below the other."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from smallvit.core.console import say


def print_text(text: str) -> None:
    """Print lines on standard output as they are, none of them broken."""
    say(text, Console())


def print_rows(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    wrap: Sequence[str] = (),
    numbers: Sequence[str] = (),
    **looks: Any,
) -> None:
    """Print rows as a table where they fit, and no cell is cut.

    Where nobody looks, in a pipe or a file, every row is one line. On a terminal that is too narrow
    each row is a paragraph that starts with its first cell, which names it.

    Args:
        headings: Names of the columns.
        rows: Cells.
        wrap: Headings of columns whose words may go on to further lines.
        numbers: Headings of columns that end at the right.
        **looks: Of the table.
    """
    console = Console()
    table = Table(**looks)
    for heading in headings:
        side = "right" if heading in numbers else "left"
        table.add_column(heading, no_wrap=heading not in wrap, overflow="fold", justify=side)
    for row in rows:
        table.add_row(*map(escape, row))
    wide = console.options.update(max_width=1 << 16)
    needed = Measurement.get(console, wide, table)
    if not console.is_terminal:
        Console(width=max(needed.maximum, console.width)).print(table)
    elif needed.minimum <= console.width:
        console.print(table)
    else:
        for first, *others in rows:
            console.print(first, markup=False, highlight=False, soft_wrap=True, style="bold")
            for heading, cell in zip(headings[1:], others, strict=True):
                print_text(f"  {heading}: {cell}")
