"""Plant faults in the library, one at a time, and see that the tests find each.

Every fault replaces one piece of text, which must stand exactly once in the library or the kernels, wherever that is:
a file may move without a change here. A text that is gone is reported, and belongs here anew. Each fault gets a copy of
the sources and of the tests, and only the tests that its row names run, up to the first that fails.

    python scripts/mutants.py              all of them, about ten minutes on two cores
    python scripts/mutants.py divisor rank  those whose description has one of these words
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 400  # a fault that hangs is found, too


class Fault(NamedTuple):
    """A text, what stands there instead, and the tests that must fail then."""

    what: str
    old: str
    new: str
    tests: str


FAULTS = [
    # ------------------------------------------------------------------ operations
    Fault(
        "ties: the higher index wins", "larger = values > limit", "larger = values >= limit", "ops/test_reference.py"
    ),
    Fault("mean: wrong divisor", "out.div_(len(parts))", "out.div_(max(1, len(parts) - 1))", "ops/test_reference.py"),
    Fault(
        "mean: wrong rank order",
        "for part in parts:\n        out.index_add_",
        "for part in reversed(parts):\n        out.index_add_",
        "ops/test_scatter.py",
    ),
    Fault(
        "union: wrong rank order",
        "in zip(parts, places.split([part.kept for part in parts]), strict=True):",
        "in reversed([*zip(parts, places.split([one.kept for one in parts]), strict=True)]):",
        "ops/test_scatter.py",
    ),
    Fault(
        "take: what is sent stays, too",
        "taken = topk(out, k)\n    out[taken.indices] = 0",
        "taken = topk(out, k)",
        "ops/test_native.py",
    ),
    Fault(
        "threshold: not strict",
        "(_capped_magnitude(out) > threshold)",
        "(_capped_magnitude(out) >= threshold)",
        "ops/test_threshold.py",
    ),
    Fault("moments: wrong sign", "torch.maximum(-low, high)", "torch.maximum(low, high)", "ops/test_reference.py"),
    Fault(
        "infinities: one too few",
        ".squeeze(1)[:limit].int()",
        ".squeeze(1)[: limit - 1].int()",
        "ops/test_reference.py",
    ),
    Fault(
        "kernel of the mean: an index that repeats passes",
        "if (index[i] <= last)",
        "if (index[i] < last)",
        "ops/test_scatter.py",
    ),
    Fault(
        "kernel of the mean: few entries stay undivided",
        "if (entries <= length / 16)",
        "if (entries < length / 32)",
        "ops/test_scatter.py",
    ),
    # ------------------------------------------------------------------ values between rooms, settings
    Fault(
        "check: an index that repeats passes",
        "self.indices[1:] <= self.indices[:-1]",
        "self.indices[1:] < self.indices[:-1]",
        "test_sparse.py",
    ),
    Fault("check: off by one at the end", "high >= self.numel", "high > self.numel", "test_sparse.py"),
    Fault("warm-up: off by one step", "step // self.stage_steps", "(step + 1) // self.stage_steps", "test_schedule.py"),
    Fault("dense start: one step more", "1.0 if step < self.steps", "1.0 if step <= self.steps", "test_schedule.py"),
    # ------------------------------------------------------------------ compressors
    Fault(
        "cap: the larger bound",
        "min(self.limit, numel if inner is None else inner)",
        "max(self.limit, numel if inner is None else inner)",
        "compressors/test_capped.py contract",
    ),
    Fault("cap: one infinity too few", "bad.cumsum(0) <= self.limit", "bad.cumsum(0) < self.limit", "contract"),
    Fault(
        "gaussiank: lower end of the band",
        "return 2 * k <= 3 * count <= 4 * k",
        "return k <= 3 * count <= 4 * k",
        "compressors/test_gaussiank.py",
    ),
    Fault(
        "chunktopk: the rounding does not move on",
        "phase = step * k * chunk % numel",
        "phase = k * chunk % numel",
        "compressors/test_chunktopk.py contract",
    ),
    Fault(
        "randomk: all ranks draw alike", "0 if self.shared else context.rank + 1", "0", "compressors/test_randomk.py"
    ),
    # ------------------------------------------------------------------ feedback
    Fault(
        "feedback: what is sent stays, too",
        "            accumulated[sparse.indices] = 0\n",
        "",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: put back with the wrong sign",
        "self.next_residual.index_add_(0, rest.indices, rest.values)",
        "self.next_residual.index_add_(0, rest.indices, rest.values, alpha=-1)",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: what is drawn stays, too",
        "        part.next_residual[indices] = 0\n",
        "",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: missing commit",
        "part.commit() if commit else part.forget()",
        "part.forget()",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: velocity is not committed",
        "        self.velocity, self.next_velocity = self.next_velocity, self.velocity\n",
        "",
        "feedback/test_momentum_correction.py",
    ),
    Fault(
        "feedback: a mean that never came counts as there",
        "len(step.verdicts) == len(step.parts) and ",
        "",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: rounding of a dense step is lost",
        "accumulated.sub_(grad)",
        "accumulated.zero_()",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: residual of a held place is lost",
        "part.next_residual[place] = residual[place]",
        "part.next_residual[place] = 0",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "feedback: an open step keeps the old scale",
        "(part.next_residual, part.next_velocity) if part.open else ()",
        "()",
        "feedback",
    ),
    Fault(
        "feedback: a velocity moves in from the residual",
        "(part.velocity, old.velocity)",
        "(part.velocity, old.residual)",
        "feedback/test_layouts.py",
    ),
    Fault(
        "momentum: a velocity that was sent is not masked",
        "            part.next_velocity[sparse.indices] = 0\n",
        "            pass\n",
        "feedback/test_momentum_correction.py",
    ),
    Fault(
        "momentum: clipped without regard to the workers",
        "limit = self.clip_norm / world_size**0.5",
        "limit = self.clip_norm",
        "test_momentum.py",
    ),
    Fault(
        "reshard: wrong divisor",
        "factor = world_size / saved_world_size / sharers",
        "factor = world_size / saved_world_size",
        "test_reshard.py",
    ),
    Fault(
        "reshard: a source is left out",
        "return tuple(range(rank, saved_world_size, world_size))",
        "return tuple(range(rank, max(rank + 1, saved_world_size - 1), world_size))",
        "test_reshard.py",
    ),
    Fault(
        "optimizers: a skipped step counts",
        "mean.stepped, mean.skipped = True, skipped",
        "mean.stepped, mean.skipped = True, None",
        "feedback/test_usage.py distributed/test_use.py",
    ),
    # ------------------------------------------------------------------ from local to mean
    Fault(
        "selection: a later layer stands at the front",
        "chosen.append(indices + place.start if place.start else indices)",
        "chosen.append(indices)",
        "reducer contract",
    ),
    Fault(
        "reducer: missing put-back of what was rejected",
        "for rest in (outcome.rejected, *outcome.rounded_off):",
        "for rest in outcome.rounded_off:",
        "distributed/test_compress_collectives.py",
    ),
    Fault(
        "reducer: rounding to a narrow gradient is lost",
        "if any(one.dtype != dtype for one in self.grads):",
        "if False:",
        "distributed/test_hook.py -k other_dtypes",
    ),
    Fault(
        "reducer: an embedding is summed, not averaged",
        "dist.all_reduce(grad.div_(self.world_size)",
        "dist.all_reduce(grad",
        "distributed/test_hook.py -k sparse_embeddings",
    ),
    Fault(
        "reducer: residuals follow a scale the wrong way",
        "self.feedback.rescale(scale / self._scale)",
        "self.feedback.rescale(self._scale / scale)",
        "distributed/test_hook_overflow.py -k grad_scaler",
    ),
    # ------------------------------------------------------------------ collectives
    Fault(
        "allgather: what was rounded off is lost",
        "rounded_off=quantized.errors(), narrowed=narrow is not None",
        "narrowed=narrow is not None",
        "distributed/test_wires.py",
    ),
    Fault(
        "split: what was not in the sums counts as in",
        "entered = sent & member_mask(sparse.indices, indices) if self.trim else sent",
        "entered = sent",
        "distributed/test_collectives.py",
    ),
    Fault(
        "leader: what it did not choose is dropped",
        "yield Outcome(finite, rest_of(sparse, chosen), total.errors)",
        "yield Outcome(finite, None, total.errors)",
        "distributed/test_collectives.py",
    ),
    Fault(
        "tree: what was rounded off dropped entries stays",
        "*([self._guest] if self._guest else ()), *self._rounded_off):",
        "*([self._guest] if self._guest else ())):",
        "distributed/test_wires.py",
    ),
    Fault(
        "sums: wrong divisor",
        "mean = total.values / world_size",
        "mean = total.values / (world_size + 1)",
        "distributed/test_collectives.py",
    ),
    Fault(
        "shares: wrong rank order",
        "for row in received:  # in rank order",
        "for row in received.flip(0):",
        "distributed/test_bits.py",
    ),
    Fault(
        "hierarchical: each node keeps the same rounding",
        "(column.errors() if across.rank == 0 else ())",
        "column.errors()",
        "distributed/test_wires.py",
    ),
    # ------------------------------------------------------------------ codec
    Fault(
        "elias-fano: low bits short by one",
        "return (numel // count).bit_length() - 1",
        "return max(0, (numel // count).bit_length() - 2)",
        "codec/indices",
    ),
    Fault(
        "payload: nothing behind the checksum is checked",
        "zlib.crc32(seen[HEADER_BYTES : HEADER_BYTES + end], zlib.crc32(seen[: HEADER_BYTES - 4]))",
        "zlib.crc32(seen[: HEADER_BYTES - 4])",
        "codec/test_payload.py",
    ),
    # ------------------------------------------------------------------ local steps
    Fault(
        "local steps: residuals do not decay",
        "residual * self._decay",
        "residual * 1.0",
        "feedback/test_error_feedback.py",
    ),
    Fault(
        "local steps: what was learnt in between is dropped",
        "(local.to(self.dtype) - before.to(self.dtype))",
        "0 * before.to(self.dtype)",
        "local/test_vector.py",
    ),
    Fault(
        "local steps: a resumed run forgets rounds under way",
        "self._flying = deque(sorted(flying",
        "self._flying = deque(sorted([]",
        "distributed/test_local_resume.py -k resumes",
    ),
    Fault(
        "local steps: other workers forget what was learnt since the last round",
        "residual[name] + learnt if name in residual else learnt",
        "residual[name] if name in residual else 0 * learnt",
        "distributed/test_local_resume.py -k take_over",
    ),
    Fault(
        "local steps: residuals are not scaled for one that joins",
        "kept * factor for name, kept in",
        "kept for name, kept in",
        "distributed/test_local_resume.py -k new_worker",
    ),
    Fault(
        "local steps: outliers are compared with the longest",
        "finite[(len(finite) - 1) // 2]",
        "finite[-1]",
        "distributed/test_local_steps.py -k spoilt",
    ),
    Fault(
        "local steps: a worker that is left out keeps what spoilt it",
        'if left_out and self._on_outlier != "raise":\n            self._rewind()',
        'if left_out and self._on_outlier != "raise":\n            pass',
        "distributed/test_local_steps.py -k spoilt",
    ),
    Fault(
        "local steps: a round that ends gives the mean twice",
        "outer.step()",
        "outer.step(), outer.step()",
        "distributed/test_local_steps.py -k equals_ddp",
    ),
]


def place_of(fault: Fault) -> Path:
    """Return the one file that holds a fault's text.

    Raises:
        ValueError: none does, or several, or one twice.
    """
    files = [*(ROOT / "src" / "gaussiank").rglob("*.py"), *(ROOT / "csrc").glob("*.c")]
    found = [file for file in files for _ in range(file.read_text(encoding="utf-8").count(fault.old))]
    if len(found) != 1:
        raise ValueError(f"text of {fault.what!r} must stand once in the library, got {len(found)} times. Correct it.")
    return found[0].relative_to(ROOT)


def planted(fault: Fault | None, folder: Path) -> dict[str, str]:
    """Copy the tree and plant a fault in it; returns the environment in which Python takes it from there."""
    for part in ("src", "tests", "csrc", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    if fault is None:
        return environment
    file = folder / place_of(fault)
    file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
    if file.suffix == ".c":
        library = str(folder / "kernels.so")
        flags = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
        subprocess.run(["cc", *flags, "-o", library, *map(str, (folder / "csrc").glob("*.c"))], check=True)
        environment["GAUSSIANK_NATIVE_LIBRARY"] = library
    return environment


def passes(tests: str, folder: Path, environment: dict[str, str]) -> tuple[bool, str]:
    """Run tests up to the first that fails; returns whether all passed, and the line that says which did not."""
    arguments = [word if word.startswith("-") or before == "-k" else f"tests/{word}"
                 for before, word in zip(["", *tests.split()], tests.split(), strict=False)]  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False, "no end"
    if process.returncode not in (0, 1):
        raise RuntimeError(f"tests must run, got status {process.returncode} of {tests}:\n{output[-2000:]}")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return process.returncode == 0, failed[0].partition(" - ")[0] if failed else ""


def main() -> int:
    words = sys.argv[1:]
    faults = [fault for fault in FAULTS if not words or any(word in fault.what for word in words)]
    for fault in faults:
        place_of(fault)
    survived = []
    for number, fault in enumerate(faults, 1):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            environment = planted(fault, Path(folder))
            alive, by = passes(fault.tests, Path(folder), environment)
        survived += [fault] * alive
        verdict = "SURVIVED" if alive else "caught  "
        print(f"{number:3} {verdict} {time.perf_counter() - started:5.0f} s  {fault.what}  {by}", flush=True)
    print(f"{len(faults) - len(survived)} of {len(faults)} faults caught")
    return len(survived)


if __name__ == "__main__":
    sys.exit(main())
