from __future__ import annotations

import math

import pytest
import torch

from prepare.camera import Camera
from prepare.undistort import Distortion, undistort

_LENS = Distortion(k1=0.1, k2=-0.05, k3=0.01, p1=0.004, p2=-0.003)
_FISHEYE = Distortion(k1=-0.03, k2=0.01, model="OPENCV_FISHEYE")


def _camera(width: int = 90, height: int = 60) -> Camera:
    return Camera(torch.eye(4), fl_x=70.0, fl_y=64.0, cx=46.5, cy=28.0, width=width, height=height)


def _by_hand(lens: Distortion, x: float, y: float) -> tuple[float, float]:
    """OpenCV's documented formulas, written out on plain numbers."""
    if lens.model == "OPENCV_FISHEYE":
        r = math.hypot(x, y)
        theta = math.atan(r)
        bent = theta * (1 + lens.k1 * theta**2 + lens.k2 * theta**4 + lens.k3 * theta**6 + lens.k4 * theta**8)
        return (x * bent / r, y * bent / r) if r > 0 else (x, y)
    r2 = x**2 + y**2
    radial = 1 + lens.k1 * r2 + lens.k2 * r2**2 + lens.k3 * r2**3
    return (
        x * radial + 2 * lens.p1 * x * y + lens.p2 * (r2 + 2 * x**2),
        y * radial + lens.p1 * (r2 + 2 * y**2) + 2 * lens.p2 * x * y,
    )


@pytest.mark.parametrize("lens", [_LENS, _FISHEYE])
def test_distort_is_opencvs_formula(lens: Distortion) -> None:
    points = torch.tensor([[0.0, 0.0], [0.3, -0.2], [-0.5, 0.4], [0.01, 0.6]], dtype=torch.float64)
    expected = torch.tensor([_by_hand(lens, x, y) for x, y in points.tolist()], dtype=torch.float64)
    torch.testing.assert_close(lens.distort(points), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lens", [_LENS, _FISHEYE])
def test_a_spot_seen_through_the_lens_lands_where_the_pinhole_camera_projects_it(lens: Distortion) -> None:
    camera = _camera()
    rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    for point in torch.tensor([[0.1, 0.05, 1.0], [-0.9, 0.5, 2.0], [0.35, -0.3, 1.0], [0.0, 0.9, 2.5]]):
        x, y = _by_hand(lens, float(point[0] / point[2]), float(point[1] / point[2]))
        u, v = camera.fl_x * x + camera.cx, camera.fl_y * y + camera.cy
        photo = torch.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 1.2**2))[..., None]
        straight = undistort(photo, camera, lens).image[..., 0]
        found = torch.stack([(straight * columns).sum(), (straight * rows).sum()]) / straight.sum()
        # The spot is stretched a little by the lens: its centre of mass is right to a small part of a pixel.
        torch.testing.assert_close(found, camera.project(point[None])[0, :2], atol=0.08, rtol=0)


def test_a_smooth_photo_has_its_values_at_the_distorted_places() -> None:
    camera = _camera()

    def pattern(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 0.5 + 0.2 * torch.sin(u / 9) + 0.2 * torch.cos(v / 7)

    rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    result = undistort(pattern(columns, rows)[..., None], camera, _LENS)
    for row, column in [(5, 7), (30, 46), (50, 80), (33, 12)]:
        x, y = _by_hand(_LENS, (column + 0.5 - 46.5) / 70, (row + 0.5 - 28) / 64)
        expected = pattern(torch.tensor(70 * x + 46.5), torch.tensor(64 * y + 28))
        assert result.valid[row, column]
        torch.testing.assert_close(result.image[row, column, 0], expected, atol=2e-3, rtol=0)


def test_only_pixels_from_inside_the_photo_are_valid() -> None:
    camera = _camera()
    photo = torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(0))
    outward = undistort(photo, camera, Distortion(k1=0.3))
    assert not outward.valid[0, 0]
    assert outward.valid[28, 46]
    assert undistort(photo, camera, Distortion(k1=-0.1)).valid.all()
    assert photo.min() <= outward.image.min()
    assert outward.image.max() <= photo.max()


def test_directions_beyond_where_the_polynomial_turns_back_are_not_valid() -> None:
    camera = Camera(torch.eye(4), fl_x=20.0, fl_y=20.0, cx=45.0, cy=30.0, width=90, height=60)
    lens = Distortion(k1=-0.3)  # x (1 - 0.3 x²) rises up to x = 1 / sqrt(0.9)
    assert abs(lens.largest_radius(2.0) - 1 / math.sqrt(0.9)) < 2e-3
    valid = undistort(torch.zeros(60, 90, 1), camera, lens).valid
    radius = ((torch.arange(90) + 0.5 - 45) / 20).abs()
    assert torch.equal(valid[30], torch.hypot(radius, torch.tensor(0.5 / 20)) <= lens.largest_radius(2.7))


def test_no_distortion_changes_nothing_and_a_fisheye_is_never_trivial() -> None:
    photo = torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(0))
    result = undistort(photo, _camera(), Distortion())
    assert torch.equal(result.image, photo)
    assert result.valid.all()
    assert Distortion().is_trivial
    assert not Distortion(p2=1e-6).is_trivial
    assert not Distortion(model="OPENCV_FISHEYE").is_trivial


def test_sampling_by_a_vanishing_distortion_moves_nothing() -> None:
    photo = torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        undistort(photo, _camera(), Distortion(k1=1e-12)).image, photo, atol=1e-4, rtol=0
    )
