"""Pictures of the part: marks lie where a hand projects them, what the part hides is said, sides face the defects."""

import pytest
import torch

from pose.index import sphere_directions
from prepare.camera import Camera, look_at
from recon.gaussians import Gaussians, gaussians_from_points
from recon.initial_points import Volume
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions
from recon.reference import Reference, ReferenceView
from splatad.part_picture import PartDefect, PartPictures

FRONT, BACK = (0.0, 0.0, -4.0), (0.0, 0.0, 5.0)  # two cameras on the z axis, the blobs between them


def reference_of(gaussians: Gaussians, positions: list[tuple[float, float, float]]) -> Reference:
    """Views of 100 x 80 px from `positions` towards the origin, focal length 100 px."""
    views = []
    for place in positions:
        at = torch.tensor(place)
        pose = look_at(at, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
        camera = Camera(pose, 100.0, 100.0, 50.0, 40.0, 100, 80)
        views.append(
            ReferenceView(f"{len(views)}.png", camera, torch.ones(3), False, ViewQuality(40.0, 40.0, 1.0, 1.0, None))
        )  # fmt: skip
    volume = Volume(torch.zeros(3), 1.5)
    return Reference(
        "blobs", gaussians, tuple(views), volume, RasterOptions(), 100, "/nowhere", None, None, {}
    )


@pytest.fixture
def two_blobs() -> Reference:
    """A red blob at the origin before a blue one at z = 1, seen from the front and from the back."""
    gaussians = gaussians_from_points(
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]]),
        torch.tensor([0.3, 0.3]),
        opacity=0.99,
    )
    return reference_of(gaussians, [FRONT, BACK])


def at(*centre: float, extent: float | None = None) -> PartDefect:
    return PartDefect("1", "looks different", (centre[0], centre[1], centre[2]), extent)


def test_a_mark_lies_at_the_pixel_a_hand_projects(two_blobs: Reference) -> None:
    front, back = PartPictures(two_blobs).views([at(0.2, 0.1, 0.0, extent=0.4)], least=2)
    # From the front, looking along +z with y down: 50 + 100 * 0.2 / 4 and 40 + 100 * 0.1 / 4, radius 100 * 0.2 / 4.
    mark = front.markers[0]
    assert (mark.x_px, mark.y_px, mark.radius_px) == pytest.approx((55.0, 42.5, 5.0), abs=1e-4)
    # From the back, at distance 5, left and right change sides.
    mark = back.markers[0]
    assert (mark.x_px, mark.y_px, mark.radius_px) == pytest.approx((46.0, 42.0, 4.0), abs=1e-4)


def test_what_stands_behind_the_part_is_hidden(two_blobs: Reference) -> None:
    views = PartPictures(two_blobs).views([at(0.0, 0.0, 0.0), at(0.0, 0.0, 1.0)], least=2)
    seen = {
        int(view.camera.centre[2]): [marker.visible for marker in sorted(view.markers, key=lambda m: m.index)]
        for view in views
    }
    assert seen == {-4: [True, False], 5: [False, True]}


def test_beside_the_part_nothing_hides_a_defect(two_blobs: Reference) -> None:
    views = PartPictures(two_blobs).views([at(1.4, 0.0, 0.5)], least=2)
    assert [marker.visible for view in views for marker in view.markers] == [True, True]


def test_a_large_defects_centre_may_lie_a_little_inside_the_part(two_blobs: Reference) -> None:
    # 0.13 behind the red blob's middle; the surface may be 0.03 * 1.5 in front of a defect, the width of a pixel there
    # (4.1 / 100), and half the defect's extent.
    for extent, visible in ((None, False), (0.02, False), (0.2, True)):
        front = PartPictures(two_blobs).views([at(0.0, 0.0, 0.13, extent=extent)], least=2)
        mark = next(view.markers[0] for view in front if view.camera.centre[2] < 0)
        assert mark.visible == visible


def test_a_defect_out_of_the_frame_has_no_mark(two_blobs: Reference) -> None:
    views = PartPictures(two_blobs).views([at(3.0, 0.0, 0.0), at(0.0, 0.0, -4.5)], least=2)
    front, back = sorted(views, key=lambda view: float(view.camera.centre[2]))
    assert front.markers == (), "one beside the picture, the other behind the camera"
    assert [marker.index for marker in back.markers] == [1]


def test_the_picture_shows_the_blob_in_front(two_blobs: Reference) -> None:
    views = PartPictures(two_blobs).views([], least=2)
    for view in views:
        red, _, blue = view.picture[40, 50].tolist()
        assert (red > 0.7 and blue < 0.3) if view.camera.centre[2] < 0 else (blue > 0.7 and red < 0.3)
        assert view.picture.shape == (80, 100, 3)
        torch.testing.assert_close(view.picture[2, 2], torch.ones(3))


@pytest.fixture(scope="module")
def ball() -> Reference:
    """An opaque ball of radius 0.5, seen from both ends of each axis and from the eight corners."""
    points = 0.5 * sphere_directions(2000)
    gaussians = gaussians_from_points(
        points, torch.full((2000, 3), 0.5), torch.full((2000,), 0.018), opacity=0.95
    )
    ends = [tuple(3.0 * sign * float(i == axis) for i in range(3)) for axis in range(3) for sign in (1, -1)]
    corners = [(1.7 * x, 1.7 * y, 1.7 * z) for x in (1, -1) for y in (1, -1) for z in (1, -1)]
    views = [(float(x), float(y), float(z)) for x, y, z in corners + ends]
    return reference_of(gaussians, views)


def test_a_defect_is_shown_head_on_first(ball: Reference) -> None:
    pictures = PartPictures(ball)
    for axis, sign in ((0, 1.0), (0, -1.0), (1, -1.0)):
        centre = [0.0, 0.0, 0.0]
        centre[axis] = 0.5 * sign
        first = pictures.views([at(*centre)])[0]
        direction = torch.nn.functional.normalize(first.camera.centre, dim=0)
        assert float(direction[axis]) * sign > 0.99


def test_together_the_views_show_every_defect_and_stay_few(ball: Reference) -> None:
    defects = [at(*point) for point in (0.5 * sphere_directions(30)).tolist()]
    views = PartPictures(ball).views(defects)
    assert len(views) <= 6
    assert {m.index for view in views for m in view.markers if m.visible} == set(range(30))
    hidden = [m for m in views[0].markers if not m.visible]
    assert 8 <= len(hidden) <= 22, "a ball hides about half of itself"


def test_the_sides_that_fill_up_lie_far_from_each_other(ball: Reference) -> None:
    views = PartPictures(ball).views([at(0.5, 0.0, 0.0)])
    assert len(views) == 4
    directions = torch.stack([torch.nn.functional.normalize(view.camera.centre, dim=0) for view in views])
    cosines = directions @ directions.T - 2 * torch.eye(4)
    assert float(cosines.max()) < 0.35
    assert float(directions[1, 0]) < -0.99, "the second is the other side"


def test_the_same_defects_give_the_same_pictures(ball: Reference) -> None:
    defects = [at(0.5, 0.0, 0.0), at(0.0, 0.35, 0.35)]
    first, again = PartPictures(ball).views(defects), PartPictures(ball).views(defects)
    for one, other in zip(first, again, strict=True):
        assert one.markers == other.markers
        assert torch.equal(one.picture, other.picture)
        assert torch.equal(one.camera.world_to_cam, other.camera.world_to_cam)
