"""An optimizer or a GradScaler that does not go with the compression is noticed at its first step."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

import gaussiank
from gaussiank.feedback import optimizers


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(optimizer: Any, used: Any = None, steps: int = 2, **settings: Any) -> torch.Tensor:
    """Take steps with the optimizer that a function makes of parameters; returns the parameters."""
    model = DistributedDataParallel(nn.Linear(30, 10))
    compression = gaussiank.compress(model, **{"density": 0.1, **settings})
    made = optimizer(model.parameters())
    for _ in range(steps):
        made.zero_grad()
        loss = model(torch.ones(2, 30)).square().mean()
        (used.scale(loss) if used else loss).backward()
        if used:
            used.step(made)
            used.update()
        else:
            made.step()
    assert compression.step == steps
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def heavy_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (heavy_sgd, "^momentum of the optimizer must be 0 beside a MomentumCorrection, got 0.9 in SGD: it would count"),
        (adam, r"^betas of the optimizer must start with 0 beside a MomentumCorrection, got \(0.9, 0.999\) in AdamW"),
    ],
)
def test_momentum_that_would_count_twice_is_refused(optimizer: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(optimizer, momentum=gaussiank.MomentumCorrection())


def plain_adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, betas=(0.0, 0.999))


@pytest.mark.parametrize("optimizer", [heavy_sgd, plain_adam])
@pytest.mark.parametrize("momentum", [None, gaussiank.MomentumCorrection(0.0, clip_norm=1.0)])
def test_momentum_in_one_place_is_not(optimizer: Any, momentum: Any) -> None:
    assert train(optimizer, momentum=momentum).isfinite().all()
    assert train(sgd, momentum=gaussiank.MomentumCorrection()).isfinite().all()


def test_another_models_optimizer_may_do_as_it_likes() -> None:
    other = nn.Linear(3, 1)
    beside = heavy_sgd(other.parameters())
    model = DistributedDataParallel(nn.Linear(3, 1))
    compression = gaussiank.compress(model, 0.5, momentum=gaussiank.MomentumCorrection())
    other(torch.ones(1, 3)).sum().backward()
    beside.step()
    beside.add_param_group({"params": list(model.parameters())})
    assert compression.step == 0


def fused_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, fused=True)


def test_a_scaler_that_was_not_given_is_warned_of_once() -> None:
    """A scaler tells a fused optimizer of itself; for others the rule stands in the documentation."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.warns(UserWarning, match=r"^scaler must be the GradScaler that scales the loss, got none: ") as said:
        train(fused_sgd, scaler, steps=3)
    assert len(said) == 1


def test_a_scaler_that_is_given_off_or_without_a_residual_is_not() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(fused_sgd, scaler, scaler=scaler)
        train(fused_sgd, torch.amp.GradScaler("cpu", enabled=False))
        train(fused_sgd, torch.amp.GradScaler("cpu", init_scale=4.0), compressor="dense")
        train(fused_sgd, torch.amp.GradScaler("cpu", init_scale=4.0), compressor="randomk:feedback=false")


def test_a_steps_tensors_end_when_their_names_do() -> None:
    """Whoever walks the frames of callers keeps copies of all their locals."""
    model = DistributedDataParallel(nn.Linear(30, 10))
    gaussiank.compress(model, 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.ones(2, 30)
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    alive = [weakref.ref(inputs), weakref.ref(loss)]
    del inputs, loss
    assert [one() for one in alive] == [None, None]


def test_momentum_of_adam_beside_feedback_is_warned_of_once() -> None:
    kinds = [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax]
    for kind in kinds:
        sentence = f"^betas of {kind.__name__} start above 0: .* divided first, with compress"
        with pytest.warns(gaussiank.AdamWarning, match=sentence) as said:
            train(kind, steps=3)
        assert len(said) == 1
    with pytest.warns(gaussiank.AdamWarning) as said:  # at the first step that compresses
        train(adam, steps=4, density=gaussiank.DenseStart(0.1, steps=2))
    assert len(said) == 1
    train(adam, density=1.0)
    train(adam, compressor="dense")
    train(adam, compressor="randomk:feedback=false")


def test_a_divided_mean_that_is_cut_is_warned_of_once() -> None:
    """``clip_grad_norm_`` after backward, as in every transformer's script: the steps would be a thousandth."""
    for norm in (1.0, 1e6):
        model = DistributedDataParallel(nn.Linear(100, 100))
        gaussiank.compress(model, 0.1, precondition=gaussiank.AdamRows())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(8, 100)).square().mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
                optimizer.step()
        said = [str(one.message) for one in caught]
        start = "the gradient has norm 1 before SGD's step, where a mean of divided gradients has about 31.8"
        assert [text.partition(":")[0] for text in said] == ([start] if norm == 1 else [])


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 30)).square().mean().backward()


