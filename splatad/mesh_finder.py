"""Finds cameras of photos of a mesh at once, without a fit: splats are laid on its surface, outline and inner edges compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detect.cmt.reference import MeshViewer
from pose.index import build_index
from pose.locate import BeliefLimits
from pose.pyramid import SplatLevels
from prepare.camera import Camera
from prepare.mesh_render import surface_points
from recon.appearance import one_colour
from recon.gaussians import gaussians_from_points
from recon.initial_points import Volume, neighbour_spacing
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions
from recon.reference import Reference, ReferenceView
from splatad.finder import Finder
from splatad.lens import LensMode

SPLATS = 30_000
SPREAD = 0.5  # standard deviation of a splat in its plane, in distances to its neighbours: closed, and hardly larger
OPACITY = 0.98
DEPTH_PX = 256  # of the depth maps that say what of the mesh can be seen
LONGEST_PX = 800  # of photos whose cameras are sought
# Outlines of thin parts overlap less, and a defect takes its share.
BELIEF = BeliefLimits(least_inliers=0.6, least_overlap=0.6)


def finder_of_mesh(
    name: str, viewer: MeshViewer, cameras: Sequence[Camera], lens_mode: LensMode, device: torch.device
) -> Finder:
    """A finder in the network's world for the mesh of `viewer`, whose usual views are those of `cameras`.

    A mesh says nothing of the photos' lens: with "auto" it is EXIF's or found with the camera. Raises: InputError where no
    camera sees the mesh.
    """
    fine = [camera.resized(DEPTH_PX, DEPTH_PX) for camera in cameras]
    depths = [viewer.painter.depth(camera) for camera in fine]
    points = surface_points(viewer.mesh, viewer.painter, fine, depths, SPLATS)
    positions = torch.from_numpy(points.positions).float()
    white = torch.ones(3)
    gaussians = gaussians_from_points(
        positions,
        torch.from_numpy(points.colours).float(),
        SPREAD * neighbour_spacing(positions),
        opacity=OPACITY,
        normals=torch.from_numpy(points.normals).float(),
    )
    unmeasured = ViewQuality(*(float("nan"),) * 4, None)
    views = tuple(
        ReferenceView(f"view {number}", _single(camera), white, False, unmeasured)
        for number, camera in enumerate(cameras)
    )
    low, high = viewer.mesh.bounds
    reference = Reference(
        name=name,
        gaussians=one_colour(gaussians, white).to(device),
        views=views,
        volume=Volume(torch.from_numpy((low + high) / 2).float(), float((high - low).max()) / 2),
        options=RasterOptions(),
        size_px=LONGEST_PX,
        scene="",
        scale_to_mm=None,
        distortion=None,
        settings={"appearance": "shape"},
    )
    levels = SplatLevels(reference.gaussians)
    return Finder(
        reference,
        levels,
        build_index(reference, levels),
        BELIEF,
        lens_mode="free" if lens_mode == "auto" else lens_mode,
    )


def _single(camera: Camera) -> Camera:
    return camera.moved(camera.world_to_cam.float())
