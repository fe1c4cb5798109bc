"""Chairs as lists of components, a component as convex solids that share a label of BrokenChairs and a material slot.

World: y up, x to the sitter's left and right, z to the front. A solid's frame: world = `rotation` @ local + `centre`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from prepare.generate.shapes import Box, Capsule, Ellipsoid, Frustum, Polyhedron, Shape, Torus, turned

Label = Literal[
    "Leg", "BackSurface", "BackFrame", "BackSupport", "Arm", "SeatSurface", "SeatFrame", "SeatSupport",
    "SurfaceBase", "Footrest", "Other",
]  # fmt: skip
LABELS: tuple[Label, ...] = (
    "Leg", "BackSurface", "BackFrame", "BackSupport", "Arm", "SeatSurface", "SeatFrame", "SeatSupport",
    "SurfaceBase", "Footrest", "Other",
)  # fmt: skip
Slot = Literal["frame", "seat", "back", "metal", "accent"]
SLOTS: tuple[Slot, ...] = ("frame", "seat", "back", "metal", "accent")
ON_CUT = 1e-3  # world units off a cutter's surface within which a point counts as on the cut
CLOUD_SPACING = 0.035  # world units between the points that stand for a surface

Vector = Sequence[float | int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Cutter:
    """A sphere or box in the world, taken away from the solids of a component."""

    shape: Box | Ellipsoid
    centre: Float[np.ndarray, "xyz=3"]
    rotation: Float[np.ndarray, "3 3"]

    def holds(self, points: Float[np.ndarray, "n xyz=3"], margin: float = 0.0) -> Bool[np.ndarray, " n"]:
        """True at world `points` within the cutter, or within `margin` of it."""
        local = np.abs((points - self.centre) @ self.rotation)
        half = np.asarray(self.shape.extent) + margin
        if isinstance(self.shape, Box):
            return (local <= half).all(axis=1)
        return ((local / half) ** 2).sum(axis=1) <= 1.0


@dataclass(frozen=True, eq=False)
class Solid:
    """One convex shape at its place, less what a cutter took."""

    shape: Shape
    centre: Float[np.ndarray, "xyz=3"]  # world
    rotation: Float[np.ndarray, "3 3"]  # local to world
    cut: Cutter | None = None

    def corners(self) -> Float[np.ndarray, "8 xyz=3"]:
        """World corners of the oriented bounding box."""
        return (_SIGNS * np.asarray(self.shape.extent)) @ self.rotation.T + self.centre

    def moved(self, turn: Float[np.ndarray, "3 3"], about: Vector, shift: Vector) -> Solid:
        """Turned by `turn` about the world point `about`, then moved by `shift`."""
        about = np.asarray(about, np.float64)
        return replace(
            self,
            centre=turn @ (self.centre - about) + about + np.asarray(shift, np.float64),
            rotation=turn @ self.rotation,
        )

    def stretched(self, scale: Float[np.ndarray, "xyz=3"], origin: Vector, goal: Vector) -> Solid:
        """After x -> `scale` * (x - `origin`) + `goal`: its main axes follow exactly, shear is left out."""
        along = self.rotation * scale[:, None]  # columns: where the local axes go
        lengths = np.linalg.norm(along, axis=0)
        main = 2 if isinstance(self.shape, Frustum | Capsule) else int(np.argmax(self.shape.extent))
        turn = np.zeros((3, 3))
        turn[:, main] = along[:, main] / lengths[main]
        second, third = (main + 1) % 3, (main + 2) % 3
        across = along[:, second] - turn[:, main] * (turn[:, main] @ along[:, second])
        turn[:, second] = across / np.linalg.norm(across)
        turn[:, third] = np.cross(turn[:, main], turn[:, second])
        return Solid(
            _stretched(self.shape, lengths),
            scale * (self.centre - np.asarray(origin)) + np.asarray(goal),
            turn,
        )

    def cloud(self, spacing: float = CLOUD_SPACING) -> Float[np.ndarray, "n xyz=3"]:
        """World points on the surface, about `spacing` apart: where lines along the local axes enter and leave."""
        half = np.asarray(self.shape.extent)
        found = []
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            ticks = [
                (np.arange(n) + 0.5) / n * 2 * half[k] - half[k]
                for k in (u, v)
                for n in [max(3, math.ceil(2 * half[k] / spacing))]
            ]
            a, b = (grid.ravel().astype(np.float32) for grid in np.meshgrid(*ticks, indexing="ij"))
            origin = [np.zeros_like(a)] * 3
            origin[u], origin[v] = a, b
            direction = [np.float32(k == axis) for k in range(3)]
            inside = self.shape.interval((*origin, *direction))  # type: ignore[arg-type]
            enter, leave = (np.broadcast_to(t, a.shape) for t in (inside.enter, inside.leave))
            hit = enter <= leave
            for t in (enter, leave):
                points = np.stack(origin, axis=1)[hit].astype(np.float64)
                points[:, axis] = t[hit]
                found.append(points)
        world = np.concatenate(found) @ self.rotation.T + self.centre
        return world if self.cut is None else world[~self.cut.holds(world)]


@dataclass(frozen=True, eq=False)
class Component:
    """What a semantic part segmentation counts as one part: a leg, a slat, an armrest."""

    label: Label
    kind: str  # finer than the label: leg, stretcher, castor leg, slat, ...
    solids: tuple[Solid, ...]
    slot: Slot

    def cloud(self, spacing: float = CLOUD_SPACING) -> Float[np.ndarray, "n xyz=3"]:
        return np.concatenate([solid.cloud(spacing) for solid in self.solids])

    def bounds(self) -> Float[np.ndarray, "low_high=2 xyz=3"]:
        """Tight world box of the surface."""
        cloud = np.concatenate([solid.cloud(0.06) for solid in self.solids])
        return np.stack([cloud.min(axis=0), cloud.max(axis=0)])


@dataclass(frozen=True, eq=False)
class Chair:
    """A shape: its components, all within 0.98 of the origin once `fitted`."""

    family: str  # base/seat/back/arms
    components: tuple[Component, ...]

    def solids(self) -> list[Solid]:
        return [solid for component in self.components for solid in component.solids]

    def owners(self) -> np.ndarray:
        """Index of the component of each of `solids()`."""
        return np.array(
            [i for i, component in enumerate(self.components) for _ in component.solids], np.int16
        )

    def fitted(self, radius: float = 0.98) -> Chair:
        """Moved and scaled so that its box is centred at the origin and all of it is within `radius`."""
        cloud = np.concatenate([component.cloud(0.04) for component in self.components])
        middle = 0.5 * (cloud.min(axis=0) + cloud.max(axis=0))
        factor = radius / float(np.linalg.norm(cloud - middle, axis=1).max())
        components = tuple(
            replace(
                part,
                solids=tuple(
                    replace(s, shape=s.shape.scaled(factor), centre=(s.centre - middle) * factor)
                    for s in part.solids
                ),
            )
            for part in self.components
        )
        return replace(self, components=components)


@dataclass(frozen=True)
class Slab(Box):
    """A box whose broad sides (local z) look bent about local y: their normals lean by `lean` (rad) at x = half[0]."""

    lean: float = 0.0

    def normal(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        flat = Box.normal(self, points)
        angle = (np.float32(self.lean / self.half[0]) * points[:, 0]).astype(np.float32)
        cosine, sine = np.cos(angle), np.sin(angle)
        return np.stack(
            [cosine * flat[:, 0] + sine * flat[:, 2], flat[:, 1], cosine * flat[:, 2] - sine * flat[:, 0]],
            axis=1,
        )


def box(centre: Vector, half: Vector, rotation: np.ndarray | None = None, bevel: float = 0.006) -> Solid:
    """A box by its middle and half sizes."""
    sizes = (float(half[0]), float(half[1]), float(half[2]))
    return Solid(
        Box(sizes, bevel), np.asarray(centre, np.float64), np.eye(3) if rotation is None else rotation
    )


def rod(start: Vector, end: Vector, radius: float, end_radius: float | None = None) -> Solid:
    """A round bar, a cone where the radii differ."""
    middle, turn, half = _between(start, end)
    return Solid(Frustum(radius, radius if end_radius is None else end_radius, half, 0.004), middle, turn)


def bar(start: Vector, end: Vector, half_x: float, half_y: float, bevel: float = 0.004) -> Solid:
    """A square bar; its local y lies as near to the world's z as it can."""
    middle, turn, half = _between(start, end)
    return Solid(Box((half_x, half_y, half), bevel), middle, turn)


