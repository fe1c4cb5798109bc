"""Rough cameras of a photo from its local features: matched with a reference's landmarks, then PnP in RANSAC."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pose.keypoints import Keypoints, kornia_class, load_network, one_thread
from pose.landmarks import Landmarks
from pose.se3 import turn_deg
from prepare.camera import Camera
from prepare.errors import MissingPartError, UsageError

RATIO = 0.9  # distance to the nearest landmark against the nearest one that lies elsewhere on the part
ELSEWHERE = 0.02  # of the part's size: landmarks nearer than this are the same place
NEIGHBOURS = 32  # nearest landmarks looked at for one that lies elsewhere
SAME_PLACE_PX = 3.0  # keypoints nearer than this are the same place of the photo
COVISIBLE_DEG = 40.0  # renders whose viewing directions differ by less see the same side
REPROJECTION = 0.01  # of the photo's longer side: largest distance of an inlier
LEAST_INLIERS = 12
LEARNED_VIEWS = 3  # renders of a side that a learned matcher compares the photo with
APART_DEG = 5.0  # cameras nearer than this in turn ...
APART_SHARE = 0.05  # ... and in place, as a share of the distance, are the same
_BLOCK = 512  # keypoints compared at a time


@dataclass(frozen=True)
class Matches:
    """Which keypoint of a photo shows which landmark."""

    photo: Int[Tensor, " m"]  # row of the photo's keypoints, ascending
    landmark: Int[Tensor, " m"]  # row of the landmarks
    similarity: Float[Tensor, " m"]  # cosine of the two descriptors

    def __len__(self) -> int:
        return len(self.photo)


@dataclass(frozen=True)
class PnpCamera:
    """A rough camera, and what speaks for it."""

    camera: Camera
    inliers: int  # places of the photo that agree with it
    matches: int  # places of the photo that were matched with that side of the part


def match(
    photo: Keypoints,
    landmarks: Landmarks,
    *,
    rows: Int[Tensor, " k"] | None = None,
    ratio: float = RATIO,
) -> Matches:
    """Mutual nearest neighbours by descriptor that pass the ratio test against the nearest landmark elsewhere.

    A place of the part is a landmark in every render that sees it. So the second distance of the ratio test is that to
    landmarks at least ELSEWHERE of the part's size away from the nearest one; and a match is mutual where the landmark's
    own nearest keypoint is at the same place of the photo. `rows` limits the landmarks that take part; a `ratio` of 1
    leaves the ratio test out.
    Source: Lowe 2004, 7.1.
    Raises: UsageError where photo and landmarks are described by different extractors, as far as lengths tell.
    """
    if rows is None:
        rows = torch.arange(len(landmarks))
    if not len(photo) or not len(rows):
        nothing = torch.zeros(0, dtype=torch.long)
        return Matches(nothing, nothing, torch.zeros(0))
    if photo.descriptors.shape[1] != landmarks.descriptors.shape[1]:
        raise UsageError(
            f"keypoints of {photo.descriptors.shape[1]} numbers cannot be matched with landmarks of "
            f"{landmarks.descriptors.shape[1]}; extract them with {landmarks.extractor}"
        )
    with one_thread():
        return _matched(photo, landmarks, rows, ratio)


def _matched(photo: Keypoints, landmarks: Landmarks, rows: Int[Tensor, " k"], ratio: float) -> Matches:
    points = landmarks.points[rows]
    described = landmarks.descriptors[rows].float()
    elsewhere = ELSEWHERE * landmarks.part_size
    nearest, similarity, distinct = [], [], []
    for start in range(0, len(photo), _BLOCK):
        table = photo.descriptors[start : start + _BLOCK] @ described.T
        values, columns = table.topk(min(NEIGHBOURS, len(rows)), dim=1)
        apart = (points[columns] - points[columns[:, :1]]).norm(dim=2) > elsewhere
        # Where all that were looked at are one place, what lies elsewhere is no nearer than the last of them.
        unseen = values[:, -1] if columns.shape[1] < len(rows) else torch.tensor(-1.0)
        second = torch.where(apart.any(dim=1), torch.where(apart, values, -1.0).amax(dim=1), unseen)
        nearest.append(columns[:, 0])
        similarity.append(values[:, 0])
        distinct.append(_distance(values[:, 0]) <= ratio * _distance(second))
    column = torch.cat(nearest)
    back = photo.positions[(described[column] @ photo.descriptors.T).argmax(dim=1)]
    mutual = (back - photo.positions).norm(dim=1) <= SAME_PLACE_PX
    kept = torch.nonzero(mutual & torch.cat(distinct))[:, 0]
    return Matches(kept, rows[column[kept]], torch.cat(similarity)[kept])


class LightGlue:
    """A learned matcher, by kornia: compares the photo with one render at a time, places and descriptors together.

    Source: Lindenberger et al. 2023.
    """

    def __init__(self, extractor: str = "disk", least_score: float = 0.1) -> None:
        """Raises: UsageError where it was not trained for `extractor`, MissingPartError without its weights."""
        lengths = {"disk": 128}
        if extractor not in lengths:
            raise UsageError(f"LightGlue: no weights are registered for {extractor}; use it with disk")
        self.extractor = extractor
        self._network = kornia_class("LightGlue", "lightglue")(
            features=None, input_dim=lengths[extractor], filter_threshold=least_score
        )
        load_network(self._network, f"{extractor}_lightglue", self._renamed)

    def _renamed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published names in kornia's; the thresholds are computed, never stored."""
        found = {"confidence_thresholds": self._network.confidence_thresholds}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if first in ("self_attn", "cross_attn"):
                layer, _, rest = rest.partition(".")
                name = f"transformers.{layer}.{first}.{rest}"
            found[name] = value
        return found

    def match(self, photo: Keypoints, camera: Camera, landmarks: Landmarks, view: int) -> Matches:
        """Matches of the photo with the landmarks of one render; `camera` gives the photo's size alone.

        Raises: UsageError where the landmarks are of another extractor.
        """
        if landmarks.extractor != self.extractor:
            raise UsageError(
                f"LightGlue for {self.extractor}: the landmarks are of {landmarks.extractor}; build them with "
                f"{self.extractor}"
            )
        rows = torch.nonzero(landmarks.view == view)[:, 0]
        render = landmarks.lens.moved(landmarks.world_to_cam[view])
        sides = (
            (photo.positions, photo.descriptors, camera),
            (render.project(landmarks.points[rows])[:, :2], landmarks.descriptors[rows].float(), render),
        )
        images = {}
        for i, (at, descriptors, lens) in enumerate(sides):
            size = torch.tensor([float(lens.width), float(lens.height)])
            # Its places count from the first pixel's centre.
            places = torch.minimum((at - 0.5).clamp_min(0.0), size)
            images[f"image{i}"] = {
                "keypoints": places[None],
                "descriptors": descriptors[None],
                "image_size": size[None],
            }
        with torch.no_grad(), one_thread():
            out = self._network(images)
        pairs, score = out["matches"][0].long(), out["scores"][0].float()
        return Matches(pairs[:, 0], rows[pairs[:, 1]], score)


