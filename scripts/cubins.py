"""Compile the kernels in Triton for GPUs that are not there, and judge what comes out: ``make cubin``.

Each variant that a take or a mean launches is compiled for each architecture, and disassembled by Triton's own tools. A
table says for each what a GPU would run; the rules stand in ``faults_of``. Where one is broken, it ends with 1.

    python scripts/cubins.py --architectures 90
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import gaussiank.ops.triton as kernels
from gaussiank.codec import KERNEL_WIRES, Wire
from gaussiank.ops import NarrowMean

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SWEEP_REGISTERS = 64  # 1,024 threads on a multiprocessor, and reads of four tiles under way
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
    torch.bool: "i1",
}


class Variant(NamedTuple):
    """What a kernel is compiled for: the types of its arguments, what is known beforehand, and which are aligned."""

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int

    @property
    def label(self) -> str:
        """Name it by what differs between variants of one kernel."""
        known = dict(self.constants)
        name = self.kernel.__name__.removesuffix("_kernel")
        given = dict(self.types)
        said = [given["grad"].removeprefix("*")] if known.get("ADDS") else []
        said += ["aligned" if known["ALIGNED"] else "not aligned"] if "ALIGNED" in known else []
        said += [f"offsets of {known['OFFSETS']} bits, values of {known['BITS']}"] if known.get("OFFSETS") else []
        said += ["removes"] if known.get("OFFSETS") == 0 and known["REMOVES"] else []
        said += [{1: "to bf16", 2: "to fp16"}[known["NARROW"]]] if known.get("NARROW") else []
        said += ["nothing added"] if known.get("ADDS") is False else []
        return f"{name} ({', '.join(said)})" if said else name


class Code(NamedTuple):
    """What a GPU would run."""

    registers: int
    spills: int  # accesses to a thread's own memory
    wide_loads: int  # of 16 bytes
    wide_stores: int
    atomics: int  # in PTX: of one, ptxas may make two, of which one runs
    barriers: int


class Recorder:
    """Stands in for a kernel, and notes what it would be compiled for."""

    def __init__(self, kernel: Any, found: list[Variant]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *given: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
        assert not enable_fp_fusion, "the reference rounds twice"
        parameters = [one for one in self.kernel.params if not one.is_constexpr]
        types, aligned = {}, []
        for parameter, argument in zip(parameters, given, strict=True):
            if isinstance(argument, torch.Tensor):
                types[parameter.name] = f"*{TYPES[argument.dtype]}"
                if not parameter.do_not_specialize_on_alignment:
                    assert argument.data_ptr() % 16 == 0, f"{parameter.name} of {self.kernel.__name__} may be anywhere"
                    aligned.append(parameter.name)
            else:
                assert parameter.do_not_specialize, f"{parameter.name} would be compiled for each number"
                types[parameter.name] = "i32"
        variant = Variant(
            self.kernel, tuple(types.items()), tuple(sorted(constants.items())), tuple(aligned), num_warps
        )
        if variant not in self.found:
            self.found.append(variant)


def variants() -> list[Variant]:
    """Take and average some vectors, and note what would be launched."""
    found: list[Variant] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("gaussiank.ops.triton."):
            for key, value in list(vars(module).items()):
                if isinstance(value, JITFunction) and key.endswith("_kernel"):
                    setattr(module, key, Recorder(value, found))
    numel, k = 70_001, 700
    residual, out = torch.zeros(numel + 1), torch.zeros(numel + 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for start in (0, 1):
            kernels.take(residual[start:], k, None, residual.to(dtype)[start:], out[start:])
    kernels.take(residual, k, None)
    kernels.take(residual[1:], k, None)
    for wire in KERNEL_WIRES:
        layout = Wire.parse(wire).row_format(k, numel)
        assert layout is not None
        kernels.take(residual[1:], k, None, residual[1:].clone(), out[1:], layout)
        rows = torch.zeros(2, layout.length, dtype=torch.uint8)
        kernels.mean_of_rows(rows, layout, out[1:])
        for dtype in (torch.bfloat16, torch.float16):
            narrow = NarrowMean(torch.zeros(numel + 1, dtype=dtype)[1:], residual[1:])
            kernels.mean_of_rows(rows, layout, out[1:], narrow)
    return sorted(found, key=lambda one: one.label)


def compiled(variant: Variant, architecture: int) -> Code:
    """Compile one for an architecture, and count in the code what matters."""
    names = variant.kernel.arg_names
    types = dict(variant.types)
    source = ASTSource(
        fn=variant.kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.warps, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        code = _said(TOOLS / "nvdisasm", "-c", file.name)
        usage = _said(TOOLS / "cuobjdump", "-res-usage", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage

    def count(pattern: str, text: str = code) -> int:
        return len(re.findall(pattern, text))

    return Code(
        registers=int(registers[1]),
        spills=count(r"\b(?:LDL|STL)\b"),
        wide_loads=count(r"\bLDG\.E[\w.]*\.128\b"),
        wide_stores=count(r"\bSTG\.E[\w.]*\.128\b"),
        atomics=count(r"\b(?:atom|red)\.(?:[\w:]+\.)*global\b", made.asm["ptx"]),
        barriers=count(r"\bBAR\.SYNC"),
    )


def _said(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def faults_of(variant: Variant, code: Code) -> list[str]:
    """Return what a variant must not be: where it spills, and where ``sweep`` would not run at the speed of memory."""
    faults = [f"{code.spills} accesses to spilled registers"] if code.spills else []
    known, types = dict(variant.constants), dict(variant.types)
    if variant.kernel.__name__ != "sweep_kernel":
        return faults
    if code.registers > SWEEP_REGISTERS:
        faults.append(f"{code.registers} registers")
    if code.atomics != 1:
        faults.append(f"{code.atomics} atomics a tile")
    if known["ALIGNED"]:
        per_thread = known["TILE"] // (32 * variant.warps)
        of_grad = 0 if not known["ADDS"] else 4 if types["grad"] == "*fp32" else 2
        loads, stores = per_thread * (4 + of_grad) // 16, per_thread * 4 * known["ADDS"] // 16
        if (code.wide_loads, code.wide_stores) != (loads, stores):
            faults.append(
                f"{code.wide_loads} loads and {code.wide_stores} stores of 16 bytes, not {loads} and {stores}"
            )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architectures", default="80,90,100", help="compute capabilities without their point")
    architectures = [int(one) for one in parser.parse_args().architectures.split(",")]
    print(f"Triton {triton.__version__}; registers, loads + stores of 16 bytes, barriers, for {architectures}\n")
    print(f"| kernel | {' | '.join(f'sm_{one}' for one in architectures)} | atomics | spills |")
    print(f"|---|{'---|' * (len(architectures) + 2)}", flush=True)
    faults: dict[str, list[str]] = collections.defaultdict(list)
    for variant in variants():
        codes = [compiled(variant, one) for one in architectures]
        for architecture, code in zip(architectures, codes, strict=True):
            faults[variant.label] += [f"sm_{architecture}: {one}" for one in faults_of(variant, code)]
        cells = [f"{one.registers}, {one.wide_loads} + {one.wide_stores}, {one.barriers}" for one in codes]
        atomics, spills = max(one.atomics for one in codes), max(one.spills for one in codes)
        print(f"| {variant.label} | {' | '.join(cells)} | {atomics} | {spills} |", flush=True)
    broken = [f"{label}: {fault}" for label, found in faults.items() for fault in found]
    print("\n" + ("\n".join(broken) or "every kernel is as it must be"))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
