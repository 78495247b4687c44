"""Every compressor x every law that all of them keep."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import pytest
import torch
from tests.each import each

from gaussiank.compressors import COMPRESSORS, Capped, Compressor, SelectContext, parse_compressor
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.ops import select_topk
from gaussiank.reducer import Selector
from gaussiank.sparse import SparseGradient

Draw = Callable[..., torch.Tensor]
LIMIT = 9
SPECS = [
    *COMPRESSORS,
    "gaussiank:mode=published",
    "gaussiank:mode=paper",
    "sidco:mode=gammapareto",
    "sidco:mode=pareto:stages=3",
    "mstopk:samplings=2",
    "chunktopk:chunk=16",
    "chunktopk:chunk=64",
    "randomk:shared=true",
    "randomk:feedback=false",
]
ROWS: dict[str, Compressor] = {spec: parse_compressor(spec) for spec in SPECS}
CAPPED: dict[str, Compressor] = {f"capped {spec}": Capped(row, LIMIT) for spec, row in ROWS.items()}
EXACT = ("topk", "trimmedtopk", "dense")
LAWS = ["normal", "laplace", "t3", "uniform", "cauchy", "lognormal", "sparse", "integers"]
DENORMAL = 1e-45


def adversarial(numel: int) -> dict[str, torch.Tensor]:
    steps = torch.arange(numel, dtype=torch.float32)
    one = torch.zeros(numel)
    one[numel // 2] = -3.0
    return {
        "zeros": torch.zeros(numel),
        "negative zeros": -torch.zeros(numel),
        "equal": torch.full((numel,), -1.5),
        "one non-zero": one,
        "denormals": (steps - numel // 2) * DENORMAL,
        "huge": torch.where(steps % 2 == 0, 1e38, -3e38),
        "huge of one sign": 1e38 + steps * (2e38 / numel),
        "one huge": torch.where(steps == 0, 3e38, 1e-30),
        "ascending": steps,
        "descending": -steps.flip(0),
    }


VECTORS = {f"{name} of {numel}": vector for numel in (1, 2, 700) for name, vector in adversarial(numel).items()}


def counts(numel: int) -> list[int]:
    return sorted({1, min(2, numel), math.ceil(numel / 14), numel})  # of 700: 50, which GaussianK searches for


def require_lawful(compressor: Compressor, vector: torch.Tensor, k: int, turn: SelectContext) -> torch.Tensor:
    """Check what holds for every selection, and return it."""
    before, bound = vector.clone(), compressor.capacity(k, vector.numel())
    indices, hint = compressor.select(vector, k, turn)
    assert torch.equal(vector, before)
    assert indices.dtype == torch.int32
    assert indices.dim() == 1
    assert SparseGradient.pick(vector, indices).check().kept <= (vector.numel() if bound is None else bound)
    again, same_hint = compressor.select(vector, k, dataclasses.replace(turn))
    assert torch.equal(again, indices)
    assert (hint is None and same_hint is None) or torch.equal(hint, same_hint)  # type: ignore[arg-type]
    return indices


def squares(vector: torch.Tensor) -> float:
    return float(vector.double().square().sum())


def require_contraction(vector: torch.Tensor, indices: torch.Tensor, share_left: float) -> None:
    rest = vector.clone()
    rest[indices] = 0
    assert squares(rest) <= share_left * squares(vector) * (1 + 1e-12)


# ---------------------------------------------------------------------- selection


@each("law", LAWS)
@each("row", [*ROWS, *CAPPED])
def test_selection_is_lawful(draw: Draw, row: str, law: str) -> None:
    compressor = (ROWS | CAPPED)[row]
    for dtype in (torch.float32, torch.float64):
        vector = draw(law, 3000).to(dtype)
        for k in (1, 3, 40, 300, 3000):
            indices = require_lawful(compressor, vector, k, SelectContext(step=3, rank=1, part=7))
            require_contraction(vector, indices, 1.0)


@each("name", VECTORS)
@each("row", [*ROWS, *CAPPED])
def test_selection_of_awkward_vectors_is_lawful(row: str, name: str) -> None:
    vector = VECTORS[name]
    for k in counts(vector.numel()):
        indices = require_lawful((ROWS | CAPPED)[row], vector, k, SelectContext())
        require_contraction(vector, indices, 1.0)


@each("row", EXACT)
def test_exact_rows_leave_no_more_than_their_share(draw: Draw, row: str) -> None:
    vectors = [draw(law, 3000) for law in LAWS] + list(VECTORS.values())
    for vector in vectors:
        for k in counts(vector.numel()):
            indices = ROWS[row].select(vector, k).indices
            require_contraction(vector, indices, 1 - k / vector.numel())
            if row != "dense":
                assert torch.equal(indices, select_topk(vector, k))


@each("row", ROWS)
def test_first_turn_is_the_default(draw: Draw, row: str) -> None:
    vector = draw("laplace", 3000)
    without, given = ROWS[row].select(vector, 60), ROWS[row].select(vector, 60, SelectContext())
    assert torch.equal(without.indices, given.indices)


@each("row", ROWS)
def test_rows_that_promise_k_send_at_most_k_and_not_nothing(draw: Draw, row: str) -> None:
    vector = draw("normal", 3000)
    kept = ROWS[row].select(vector, 60).indices.numel()
    assert kept > 0
    if row in ("topk", "trimmedtopk") or row.startswith(("randomk", "mstopk", "chunktopk")):
        assert kept == 60


@each("row", [row for row in ROWS if row.startswith(("topk", "trimmed", "mstopk", "chunk", "rand"))])
def test_rows_of_a_fixed_count_send_exactly_k(draw: Draw, row: str) -> None:
    for vector in [*(draw(law, 3000) for law in LAWS), *VECTORS.values()]:
        for k in counts(vector.numel()):
            assert ROWS[row].select(vector, k, SelectContext(step=5)).indices.numel() == k


@each("spec", ROWS)
def test_cap_holds(draw: Draw, spec: str) -> None:
    vector = draw("laplace", 3000)
    for k in (1, 40, 3000):
        whole = ROWS[spec].select(vector, k).indices
        cut = CAPPED[f"capped {spec}"].select(vector, k).indices
        assert cut.numel() == min(LIMIT, whole.numel())
        assert set(cut.tolist()) <= set(whole.tolist())


@each("row", [*ROWS, *CAPPED])
def test_rows_are_frozen_and_compare_by_their_settings(row: str) -> None:
    compressor = (ROWS | CAPPED)[row]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'threshold'"):
        compressor.threshold = 1.0  # type: ignore[attr-defined]
    for field in dataclasses.fields(compressor):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{field.name}'"):
            setattr(compressor, field.name, None)
    twin = dataclasses.replace(compressor)  # type: ignore[type-var]
    assert twin == compressor
    assert hash(twin) == hash(compressor)


@each("row", [row for row in [*ROWS, *CAPPED] if not row.endswith("dense")])
@each("k", [0, -1, 101])
def test_refuses_k_outside_the_vector(row: str, k: int) -> None:
    message = f"k must be in [1, numel = 100], got {k}. Ask for at least one entry and at most all."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        (ROWS | CAPPED)[row].select(torch.ones(100), k)


@each("row", [*ROWS, *CAPPED])
def test_refuses_what_is_no_vector(row: str) -> None:
    for vector, got in ((torch.ones(4, 25), r"shape \(4, 25\)"), (torch.ones(200)[::2], r"shape \(100,\)")):
        with pytest.raises(ValueError, match=rf"^accumulated must be flat and contiguous, got {got}"):
            (ROWS | CAPPED)[row].select(vector, 3)
    with pytest.raises(ValueError, match=r"^accumulated must be one of float32, .*, got torch\.int64\. Convert it"):
        (ROWS | CAPPED)[row].select(torch.ones(100, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"^accumulated must have 1 to 2147483647 entries, got 0\."):
        (ROWS | CAPPED)[row].select(torch.ones(0), 1)


# ---------------------------------------------------------------------- the fused form


def is_fused(compressor: Compressor) -> bool:
    kind = type(compressor.inner if isinstance(compressor, Capped) else compressor)
    return kind.take is not Compressor.take


FUSED = {name: row for name, row in (ROWS | CAPPED).items() if is_fused(row)}


def same_hint(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


def require_same_take(
    compressor: Compressor, grad: torch.Tensor, residual: torch.Tensor, k: int, turn: SelectContext
) -> bool:
    """Compare ``take`` with adding, selecting and removing, in place and not; tells whether it was fused."""
    total = residual + grad
    finite = compressor.nonfinite_first or bool(torch.isfinite(total).all())
    if finite:
        indices, hint = compressor.select(total, k, turn)
    else:
        bound = compressor.capacity(k, total.numel()) or total.numel()
        indices, hint = (~torch.isfinite(total)).nonzero().squeeze(1)[:bound].int(), None
    values = total[indices]
    rest = total.clone()
    rest[indices] = 0
    for out in (residual.clone(), torch.full_like(residual, 7.0)):
        before = residual.clone() if out[0] == 7 and residual[0] != 7 else out
        untouched = out.clone()
        taken = compressor.take(grad.clone(), before, out, k, turn)
        if taken is None:
            assert torch.equal(out, untouched)
            return False
        assert torch.equal(taken.indices, indices)
        assert taken.indices.dtype == torch.int32
        assert torch.equal(bits(taken.values), bits(values))
        assert torch.equal(bits(out), bits(rest))
        assert same_hint(taken.hint, hint)
        assert before is out or torch.equal(before, residual)
    return True


def bits(vector: torch.Tensor) -> torch.Tensor:
    return vector.view(torch.int64 if vector.dtype == torch.float64 else torch.int32)


def test_fused_rows_are_known() -> None:
    assert {name.split(":")[0] for name in FUSED if not name.startswith("capped")} == {
        "topk",
        "gaussiank",
        "dgc",
        "trimmedtopk",
    }


@each("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@each("law", LAWS)
@each("row", FUSED)
def test_take_is_add_select_remove(draw: Draw, row: str, law: str, dtype: torch.dtype) -> None:
    compressor, wide = FUSED[row], torch.float64 if dtype == torch.float64 else torch.float32
    fused = 0
    for k in (1, 3, 40, 300, 3000):
        hint = None
        for step in range(4):
            grad = draw(law, 3000, seed=step).clamp_(-3e4, 3e4).to(dtype)
            residual = draw(law, 3000, seed=10 + step).to(wide)
            turn = SelectContext(step=step, rank=1, part=7, hint=hint)
            fused += require_same_take(compressor, grad, residual, k, turn)
            hint = compressor.select((residual + grad) * 1.1**step, k, turn).hint
    assert fused or "mode" in row


@each("name", VECTORS)
@each("row", FUSED)
def test_take_of_awkward_vectors_is_add_select_remove(row: str, name: str) -> None:
    residual = VECTORS[name]
    for k in counts(residual.numel()):
        for hint in (None, *map(torch.tensor, (0.0, 1e-45, 1.0, 1e30, math.inf, math.nan, -1.0))):
            turn = SelectContext(step=2, hint=hint)
            require_same_take(FUSED[row], torch.zeros_like(residual), residual, k, turn)
            require_same_take(FUSED[row], -residual, residual, k, turn)


@each("bad", [math.inf, -math.inf, math.nan])
@each("row", FUSED)
def test_take_sends_infinity_and_nan(draw: Draw, row: str, bad: float) -> None:
    for places in ([0], [999], [5, 902, 950], range(900), range(1000)):
        grad, residual = draw("normal", 1000), draw("normal", 1000, seed=3)
        grad[list(places)] = bad
        for hint in (None, torch.tensor(2.0)):
            require_same_take(FUSED[row], grad, residual, 40, SelectContext(hint=hint))


@each("row", [row for row in FUSED if "published" not in row and "paper" not in row])
def test_take_refuses_what_select_refuses(row: str) -> None:
    turn = SelectContext(hint=torch.tensor(1.0))
    vector = torch.ones(100)
    for k in (0, 101):
        with pytest.raises(ValueError, match=rf"^k must be in \[1, numel = 100\], got {k}\."):
            FUSED[row].take(vector, torch.ones(100), torch.ones(100), k, turn)
    with pytest.raises(ValueError, match=r"^residual must have grad's 100 entries, got 99\."):
        FUSED[row].take(vector, torch.ones(99), torch.ones(100), 40, turn)


@each("row", ROWS)
def test_hint_of_another_compressor_is_no_hint(draw: Draw, row: str) -> None:
    vector = draw("normal", 3000)
    hints = [None, torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)]
    if "sidco" in row:
        hints = [None, torch.tensor(2.0)]
    without, other = (ROWS[row].select(vector, 60, SelectContext(hint=hint)) for hint in hints)
    assert torch.equal(without.indices, other.indices)


# ---------------------------------------------------------------------- with feedback, through the selector


def run(feedback: ErrorFeedback, selector: Selector, layout: Layout, grad: torch.Tensor, step: int) -> SparseGradient:
    sent = feedback.take(layout, grad, lambda u: selector.select(layout, u, 0.05, step))
    feedback.record_finite(torch.tensor(True))
    feedback.seal()
    assert feedback.settle()
    return sent


@each("per_layer", [False, True], ids=["whole", "per layer"])
@each("row", [*ROWS, *CAPPED])
def test_nothing_is_lost(draw: Draw, row: str, per_layer: bool) -> None:
    layout = Layout(("a", "b", "c"), (900, 3, 97))
    feedback = ErrorFeedback({"a": 900, "b": 3, "c": 97})
    selector = Selector((ROWS | CAPPED)[row], per_layer=per_layer, rank=2)
    bound = selector.asked(layout, 0.05).capacity
    before = torch.zeros(1000)
    for step, law in enumerate([*LAWS, *LAWS]):
        grad = draw(law, 1000, seed=step)
        sent = run(feedback, selector, layout, grad, step).check()
        assert sent.kept <= (1000 if bound is None else bound)
        after = torch.cat([feedback.residual(name) for name in layout.names])
        assert torch.equal(after + sent.dense(), before + grad)
        before = after


@each("bad", [math.inf, -math.inf, math.nan])
@each("per_layer", [False, True], ids=["whole", "per layer"])
@each("row", [*ROWS, *CAPPED])
def test_infinity_and_nan_are_always_sent(draw: Draw, row: str, per_layer: bool, bad: float) -> None:
    layout = Layout(("a", "b", "c"), (900, 3, 97))
    selector = Selector((ROWS | CAPPED)[row], per_layer=per_layer, rank=1)
    for step, places in enumerate(([0], [999], [901], [5, 902, 950], range(900), range(1000))):
        vector = draw("cauchy", 1000, seed=step) * 1e30
        vector[list(places)] = bad
        sent = selector.select(layout, vector, 0.001, step).check()
        assert not bool(torch.isfinite(sent.values).all())
        bound = selector.asked(layout, 0.001).capacity
        assert sent.kept <= (1000 if bound is None else bound)
        assert torch.equal(sent.values.nan_to_num(), vector[sent.indices].nan_to_num())


BOUNDED = [row for row in ROWS if ROWS[row].keeps_rest and ROWS[row].capacity(10, 200) is not None]


@each("row", BOUNDED)
def test_every_entry_is_sent_sooner_or_later(row: str) -> None:
    numel = 200
    layout, selector = Layout(("w",), (numel,)), Selector(ROWS[row], per_layer=False, rank=0)
    feedback, grad = ErrorFeedback({"w": numel}), torch.linspace(0.5, 1.5, numel)
    went = torch.zeros(numel)
    for step in range(200):
        went += run(feedback, selector, layout, grad, step).dense()
    assert bool((went > 0).all())
    torch.testing.assert_close(went + feedback.residual("w"), 200 * grad, rtol=1e-4, atol=1e-4)