def pnp_cameras(
    photo: Keypoints,
    landmarks: Landmarks,
    matches: Matches,
    camera: Camera,
    *,
    most: int = 4,
    seed: int = 0,
    learned: LightGlue | None = None,
) -> tuple[PnpCamera, ...]:
    """At most `most` distinct cameras of the photo, those with the most inliers first; none where nothing agrees.

    The sides of the part with the most matches are matched again on their own, where other sides' look-alikes do not
    fail the ratio test, and each gives one camera by PnP in RANSAC (LO-RANSAC, then non-linear refinement).
    With `learned` that matcher does it, on the LEARNED_VIEWS renders of the side that have the most matches.
    `matches` only says which sides to try; made with a ratio of 1 they also name the sides of a part that repeats
    itself. `camera` is the photo's lens at the size of its keypoints; its pose is not used.
    A camera needs LEAST_INLIERS: with m matches on a part that covers A px, a wrong camera agrees by chance with
    m pi r^2 / A of them for a reach of r px (0.7 for m = 200, r = 4, A = 15000), beside the three it was made from;
    that the best of 10,000 draws reaches 9 more by chance has a probability below 0.001.
    Raises: MissingPartError where neither poselib nor pycolmap is installed.
    """
    solve = pnp_solver()
    found: list[PnpCamera] = []
    for side in _sides(landmarks, matches, most):
        if learned is None:
            on_side = match(photo, landmarks, rows=torch.nonzero(side[landmarks.view.long()])[:, 0])
        else:
            on_side = _learned_matches(learned, photo, camera, landmarks, matches, side)
        if _places(photo, on_side.photo) < LEAST_INLIERS:
            continue
        at = photo.positions[on_side.photo].double()
        points = landmarks.points[on_side.landmark].double()
        solved = solve(at, points, camera, seed)
        if solved is None:
            continue
        world_to_cam, inlier = solved
        inliers = _places(photo, on_side.photo[inlier])
        if inliers >= LEAST_INLIERS:
            moved = camera.moved(world_to_cam.to(camera.world_to_cam))
            found.append(PnpCamera(moved, inliers, _places(photo, on_side.photo)))
    found.sort(key=lambda candidate: -candidate.inliers)
    centre = landmarks.points.mean(dim=0)
    chosen: list[PnpCamera] = []
    for candidate in found:
        if not any(_same(candidate.camera, other.camera, centre) for other in chosen):
            chosen.append(candidate)
    return tuple(chosen)


