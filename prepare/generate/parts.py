"""Parts and assemblies: a solid at a place, with colour, gloss and surface pattern.

Colours are sRGB triples in [0, 1]. A part's frame: world = `rotation` @ local + `centre`. Patterns are functions of the
local point and normal, so they sit on the part and need no texture coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from prepare.generate.shapes import Box, Capsule, Ellipsoid, Frustum, Polyhedron, Shape, Torus, turned

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]


@runtime_checkable
class Pattern(Protocol):
    """Where on a part a second colour stands."""

    @property
    def colour(self) -> Colour: ...

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        """True at the local `points` that have the pattern's colour."""
        ...

    def scaled(self, factor: float) -> Pattern: ...


@dataclass(frozen=True)
class Stripes:
    """Bands across a local direction: coloured where the coordinate, modulo `period`, is below `width`."""

    direction: Vector
    period: float
    width: float
    colour: Colour
    phase: float = 0.0

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        along = _dot(points, self.direction) - np.float32(self.phase)
        return np.mod(along, np.float32(self.period)) < self.width

    def scaled(self, factor: float) -> Stripes:
        return replace(
            self, period=self.period * factor, width=self.width * factor, phase=self.phase * factor
        )


@dataclass(frozen=True)
class Lines:
    """Thin lines at given coordinates along one local axis: panel gaps, door edges."""

    axis: int
    at: tuple[float, ...]
    width: float
    colour: Colour

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        along = points[:, self.axis : self.axis + 1]
        return (np.abs(along - np.asarray(self.at, np.float32)) < 0.5 * self.width).any(axis=1)

    def scaled(self, factor: float) -> Lines:
        return replace(self, at=tuple(a * factor for a in self.at), width=self.width * factor)


@dataclass(frozen=True)
class Spokes:
    """Sectors about the local z axis between two radii, `count` of them over `share` of the turn."""

    count: int
    share: float  # in (0, 1)
    inner: float
    outer: float
    colour: Colour

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        radius = np.hypot(points[:, 0], points[:, 1])
        turn = np.mod(np.arctan2(points[:, 1], points[:, 0]) * (self.count / (2 * np.pi)), 1.0)
        return (turn < self.share) & (radius > self.inner) & (radius < self.outer)

    def scaled(self, factor: float) -> Spokes:
        return replace(self, inner=self.inner * factor, outer=self.outer * factor)


@dataclass(frozen=True)
class Ring:
    """Everything whose distance from the local z axis is between two radii."""

    inner: float
    outer: float
    colour: Colour

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        radius = np.hypot(points[:, 0], points[:, 1])
        return (radius > self.inner) & (radius < self.outer)

    def scaled(self, factor: float) -> Ring:
        return replace(self, inner=self.inner * factor, outer=self.outer * factor)


