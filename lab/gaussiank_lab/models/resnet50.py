"""ResNet-50 for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec


def _convolution(inward: int, outward: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inward, outward, kernel, stride, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(outward)]


class _Bottleneck(nn.Module):
    """Narrow, convolve, widen; around it a shortcut, projected where the shape changes."""

    def __init__(self, inward: int, width: int, stride: int) -> None:
        super().__init__()
        outward = 4 * width
        narrow, middle = _convolution(inward, width, 1), _convolution(width, width, 3, stride)
        self.branch = nn.Sequential(*narrow, nn.ReLU(), *middle, nn.ReLU(), *_convolution(width, outward, 1))
        changes = stride > 1 or inward != outward
        self.shortcut = nn.Sequential(*(_convolution(inward, outward, 1, stride) if changes else []))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(images) + self.shortcut(images))


def _build(classes: int) -> nn.Module:
    layers = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    inward = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(_Bottleneck(inward, width, stride if block == 0 else 1))
            inward = 4 * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


RESNET50 = ModelSpec(
    "resnet50",
    "images",
    _build,
    outputs=1000,
    numel=25_557_032,
    source="He et al. 2016, table 1; the stride is in the 3 x 3 convolution, as in today's code",
    image=ImageShape(3, 224),
    eval_batch=8,
)
