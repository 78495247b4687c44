"""The table that ends a replay."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gaussiank.lab.study.replay import Replayed
from gaussiank.lab.summary import MISSING, UNDERLINED, name_lines

HEADERS = ("operator", "density", "contraction", "kept/k", "bits/\nentry", "bits/\nelement", "select\nus")


def replay_table(rows: Sequence[Replayed]) -> Table:
    """Build the table; it fits 80 columns."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, caption_justify="left", header_style="bold")
    for header in HEADERS:
        first = header == "operator"
        table.add_column(header, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in rows:
        cells = (
            _text(row.density, "g"),
            _text(row.contraction, ".5f"),
            _text(row.kept_over_k, ".3f"),
            _text(row.bits_per_entry, ".1f"),
            _text(row.bits_per_element, ".4f"),
            _text(row.select_us, ",.0f"),
        )
        table.add_row(Text(name_lines(row.operator)), *cells)
    if rows:
        table.caption = Text(f"Over {rows[0].snapshots} recorded vectors.")
    return table


def _text(value: float, form: str) -> str:
    return format(value, form) if value == value else MISSING
