"""Which splats of a whole scene are the part: what stands about the cameras' common focus, off the surface it rests on.

Needs no learned weights: the cameras look at the part, and the table is the plane below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from prepare.camera import Camera
from recon.fit import compositing_weights
from recon.gaussians import Gaussians
from recon.harmonics import SH_C0
from recon.initial_points import Volume
from recon.rasterize import RasterOptions, rasterize

OPAQUE = 0.2  # opacity from which a splat counts as matter
REACH = 1.2  # of the volume's half side: what is farther from the focus is not the part
CELLS = 64  # of the grid in which matter is connected, along REACH * half side twice
PLANE_TRIES = 2000  # triples drawn
PLANE_THICKNESS = 0.025  # of the half side: matter so near the plane is the plane's
LEAST_PLANE_SHARE = 0.12  # of all that is seen, within reach, for a plane to be what the part rests on
MOST_TILT = 0.75  # least cosine between the plane's normal and the cameras' up
ROUND_PART = 0.5  # of the half side: a support reaches farther than this from the focus
SUNK = 0.12  # of the half side: how far below the support's plane a part may reach into something soft
FAR = 0.95  # of the half side: matter farther from the focus is surely not the part's
COLOUR_CELLS = 16  # of the histogram, each channel
CORE = 0.35  # of the half side: matter this near the focus is surely the part's


@dataclass(frozen=True)
class PartRegion:
    """The part among the splats of its scene."""

    inside: Bool[Tensor, " n"]
    support: (
        Float[Tensor, "nxnynzd=4"] | None
    )  # plane n x = d that the part rests on, n unit and up; None: none found


def find_part(
    gaussians: Gaussians, cameras: Sequence[Camera], volume: Volume, options: RasterOptions, seed: int = 0
) -> PartRegion | None:
    """The splats of the part that `cameras` look at; None where nothing stands at their common focus.

    Matter counts by how much of the photos it colours. A plane below the focus, level by the cameras' up axes, that holds
    enough of it is the support. Colour and place then say how likely matter is the part's (`_odds`), and of what is
    likelier so than not, on a grid, the connected piece that weighs most about the focus is.
    """
    weight = sum(
        (compositing_weights(gaussians, camera, options) for camera in cameras),
        start=torch.zeros(len(gaussians), device=gaussians.device),
    )
    weight = torch.where(torch.sigmoid(gaussians.logit_opacities) > OPAQUE, weight, 0.0).cpu().double()
    places = ((gaussians.means.detach().cpu() - volume.centre) / volume.half_size).double()
    near = (places.norm(dim=1) < REACH) & (weight > 0)
    if int(near.sum()) < 50:
        return None
    up = torch.stack([-camera.world_to_cam[1, :3] for camera in cameras]).double().mean(dim=0)
    points, mass = places[near].numpy(), weight[near].numpy()
    # Of a surface the photos see, a piece counts once, however many of them show it: the root tames what all stare at.
    mass = np.sqrt(mass)
    plane = _support(points, mass, up.numpy(), seed)
    height = np.full(len(points), np.inf) if plane is None else points @ plane[:3] - plane[3]
    colours = (0.5 + SH_C0 * gaussians.sh[:, 0].detach().cpu().double()).clamp(0, 1)[near].numpy()
    piece = _piece_at_focus(points, mass, _odds(points, mass, colours, height), height)
    if piece is None:
        return None
    cells = _cells(places.numpy())
    held = (cells >= 0).all(axis=1) & (cells < CELLS).all(axis=1)
    at = cells.clip(0, CELLS - 1)
    inside = held & piece[at[:, 0], at[:, 1], at[:, 2]]
    support = None
    if plane is not None:
        inside &= places.numpy() @ plane[:3] > plane[3] - SUNK
        offset = plane[3] * volume.half_size + float(plane[:3] @ volume.centre.double().numpy())
        support = torch.tensor([*plane[:3], offset], dtype=torch.float32)
    return PartRegion(torch.from_numpy(inside), support)


def part_alpha(
    gaussians: Gaussians, inside: Bool[Tensor, " n"], camera: Camera, options: RasterOptions
) -> Float[Tensor, "height width"]:
    """The part's share of each pixel of `camera`, with whatever else stands in front of it."""
    colours = inside.to(gaussians.means).to(gaussians.device)[:, None].expand(-1, 3).contiguous()
    black = torch.zeros(3, device=gaussians.device)
    with torch.no_grad():
        return (
            rasterize(gaussians, camera, black, colours=colours, options=options)
            .rgb[..., 0]
            .clamp(0, 1)
            .cpu()
        )


