"""ResNet-20 in its CIFAR form."""

from __future__ import annotations

from torch import Tensor, nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec


class _Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut without parameters: every second pixel, new channels zero."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        self._stride = stride
        self._new_channels = outward - inward

    def forward(self, images: Tensor) -> Tensor:
        out = nn.functional.relu(self.first_norm(self.first(images)))
        out = self.second_norm(self.second(out))
        shortcut = images[:, :, :: self._stride, :: self._stride]
        if self._new_channels:
            half = self._new_channels // 2
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, half, self._new_channels - half))
        return nn.functional.relu(out + shortcut)


def _build(classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inward, outward, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [_Block(inward, outward, stride), _Block(outward, outward, 1), _Block(outward, outward, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


RESNET20 = ModelSpec(
    "resnet20",
    "images",
    _build,
    outputs=10,
    numel=269_722,
    source="He et al. 2016, section 4.2, shortcuts of option A, 3 channels",
    image=ImageShape(3, 32),
)
