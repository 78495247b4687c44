from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.each import each

from gaussiank.compressors import COMPRESSORS, Capped, Compressor, SelectContext, TopK, parse_compressor
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.momentum import MomentumCorrection
from gaussiank.ops import RESIDUAL_DTYPES, select_topk
from gaussiank.sparse import SparseGradient

SIZES = {"a": 30, "b": 7, "c": 1, "d": 62}
WHOLE = Layout(("a", "b", "c", "d"), (30, 7, 1, 62))
NUMEL = 100
TRUE, FALSE = torch.tensor(True), torch.tensor(False)
SPECS = [*COMPRESSORS, "gaussiank:mode=published", "gaussiank:mode=paper", "randomk:shared=true", "capped"]

State = Mapping[str, Any]


def top(k: int) -> Callable[[torch.Tensor], SparseGradient]:
    return lambda u: SparseGradient.pick(u, select_topk(u, min(k, u.numel())))


def first(u: torch.Tensor) -> SparseGradient:
    return SparseGradient.pick(u, torch.zeros(1, dtype=torch.int32, device=u.device))


def end(feedback: ErrorFeedback, *verdicts: torch.Tensor) -> bool:
    for verdict in verdicts:
        feedback.record_finite(verdict)
    feedback.seal()
    return feedback.settle()


def residual(feedback: ErrorFeedback, layout: Layout = WHOLE) -> torch.Tensor:
    return torch.cat([feedback.residual(name) for name in layout.names])


def velocity(feedback: ErrorFeedback, layout: Layout = WHOLE) -> torch.Tensor:
    saved = feedback.state_dict()["velocity"]
    return torch.cat([saved[name] for name in layout.names])


def equal(one: State, other: State) -> bool:
    """Compare two states to the bit."""
    plain = all(one[key] == other[key] for key in ("format", "parameters"))
    return plain and all(
        one[key].keys() == other[key].keys()
        and all(
            one[key][name].dtype == other[key][name].dtype and torch.equal(one[key][name], other[key][name])
            for name in one[key]
        )
        for key in ("residual", "velocity")
    )


def grads(rng: torch.Generator, count: int, numel: int = NUMEL) -> Iterator[torch.Tensor]:
    for _ in range(count):
        yield torch.randn(numel, generator=rng)


def filled(rng: torch.Generator, momentum: MomentumCorrection | None = None, layout: Layout = WHOLE) -> ErrorFeedback:
    """Return a feedback that three steps have left residuals (and velocities) in."""
    feedback = ErrorFeedback(SIZES, momentum=momentum)
    for grad in grads(rng, 3, layout.numel):
        feedback.take(layout, grad, top(9))
        assert end(feedback, TRUE)
    return feedback


# ---------------------------------------------------------------------- nothing is lost


def test_trace_of_the_paper() -> None:
    feedback = ErrorFeedback({"w": 4})
    layout, grad = Layout(("w",), (4,)), torch.tensor([4.0, 3.0, 2.0, 1.0])
    trace = []
    total = torch.zeros(4)
    for step in range(1, 9):
        sent = feedback.take(layout, grad, top(1))
        assert end(feedback, TRUE)
        total += sent.dense()
        trace.append((sent.indices.tolist(), sent.values.tolist(), feedback.residual("w").tolist()))
        assert torch.equal(total + feedback.residual("w"), step * grad)
    assert trace == [
        ([0], [4.0], [0.0, 3.0, 2.0, 1.0]),
        ([1], [6.0], [4.0, 0.0, 4.0, 2.0]),
        ([0], [8.0], [0.0, 3.0, 6.0, 3.0]),
        ([2], [8.0], [4.0, 6.0, 0.0, 4.0]),
        ([1], [9.0], [8.0, 0.0, 2.0, 5.0]),
        ([0], [12.0], [0.0, 3.0, 4.0, 6.0]),
        ([3], [7.0], [4.0, 6.0, 6.0, 0.0]),
        ([1], [9.0], [8.0, 0.0, 8.0, 1.0]),
    ]
    assert grad.tolist() == [4.0, 3.0, 2.0, 1.0]


