"""Builds the kernels of ``csrc/`` as one optional library, and the page for an index; the rest is in pyproject.toml.

The library is plain C behind a C ABI and includes neither Python's nor torch's headers, so one build serves every
version of both: hence the tag ``py3-none``. Without a C compiler the installation goes on, and the reference runs.

Two variables of the environment steer a build, both set by ``make dist``:

* ``GAUSSIANK_KERNELS``: ``yes`` fails where the kernels do not compile, ``no`` leaves them out, empty tries.
* ``GAUSSIANK_SITE``: address of the built documentation (``make docs``), to which the README's links then lead.
"""

import os
import platform
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = sorted(path.as_posix() for path in Path("csrc").glob("*.c"))

# No -march=native: avx2.c and avx512.c ask for their instructions themselves and are chosen at run time.
# No contraction: a fused multiply-add would round differently on processors that have it.
FLAGS = ["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
FLAGS += ["-fno-asynchronous-unwind-tables"]  # nobody unwinds through C; 3 kB of the wheel

# What keeps the wheel small (scripts/make_dist.py). On x86_64 portable.c serves processors without AVX2 alone: 7 kB.
# The others run as fast without copies of their loops: 3 kB. Codecs do not: 4-bit values would take twice as long.
SMALLER = {"avx2.c": ["-fno-unswitch-loops"], "avx512.c": ["-fno-unswitch-loops"]}
if platform.machine() in ("x86_64", "AMD64"):
    SMALLER["portable.c"] = ["-O2"]

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class Wheel(bdist_wheel):
    """Names a wheel with kernels after its platform alone: no Python ABI is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform."""
        return ("py3", "none", super().get_tag()[2])


class Build(build_ext):
    """Gives some files flags of their own."""

    def build_extensions(self) -> None:
        """Let the compiler take a file's flags behind those of all; a compiler without such a method keeps to these."""
        compile_one = getattr(self.compiler, "_compile", None)
        if compile_one is not None:
            self.compiler._compile = lambda obj, source, ext, args, extra, options: compile_one(
                obj, source, ext, args, [*extra, *SMALLER.get(Path(source).name, [])], options
            )
        super().build_extensions()


def kernels(wanted: str) -> list[Extension]:
    """Return the one extension, or none; ``wanted`` is yes, no or empty."""
    if wanted not in ("yes", "no", ""):
        raise ValueError(f"GAUSSIANK_KERNELS must be yes, no or empty, got {wanted!r}. Empty builds them where it can.")
    if wanted == "no":
        return []
    return [
        Extension(
            "gaussiank.ops._kernels",
            SOURCES,
            depends=["csrc/gaussiank.h", "csrc/sweep.inc", "csrc/codec.h", "csrc/rice.h", "csrc/topk.h"],
            extra_compile_args=FLAGS,
            optional=wanted == "",
            py_limited_api=True,
        )
    ]


def page_for_an_index(text: str, site: str) -> str:
    """Return the README with no relative link: each leads into the site, or where there is none becomes its text."""

    def follow(link: re.Match[str]) -> str:
        image, label, target = link["image"], link["text"], link["target"]
        if "://" in target:
            return link[0]
        if not site or target.startswith("#"):
            return f"*Figure: {label}.*" if image else label
        if image:
            return f"![{label}]({site}/_images/{Path(target).name})"
        return f"[{label}]({site}/{re.sub(r'[.]md(?=#|$)', '.html', target)})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(follow, part) for part in parts)


site = os.environ.get("GAUSSIANK_SITE", "").rstrip("/")
setup(
    ext_modules=kernels(os.environ.get("GAUSSIANK_KERNELS", "")),
    cmdclass={"bdist_wheel": Wheel, "build_ext": Build},
    long_description=page_for_an_index(Path("README.md").read_text(encoding="utf-8"), site),
    long_description_content_type="text/markdown",
    project_urls={"Paper": "https://arxiv.org/abs/1911.08772", **({"Documentation": site} if site else {})},
)
