"""Analytic solids in their own frame: where a ray enters and leaves, and the normal there.

A ray is x = o + t d with structure-of-arrays components (each a scalar or an array of one common shape); `interval`
gives the t of entry and exit, entry > exit where the ray misses. Normals are rounded over `bevel` world units beside
each edge, as moulded or machined edges look; the solid itself keeps its sharp edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

Scalars = Any  # a numpy scalar or array, broadcast with the others of its ray
Ray = tuple[Scalars, Scalars, Scalars, Scalars, Scalars, Scalars]  # ox, oy, oz, dx, dy, dz

TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Interval:
    """Ray parameters between which a ray is inside a solid; it misses where `enter` > `leave`."""

    enter: Float[np.ndarray, "*rays"]
    leave: Float[np.ndarray, "*rays"]


@dataclass(frozen=True)
class Box:
    """|x|, |y|, |z| <= `half`."""

    half: tuple[float, float, float]  # world units, > 0
    bevel: float = 0.012  # world units over which normals are rounded

    @property
    def extent(self) -> tuple[float, float, float]:
        return self.half

    def interval(self, ray: Ray) -> Interval:
        ox, oy, oz, dx, dy, dz = ray
        enter: Any = np.float32(-np.inf)
        leave: Any = np.float32(np.inf)
        for origin, direction, half in zip((ox, oy, oz), (dx, dy, dz), self.half, strict=True):
            inverse = np.float32(1) / _nonzero(direction)
            middle = -origin * inverse
            reach = np.float32(half) * np.abs(inverse)
            enter = np.maximum(enter, middle - reach)
            leave = np.minimum(leave, middle + reach)
        return Interval(enter, leave)

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        inward = np.asarray(self.half, np.float32) - np.abs(points)
        weight = _edge_weight(inward, _bevel(self.bevel, self.half))
        return _unit(np.where(points < 0, -weight, weight))

    def scaled(self, factor: float) -> Box:
        return replace(self, half=_times(self.half, factor), bevel=self.bevel * factor)


@dataclass(frozen=True, eq=False)
class Polyhedron:
    """The convex solid of all x with `normals` @ x <= `offsets`: wedges, prisms, tapered boxes, nuts."""

    normals: Float[np.ndarray, "faces 3"]  # unit
    offsets: Float[np.ndarray, " faces"]
    extent: tuple[
        float, float, float
    ]  # half sizes of a box, centred at the frame's origin, that holds the solid
    bevel: float = 0.012

    def interval(self, ray: Ray) -> Interval:
        ox, oy, oz, dx, dy, dz = ray
        enter: Any = np.float32(-np.inf)
        leave: Any = np.float32(np.inf)
        for (a, b, c), offset in zip(self.normals, self.offsets, strict=True):
            slope = _nonzero(a * dx + b * dy + c * dz)
            t = (offset - (a * ox + b * oy + c * oz)) / slope
            entering = slope < 0
            enter = np.maximum(enter, np.where(entering, t, np.float32(-np.inf)))
            leave = np.minimum(leave, np.where(entering, np.float32(np.inf), t))
        return Interval(enter, leave)

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        inward = self.offsets - turned(points, self.normals)
        return _unit(turned(_edge_weight(inward, _bevel(self.bevel, self.extent)), self.normals.T))

    def scaled(self, factor: float) -> Polyhedron:
        return Polyhedron(
            self.normals,
            (self.offsets * factor).astype(np.float32),
            _times(self.extent, factor),
            self.bevel * factor,
        )


@dataclass(frozen=True)
class Frustum:
    """A cone cut at z = -`half_height` (radius `bottom`) and +`half_height` (radius `top`), or a cylinder."""

    bottom: float  # radius, world units, >= 0
    top: float  # radius, world units, >= 0
    half_height: float
    bevel: float = 0.012

    @property
    def extent(self) -> tuple[float, float, float]:
        radius = max(self.bottom, self.top)
        return (radius, radius, self.half_height)

    @property
    def _cone(self) -> tuple[np.float32, np.float32]:
        """Radius at z = 0, and its growth with z."""
        return (
            np.float32(0.5 * (self.bottom + self.top)),
            np.float32(0.5 * (self.top - self.bottom) / self.half_height),
        )

    def interval(self, ray: Ray) -> Interval:
        ox, oy, oz, dx, dy, dz = ray
        middle, growth = self._cone
        inverse = np.float32(1) / _nonzero(dz)
        at_middle, reach = -oz * inverse, np.float32(self.half_height) * np.abs(inverse)
        enter, leave = at_middle - reach, at_middle + reach

        radius, widening = middle + growth * oz, growth * dz
        a = _nonzero(dx * dx + dy * dy - widening * widening)
        b = ox * dx + oy * dy - radius * widening
        c = ox * ox + oy * oy - radius * radius
        discriminant = b * b - a * c
        root = np.sqrt(np.maximum(discriminant, np.float32(0)))
        low, high = (-b - root) / a, (-b + root) / a
        if self.bottom == self.top:
            enter, leave = np.maximum(enter, low), np.minimum(leave, high)
            return Interval(np.where(discriminant < 0, np.float32(np.inf), enter), leave)
        # A ray steeper than the cone (a < 0) is inside the nappe of positive radius on one side of both roots only.
        steep = a < 0
        first, last = np.minimum(low, high), np.maximum(low, high)
        opening = widening > 0
        side_enter = np.where(steep, np.where(opening, last, np.float32(-np.inf)), first)
        side_leave = np.where(steep, np.where(opening, np.float32(np.inf), first), last)
        enter, leave = np.maximum(enter, side_enter), np.minimum(leave, side_leave)
        return Interval(np.where((discriminant < 0) & ~steep, np.float32(np.inf), enter), leave)

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        middle, growth = self._cone
        slant = np.float32(1 / math.hypot(1.0, float(growth)))
        from_axis = np.maximum(np.hypot(points[:, 0], points[:, 1]), TINY)
        to_side = (middle + growth * points[:, 2] - from_axis) * slant
        to_cap = np.float32(self.half_height) - np.abs(points[:, 2])
        bevel = _bevel(self.bevel, (max(self.bottom, self.top), self.half_height))
        weight = _edge_weight(np.stack([to_side, to_cap], axis=1), bevel)
        radial = weight[:, :1] * slant * points[:, :2] / from_axis[:, None]
        axial = -weight[:, :1] * slant * growth + weight[:, 1:] * np.sign(points[:, 2:])
        return _unit(np.concatenate([radial, axial], axis=1))

    def scaled(self, factor: float) -> Frustum:
        return Frustum(
            self.bottom * factor, self.top * factor, self.half_height * factor, self.bevel * factor
        )


@dataclass(frozen=True)
class Ellipsoid:
    """Sum of (x_i / `half_i`)^2 <= 1; a sphere where all are equal."""

    half: tuple[float, float, float]

    @property
    def extent(self) -> tuple[float, float, float]:
        return self.half

    def interval(self, ray: Ray) -> Interval:
        ox, oy, oz, dx, dy, dz = ray
        ix, iy, iz = (np.float32(1 / h) for h in self.half)
        return _sphere_interval((ox * ix, oy * iy, oz * iz, dx * ix, dy * iy, dz * iz), np.float32(1))

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return _unit(points / np.square(np.asarray(self.half, np.float32)))

    def scaled(self, factor: float) -> Ellipsoid:
        return Ellipsoid(_times(self.half, factor))


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of the segment from z = -`half_height` to z = +`half_height`."""

    radius: float
    half_height: float

    @property
    def extent(self) -> tuple[float, float, float]:
        return (self.radius, self.radius, self.half_height + self.radius)

    def interval(self, ray: Ray) -> Interval:
        ox, oy, oz, dx, dy, dz = ray
        half, radius = np.float32(self.half_height), np.float32(self.radius)
        tube = Frustum(self.radius, self.radius, self.half_height).interval(ray)
        enter, leave = tube.enter, tube.leave
        missed = enter > leave
        enter = np.where(missed, np.float32(np.inf), enter)
        leave = np.where(missed, np.float32(-np.inf), leave)
        for end in (-half, half):
            ball = _sphere_interval((ox, oy, oz - end, dx, dy, dz), radius)
            hit = ball.enter <= ball.leave
            enter = np.where(hit, np.minimum(enter, ball.enter), enter)
            leave = np.where(hit, np.maximum(leave, ball.leave), leave)
        return Interval(enter, leave)

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        along = points[:, 2:] - np.clip(points[:, 2:], -self.half_height, self.half_height)
        return _unit(np.concatenate([points[:, :2], along], axis=1))

    def scaled(self, factor: float) -> Capsule:
        return Capsule(self.radius * factor, self.half_height * factor)


