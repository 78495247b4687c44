from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tests.each import each

from gaussiank import ops
from gaussiank.compressors import COMPRESSORS, SelectContext, Taken, TopK
from gaussiank_lab.bench.operators import PEERS, OurOperator, Switch, Vectors, operator_names, operators

ALL = operators(operator_names(), ops.backends().available)


def test_every_compressor_that_chooses_runs_on_every_backend() -> None:
    assert set(operator_names()) == {*COMPRESSORS, *PEERS} - {"dense"}
    ours = {(operator.name, operator.backend) for operator in ALL if operator.family == "ours"}
    assert ours == {(name, backend) for name in {*COMPRESSORS} - {"dense"} for backend in ops.backends().available}
    assert [operator.name for operator in ALL if operator.family == "peer"] == list(PEERS)


def test_a_threshold_is_measured_with_and_without() -> None:
    states = {name: [operator.state for operator in operators([name], ["reference"])] for name in operator_names()}
    assert states["topk"] == states["gaussiank"] == ["steady", "cold"]
    assert states["sidco"] == ["steady"]
    assert states["chunktopk"] == states["torch.topk"] == ["stateless"]


@each("operator", ALL, ids=lambda operator: f"{operator.label} on {operator.backend}")
def test_nothing_is_lost(operator: OurOperator) -> None:
    vectors = Vectors.draw("laplace", 20_000, seed=1)
    with Switch() as switch:
        switch.to(operator.backend)
        operator.settle(vectors.accumulated(1), 0.01)
        for side in (0, 1, 0):
            vectors.reset(side)
            grad = vectors.grads[side].clone()
            taken = operator.take(vectors.grads[side], vectors.residual, 200)
            assert torch.equal(vectors.grads[side], grad)
            assert taken.indices.numel() > 0
            sent = torch.zeros(20_000)
            sent[taken.indices] = taken.values
            assert not bool(vectors.residual[taken.indices].any())
            assert torch.equal(vectors.residual + sent, vectors.accumulated(side))


@dataclass(frozen=True)
class WatchedTopK(TopK):
    seen: list[torch.Tensor | None] = field(default_factory=list, compare=False)

    def take(
        self, grad: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, k: int, turn: SelectContext | None = None
    ) -> Taken:
        assert turn is not None
        self.seen.append(turn.hint)
        return super().take(grad, residual, out, k, turn)


def test_hints_are_kept_unless_cold() -> None:
    vectors = Vectors.draw("normal", 20_000, seed=1)
    for operator, with_hint in zip(operators(["topk"], ["reference"]), (True, False), strict=True):
        assert isinstance(operator, OurOperator)
        operator.compressor = watched = WatchedTopK()
        for side in (0, 1, 0):
            vectors.reset(side)
            operator.take(vectors.grads[side], vectors.residual, 200)
        assert [hint is not None for hint in watched.seen] == [False, with_hint, with_hint]


def test_steady_operators_have_a_hint_before_the_first_run() -> None:
    vectors = Vectors.draw("normal", 20_000, seed=1)
    for operator in operators(["topk", "gaussiank", "randomk"], ["reference"]):
        assert isinstance(operator, OurOperator)
        operator.settle(vectors.accumulated(1), 0.01)
        assert (operator.hint is not None) == (operator.state == "steady")


def test_sidco_settles_its_stages() -> None:
    vectors = Vectors.draw("normal", 100_000, seed=1)
    (operator,) = operators(["sidco"], ["reference"])
    assert isinstance(operator, OurOperator)
    assert operator.hint is None
    operator.settle(vectors.accumulated(0), 0.001)
    assert operator.hint is not None
    assert int(operator.hint[0]) == 4  # one stage alone would send a fiftieth of k


def test_switch_puts_back_what_ran_before() -> None:
    before = ops.backends().active
    with Switch() as switch:
        for backend in (*ops.backends().available, "numpy"):
            switch.to(backend)
            assert ops.backends().active == (backend if backend != "numpy" else before)
        switch.to("reference")
    assert ops.backends().active == before