@dataclass(frozen=True)
class Lettering:
    """Text printed upright on the face whose normal is `facing`, `right` being the reading direction (local axes)."""

    text: str
    facing: Vector
    right: Vector
    centre: Vector
    height: float
    colour: Colour

    def covers(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        bitmap = _bitmap(self.text)
        up = np.cross(self.facing, self.right)
        offset = points - np.asarray(self.centre, np.float32)
        cell = self.height / bitmap.shape[0]
        column = np.floor(_dot(offset, self.right) / cell + bitmap.shape[1] / 2).astype(int)
        row = np.floor(bitmap.shape[0] / 2 - _dot(offset, up) / cell).astype(int)
        inside = (_dot(normals, self.facing) > 0.5) & (column >= 0) & (column < bitmap.shape[1])
        inside &= (row >= 0) & (row < bitmap.shape[0])
        result = np.zeros(len(points), bool)
        result[inside] = bitmap[row[inside], column[inside]]
        return result

    def scaled(self, factor: float) -> Lettering:
        return replace(self, centre=_scale(self.centre, factor), height=self.height * factor)


@dataclass(frozen=True)
class Ball:
    """A sphere in world coordinates, taken away from a part."""

    centre: Vector
    radius: float


@dataclass(frozen=True, eq=False)
class Part:
    """One solid of one material. Parts of one `group` are bolted together and go missing together."""

    name: str
    group: str  # empty: carries others, never goes missing
    shape: Shape
    centre: Float[np.ndarray, "xyz=3"]  # world
    rotation: Float[np.ndarray, "3 3"]  # local to world
    colour: Colour
    gloss: float = 0.3  # 0 matt .. 1 polished
    patterns: tuple[Pattern, ...] = ()
    bite: Ball | None = None  # taken away; not for a torus

    def scaled(self, factor: float, offset: Float[np.ndarray, "xyz=3"]) -> Part:
        """The part of the assembly moved by `offset`, then scaled by `factor`."""
        return replace(
            self,
            shape=self.shape.scaled(factor),
            centre=(self.centre + offset) * factor,
            patterns=tuple(p.scaled(factor) for p in self.patterns),
        )

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """World corners of the part's oriented bounding box."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
        return (signs * np.asarray(self.shape.extent)) @ self.rotation.T + self.centre


@dataclass(frozen=True)
class Stain:
    """A blotch: the surface within `radius` of `centre`, its edge ragged by 3D noise, mixed towards `colour`."""

    centre: Vector  # world
    radius: float  # world units, mean over directions
    colour: Colour
    strength: float  # in (0, 1]: share of the stain's colour inside
    phase: Vector  # shifts the noise: another shape for each stain

    def weight(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Share of the stain's colour at world `points`, in [0, `strength`], with a narrow soft rim."""
        offset = (points - np.asarray(self.centre, np.float32)) / np.float32(self.radius)
        distance = np.sqrt(np.einsum("ij,ij->i", offset, offset))
        wobble = np.zeros(len(points), np.float32)
        for octave, amplitude in ((1.7, 0.45), (3.9, 0.22), (8.3, 0.1)):
            waves = (turned(offset, _NOISE_TURN) + np.asarray(self.phase, np.float32)) * np.float32(octave)
            wobble += np.float32(amplitude) * np.sin(waves[:, 0]) * np.cos(waves[:, 1] + np.sin(waves[:, 2]))
        return (np.float32(self.strength) * np.clip((1 + wobble - distance) / np.float32(0.08), 0, 1)).astype(
            np.float32
        )


@dataclass(frozen=True, eq=False)
class Assembly:
    """A product: its parts, and what has got onto its surface."""

    name: str
    parts: tuple[Part, ...]
    stains: tuple[Stain, ...] = ()

    def groups(self) -> dict[str, list[int]]:
        """Indices of the parts of each group that can go missing, in order of appearance."""
        found: dict[str, list[int]] = {}
        for index, part in enumerate(self.parts):
            if part.group:
                found.setdefault(part.group, []).append(index)
        return found

    def fitted(self, radius: float = 0.98) -> Assembly:
        """The assembly moved and scaled so that its box is centred at the origin and all of it is within `radius`."""
        clouds = np.concatenate([_hull_points(part) for part in self.parts])
        middle = 0.5 * (clouds.min(axis=0) + clouds.max(axis=0))
        factor = radius / float(np.linalg.norm(clouds - middle, axis=1).max())
        return replace(self, parts=tuple(part.scaled(factor, -middle) for part in self.parts))


_NOISE_TURN = np.linalg.qr(np.array([[1.0, 0.6, -0.3], [-0.5, 1.0, 0.7], [0.4, -0.8, 1.0]]))[0].astype(
    np.float32
)


def _hull_points(part: Part) -> Float[np.ndarray, "n 3"]:
    """Points whose convex hull holds the part closely (a round part's box would stick out by up to 40 %)."""
    shape = part.shape
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(32)], axis=1)
    if isinstance(shape, Frustum):
        ends = [(shape.bottom, -shape.half_height), (shape.top, shape.half_height)]
        local = np.concatenate([circle * r + (0, 0, z) for r, z in ends])
    elif isinstance(shape, Torus):
        local = np.concatenate(
            [circle * (shape.major + shape.minor), circle * shape.major + (0, 0, shape.minor)]
        )
        local = np.concatenate([local, local * (1, 1, -1)])
    elif isinstance(shape, Ellipsoid | Capsule):
        directions = np.concatenate([np.roll(circle, k, axis=1) for k in range(3)])
        if isinstance(shape, Ellipsoid):
            local = directions * np.asarray(shape.half)
        else:
            local = directions * shape.radius + np.sign(directions[:, 2:]) * (0, 0, shape.half_height)
    else:
        assert isinstance(shape, Box | Polyhedron)
        return part.corners()
    return local @ part.rotation.T + part.centre


def _dot(
    points: Float[np.ndarray, "n 3"], direction: Sequence[float] | np.ndarray
) -> Float[np.ndarray, " n"]:
    return turned(points, np.asarray(direction, np.float32)[None])[:, 0]


def _scale(vector: Vector, factor: float) -> Vector:
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)


# 3 x 5 capitals and digits, rows from the top, one octal digit a row.
_GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757",
    "7": "71122", "8": "75757", "9": "75717", "A": "25755", "B": "65656", "C": "34443", "D": "65556",
    "E": "74647", "F": "74644", "G": "34553", "H": "55755", "I": "72227", "K": "55655", "L": "44447",
    "M": "57755", "N": "57775", "O": "25552", "P": "65644", "R": "65655", "S": "34216", "T": "72222",
    "U": "55557", "V": "55552", "X": "55255", "Y": "55222", "-": "00700", " ": "00000",
}  # fmt: skip


def _bitmap(text: str) -> Bool[np.ndarray, "5 columns"]:
    columns = []
    for character in text:
        rows = [int(digit, 8) for digit in _GLYPHS[character]]
        columns.append(np.array([[bool(row & bit) for bit in (4, 2, 1)] for row in rows]))
        columns.append(np.zeros((5, 1), bool))
    return np.concatenate(columns[:-1], axis=1)
