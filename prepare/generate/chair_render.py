"""Pictures of chairs: a ray caster for convex solids with a cut, photos under sky and key light, grey views as of a bare mesh.

Everything is numpy in float32, one solid at a time on the rays within its rectangle of the screen: chairs are thin, so that
this costs about 10 ms for 256 x 256 rays and 25 solids on one core. World: y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter

from prepare.camera import Camera
from prepare.generate.chair_materials import GAMMA, Lighting, Texture
from prepare.generate.chair_parts import Chair, Cutter, Solid, local_normals
from prepare.generate.raycast import ray_slopes
from prepare.generate.shapes import Ray, turned
from prepare.mesh import GREY
from prepare.mesh_render import shade

UP = np.array([0.0, 1.0, 0.0], np.float32)
NEAR = np.float32(0.05)  # world units
REACH = 1.0  # half width of a light map, world units; the chair is inside
KEY_MAP, SKY_MAP = 256, 128  # texels across
SKY = (
    (0.0, 1.0, 0.0),
    (0.8, 0.6, 0.0),
    (-0.8, 0.6, 0.0),
    (0.0, 0.6, 0.8),
    (0.0, 0.6, -0.8),
    (0.0, -1.0, 0.0),
)
SKY_WEIGHT = (0.24, 0.19, 0.19, 0.19, 0.19, 0.14)  # radiance of the sky's directions: brighter above


@dataclass(frozen=True)
class Hits:
    """What each sub-pixel ray meets first."""

    solid: Int[np.ndarray, "rows columns"]  # index into the solids; -1 where there is none
    depth: Float[np.ndarray, "rows columns"]  # z in the camera, world units; infinite where there is none


def cast(solids: Sequence[Solid], camera: Camera, supersample: int = 1) -> Hits:
    """The first of `solids` on the rays through `supersample` x `supersample` cells of every pixel."""
    matrix = camera.world_to_cam.double().numpy()
    rotation, centre = matrix[:3, :3], -matrix[:3, :3].T @ matrix[:3, 3]
    x, y = ray_slopes(camera, supersample)
    depth = np.full((y.size, x.size), np.inf, np.float32)
    winner = np.full((y.size, x.size), -1, np.int16)
    if not solids:
        return Hits(winner, depth)
    corners = np.stack([solid.corners() for solid in solids])
    seen = (corners - centre) @ rotation.T
    for index, solid in enumerate(solids):
        columns = _span(x, seen[index, :, 0] / seen[index, :, 2])
        rows = _span(y, seen[index, :, 1] / seen[index, :, 2])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        turn = (solid.rotation.T @ rotation.T).astype(np.float32)
        # Rays start at the depth of the solid's middle: small numbers, so that float32 keeps thin parts exact.
        start = np.float32(rotation[2] @ (solid.centre - centre))
        origin = (solid.rotation.T @ (centre - solid.centre)).astype(np.float32)
        across, down = x[columns][None, :], y[rows][:, None]
        direction = [turn[k, 0] * across + (turn[k, 1] * down + turn[k, 2]) for k in range(3)]
        ray = (*(origin[k] + start * direction[k] for k in range(3)), *direction)
        t = _first(solid, ray) + start  # type: ignore[arg-type]
        _keep_nearest(t, depth[rows, columns], winner[rows, columns], index)
    return Hits(winner, depth)


def cast_points(
    solids: Sequence[Solid], origin: Float[np.ndarray, "xyz=3"], points: Float[np.ndarray, "n xyz=3"]
) -> Float[np.ndarray, " n"]:
    """How far along the way from `origin` to each of `points` (1: at it) the first solid stands; infinite for none."""
    nearest = np.full(len(points), np.inf, np.float32)
    directions = points - origin
    for solid in solids:
        local = (solid.rotation.T @ directions.T).astype(np.float32)
        start = (solid.rotation.T @ (origin - solid.centre)).astype(np.float32)[:, None] + local
        # Rays start at the points: small numbers there.
        t = _first(solid, (*start, *local)) + np.float32(1)  # type: ignore[arg-type]
        np.copyto(nearest, t, where=(t > 0) & (t < nearest))
    return nearest


@dataclass(frozen=True)
class Surface:
    """The surface where rays hit, in row-major order of the hits."""

    rows: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, " n"]
    points: Float[np.ndarray, "n xyz=3"]  # world
    normals: Float[np.ndarray, "n xyz=3"]  # world, unit
    albedo: Float[np.ndarray, "n rgb=3"] | None  # linear
    gloss: Float[np.ndarray, " n"] | None
    to_eye: Float[np.ndarray, "n xyz=3"]  # unit


def surface(
    chair: Chair,
    solids: Sequence[Solid],
    camera: Camera,
    supersample: int,
    hits: Hits,
    texture: Texture | None,
) -> Surface:
    """Points, normals and (with a texture) colours of `hits`."""
    matrix = camera.world_to_cam.double().numpy()
    rotation, centre = matrix[:3, :3], -matrix[:3, :3].T @ matrix[:3, 3]
    x, y = ray_slopes(camera, supersample)
    rows, columns = np.nonzero(hits.solid >= 0)
    depth = hits.depth[rows, columns]
    away = turned(np.stack([x[columns], y[rows], np.ones_like(depth)], axis=1), rotation.T.astype(np.float32))
    points = away * depth[:, None] + centre.astype(np.float32)
    to_eye = -away / np.sqrt(np.einsum("ij,ij->i", away, away))[:, None]
    owner = hits.solid[rows, columns]
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(solids) + 1))
    normals = np.empty_like(points)
    albedo = None if texture is None else np.empty_like(points)
    gloss = None if texture is None else np.empty(len(points), np.float32)
    slots = [component.slot for component in chair.components for _ in component.solids]
    for index, solid in enumerate(solids):
        chosen = order[bounds[index] : bounds[index + 1]]
        if chosen.size == 0:
            continue
        here = points[chosen]
        local = turned(here - solid.centre.astype(np.float32), solid.rotation.T.astype(np.float32))
        normals[chosen] = local_normals(solid, here, local)
        if texture is not None and albedo is not None and gloss is not None:
            material = texture[slots[index]]
            albedo[chosen] = material.albedo(local, int(np.argmax(solid.shape.extent)))
            gloss[chosen] = material.gloss
    return Surface(rows, columns, points, normals, albedo, gloss, to_eye)


@dataclass(frozen=True)
class GreyView:
    """A picture as MeshPainter makes it of a bare mesh, and where its surface is."""

    grey: Float[np.ndarray, "height width"]  # in [0, 1], on white
    alpha: Float[np.ndarray, "height width"]  # covered share
    hits: Hits  # at sub-pixels
    surface: Surface


def grey_view(chair: Chair, camera: Camera, supersample: int = 2) -> GreyView:
    """The bare shape from `camera`: the light and the grey of `prepare.mesh_render`, no shadows."""
    solids = chair.solids()
    hits = cast(solids, camera, supersample)
    here = surface(chair, solids, camera, supersample, hits, None)
    image = np.ones(hits.depth.shape, np.float32)
    image[here.rows, here.columns] = GREY * shade(here.normals, here.to_eye, UP)
    covered = (hits.solid >= 0).astype(np.float32)
    return GreyView(_averaged(image, supersample), _averaged(covered, supersample), hits, here)


@dataclass(frozen=True)
class LightMap:
    """How far from the light, along its direction, the chair begins on each line parallel to it."""

    axis: Float[np.ndarray, "xyz=3"]  # unit, towards the light
    across: Float[np.ndarray, "2 xyz=3"]
    most: Float[np.ndarray, "size size"]  # greatest coordinate along the axis; -inf where nothing stands

    def unblocked(self, points: Float[np.ndarray, "n xyz=3"]) -> Bool[np.ndarray, " n"]:
        """True where nothing stands between the light and `points`."""
        return _dot(points, self.axis) >= self.most[self._cells(points)] - np.float32(0.004)

    def _cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.most.shape[0]
        scale = np.float32(size / (2 * REACH))
        row, column = (
            np.clip((_dot(points, way) + np.float32(REACH)) * scale, 0, size - 1).astype(np.int32)
            for way in (self.across[1], self.across[0])
        )
        return row, column

    def shadow(self, points: Float[np.ndarray, "n xyz=3"], softness: float) -> Float[np.ndarray, " n"]:
        """Blurred share of the chair over `points` on the floor, in [0, 1]."""
        size = self.most.shape[0]
        covered = np.isfinite(self.most).astype(np.float32)
        covered = gaussian_filter(covered, softness * size / (2 * REACH))
        return covered[self._cells(points)]


def light_map(solids: Sequence[Solid], axis: Sequence[float], size: int) -> LightMap:
    """The map of `solids` for light from `axis`."""
    towards = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    other = np.eye(3)[int(np.abs(towards).argmin())]
    first = np.cross(towards, other)
    first /= np.linalg.norm(first)
    across = np.stack([first, np.cross(towards, first)])
    ticks = (((np.arange(size) + 0.5) / size * 2 - 1) * REACH).astype(np.float32)
    most = np.full((size, size), -np.inf, np.float32)
    for solid in solids:
        corners = solid.corners() @ across.T
        columns, rows = _span(ticks, corners[:, 0]), _span(ticks, corners[:, 1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        turn = (solid.rotation.T @ across.T).astype(np.float32)
        direction = (solid.rotation.T @ -towards).astype(np.float32)
        middle = across @ solid.centre
        u = (ticks[columns] - np.float32(middle[0]))[None, :]
        v = (ticks[rows] - np.float32(middle[1]))[:, None]
        origin = [turn[k, 0] * u + turn[k, 1] * v for k in range(3)]
        t = np.float32(solid.centre @ towards) - _first(solid, (*origin, *direction))  # type: ignore[arg-type]
        here = most[rows, columns]
        np.copyto(here, np.maximum(here, t))
    return LightMap(towards.astype(np.float32), across.astype(np.float32), most)


@dataclass(frozen=True)
class Photo:
    rgb: Float[np.ndarray, "height width rgb=3"]  # in [0, 1], white behind
    alpha: Float[np.ndarray, "height width"]
    hits: Hits  # at sub-pixels


def photograph(
    chair: Chair, camera: Camera, texture: Texture, light: Lighting, exposure: float, supersample: int = 2
) -> Photo:
    """The chair under `light` on a white floor without end, which shows its shadow only."""
    solids = chair.solids()
    hits = cast(solids, camera, supersample)
    here = surface(chair, solids, camera, supersample, hits, texture)
    assert here.albedo is not None
    assert here.gloss is not None
    key_map = light_map(solids, light.key, KEY_MAP)
    sky_maps = [light_map(solids, axis, SKY_MAP) for axis in SKY]
    image = np.ones((*hits.depth.shape, 3), np.float32)
    _floor(image, hits, camera, supersample, chair_floor(solids), key_map, sky_maps[0], light)
    # Light varies slowly: what reaches a pixel is computed once for its samples on the same solid and side.
    side = np.abs(here.normals).argmax(axis=1)
    pixel = (here.rows // supersample) * camera.width + here.columns // supersample
    name = (pixel * len(solids) + hits.solid[here.rows, here.columns]) * 3 + side
    _, first, inverse = np.unique(name, return_index=True, return_inverse=True)
    lifted = here.points[first] + here.normals[first] * np.float32(0.012)
    facing = here.normals[first]
    open_sky, sky = np.zeros(len(first), np.float32), np.zeros(len(first), np.float32)
    for weight, found in zip(SKY_WEIGHT, sky_maps, strict=True):
        # A broad light: half of what the cosine says is spread over the half space.
        ahead = np.float32(weight) * np.maximum(0.35 + 0.65 * _dot(facing, found.axis), 0)
        open_sky += ahead
        sky += ahead * found.unblocked(lifted)
    key_lit = (key_map.unblocked(lifted) * np.maximum(_dot(facing, key_map.axis), 0)).astype(np.float32)
    openness = (0.3 + 0.7 * sky / np.maximum(open_sky, 1e-4)).astype(np.float32)[inverse]
    sky, key_lit = (0.25 * open_sky + 0.75 * sky)[inverse], key_lit[inverse]
    tint = np.array([1.0 + 0.12 * light.warmth, 1.0, 1.0 - 0.16 * light.warmth], np.float32)
    lit = (1.25 * light.sky_strength * sky)[:, None] + (light.key_strength * key_lit)[:, None] * tint
    colour = here.albedo * lit + _gloss(here, light, key_lit, openness)[:, None]
    image[here.rows, here.columns] = np.clip(exposure * colour, 0, 1) ** np.float32(1 / GAMMA)
    covered = (hits.solid >= 0).astype(np.float32)
    return Photo(_averaged(image, supersample), _averaged(covered, supersample), hits)


def chair_floor(solids: Sequence[Solid]) -> float:
    """y of the lowest corner."""
    return float(min(solid.corners()[:, 1].min() for solid in solids))


def _gloss(here: Surface, light: Lighting, key_lit: np.ndarray, openness: np.ndarray) -> np.ndarray:
    assert here.gloss is not None
    half = here.to_eye + np.asarray(light.key, np.float32)
    half /= np.maximum(np.sqrt(np.einsum("ij,ij->i", half, half))[:, None], 1e-6)
    glint = np.clip(np.einsum("ij,ij->i", half, here.normals), 0, 1) ** (10 + 70 * here.gloss)
    facing = np.clip(np.einsum("ij,ij->i", here.to_eye, here.normals), 0, 1)
    mirror_up = 2 * facing * here.normals[:, 1] - here.to_eye[:, 1]
    sheen = (0.04 + 0.4 * (1 - facing) ** 5) * (0.6 + 0.4 * mirror_up) * openness
    return here.gloss * (0.6 * light.key_strength * glint * (key_lit > 0) + 0.5 * sheen)


def _floor(
    image: np.ndarray,
    hits: Hits,
    camera: Camera,
    supersample: int,
    floor: float,
    key: LightMap,
    above: LightMap,
    light: Lighting,
) -> None:
    """Shadow on the floor behind the chair, one value a pixel."""
    if light.ground <= 0:
        return
    matrix = camera.world_to_cam.double().numpy()
    rotation, centre = matrix[:3, :3], -matrix[:3, :3].T @ matrix[:3, 3]
    x, y = ray_slopes(camera, 1)
    down = (rotation[0, 1] * x)[None, :] + (rotation[1, 1] * y + rotation[2, 1])[:, None]
    t = np.where(down < -1e-4, (floor - centre[1]) / np.minimum(down, -1e-4), 0).astype(np.float32)
    rows, columns = np.nonzero((t > 0) & (t < 8))
    away = np.stack([x[columns], y[rows], np.ones(len(rows), np.float32)], axis=1)
    points = turned(away, rotation.T.astype(np.float32)) * t[rows, columns][:, None] + centre.astype(
        np.float32
    )
    inside = (np.abs(points[:, 0]) < 2.5) & (np.abs(points[:, 2]) < 2.5)
    dark = np.zeros(t.shape, np.float32)
    share = 0.22 * key.shadow(points, max(light.softness, 0.02)) + 0.2 * above.shadow(points, 0.07)
    dark[rows, columns] = np.where(inside, light.ground * share, 0)
    whole = np.repeat(np.repeat(1 - dark, supersample, axis=0), supersample, axis=1)
    image *= np.where(hits.solid < 0, whole, 1)[..., None]


def _first(solid: Solid, ray: Ray) -> Float[np.ndarray, "*rays"]:
    """Where a ray in the solid's frame first meets it, less its cut; infinite where it does not."""
    inside = solid.shape.interval(ray)
    enter, leave = inside.enter, inside.leave
    if solid.cut is not None:
        gone = _cut_interval(solid, solid.cut, ray)
        through = (gone.enter <= enter) & (gone.leave > enter)
        enter = np.where(through, gone.leave, enter)
    return np.where(enter <= leave, enter, np.float32(np.inf)).astype(np.float32)