@dataclass(frozen=True)
class Torus:
    """All points within `minor` of the circle of radius `major` in the plane z = 0."""

    major: float
    minor: float

    @property
    def extent(self) -> tuple[float, float, float]:
        return (self.major + self.minor, self.major + self.minor, self.minor)

    def interval(self, ray: Ray) -> Interval:
        """First entry and last exit, found by sphere tracing from both sides (a torus is not convex)."""
        components = np.broadcast_arrays(*(np.asarray(v, np.float32) for v in ray))
        shape = components[0].shape
        ox, oy, oz, dx, dy, dz = (v.reshape(-1) for v in components)
        hull = Box(self.extent).interval((ox, oy, oz, dx, dy, dz))
        enter = np.full(ox.shape, np.inf, np.float32)
        leave = np.full(ox.shape, -np.inf, np.float32)
        chosen = np.flatnonzero(hull.enter <= hull.leave)
        rays = tuple(v[chosen] for v in (ox, oy, oz, dx, dy, dz))
        start, stop = hull.enter[chosen], hull.leave[chosen]
        enter[chosen] = self._march(rays, start, stop, 1.0)
        found = chosen[np.isfinite(enter[chosen])]
        rays = tuple(v[found] for v in (ox, oy, oz, dx, dy, dz))
        back = self._march(rays, hull.leave[found], hull.enter[found], -1.0)
        leave[found] = np.where(np.isfinite(back), back, enter[found])
        return Interval(enter.reshape(shape), leave.reshape(shape))

    def _march(
        self,
        rays: tuple[Any, ...],
        start: Float[np.ndarray, " n"],
        stop: Float[np.ndarray, " n"],
        sense: float,
    ) -> Float[np.ndarray, " n"]:
        """First t from `start` towards `stop` on the surface; infinite where there is none."""
        ox, oy, oz, dx, dy, dz = rays
        speed = np.float32(sense) / np.sqrt(dx * dx + dy * dy + dz * dz)
        t, result = start.copy(), np.full(start.shape, np.inf, np.float32)
        live = np.arange(t.size)
        tolerance = np.float32(2e-5)
        for _ in range(256):
            if live.size == 0:
                break
            here = t[live]
            ring = np.hypot(ox[live] + here * dx[live], oy[live] + here * dy[live]) - np.float32(self.major)
            gap = np.hypot(ring, oz[live] + here * dz[live]) - np.float32(self.minor)
            near = gap < tolerance
            result[live[near]] = here[near]
            t[live] = here + np.maximum(gap, np.float32(0)) * speed[live]
            live = live[~near & ((stop[live] - t[live]) * np.float32(sense) > 0)]
        return result

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        from_axis = np.maximum(np.hypot(points[:, 0], points[:, 1]), TINY)[:, None]
        ring = points[:, :2] * (1 - np.float32(self.major) / from_axis)
        return _unit(np.concatenate([ring, points[:, 2:]], axis=1))

    def scaled(self, factor: float) -> Torus:
        return Torus(self.major * factor, self.minor * factor)


