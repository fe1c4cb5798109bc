"""Local features of a reference with their places in space: what a photo's keypoints are matched with.

The reference is rendered from its own cameras and from directions between them; what an extractor finds on a render is
lifted to 3D by the rendered depth. Made once, stored beside the index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pose.index import common_up, sphere_directions
from pose.keypoints import KeypointExtractor
from prepare.atomic_write import write_with
from prepare.camera import Camera, fit_within, look_at
from prepare.errors import InputError
from recon.rasterize import rasterize
from recon.reference import Reference

LANDMARK_PX = 400  # longest side of the renders; photos are matched best at about this size
LANDMARK_DIRECTIONS = 60  # beside the reference's own views: neighbours about 26 degrees apart
MOST_LANDMARKS = 30_000
MOST_IN_VIEW = 300
STEEPEST = 4.0  # slope against the image plane up to which depth counts as a surface's: 76 degrees
LEAST_ALPHA = 0.9  # in the pixel and its neighbours
_FORMAT = "splatad-landmarks-1"


@dataclass(frozen=True)
class Landmarks:
    """Local features of a reference with their places in space."""

    points: Float[Tensor, "n xyz=3"]  # world
    descriptors: Float[Tensor, "n d"]  # unit vectors, half precision
    view: Int[Tensor, " n"]  # render that each was found in, ascending; a row of world_to_cam
    extractor: str  # name of what found them: a photo's keypoints must come from the same
    world_to_cam: Float[Tensor, "views 4 4"]  # of the renders
    lens: Camera  # of the renders; its pose means nothing

    def __len__(self) -> int:
        return len(self.points)

    @property
    def part_size(self) -> float:
        """Diameter of the sphere about their centroid that holds nine of ten landmarks, world units."""
        if not len(self):
            return 0.0
        return 2.0 * float((self.points - self.points.mean(dim=0)).norm(dim=1).quantile(0.9))


def build_landmarks(
    reference: Reference,
    extractor: KeypointExtractor,
    *,
    on_view: Callable[[int, int], None] | None = None,
) -> Landmarks:
    """Landmarks of `reference`: from its photos' cameras and LANDMARK_DIRECTIONS more, spread evenly over the sphere.

    Every view gives its strongest keypoints, at most MOST_IN_VIEW and an equal share of MOST_LANDMARKS. `on_view` is
    told (views done, views in all).
    Raises: InputError where no view shows a single feature on the part.
    """
    width, height = fit_within(reference.camera.width, reference.camera.height, LANDMARK_PX)
    lens = reference.camera.resized(width, height)
    centre, up = reference.volume.centre, common_up(reference)
    poses = [view.camera.world_to_cam for view in reference.views]
    for direction in sphere_directions(LANDMARK_DIRECTIONS):
        poses.append(look_at(centre + reference.distance * direction, centre, up))
    most = max(1, min(MOST_IN_VIEW, MOST_LANDMARKS // len(poses)))
    options = replace(reference.options, depth=True)
    background = reference.background
    points, descriptors, views = [], [], []
    for view, pose in enumerate(poses):
        camera = lens.moved(pose)
        with torch.no_grad():
            render = rasterize(
                reference.gaussians, camera, background.to(reference.gaussians.device), options=options
            )
        assert render.depth is not None
        alpha = render.alpha.cpu()
        depth = render.depth.cpu() / alpha.clamp_min(1e-6)
        found = extractor.extract(
            render.rgb.clamp(0, 1).cpu(), smooth_surface(alpha, depth, max(lens.fl_x, lens.fl_y))
        )
        found = found.select(torch.arange(min(len(found), most)))
        points.append(lifted(found.positions, depth, camera))
        descriptors.append(found.descriptors.half())
        views.append(torch.full((len(found),), view, dtype=torch.int32))
        if on_view is not None:
            on_view(view + 1, len(poses))
    if not any(len(rows) for rows in points):
        raise InputError(
            f"reference {reference.name}: {extractor.name} finds no feature on it; a part without texture is "
            "located by its silhouette, without landmarks"
        )
    return Landmarks(
        torch.cat(points), torch.cat(descriptors), torch.cat(views), extractor.name, torch.stack(poses), lens
    )


def smooth_surface(
    alpha: Float[Tensor, "height width"], depth: Float[Tensor, "height width"], focal_px: float
) -> Bool[Tensor, "height width"]:
    """Pixels whose depth is that of one surface: they and their neighbours are covered, and no depth edge is near.

    `depth` is the expected depth z; between two surfaces it lies on neither.
    """
    planes = torch.stack([alpha, -depth, depth])[None]
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    highest = F.max_pool2d(padded, 3, stride=1)[0]
    lowest_alpha = -F.max_pool2d(-padded[:, :1], 3, stride=1)[0, 0]
    nearest, farthest = -highest[1], highest[2]
    # Two pixels apart on a plane of that slope.
    return (lowest_alpha > LEAST_ALPHA) & (farthest - nearest <= STEEPEST * 2.0 * depth / focal_px)


def lifted(
    positions: Float[Tensor, "n uv=2"], depth: Float[Tensor, "height width"], camera: Camera
) -> Float[Tensor, "n xyz=3"]:
    """World points at `positions` (px) of a render with depth z; between pixels the inverse depth is interpolated.

    On a plane that is exact: there the inverse depth is linear in the image.
    """
    height, width = depth.shape
    grid = 2.0 * positions / positions.new_tensor([width, height]) - 1.0
    inverse = F.grid_sample(
        (1.0 / depth.clamp_min(1e-6))[None, None],
        grid[None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0, 0, 0]
    x = (positions[:, 0] - camera.cx) / camera.fl_x
    y = (positions[:, 1] - camera.cy) / camera.fl_y
    in_cam = torch.stack([x, y, torch.ones_like(x)], dim=1) / inverse[:, None]
    return (in_cam - camera.world_to_cam[:3, 3]) @ camera.world_to_cam[:3, :3]


def save_landmarks(path: Path, landmarks: Landmarks) -> None:
    """Write `landmarks` to a .safetensors file, atomically."""
    lens = landmarks.lens
    numbers = [lens.fl_x, lens.fl_y, lens.cx, lens.cy, lens.width, lens.height]
    tensors = {
        "points": landmarks.points.contiguous(),
        "descriptors": landmarks.descriptors.half().contiguous(),
        "view": landmarks.view.to(torch.int32).contiguous(),
        "world_to_cam": landmarks.world_to_cam.contiguous(),
        "lens": torch.tensor(numbers, dtype=torch.float64),
    }
    metadata = {"format": _FORMAT, "extractor": landmarks.extractor}
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_landmarks(path: Path) -> Landmarks:
    """The landmarks in `path`.

    Raises: InputError where it is missing, damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}, not {_FORMAT!r}")
        points, descriptors, view, world_to_cam = (
            tensors[name] for name in ("points", "descriptors", "view", "world_to_cam")
        )
        _check(points, descriptors, view, world_to_cam)
        fl_x, fl_y, cx, cy, width, height = tensors["lens"].tolist()
        lens = Camera(torch.eye(4), fl_x, fl_y, cx, cy, int(width), int(height))
        return Landmarks(points, descriptors, view, metadata["extractor"], world_to_cam, lens)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the landmarks cannot be read ({error}); run `splatad fit` again"
        ) from error


def _check(points: Tensor, descriptors: Tensor, view: Tensor, world_to_cam: Tensor) -> None:
    """Raises: ValueError where the tables do not belong together."""
    count, views = len(points), len(world_to_cam)
    fits = (
        points.shape == (count, 3)
        and descriptors.ndim == 2
        and len(descriptors) == count
        and view.shape == (count,)
        and world_to_cam.shape == (views, 4, 4)
    )
    if not fits:
        raise ValueError("its tables differ in length")
    if count and not (int(view.min()) >= 0 and int(view.max()) < views):
        raise ValueError("it names views that it does not hold")
    if not (bool(points.isfinite().all()) and bool(descriptors.isfinite().all())):
        raise ValueError("it holds numbers that are not finite")