def test_a_hook_that_is_not_called_is_warned_of_once() -> None:
    for wrapped_again in (False, True):
        model = DistributedDataParallel(nn.Linear(30, 10))
        compression = gaussiank.compress(model, 0.1)
        called = DistributedDataParallel(model.module) if wrapped_again else model.module
        optimizer = sgd(model.parameters())
        backward(called)
        optimizer.step()
        backward(called)
        with pytest.warns(UserWarning, match=r"^compression is not at work: SGD takes its second step in a row on "):
            optimizer.step()
        for _ in range(3):
            backward(called)
            optimizer.step()
        assert compression.step == 0


def test_a_second_step_on_one_backward_is_warned_of_once() -> None:
    model = DistributedDataParallel(nn.Linear(30, 10))
    compression = gaussiank.compress(model, 0.1)
    optimizer = sgd(model.parameters())
    for _ in range(2):  # as it should be, also with gradients that are zeroed in place
        backward(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    backward(model)
    optimizer.step()
    with pytest.warns(UserWarning, match=r"^SGD takes a second step on the mean of one backward: ") as said:
        optimizer.step()
    assert len(said) == 1
    for _ in range(3):
        optimizer.step()
    del compression


def test_a_step_inside_a_step_is_one() -> None:
    """The wrapper that torch puts round ``step`` of a subclass calls hooks again in ``super().step()``."""

    class Counted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # puts the wrapper round the parent's
    model = DistributedDataParallel(nn.Linear(30, 10))
    compression = gaussiank.compress(model, 0.1)
    optimizer = Counted(model.parameters(), lr=0.1)
    for _ in range(2):
        backward(model)
        optimizer.step()
    assert compression.step == 2
    backward(model.module)
    optimizer.step()  # the first that the hook was not called for, not the first and the second
    backward(model.module)
    with pytest.warns(UserWarning, match=r"^compression is not at work: Counted takes its second step in a row on "):
        optimizer.step()


def test_loops_that_call_the_hook_seldom_or_in_steps_are_not() -> None:
    model = DistributedDataParallel(nn.Linear(30, 10))
    compression = gaussiank.compress(model, 0.1)
    weight, bias = model.parameters()
    whole, first, second = (torch.optim.SGD(some, lr=0.01) for some in (model.parameters(), [weight], [bias]))
    other = nn.Linear(30, 10)
    for optimizer in (torch.optim.SGD([*other.parameters()], lr=0.1), torch.optim.SGD(
        [*other.parameters(), *model.parameters()], lr=0.1
    )):  # fmt: skip
        for _ in range(3):  # the model is not trained yet: it has no gradients
            backward(other)
            optimizer.step()
    for _ in range(3):
        with model.no_sync():  # steps of this worker alone
            for _ in range(2):
                backward(model)
                whole.step()
        backward(model)
        first.step()  # two optimizers on one backward
        second.step()
        with torch.no_grad():
            model.eval()(torch.ones(2, 30))
        whole.zero_grad()
    assert compression.step == 3
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=3)
    for _ in range(3):
        lbfgs.step(lambda: (lbfgs.zero_grad(), loss := model(torch.ones(2, 30)).square().mean(), loss.backward())[1])
    for fused in (False, True):  # a step that is skipped
        scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        hidden = contextlib.nullcontext() if not fused else pytest.warns(UserWarning, match="^scaler must be ")
        with hidden:
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(model(torch.ones(2, 30)).square().sum() * 1e3).backward()
                scaler.step(optimizer)
                scaler.update()


