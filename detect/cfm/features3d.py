"""Features of the shape at the valid pixels of a map of points: by Point-MAE, by descriptors, or by a picture of the normals."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from scipy.sparse import eye_array
from torch import Tensor

from detect.cfm.descriptors import (
    Cloud,
    Surface,
    curvature,
    fpfh,
    fpfh_multi,
    surface,
)
from detect.cfm.pixels import PixelWeights, average_of_valid, nearest_tokens, spread
from detect.cfm.point_mae import BLOCKS, PointMAE
from detect.cfm.transformer import load_needed, randomised
from prepare.errors import InputError, UsageError
from prepare.weights import find_entry, load_weights

POINT_MAE, NORMALS, FPFH = "point_mae", "normals", "fpfh"
_BETWEEN = {"fpfh_multi": fpfh_multi, "curvature": curvature}  # described at one pixel in four
SHAPES = (POINT_MAE, NORMALS, FPFH, *_BETWEEN)
PICTURE_RADIUS_M, PICTURE_NEIGHBOURS = (
    0.01,
    30,
)  # of the normals that are shown as a picture (specification 6.2)
_PREFIXES = ("module.", "MAE_encoder.")


def load_point_mae(
    blocks: int = 0,
    batch_statistics: bool = True,
    random_seed: int | None = None,
    device: torch.device | None = None,
) -> PointMAE:
    """The encoder with its published weights, or random ones; `blocks` 0 is all 12.

    Raises: UsageError for a number of blocks that it has not; as `prepare.weights.load_weights`.
    """
    return _point_mae(blocks, batch_statistics, random_seed, device or torch.device("cpu"))


@lru_cache(maxsize=2)
def _point_mae(
    blocks: int, batch_statistics: bool, random_seed: int | None, device: torch.device
) -> PointMAE:
    if not 0 <= blocks <= BLOCKS:
        raise UsageError(f"blocks {blocks}: Point-MAE has {BLOCKS}; give 1 to {BLOCKS}, or 0 for all")
    entry = find_entry(POINT_MAE)
    tensors = {} if random_seed is not None else load_weights(entry)
    with torch.device("meta"):  # its weights come from elsewhere
        network = PointMAE(blocks or BLOCKS, batch_statistics)
    network.to_empty(device="cpu")
    if random_seed is not None:
        return randomised(network, random_seed).to(device)
    return load_needed(network, {_plain(name): t for name, t in tensors.items()}, entry.name).to(device)


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def tokens_at_pixels(
    xyz: Float[Tensor, "px px xyz=3"], valid: Bool[Tensor, "px px"], network: PointMAE
) -> tuple[Float[Tensor, "tokens width"], PixelWeights]:
    """Point-MAE's tokens and their weights at all pixels, as published: covered pixels are those that take part.

    Raises: InputError for fewer than 1,024 valid points.
    """
    points = xyz[valid]
    found = network(points)
    return found.tokens, spread(valid, nearest_tokens(points, found.centres))


def descriptors_at_pixels(
    xyz: Float[Tensor, "px px xyz=3"], valid: Bool[Tensor, "px px"], name: str
) -> tuple[Float[Tensor, "tokens width"], PixelWeights]:
    """Descriptors and their weights at the valid pixels: `fpfh` (33), `fpfh_multi` (103) or `curvature` (15 numbers).

    A pixel has the mean of those of its 3 x 3 px, each interpolated from the three nearest points that were described.

    Raises: InputError where there are too few points for a surface.
    """
    cloud = Cloud(xyz, valid)
    seen = surface(cloud)
    usable = _usable(valid & seen.defined)
    # FPFH alone is as its definition has it, at every point; of several sizes, 300 neighbours of each would cost seconds.
    if name == FPFH:
        values = fpfh(cloud, seen, stride=1).values
        return values, average_of_valid(usable, eye_array(len(values), format="csr"))
    described = _BETWEEN[name](cloud, seen)
    return described.values, average_of_valid(usable, nearest_tokens(xyz[usable], described.points))


def normals_picture(
    xyz: Float[Tensor, "px px xyz=3"], valid: Bool[Tensor, "px px"]
) -> tuple[Float[Tensor, "px px rgb=3"], Bool[Tensor, "px px"]]:
    """The surface normals as a picture, and where there are any; grey elsewhere.

    Red is to the right, green up, blue to the camera, each (n + 1) / 2: a surface seen head-on is (0.5, 0.5, 1).

    Raises: InputError where there are too few points for a surface.
    """
    seen: Surface = surface(Cloud(xyz, valid), PICTURE_RADIUS_M, PICTURE_NEIGHBOURS)
    usable = _usable(valid & seen.defined)
    return (seen.normals * xyz.new_tensor([1.0, -1.0, -1.0]) + 1) / 2, usable


def _usable(defined: Bool[Tensor, "px px"]) -> Bool[Tensor, "px px"]:
    if int(defined.sum()) < PICTURE_NEIGHBOURS:
        raise InputError(
            f"points: a surface at {int(defined.sum())} of them, at {PICTURE_NEIGHBOURS} at least is wanted; "
            "take a photo with more of the part in it"
        )
    return defined
