"""Points to start splats from, for a scene whose cameras are known: SIFT matches triangulated with the cameras held fixed.

By pycolmap (the extra `photos`), on the CPU. Source: Schoenberger and Frahm 2016 (COLMAP's point_triangulator).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prepare.atomic_write import write_json
from prepare.camera import Camera
from prepare.errors import InputError, MissingPartError
from prepare.image import write_mask
from prepare.points import PointCloud, write_points
from prepare.scene import Scene, load_scene, load_view_image, read_json_object

LONGEST_PX = 1000
NEIGHBOURS = 12  # photos that each one is matched with: those from the nearest sides
FEATURES = 4096
_FILE = "points.ply"


@dataclass(frozen=True)
class Triangulated:
    """Points of a scene and how well they agree with its cameras."""

    cloud: PointCloud  # world units
    median_error_px: float  # mean reprojection error of a point, median over the points; at most LONGEST_PX wide; NaN: no point
    median_track: float  # photos that see a point, median over the points; NaN: no point


def triangulate_scene(
    folder: Path, on_photo: Callable[[int, int], None] | None = None
) -> Triangulated | None:
    """Triangulated points, written into the prepared scene in `folder` as its initial points; None where it has some already.

    Raises: MissingPartError without pycolmap; InputError as `triangulate`, or for a scene that cannot be read.
    """
    scene = load_scene(folder)
    if scene.points_path is not None:
        return None
    found = triangulate(scene, on_photo)
    write_points(folder / _FILE, found.cloud)
    write_json(
        folder / "transforms.json", {**read_json_object(folder / "transforms.json"), "ply_file_path": _FILE}
    )
    return found


def triangulate(scene: Scene, on_photo: Callable[[int, int], None] | None = None) -> Triangulated:
    """The scene's points, of the part only where its photos tell it apart; `on_photo` is told (done, all) as photos are read.

    Photos are undistorted first, so any lens serves. The same photos give the same points. Some seconds a photo.
    Raises: MissingPartError without pycolmap; InputError for photos that cannot be read or that have no point in common.
    """
    pycolmap = find_pycolmap()
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 3  # it tells of every photo and pair
    try:
        with tempfile.TemporaryDirectory(prefix="splatad-triangulate-") as temporary:
            return _triangulate(pycolmap, scene, Path(temporary), on_photo)
    finally:
        pycolmap.logging.minloglevel = level


def _triangulate(
    pycolmap: Any, scene: Scene, work: Path, on_photo: Callable[[int, int], None] | None
) -> Triangulated:
    photos, masks, database = work / "photos", work / "masks", work / "database.db"
    photos.mkdir()
    cameras = []
    for index, view in enumerate(scene.views):
        image = load_view_image(view, longest_px=LONGEST_PX)
        assert image.camera is not None
        cameras.append(image.camera)
        pixels = (image.rgb * 255 + 0.5).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(photos / _name(index), compress_level=1)
        write_mask(masks / f"{_name(index)}.png", (image.alpha > 0.5) & image.valid)
        if on_photo is not None:
            on_photo(index + 1, len(scene.views))

    reader = pycolmap.ImageReaderOptions(mask_path=str(masks), camera_model="PINHOLE")
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.use_gpu = False
    extraction.sift.max_num_features = FEATURES
    names = [_name(index) for index in range(len(cameras))]
    pycolmap.extract_features(
        database, photos, names, pycolmap.CameraMode.PER_IMAGE, reader, extraction, device=pycolmap.Device.cpu
    )
    reconstruction = _known_cameras(pycolmap, database, cameras)
    pairs = "".join(f"{_name(i)} {_name(j)}\n" for i, j in neighbour_pairs(cameras))
    (work / "pairs.txt").write_text(pairs)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    pycolmap.match_image_pairs(
        database,
        pairing_options=pycolmap.ImportedPairingOptions(match_list_path=str(work / "pairs.txt")),
        verification_options=verification,
        device=pycolmap.Device.cpu,
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = options.triangulation.random_seed = options.mapper.random_seed = 0
    (work / "model").mkdir()
    solved = pycolmap.triangulate_points(reconstruction, database, photos, work / "model", options=options)
    points = [solved.points3D[key] for key in sorted(solved.points3D)]
    if not points:
        raise InputError(
            f"{scene.folder}: no point could be triangulated from its {len(cameras)} photos and their cameras; the cameras"
            " may not belong to the photos, or the part has no texture: go on without --triangulate"
        )
    return Triangulated(
        PointCloud(
            torch.from_numpy(np.stack([point.xyz for point in points]).astype(np.float32)),
            torch.from_numpy(np.stack([point.color for point in points]).astype(np.float32) / 255),
        ),
        float(np.median([point.error for point in points])),
        float(np.median([point.track.length() for point in points])),
    )


def neighbour_pairs(cameras: Sequence[Camera], most: int = NEIGHBOURS) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of each camera with the `most` others most like it: near, and looking the same way."""
    centres = torch.stack([camera.centre for camera in cameras]).double()
    axes = torch.stack([camera.forward for camera in cameras]).double()
    apart = torch.cdist(centres, centres)
    # Half the distance between opposite sides of an orbit is its radius: then both terms run from 0 to 2.
    apart = 2 * apart / apart.max().clamp_min(1e-12) + (1 - axes @ axes.T)
    apart.fill_diagonal_(float("inf"))
    nearest = apart.argsort(dim=1, stable=True)[:, : min(most, len(cameras) - 1)]
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row})


def _known_cameras(pycolmap: Any, database: Path, cameras: Sequence[Camera]) -> Any:
    """A reconstruction without points, of `cameras` under the database's numbers; the database learns their lenses."""
    reconstruction = pycolmap.Reconstruction()
    stored = pycolmap.Database.open(database)
    try:
        for index, camera in enumerate(cameras):
            entry = stored.read_image_with_name(_name(index))
            if entry is None:
                continue  # nothing was found in it
            lens = pycolmap.Camera(
                camera_id=entry.camera_id,
                model="PINHOLE",
                width=camera.width,
                height=camera.height,
                params=[camera.fl_x, camera.fl_y, camera.cx, camera.cy],
                has_prior_focal_length=True,
            )
            stored.update_camera(lens)
            reconstruction.add_camera_with_trivial_rig(lens)
            image = pycolmap.Image(name=_name(index), camera_id=entry.camera_id, image_id=entry.image_id)
            pose = pycolmap.Rigid3d(camera.world_to_cam[:3].double().numpy())
            reconstruction.add_image_with_trivial_frame(image, pose)
    finally:
        stored.close()
    return reconstruction


def _name(index: int) -> str:
    return f"view_{index:06d}.png"


def find_pycolmap() -> Any:
    """The module pycolmap. Raises: MissingPartError where it is not installed, or too old."""
    try:
        pycolmap = importlib.import_module("pycolmap")
    except ImportError:
        pycolmap = None
    if not hasattr(pycolmap, "FeatureExtractionOptions"):
        raise MissingPartError("--triangulate: needs pycolmap 4 or newer; pip install 'splatad[photos]'")
    return pycolmap
