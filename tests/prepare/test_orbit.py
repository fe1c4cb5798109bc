from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from prepare.camera import look_at
from prepare.orbit import UNIT, common_focus, cover, place, up_axis

_UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
_CENTRE = torch.tensor([4.0, -1.0, 2.0], dtype=torch.float64)


def _direction(azimuth_deg: float, elevation_deg: float) -> torch.Tensor:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    return torch.tensor(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ],
        dtype=torch.float64,
    )


def _ring(azimuths: list[float], elevation_deg: float, radius: float = 2.0) -> torch.Tensor:
    """Level cameras that look at _CENTRE."""
    return torch.stack(
        [look_at(_CENTRE + radius * _direction(azimuth, elevation_deg), _CENTRE, _UP) for azimuth in azimuths]
    )


def _centres(world_to_cam: torch.Tensor) -> torch.Tensor:
    return -(world_to_cam[:, :3, :3].transpose(1, 2) @ world_to_cam[:, :3, 3:])[..., 0]


def test_the_focus_is_where_the_cameras_look_though_one_looks_elsewhere() -> None:
    cameras = _ring([0, 40, 80, 120, 160, 200], 30)
    cameras[3] = look_at(
        _CENTRE + 2 * _direction(120, 30), _CENTRE + torch.tensor([0.0, 0.0, 1.5]).double(), _UP
    )

    focus = common_focus(_centres(cameras), cameras[:, 2, :3])

    assert focus is not None
    assert torch.allclose(focus, _CENTRE, atol=0.02)


def test_cameras_that_look_apart_or_side_by_side_have_no_focus() -> None:
    side_by_side = torch.stack(
        [
            look_at(torch.tensor([x, 0.0, 0.0]).double(), torch.tensor([x, 9.0, 0.0]).double(), _UP)
            for x in range(5)
        ]
    )
    assert common_focus(_centres(side_by_side), side_by_side[:, 2, :3]) is None

    around = _ring([0, 60, 120, 180, 240, 300], 0)
    assert common_focus(_centres(around), -around[:, 2, :3]) is None  # as from the middle of a room


@pytest.mark.parametrize("elevations", [(20.0,), (-60.0, 0.0, 80.0)])
def test_up_is_across_the_horizons_of_level_photos_though_some_are_on_edge(
    elevations: tuple[float, ...],
) -> None:
    cameras = torch.cat([_ring([0, 30, 60, 90, 120, 150], elevation) for elevation in elevations])
    on_edge = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    cameras[2, :3, :3] = on_edge @ cameras[2, :3, :3]

    up, source = up_axis(cameras[:, :3, :3])

    assert source == "level photos"
    assert float(up @ _UP) > math.cos(math.radians(3))


def test_photos_from_one_side_have_the_mean_of_their_own_up_directions() -> None:
    cameras = _ring([0, 4, 8], 0)
    up, source = up_axis(cameras[:, :3, :3])
    assert source == "mean of the photos"
    assert float(up @ _UP) > 0.9999


def test_a_placed_world_has_z_up_the_focus_at_the_origin_and_the_unit() -> None:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(Rotation.random(random_state=3).as_matrix())
    turn[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    cameras = _ring([25, 70, 130, 200, 280, 330], 35, radius=7.0) @ turn  # the same cameras in another world
    point = (turn[:3, :3].T @ (_CENTRE + _UP - turn[:3, 3]))[None]  # one old unit above the focus

    placement = place(cameras, point)

    assert placement.focus_from == "optical axes"
    placed = torch.stack([placement.place_camera(camera) for camera in cameras])
    expected = torch.stack([UNIT * _direction(azimuth - 25, 35) for azimuth in (25, 70, 130, 200, 280, 330)])
    assert torch.allclose(_centres(placed), expected, atol=1e-9)
    assert torch.allclose(placement.place_points(point)[0], UNIT / 7.0 * _UP, atol=1e-9)
    rotation = placed[:, :3, :3]
    assert torch.allclose(
        rotation @ rotation.transpose(1, 2), torch.eye(3).double().expand(6, 3, 3), atol=1e-12
    )
    assert torch.allclose(placed[:, 2, :3], -expected / UNIT, atol=1e-9)  # they look at the origin


def test_cameras_without_a_focus_are_placed_about_the_points() -> None:
    cameras = torch.stack(
        [
            look_at(torch.tensor([x, 0.0, 0.0]).double(), torch.tensor([x, 9.0, 0.0]).double(), _UP)
            for x in range(5)
        ]
    )
    points = torch.tensor([[2.0, 5.0, 0.0], [2.0, 6.0, 1.0], [2.0, 7.0, -1.0]], dtype=torch.float64)
    placement = place(cameras, points)
    assert placement.focus_from == "points"
    assert placement.focus.tolist() == [2.0, 6.0, 0.0]


def _coverage(*rings: tuple[list[float], float]) -> tuple[float, tuple[str, ...]]:
    centres = torch.stack([_direction(azimuth, height) for azimuths, height in rings for azimuth in azimuths])
    names = [f"{azimuth:g}/{height:g}" for azimuths, height in rings for azimuth in azimuths]
    found = cover(names, 3 * centres)
    return found.sphere_share, found.remarks


def test_what_is_missing_is_said_in_words() -> None:
    every_30 = [30.0 * step for step in range(12)]
    _, remarks = _coverage((every_30, 0.0), (every_30, 60.0))
    assert remarks == ("no photo from below", "no photo between 0 and 60 degrees of height")

    share, remarks = _coverage(([0.0, 30.0, 60.0, 90.0, 270.0, 300.0, 330.0], 0.0))
    assert remarks == (
        "no photo from below",
        "no photo from above",
        "no photo in 180 of the 360 degrees around, between 90/0 and 270/0",
    )
    assert share < 0.25

    assert _coverage(([0.0], 89.0))[1] == ("no photo from below", "no photo from the side")


def test_photos_all_round_leave_nothing_to_say() -> None:
    every_20 = [20.0 * step for step in range(18)]
    share, remarks = _coverage(*[(every_20, height) for height in (-75.0, -45.0, -15.0, 15.0, 45.0, 75.0)])
    assert remarks == ()
    assert share == 1.0


def test_the_share_of_the_sphere_near_one_photo_is_that_of_a_cap() -> None:
    share, _ = _coverage(([0.0], 0.0))
    assert share == pytest.approx((1 - math.cos(math.radians(20))) / 2, abs=2e-3)
