"""Landmarks lie on the part's surface, and their file is whole or refused."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import pose.landmarks as landmarks_module
from pose.keypoints import Keypoints
from pose.landmarks import (
    Landmarks,
    build_landmarks,
    lifted,
    load_landmarks,
    save_landmarks,
    smooth_surface,
)
from prepare.camera import Camera, look_at
from prepare.errors import InputError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class GridExtractor:
    """A keypoint every third pixel of the mask, those nearer the image's top first; described by the colour there."""

    name = "grid"

    def extract(self, rgb, mask=None):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        kept = (rows % 3 == 1) & (columns % 3 == 1)
        rows, columns = rows[kept], columns[kept]
        described = torch.nn.functional.normalize(rgb[rows, columns] + 0.01, dim=1)
        places = torch.stack([columns, rows], dim=1) + 0.5
        return Keypoints(places, described, torch.ones(len(places)))


class BlindExtractor:
    """Finds nothing."""

    name = "blind"

    def extract(self, rgb, mask=None):
        return Keypoints(torch.zeros(0, 2), torch.zeros(0, 8), torch.zeros(0))


@pytest.fixture
def few_views(toy, monkeypatch):
    """The toy's reference with six of its views, and four directions beside them."""
    monkeypatch.setattr(landmarks_module, "LANDMARK_DIRECTIONS", 4)
    return replace(toy.reference, views=toy.reference.views[::7])


def plane_depth(camera: Camera, slope: float) -> torch.Tensor:
    """Depth z of the plane z = 3 + slope * x in camera axes."""
    columns = (torch.arange(camera.width) + 0.5 - camera.cx) / camera.fl_x
    return (3.0 / (1.0 - slope * columns)).expand(camera.height, -1).contiguous()


LENS = Camera(torch.eye(4), 120.0, 110.0, 41.0, 29.0, 80, 60)


def test_points_are_lifted_onto_the_plane_they_were_seen_on():
    eye = torch.tensor([0.4, -2.0, 1.0])
    camera = LENS.moved(look_at(eye, torch.tensor([0.1, 0.2, 0.0]), torch.tensor([0.0, 0.0, 1.0])))
    depth = plane_depth(camera, slope=1.5)
    positions = torch.tensor([[20.5, 30.5], [40.13, 10.77], [77.9, 58.2], [3.0, 4.0]])
    points = lifted(positions, depth, camera)
    seen = camera.project(points)
    assert torch.allclose(seen[:, :2], positions, atol=1e-3)
    in_cam = points @ camera.world_to_cam[:3, :3].T + camera.world_to_cam[:3, 3]
    assert torch.allclose(in_cam[:, 2], 3.0 + 1.5 * in_cam[:, 0], atol=1e-4)


def test_smooth_surface_refuses_edges_of_depth_and_of_the_part_and_slopes_seen_edge_on():
    alpha, flat = torch.ones(60, 80), torch.full((60, 80), 3.0)
    assert smooth_surface(alpha, flat, 120.0).all()
    step = flat.clone()
    step[:, 40:] = 3.6
    assert (~smooth_surface(alpha, step, 120.0)).nonzero()[:, 1].unique().tolist() == [39, 40]
    cut = alpha.clone()
    cut[20, 30] = 0.5
    refused = (~smooth_surface(cut, flat, 120.0)).nonzero()
    assert refused.min(dim=0).values.tolist() == [19, 29]
    assert refused.max(dim=0).values.tolist() == [21, 31]
    # At the image's centre, where the slope against the image plane is that of the plane.
    centre = (29, 40)
    assert smooth_surface(alpha, plane_depth(LENS, math.tan(math.radians(72))), 120.0)[centre]
    assert not smooth_surface(alpha, plane_depth(LENS, math.tan(math.radians(80))), 120.0)[centre]


