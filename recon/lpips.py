"""LPIPS: the perceptual distance between two pictures, from AlexNet's features under learned weights.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, version 0.1
of the weights (which scales its input). AlexNet: Krizhevsky 2014 as torchvision lays it out. Reads two files of the
registry, `alexnet` and `lpips_alex`, where they are on this machine; nothing is downloaded and nothing else needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prepare.errors import InputError
from prepare.weights import REGISTRY, load_weights, locate

# What the networks take is (x - SHIFT) / SCALE of RGB in [-1, 1]: ImageNet's mean and deviation, on that range.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
MIN_SIDE_PX = 31  # below, nothing is left after the second pooling


@dataclass(frozen=True)
class _Layer:
    """A convolution of AlexNet, then ReLU."""

    index: int  # in torchvision's `features`
    channels: int
    side: int  # of the filter, px
    stride: int
    padding: int  # px of zeros on each side
    pooled: bool  # by maxima of 3x3 at stride 2 before


_LAYERS = (
    _Layer(0, 64, 11, 4, 2, False),
    _Layer(3, 192, 5, 1, 2, True),
    _Layer(6, 384, 3, 1, 1, True),
    _Layer(8, 256, 3, 1, 1, False),
    _Layer(10, 256, 3, 1, 1, False),
)


@dataclass(frozen=True)
class Lpips:
    """The network, one element of each tuple per layer."""

    filters: tuple[Float[Tensor, "_channels _inputs _side _side"], ...]
    biases: tuple[Float[Tensor, " _channels"], ...]
    weights: tuple[Float[Tensor, " _channels"], ...]  # of each channel in the distance, learned to be >= 0

    @torch.no_grad()
    def distance(
        self, one: Float[Tensor, "height width rgb=3"], other: Float[Tensor, "height width rgb=3"]
    ) -> float:
        """LPIPS of two pictures in [0, 1], at least MIN_SIDE_PX on each side: 0 where equal, symmetric.

        Per layer, the squared difference of features of length 1 at each place, summed over channels by `weights` and
        averaged over places; the sum over layers.
        """
        pair = torch.stack((one, other)).permute(0, 3, 1, 2)
        maps = (2.0 * pair - 1.0 - _per_channel(SHIFT, pair)) / _per_channel(SCALE, pair)
        total = 0.0
        for layer, filters, bias, weights in zip(
            _LAYERS, self.filters, self.biases, self.weights, strict=True
        ):
            if layer.pooled:
                maps = F.max_pool2d(maps, 3, stride=2)
            maps = F.conv2d(maps, filters.to(maps), bias.to(maps), layer.stride, layer.padding).relu_()
            first, second = F.normalize(maps, dim=1, eps=1e-10)
            by_channel = (first - second).square().mean(dim=(1, 2))
            total += float((by_channel * weights.to(by_channel)).sum())
        return total


def load_lpips() -> Lpips | None:
    """LPIPS with the weights on this machine; None where one of its two files is not. Never downloads.

    Raises: InputError for a file that is damaged, not the registered one or another network's; MissingPartError under
    a torch that cannot read .pth files safely.
    """
    network, calibration = REGISTRY["alexnet"], REGISTRY["lpips_alex"]
    network_path, calibration_path = locate(network), locate(calibration)
    if network_path is None or calibration_path is None:
        return None
    features, linear = load_weights(network), load_weights(calibration)
    filters, biases, weights = [], [], []
    inputs = 3
    for number, layer in enumerate(_LAYERS):
        name = f"features.{layer.index}"
        shape = (layer.channels, inputs, layer.side, layer.side)
        filters.append(_taken(features, f"{name}.weight", shape, network_path))
        biases.append(_taken(features, f"{name}.bias", shape[:1], network_path))
        name = f"lin{number}.model.1.weight"
        weights.append(_taken(linear, name, (1, layer.channels, 1, 1), calibration_path).reshape(-1))
        inputs = layer.channels
    return Lpips(tuple(filters), tuple(biases), tuple(weights))


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Float[Tensor, "..."]:
    """The tensor called `name`, in float32.

    Raises: InputError where it is not there, of another shape, or not of finite numbers.
    """
    advice = "give the file that the registry names, or take it away to go without LPIPS"
    tensor = tensors.get(name)
    if tensor is None:
        raise InputError(f"{path}: lacks {name}; {advice}")
    if tuple(tensor.shape) != shape:
        raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, {shape} expected; {advice}")
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise InputError(f"{path}: {name} holds values that are not finite numbers; {advice}")
    return tensor.float()


def _per_channel(values: tuple[float, ...], like: Tensor) -> Float[Tensor, "rgb=3 1 1"]:
    return like.new_tensor(values)[:, None, None]
