"""Make the package's data file: 10,000 training and 2,000 test images of Fashion-MNIST, as many of each class.

Reads the four idx.gz files of the full set, from where Debian's package dataset-fashion-mnist puts them or from a
folder of the same files. The same input gives the same bytes.

    python scripts/make_fashion_subset.py [--source FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).parent.parent / "lab/gaussiank_lab/data/fashion_mnist_subset.npz"
COUNTS = {"train": 10_000, "t10k": 2_000}
SEED = 20170825  # the day Fashion-MNIST was published
CLASSES = 10

Bytes = NDArray[np.uint8]


def read_idx(path: Path, entry: tuple[int, ...]) -> Bytes:
    """Read an idx.gz file of unsigned bytes whose entries have the shape ``entry``; a damaged one is named."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SystemExit(f"{path} must be a whole gzip file, got: {error}. Fetch it again.") from None
    except OSError as error:
        raise SystemExit(
            f"{path} must be readable, got: {error.strerror}. Install dataset-fashion-mnist or give another --source."
        ) from None
    dims = 1 + len(entry)
    header = 4 + 4 * dims
    magic = 0x800 + dims  # 8: unsigned bytes
    if len(data) < header or struct.unpack(">I", data[:4])[0] != magic:
        raise SystemExit(f"{path} must begin with the idx magic number {magic}, got {data[:4]!r}. Fetch it again.")
    shape = struct.unpack(f">{dims}I", data[4:header])
    if shape[1:] != entry:
        raise SystemExit(f"{path} must hold entries of shape {entry}, got {shape[1:]}. Use Fashion-MNIST's own files.")
    size, held = math.prod(shape), len(data) - header
    if held != size:
        raise SystemExit(f"{path} must hold {size} bytes after its header, got {held}. Fetch it again.")
    return np.frombuffer(data[header:], np.uint8).reshape(shape)


def check_labels(path: Path, labels: Bytes, images: int, each: int) -> None:
    """Refuse labels that do not fit the images, name no class, or leave a class with fewer than ``each``."""
    if len(labels) != images:
        raise SystemExit(f"{path} must hold a label for each of {images} images, got {len(labels)}. Fetch both again.")
    frequencies = np.bincount(labels, minlength=CLASSES)
    if len(frequencies) > CLASSES:
        raise SystemExit(f"{path} must hold labels below {CLASSES}, got {labels.max()}. Fetch it again.")
    if frequencies.min() < each:
        raise SystemExit(
            f"{path} must hold {each} labels of each class, got {frequencies.min()} of class {frequencies.argmin()}. "
            "Use the full set."
        )


def choose(labels: Bytes, each: int, seed: int) -> NDArray[np.int64]:
    """Choose ``each`` places of each class, in a random order."""
    random = np.random.default_rng(seed)
    chosen = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:each] for c in range(CLASSES)])
    return random.permutation(chosen)


def make(source: Path, out: Path, counts: dict[str, int]) -> None:
    """Write the subset of the files in ``source`` to ``out``; ``counts`` (part -> images) are multiples of 10."""
    arrays: dict[str, Bytes] = {}
    for i, (part, count) in enumerate(counts.items()):
        images = read_idx(source / f"{part}-images-idx3-ubyte.gz", (28, 28))
        labels_path = source / f"{part}-labels-idx1-ubyte.gz"
        labels = read_idx(labels_path, ())
        each = count // CLASSES
        check_labels(labels_path, labels, len(images), each)
        chosen = choose(labels, each, SEED + i)
        name = "train" if part == "train" else "test"
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images[chosen], labels[chosen]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(2017, 8, 25, 0, 0, 0))  # no clock in the bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the four idx.gz files")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out, COUNTS)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