def test_landmarks_lie_on_the_surface_and_project_to_where_they_were_found(few_views):
    built = build_landmarks(few_views, GridExtractor())
    assert built.extractor == "grid"
    assert len(built.world_to_cam) == len(few_views.views) + 4
    assert set(built.view.tolist()) == set(range(len(built.world_to_cam)))
    # The toy's splats are laid 0.045 apart; a point of their surface is never farther than a diagonal from one.
    to_surface = torch.cdist(built.points, few_views.gaussians.means).amin(dim=1)
    assert to_surface.max() < 0.09
    assert to_surface.median() < 0.035
    for view in range(len(built.world_to_cam)):
        camera = built.lens.moved(built.world_to_cam[view])
        at = camera.project(built.points[built.view == view])[:, :2]
        third = (at - 0.5 - 1.0) / 3.0  # where the extractor puts its keypoints
        assert (third - third.round()).abs().max() < 0.01


def test_each_view_gives_its_strongest_up_to_an_equal_share(few_views, monkeypatch):
    everything = build_landmarks(few_views, GridExtractor())
    monkeypatch.setattr(landmarks_module, "MOST_LANDMARKS", 10 * len(everything.world_to_cam) + 3)
    built = build_landmarks(few_views, GridExtractor())
    assert (torch.bincount(built.view) == 10).all()
    for view in range(len(built.world_to_cam)):
        assert torch.equal(built.points[built.view == view], everything.points[everything.view == view][:10])


def test_landmarks_are_the_same_every_time_and_after_storing(few_views, tmp_path):
    done: list[tuple[int, int]] = []
    built = build_landmarks(few_views, GridExtractor(), on_view=lambda *counts: done.append(counts))
    assert done == [(i + 1, len(built.world_to_cam)) for i in range(len(built.world_to_cam))]
    save_landmarks(tmp_path / "landmarks.safetensors", built)
    for other in (
        build_landmarks(few_views, GridExtractor()),
        load_landmarks(tmp_path / "landmarks.safetensors"),
    ):
        assert torch.equal(other.points, built.points)
        assert torch.equal(other.descriptors, built.descriptors)
        assert torch.equal(other.view, built.view)
        assert torch.equal(other.world_to_cam, built.world_to_cam)
        assert other.extractor == "grid"
        assert (other.lens.fl_x, other.lens.cx, other.lens.width) == (
            built.lens.fl_x,
            built.lens.cx,
            built.lens.width,
        )


def test_a_part_without_features_is_said_to_have_none(few_views):
    with pytest.raises(InputError, match="reference toy: blind finds no feature on it"):
        build_landmarks(few_views, BlindExtractor())


def small() -> Landmarks:
    return Landmarks(
        torch.rand(5, 3), torch.rand(5, 8).half(), torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32), "grid",
        torch.eye(4).expand(2, 4, 4).contiguous(), LENS,
    )  # fmt: skip


def test_part_size_is_the_diameter_that_holds_nine_of_ten():
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
    half = directions * torch.linspace(0, 1, 500)[:, None]
    points = torch.cat([half, -half]) + 7.0
    views = torch.zeros(1000, dtype=torch.int32)
    spread = Landmarks(points, torch.rand(1000, 8).half(), views, "grid", torch.eye(4)[None], LENS)
    assert spread.part_size == pytest.approx(1.8, abs=0.01)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"view": torch.tensor([0, 0, 1, 1, 2], dtype=torch.int32)}, "views that it does not hold"),
        ({"points": torch.rand(4, 3)}, "differ in length"),
        ({"points": torch.full((5, 3), float("nan"))}, "not finite"),
    ],
)
def test_a_damaged_file_is_refused_with_advice(damage, said, tmp_path):
    path = tmp_path / "landmarks.safetensors"
    save_landmarks(path, small())
    save_file(load_file(path) | damage, path, metadata={"format": "splatad-landmarks-1", "extractor": "grid"})
    with pytest.raises(InputError, match=rf"landmarks\.safetensors: .*{said}.*run `splatad fit` again"):
        load_landmarks(path)


def test_a_file_cut_short_missing_or_of_another_format_is_refused(tmp_path):
    path = tmp_path / "landmarks.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        load_landmarks(path)
    save_landmarks(path, small())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        load_landmarks(path)
    save_file({"points": torch.rand(5, 3)}, path, metadata={"format": "splatad-pose-index-1"})
    with pytest.raises(InputError, match="format 'splatad-pose-index-1', not 'splatad-landmarks-1'"):
        load_landmarks(path)
