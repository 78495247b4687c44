"""What is compiled and launched: the same whatever the numbers, the addresses and the values are."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ops.conftest import LAWS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gaussiank import ops
from gaussiank.codec import KERNEL_WIRES, Wire
from gaussiank.ops import NarrowMean, accelerator

Launched = set[tuple[object, ...]]


class Noting:
    """Stands in for a kernel, and notes what it would be compiled for: types, and what is known beforehand."""

    def __init__(self, name: str, launched: Launched) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.launch

    def launch(self, *given: Any, **known: Any) -> None:
        types = [one.dtype if isinstance(one, torch.Tensor) else type(one) for one in given]
        assert all(not isinstance(one, int) or -(2**31) <= one < 2**31 for one in given)
        self.launched.add((self.name, *types, *sorted(known.items())))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    found: Launched = set()
    for name, module in list(sys.modules.items()):
        for key in list(vars(module)) if name.startswith("gaussiank.ops.triton.") else []:
            if key.endswith("_kernel"):
                monkeypatch.setattr(module, key, Noting(key, found))
    return found


def test_compress_compiles_all_that_a_step_can_launch(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    import gaussiank.ops.triton as kernels

    monkeypatch.setattr(accelerator, "_require_same", lambda *_: None)  # nothing is computed
    accelerator.compare(kernels, torch.device("cpu"))
    beforehand = launched.copy()
    assert len(beforehand) == 8 + 1 + 1 + 1 + 6 + 12  # sweep, pick, refine, count, emit, decode_mean
    starts = [*itertools.product((0, 1, 4), repeat=3)]
    for dtype, numel, (one, two, three) in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (1, 16, 2048, 65_537), starts
    ):
        vector, k = torch.zeros(numel + 4), max(1, numel // 100)
        grad, residual, out = vector.to(dtype)[one:][:numel], vector[two:][:numel], vector.clone()[three:][:numel]
        for wire in KERNEL_WIRES:
            layout = Wire.parse(wire).row_format(k, numel)
            assert layout is not None
            kernels.take(residual, k, torch.tensor(1.0, dtype=torch.float64), grad, out, layout)
            narrow = None if dtype == torch.float32 else NarrowMean(grad, residual)
            kernels.mean_of_rows(torch.zeros(64, layout.length, dtype=torch.uint8), layout, out, narrow)
        kernels.take(residual, k, None, grad, out)
        kernels.take(residual, numel, None)
    assert launched == beforehand


class Recorded(TorchDispatchMode):
    """Notes each op with the shapes that go in and come out: what a CUDA graph would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[object, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        seen = [(one.shape, one.dtype) if isinstance(one, torch.Tensor) else one for one in leaves]
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags), function
        self.ops.append((function, *seen))
        return result


def test_what_is_launched_and_allocated_does_not_depend_on_values(rng: torch.Generator) -> None:
    numel, k = 2000, 40
    layout = Wire("chunks12", "2bit").row_format(k, numel)
    found = []
    for law, hint in (("normal", 2.5), ("zeros", 0.0), ("infinities and NaN", 9.0)):
        vector, residual, out = LAWS[law](numel, rng), torch.zeros(numel), torch.empty(numel)
        narrow = NarrowMean(torch.empty(numel, dtype=torch.bfloat16), out)
        with Recorded() as recorded:
            taken = ops.accumulate_topk(vector, residual, k, torch.tensor(hint), out=out, row=layout)
            assert isinstance(taken, ops.TakenRow)
            ops.mean_of_rows(taken.row.expand(3, -1), layout, torch.empty(numel), narrow)
        found.append(recorded.ops)
    assert len(found[0]) >= 6
    assert all(one == found[0] for one in found)


class Allocated(TorchDispatchMode):
    """Counts the bytes of new tensors."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._schema.returns and function._schema.returns[0].alias_info is None:
            self.bytes += result.untyped_storage().nbytes()
        return result


def test_nothing_of_the_size_of_a_gradient_is_allocated(launched: Launched) -> None:
    import gaussiank.ops.triton as kernels

    numel, k = 6_553_600, 6554  # of DDP's 25 MiB
    grad, residual, out = (torch.empty(numel) for _ in range(3))
    for wire in KERNEL_WIRES:
        layout = Wire.parse(wire).row_format(k, numel)
        assert layout is not None
        rows = torch.empty(64, layout.length, dtype=torch.uint8)
        with Allocated() as counted:
            kernels.take(residual, k, None, grad, out, layout)
            kernels.mean_of_rows(rows, layout, out)
        assert 0.25 * numel < counted.bytes < 0.4 * numel, wire  # bytes a parameter, until the selection has ended


def test_a_row_is_written_where_it_has_room_for_just_the_chosen(rng: torch.Generator) -> None:
    layout, vector = Wire("chunks", "bf16").row_format(50, 3000), torch.randn(3000, generator=rng)
    for k in (49, 51):  # a row of another exchange's: torch's ops pack, and say so where there is no room
        assert not isinstance(ops.accumulate_topk(vector, torch.zeros(3000), k, row=layout), ops.TakenRow)
    most = 2**31 - 1
    assert Wire("chunks", "bf16").row_format(most // 5, most) is not None
    assert Wire("chunks", "bf16").row_format(most // 4, most) is None  # of more bytes than 31 bits can count
