"""What does an entry cost on the wire, and what does coding it cost in time?

Sizes are counted on stored selections of real training runs (scripts/make_selections.py) and on random positions; they
are the same on every machine. Times are the least of many repetitions in this process, of the calls that a collective
makes, on 100,000 random indices of 10,000,000; they are noisy where other programs run. ``--check`` exits with 1 when a
row misses its target.

    python benchmarks/codec.py --check
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import SparseGradient

FIXTURE = Path(__file__).parent.parent / "tests/fixtures/selections.npz"
DENSITIES = (0.01, 0.001, 0.0001)
FIXED = ("chunks12+2bit", "chunks12+4bit", "chunks12+bf16", "chunks+2bit", "chunks+bf16")  # packed by accelerators
FIXED_BITS = {"chunks12+2bit": 14.5}
INDEX_BITS = {0.01: 6.13, 0.001: 8.15, 0.0001: 10.67}
ENTRY_BITS = {"bf16-rice": 16.0, "bf16": 24.0, "8bit": 16.0}
NANOSECONDS = {"rice": (3.0, 3.5), "chunks": (1.0, 0.4)}
CODES = [name for name in INDEX_CODES if name not in ("seed", "raw")]
NUMEL = 10**7
Row = dict[str, Any]


def row(what: str, on: str, measured: float, unit: str, target: float | None = None) -> Row:
    row = {"what": what, "on": on, "measured": round(measured, 3), "unit": unit}
    return row if target is None else {**row, "target": round(target, 3), "met": measured <= target}


def stored() -> dict[tuple[str, float], SparseGradient]:
    """Load the selections: (model, density) -> what was sent; values are ones where they were not kept."""
    arrays = np.load(FIXTURE)
    selections = {}
    for name in sorted({key.rsplit("/", 1)[0] for key in arrays}):
        model, density = name.split("/")
        indices = torch.from_numpy(np.cumsum(arrays[f"{name}/steps"].astype(np.int64)) - 1).int()
        values = torch.ones(len(indices))
        if f"{name}/bf16" in arrays:
            values = torch.from_numpy(arrays[f"{name}/bf16"]).view(torch.bfloat16).float()
        selections[model, float(density)] = SparseGradient(indices, values, arrays[f"{name}/numel"].item())
    return selections


def at_random(density: float, seed: int = 3) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.sort(random.choice(NUMEL, round(density * NUMEL), replace=False)).astype(np.int32))


def index_bits(code: str, indices: torch.Tensor, numel: int) -> float:
    return 8 * INDEX_CODES[code].encode(indices, numel, len(indices)).numel() / len(indices)


def sizes(selections: dict[tuple[str, float], SparseGradient]) -> Iterator[Row]:
    """Count bits of an index: on each selection, on all large ones of a density together, on random positions."""
    for density in DENSITIES:
        for code in CODES:
            bits, count = 0.0, 0
            for (model, at), sparse in selections.items():
                if at == density:
                    own = index_bits(code, sparse.indices, sparse.numel)
                    yield row(f"index bits, {code}", f"{model}, density {density:g}", own, "bit")
                    if sparse.numel >= 10**6:
                        bits, count = bits + own * sparse.kept, count + sparse.kept
            target = INDEX_BITS[density] if code == "rice" else None
            yield row(
                f"index bits, {code}", f"models of 1e6 and more, density {density:g}", bits / count, "bit", target
            )
    for density in DENSITIES:
        limit = (-density * math.log2(density) - (1 - density) * math.log2(1 - density)) / density
        for code in CODES:
            target = 1.01 * limit + 0.1 if code == "rice" else None
            bits = index_bits(code, at_random(density), NUMEL)
            yield row(f"index bits, {code}", f"random, density {density:g}, limit {limit:.2f}", bits, "bit", target)


def whole_entries(selections: dict[tuple[str, float], SparseGradient]) -> Iterator[Row]:
    """Count bits of an entry at density 0.001, header and all, and how far values are from what was selected."""
    large = {model: sparse for (model, at), sparse in selections.items() if at == 0.001 and sparse.numel >= 10**6}
    drawn = at_random(0.001)
    large["random"] = SparseGradient(drawn, torch.randn(len(drawn), generator=torch.Generator().manual_seed(1)), NUMEL)
    for name in VALUE_CODES:
        if name == "fp64":
            continue
        wire = Wire("rice", name)
        size, count = 0, 0
        for model, sparse in large.items():
            rounded = SparseGradient(sparse.indices, wire.round(sparse.values), sparse.numel)
            own = wire.encode(rounded).numel()
            yield row(f"entry, {wire}", f"{model}, density 0.001", 8 * own / sparse.kept, "bit")
            if model != "random":
                size, count = size + own, count + sparse.kept
                error = (rounded.values - sparse.values).double().norm() / sparse.values.double().norm()
                yield row(f"rounding error, {name}", f"{model}, density 0.001", 100 * float(error), "% of norm")
        on = "models of 1e6 and more, density 0.001"
        yield row(f"entry, {wire}", on, 8 * size / count, "bit", ENTRY_BITS.get(name))


def fixed_sizes() -> Iterator[Row]:
    """Count bits of an entry at density 1/64 where accelerators pack: the same wherever entries lie, header and all."""
    for numel in (10**6, 25 * 10**6):
        k = numel // 64
        for name in FIXED:
            bits = 8 * Wire.parse(name).max_bytes(k, numel) / k
            yield row(f"entry, {name}", f"any {k} of {numel}, density 1/64", bits, "bit", FIXED_BITS.get(name))


def least_ns(work: Callable[[], object], count: int, seconds: float) -> float:
    least, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return 1e9 * least / count


def times(seconds: float) -> Iterator[Row]:
    """Time indices, values and whole payloads."""
    indices = at_random(0.01)
    count = len(indices)
    values = torch.randn(count, generator=torch.Generator().manual_seed(1))
    on = f"{count} of {NUMEL}"
    for code in CODES:
        coder = INDEX_CODES[code]
        section = coder.encode(indices, NUMEL, count)
        encode = least_ns(partial(coder.encode, indices, NUMEL, count), count, seconds)
        decode = least_ns(partial(coder.decode, section, count, NUMEL), count, seconds)
        targets = NANOSECONDS.get(code, (None, None))
        yield row(f"index encode, {code}", on, encode, "ns", targets[0])
        yield row(f"index decode, {code}", on, decode, "ns", targets[1])
    for name in VALUE_CODES:
        if name == "fp64":
            continue
        wire = Wire("rice", name)
        sparse = SparseGradient(indices, wire.round(values), NUMEL)
        payload = wire.encode(sparse)
        yield row(f"round, {name}", on, least_ns(partial(wire.round, values), count, seconds), "ns")
        encode = least_ns(partial(wire.encode, sparse), count, seconds)
        decode = least_ns(partial(wire.decode, payload), count, seconds)
        yield row(f"payload encode, {wire}", on, encode, "ns")
        yield row(f"payload decode, {wire}", on, decode, "ns")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each call is repeated")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a row misses its target")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if kernels() is None:
        print("the C code is not built: times are those of the reference", file=sys.stderr)
    selections = stored()
    missed = 0
    for rows in (sizes(selections), whole_entries(selections), fixed_sizes(), times(arguments.seconds)):
        for each in rows:
            print(json.dumps({"question": "codec", **each}), flush=True)
            missed += not each.get("met", True)
    print(f"{missed} rows miss their target" if missed else "every target is met", file=sys.stderr)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
