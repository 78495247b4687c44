"""How far from the speed of memory are the kernels? One JSON line for each case; all cases of a question in turn.

The ceiling is torch's own in-place add, 12 bytes an element, on the same kind of buffer in the same process. A case's
``percent_of_ceiling`` is the median ceiling time over its median time; ``speedup`` is the median time of the case it
is compared with over its own.

    python benchmarks/kernels.py --numels 1e6,1e7,5e7 --densities 0.001,0.01
    python benchmarks/kernels.py --questions take --clock cpu    # on a machine that others use, too; one thread only
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gaussiank import ops
from gaussiank.ops import native, reference
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import SparseGradient

Row = dict[str, Any]
Case = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
SEED = 19110877


def interleave(
    cases: dict[str, Case], repeats: int, clock: str = "wall", after: Callable[[str, Any], None] | None = None
) -> dict[str, list[float]]:
    """Run the cases in turn, ``repeats`` times after one warm-up; return the seconds of each.

    Args:
        cases: name -> what to run.
        repeats: timed rounds.
        clock: ``wall``, or ``cpu`` for the calling thread's own time.
        after: called with each name and result, untimed, to restore what the case changed.
    """
    read = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            started = read()
            result = case()
            took = read() - started
            if after is not None:
                after(name, result)
            if turn:
                times[name].append(took)
    return times


def rows_of(
    question: str, times: dict[str, list[float]], *, against: str, key: str = "speedup", **facts: Any
) -> Iterator[Row]:
    """Yield a row for each case, with its figure against the case named ``against``."""
    reference = statistics.median(times[against])
    for name, taken in times.items():
        median = statistics.median(taken)
        figure = 100 * reference / median if key.startswith("percent") else reference / median
        yield {
            "question": question,
            "case": name,
            **facts,
            "median_us": round(1e6 * median, 1),
            "min_us": round(1e6 * min(taken), 1),
            "against": against,
            key: round(figure, 2),
            "backend": ops.backends().active,
            "threads": torch.get_num_threads(),
            "repeats": len(taken),
        }


def _vectors(numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a gradient and a residual whose sum keeps its law from step to step."""
    rng = torch.Generator().manual_seed(SEED)
    grad = ops.residual_buffer(numel).normal_(0, 1e-3, generator=rng)
    return grad, ops.residual_buffer(numel).normal_(generator=rng)


