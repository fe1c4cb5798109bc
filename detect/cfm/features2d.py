"""Features of the photo: a grid of vectors from a frozen network, or from colour and gradient statistics without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.color import rgb_to_lab
from kornia.filters import gaussian_blur2d
from torch import Tensor

from detect.backbones import Backbone, TappedNetwork, load_backbone, normalised
from detect.cfm.transformer import VisionTransformer, load_needed, randomised
from prepare.errors import UsageError
from prepare.weights import REGISTRY, WeightsFile, load_weights, locate

HANDCRAFTED = "handcrafted"
CELL_PX = 8  # of a convolutional network's grid: 28 x 28 at 224 px
SMALL_STRIDES = (4, 8, 16)  # of the layers of a mobile network that are taken
WIDE_STRIDES = (8, 16)  # layers 2 and 3 of a residual network


@runtime_checkable
class PhotoExtractor(Protocol):
    """A frozen function of a picture."""

    def grid(self, rgb: Float[Tensor, "px px rgb=3"]) -> Float[Tensor, "rows columns width"]:
        """Features of RGB in [0, 1], one vector for each cell of the grid that covers the picture; on the CPU."""
        ...


@dataclass(frozen=True)
class TransformerSettings:
    """A vision transformer of the DINO family."""

    patch_px: int
    cell_px: int  # of the picture given, that a patch covers
    width: int
    heads: int
    blocks: int
    positions: int  # side of the grid its positions were learned on
    layer_scale: bool
    weights: str  # in the registry
    timm_name: str  # whose NAME.safetensors serves as well


TRANSFORMERS = {
    "dino_vitb8": TransformerSettings(8, 8, 768, 12, 12, 28, False, "dino_vitb8", "vit_base_patch8_224.dino"),
    # Patches of 14 px on a picture twice as large: 32 x 32 cells at 224 px, as fine as DINO's 28 x 28.
    "dinov2": TransformerSettings(
        14, 7, 384, 6, 12, 37, True, "dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"
    ),
}


def prunable(name: str) -> bool:
    """Whether `blocks` may cut the network short."""
    return name in TRANSFORMERS


def load_photo_extractor(
    name: str, blocks: int = 0, random_seed: int | None = None, device: torch.device | None = None
) -> PhotoExtractor:
    """`handcrafted`, `dino_vitb8` (published), `dinov2`, `mobilenet_v2`, `efficientnet_b4`, `wide_resnet50`, or any of timm.

    `blocks`: how many blocks of a DINO transformer are kept, 0 all. `random_seed`: a DINO transformer with random weights.
    Of timm's own transformers (`vit_...`, dinov3) the last block's output is taken, normalised over its channels.

    Raises: UsageError where the network cannot be cut short or made at random; as `load_backbone` for the rest.
    """
    device = device or torch.device("cpu")
    if name in TRANSFORMERS:
        return _transformer(name, blocks, random_seed, device)
    if blocks:
        raise UsageError(f"photo features {name}: blocks cut {' and '.join(TRANSFORMERS)} only; give 0")
    if name == HANDCRAFTED:
        return Handcrafted()
    if random_seed is not None:
        raise UsageError(f"photo features {name}: random weights are for {' and '.join(TRANSFORMERS)} only")
    return _pyramid(name, device)


# ------------------------------------------------------------------------------------------------------- transformers


class TransformerGrid:
    """The last block's patch tokens after the final LayerNorm."""

    def __init__(self, network: VisionTransformer, cell_px: int, device: torch.device) -> None:
        self.network = network.to(device)
        self.cell_px = cell_px
        self.device = device

    @torch.no_grad()
    def grid(self, rgb: Float[Tensor, "px px rgb=3"]) -> Float[Tensor, "rows columns width"]:
        """See `PhotoExtractor`."""
        batch = normalised(rgb.to(self.device))
        side = max(1, round(len(rgb) / self.cell_px)) * self.network.patch_px
        if side != len(rgb):
            batch = F.interpolate(batch, (side, side), mode="bicubic", align_corners=False, antialias=True)
        return self.network(batch)[0].cpu()