Shape = Box | Polyhedron | Frustum | Ellipsoid | Capsule | Torus


def prism(outline: Sequence[tuple[float, float]], half_depth: float, bevel: float = 0.012) -> Polyhedron:
    """The solid with a convex `outline` in x and z (counter-clockwise seen from -y) and |y| <= `half_depth`."""
    corners = np.asarray(outline, np.float64)
    along = np.roll(corners, -1, axis=0) - corners
    outward = np.stack([along[:, 1], np.zeros(len(corners)), -along[:, 0]], axis=1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    offsets = outward[:, 0] * corners[:, 0] + outward[:, 2] * corners[:, 1]
    normals = np.concatenate([outward, [[0, 1, 0], [0, -1, 0]]])
    reach = np.abs(corners).max(axis=0)
    return Polyhedron(
        normals.astype(np.float32),
        np.concatenate([offsets, [half_depth, half_depth]]).astype(np.float32),
        (float(reach[0]), half_depth, float(reach[1])),
        bevel,
    )


def tapered_box(
    bottom: tuple[float, float],
    top: tuple[float, float],
    half_height: float,
    shift_x: float = 0.0,
    bevel: float = 0.012,
) -> Polyhedron:
    """A box whose half sizes in x and y go from `bottom` to `top`, the top moved by `shift_x`."""
    rows, offsets = [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0)], [half_height, half_height]
    for axis, sign in ((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)):
        shift = sign * shift_x if axis == 0 else 0.0
        growth = (top[axis] + shift - bottom[axis]) / (2 * half_height)
        length = math.hypot(1.0, growth)
        row = [0.0, 0.0, -growth / length]
        row[axis] = sign / length
        rows.append((row[0], row[1], row[2]))
        offsets.append(0.5 * (top[axis] + shift + bottom[axis]) / length)
    reach_x = max(bottom[0], top[0] + abs(shift_x))
    return Polyhedron(
        np.asarray(rows, np.float32),
        np.asarray(offsets, np.float32),
        (reach_x, max(bottom[1], top[1]), half_height),
        bevel,
    )


