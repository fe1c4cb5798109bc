"""Photos of an assembly: an analytic ray caster with sky light, a soft key light with shadows, and gloss.

Light that reaches a point is a sum over fixed directions; whether a direction is blocked is read from a depth map of
the whole assembly seen along it, made once (`light`) and used by every view, so shading is a property of the surface,
not of the view. Only the small gloss term depends on the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from prepare.camera import Camera
from prepare.generate.parts import Assembly, Colour, Part
from prepare.generate.shapes import Ellipsoid, Interval, Ray, Torus, turned

NEAR = 0.05  # world units
SKY_DIRECTIONS = 64  # an even number: each map serves a direction and its opposite
SKY_MAP = 256  # texels across the light maps' field of `LIGHT_REACH`
KEY_MAP = 512
LIGHT_REACH = 1.05  # half width of a light map, world units; the assembly is inside
KEY_DIRECTION = (0.48, -0.55, 0.68)
KEY_SPREAD = 0.09  # radius of the key light as seen from the object, rad
KEY_STRENGTH = 0.80
SKY_STRENGTH = 0.76
GAMMA = 2.2


@dataclass(frozen=True)
class Hits:
    """What each sub-pixel ray of a view meets first."""

    part: Int[np.ndarray, "rows columns"]  # index into the parts; -1 where the ray meets none
    depth: Float[np.ndarray, "rows columns"]  # z in the camera, world units; infinite where part is -1


@dataclass(frozen=True)
class Surface:
    """Surface properties where rays hit, in row-major order of the hits."""

    points: Float[np.ndarray, "n 3"]  # world
    normals: Float[np.ndarray, "n 3"]  # world, unit
    albedo: Float[np.ndarray, "n 3"]  # linear, in [0, 1]
    gloss: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class LightMaps:
    """For each axis: how far the assembly reaches along it on every line parallel to it."""

    axes: Float[np.ndarray, "maps 3"]  # unit
    across: Float[np.ndarray, "maps 2 3"]  # the maps' column and row axes, unit
    least: tuple[Float[np.ndarray, "_ _"], ...]  # least coordinate along the axis; +inf where nothing stands
    most: tuple[Float[np.ndarray, "_ _"], ...]  # greatest; -inf where nothing stands
    forward: Float[np.ndarray, " maps"]  # radiance from the axis' direction
    backward: Float[np.ndarray, " maps"]  # and from the opposite one
    is_key: tuple[bool, ...]


@dataclass(frozen=True)
class View:
    """A photo and its exact geometry at sub-pixel resolution."""

    rgb: Float[np.ndarray, "height width 3"]  # in [0, 1], 1 where no part is
    hits: Hits
    surface: Surface


def cast(parts: Sequence[Part], camera: Camera, supersample: int = 1) -> Hits:
    """First part and depth on the rays through the centres of `supersample` x `supersample` cells of every pixel.

    Each part is tested only on the rays within the screen rectangle of its bounding box.
    """
    rotation, centre = _pose(camera)
    x, y = ray_slopes(camera, supersample)
    depth = np.full((y.size, x.size), np.inf, np.float32)
    winner = np.full((y.size, x.size), -1, np.int32)
    for index, part in enumerate(parts):
        corners = (part.corners() - centre) @ rotation.T
        if corners[:, 2].max() <= NEAR:
            continue
        if corners[:, 2].min() <= NEAR:
            rows, columns = slice(0, y.size), slice(0, x.size)
        else:
            columns = _span(x, corners[:, 0] / corners[:, 2])
            rows = _span(y, corners[:, 1] / corners[:, 2])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        to_local = part.rotation.T @ rotation.T
        start_depth = max(float(rotation[2] @ (part.centre - centre)), NEAR)
        origin = (part.rotation.T @ (centre - part.centre)).astype(np.float32)
        turn = to_local.astype(np.float32)
        dx, dy, dz = (
            (turn[k, 0] * x[columns])[None, :] + (turn[k, 1] * y[rows] + turn[k, 2])[:, None]
            for k in range(3)
        )
        # Rays start at the depth of the part's centre: small numbers, so that float32 keeps thin parts exact.
        shift = np.float32(start_depth)
        ray = (origin[0] + shift * dx, origin[1] + shift * dy, origin[2] + shift * dz, dx, dy, dz)
        inside = _part_interval(part, ray)
        t = inside.enter + shift
        nearest, nearest_part = depth[rows, columns], winner[rows, columns]
        closer = (inside.enter <= inside.leave) & (t > NEAR) & (t < nearest)
        np.copyto(nearest, t, where=closer)
        nearest_part[closer] = index
    return Hits(winner, depth)


def surface(assembly: Assembly, camera: Camera, supersample: int, hits: Hits) -> Surface:
    """Points, normals and colours where `hits` (of the same assembly, camera and supersampling) says that parts are."""
    rotation, centre = _pose(camera)
    x, y = ray_slopes(camera, supersample)
    rows, columns = np.nonzero(hits.part >= 0)
    depth = hits.depth[rows, columns]
    in_camera = np.stack([x[columns] * depth, y[rows] * depth, depth], axis=1)
    points = turned(in_camera, rotation.T.astype(np.float32)) + centre.astype(np.float32)

    owner = hits.part[rows, columns]
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(assembly.parts) + 1))
    normals, albedo = np.empty_like(points), np.empty_like(points)
    gloss = np.empty(len(points), np.float32)
    for index, part in enumerate(assembly.parts):
        chosen = order[bounds[index] : bounds[index + 1]]
        if chosen.size == 0:
            continue
        turn = part.rotation.astype(np.float32)
        local = turned(points[chosen] - part.centre.astype(np.float32), turn.T)
        local_normals = part.shape.normal(local)
        if part.bite is not None:
            from_bite = points[chosen] - np.asarray(part.bite.centre, np.float32)
            distance = np.linalg.norm(from_bite, axis=1, keepdims=True)
            on_bite = np.abs(distance - part.bite.radius) < 2e-4
            local_normals = np.where(on_bite, -turned(from_bite, turn.T) / distance, local_normals)
        colours = np.tile(linear(part.colour), (chosen.size, 1))
        for pattern in part.patterns:
            colours[pattern.covers(local, local_normals)] = linear(pattern.colour)
        normals[chosen] = turned(local_normals, turn)
        albedo[chosen] = colours
        gloss[chosen] = part.gloss
    for stain in assembly.stains:
        weight = stain.weight(points)[:, None]
        albedo += weight * (linear(stain.colour) - albedo)
        gloss *= 1 - np.float32(0.7) * weight[:, 0]
    return Surface(points, normals, albedo, gloss)


def light(assembly: Assembly) -> LightMaps:
    """Light maps of `assembly` under the studio's lights; about 0.4 s for 80 parts."""
    count = SKY_DIRECTIONS // 2
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    height = (np.arange(count) + 0.5) / count
    ring = np.sqrt(1 - height**2)
    sky = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    scale = (
        4.0 / SKY_DIRECTIONS * SKY_STRENGTH
    )  # so that an even, open sky of radiance 1 gives irradiance SKY_STRENGTH

    key_axis = np.asarray(KEY_DIRECTION) / np.linalg.norm(KEY_DIRECTION)
    key_across = _frame(key_axis)
    around = 2 * np.pi * np.arange(8) / 8
    rim = np.stack([np.cos(around), np.sin(around)], axis=1) * KEY_SPREAD
    rim[1::2] *= 0.55
    key = key_axis + np.concatenate([np.zeros((1, 2)), rim]) @ key_across
    key /= np.linalg.norm(key, axis=1, keepdims=True)

    axes = np.concatenate([sky, key])
    across = np.stack([_frame(axis) for axis in axes])
    least, most = [], []
    for index, axis in enumerate(axes):
        size = SKY_MAP if index < count else KEY_MAP
        low, high = _reach_along(assembly.parts, axis, across[index], size)
        least.append(low)
        most.append(high)
    return LightMaps(
        axes=axes.astype(np.float32),
        across=across.astype(np.float32),
        least=tuple(least),
        most=tuple(most),
        forward=np.concatenate([scale * _sky(height), np.full(len(key), KEY_STRENGTH / len(key))]).astype(
            np.float32
        ),
        backward=np.concatenate([scale * _sky(-height), np.zeros(len(key))]).astype(np.float32),
        is_key=(False,) * count + (True,) * len(key),
    )