def test_a_resume_without_residuals_is_told_once() -> None:
    """The optimizer has a state, so there were steps; a checkpoint of the model does not know of residuals."""

    def resumed(kind: Any, load: bool, **settings: Any) -> gaussiank.Compression:
        model = DistributedDataParallel(nn.Linear(30, 10))
        first = gaussiank.compress(model, 0.1, **settings)
        optimizer = kind(model.parameters())
        backward(model)
        optimizer.step()
        state, held = optimizer.state_dict(), first.state_dict()
        model = DistributedDataParallel(nn.Linear(30, 10))
        compression = gaussiank.compress(model, 0.1, **settings)
        optimizer = kind(model.parameters())
        optimizer.load_state_dict(state)
        if load:
            compression.load_state_dict(held)
        for _ in range(3):
            backward(model)
            optimizer.step()
        assert compression.resumed == load
        return compression

    sentence = "goes on from earlier steps, but compression begins without residuals: .*compression.load"
    for kind, name in ((heavy_sgd, "SGD"), (plain_adam, "AdamW")):
        with pytest.warns(UserWarning, match=f"^{name} {sentence}") as said:
            resumed(kind, load=False)
        assert len(said) == 1
        resumed(kind, load=True)  # warnings are errors
        resumed(kind, load=False, compressor="dense")
    resumed(sgd, load=False)  # plain SGD has no state that would tell


def test_a_state_made_to_load_into_is_no_earlier_step() -> None:
    """``torch.distributed.checkpoint`` makes one by a step of rate 0, and a forgotten load is told of all the same."""
    for resumes in (False, True):
        model = DistributedDataParallel(nn.Linear(30, 10))
        gaussiank.compress(model, 0.1)
        optimizer = plain_adam(model.parameters())
        state = get_optimizer_state_dict(model, optimizer)
        if resumes:
            for held in state["state"].values():
                held["exp_avg_sq"] = torch.ones_like(held["exp_avg_sq"])
            set_optimizer_state_dict(model, optimizer, state)
        said = (
            pytest.warns(UserWarning, match="^AdamW goes on from earlier steps")
            if resumes
            else contextlib.nullcontext()
        )
        with said:
            for _ in range(3):
                backward(model)
                optimizer.step()


def test_another_compression_of_the_same_parameters_takes_over() -> None:
    module = nn.Linear(30, 10)
    models = [DistributedDataParallel(module) for _ in range(2)]
    compressions = [gaussiank.compress(model, 0.1) for model in models]
    optimizer = sgd(module.parameters())
    for _ in range(3):
        backward(models[1])
        optimizer.step()
    assert [compression.step for compression in compressions] == [0, 3]


def collect(*_: Any) -> None:
    gc.collect()


def test_a_compression_may_go_while_an_optimizer_steps() -> None:
    module = nn.Linear(30, 10)
    optimizer = sgd(module.parameters())
    hooks = []
    try:
        for _ in range(3):  # wrap it again; what was before is in a cycle
            model = DistributedDataParallel(module)
            model.__dict__["cycle"] = model
            gaussiank.compress(model, 0.1)
            hooks.append(register_optimizer_step_pre_hook(collect))
            backward(model)
            optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()


def test_nothing_is_left_behind() -> None:
    gc.collect()
    before = len(_global_optimizer_pre_hooks), len(optimizers._CHECKS)
    train(sgd)
    gc.collect()
    assert (len(_global_optimizer_pre_hooks), len(optimizers._CHECKS)) == before
