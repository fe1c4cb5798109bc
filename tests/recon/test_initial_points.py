"""Where splats start, on silhouettes of a ball known in closed form."""

from __future__ import annotations

import torch

from prepare.camera import Camera, look_at
from recon.initial_points import common_volume, hull_points, neighbour_spacing, random_points

SIZE = 64
RADIUS = 0.5


def ball_views(count: int) -> tuple[list[Camera], list[torch.Tensor], list[torch.Tensor]]:
    """Cameras round a ball at (1, 2, 3), its photos in red over white and its silhouettes."""
    middle = torch.tensor([1.0, 2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    cameras, images, alphas = [], [], []
    for direction in directions:
        world_to_cam = look_at(middle + 3 * direction, middle, torch.tensor([0.0, 0.0, 1.0]))
        cameras.append(Camera(world_to_cam, 130.0, 130.0, SIZE / 2, SIZE / 2, SIZE, SIZE))
        row, column = torch.meshgrid(*[(torch.arange(SIZE) + 0.5 - SIZE / 2) / 130.0] * 2, indexing="ij")
        tangent = RADIUS / (9 - RADIUS**2) ** 0.5
        alpha = ((row.square() + column.square()).sqrt() < tangent).float()
        alphas.append(alpha)
        images.append(torch.stack([torch.ones_like(alpha), 1 - alpha, 1 - alpha], dim=-1))
    return cameras, images, alphas


def test_common_volume_is_round_the_point_all_cameras_look_at() -> None:
    volume = common_volume(ball_views(8)[0])
    assert torch.allclose(volume.centre, torch.tensor([1.0, 2.0, 3.0]), atol=1e-4)
    assert abs(volume.half_size - 1.2 * 3 * 32 / 130) < 1e-4


def test_hull_points_lie_on_the_ball_and_have_its_colour() -> None:
    points = hull_points(*ball_views(24), 400, torch.Generator().manual_seed(0), resolution=32)
    assert points is not None
    distance = (points.positions - torch.tensor([1.0, 2.0, 3.0])).norm(dim=1)
    cell = 2 * 1.2 * 3 * 32 / 130 / 32
    assert float((distance - RADIUS).abs().quantile(0.9)) < 2 * cell
    assert float((points.colours - torch.tensor([1.0, 0.0, 0.0])).abs().mean()) < 0.1
    assert points.source == "visual hull"


def test_the_interior_share_fills_the_ball_evenly() -> None:
    points = hull_points(
        *ball_views(24), 2000, torch.Generator().manual_seed(0), resolution=32, interior_share=1.0
    )
    assert points is not None
    distance = (points.positions - torch.tensor([1.0, 2.0, 3.0])).norm(dim=1)
    # An even ball has a quarter of its volume inside 0.63 of its radius.
    inside = float((distance < 0.63 * RADIUS).float().mean())
    assert 0.18 < inside < 0.28


def test_photos_without_silhouettes_have_no_hull() -> None:
    cameras, images, alphas = ball_views(6)
    everywhere = [torch.ones_like(alpha) for alpha in alphas]
    nowhere = [torch.zeros_like(alpha) for alpha in alphas]
    assert hull_points(cameras, images, everywhere, 100, torch.Generator()) is None
    assert hull_points(cameras, images, nowhere, 100, torch.Generator()) is None


def test_random_points_fill_the_volume_and_repeat_with_the_seed() -> None:
    cameras = ball_views(6)[0]
    first = random_points(cameras, 500, torch.Generator().manual_seed(5))
    again = random_points(cameras, 500, torch.Generator().manual_seed(5))
    assert torch.equal(first.positions, again.positions)
    volume = common_volume(cameras)
    offset = (first.positions - volume.centre).abs().max(dim=0).values / volume.half_size
    assert bool((offset <= 1).all())
    assert bool((offset > 0.9).all())


def test_neighbour_spacing_is_the_mean_of_the_three_nearest_distances() -> None:
    positions = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    brute = torch.cdist(positions.double(), positions.double()).sort(dim=1).values[:, 1:4].mean(dim=1)
    assert torch.allclose(neighbour_spacing(positions), brute.float(), atol=1e-5)