@each("spec", SPECS)
@each("dtype", RESIDUAL_DTYPES, ids=str)
def test_residual_and_sent_are_what_came_in_to_the_bit(rng: torch.Generator, spec: str, dtype: torch.dtype) -> None:
    compressor: Compressor = Capped(TopK(), limit=11) if spec == "capped" else parse_compressor(spec)
    layout = Layout(("w",), (2000,))
    feedback = ErrorFeedback({"w": 2000})
    hint, before = None, torch.zeros(2000, dtype=RESIDUAL_DTYPES[dtype])
    for step in range(12):
        grad = (torch.randn(2000, generator=rng) * 10.0 ** (step % 5 - 2)).to(dtype)
        own = grad.clone()
        turn = SelectContext(step=step, hint=hint)
        chosen: list[torch.Tensor] = []

        def select(u: torch.Tensor, turn: SelectContext = turn, chosen: list[torch.Tensor] = chosen) -> SparseGradient:
            selection = compressor.select(u, 100, turn)
            chosen.append(selection.indices)
            return SparseGradient.pick(u, selection.indices)

        sent = feedback.take(layout, grad, select)
        assert end(feedback, TRUE)
        after = feedback.residual("w")
        assert after.dtype == sent.values.dtype == RESIDUAL_DTYPES[dtype]
        assert torch.equal(sent.indices, chosen[0])
        assert torch.equal(after + sent.dense(), before + own)
        assert not after[sent.indices].any()
        assert torch.equal(grad, own)
        before = after


def test_sum_of_all_steps_is_exact_for_whole_numbers(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES)
    came, went = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for _ in range(50):
        grad = torch.randint(-9, 10, (NUMEL,), generator=rng).float()
        came += grad
        went += feedback.take(WHOLE, grad, top(3)).dense()
        assert end(feedback, TRUE)
    assert torch.equal(went + residual(feedback), came)
    assert residual(feedback).any()


def test_parameters_are_found_by_name() -> None:
    feedback = ErrorFeedback({"x": 2, "y": 3})
    feedback.take(Layout(("y", "x"), (3, 2)), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), top(1))
    assert end(feedback, TRUE)
    assert feedback.residual("x").tolist() == [4.0, 0.0]
    assert feedback.residual("y").tolist() == [1.0, 2.0, 3.0]


def test_several_parts_make_one_step(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES)
    one, two = Layout(("a", "b"), (30, 7)), Layout(("c", "d"), (1, 62))
    first, second = torch.randn(37, generator=rng), torch.randn(63, generator=rng)
    sent = [feedback.take(one, first, top(2)), feedback.take(two, second, top(5))]
    assert not residual(feedback).any()  # not before settle
    assert end(feedback, TRUE, TRUE)
    assert torch.equal(residual(feedback, one) + sent[0].dense(), first)
    assert torch.equal(residual(feedback, two) + sent[1].dense(), second)


def test_entries_that_select_makes_up_count_as_sent() -> None:
    feedback = ErrorFeedback({"w": 3})
    layout = Layout(("w",), (3,))
    nothing = SparseGradient(torch.empty(0, dtype=torch.int32), torch.empty(0), 3)
    assert feedback.take(layout, torch.tensor([1.0, 2.0, 3.0]), lambda _: nothing) is nothing
    assert end(feedback, TRUE)
    assert feedback.residual("w").tolist() == [1.0, 2.0, 3.0]


# ---------------------------------------------------------------------- held places


HELD = [slice(0, 30), slice(37, 38)]


@each("momentum", [None, MomentumCorrection(0.9), MomentumCorrection(0.9, nesterov=True)])
def test_held_places_send_nothing_and_stay(rng: torch.Generator, momentum: MomentumCorrection | None) -> None:
    feedback = filled(rng, momentum)
    before = feedback.state_dict()
    came = residual(feedback)
    grad = torch.randn(NUMEL, generator=rng)
    for place in HELD:
        grad[place] = 0
    sent = feedback.take(WHOLE, grad, top(90), held=HELD)
    assert end(feedback, TRUE)
    after = feedback.state_dict()
    for name in ("a", "c"):
        assert before["residual"][name].any()
        assert torch.equal(after["residual"][name], before["residual"][name])
        if momentum:
            assert torch.equal(after["velocity"][name], before["velocity"][name])
    for place in HELD:
        assert not sent.dense()[place].any()
    if momentum is None:
        assert torch.equal(residual(feedback) + sent.dense(), came + grad)


