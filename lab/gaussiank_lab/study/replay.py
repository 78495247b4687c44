"""Selection operators and wires, run again on recorded vectors."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, fitting_wire
from gaussiank.compressors import Compressor, GaussianK, parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import Selector
from gaussiank.schedule import require_density
from gaussiank.sparse import SparseGradient
from gaussiank_lab.report.summary import MISSING, UNDERLINED, name_lines
from gaussiank_lab.study.study import read_study
from gaussiank_lab.study.vectors import Snapshot, StoredPiece, snapshots

REPEATS = 3


class Carried(NamedTuple):
    """A selection on its way.

    Attributes:
        bits: of the payload, header included.
        values: ``[kept]`` that arrive: rounded where the wire is narrower than they are.
        encode_us: microseconds of rounding and encoding.
    """

    bits: int
    values: Tensor
    encode_us: float


def carry(sparse: SparseGradient, wire: Wire) -> Carried:
    """Round and encode a selection as a training does.

    Example:
        >>> one = SparseGradient(torch.tensor([7]).int(), torch.tensor([0.1]), numel=1000)
        >>> carried = carry(one, Wire())
        >>> carried.bits, carried.values.tolist()
        (256, [0.10009765625])
    """

    def pack() -> Tensor:
        return wire.pack(sparse, generator=torch.Generator().manual_seed(0)).row  # the same draws every time

    row = pack()
    values = wire.decode(row, sparse.numel, dtype=sparse.values.dtype).values
    return Carried(8 * row.numel(), values, best_us(pack))


def asked_wire(text: str) -> Wire:
    """Make the wire that a user has named.

    Raises:
        ValueError: an unknown name, or ``seed``: vectors that were recorded do not say how indices were drawn.

    Example:
        >>> str(asked_wire("chunks+8bit"))
        'chunks+8bit'
    """
    wire = Wire.parse(text)
    if wire.index == "seed":
        raise ValueError(f"wire must send its indices in a replay, got {wire}. Take rice in place of seed.")
    return wire


def best_us(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs, in microseconds: the rest is the machine's other business."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * min(times)


IN_RUN = "in the run"


@dataclass(frozen=True)
class Replayed:
    """One operator at one density, over the snapshots of a run.

    Attributes:
        operator: its specification, or ``IN_RUN`` for what the run itself measured.
        density: asked for; NaN in the run's own row where it changed.
        contraction: mean share of energy that stays.
        kept_over_k: entries kept over entries asked for, over all snapshots.
        bits_per_entry: payload bits for each entry kept, on the run's wire; NaN for the run.
        bits_per_element: payload bits for each entry of the vector; NaN for the run.
        select_us: time of a selection in microseconds, median over vectors; NaN for the run.
        snapshots: vectors looked at.
        wire: how the entries travelled, ``index+values``; empty for the run, and where no wire was asked for.
        encode_us: time of rounding and encoding in microseconds, median over vectors; NaN without a wire.
    """

    operator: str
    density: float
    contraction: float
    kept_over_k: float
    bits_per_entry: float
    bits_per_element: float
    select_us: float
    snapshots: int
    wire: str = ""
    encode_us: float = math.nan


def replay(
    run_dir: str | Path, operators: Sequence[str], densities: Sequence[float] = (), wires: Sequence[str] = ()
) -> list[Replayed]:
    """Select from the recorded vectors with every operator at every density, and put it on every wire.

    Selections repeat those of the run: same scope, same step, rank and part for draws, and Gaussian_k starts from the
    threshold that was in use, so the operator that ran gives the contraction and kept/k that it gave. Vectors that were
    thinned (``Snapshot.stride``) give them to sampling error. On a wire that rounds, what rounding takes off stays, and
    counts in the contraction.

    Args:
        run_dir: directory of a run with raw vectors.
        operators: specifications of compressors, ``name:field=value``.
        densities: shares of entries in (0, 1]; none takes what the run asked for.
        wires: how entries travel, ``index+values``; none counts the bits of the run's wire and loses nothing.

    Returns:
        The run's own row, then one for each operator, density and wire.

    Raises:
        FileNotFoundError: no study, or no raw vectors.
        ValueError: an unknown operator or wire, a density out of range, or a damaged file.
    """
    compressors = {spec: parse_compressor(spec) for spec in operators}
    chosen: list[Wire | None] = [asked_wire(wire) for wire in wires]
    for density in densities:
        require_density(density, "densities")
    study = read_study(run_dir)
    per_layer = study.run.get("compression", {}).get("scope") == "layer"
    shots, run_wire = snapshots(run_dir), _wire(study.run.get("compression", {}).get("wire"))
    rows = [_in_run(shots)]
    for spec, compressor in compressors.items():
        rows += [
            _replay(spec, compressor, density, (wire, run_wire), shots, per_layer)
            for density in densities or [math.nan]
            for wire in chosen or [None]
        ]
    return rows


def _wire(recorded: str | None) -> Wire:
    """Return the wire of the run; the default one where none was recorded, and where no indices were sent."""
    wire = Wire() if recorded is None else Wire.parse(recorded)
    return Wire(Wire.index, wire.values, wire.rounding) if wire.index == "seed" else wire


def _replay(
    spec: str,
    compressor: Compressor,
    density: float,
    wires: tuple[Wire | None, Wire],  # that was asked for, and the run's
    shots: Sequence[Snapshot],
    per_layer: bool,
) -> Replayed:
    wire, run_wire = wires
    k = kept = numel = bits = 0
    contractions, times, encoding, asked = [], [], [], []
    for shot in shots:
        left = energy = 0.0
        for piece in shot.pieces:
            want = piece.density if math.isnan(density) else density
            selector = _selector(compressor, shot, piece, per_layer, same=want == piece.density)
            layout = Layout(piece.names, piece.numels)
            accumulated = torch.from_numpy(piece.accumulated)
            sparse = selector.select(layout, accumulated, want, shot.step)
            times.append(best_us(partial(selector.select, layout, accumulated, want, shot.step)))
            k += selector.asked(layout, want).k
            kept += sparse.kept
            numel += layout.numel
            if wire is None:
                on_own = fitting_wire(run_wire, compressor, AllGather())
                carried = Carried(payload_bits(sparse, on_own), sparse.values, math.nan)
            else:
                carried = carry(sparse, wire)
            bits += carried.bits
            encoding.append(carried.encode_us)
            rest = accumulated.double()
            energy += float(rest.square().sum())
            rest[sparse.indices] -= carried.values
            left += float(rest.square().sum())
            asked.append(want)
        contractions.append(left / energy if energy else 0.0)
    return Replayed(
        operator=spec,
        density=asked[0] if len(set(asked)) == 1 else math.nan,
        contraction=statistics.fmean(contractions),
        kept_over_k=kept / k,
        bits_per_entry=bits / kept if kept else math.nan,
        bits_per_element=bits / numel,
        select_us=statistics.median(times),
        snapshots=len(shots),
        wire="" if wire is None else str(wire),
        encode_us=statistics.median(encoding),
    )


def payload_bits(sparse: SparseGradient, wire: Wire) -> int:
    """Return the bits that a selection takes on a wire, header included."""
    if wire.index == "seed":  # its size does not depend on the draw
        return 8 * wire.max_bytes(sparse.kept, sparse.numel, sparse.values.dtype)
    return 8 * wire.pack(sparse).size


def _in_run(shots: Sequence[Snapshot]) -> Replayed:
    k = kept = 0
    contractions = []
    for shot in shots:
        energies = [float((piece.accumulated.astype("float64") ** 2).sum()) for piece in shot.pieces]
        left = sum(energy * piece.contraction for energy, piece in zip(energies, shot.pieces, strict=True))
        contractions.append(left / sum(energies) if sum(energies) else 0.0)
        for piece in shot.pieces:
            kept += piece.kept
            k += piece.k
    densities = {piece.density for shot in shots for piece in shot.pieces}
    return Replayed(
        operator=IN_RUN,
        density=densities.pop() if len(densities) == 1 else math.nan,
        contraction=statistics.fmean(contractions),
        kept_over_k=kept / k,
        bits_per_entry=math.nan,
        bits_per_element=math.nan,
        select_us=math.nan,
        snapshots=len(shots),
    )


def _selector(compressor: Compressor, shot: Snapshot, piece: StoredPiece, per_layer: bool, *, same: bool) -> Selector:
    selector = Selector(compressor, per_layer=per_layer, rank=shot.rank)
    if same and isinstance(compressor, GaussianK) and compressor.mode == "bracketed":
        names = [name for name, numel in zip(piece.names, piece.numels, strict=True) if numel]
        keys = names if per_layer else [f"{piece.names[0]}..{piece.names[-1]}"]
        hints = {key: torch.tensor(hint) for key, hint in zip(keys, piece.hints, strict=False) if hint == hint}
        selector.load_hints(hints)
    return selector


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
