"""Edges that a part's shape makes inside its outline, and what a photo says of them."""

from dataclasses import replace

import pytest
import torch

from pose.inner_edges import DIRECTIONS, ShapeEdges, photo_edges, shape_edges, support
from pose.locate import LocateConfig, _Search
from pose.pyramid import SplatLevels, photo_pyramid
from pose.se3 import turn_deg
from prepare.camera import Camera, look_at
from recon.appearance import flattened, one_colour
from recon.gaussians import Gaussians, gaussians_from_points
from recon.harmonics import SH_C0
from recon.initial_points import Volume
from recon.rasterize import RasterOptions, rasterize
from recon.reference import Reference

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WHITE = torch.ones(3)
STEP = 0.02  # world units between splats: 1.7 px
TOLERANCE_PX = 4.0  # the splats' own width, and a drop's two flanks
EVERYWHERE = torch.ones(200, 200, dtype=torch.bool)
X, Y, Z = torch.eye(3)
ABOVE = Camera(look_at(4 * Z, torch.zeros(3), Y), 300.0, 300.0, 100.0, 100.0, 200, 200)


def sheet(
    centre: tuple[float, float, float], along: torch.Tensor, across: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a parallelogram with those half sides, and its normal at each."""
    counts = [max(3, round(2 * float(half.norm()) / STEP) + 1) for half in (along, across)]
    a, b = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in counts), indexing="ij")
    points = torch.tensor(centre) + a.reshape(-1, 1) * along + b.reshape(-1, 1) * across
    normal = torch.nn.functional.normalize(torch.linalg.cross(along, across), dim=0)
    return points, normal.expand(len(points), 3)


def of_sheets(*sheets: tuple[torch.Tensor, torch.Tensor]) -> Gaussians:
    points, normals = (torch.cat(parts) for parts in zip(*sheets, strict=True))
    grey = torch.full((len(points), 3), 0.5)
    return gaussians_from_points(
        points, grey, torch.full((len(points),), 0.6 * STEP), opacity=0.97, normals=normals
    )


def edges_of(gaussians: Gaussians, camera: Camera = ABOVE) -> ShapeEdges:
    return shape_edges(gaussians, camera, RasterOptions(), 1.0, EVERYWHERE)


TWO_FLOORS = (sheet((0.0, 0.0, 0.0), X, Y), sheet((0.1, 0.2, 0.4), 0.5 * X, 0.3 * Y))


def test_a_drop_in_depth_is_an_edge_where_the_upper_sheet_ends():
    edges = edges_of(of_sheets(*TWO_FLOORS))
    low = ABOVE.project(torch.tensor([[-0.4, 0.5, 0.4], [0.6, -0.1, 0.4]]))[:, :2]
    (left, right), (top, bottom) = (low[:, k].sort().values.tolist() for k in (0, 1))
    u, v = edges.column + 0.5, edges.row + 0.5
    upright = torch.minimum((u - left).abs(), (u - right).abs())
    level = torch.minimum((v - top).abs(), (v - bottom).abs())
    assert float(torch.minimum(upright, level).max()) < TOLERANCE_PX
    for line in (left, right):
        on_line = ((u - line).abs() < TOLERANCE_PX) & (v > top + 4) & (v < bottom - 4)
        assert len(v[on_line].unique()) > 0.95 * (bottom - top - 9)
        assert set(edges.direction[on_line].tolist()) == {0}
    for line in (top, bottom):
        on_line = ((v - line).abs() < TOLERANCE_PX) & (u > left + 4) & (u < right - 4)
        assert len(u[on_line].unique()) > 0.95 * (right - left - 9)
        assert set(edges.direction[on_line].tolist()) == {DIRECTIONS // 2}


def test_a_fold_is_an_edge_and_a_slope_is_none():
    slope = X + 0.7 * Z
    assert len(edges_of(of_sheets(sheet((0.0, 0.0, 0.0), slope, Y)))) == 0
    roof = of_sheets(sheet((-0.5, 0.0, 0.0), 0.5 * slope, Y), sheet((0.5, 0.0, 0.0), 0.5 * X - 0.35 * Z, Y))
    edges = edges_of(roof)
    ridge = float(ABOVE.project(torch.tensor([[0.0, 0.0, 0.35]]))[0, 0])
    assert len(edges) > 100
    assert float((edges.column + 0.5 - ridge).abs().max()) < TOLERANCE_PX
    assert set(edges.direction.tolist()) == {0}
    assert float(edges.strength.median()) == 1.0


def blotches(gaussians: Gaussians, count: int, seed: int) -> Gaussians:
    """The same splats painted: each in the colour of the nearest of `count` places."""
    drawn = torch.rand(2, count, 3, generator=torch.Generator().manual_seed(seed))
    nearest = torch.cdist(gaussians.means, 2 * drawn[0] - 1).argmin(dim=1)
    sh = gaussians.sh.clone()
    sh[:, 0] = (drawn[1][nearest] - 0.5) / SH_C0
    return replace(gaussians, sh=sh)


def test_paint_takes_nothing_from_edges_that_a_photo_shows_and_makes_none_that_it_does_not():
    part = of_sheets(*TWO_FLOORS)
    edges = edges_of(part)
    upper = torch.cat([torch.zeros(len(TWO_FLOORS[0][0])), torch.ones(len(TWO_FLOORS[1][0]))])
    for seed in range(2):
        painted = blotches(part, 40, seed)
        flat = rasterize(blotches(of_sheets(TWO_FLOORS[0]), 40, seed), ABOVE, WHITE)
        assert not support(edges, photo_edges(flat.rgb, flat.alpha)).seen
        darker = replace(painted, sh=painted.sh - upper[:, None, None])
        photo = rasterize(darker, ABOVE, WHITE)
        shown = support(edges, photo_edges(photo.rgb.clamp(0, 1), photo.alpha))
        assert shown.seen
        assert shown.exceeds(support(edges, photo_edges(flat.rgb, flat.alpha)))


def test_too_few_edges_say_nothing():
    plain = of_sheets(TWO_FLOORS[0])
    photo = rasterize(blotches(plain, 40, 0), ABOVE, WHITE)
    said = support(edges_of(plain), photo_edges(photo.rgb, photo.alpha))
    assert said.value == said.chance == 0.0
    assert said.seen
    assert not said.exceeds(said)


def test_of_two_sides_with_one_outline_the_one_whose_edges_the_photo_shows_is_found():
    """A plate with a block on its upper side, from far away: from below its outline is the same."""
    walls = [sheet((0.0, s * 0.6, -0.06), X, 0.06 * Z) for s in (-1, 1)]
    walls += [sheet((s * 1.0, 0.0, -0.06), 0.6 * Y, 0.06 * Z) for s in (-1, 1)]
    block = [sheet((0.4, 0.1 + s * 0.2, 0.075), 0.25 * X, 0.075 * Z) for s in (-1, 1)]
    block += [sheet((0.4 + s * 0.25, 0.1, 0.075), 0.2 * Y, 0.075 * Z) for s in (-1, 1)]
    block.append(sheet((0.4, 0.1, 0.15), 0.25 * X, 0.2 * Y))
    plate = of_sheets(
        *block, sheet((0.0, 0.0, 0.0), X, 0.6 * Y), sheet((0.0, 0.0, -0.12), X, 0.6 * Y), *walls
    )
    lens = Camera(torch.eye(4), 1500.0, 1500.0, 100.0, 100.0, 200, 200)
    above = lens.moved(look_at(torch.tensor([2.0, 2.0, 19.0]), torch.zeros(3), Y))
    below = lens.moved(look_at(torch.tensor([-2.0, -2.0, -19.0]), torch.zeros(3), Y))
    painted = blotches(plate, 12, 1)
    painted.sh[: sum(len(points) for points, _ in block)] -= 1.0  # the block in darker paint
    photo = rasterize(painted, above, WHITE)
    reference = Reference(
        "plate", one_colour(plate, WHITE), (), Volume(torch.zeros(3), 1.0), RasterOptions(), 200, "/nowhere", 25.0, None, {}
    )  # fmt: skip
    levels = SplatLevels(reference.gaussians)
    outline = photo_pyramid(flattened(photo.alpha, WHITE))
    inner = photo_edges(photo.rgb.clamp(0, 1), photo.alpha)
    for cameras in ([above, below], [below, above]):
        blind = _Search(reference, levels, outline, WHITE, LocateConfig()).from_near(cameras)
        assert len(blind.alternatives) >= 1  # and perhaps the sides that follow from these two
        found = _Search(reference, levels, outline, WHITE, LocateConfig(), inner).from_near(cameras)
        assert found.alternatives == []
        assert turn_deg(found.best.camera.world_to_cam, above.world_to_cam) < 1.0