def _cut_interval(solid: Solid, cut: Cutter, ray: Ray):  # type: ignore[no-untyped-def]
    turn = (cut.rotation.T @ solid.rotation).astype(np.float32)
    shift = (cut.rotation.T @ (solid.centre - cut.centre)).astype(np.float32)
    origin = [sum(turn[k, j] * ray[j] for j in range(3)) + shift[k] for k in range(3)]
    direction = [sum(turn[k, j] * ray[3 + j] for j in range(3)) for k in range(3)]
    return cut.shape.interval((*origin, *direction))  # type: ignore[arg-type]


def _keep_nearest(t: np.ndarray, depth: np.ndarray, winner: np.ndarray, index: int) -> None:
    closer = (t > NEAR) & (t < depth)
    np.copyto(depth, t, where=closer)
    winner[closer] = index


def _span(ticks: Float[np.ndarray, " n"], values: Float[np.ndarray, " m"]) -> slice:
    """Indices of the ascending `ticks` within the range of `values`, one more on both sides."""
    low = int(np.searchsorted(ticks, values.min())) - 1
    high = int(np.searchsorted(ticks, values.max())) + 1
    return slice(max(low, 0), min(high, ticks.size))


def _dot(points: np.ndarray, way: np.ndarray) -> np.ndarray:
    return points[:, 0] * way[0] + points[:, 1] * way[1] + points[:, 2] * way[2]


def _averaged(image: np.ndarray, supersample: int) -> np.ndarray:
    """Means of `supersample` x `supersample` cells, summed by strides: numpy's mean over short axes is several times slower."""
    total = image[::supersample, ::supersample].copy()
    for row in range(supersample):
        for column in range(supersample):
            if row or column:
                total += image[row::supersample, column::supersample]
    return total / np.float32(supersample**2)