def take(numel: int, density: float, repeats: int, clock: str = "wall") -> Iterator[Row]:
    """Exact take, steady (with the last step's hint) and cold, in place and to a second buffer; fixed threshold."""
    grad, residual = _vectors(numel)
    out = ops.residual_buffer(numel)
    k = max(1, round(density * numel))
    hint, number = ops.topk(residual + grad, k).hint, kernels()
    assert hint is not None
    threshold = float(hint)

    def known_threshold(into: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        assert number is not None
        return native.take_above(number, residual, threshold, k, native.ANY, grad, into, None)

    cases: dict[str, Case] = {
        "in-place add": lambda: residual.add_(grad),
        "steady": lambda: ops.accumulate_topk(grad, residual, k, hint),
        "cold": lambda: ops.accumulate_topk(grad, residual, k),
        "steady, second buffer": lambda: ops.accumulate_topk(grad, residual, k, hint, out=out),
        "cold, second buffer": lambda: ops.accumulate_topk(grad, residual, k, out=out),
        "out-of-place add": lambda: torch.add(residual, grad, out=out),
        "copy": lambda: out.copy_(residual),
        "selection alone, steady": lambda: ops.topk(residual, k, hint),
        "selection alone, cold": lambda: ops.topk(residual, k),
    }
    if number is not None:
        cases["known threshold"] = lambda: known_threshold(residual)
        cases["known threshold, second buffer"] = lambda: known_threshold(out)

    def restore(name: str, taken: Any) -> None:
        if name in ("steady", "cold", "known threshold"):
            residual[taken[0]] = taken[1]
        if name in ("in-place add", "steady", "cold", "known threshold"):
            residual.sub_(grad)  # and so the vectors are as much in cache for one as for the other

    times = interleave(cases, repeats, clock, restore)
    facts: dict[str, Any] = {"numel": numel, "density": density, "clock": clock}
    yield from rows_of("take", times, against="in-place add", key="percent_of_ceiling", **facts)
    for name, known in (("steady", "known threshold"), ("steady, second buffer", "known threshold, second buffer")):
        if known in times:
            pair = {known: times[known], name: times[name]}
            yield from list(rows_of("cost of exactness", pair, against=known, **facts))[1:]


def topk_with_feedback(numel: int, density: float, repeats: int, clock: str = "wall") -> Iterator[Row]:
    """Exact take against the same by torch.topk: add, |u|, topk, gather, zero; both from memory torch allocates."""
    rng = torch.Generator().manual_seed(SEED)
    residual, grad = torch.randn(numel, generator=rng), torch.randn(numel, generator=rng).mul_(1e-3)
    k = max(1, round(density * numel))
    hint = ops.topk(residual, k).hint

    def by_torch() -> tuple[torch.Tensor, torch.Tensor]:
        residual.add_(grad)
        indices = residual.abs().topk(k, sorted=False).indices
        values = residual[indices]
        residual[indices] = 0
        return indices, values

    def restore(name: str, taken: Any) -> None:
        residual[taken[0]] = taken[1]

    cases = {"torch.topk": by_torch, "steady": lambda: ops.accumulate_topk(grad, residual, k, hint)}
    times = interleave(cases, repeats, clock, restore)
    yield from rows_of("topk with feedback", times, against="torch.topk", numel=numel, density=density, clock=clock)


def gradient_dtypes(numel: int, density: float, repeats: int, clock: str = "wall") -> Iterator[Row]:
    """A bfloat16 or float16 gradient, converted in the pass, against a float32 one."""
    grad, residual = _vectors(numel)
    k = max(1, round(density * numel))
    hint = ops.topk(residual, k).hint
    grads = {"float32": grad, "bfloat16": grad.bfloat16(), "float16": grad.half()}

    def run(given: torch.Tensor) -> Case:
        return lambda: ops.accumulate_topk(given, residual, k, hint)

    def restore(name: str, taken: Any) -> None:
        residual[taken[0]] = taken[1]

    times = interleave({name: run(given) for name, given in grads.items()}, repeats, clock, restore)
    yield from rows_of("gradient dtype", times, against="float32", numel=numel, density=density, clock=clock)


def threads(numel: int, density: float, repeats: int, clock: str = "wall") -> Iterator[Row]:
    """Two threads against one; by the wall clock, whatever was asked for."""
    grad, residual = _vectors(numel)
    k = max(1, round(density * numel))
    hint = ops.topk(residual, k).hint
    before = torch.get_num_threads()

    def run(count: int) -> Case:
        def case() -> Any:
            torch.set_num_threads(count)
            return ops.accumulate_topk(grad, residual, k, hint)

        return case

    def restore(name: str, taken: Any) -> None:
        residual[taken[0]] = taken[1]

    times = interleave({"1 thread": run(1), "2 threads": run(2)}, repeats, "wall", restore)
    torch.set_num_threads(before)
    yield from rows_of("threads", times, against="1 thread", numel=numel, density=density, clock="wall")


def decode(numel: int, density: float, repeats: int, clock: str = "wall", world_size: int = 16) -> Iterator[Row]:
    """The mean of 16 sorted payloads against zero, scatter_add_, divide, and against a loop of index_add_."""
    rng = torch.Generator().manual_seed(SEED)
    k = max(1, round(density * numel))
    parts = [
        SparseGradient(
            torch.randint(numel, (2 * k,), generator=rng).unique()[:k].int(), torch.randn(k, generator=rng), numel
        )
        for _ in range(world_size)
    ]
    indices = torch.cat([part.indices for part in parts]).long()
    values = torch.cat([part.values for part in parts])
    out = ops.residual_buffer(numel)

    def add_one_by_one() -> None:
        out.zero_()
        for part in parts:
            out.index_add_(0, part.indices, part.values)
        out.div_(world_size)

    cases: dict[str, Case] = {
        "scatter_add_": lambda: out.zero_().scatter_add_(0, indices, values).div_(world_size),
        "index_add_ loop": add_one_by_one,
        "scatter_mean": lambda: ops.scatter_mean(parts, out),
        "union": lambda: ops.union(parts),
    }
    times = interleave(cases, repeats, clock)
    facts: dict[str, Any] = {"numel": numel, "density": density, "clock": clock, "parts": world_size}
    yield from rows_of("decode", times, against="scatter_add_", **facts)


def statistics_of_a_vector(numel: int, density: float, repeats: int, clock: str = "wall") -> Iterator[Row]:
    """Moments in one pass against torch's, and against the in-place add."""
    grad, vector = _vectors(numel)
    cases: dict[str, Case] = {
        "in-place add": lambda: vector.add_(grad),
        "moments": lambda: ops.moments(vector),
        "moments, reference": lambda: reference.moments(vector),
        "count_above": lambda: ops.count_above(vector, 3.0),
        "select_above": lambda: ops.select_above(vector, 3.0),
    }
    times = interleave(cases, repeats, clock)
    yield from rows_of(
        "statistics", times, against="in-place add", key="percent_of_ceiling", numel=numel, density=density, clock=clock
    )


QUESTIONS = {
    "take": take,
    "topk": topk_with_feedback,
    "dtypes": gradient_dtypes,
    "threads": threads,
    "decode": decode,
    "statistics": statistics_of_a_vector,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="by comma")
    parser.add_argument("--numels", default="1e6,1e7,5e7", help="by comma")
    parser.add_argument("--densities", default="0.001,0.01", help="by comma")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds, at least 7")
    parser.add_argument("--threads", type=int, default=1, help="of torch and the kernels")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the calling thread's own time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for numel in (int(float(text)) for text in arguments.numels.split(",")):
        for density in map(float, arguments.densities.split(",")):
            for question in arguments.questions.split(","):
                for row in QUESTIONS[question](numel, density, max(7, arguments.repeats), arguments.clock):
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
