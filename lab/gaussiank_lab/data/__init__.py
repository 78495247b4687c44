"""What models are trained on: one line in the table for each data set."""

from .batches import Batches
from .cifar10 import CIFAR10
from .fashion_subset import FASHION_MNIST_SUBSET, fashion_mnist_subset
from .idx import FASHION_MNIST, MNIST
from .image_folder import IMAGE_FOLDER
from .image_set import GREY_28, ImageSet, ImageShape
from .ptb import PTB
from .source import DataSource, Wanted
from .speech_manifest import AN4
from .split import Batch, Data, Split
from .stdlib import STDLIB
from .synthetic_images import SYNTHETIC_IMAGES
from .synthetic_speech import SYNTHETIC_SPEECH
from .text import TEXT
from .token_set import TokenSet

_IMAGES = (FASHION_MNIST_SUBSET, FASHION_MNIST, MNIST, CIFAR10, IMAGE_FOLDER, SYNTHETIC_IMAGES)
_LANGUAGE = (STDLIB, TEXT, PTB)
_SPEECH = (AN4, SYNTHETIC_SPEECH)

DATASETS: dict[str, DataSource] = {source.name: source for source in (*_IMAGES, *_LANGUAGE, *_SPEECH)}
"""Name -> where a data set comes from."""

__all__ = [
    "DATASETS",
    "GREY_28",
    "Batch",
    "Batches",
    "Data",
    "DataSource",
    "ImageSet",
    "ImageShape",
    "Split",
    "TokenSet",
    "Wanted",
    "fashion_mnist_subset",
]
