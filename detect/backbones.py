"""Pyramids of learned features behind one protocol.

A backbone takes RGB in [0, 1] of any size, normalises it itself, and gives one map per layer at growing strides.
Networks are frozen, in eval mode, and run without gradients. The main job needs none of this.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prepare.errors import InputError, MissingPartError
from prepare.weights import REGISTRY, WeightsFile, find_entry, load_weights, locate, weights_folders

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Network = TypeVar("Network", bound=nn.Module)

DINOV2 = "vit_small_patch14_dinov2"  # timm's name of the network in the registry's dinov2_vits14
ALIASES = {"wide_resnet50": "wide_resnet50_2", "dinov2": DINOV2, "dinov2_vits14": DINOV2}


@runtime_checkable
class Backbone(Protocol):
    """A frozen network that sees one picture at several scales."""

    name: str
    strides: tuple[int, ...]  # px of the picture per px of each layer's map
    channels: tuple[int, ...]  # of each layer's map

    def features(
        self, rgb: Float[Tensor, "height width rgb=3"]
    ) -> list[Float[Tensor, "channels rows columns"]]:
        """One map a layer, finest first, of RGB in [0, 1]; its sides are the picture's over the stride, rounded."""
        ...


def load_backbone(name: str) -> Backbone:
    """`mobilenet_v2`, `efficientnet_b4`, or any model that timm knows by that name, with weights from the registry.

    `wide_resnet50` and `dinov2` are short for timm's `wide_resnet50_2` and `vit_small_patch14_dinov2`.

    Raises: MissingPartError where the weights or timm are not there (it says what to do); InputError where the
    weights are another network's.
    """
    name = ALIASES.get(name, name)
    if name == "mobilenet_v2":
        # Torchvision's own weights serve as well where the converted ones are not on this machine.
        converted, original = REGISTRY["mobilenet_v2"], REGISTRY["mobilenet_v2_torchvision"]
        entry = converted if locate(converted) is not None else original
        return TappedNetwork(name, load_into(MobileNetV2(), entry), (1, 3, 6, 13))
    if name == "efficientnet_b4":
        return TappedNetwork(name, load_into(EfficientNetB4(), find_entry(name)), (1, 5, 9, 21))
    return TimmBackbone(name)


def choose_backbone(name: str) -> str:
    """`name`, or for `auto` SplatPose's own efficientnet_b4 where its weights are on this machine, else mobilenet_v2.

    Nothing is downloaded for `auto`: what a table is made with should not hang on whether a server answers.

    Raises: MissingPartError where `auto` finds neither.
    """
    if name != "auto":
        return ALIASES.get(name, name)
    files = {
        "efficientnet_b4": (REGISTRY["efficientnet_b4"],),
        "mobilenet_v2": (REGISTRY["mobilenet_v2"], REGISTRY["mobilenet_v2_torchvision"]),
    }
    for backbone, entries in files.items():
        if any(locate(entry) is not None for entry in entries):
            return backbone
    places = " or ".join(str(folder) for folder in weights_folders())
    raise MissingPartError(
        f"backbone auto: no ImageNet weights are on this machine; put {files['efficientnet_b4'][0].file} (from "
        f"{files['efficientnet_b4'][0].url}) or {files['mobilenet_v2'][0].file} into {places}, or name the backbone "
        "to have its weights downloaded"
    )


def load_into(network: Network, entry: WeightsFile) -> Network:
    """`network` itself with the weights of `entry`, every tensor of which must have its place.

    Raises: as `prepare.weights.load_weights`; InputError where names or shapes differ.
    """
    try:
        network.load_state_dict(load_weights(entry), strict=True)
    except RuntimeError as error:
        raise InputError(
            f"weights {entry.name}: {entry.file} does not fit the network ({_first_complaint(error)}); "
            "give the file that the registry names"
        ) from error
    return network


def _first_complaint(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:160]


def frozen(network: Network) -> Network:
    """`network` itself, in eval mode and without gradients."""
    return network.eval().requires_grad_(False)


def normalised(rgb: Float[Tensor, "height width rgb=3"]) -> Float[Tensor, "1 rgb=3 height width"]:
    """RGB in [0, 1] minus ImageNet's mean over its standard deviation, as a batch of one."""
    return ((rgb - rgb.new_tensor(IMAGENET_MEAN)) / rgb.new_tensor(IMAGENET_STD)).permute(2, 0, 1)[None]


class StagedNetwork(nn.Module):
    """A network that is a chain of blocks."""

    block_channels: tuple[int, ...]  # of each block's output
    block_strides: tuple[int, ...]  # px of the picture per px of each block's output

    def run_blocks(
        self, batch: Float[Tensor, "batch rgb=3 height width"], last: int
    ) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """What each block up to number `last` puts out."""
        raise NotImplementedError