@lru_cache(maxsize=2)
def _transformer(name: str, blocks: int, random_seed: int | None, device: torch.device) -> TransformerGrid:
    made = TRANSFORMERS[name]
    if not 0 <= blocks <= made.blocks:
        raise UsageError(f"blocks {blocks}: {name} has {made.blocks}; give 1 to {made.blocks}, or 0 for all")
    file = f"{made.timm_name}.safetensors"
    converted = WeightsFile(made.timm_name, file, "the model's own", None, None, "given by the user")
    entry = converted if locate(converted) is not None else REGISTRY[made.weights]
    tensors = {} if random_seed is not None else load_weights(entry)
    with torch.device("meta"):  # its weights come from elsewhere
        network = VisionTransformer(
            patch_px=made.patch_px,
            width=made.width,
            heads=made.heads,
            blocks=blocks or made.blocks,
            positions=made.positions,
            layer_scale=made.layer_scale,
        )
    network.to_empty(device="cpu")
    if random_seed is not None:
        return TransformerGrid(randomised(network, random_seed), made.cell_px, device)
    return TransformerGrid(load_needed(network, tensors, entry.name), made.cell_px, device)


# ----------------------------------------------------------------------------------------------------------- pyramids


class PyramidGrid:
    """Some layers of a convolutional network, brought to one grid and joined."""

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], cell_px: int, normalise: bool) -> None:
        self.backbone, self.layers, self.cell_px, self.normalise = backbone, layers, cell_px, normalise

    def grid(self, rgb: Float[Tensor, "px px rgb=3"]) -> Float[Tensor, "rows columns width"]:
        """See `PhotoExtractor`. Finer layers are averaged over a cell, coarser ones interpolated bilinearly."""
        side = -(-len(rgb) // self.cell_px)
        found = self.backbone.features(rgb)
        maps = [_brought(found[layer][None], side) for layer in self.layers]
        joined = torch.cat(maps, dim=1)[0].permute(1, 2, 0)
        return F.layer_norm(joined, joined.shape[2:]) if self.normalise else joined


def _brought(layer: Float[Tensor, "1 c h w"], side: int) -> Float[Tensor, "1 c side side"]:
    if layer.shape[2] > side:
        return F.adaptive_avg_pool2d(layer, side)
    return F.interpolate(layer, (side, side), mode="bilinear", align_corners=False)


@lru_cache(maxsize=2)
def _pyramid(name: str, device: torch.device) -> PhotoExtractor:
    return OnDevice(pyramid_grid(load_backbone(name)), device)


def pyramid_grid(backbone: Backbone) -> PyramidGrid:
    """Which layers of a backbone serve: a transformer's last; layers at 8 and 16 px, of a mobile network at 4 px too.

    Raises: UsageError where it has none at those strides.
    """
    if backbone.name.startswith("vit_"):
        return PyramidGrid(backbone, (len(backbone.strides) - 1,), backbone.strides[-1], True)
    wanted = SMALL_STRIDES if isinstance(backbone, TappedNetwork) else WIDE_STRIDES
    layers = tuple(n for n, stride in enumerate(backbone.strides) if stride in wanted)
    if not layers:
        raise UsageError(
            f"photo features {backbone.name}: its layers have strides {backbone.strides}, of 8 or 16 px are wanted; "
            "choose another network"
        )
    return PyramidGrid(backbone, layers, CELL_PX, False)


class OnDevice:
    """A pyramid whose network works on another device than the picture comes from."""

    def __init__(self, pyramid: PyramidGrid, device: torch.device) -> None:
        self.pyramid, self.device = pyramid, device
        network = getattr(pyramid.backbone, "network", None)
        if isinstance(network, torch.nn.Module):
            network.to(device)

    def grid(self, rgb: Float[Tensor, "px px rgb=3"]) -> Float[Tensor, "rows columns width"]:
        """See `PhotoExtractor`."""
        with torch.no_grad():
            return self.pyramid.grid(rgb.to(self.device)).cpu()


# -------------------------------------------------------------------------------------------------------- handcrafted


class Handcrafted:
    """78 numbers for each 4 x 4 px, all about 0 to 1 (colour means down to -1), from the picture in CIE Lab over 100.

    Mean (12) and standard deviation (12) of L, a, b in Gaussian windows of 1, 2, 4 and 8 px; the finest mean less each of
    the wider ones (9), and for L each less the next (3); histograms of the gradient's direction in 8 bins, square-rooted, in
    windows of 2, 4 and 8 px (24); amplitude of L in 6 directions at wavelengths of 4, 8 and 16 px (18).
    """

    CELL_PX = 4
    WINDOWS = (1.0, 2.0, 4.0, 8.0)
    HISTOGRAM_WINDOWS = (2.0, 4.0, 8.0)
    DIRECTIONS = 8
    WAVE_DIRECTIONS = 6
    WAVE_LEVELS = 3
    WAVELENGTH = 4.0  # px at each level of a pyramid that halves

    def grid(self, rgb: Float[Tensor, "px px rgb=3"]) -> Float[Tensor, "rows columns width=78"]:
        """See `PhotoExtractor`."""
        side = -(-len(rgb) // self.CELL_PX)
        lab = rgb_to_lab(rgb.permute(2, 0, 1)[None].clamp(0, 1)) / 100
        means = [_blurred(lab, window) for window in self.WINDOWS]
        squares = [_blurred(lab**2, window) for window in self.WINDOWS]
        spreads = [(s - m**2).clamp(min=1e-8).sqrt() for s, m in zip(squares, means, strict=True)]
        details = [means[0] - mean for mean in means[1:]]
        rings = [(fine - coarse)[:, :1] for fine, coarse in pairwise(means)]
        maps = [*means, *spreads, *details, *rings, *self._directions(means[0][:, :1])]
        cells = [F.adaptive_avg_pool2d(torch.cat(maps, dim=1), side), *self._waves(lab[:, :1], side)]
        return torch.cat(cells, dim=1)[0].permute(1, 2, 0)

    def _directions(self, light: Float[Tensor, "1 1 h w"]) -> list[Float[Tensor, "1 directions h w"]]:
        padded = F.pad(light, (1, 1, 1, 1), mode="replicate")
        right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        angle = torch.arange(self.DIRECTIONS) * (2 * math.pi / self.DIRECTIONS)
        # Each direction's share falls to zero at the next one, so that a small turn changes the histogram little.
        length = (right**2 + down**2).sqrt()
        turn = torch.atan2(down, right) - angle.view(1, -1, 1, 1)
        turn = (turn + math.pi).remainder(2 * math.pi) - math.pi
        share = (1 - turn.abs() * (self.DIRECTIONS / (2 * math.pi))).clamp(min=0)
        return [_blurred(length * share, window).clamp(min=0).sqrt() for window in self.HISTOGRAM_WINDOWS]

    def _waves(self, light: Float[Tensor, "1 1 h w"], side: int) -> list[Float[Tensor, "1 waves side side"]]:
        kernel = _wave_kernels(self.WAVELENGTH, self.WAVE_DIRECTIONS)
        half = kernel.shape[-1] // 2
        found = []
        for level in range(self.WAVE_LEVELS):
            if level:
                light = F.avg_pool2d(light, 2, ceil_mode=True)
            answer = F.conv2d(F.pad(light, (half,) * 4, mode="replicate"), kernel)
            energy = answer.square().unflatten(1, (self.WAVE_DIRECTIONS, 2)).sum(dim=2)
            found.append(_brought(energy, side).clamp(min=0).sqrt())
        return found


def _blurred(batch: Float[Tensor, "1 c h w"], sigma: float) -> Float[Tensor, "1 c h w"]:
    size = 2 * math.ceil(3 * sigma) + 1
    border = "replicate" if size // 2 >= batch.shape[-1] else "reflect"
    return gaussian_blur2d(batch, (size, size), (sigma, sigma), border_type=border)


@lru_cache(maxsize=2)
def _wave_kernels(wavelength: float, directions: int) -> Float[Tensor, "kernels 1 size size"]:
    """Even and odd Gabor filters without a mean, in each direction of half a turn, with absolute values that sum to 1."""
    sigma = wavelength / 2
    half = math.ceil(2.5 * sigma)
    at = torch.arange(-half, half + 1.0)
    window = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    kernels = []
    for number in range(directions):
        angle = math.pi * number / directions
        phase = 2 * math.pi / wavelength * (at * math.cos(angle) + at[:, None] * math.sin(angle))
        for wave in (phase.cos(), phase.sin()):
            kernel = window * wave
            kernel = kernel - window * (kernel.sum() / window.sum())
            kernels.append(kernel / kernel.abs().sum())
    return torch.stack(kernels)[:, None]
