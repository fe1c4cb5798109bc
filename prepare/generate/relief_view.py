"""A relief seen by a camera above it: what each pixel meets, a photo under given lights, and a structured-light sensor's points.

Frame of `prepare.generate.reliefs`; the camera has OpenCV axes. n x n cells, h x w pixels; metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter, map_coordinates

from prepare.generate.reliefs import GAMMA, HALF, Relief

STEPS = 18  # heights at which a ray is compared with the relief, before it is bisected
BISECTIONS = 6
SHADOW_STEPS = 14
PSF_PX = 0.45  # of the lens


@dataclass(frozen=True)
class Lens:
    """A camera above the support that looks at `centre`'s foot tilted by `tilt` about the image's x axis."""

    rotation: Float[np.ndarray, "3 3"]  # world to camera
    centre: Float[np.ndarray, "xyz=3"]  # m
    focal: float  # px
    px: int  # width and height
    corner: float  # where in a pixel its ray passes: 0.5 in the middle, 0 at its corner (Eyecandies)


@dataclass(frozen=True)
class Light:
    """Where light comes from, and how strong: a key light with shadows and an even sky."""

    towards: tuple[float, float, float]  # unit or not
    key: float
    sky: float


@dataclass(frozen=True)
class Seen:
    """The geometry of a view."""

    points: Float[np.ndarray, "px px xyz=3"]  # world
    depth: Float[np.ndarray, "px px"]  # z in the camera
    grid: Float[np.ndarray, "2 px px"]  # (row, column) in the relief's cells
    normals: Float[np.ndarray, "px px xyz=3"]  # world, unit


def look_down(
    distance: float, focal: float, px: int, *, tilt_deg: float, turn_deg: float = 0.0, corner: float = 0.5
) -> Lens:
    """A camera `distance` m from the middle of the support; image right is +x and image up about +y."""
    a, b = math.radians(tilt_deg), math.radians(turn_deg)
    down = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_z = np.array([[math.cos(b), -math.sin(b), 0], [math.sin(b), math.cos(b), 0], [0, 0, 1]])
    rotation = np.einsum("ij,jk,kl->il", about_z, about_x, down)
    return Lens(rotation, -distance * rotation[2], focal, px, corner)


def see(relief: Relief, lens: Lens) -> Seen:
    """What every pixel's ray meets first; the support goes on beyond the square."""
    at = (np.arange(lens.px) + lens.corner - lens.px / 2) / lens.focal
    turn = lens.rotation
    # World directions of camera depth 1.
    ray = at[None, :, None] * turn[0] + at[:, None, None] * turn[1] + turn[2]
    fall = -ray[..., 2]
    highest = float(relief.height.max()) + 1e-4
    height = np.zeros(fall.size)

    def above(z: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """How far rays of so much x and y a metre of fall are above the relief at height z."""
        down = lens.centre[2] - z
        x, y = lens.centre[0] + down * slope[0], lens.centre[1] + down * slope[1]
        return np.asarray(z - _lookup(relief.height, _cells(relief, x, y)))

    live = np.flatnonzero(_may_meet(relief, lens, ray, fall, highest))
    slope = np.stack([(ray[..., k] / fall).reshape(-1)[live] for k in (0, 1)])
    for z in np.linspace(highest, 0, STEPS + 1)[1:]:
        free = above(np.full(len(live), z), slope) > 0
        hit = ~free
        if hit.any():
            here = slope[:, hit]
            low, high = np.full(hit.sum(), z), np.full(hit.sum(), z + highest / STEPS)
            for _ in range(BISECTIONS):
                middle = 0.5 * (low + high)
                out = above(middle, here) > 0
                high, low = np.where(out, middle, high), np.where(out, low, middle)
            height[live[hit]] = 0.5 * (low + high)
            live, slope = live[free], slope[:, free]
        if not len(live):
            break
    height = height.reshape(fall.shape)
    depth = (lens.centre[2] - height) / fall
    points = lens.centre + depth[..., None] * ray
    grid = _cells(relief, points[..., 0], points[..., 1])
    dy, dx = np.gradient(relief.height, relief.cell)
    slope_x, slope_y = _lookup(dx, grid), -_lookup(dy, grid)
    normals = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=-1)
    return Seen(points, depth, grid, normals / np.linalg.norm(normals, axis=-1, keepdims=True))


def photo(
    relief: Relief, lens: Lens, seen: Seen, lights: tuple[Light, ...]
) -> Float[np.ndarray, "px px rgb=3"]:
    """Displayed colours in [0, 1] under the sum of the lights, through a lens that is not perfectly sharp."""
    albedo = np.stack([_lookup(relief.albedo[..., k], seen.grid) for k in range(3)], axis=-1)
    gloss = _lookup(relief.gloss, seen.grid)
    reach = 0.006 / relief.cell
    sunk = (gaussian_filter(relief.height, reach, truncate=2.0) - relief.height) / 0.006
    open_sky = _lookup(np.clip(1 - 0.55 * sunk, 0.3, 1.0), seen.grid)
    to_eye = lens.centre - seen.points
    to_eye /= np.linalg.norm(to_eye, axis=-1, keepdims=True)
    total = np.zeros_like(albedo)
    for light in lights:
        towards = np.asarray(light.towards) / np.linalg.norm(light.towards)
        received = light.sky * open_sky * (0.55 + 0.45 * seen.normals[..., 2])
        if light.key:
            lit = _lookup(lit_share(relief, towards), seen.grid)
            facing = np.clip(np.einsum("ijk,k->ij", seen.normals, towards), 0, 1)
            received = received + light.key * lit * facing
            half = to_eye + towards
            half /= np.linalg.norm(half, axis=-1, keepdims=True)
            shine = np.clip(np.einsum("ijk,ijk->ij", half, seen.normals), 0, 1) ** 40
            total += (0.35 * light.key * lit * gloss * shine)[..., None]
        total += albedo * received[..., None]
    blurred = gaussian_filter(total, (PSF_PX, PSF_PX, 0), truncate=3.0)
    return np.asarray(np.clip(blurred, 0, 1) ** (1 / GAMMA))