def tapered(start: Vector, end: Vector, at_start: float, at_end: float) -> Solid:
    """A square bar that narrows."""
    from prepare.generate.shapes import tapered_box

    middle, turn, half = _between(start, end)
    return Solid(tapered_box((at_start, at_start), (at_end, at_end), half, bevel=0.004), middle, turn)


def tube(path: Iterable[Vector], radius: float) -> tuple[Solid, ...]:
    """A bent round tube along the corners of `path`."""
    points = [np.asarray(p, np.float64) for p in path]
    solids = []
    for a, b in itertools.pairwise(points):
        middle, turn, half = _between(a, b)
        solids.append(Solid(Capsule(radius, half), middle, turn))
    return tuple(solids)


def rotation_about(axis: Vector, angle: float) -> Float[np.ndarray, "3 3"]:
    """The turn by `angle` (rad) about `axis`. Source: Rodrigues' formula."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def local_normals(
    solid: Solid, points: Float[np.ndarray, "n 3"], local: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """World normals at world `points` (and the same in the solid's frame) of its surface, cut included."""
    turn = solid.rotation.astype(np.float32)
    normals = turned(solid.shape.normal(local), turn)
    if solid.cut is not None:
        inside = solid.cut.holds(points, ON_CUT)
        if inside.any():
            cutter = solid.cut.rotation.astype(np.float32)
            here = turned(points[inside] - solid.cut.centre.astype(np.float32), cutter.T)
            normals[inside] = -turned(solid.cut.shape.normal(here), cutter)
    return normals


def _between(start: Vector, end: Vector) -> tuple[np.ndarray, np.ndarray, float]:
    """Middle, frame (local z from start to end) and half length."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    along = b - a
    length = float(np.linalg.norm(along))
    z = along / length
    hint = np.array([0.0, 0.0, 1.0]) if abs(z[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    x = np.cross(hint, z)
    x /= np.linalg.norm(x)
    return 0.5 * (a + b), np.stack([x, np.cross(z, x), z], axis=1), 0.5 * length


def _stretched(shape: Shape, factors: np.ndarray) -> Shape:
    """The shape with its local axes scaled; round sections stay round."""
    x, y, z = (float(f) for f in factors)
    across = math.sqrt(x * y)
    if isinstance(shape, Box):
        return replace(shape, half=(shape.half[0] * x, shape.half[1] * y, shape.half[2] * z))
    if isinstance(shape, Frustum):
        return replace(
            shape, bottom=shape.bottom * across, top=shape.top * across, half_height=shape.half_height * z
        )
    if isinstance(shape, Capsule):
        return Capsule(shape.radius * across, shape.half_height * z)
    if isinstance(shape, Ellipsoid):
        return Ellipsoid((shape.half[0] * x, shape.half[1] * y, shape.half[2] * z))
    assert not isinstance(shape, Torus)
    normals = shape.normals / np.array([x, y, z])
    lengths = np.linalg.norm(normals, axis=1)
    return Polyhedron(
        (normals / lengths[:, None]).astype(np.float32),
        (shape.offsets / lengths).astype(np.float32),
        (shape.extent[0] * x, shape.extent[1] * y, shape.extent[2] * z),
        shape.bevel,
    )


_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
