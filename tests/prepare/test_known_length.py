from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.errors import InputError, UsageError
from prepare.known_length import Mark, measure, parse_mark, photo_rays
from prepare.structure_from_motion import PosedPhoto, Reconstruction
from prepare.undistort import Distortion

_LENS = Distortion(k1=0.08, k2=-0.01, p1=0.002, p2=-0.001)
_ENDS = torch.tensor([[0.3, -0.2, 0.0], [-0.4, 0.5, 0.0]], dtype=torch.float64)


def _photo(name: str, position: list[float], points: torch.Tensor) -> PosedPhoto:
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    world_to_cam = look_at(torch.tensor(position).double(), torch.zeros(3).double(), up)
    camera = Camera(world_to_cam, 500.0, 510.0, 320.0, 235.0, 640, 480)
    photo = PosedPhoto(
        name, Path(name), camera, _LENS, torch.zeros(0, 2).double(), torch.zeros(0, dtype=torch.int64)
    )
    return replace(photo, observed_px=_seen(photo, points), observed=torch.arange(len(points)))


def _seen(photo: PosedPhoto, points: torch.Tensor) -> torch.Tensor:
    """Pixels of world points, written out by hand from `Camera` and `Distortion`."""
    camera = photo.camera
    x, y, z = (points @ camera.world_to_cam[:3, :3].T + camera.world_to_cam[:3, 3]).unbind(1)
    at = photo.distortion.distort(torch.stack([x / z, y / z], dim=1))
    return at * torch.tensor([camera.fl_x, camera.fl_y]) + torch.tensor([camera.cx, camera.cy])


@pytest.fixture
def reconstruction() -> Reconstruction:
    """Three photos of a slanted plane of points; the ends lie on the plane but are no points themselves."""
    grid = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.zeros(81).double()], dim=1)
    photos = tuple(
        _photo(name, position, points)
        for name, position in {
            "a/1.jpg": [2.0, 0.5, 1.5],
            "a/2.jpg": [0.3, 2.0, 2.0],
            "b/2.jpg": [-1.5, -1.0, 2.5],
        }.items()
    )
    return Reconstruction(photos, points, torch.zeros(81, 3), 0.5, "incremental", 3, ())


def test_ends_marked_in_two_photos_are_triangulated(reconstruction: Reconstruction) -> None:
    marks = [Mark(photo.name, _seen(photo, _ENDS)) for photo in reconstruction.photos[:2]]
    measured = measure(reconstruction, marks)
    assert torch.allclose(measured.ends, _ENDS, atol=1e-6)
    assert measured.length == pytest.approx(float((_ENDS[0] - _ENDS[1]).norm()), rel=1e-6)
    assert measured.off_px is not None
    assert measured.off_px < 1e-3


def test_ends_marked_in_one_photo_lie_on_the_plane_of_the_points_beside_them(
    reconstruction: Reconstruction,
) -> None:
    measured = measure(reconstruction, [Mark("1.jpg", _seen(reconstruction.photos[0], _ENDS))])
    assert measured.length == pytest.approx(float((_ENDS[0] - _ENDS[1]).norm()), rel=0.01)
    assert measured.off_px is None


def test_a_ray_leads_back_to_the_distorted_pixel(reconstruction: Reconstruction) -> None:
    photo = reconstruction.photos[0]
    pixels = torch.tensor([[20.0, 30.0], [320.0, 235.0], [600.0, 440.0]], dtype=torch.float64)
    rays = photo_rays(photo, pixels)
    world = (rays * 2.5 - photo.camera.world_to_cam[:3, 3]) @ photo.camera.world_to_cam[:3, :3]
    assert torch.allclose(_seen(photo, world), pixels, atol=1e-6)


def test_marks_of_different_points_do_not_count_as_one(reconstruction: Reconstruction) -> None:
    first, second = (_seen(photo, _ENDS) for photo in reconstruction.photos[:2])
    swapped = [Mark("a/1.jpg", first), Mark("a/2.jpg", second.flip(0))]
    with pytest.raises(InputError, match="mark the same two points, in the same order"):
        measure(reconstruction, swapped)


def test_two_photos_from_the_same_place_cannot_triangulate(reconstruction: Reconstruction) -> None:
    photo = reconstruction.photos[0]
    same = replace(reconstruction, photos=(photo, replace(photo, name="again.jpg", path=Path("again.jpg"))))
    marks = [Mark(name, _seen(photo, _ENDS)) for name in ("a/1.jpg", "again.jpg")]
    with pytest.raises(InputError, match="from the same side"):
        measure(same, marks)


def test_a_pixel_far_from_every_point_asks_for_a_second_photo(reconstruction: Reconstruction) -> None:
    far = Mark("1.jpg", torch.tensor([[5.0, 5.0], [320.0, 235.0]], dtype=torch.float64))
    with pytest.raises(InputError, match="mark the same two points in a second photo"):
        measure(reconstruction, [far])


@pytest.mark.parametrize(
    ("name", "message"), [("c.jpg", "none of the registered photos"), ("2.jpg", "several photos' name")]
)
def test_a_photo_must_be_one_of_the_registered(
    reconstruction: Reconstruction, name: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measure(reconstruction, [Mark(name, torch.tensor([[1.0, 1.0], [9.0, 9.0]], dtype=torch.float64))])


def test_a_point_outside_the_photo_is_refused(reconstruction: Reconstruction) -> None:
    with pytest.raises(UsageError, match="outside the photo of 640 x 480"):
        measure(
            reconstruction, [Mark("1.jpg", torch.tensor([[1.0, 1.0], [9.0, 481.0]], dtype=torch.float64))]
        )


def test_a_mark_is_a_photo_and_two_points() -> None:
    mark = parse_mark("C:/part 1/a.jpg:10,20.5:30,40")
    assert mark.photo == "C:/part 1/a.jpg"
    assert mark.ends_px.tolist() == [[10.0, 20.5], [30.0, 40.0]]


@pytest.mark.parametrize(
    "text",
    ["", "a.jpg", "a.jpg:1,2", "a.jpg:1,2:3", "a.jpg:1,2:1,2", ":1,2:3,4", "a.jpg:1,x:3,4", "a:nan,1:2,3"],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as IMG_1\.jpg:812,440:1033,462"):
        parse_mark(text)