@each("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_step_leaves_held_places_alone(rng: torch.Generator, dtype: torch.dtype) -> None:
    feedback = filled(rng)
    came = residual(feedback)
    grad = torch.randn(NUMEL, generator=rng).to(dtype)
    for place in HELD:
        grad[place] = 0
    own = grad.to(torch.float32, copy=True)
    assert feedback.take_all(WHOLE, grad, held=HELD)
    assert end(feedback, TRUE)
    for place in HELD:
        assert not grad[place].any()
        assert torch.equal(residual(feedback)[place], came[place])
    assert torch.equal(residual(feedback) + grad.float(), came + own)
    # what is held is still there to be flushed
    later = torch.zeros(NUMEL, dtype=dtype)
    assert feedback.take_all(WHOLE, later)
    assert end(feedback, TRUE)
    assert torch.equal(later[:30], came[:30].to(dtype))


@each("dense", [False, True], ids=["take", "take_all"])
def test_held_may_be_an_iterator(rng: torch.Generator, dense: bool) -> None:
    feedback = filled(rng)
    came, grad = residual(feedback), torch.zeros(NUMEL)
    if dense:
        feedback.take_all(WHOLE, grad, held=iter(HELD))
    else:
        feedback.take(WHOLE, grad, top(1), held=iter(HELD))
    assert end(feedback, TRUE)
    assert torch.equal(residual(feedback)[:30], came[:30])


# ---------------------------------------------------------------------- dense steps


def test_dense_step_flushes_the_residual(rng: torch.Generator) -> None:
    feedback = filled(rng)
    came, grad = residual(feedback), torch.randn(NUMEL, generator=rng)
    own = grad.clone()
    assert feedback.take_all(WHOLE, grad)
    assert torch.equal(residual(feedback), came)  # not before settle
    assert end(feedback, TRUE)
    assert torch.equal(grad, came + own)
    assert not residual(feedback).any()


@each("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dense_step_keeps_what_the_narrow_dtype_rounds_off(rng: torch.Generator, dtype: torch.dtype) -> None:
    feedback = filled(rng)
    came, grad = residual(feedback), torch.randn(NUMEL, generator=rng).to(dtype)
    own = grad.to(torch.float32, copy=True)
    assert feedback.take_all(WHOLE, grad)
    assert end(feedback, TRUE)
    assert torch.equal(grad, (came + own).to(dtype))
    assert torch.equal(residual(feedback) + grad.float(), came + own)
    assert residual(feedback).any()
    assert feedback.take_all(WHOLE, torch.zeros(NUMEL, dtype=dtype))  # the rounding is due


def test_dense_step_without_residual_costs_nothing(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES)
    grad = torch.randn(NUMEL, generator=rng)
    own = grad.clone()
    assert feedback.take_all(WHOLE, grad) is False
    assert torch.equal(grad, own)
    assert end(feedback) is True  # no verdict is due
    assert feedback.state_dict()["residual"] == {}


def test_dense_step_after_a_flush_costs_nothing(rng: torch.Generator) -> None:
    feedback = filled(rng)
    assert feedback.take_all(WHOLE, torch.randn(NUMEL, generator=rng))
    assert end(feedback, TRUE)
    grad = torch.randn(NUMEL, generator=rng)
    own = grad.clone()
    assert feedback.take_all(WHOLE, grad) is False
    assert torch.equal(grad, own)
    assert end(feedback)


def test_dense_step_after_a_flush_that_failed_flushes_again(rng: torch.Generator) -> None:
    feedback = filled(rng)
    came = residual(feedback)
    assert feedback.take_all(WHOLE, torch.zeros(NUMEL))
    assert not end(feedback, FALSE)
    grad = torch.zeros(NUMEL)
    assert feedback.take_all(WHOLE, grad)
    assert end(feedback, TRUE)
    assert torch.equal(grad, came)


def test_dense_and_sparse_steps_follow_each_other(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES)
    came, went = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for step in range(24):
        grad = torch.randint(-9, 10, (NUMEL,), generator=rng).float()
        came += grad
        if step % 4 < 2:
            due = feedback.take_all(WHOLE, grad)
            assert due == (step % 4 == 0 and step > 0)
            went += grad
            assert end(feedback, *[TRUE] * due)
            assert not residual(feedback).any()
        else:
            went += feedback.take(WHOLE, grad, top(5)).dense()
            assert end(feedback, TRUE)
        assert torch.equal(went + residual(feedback), came)


# ---------------------------------------------------------------------- a step is whole or was not


@each("momentum", [None, MomentumCorrection(0.9, clip_norm=5.0)], ids=["plain", "momentum"])
@each("dense", [False, True], ids=["take", "take_all"])
@each("case", ["not finite", "one not finite", "missing", "one missing", "not sealed", "taken only"])
def test_a_step_that_is_not_whole_changes_nothing(
    rng: torch.Generator, momentum: MomentumCorrection | None, dense: bool, case: str
) -> None:
    feedback = ErrorFeedback(SIZES, momentum=momentum)
    layouts = (Layout(("a", "b"), (30, 7)), Layout(("c", "d"), (1, 62)))

    def take(dense: bool, scale: float = 1.0) -> None:
        for layout in layouts:
            grad = torch.randn(layout.numel, generator=rng) * scale
            if dense:
                assert feedback.take_all(layout, grad)
            else:
                feedback.take(layout, grad, top(3))

    for _ in range(3):
        take(dense=False)
        assert end(feedback, TRUE, TRUE)
    before = feedback.state_dict()
    take(dense, scale=math.nan if "finite" in case else 1.0)
    verdicts = {"not finite": [FALSE, FALSE], "one not finite": [TRUE, FALSE], "one missing": [TRUE]}
    for verdict in verdicts.get(case, [TRUE, TRUE] if case == "not sealed" else []):
        feedback.record_finite(verdict)
    if not case.startswith(("not sealed", "taken only")):
        feedback.seal()
    assert equal(feedback.state_dict(), before)
    assert feedback.settle() is False
    assert equal(feedback.state_dict(), before)
    # and the next step goes on as if it had not been
    twin = ErrorFeedback(SIZES, momentum=momentum)
    twin.load_state_dict(before)
    grad = torch.randn(37, generator=rng)
    ours, theirs = feedback.take(layouts[0], grad, top(3)), twin.take(layouts[0], grad, top(3))
    assert torch.equal(ours.dense(), theirs.dense())
    assert end(feedback, TRUE)
    assert end(twin, TRUE)
    assert equal(feedback.state_dict(), twin.state_dict())


def test_a_select_that_raises_changes_nothing(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()

    def broken(_: torch.Tensor) -> SparseGradient:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), broken)
    assert end(feedback) is False
    assert equal(feedback.state_dict(), before)


def test_settle_without_a_step_commits_nothing(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()
    assert feedback.settle() is False
    assert equal(feedback.state_dict(), before)


def test_verdicts_do_not_outlive_their_step(rng: torch.Generator) -> None:
    feedback = filled(rng)
    feedback.record_finite(TRUE)
    feedback.seal()
    assert feedback.settle() is False  # one verdict for no part
    before = feedback.state_dict()
    feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), top(3))
    assert feedback.settle() is False
    assert equal(feedback.state_dict(), before)