def lit_share(
    relief: Relief, towards: Float[np.ndarray, "xyz=3"], softness: float = 0.0006
) -> Float[np.ndarray, "n n"]:
    """How much of a far light in direction `towards` reaches each cell, in [0, 1]; found on every second cell."""
    height = relief.height[::2, ::2]
    cell = 2 * relief.cell
    across = math.hypot(towards[0], towards[1])
    rise = towards[2] / max(across, 1e-6)
    longest = float(height.max()) / max(rise, 1e-6)
    rows, columns = np.mgrid[: len(height), : len(height)].astype(np.float32)
    excess = np.full(height.shape, -1.0, np.float32)
    for k in range(SHADOW_STEPS):
        away = longest * (k + 1) / SHADOW_STEPS
        at = np.stack([rows - away * towards[1] / across / cell, columns + away * towards[0] / across / cell])
        excess = np.maximum(excess, _lookup(height, at) - height - away * rise)
    share = np.clip(1 - excess / softness, 0, 1)
    return np.asarray(share.repeat(2, axis=0).repeat(2, axis=1)[: len(relief.height), : len(relief.height)])


def measure(
    relief: Relief, lens: Lens, seen: Seen, noise: float, rng: np.random.Generator
) -> Float[np.ndarray, "px px xyz=3"]:
    """Points in the camera's frame as a structured-light sensor gives them, (0, 0, 0) where it cannot.

    It cannot where the projector beside the camera does not shine, where the surface is too steep for either, beside steps of
    depth (mixed pixels), and here and there where it is glossy. `noise`: standard deviation along the ray, m.
    """
    towards = np.array([0.12, 0.05, 0.48])
    towards /= np.linalg.norm(towards)
    lit = _lookup(lit_share(relief, towards, 0.0003), seen.grid) > 0.5
    to_eye = lens.centre - seen.points
    to_eye /= np.linalg.norm(to_eye, axis=-1, keepdims=True)
    steep = np.minimum(
        np.einsum("ijk,ijk->ij", seen.normals, to_eye), np.einsum("ijk,k->ij", seen.normals, towards)
    )
    step = np.zeros(seen.depth.shape, bool)
    for axis in (0, 1):
        jump = np.abs(np.diff(seen.depth, axis=axis)) > 0.0035
        pad = [(0, 0), (0, 0)]
        pad[axis] = (1, 0)
        step |= np.pad(jump, pad)
        pad[axis] = (0, 1)
        step |= np.pad(jump, pad)
    draw = gaussian_filter(rng.normal(0, 1, seen.depth.shape).astype(np.float32), 1.0)
    draw /= draw.std()
    glare = (_lookup(relief.gloss, seen.grid) > 0.3) & (seen.normals[..., 2] > 0.985) & (draw > 1.9)
    missing = ~lit | (steep < 0.12) | (step & (draw > -0.8)) | glare | (draw > 3.6)
    along = noise * (rng.normal(0, 1, seen.depth.shape) * 0.8 + 0.6 * draw)
    local = np.einsum("ij,hwj->hwi", lens.rotation, seen.points - lens.centre)
    distance = np.linalg.norm(local, axis=-1)
    xyz = local * (1 + along / distance)[..., None]
    return np.where(missing[..., None], 0, xyz).astype(np.float32)


def seen_mask(mask: Bool[np.ndarray, "n n"], seen: Seen) -> Bool[np.ndarray, "px px"]:
    """Where a pixel shows a cell of the mask."""
    return np.asarray(_lookup(mask.astype(np.float32), seen.grid) > 0.5)


def _cells(relief: Relief, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([(HALF - y) / relief.cell - 0.5, (x + HALF) / relief.cell - 0.5])


def _lookup(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.asarray(map_coordinates(field, at, order=1, mode="nearest", prefilter=False))


def _may_meet(relief: Relief, lens: Lens, ray: np.ndarray, fall: np.ndarray, highest: float) -> np.ndarray:
    """Rays whose way from the highest height down to the support crosses the part's rectangle."""
    rows, columns = np.nonzero(relief.height > 0)
    if not len(rows):
        return np.zeros(fall.shape, bool)
    first, last = lens.centre[2] - highest, lens.centre[2]
    inside = np.ones(fall.shape, bool)
    edges = (
        (0, columns.min() * relief.cell - HALF, (columns.max() + 1) * relief.cell - HALF),
        (1, HALF - (rows.max() + 1) * relief.cell, HALF - rows.min() * relief.cell),
    )
    for axis, low, high in edges:
        a = lens.centre[axis] + first / fall * ray[..., axis]
        b = lens.centre[axis] + last / fall * ray[..., axis]
        inside &= (np.maximum(a, b) >= low - relief.cell) & (np.minimum(a, b) <= high + relief.cell)
    return inside
