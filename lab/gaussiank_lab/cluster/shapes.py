"""Models as the simulator sees them: parameters, multiply-adds, and what a step of them takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gaussiank_lab.sim import Bucket, Workload

IMAGENET_IMAGES = 1_281_167
FIRST_BUCKET_NUMEL, BUCKET_NUMEL = 2**20 // 4, 25 * 2**20 // 4
"""DDP's own limits: 1 MiB for the first bucket, 25 MiB for the others, of float32 gradients."""


def bucket_numels(numel: int) -> list[int]:
    """Cut a vector as DDP cuts the gradients of a model with small layers, in the order of backward.

    Example:
        >>> bucket_numels(10_000_000)
        [262144, 6553600, 3184256]
    """
    after_first = numel - FIRST_BUCKET_NUMEL
    if after_first <= 0:
        return [numel]
    whole, rest = divmod(after_first, BUCKET_NUMEL)
    return [FIRST_BUCKET_NUMEL, *[BUCKET_NUMEL] * whole, *([rest] if rest else [])]


@dataclass(frozen=True)
class ModelShape:
    """Describe a model.

    Args:
        name: as the lab calls it.
        groups: (parameters, million multiply-adds of one example's forward), in forward order.
        batch: examples a worker and step.
        epoch_samples: examples of an epoch.
        p100_images_s: measured training throughput on a P100, or None: then ResNet-50's rate of multiply-adds is taken.
        tokens: of an example, for language models; 6 operations a parameter and token.
        rows: of a transformer, its second moments by ``AdamRows``: rows of matrices and entries of vectors.
        source: where all that comes from.
    """

    name: str
    groups: tuple[tuple[int, float], ...]
    batch: int
    epoch_samples: int
    source: str
    p100_images_s: float | None = None
    tokens: int = 0
    rows: int = 0

    @property
    def numel(self) -> int:
        """Parameters."""
        return sum(numel for numel, _ in self.groups)

    def step_s(self, images_rate: float, flops_rate: float) -> float:
        """Return the seconds of forward and backward.

        Args:
            images_rate: the device's ResNet-50 training throughput over a P100's.
            flops_rate: operations a second that the device achieves on a language model.
        """
        if self.tokens:
            return 6 * self.numel * self.tokens * self.batch / flops_rate
        p100 = self.p100_images_s or P100_RESNET50 * 4089.2 / sum(macs for _, macs in self.groups)
        return self.batch / (p100 * images_rate)

    def workload(self, step_s: float, input_images_s: float | None = None, optimizer_s: float = 0.0) -> Workload:
        """Cut the model into DDP's buckets; a third of the time is forward, and backward goes with the multiply-adds.

        Args:
            step_s: seconds of forward and backward.
            input_images_s: what the input pipeline delivers to a worker, or None for more than enough.
            optimizer_s: seconds of the optimizer's step.
        """
        macs = sum(macs for _, macs in self.groups)
        buckets: list[Bucket] = []
        numel, work = 0, 0.0
        for group_numel, group_macs in reversed(self.groups):
            numel, work = numel + group_numel, work + group_macs
            if numel >= (BUCKET_NUMEL if buckets else FIRST_BUCKET_NUMEL):
                buckets.append(Bucket(numel, 2 / 3 * step_s * work / macs))
                numel, work = 0, 0.0
        if numel:
            buckets.append(Bucket(numel, 2 / 3 * step_s * work / macs))
        floor_s = self.batch / input_images_s if input_images_s and not self.tokens else 0.0
        return Workload(self.name, tuple(buckets), step_s / 3, optimizer_s, self.batch, self.epoch_samples, floor_s)


P100_RESNET50 = 219.0
"""Images a second; TensorFlow's published benchmarks, DGX-1, one P100, synthetic data, May 2017."""
_COUNTED = "parameters and multiply-adds counted on the lab's model"
_P100 = "throughput of one P100: TensorFlow's published benchmarks, DGX-1, synthetic data, May 2017"


def _transformer(name: str, layers: int, width: int, vocabulary: int, batch: int, tokens: int) -> ModelShape:
    """Describe a decoder: 12 width^2 parameters a layer, and its embedding, which is also its head."""
    embedding = (vocabulary * width, float(vocabulary * width))
    groups = (embedding, *(((12 * width * width, float(12 * width * width)),) * layers))
    source = f"{layers} layers of width {width}, 12 width^2 parameters each; 6 operations a parameter and token"
    rows = vocabulary + _LAYER_ROWS * width * layers
    return ModelShape(name, groups, batch, 1_000_000, source, tokens=tokens, rows=rows)


_LAYER_ROWS = 22
"""Second moments of ``AdamRows`` in a layer of GPT-2, over its width: 9 outputs of matrices, 13 of vectors; 11 without
biases, as nanoGPT has it.
"""


def _gpt2(name: str, layers: int, width: int, batch: int) -> ModelShape:
    """Describe a model of GPT-2: positions, biases and norms counted too."""
    vocabulary, positions = 50_257, 1024
    embedding = ((vocabulary + positions) * width, float(vocabulary * width))
    layer = (12 * width * width + 13 * width, float(12 * width * width))
    groups = (embedding, *((layer,) * layers), (2 * width, 0.0))
    rows = vocabulary + positions + _LAYER_ROWS * width * layers + 2 * width
    source = f"{layers} layers of width {width}, batches of {batch} x 1,024 tokens; 6 operations a parameter and token"
    return ModelShape(name, groups, batch, 1_000_000, source, tokens=positions, rows=rows)