# ---------------------------------------------------------------------- what did not enter the mean


def test_rejected_entries_are_kept(rng: torch.Generator) -> None:
    feedback = filled(rng)
    came, grad = residual(feedback), torch.randn(NUMEL, generator=rng)
    sent = feedback.take(WHOLE, grad, top(10))
    rejected = SparseGradient(sent.indices[::2].clone(), sent.values[::2].clone(), NUMEL)
    entered = SparseGradient(sent.indices[1::2].clone(), sent.values[1::2].clone(), NUMEL)
    feedback.put_back(WHOLE, rejected)
    assert end(feedback, TRUE)
    assert torch.equal(residual(feedback) + entered.dense(), came + grad)
    assert torch.equal(residual(feedback)[rejected.indices], rejected.values)


def test_rounding_error_of_the_mean_is_kept(rng: torch.Generator) -> None:
    feedback = filled(rng)
    came, grad = residual(feedback), torch.randn(NUMEL, generator=rng)
    sent = feedback.take(WHOLE, grad, top(10))
    rounded = sent.dense().bfloat16().float()
    feedback.put_back(WHOLE, sent.dense() - rounded)
    assert end(feedback, TRUE)
    assert torch.equal(residual(feedback) + rounded, came + grad)


def test_what_is_kept_falls_with_its_step(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()
    sent = feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), top(10))
    feedback.put_back(WHOLE, sent)
    feedback.put_back(WHOLE, torch.ones(NUMEL))
    assert not end(feedback, FALSE)
    assert equal(feedback.state_dict(), before)