def photograph(assembly: Assembly, maps: LightMaps, camera: Camera, supersample: int = 2) -> View:
    """The assembly seen by `camera`, white behind it; `maps` must be `light(assembly)`."""
    hits = cast(assembly.parts, camera, supersample)
    here = surface(assembly, camera, supersample, hits)
    rows, columns = np.nonzero(hits.part >= 0)
    colours = np.ones((*hits.part.shape, 3), np.float32)
    if rows.size:
        # Light varies slowly: it is computed once for all samples of a pixel on the same part and side of it.
        side = np.abs(here.normals).argmax(axis=1)
        pixel = (rows // supersample) * camera.width + columns // supersample
        key = (pixel * len(assembly.parts) + hits.part[rows, columns]) * 3 + side
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        open_sky, lit, key_lit = _received(maps, here.points[first], here.normals[first])
        shade = (lit[inverse], (lit / np.maximum(open_sky, 1e-4))[inverse], key_lit[inverse])
        colours[rows, columns] = _shade(here, *shade, eye=_pose(camera)[1].astype(np.float32))
    # Samples are averaged as displayed (gamma-encoded), the way splats are blended too.
    blocks = colours.reshape(camera.height, supersample, camera.width, supersample, 3)
    return View(blocks.mean(axis=(1, 3)), hits, here)


def linear(colour: Colour) -> Float[np.ndarray, "xyz=3"]:
    """Linear light of a displayed colour."""
    return np.asarray(colour, np.float32) ** np.float32(GAMMA)


def _shade(
    here: Surface,
    lit: Float[np.ndarray, " n"],
    openness: Float[np.ndarray, " n"],
    key_lit: Float[np.ndarray, " n"],
    eye: Float[np.ndarray, "xyz=3"],
) -> Float[np.ndarray, "n 3"]:
    """Displayed colours in [0, 1] of surface samples under the light they receive."""
    # Light lost in a corner partly comes back from its walls, in their colour.
    closed = np.clip(1 - openness, 0, 1)[:, None]
    diffuse = here.albedo * lit[:, None] / (1 - 0.75 * here.albedo * closed)
    to_eye = eye - here.points
    to_eye /= np.linalg.norm(to_eye, axis=1, keepdims=True)
    facing = np.clip(np.einsum("ij,ij->i", to_eye, here.normals), 0, 1)
    key = np.asarray(KEY_DIRECTION, np.float32)
    half = to_eye + key / np.linalg.norm(key)
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-6)
    glint = np.clip(np.einsum("ij,ij->i", half, here.normals), 0, 1) ** (12 + 100 * here.gloss)
    mirror = 2 * facing[:, None] * here.normals - to_eye
    fresnel = 0.04 + 0.5 * (1 - facing) ** 5
    sheen = fresnel * _sky(mirror[:, 2]) * np.minimum(openness, 1)
    specular = here.gloss * (0.55 * glint * key_lit + 0.55 * sheen)
    return np.clip(diffuse + specular[:, None], 0, 1) ** np.float32(1 / GAMMA)


