"""A generated chair as triangles, for programs that want a mesh: each of its convex solids by its hull."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, HalfspaceIntersection

from prepare.generate.chair_parts import Chair
from prepare.generate.shapes import Box, Capsule, Ellipsoid, Frustum, Polyhedron, Shape

SIDES = 32  # of round sections


def chair_triangles(
    chair: Chair,
) -> tuple[Float[np.ndarray, "n xyz=3"], Int[np.ndarray, "m corner=3"]]:
    """Vertices (world units) and faces, counter-clockwise from outside; solids go through one another, as in the chair.

    Raises: ValueError for a solid that a cutter took from, or that is not convex.
    """
    vertices, faces, count = [], [], 0
    for solid in chair.solids():
        if solid.cut is not None:
            raise ValueError("a cut solid is not convex")
        points = _corners(solid.shape)
        hull = ConvexHull(points)
        used, triangles = np.unique(hull.simplices, return_inverse=True)
        triangles = triangles.reshape(-1, 3)
        own = points[used]
        across = np.cross(
            own[triangles[:, 1]] - own[triangles[:, 0]], own[triangles[:, 2]] - own[triangles[:, 0]]
        )
        inward = np.einsum("ij,ij->i", across, hull.equations[:, :3]) < 0
        triangles[inward] = triangles[inward][:, ::-1]
        vertices.append(own @ solid.rotation.T + solid.centre)
        faces.append(triangles + count)
        count += len(own)
    return np.concatenate(vertices), np.concatenate(faces)


def obj_text(vertices: Float[np.ndarray, "n xyz=3"], faces: Int[np.ndarray, "m corner=3"]) -> str:
    """The triangles as a Wavefront .obj."""
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def _corners(shape: Shape) -> Float[np.ndarray, "n xyz=3"]:
    """Local points whose hull is the shape; round ones with SIDES sides, of the same mean radius."""
    if isinstance(shape, Box):
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        return signs * np.asarray(shape.half)
    if isinstance(shape, Polyhedron):
        planes = np.concatenate([shape.normals, -np.asarray(shape.offsets)[:, None]], axis=1).astype(
            np.float64
        )
        # Faces that a bevel would round off may meet in one corner: "QJ" lets them.
        return HalfspaceIntersection(planes, np.zeros(3), qhull_options="QJ").intersections
    if isinstance(shape, Frustum):
        rings = [(shape.bottom, -shape.half_height), (shape.top, shape.half_height)]
        return np.concatenate([_ring(max(radius, 1e-6), z) for radius, z in rings])
    if isinstance(shape, Capsule):
        tilts = np.linspace(0.0, 0.5 * math.pi, SIDES // 4 + 1)
        half = [
            _ring(max(shape.radius * math.cos(tilt), 1e-6), shape.half_height + shape.radius * math.sin(tilt))
            for tilt in tilts
        ]
        upper = np.concatenate(half)
        return np.concatenate([upper, upper * [1.0, 1.0, -1.0]])
    if isinstance(shape, Ellipsoid):
        tilts = np.linspace(-0.5 * math.pi, 0.5 * math.pi, SIDES // 2 + 1)
        ball = np.concatenate([_ring(max(math.cos(tilt), 1e-6), math.sin(tilt)) for tilt in tilts])
        return ball * np.asarray(shape.half)
    raise ValueError(f"{type(shape).__name__}: not convex")


def _ring(radius: float, z: float) -> Float[np.ndarray, "sides xyz=3"]:
    """A regular polygon in the plane at z whose area is the circle's."""
    step = 2 * math.pi / SIDES
    angle = step * np.arange(SIDES)
    radius *= math.sqrt(step / math.sin(step))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(SIDES, z)], axis=1)
