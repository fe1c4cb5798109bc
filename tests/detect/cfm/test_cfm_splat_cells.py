"""Cells of a photo and of the splats at its camera: geometry by hand, photos that are not square, what takes part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from detect.cfm.splat_cells import GEOMETRY_WIDTH, at_pixels, cells_of, geometry, normals, pooled, squared
from prepare.camera import Camera
from recon.rasterize import Render

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Means:
    """Mean colours of cells of 10 px."""

    def grid(self, rgb):
        return pooled(rgb, len(rgb) // 10)


def wall(depth, alpha=None):
    """A render of a wall that faces a camera at the origin, which looks along z."""
    height, width = depth.shape
    alpha = torch.ones(height, width) if alpha is None else alpha
    camera = Camera(torch.eye(4), 50.0, 50.0, width / 2, height / 2, width, height)
    return Render(torch.full((height, width, 3), 0.5), alpha, depth * alpha), camera


def test_geometry_of_a_wall_seen_head_on_is_its_place_its_normal_and_its_depth(toy):
    render, camera = wall(torch.full((100, 100), 2.0))
    found = geometry(toy.reference, render, camera, 10)
    assert found.shape == (10, 10, GEOMETRY_WIDTH)
    # The volume is the cube of half side 1 round the origin. Cell (5, 7) has its middle at (75, 55) px.
    x, y = (75 - 50) / 50 * 2, (55 - 50) / 50 * 2
    cell = found[5, 7]
    assert torch.allclose(cell[:3], torch.tensor([x, y, 2.0]), atol=1e-5)
    assert torch.allclose(cell[3:6], torch.sin(math.pi * cell[:3]), atol=1e-5)
    assert torch.allclose(cell[30:33], torch.cos(16 * math.pi * cell[:3]), atol=1e-3)
    normal, view, facing, beyond, cover = cell[33:36], cell[36:39], cell[39], cell[40], cell[41]
    assert torch.allclose(normal, torch.tensor([0.0, 0.0, -1.0]), atol=1e-5)
    looked = torch.tensor([x, y, 2.0]) / math.sqrt(x * x + y * y + 4)
    assert torch.allclose(
        view, looked, atol=2e-3
    )  # the mean over the cell of unit vectors is a little shorter
    assert float(facing) == pytest.approx(float(looked[2]), abs=2e-3)
    assert (float(beyond), float(cover)) == pytest.approx((2.0, 1.0), abs=1e-5)


def test_geometry_is_of_the_world_whatever_way_the_camera_looks(toy):
    """The same wall and camera, both turned and moved together: what is said in the world turns too."""
    render, camera = wall(torch.full((40, 40), 3.0) + torch.linspace(0, 0.4, 40))
    here = geometry(toy.reference, render, camera, 4)
    turn = torch.tensor([[0.0, 0.0, 1.0, 0.2], [1.0, 0.0, 0.0, -0.1], [0.0, 1.0, 0.0, 0.4], [0, 0, 0, 1.0]])
    there = geometry(toy.reference, render, camera.moved(turn), 4)
    rotation, shift = turn[:3, :3], turn[:3, 3]
    assert torch.allclose(there[..., :3], (here[..., :3] - shift) @ rotation, atol=1e-4)
    for first in (33, 36):
        assert torch.allclose(
            there[..., first : first + 3], here[..., first : first + 3] @ rotation, atol=1e-4
        )
    assert torch.allclose(there[..., 39], here[..., 39], atol=1e-5)


def test_what_no_splat_covers_has_no_geometry(toy):
    alpha = torch.ones(40, 40)
    alpha[:, :20] = 0.0
    render, camera = wall(torch.full((40, 40), 2.0), alpha)
    found = geometry(toy.reference, render, camera, 4)
    assert not found[:, :2].any()
    assert bool((found[:, 2:, 2] > 1.9).all())  # no mixture with the empty half
    solid = torch.ones(6, 6, dtype=torch.bool)
    solid[2, 3] = False
    around = normals(torch.rand(6, 6, 3), solid).abs().sum(dim=2)
    assert float(around[2, 2]) == float(around[3, 3]) == 0.0
    assert float(around[4, 1]) > 0.0


def test_a_photo_that_is_not_square_is_squared_evenly_and_its_map_cut_out_again():
    image = torch.rand(30, 50, 3)
    square = squared(image, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(square[10:40], image)
    assert torch.allclose(square[:10], torch.tensor([0.1, 0.2, 0.3]).expand(10, 50, 3))
    cells = torch.zeros(5, 5)
    cells[1, 4] = 1.0  # px rows 10 to 19, columns 40 to 49 of the square
    back = at_pixels(cells, 30, 50)
    assert back.shape == (30, 50)
    row, column = divmod(int(back.argmax()), 50)
    assert row < 10
    assert column >= 40
    assert torch.equal(squared(image[:, :30], torch.zeros(3)), image[:, :30])


def test_cells_that_show_the_part_in_photo_or_render_take_part(toy):
    photo = toy.photos[0]
    empty = Render(torch.ones(100, 100, 3), torch.zeros(100, 100), torch.zeros(100, 100))
    alpha = torch.zeros(100, 100)
    alpha[:10, :10] = 1.0
    shown = replace(empty, alpha=torch.zeros(100, 100))
    shown.alpha[90:, 90:] = 1.0
    cells = cells_of(toy.reference, Means(), photo.rgb, alpha, shown, photo.camera)
    assert cells.valid.nonzero().tolist() == [[0, 0], [9, 9]]
    assert torch.allclose(cells.photo, pooled(photo.rgb, 10))
    assert cells.shape.shape == (10, 10, 3 + GEOMETRY_WIDTH)
    assert torch.allclose(cells.shape[..., :3], torch.ones(10, 10, 3))