# ---------------------------------------------------------------------- another layout


def layouts(*groups: str) -> list[Layout]:
    return [Layout(tuple(group), tuple(SIZES[name] for name in group)) for group in groups]


# ---------------------------------------------------------------------- what is refused


def test_refuses_unknown_parameters() -> None:
    feedback = ErrorFeedback({"w": 4})
    with pytest.raises(ValueError, match=r"^layout must name parameters of the model, got 'x' with 3 entries\."):
        feedback.take(Layout(("x",), (3,)), torch.zeros(3), top(1))
    with pytest.raises(ValueError, match=r"^layout must name parameters of the model, got 'w' with 3 entries\."):
        feedback.take(Layout(("w",), (3,)), torch.zeros(3), top(1))
    with pytest.raises(
        ValueError, match=r"^name must be a parameter of the model, got 'x'\. See model\.named_parameters"
    ):
        feedback.residual("x")
    assert feedback.residual("w").tolist() == [0.0] * 4


def test_refuses_gradients_that_do_not_fit(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()
    for take in (lambda grad: feedback.take(WHOLE, grad, top(1)), lambda grad: feedback.take_all(WHOLE, grad)):
        with pytest.raises(ValueError, match=r"^grad must fit its layout of 100 entries, got 99\. Pass all of it\.$"):
            take(torch.zeros(99))
        with pytest.raises(ValueError, match=r"^grad must be flat and contiguous, got shape \(10, 10\)"):
            take(torch.zeros(10, 10))
        with pytest.raises(ValueError, match=r"^grad must be one of float32, .*, got torch\.int64\."):
            take(torch.zeros(100, dtype=torch.int64))
    assert end(feedback) is True  # none of them began a part
    assert equal(feedback.state_dict(), before)


# ---------------------------------------------------------------------- drawing more than was selected


@each("momentum", [None, MomentumCorrection(), MomentumCorrection(masking=False)])
def test_what_is_drawn_leaves_the_residual(rng: torch.Generator, momentum: MomentumCorrection | None) -> None:
    feedback, plain = filled(rng, momentum), ErrorFeedback(SIZES, momentum=momentum)
    plain.load_state_dict(feedback.state_dict())
    grad = torch.randn(NUMEL, generator=rng)
    sent, same = feedback.take(WHOLE, grad, top(5)), plain.take(WHOLE, grad, top(5))
    asked = torch.cat([sent.indices[:2], (sent.indices[:2] + 1) % NUMEL]).unique().int()
    drawn = feedback.take_more(WHOLE, asked)
    assert end(feedback, TRUE)
    assert end(plain, TRUE)
    without = residual(plain)
    assert torch.equal(drawn, without[asked])
    assert torch.equal(residual(feedback)[asked], torch.zeros(len(asked)))
    put_back = residual(feedback)
    put_back[asked] = drawn
    assert torch.equal(put_back, without)
    assert torch.equal(sent.values, same.values)
    if momentum is not None:
        expected = velocity(plain)
        if momentum.masking:
            expected[asked] = 0
        assert torch.equal(velocity(feedback), expected)


def test_what_is_drawn_is_forgotten_with_its_step(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = residual(feedback)
    feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), top(5))
    assert feedback.take_more(WHOLE, torch.arange(NUMEL, dtype=torch.int32)).any()
    assert not end(feedback, FALSE)
    assert torch.equal(residual(feedback), before)


