"""Fetch Fashion-MNIST from its authors, and keep only files whose content is the released one."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from pathlib import Path

from gaussiank_lab.data.idx import FASHION_SHA256

BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # plain http: the checksum is what protects
TIMEOUT_S = 30


def download_fashion_mnist(data_dir: Path, base_url: str = BASE_URL) -> Path:
    """Fetch the four files of Fashion-MNIST into ``data_dir/fashion-mnist``.

    A file is renamed into place only when its content has the released SHA-256; one that is there and right is kept.

    Args:
        data_dir: the user's folder of data sets; created when missing.
        base_url: where the files are, with its last slash.

    Returns:
        The folder of the files.

    Raises:
        RuntimeError: a file cannot be fetched, or is another one.
    """
    place = data_dir / "fashion-mnist"
    place.mkdir(parents=True, exist_ok=True)
    for name, expected in FASHION_SHA256.items():
        target = place / f"{name}.gz"
        if target.exists() and _sha256_unpacked(target.read_bytes()) == expected:
            continue
        packed = _fetch(base_url + target.name)
        found = _sha256_unpacked(packed)
        if found != expected:
            raise RuntimeError(
                f"{target.name} must have the SHA-256 {expected[:12]}... when unpacked, got {found[:12]}... from "
                f"{base_url}. Nothing was written; try again or use another source."
            )
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            unfinished.write_bytes(packed)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    return place


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read()
            return data
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise RuntimeError(f"{url} must be within reach, got: {reason}. Fetch the file by other means.") from None


def _sha256_unpacked(packed: bytes) -> str:
    try:
        return hashlib.sha256(gzip.decompress(packed)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return "no gzip file"