def _support(
    points: NDArray[np.float64], mass: NDArray[np.float64], up: NDArray[np.float64], seed: int
) -> NDArray[np.float64] | None:
    """The level plane (unit normal, offset) below the focus, at the origin, that holds most mass; None where none holds much."""
    length = float(np.linalg.norm(up))
    if length < 0.2:  # cameras from all sides, held anyhow: no way is up
        return None
    up = up / length
    rng = np.random.default_rng(seed)
    best, best_mass = None, LEAST_PLANE_SHARE * float(mass.sum())
    mass = np.where(
        np.linalg.norm(points, axis=1) > ROUND_PART, mass, 0.0
    )  # the part's own flat sides are no table
    for _ in range(PLANE_TRIES):
        a, b, c = points[rng.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        size = float(np.linalg.norm(normal))
        if size < 1e-3:
            continue
        normal /= size
        tilt = float(normal @ up)
        if abs(tilt) < MOST_TILT:
            continue
        normal *= np.sign(tilt)
        offset = float(normal @ a)
        if offset > 0.0:  # above the focus
            continue
        held = float(mass[np.abs(points @ normal - offset) < PLANE_THICKNESS].sum())
        if held > best_mass:
            best, best_mass = np.array([*normal, offset]), held
    return best


def _odds(
    points: NDArray[np.float64],
    mass: NDArray[np.float64],
    colours: NDArray[np.float64],
    height: NDArray[np.float64],
) -> NDArray[np.float64]:
    """For each piece of matter the log odds that it is the part's, by its colour and its place.

    Colours are compared with those of what is surely the part (about the focus, above the support) and of what surely is
    not (far away, or the support's outer reaches), by histograms.
    """
    distance = np.linalg.norm(points, axis=1)
    part = (distance < CORE) & (height > PLANE_THICKNESS)
    other = (distance > FAR) | ((height < PLANE_THICKNESS) & (distance > ROUND_PART))
    cells = np.minimum((colours * COLOUR_CELLS).astype(np.int64), COLOUR_CELLS - 1)
    at = (cells[:, 0] * COLOUR_CELLS + cells[:, 1]) * COLOUR_CELLS + cells[:, 2]

    def histogram(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        counts = np.bincount(at[chosen], weights=mass[chosen], minlength=COLOUR_CELLS**3)
        smooth = ndimage.gaussian_filter(counts.reshape((COLOUR_CELLS,) * 3), 1.0, mode="nearest").ravel()
        return smooth / max(float(smooth.sum()), 1e-12) + 1e-5

    by_colour = np.log(histogram(part)[at] / histogram(other)[at]) if other.any() else np.zeros(len(points))
    by_place = 4.0 * (ROUND_PART - distance)
    on_support = np.where(height < PLANE_THICKNESS, -1.0, 0.0)
    return np.clip(by_colour, -3.0, 3.0) + by_place + on_support


def _cells(points: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor((points / REACH + 1.0) * 0.5 * CELLS).astype(np.int64)


def _piece_at_focus(
    points: NDArray[np.float64],
    mass: NDArray[np.float64],
    odds: NDArray[np.float64],
    height: NDArray[np.float64],
) -> NDArray[np.bool_] | None:
    """Cells of the connected piece that is likelier part than not and weighs most about the origin, one cell wider."""
    cells = tuple(_cells(points).clip(0, CELLS - 1).T)
    shape = (CELLS, CELLS, CELLS)
    weight, told = np.zeros(shape), np.zeros(shape)
    sure = height > -SUNK
    np.add.at(weight, cells, mass)
    np.add.at(told, cells, mass * np.where(sure, odds, -6.0))
    near_told = ndimage.gaussian_filter(told, 1.0) / np.maximum(ndimage.gaussian_filter(weight, 1.0), 1e-12)
    filled = (weight > 0.05 * np.median(weight[weight > 0])) & (near_told > 0)
    labels, count = ndimage.label(filled, structure=np.ones((3, 3, 3), dtype=bool))
    if count == 0:
        return None
    pull = mass * np.exp(-((points**2).sum(axis=1)) / CORE**2)
    weights = np.bincount(labels[cells], weights=pull, minlength=count + 1)
    weights[0] = 0.0
    if weights.max() <= 0:
        return None
    piece = labels == int(weights.argmax())
    # One cell wider where nothing speaks against it: what hangs out of its cell is the part's too.
    wider: NDArray[np.bool_] = ndimage.binary_dilation(piece, np.ones((3, 3, 3), dtype=bool)) & (
        near_told > -0.5
    )
    return wider
