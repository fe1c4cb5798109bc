"""Pictures to cells: a residual network with a feature pyramid (He et al. 2016, Lin et al. 2017), and the matching head.

One network serves photo and views. A cell covers 8 x 8 px; sides are any multiples of 32 px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones import IMAGENET_MEAN, IMAGENET_STD
from prepare.errors import InputError
from prepare.weights import find_entry, load_weights

Norm = Literal["batch", "group"]
CELL_PX = 8
GROUP_CHANNELS = 8  # channels that share a mean and a deviation under group normalisation


class Smoothing(NamedTuple):
    """How many 3 x 3 convolutions follow the pyramid's levels of 8, 16 and 32 px."""

    fine: int
    middle: int
    coarse: int  # each of the coarse ones is followed by a doubling as far as one is needed


class PointConv2d(nn.Conv2d):
    """A 1 x 1 convolution as the product of matrices that it is.

    oneDNN's own weight gradient of these (jit_avx512_common_1x1_convolution_bwd_weights, torch 2.13) writes where it must
    not when it runs in two threads with few channels: training then ends in a segmentation fault.
    """

    def __init__(self, channels: int, width: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, width, 1, stride, bias=bias)

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        step = self.stride[0]
        last = input[..., ::step, ::step].permute(0, 2, 3, 1)
        return F.linear(last, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3 x 3 convolutions round a shortcut; names as torchvision's, so that its weights fit."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = normalisation(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = normalisation(norm, width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(
                PointConv2d(channels, width, stride, bias=False), normalisation(norm, width)
            )

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x), inplace=True)


class Backbone(nn.Module):
    """The residual network to its four stages, at 4, 8, 16 and 32 px."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = normalisation(norm, widths[0])
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for number in range(depth):
                blocks.append(Block(channels, width, 2 if stage and not number else 1, norm))
                channels = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Float[Tensor, "batch 3 h w"]) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        stages = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            stages.append(x)
        return stages


class Encoder(nn.Module):
    """Features of the cells of a picture.

    The pyramid's level of 4 px has no reader. The released network holds it all the same, and a mask head without a loss:
    `unused` keeps their weights so that parameters can be counted against its.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        width: int,
        norm: Norm,
        smoothing: Smoothing,
        level_convolutions: bool,
        unused: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(widths, depths, norm)
        self.inner = nn.ModuleList(PointConv2d(channels, width) for channels in widths[1:])
        self.level = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) if level_convolutions else nn.Identity() for _ in widths[1:]
        )
        self.smooth = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1), normalisation(norm, width), nn.ReLU(inplace=True)
                )
                for _ in range(count)
            )
            for count in smoothing
        )
        self.unused = (
            nn.ModuleList(
                [
                    nn.Conv2d(widths[0], width, 1),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.Conv2d(width, 1, 1, bias=False),
                ]
            )
            if unused
            else None
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, pictures: Float[Tensor, "batch rgb=3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Of pictures in [-1, 1], white 1."""
        if pictures.shape[-1] % 32 or pictures.shape[-2] % 32:
            raise ValueError(f"pictures of {tuple(pictures.shape[-2:])} px: sides are multiples of 32 px")
        stages = self.backbone(pictures.contiguous(memory_format=torch.channels_last))[1:]
        levels = [inner(stage) for inner, stage in zip(self.inner, stages, strict=True)]
        for number in (1, 0):
            levels[number] = levels[number] + F.interpolate(
                levels[number + 1], size=levels[number].shape[-2:]
            )
        levels = [level(x) for level, x in zip(self.level, levels, strict=True)]
        sizes = [level.shape[-2:] for level in levels]
        out = None
        for number, (x, convolutions) in enumerate(zip(levels, self.smooth, strict=True)):
            place = number
            for convolution in convolutions.children():
                x = convolution(x)
                if place:
                    place -= 1
                    x = _resized(x, sizes[place])
            x = _resized(x, sizes[0])
            out = x if out is None else out + x
        assert out is not None
        return out


class MatchingHead(nn.Module):
    """Unit vectors to match cells by: an MLP on each cell's features, the last layer without bias."""

    def __init__(self, width: int, hidden: Sequence[int], out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, wide in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(channels, wide), nn.ReLU(inplace=True)]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden[-1], out, bias=False))

    def forward(self, cells: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch matching"]:
        return F.normalize(self.mlp(cells), dim=-1)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation: the same in training and use, for any mixture of pictures."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, channels // GROUP_CHANNELS), channels)


def start_from_imagenet(encoder: Encoder) -> None:
    """Load torchvision's ResNet-18 of ImageNet into the backbone, whose first layer is turned to pictures in [-1, 1].

    Raises: InputError where the backbone has other widths or its weights are damaged; MissingPartError where the file is
    not on this machine and cannot be fetched.
    """
    entry = find_entry("resnet18")
    weights = {name: t for name, t in load_weights(entry).items() if not name.startswith("fc.")}
    # (x' / 2 + 1 / 2 - mean) / std of x' in [-1, 1]: the scale into the weights. The shift (a constant before a
    # convolution) is left to the batch normalisation that follows, whose running mean takes it up.
    first = weights["conv1.weight"]
    std, mean = first.new_tensor(IMAGENET_STD), first.new_tensor(IMAGENET_MEAN)
    weights["conv1.weight"] = first / (2 * std)[None, :, None, None]
    if "bn1.running_mean" in weights:
        shift = (first * ((0.5 - mean) / std)[None, :, None, None]).sum(dim=(1, 2, 3))
        weights["bn1.running_mean"] = weights["bn1.running_mean"] - shift
    try:
        _load_backbone(encoder.backbone, weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"weights {entry.name}: they do not fit this encoder ({reason}); only the preset `paper` can start from them"
        ) from error


def _load_backbone(backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    backbone.load_state_dict(weights, strict=True)


def _resized(x: Float[Tensor, "batch c h w"], size: torch.Size) -> Float[Tensor, "batch c i j"]:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
