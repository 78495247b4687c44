"""The table that ends a replay."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gaussiank_lab.study.replay import Replayed
from gaussiank_lab.summary import MISSING, UNDERLINED, name_lines

HEADERS = ("operator", "density", "contrac-\ntion", "kept/k", "bits/\nentry", "bits/\nelement", "select\nus")
ENCODE = "encode\nus"


def replay_table(rows: Sequence[Replayed]) -> Table:
    """Build the table; it fits 80 columns."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, caption_justify="left", header_style="bold")
    wires = any(row.wire for row in rows)
    for header in (*HEADERS, ENCODE) if wires else HEADERS:
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
        name = name_lines(row.operator) + ("\n" + row.wire.replace("+stochastic", "\n+stochastic") if row.wire else "")
        table.add_row(Text(name), *cells, *([_text(row.encode_us, ",.0f")] if wires else []))
    if rows:
        table.caption = Text(f"Over {rows[0].snapshots} recorded vectors.")
    return table


def _text(value: float, form: str) -> str:
    return format(value, form) if value == value else MISSING