def _learned_matches(
    learned: LightGlue,
    photo: Keypoints,
    camera: Camera,
    landmarks: Landmarks,
    matches: Matches,
    side: Bool[Tensor, " views"],
) -> Matches:
    """The best match of each keypoint over the renders of a side that have the most matches."""
    votes = torch.bincount(landmarks.view[matches.landmark].long(), minlength=len(side)) * side
    views = votes.argsort(descending=True, stable=True)[:LEARNED_VIEWS]
    each = [learned.match(photo, camera, landmarks, int(view)) for view in views if votes[view] > 0]
    rows, landmark, score = (
        torch.cat([getattr(m, field) for m in each]) for field in ("photo", "landmark", "similarity")
    )
    order = score.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows = rows[order]
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    return Matches(rows[first], landmark[order][first], score[order][first])


def _sides(landmarks: Landmarks, matches: Matches, most: int) -> list[Bool[Tensor, " views"]]:
    """Groups of renders that see the same side of the part, those with the most matches first."""
    axes = landmarks.world_to_cam[:, 2, :3]
    near = axes @ axes.T > math.cos(math.radians(COVISIBLE_DEG))
    votes = torch.bincount(landmarks.view[matches.landmark].long(), minlength=len(axes))
    total = (near * votes).sum(dim=1)
    sides: list[Tensor] = []
    open_views = torch.ones(len(axes), dtype=torch.bool)
    while len(sides) < most and bool((total[open_views] > 0).any()):
        centre = int(torch.where(open_views, total, -1).argmax())
        sides.append(near[centre])
        open_views &= ~near[centre]
    return sides


Solver = Callable[
    [Float[Tensor, "m uv=2"], Float[Tensor, "m xyz=3"], Camera, int],
    tuple[Float[Tensor, "4 4"], Bool[Tensor, " m"]] | None,
]


def pnp_solver() -> Solver:
    """poselib's PnP where it is installed, else COLMAP's."""
    for module, solve in (("poselib", _solve_poselib), ("pycolmap", _solve_colmap)):
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return solve
    raise MissingPartError(
        "cameras from local features: need poselib or pycolmap; pip install 'splatad[photos]'"
    )


def _solve_poselib(
    at: Float[Tensor, "m uv=2"], points: Float[Tensor, "m xyz=3"], camera: Camera, seed: int
) -> tuple[Float[Tensor, "4 4"], Bool[Tensor, " m"]] | None:
    """World-to-camera matrix and inliers. Source: Persson and Nordberg 2018 (P3P); Larsson, PoseLib."""
    poselib = importlib.import_module("poselib")
    lens = {
        "model": "PINHOLE",
        "width": camera.width,
        "height": camera.height,
        "params": [camera.fl_x, camera.fl_y, camera.cx, camera.cy],
    }
    reach = REPROJECTION * max(camera.width, camera.height)
    ransac = {"max_reproj_error": reach, "seed": seed, "max_iterations": 10_000, "min_iterations": 1_000}
    pose, report = poselib.estimate_absolute_pose(at.numpy(), points.numpy(), lens, ransac, {})
    inlier = torch.tensor(report["inliers"], dtype=torch.bool)
    if not bool(inlier.any()):
        return None
    return _rigid(pose.Rt), inlier


def _solve_colmap(
    at: Float[Tensor, "m uv=2"], points: Float[Tensor, "m xyz=3"], camera: Camera, seed: int
) -> tuple[Float[Tensor, "4 4"], Bool[Tensor, " m"]] | None:
    """World-to-camera matrix and inliers. Source: Schoenberger and Frahm 2016 (COLMAP)."""
    pycolmap = importlib.import_module("pycolmap")
    lens = pycolmap.Camera(
        model="PINHOLE",
        width=camera.width,
        height=camera.height,
        params=[camera.fl_x, camera.fl_y, camera.cx, camera.cy],
    )
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = REPROJECTION * max(camera.width, camera.height)
    options.ransac.min_inlier_ratio = 0.01
    options.ransac.min_num_trials, options.ransac.max_num_trials = 1_000, 10_000
    options.ransac.random_seed = seed
    result: Any = pycolmap.estimate_and_refine_absolute_pose(at.numpy(), points.numpy(), lens, options)
    if result is None:
        return None
    return _rigid(result["cam_from_world"].matrix()), torch.tensor(result["inlier_mask"], dtype=torch.bool)


def _rigid(matrix: Any) -> Float[Tensor, "4 4"]:
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3] = torch.as_tensor(matrix, dtype=torch.float64)
    return whole


def _distance(similarity: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Between unit vectors of that cosine."""
    return (2.0 - 2.0 * similarity).clamp_min(0.0).sqrt()


def _places(photo: Keypoints, rows: Int[Tensor, " m"]) -> int:
    """How many places of the photo the keypoints `rows` stand for: SIFT describes some several times."""
    return len(torch.unique((photo.positions[rows] / SAME_PLACE_PX).round(), dim=0))


def _same(a: Camera, b: Camera, centre: Float[Tensor, "xyz=3"]) -> bool:
    distance = float((b.centre - centre).norm())
    turn = turn_deg(a.world_to_cam, b.world_to_cam)
    return turn < APART_DEG and float((a.centre - b.centre).norm()) < APART_SHARE * distance
