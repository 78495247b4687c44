"""What torch tells of an optimizer's steps, where one process suffices to see it."""

from __future__ import annotations

import gc

import torch
from torch.nn import Parameter

from gaussiank.feedback import OptimizerUse
from gaussiank.feedback.optimizers import _WATCHING


def test_a_fused_step_that_a_scaler_makes_a_no_op_was_none() -> None:
    weight = Parameter(torch.ones(4))
    use = OptimizerUse({"w": weight})
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for spoiled in (False, True, False):
        before = weight.detach().clone()
        use.begin()
        weight.grad = torch.full((4,), float("inf") if spoiled else 1.0)
        scaler.scale(torch.ones(()))
        use.exchanged(("w",))
        scaler.step(optimizer)
        scaler.update()
        assert use.used is not spoiled
        assert torch.equal(weight.detach(), before) is spoiled
        assert use.of(("w",)) is not spoiled
    assert use.steps == 3


def test_parameters_that_join_an_optimizer_later_are_seen() -> None:
    first, second = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    use = OptimizerUse({"first": first, "second": second})
    optimizer = torch.optim.SGD([first], lr=0.1)
    first.grad = second.grad = torch.ones(2)
    optimizer.step()
    assert use.of(("second",)) is True  # no optimizer was ever seen to step over it
    optimizer.add_param_group({"params": [second]})
    use.exchanged(("second",))
    optimizer.step()
    use.exchanged(("second",))
    assert use.of(("second",)) is None
    optimizer.step()
    assert use.of(("second",)) is True


def test_parameters_that_take_the_place_of_others_are_seen() -> None:
    first, second = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    use = OptimizerUse({"first": first, "second": second})
    optimizer = torch.optim.SGD([first], lr=0.1)
    first.grad = second.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["params"] = [second]
    for _ in range(2):
        use.exchanged(("first",))
        use.exchanged(("second",))
        optimizer.step()
        assert (use.of(("first",)), use.of(("second",))) == (None, True)


def test_an_optimizer_around_another_of_fewer_parameters_counts_for_all_of_its_own() -> None:
    """As ``ZeroRedundancyOptimizer``, on a worker whose share is ``first`` or nothing at all."""

    class Around(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            inner.step()

    first, second, other = (Parameter(torch.ones(2)) for _ in range(3))
    use = OptimizerUse({"first": first, "second": second})
    around = Around([first, second], lr=0.1)
    for share in (first, other):
        inner = torch.optim.SGD([share], lr=0.1)
        for _ in range(2):
            (first.sum() + second.sum()).backward()
            use.begin()
            use.exchanged(("first",))
            use.exchanged(("second",))
            around.step()
            assert (use.of(("first",)), use.of(("second",)), use.unused) == (True, True, False)


def test_an_optimizer_that_takes_gradients_away_itself_has_used_them() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            super().step()
            self.zero_grad()

    weight = Parameter(torch.ones(2))
    use = OptimizerUse({"w": weight})
    optimizer = Own([weight], lr=0.1)
    for _ in range(2):
        weight.sum().backward()
        use.begin()
        use.exchanged(("w",))
        optimizer.step()
        assert (use.of(("w",)), use.used, use.unused) == (True, True, False)


def test_a_model_that_is_gone_is_watched_no_more() -> None:
    weight = Parameter(torch.ones(2))
    use = OptimizerUse({"w": weight})
    assert use in [own() for own in _WATCHING]
    assert len(weight._backward_hooks or {}) == 1
    del use
    gc.collect()
    assert not any(use._parameters["w"]() is weight for own in _WATCHING if (use := own()) and "w" in use._parameters)
    assert not weight._backward_hooks
