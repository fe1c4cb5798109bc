"""The part in an organised point cloud: its support plane is removed and the largest cluster kept, as for MVTec 3D-AD.

n points; lengths in metres. Source: the preprocessing of CFM (CVPR 2024), which is that of BTF and M3DM, with three decisions of
ours: RANSAC is seeded; DBSCAN is computed in cells, exactly and without all pairs of neighbours (seconds instead of minutes);
noise does not vote for the largest cluster unless `noise_votes` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from prepare.errors import InputError
from prepare.organised_cloud import measured

NOISE = -1
_CERTAIN = 1e-8  # chance to have missed the best plane at which RANSAC stops, as Open3D's
_CHUNK = 50  # planes tried at once


@dataclass(frozen=True)
class CloudSettings:
    """How the part is found; the defaults are the published values."""

    border_px: int = 10  # width of the strips at the four sides that show the support
    plane_distance: float = 0.004  # m, of a point that a plane explains
    plane_points: int = 50  # a plane tried is fitted to so many
    plane_iterations: int = 1000
    removed_within: float = 0.005  # m, of the plane: these points are removed
    cluster_distance: float = 0.006  # m, DBSCAN's eps
    cluster_points: int = 30  # DBSCAN's min_points, the point itself counted
    noise_votes: bool = False
    """As published, noise counts as one cluster: where it is the largest, noise is kept and the part removed."""
    seed: int = 0


@dataclass(frozen=True)
class Plane:
    """All x with normal . x + offset = 0."""

    normal: Float[np.ndarray, "xyz=3"]  # unit
    offset: float  # m

    def distance(self, points: Float[np.ndarray, "*n xyz=3"]) -> Float[np.ndarray, "*n"]:
        """Metres, >= 0."""
        return np.abs(points @ self.normal + self.offset)


def keep_part(xyz: Float[np.ndarray, "h w xyz=3"], settings: CloudSettings) -> Float[np.ndarray, "h w xyz=3"]:
    """The cloud with (0, 0, 0) wherever it is not the part. `xyz` is not changed.

    Raises: InputError where the border shows fewer than `plane_points` points, or nothing stands on the support.
    """
    plane = fit_plane(border_points(xyz, settings.border_px), settings)
    standing = measured(xyz) & (plane.distance(xyz.astype(np.float64)) >= settings.removed_within)
    points = xyz[standing].astype(np.float64)
    if not len(points):
        raise InputError(
            "the cloud is empty once the support plane is removed; a part higher than"
            f" {1000 * settings.removed_within:g} mm is wanted"
        )
    labels = dbscan(points, settings.cluster_distance, settings.cluster_points)
    names, counts = np.unique(labels, return_counts=True)
    if not settings.noise_votes:
        names, counts = names[names != NOISE], counts[names != NOISE]
    if not len(names):
        raise InputError(
            f"no {settings.cluster_points} points within {1000 * settings.cluster_distance:g} mm of each other stand on"
            " the support; the part is too far away or not measured"
        )
    part = np.zeros_like(standing)
    part[standing] = labels == names[counts.argmax()]
    return np.where(part[..., None], xyz, np.zeros_like(xyz))


def border_points(xyz: Float[np.ndarray, "h w xyz=3"], border_px: int) -> Float[np.ndarray, "n xyz=3"]:
    """The measured points of the strips at the four sides, float64."""
    border = np.ones(xyz.shape[:2], bool)
    border[border_px:-border_px, border_px:-border_px] = False
    return xyz[border & measured(xyz)].astype(np.float64)


def fit_plane(points: Float[np.ndarray, "n xyz=3"], settings: CloudSettings) -> Plane:
    """The plane that explains most points, refitted to those: RANSAC, the same for the same points and seed.

    Of planes that explain as many, that with the least mean square distance. Stops early once a better plane is unlikely.
    Raises: InputError for fewer than `plane_points` points.
    """
    count = settings.plane_points
    if len(points) < count:
        raise InputError(
            f"the image's border shows {len(points)} points, at least {count} are wanted to find the support plane;"
            " leave more of the support in view"
        )
    rng = np.random.default_rng(settings.seed)
    middle = points.mean(axis=0)
    centred = points - middle  # small numbers: the covariances keep their digits
    best, best_key, tried = None, (-1, 0.0), 0
    while tried < settings.plane_iterations:
        size = min(_CHUNK, settings.plane_iterations - tried)
        chosen = np.stack([rng.choice(len(points), count, replace=False, shuffle=False) for _ in range(size)])
        normals, offsets = _least_squares(centred[chosen])
        away = np.abs(centred @ normals.T + offsets)
        near = away < settings.plane_distance
        inliers = near.sum(axis=0)
        errors = np.where(near, away**2, 0.0).sum(axis=0) / np.maximum(inliers, 1)
        k = int(np.lexsort((errors, -inliers))[0])
        if (int(inliers[k]), -float(errors[k])) > best_key:
            best, best_key = Plane(normals[k], float(offsets[k])), (int(inliers[k]), -float(errors[k]))
        tried += size
        all_near = (best_key[0] / len(points)) ** count
        if (1.0 - all_near) ** tried < _CERTAIN:
            break
    assert best is not None
    near_best = best.distance(centred) < settings.plane_distance
    if near_best.sum() >= 3:
        normals, offsets = _least_squares(centred[near_best][None])
        best = Plane(normals[0], float(offsets[0]))
    return Plane(best.normal, best.offset - float(best.normal @ middle))


def _least_squares(
    points: Float[np.ndarray, "planes n xyz=3"],
) -> tuple[Float[np.ndarray, "planes xyz=3"], Float[np.ndarray, " planes"]]:
    """Normals and offsets of the planes nearest to each set of points."""
    centres = points.mean(axis=1)
    away = points - centres[:, None]
    normals = np.linalg.eigh(np.einsum("pni,pnj->pij", away, away))[1][:, :, 0]
    return normals, -np.einsum("pi,pi->p", normals, centres)


def dbscan(points: Float[np.ndarray, "n xyz=3"], distance: float, least: int) -> Int[np.ndarray, " n"]:
    """DBSCAN's labels, from 0 in the order of each cluster's first core point; -1 for noise.

    A core point has at least `least` points within `distance`, itself counted. Points of one cell of side distance / sqrt(3) are
    all within reach: a cell of `least` points is core throughout, the core points of a cell are one cluster, and clusters are
    components of cells whose nearest core points are within `distance`. Border points go to the first cluster within reach,
    as scikit-learn's do.
    Source: Gunawan, A faster algorithm for DBSCAN (2013), in three dimensions.
    """
    if not len(points):
        return np.zeros(0, np.int64)
    tree = cKDTree(points)
    side = distance / np.sqrt(3.0) * (1 - 1e-9)
    place = np.floor((points - points.min(axis=0)) / side).astype(np.int64)
    corners, cell, in_cell = np.unique(place, axis=0, return_inverse=True, return_counts=True)
    cell = cell.reshape(-1)
    core = in_cell[cell] >= least
    unsure = np.flatnonzero(~core)
    if len(unsure) and len(points) >= least:
        away, _ = tree.query(points[unsure], k=[least])
        core[unsure] = np.asarray(away)[:, 0] <= distance
    labels = np.full(len(points), NOISE, np.int64)
    if not core.any():
        return labels
    at = np.flatnonzero(core)
    labels[at] = _core_clusters(points[at], cell[at], corners, distance, side)
    rest = np.flatnonzero(~core)
    if len(rest):
        reached = cKDTree(points[at]).query_ball_point(points[rest], distance)
        for index, near in zip(rest, reached, strict=True):
            if near:
                labels[index] = labels[at[near]].min()
    return labels


def _core_clusters(
    points: Float[np.ndarray, "n xyz=3"],
    cell: Int[np.ndarray, " n"],  # of each point
    corners: Int[np.ndarray, "cells xyz=3"],  # of each cell, in sides
    distance: float,
    side: float,
) -> Int[np.ndarray, " n"]:
    """The cluster of each core point, numbered in the order of their first points."""
    order = np.argsort(cell, kind="stable")
    names, starts = np.unique(cell[order], return_index=True)
    members = np.split(order, starts[1:])
    corner = corners[names]
    # Cells at most two apart along each axis; nearer ones first, so that most of the rest are joined already.
    pairs = cKDTree(corner).query_pairs(2 * np.sqrt(3.0) + 1e-6, output_type="ndarray")
    apart = np.abs(corner[pairs[:, 0]] - corner[pairs[:, 1]])
    within = side * np.linalg.norm(np.maximum(apart - 1, 0), axis=1) <= distance
    pairs = pairs[within][np.argsort(np.linalg.norm(apart[within], axis=1), kind="stable")]
    parent = np.arange(len(names))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    trees: dict[int, cKDTree] = {}
    for a, b in pairs.tolist():
        first, second = root(a), root(b)
        if first == second:
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        if a not in trees:
            trees[a] = cKDTree(points[members[a]])
        if np.min(trees[a].query(points[members[b]])[0]) <= distance:
            parent[max(first, second)] = min(first, second)
    found = np.empty(len(points), np.int64)
    for index, chosen in enumerate(members):
        found[chosen] = root(index)
    _, first_of, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first_of), np.int64)
    rank[np.argsort(first_of)] = np.arange(len(first_of))
    return rank[inverse]