def test_old_names_still_work() -> None:
    feedback, layout, at = ErrorFeedback({"w": 3}), Layout(("w",), (3,)), torch.tensor([1], dtype=torch.int32)
    sent = feedback.take(layout, torch.tensor([4.0, 3.0, 2.0]), top(1))
    with pytest.warns(DeprecationWarning, match=r"^ErrorFeedback\.draw is called take_more\. Use that name\.$"):
        assert feedback.draw(layout, at).tolist() == [3.0]
    with pytest.warns(DeprecationWarning, match=r"^ErrorFeedback\.keep is called put_back\. Use that name\.$"):
        feedback.keep(layout, sent)
    with pytest.warns(DeprecationWarning, match=r"^ErrorFeedback\.judge is called record_finite\. Use that name\.$"):
        feedback.judge(TRUE)
    feedback.seal()
    assert feedback.settle()
    assert feedback.residual("w").tolist() == [4.0, 0.0, 2.0]


def test_a_step_that_is_still_open_follows_the_scale() -> None:
    uses: list[bool | None] = [None]  # what is told of the mean: nothing yet
    use: Any = SimpleNamespace(
        of=lambda names: uses[-1], exchanged=lambda names: None, still_in_grad=lambda names: True
    )
    feedback = ErrorFeedback({"w": 2}, use=use)
    feedback.take(Layout(("w",), (2,)), torch.tensor([4.0, 3.0]), lambda u: SparseGradient.pick(u, select_topk(u, 1)))
    feedback.record_finite(torch.tensor(True))
    feedback.seal()
    assert not feedback.settle()
    feedback.rescale(2.0)
    uses.append(True)
    feedback.settle()
    assert feedback.residual("w").tolist() == [0.0, 6.0]


@each("decay", [0.0, 0.95])
def test_a_decay_is_applied_before_the_gradient_joins_and_undone_with_the_step(
    rng: torch.Generator, decay: float
) -> None:
    feedback = ErrorFeedback(SIZES, decay=decay)
    for number, grad in enumerate(grads(rng, 4)):
        before = residual(feedback)
        sent = feedback.take(WHOLE, grad, top(9))
        if number == 2:
            end(feedback, FALSE)
            assert torch.equal(residual(feedback), before)
            continue
        end(feedback, TRUE)
        assert torch.equal(residual(feedback) + sent.dense(), before * decay + grad)
    whole = next(grads(rng, 1))
    expected = residual(feedback) * decay + whole
    assert feedback.take_all(WHOLE, whole)
    end(feedback, TRUE)
    assert torch.equal(whole, expected)


def test_a_rest_gives_back_what_only_a_step_needs(rng: torch.Generator) -> None:
    feedback, awake = filled(rng), filled(rng.manual_seed(rng.initial_seed()))
    feedback.rest()
    part = feedback._parts[WHOLE]
    assert part.next_residual.numel() == 0
    for grad in grads(rng, 2):
        sent, expected = (one.take(WHOLE, grad, top(9)) for one in (feedback, awake))
        feedback.rest()  # of an open step: nothing happens
        assert end(feedback, TRUE)
        assert end(awake, TRUE)
        assert torch.equal(sent.indices, expected.indices)
        assert equal(feedback.state_dict(), awake.state_dict())
        feedback.rest()


def test_a_residual_may_rest_in_fewer_bits(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = residual(feedback)
    feedback.rest(torch.bfloat16)
    assert feedback.residual("a").dtype == torch.bfloat16
    state = feedback.state_dict()
    grad = next(grads(rng, 1))
    for one in (feedback, ErrorFeedback(SIZES)):
        one.load_state_dict(state)
        sent = one.take(WHOLE, grad, top(9))
        assert end(one, TRUE)
        assert torch.equal(residual(one) + sent.dense(), before.bfloat16().float() + grad)