def _decoder(name: str) -> ModelShape | None:
    """Describe a transformer by its number of parameters alone, such as 60M; None where the name is none.

    Layers are as many as its width has 64s, as in GPT-2; a vocabulary of 50,257 counts for the second moments alone.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", name, re.IGNORECASE)
    if not found or not float(found[1]):
        return None
    numel = round(float(found[1]) * {"M": 1e6, "B": 1e9}[found[2].upper()])
    layers = max(1, round((numel / (12 * 64 * 64)) ** (1 / 3)))
    groups = tuple((numel * (i + 1) // layers - numel * i // layers, 1.0) for i in range(layers))
    source = f"{layers} equal layers, 8 x 1,024 tokens a step; 6 operations a parameter and token"
    rows = min(numel, 50_257 + _LAYER_ROWS * 64 * layers * layers)
    return ModelShape(name, groups, 8, 1_000_000, source, tokens=1024, rows=rows)


_INCEPTION_V4 = (
    (1_438_432, 3306.0), (437_824, 534.4), (1_401_984, 473.8), (1_495_104, 793.8),
    *(((1_460_352, 421.4), (1_475_904, 425.9)) * 6), (1_460_352, 421.4),
    (1_414_080, 333.4), (1_296_000, 374.1), (1_315_968, 84.1), (1_181_440, 75.5), (1_107_584, 70.8),
    (1_476_608, 94.4), (1_378_048, 88.1), (1_181_440, 75.5), (1_206_144, 77.1), (1_181_184, 75.5),
    (1_279_744, 81.8), (1_403_008, 89.7), (1_476_608, 94.4), (393_728, 25.2), (1_537_000, 1.5),
)  # fmt: skip
_RESNET50 = (
    (1_444_928, 1813.6), (986_112, 269.7), (1_379_328, 269.7), (1_381_376, 269.7), (1_379_840, 269.7),
    (1_117_184, 218.4), (1_379_840, 269.7), (2_359_296, 115.6), (1_053_696, 51.4), (2_097_152, 102.8),
    (1_053_696, 51.4), (2_359_296, 115.6), (1_053_696, 51.4), (1_049_600, 51.4), (2_359_296, 115.6),
    (1_053_696, 51.4), (2_049_000, 2.0),
)  # fmt: skip
_VGG16 = (
    (1_145_408, 7485.5), (590_080, 1849.7), (1_180_160, 924.8), *(((2_359_808, 1849.7),) * 2),
    *(((2_359_808, 462.4),) * 3), (102_764_544, 102.8), (16_781_312, 16.8), (4_097_000, 4.1),
)  # fmt: skip
_ALEXNET = ((994_624, 406.4), (1_475_072, 249.2), (37_752_832, 37.7), (16_781_312, 16.8), (4_097_000, 4.1))

SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("alexnet", _ALEXNET, 128, IMAGENET_IMAGES, f"{_COUNTED}; {_P100}", 2987),
        ModelShape("vgg16-imagenet", _VGG16, 128, IMAGENET_IMAGES, f"{_COUNTED}; {_P100}", 154),
        ModelShape("resnet50", _RESNET50, 128, IMAGENET_IMAGES, f"{_COUNTED}; {_P100}", P100_RESNET50),
        ModelShape(
            "inception-v4",
            _INCEPTION_V4,
            128,
            IMAGENET_IMAGES,
            f"{_COUNTED}; assumed: Inception-V3's rate on a P100 (142 images/s, as above) x 5.7/12.25 multiply-adds",
            142 * 5.7 / 12.25,
        ),
        ModelShape("resnet20", ((14_352, 14.6), (51_648, 12.4), (203_722, 14.2)), 32, 50_000, "stage by stage"),
        ModelShape("lenet5", ((156, 0.12), (2_416, 0.24), (59_134, 0.06)), 32, 10_000, "layer by layer"),
        ModelShape("fnn3", ((157_000, 0.157), (40_200, 0.04), (2_010, 0.002)), 128, 10_000, "layer by layer"),
        ModelShape(
            "transformer",
            ((40_960, 0.04), *(((307_840, 0.31),) * 4), (41_280, 0.04)),
            4,
            10_000,
            "layer by layer",
            tokens=128,
            rows=9_152,
        ),
        _gpt2("gpt2", 12, 768, 12),
        _gpt2("gpt2-medium", 24, 1024, 8),
        _gpt2("gpt2-large", 36, 1280, 4),
        _gpt2("gpt2-xl", 48, 1600, 2),
        _transformer("transformer-350m", 24, 1024, 50_257, 8, 1024),
        _transformer("transformer-1.3b", 24, 2048, 50_257, 4, 2048),
        _transformer("transformer-7b", 32, 4096, 32_000, 2, 2048),
    )
}
"""Name -> shape; those of the lab's own models have the lab's names."""


def find_shape(name: str) -> ModelShape:
    """Return the shape of a name, or of a transformer's number of parameters.

    Raises:
        ValueError: there is none.

    Example:
        >>> find_shape("resnet50").numel, find_shape("gpt2").numel, find_shape("60M").numel
        (25557032, 124439808, 60000000)
    """
    shape = SHAPES.get(name) or _decoder(name)
    if shape is None:
        raise ValueError(
            f"model must be one of {', '.join(SHAPES)}, or a transformer's number of parameters, got {name!r}. Correct "
            "it, or write 60M or 1.5B, for example."
        )
    return shape
