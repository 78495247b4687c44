"""Which backend runs, how it is forced, whose threads it uses, and the memory it likes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.each import each

from gaussiank import ops
from gaussiank.ops import dispatch, native


def run(statement: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", statement]
    given = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, timeout=120, check=False)


def test_the_reference_is_always_there_and_the_fastest_runs() -> None:
    available, active = ops.backends()
    assert available[0] == "reference"
    assert active == os.environ.get(dispatch.VARIABLE, available[-1])
    assert set(available) <= {"reference", "scalar", "neon", "avx2", "avx512"}


def test_a_backend_is_forced_and_given_back() -> None:
    before = ops.backends().active
    for name in ops.backends().available:
        with ops.use_backend(name):
            assert ops.backends().active == name
            with pytest.raises(RuntimeError, match="inside"), ops.use_backend("reference"):
                raise RuntimeError("inside")
            assert ops.backends().active == name
    assert ops.backends().active == before


def test_unknown_backend() -> None:
    message = r"^name must be one of reference.* on this machine, got 'cuda'\. Install"
    with pytest.raises(ValueError, match=message), ops.use_backend("cuda"):
        pass


def test_environment_chooses() -> None:
    look = "from gaussiank import ops; print(ops.backends().active)"
    done = run(look, GAUSSIANK_BACKEND="reference")
    assert done.stdout.strip() == "reference", done.stderr
    done = run(look, GAUSSIANK_BACKEND="abacus")
    assert "ValueError: GAUSSIANK_BACKEND must be one of reference" in done.stderr


def test_without_kernels_the_reference_runs() -> None:
    statement = (
        "import torch; from gaussiank import ops; print(*ops.backends().available);"
        "print(ops.accumulate_topk(torch.ones(3), torch.tensor([1., 5., 2.]), 1).indices.tolist())"
    )
    done = run(statement, GAUSSIANK_NATIVE_LIBRARY="", GAUSSIANK_BACKEND="")
    assert done.stdout.split("\n")[:2] == ["reference", "[1]"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
@pytest.mark.skipif(native.library() is None, reason="the kernels are not built")
def test_kernels_share_the_openmp_runtime_of_torch() -> None:
    statement = (
        "import re, torch; from gaussiank import ops; torch.set_num_threads(2);"
        "ops.accumulate_topk(torch.ones(600_000), torch.randn(600_000), 100);"
        "maps = open('/proc/self/maps').read();"
        "print(*{m for m in re.findall(r'/\\S*lib(?:gomp|omp|iomp)[^/\\s]*', maps)}, sep='\\n');"
        "print('threads', len(__import__('os').listdir('/proc/self/task')))"
    )
    done = run(statement)
    *runtimes, threads = done.stdout.split("\n")[:-1]
    assert len(runtimes) == 1, done.stdout + done.stderr
    assert native._openmp() is not None
    assert int(threads.split()[1]) >= 2  # the kernel's second thread is one of that runtime


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("int gk_abi(void) { return -1; }\n")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "old.so"), str(source)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    done = run("from gaussiank import ops; ops.backends()", GAUSSIANK_NATIVE_LIBRARY=str(tmp_path / "old.so"))
    assert "RuntimeError: " in done.stderr
    assert f"must have ABI {native.ABI}, got -1. Install gaussiank" in done.stderr


# ---------------------------------------------------------------------- buffers


@each("numel", [0, 1, 1000, 1_048_575, 1_048_576, 3_000_001])
@each("dtype", [torch.float32, torch.float64], ids=str)
def test_buffer_is_zeros_aligned_and_its_own(numel: int, dtype: torch.dtype) -> None:
    buffer, other = ops.residual_buffer(numel, dtype), ops.residual_buffer(numel, dtype)
    assert (buffer.shape, buffer.dtype, buffer.is_contiguous()) == ((numel,), dtype, True)
    assert buffer.data_ptr() % 64 == 0
    assert bool((buffer == 0).all())
    buffer.fill_(3)
    assert bool((other == 0).all())
    if numel * dtype.itemsize >= 2**22 and sys.platform == "linux":
        assert buffer.data_ptr() % 2**21 == 0


def test_buffer_outlives_its_slices() -> None:
    view = ops.residual_buffer(2_000_000)[1000:1010]
    view += 1
    assert view.tolist() == [1.0] * 10


def test_buffer_elsewhere() -> None:
    assert ops.residual_buffer(5, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match=r"^numel must be at least 0, got -1\."):
        ops.residual_buffer(-1)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")
def test_where_there_is_a_compiler_the_kernels_were_built() -> None:
    """The build is optional, so one that fails is silent: without this, the suite would pass on the reference alone."""
    assert len(ops.backends().available) > 1