def _received(
    maps: LightMaps, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Irradiance without and with occlusion, and the visible share of the key light."""
    texel = 2 * LIGHT_REACH / SKY_MAP
    lifted = tuple((points + normals * np.float32(1.1 * texel)).T.copy())
    facing = tuple(normals.T.copy())
    open_sky, lit, key_lit = (np.zeros(len(points), np.float32) for _ in range(3))
    keys = np.float32(sum(maps.is_key))
    for index, axis in enumerate(maps.axes):
        size = maps.least[index].shape[0]
        grid = np.float32(size / (2 * LIGHT_REACH))
        column, row = (
            np.clip((_along(lifted, way) + np.float32(LIGHT_REACH)) * grid, 0, size - 1).astype(np.int32)
            for way in maps.across[index]
        )
        flat = row * size + column
        along, slope = _along(lifted, axis), _along(facing, axis)
        sees_front = along >= maps.most[index].ravel()[flat] - np.float32(0.002)
        ahead = np.maximum(slope, 0) * maps.forward[index]
        open_sky += ahead
        lit += ahead * sees_front
        if maps.is_key[index]:
            key_lit += sees_front / keys
            continue
        sees_back = along <= maps.least[index].ravel()[flat] + np.float32(0.002)
        behind = np.maximum(-slope, 0) * maps.backward[index]
        open_sky += behind
        lit += behind * sees_back
    return open_sky, lit, key_lit


def _along(
    components: tuple[Float[np.ndarray, " n"], ...], axis: Float[np.ndarray, "xyz=3"]
) -> Float[np.ndarray, " n"]:
    return components[0] * axis[0] + components[1] * axis[1] + components[2] * axis[2]


def _reach_along(
    parts: Sequence[Part], axis: Float[np.ndarray, "xyz=3"], across: Float[np.ndarray, "2 3"], size: int
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
    """Least and greatest coordinate of the parts along `axis`, on a square grid of parallel lines."""
    ticks = (((np.arange(size) + 0.5) / size * 2 - 1) * LIGHT_REACH).astype(np.float32)
    least = np.full((size, size), np.inf, np.float32)
    most = np.full((size, size), -np.inf, np.float32)
    for part in parts:
        corners = part.corners() @ across.T
        columns, rows = _span(ticks, corners[:, 0]), _span(ticks, corners[:, 1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        turn = (part.rotation.T @ across.T).astype(np.float32)
        direction = (part.rotation.T @ axis).astype(np.float32)
        middle = across @ part.centre
        u = (ticks[columns] - np.float32(middle[0]))[None, :]
        v = (ticks[rows] - np.float32(middle[1]))[:, None]
        ox, oy, oz = (turn[k, 0] * u + turn[k, 1] * v for k in range(3))
        inside = _part_interval(part, (ox, oy, oz, *direction))
        hit = inside.enter <= inside.leave
        shift = np.float32(part.centre @ axis)
        low, high = least[rows, columns], most[rows, columns]
        np.copyto(low, np.minimum(low, inside.enter + shift), where=hit)
        np.copyto(high, np.maximum(high, inside.leave + shift), where=hit)
    return least, most


def _part_interval(part: Part, ray: Ray) -> Interval:
    """Where a ray in the part's frame is inside the part, less its bite."""
    inside = part.shape.interval(ray)
    if part.bite is None:
        return inside
    assert not isinstance(part.shape, Torus)
    centre = part.rotation.T @ (np.asarray(part.bite.centre) - part.centre)
    radius = part.bite.radius
    shifted = tuple(ray[k] - np.float32(centre[k]) for k in range(3))
    ball = Ellipsoid((radius, radius, radius)).interval((*shifted, *ray[3:]))
    front_gone = (ball.enter <= inside.enter) & (ball.leave > inside.enter)
    back_gone = (ball.leave >= inside.leave) & (ball.enter < inside.leave) & (ball.enter <= ball.leave)
    enter = np.where(front_gone, ball.leave, inside.enter)
    leave = np.where(back_gone & ~front_gone, ball.enter, inside.leave)
    return Interval(enter, leave)


def _pose(camera: Camera) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "xyz=3"]]:
    matrix = camera.world_to_cam.double().numpy()
    return matrix[:3, :3], -matrix[:3, :3].T @ matrix[:3, 3]


def ray_slopes(
    camera: Camera, supersample: int
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " rows"]]:
    """x / z of the columns of sub-pixel rays and y / z of the rows."""
    u = (np.arange(camera.width * supersample) + 0.5) / supersample
    v = (np.arange(camera.height * supersample) + 0.5) / supersample
    return (
        ((u - camera.cx) / camera.fl_x).astype(np.float32),
        ((v - camera.cy) / camera.fl_y).astype(np.float32),
    )


def _span(ticks: Float[np.ndarray, " n"], values: Float[np.ndarray, " m"]) -> slice:
    """Indices of the ascending `ticks` within the range of `values`, one more on both sides."""
    low = int(np.searchsorted(ticks, values.min())) - 1
    high = int(np.searchsorted(ticks, values.max())) + 1
    return slice(max(low, 0), min(high, ticks.size))


def _frame(axis: Float[np.ndarray, "xyz=3"]) -> Float[np.ndarray, "2 3"]:
    """Two unit vectors perpendicular to `axis` and to each other."""
    other = np.eye(3)[int(np.abs(axis).argmin())]
    first = np.cross(axis, other)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(axis, first)])


def _sky(height: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Radiance of the studio around the object at directions of z component `height`: brighter above."""
    return 0.84 + 0.16 * height
