"""Reads the release from the library beside it, since both are released together; the rest is in pyproject.toml.

A source distribution of the lab alone has no library beside it: there the release stands in its own PKG-INFO.
"""

import re
from pathlib import Path

from setuptools import setup

PLACES = {
    Path("../src/gaussiank/__init__.py"): r'^__version__ = "([^"]+)"$',
    Path("PKG-INFO"): r"^Version: (\S+)$",
}

place = next(path for path in PLACES if path.is_file())
(release,) = re.findall(PLACES[place], place.read_text(encoding="utf-8"), re.MULTILINE)[:1]

setup(
    version=release,
    install_requires=[
        f"gaussiank=={release}",  # the same release: the lab looks inside the library
        "typer>=0.12,<1",
        "rich>=13,<16",
        "matplotlib>=3.8,<4",
        "jinja2>=3.1,<4",
        "pillow>=10,<14",
        "scipy>=1.10,<2",
    ],
)
