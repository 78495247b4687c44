"""Builds the kernels of ``csrc/`` as one optional library; everything else stands in pyproject.toml.

The library is plain C behind a C ABI and includes neither Python's nor torch's headers, so one build serves every
version of both: hence the abi3 name. Without a C compiler the installation goes on, and the reference runs instead.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(path.as_posix() for path in Path("csrc").glob("*.c"))

# No -march=native: avx2.c and avx512.c ask for their instructions themselves and are chosen at run time.
# No contraction: a fused multiply-add would round differently on processors that have it.
FLAGS = ["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]

setup(
    ext_modules=[
        Extension(
            "gaussiank.ops._kernels",
            SOURCES,
            depends=["csrc/gaussiank.h", "csrc/sweep.inc", "csrc/codec.h", "csrc/rice.h", "csrc/topk.h"],
            extra_compile_args=FLAGS,
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