def regular_prism(sides: int, radius: float, half_height: float, bevel: float = 0.012) -> Polyhedron:
    """A prism along z over a regular polygon of circumradius `radius`: a nut, a bolt head, a flange."""
    angles = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1)
    normals = np.concatenate([rim, [[0, 0, 1], [0, 0, -1]]])
    offsets = np.concatenate([np.full(sides, radius * math.cos(math.pi / sides)), [half_height] * 2])
    return Polyhedron(
        normals.astype(np.float32), offsets.astype(np.float32), (radius, radius, half_height), bevel
    )


def turned(
    points: Float[np.ndarray, "n columns"], matrix: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "n rows"]:
    """`matrix` @ each point, summed in a fixed order: a BLAS product's last bits depend on how many threads it got."""
    total = points[:, :1] * matrix[:, 0]
    for column in range(1, matrix.shape[1]):
        total += points[:, column : column + 1] * matrix[:, column]
    return total


def _sphere_interval(ray: Ray, radius: np.float32) -> Interval:
    ox, oy, oz, dx, dy, dz = ray
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    discriminant = b * b - a * (ox * ox + oy * oy + oz * oz - radius * radius)
    root = np.sqrt(np.maximum(discriminant, np.float32(0)))
    enter = np.where(discriminant < 0, np.float32(np.inf), (-b - root) / a)
    return Interval(enter, (-b + root) / a)


def _nonzero(value: Scalars) -> Scalars:
    """`value` moved off zero, so that quotients are large instead of undefined."""
    return np.where(np.abs(value) < TINY, TINY, value)


def _bevel(bevel: float, sizes: Sequence[float]) -> np.float32:
    return np.float32(max(min(bevel, 0.3 * min(sizes)), 1e-6))


def _edge_weight(inward: Float[np.ndarray, "n faces"], bevel: np.float32) -> Float[np.ndarray, "n faces"]:
    """1 on a face, falling to 0 at `bevel` below it; the nearest face always has weight."""
    nearest = inward.min(axis=1, keepdims=True)
    return np.clip(1 - (inward - nearest) / bevel, 0, 1).astype(np.float32)


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return (vectors / np.maximum(length, TINY)[:, None]).astype(np.float32)


def _times(values: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (values[0] * factor, values[1] * factor, values[2] * factor)