class TappedNetwork:
    """A `Backbone` that reads a chain of blocks at some of them, and computes no further than the last."""

    def __init__(self, name: str, network: StagedNetwork, taps: tuple[int, ...]) -> None:
        self.name = name
        self.taps = taps
        self.network = network
        frozen(network)
        self.channels: tuple[int, ...] = tuple(network.block_channels[tap] for tap in taps)
        self.strides: tuple[int, ...] = tuple(network.block_strides[tap] for tap in taps)

    def features(
        self, rgb: Float[Tensor, "height width rgb=3"]
    ) -> list[Float[Tensor, "channels rows columns"]]:
        """See `Backbone`."""
        with torch.no_grad():
            outputs = self.network.run_blocks(normalised(rgb), max(self.taps))
        return [outputs[tap][0] for tap in self.taps]


# ------------------------------------------------------------------------------------------------------- MobileNetV2


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1 without activation; added to its input where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        width = inputs * expansion
        widen = [_conv_bn_relu6(inputs, width, 1, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu6(width, width, 3, stride, groups=width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(
        self, batch: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs _rows _columns"]:
        out = self.conv(batch)
        return batch + out if self.residual else out


class MobileNetV2(StagedNetwork):
    """The classifier of Sandler et al. 2018, width 1, with torchvision's parameter names.

    Block 0 is the stem, 1 to 17 are inverted residuals, 18 the last 1x1 convolution.
    """

    # expansion, channels, blocks, stride of the first
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, 2)]
        channels, strides = [32], [2]
        for expansion, width, repeats, first_stride in self.STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels[-1], width, stride, expansion))
                channels.append(width)
                strides.append(strides[-1] * stride)
        blocks.append(_conv_bn_relu6(channels[-1], 1280, 1, 1))
        self.block_channels = (*channels, 1280)
        self.block_strides = (*strides, strides[-1])
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def run_blocks(
        self, batch: Float[Tensor, "batch rgb=3 height width"], last: int
    ) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """See `StagedNetwork`."""
        outputs = []
        for block in list(self.features)[: last + 1]:
            batch = block(batch)
            outputs.append(batch)
        return outputs

    def forward(self, batch: Float[Tensor, "batch rgb=3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of ImageNet's classes for a normalised batch."""
        return self.classifier(self.features(batch).mean(dim=(2, 3)))


# --------------------------------------------------------------------------------------------------- EfficientNet-B4


class SamePadConv(nn.Conv2d):
    """A convolution padded so that the output is the input over the stride, rounded up, at a side of `side` px.

    The padding belongs to that side and is kept for every picture, as the published weights' own library does:
    at other sides a stride-2 filter of 5 px sits one pixel aside from where TensorFlow would put it.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, side: int, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        needed = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        before = needed // 2
        self.around = (before, needed - before, before, needed - before)

    def forward(
        self, batch: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs _rows _columns"]:
        return super().forward(F.pad(batch, self.around))


class MobileBlock(nn.Module):
    """MBConv: an inverted residual with squeeze-and-excitation and the swish activation (Tan and Le 2019)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, side: int
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        width, squeezed = inputs * expansion, max(1, inputs // 4)
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SamePadConv(inputs, width, 1, 1, side)
            self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = SamePadConv(width, width, kernel, stride, side, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._se_reduce = nn.Conv2d(width, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, width, 1)
        self._project_conv = SamePadConv(width, outputs, 1, 1, math.ceil(side / stride))
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(
        self, batch: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs _rows _columns"]:
        wide = F.silu(self._bn0(self._expand_conv(batch))) if self.expands else batch
        wide = F.silu(self._bn1(self._depthwise_conv(wide)))
        gate = self._se_expand(F.silu(self._se_reduce(wide.mean(dim=(2, 3), keepdim=True))))
        out = self._bn2(self._project_conv(torch.sigmoid(gate) * wide))
        return batch + out if self.residual else out


class EfficientNetB4(StagedNetwork):
    """The classifier of Tan and Le 2019 at width 1.4 and depth 1.8, with the parameter names of the published weights.

    Blocks are numbered as there: 32 of them, the stem apart.
    """

    # B0's kernel, stride, expansion, channels and repeats, scaled by 1.4 (to multiples of 8) and 1.8 (rounded up)
    STAGES = (
        (3, 1, 1, 24, 2),
        (3, 2, 6, 32, 4),
        (5, 2, 6, 56, 4),
        (3, 2, 6, 112, 6),
        (5, 1, 6, 160, 6),
        (5, 2, 6, 272, 8),
        (3, 1, 6, 448, 2),
    )
    SIDE = 380  # px, of the pictures it was trained on

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stem, head = 48, 1792
        self._conv_stem = SamePadConv(3, stem, 3, 2, self.SIDE)
        self._bn0 = nn.BatchNorm2d(stem, eps=1e-3)
        side, stride, before = math.ceil(self.SIDE / 2), 2, stem
        blocks, channels, strides = [], [], []
        for kernel, first_stride, expansion, width, repeats in self.STAGES:
            for repeat in range(repeats):
                step = first_stride if repeat == 0 else 1
                blocks.append(MobileBlock(before, width, kernel, step, expansion, side))
                side, stride, before = math.ceil(side / step), stride * step, width
                channels.append(width)
                strides.append(stride)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadConv(before, head, 1, 1, side)
        self._bn1 = nn.BatchNorm2d(head, eps=1e-3)
        self._fc = nn.Linear(head, classes)
        self.block_channels, self.block_strides = tuple(channels), tuple(strides)

    def run_blocks(
        self, batch: Float[Tensor, "batch rgb=3 height width"], last: int
    ) -> list[Float[Tensor, "batch _channels _rows _columns"]]:
        """See `StagedNetwork`."""
        batch = F.silu(self._bn0(self._conv_stem(batch)))
        outputs = []
        for block in list(self._blocks)[: last + 1]:
            batch = block(batch)
            outputs.append(batch)
        return outputs

    def forward(self, batch: Float[Tensor, "batch rgb=3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of ImageNet's classes for a normalised batch."""
        last = self.run_blocks(batch, len(self._blocks) - 1)[-1]
        return self._fc(F.silu(self._bn1(self._conv_head(last))).mean(dim=(2, 3)))


# -------------------------------------------------------------------------------------------------------------- timm


class TimmBackbone:
    """Any pyramid of timm by its name; torchvision's weights fit where the two share names (the ResNet family).

    Weights come from the registry under the same name (DINOv2's under its own); for other models from a file
    NAME.safetensors. A vision transformer's layers all have the stride of its patches.
    """

    def __init__(self, name: str) -> None:
        try:
            timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise MissingPartError(
                f"backbone {name}: timm is not installed; `pip install 'splatad[features]'`, "
                "or take mobilenet_v2 or efficientnet_b4, which need no extra"
            ) from error
        transformer = name.startswith("vit_")
        # Without the option a transformer of timm takes pictures of its training's size only.
        options = {"dynamic_img_size": True} if transformer else {}
        try:
            network = timm.create_model(name, pretrained=False, features_only=True, **options)
        except RuntimeError as error:
            raise InputError(
                f"backbone {name}: timm cannot build it ({error}); see timm.list_models()"
            ) from error
        unregistered = WeightsFile(
            name, f"{name}.safetensors", "the model's own", None, None, "given by the user"
        )
        entry = REGISTRY.get("dinov2_vits14" if name == DINOV2 else name, unregistered)
        weights = load_weights(entry)
        if all(key.startswith("model.") for key in network.state_dict()):
            weights = {f"model.{key}": tensor for key, tensor in weights.items()}  # timm wraps transformers
        try:
            absent, _ = network.load_state_dict(weights, strict=False)  # the head's tensors stay over
        except RuntimeError as error:
            raise InputError(
                f"weights {name}: {entry.file} does not fit the network ({_first_complaint(error)}); "
                "give the weights of this timm model"
            ) from error
        if absent:
            raise InputError(
                f"weights {name}: {entry.file} lacks {absent[0]} and {len(absent) - 1} more; "
                "give the weights of this timm model"
            )
        self.name = name
        self.network = frozen(network)
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(network.feature_info.reduction())
        self.patch_px = self.strides[0] if transformer else 1
        config: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))

    def features(
        self, rgb: Float[Tensor, "height width rgb=3"]
    ) -> list[Float[Tensor, "channels rows columns"]]:
        """See `Backbone`."""
        batch = ((rgb - rgb.new_tensor(self.mean)) / rgb.new_tensor(self.std)).permute(2, 0, 1)[None]
        height, width = (max(1, round(side / self.patch_px)) * self.patch_px for side in batch.shape[2:])
        if (height, width) != tuple(batch.shape[2:]):
            # Whole patches, so that the map's cells lie on the picture without a rest.
            batch = F.interpolate(
                batch, (height, width), mode="bilinear", align_corners=False, antialias=True
            )
        with torch.no_grad():
            return [layer[0] for layer in self.network(batch)]
