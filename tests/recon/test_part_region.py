"""The part told from its surroundings: a ball on a table among other things, seen from all round."""

import math

import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.errors import InputError
from recon.fit import Photo
from recon.gaussians import gaussians_from_points
from recon.initial_points import Volume
from recon.part_region import find_part, part_alpha
from recon.rasterize import RasterOptions
from recon.surroundings import Surroundings, cut_out, is_cluttered, load_surroundings, save_surroundings

OPTIONS = RasterOptions()
VOLUME = Volume(torch.zeros(3), 1.0)
BALL, TABLE, CUP = range(3)


def directions(count, generator):
    points = torch.randn(count, 3, generator=generator)
    return points / points.norm(dim=1, keepdim=True)


def a_scene(*, table=True):
    """Splats of a ball about the focus, the table it stands on and a cup beside it; and whose each is."""
    generator = torch.Generator().manual_seed(0)
    ball = 0.3 * directions(1500, generator)
    flat = torch.rand(4000, 2, generator=generator) * 3 - 1.5
    board = torch.cat([flat, torch.full((4000, 1), -0.3)], dim=1)
    cup = torch.tensor([0.85, 0.0, -0.15]) + 0.13 * directions(500, generator)
    pieces = [ball, board, cup] if table else [ball, cup]
    kinds = [BALL, TABLE, CUP] if table else [BALL, CUP]
    places = torch.cat(pieces)
    kind = torch.cat([torch.full((len(p),), k) for p, k in zip(pieces, kinds, strict=True)])
    colours = torch.tensor([[0.8, 0.2, 0.2], [0.5, 0.5, 0.5], [0.2, 0.2, 0.8]])[kind]
    return gaussians_from_points(places, colours, torch.full((len(places),), 0.03), opacity=0.9), kind


def cameras(size=64):
    up = torch.tensor([0.0, 0.0, 1.0])
    made = []
    for i in range(12):
        turn, height = 2 * math.pi * i / 12, 0.7 + 0.4 * (i % 3)
        place = torch.tensor([2.5 * math.cos(turn), 2.5 * math.sin(turn), height])
        focal = 1.4 * size
        made.append(Camera(look_at(place, torch.zeros(3), up), focal, focal, size / 2, size / 2, size, size))
    return made


def test_the_part_is_what_stands_at_the_focus_without_table_and_neighbours():
    gaussians, kind = a_scene()
    region = find_part(gaussians, cameras(), VOLUME, OPTIONS)
    assert region is not None
    assert region.inside[kind == BALL].float().mean() > 0.9  # its foot stands in the table
    assert region.inside[kind == TABLE].float().mean() < 0.01
    assert region.inside[kind == CUP].float().mean() < 0.01
    assert region.support is not None
    assert region.support[2] > 0.99  # up
    assert float(region.support[3]) == pytest.approx(-0.3, abs=0.03)


def test_without_a_table_the_part_is_the_connected_piece_at_the_focus():
    gaussians, kind = a_scene(table=False)
    region = find_part(gaussians, cameras(), VOLUME, OPTIONS)
    assert region is not None
    assert region.support is None
    assert region.inside[kind == BALL].all()
    assert not region.inside[kind == CUP].any()


def test_the_same_splats_in_another_order_are_the_same_part():
    gaussians, _ = a_scene()
    order = torch.randperm(len(gaussians), generator=torch.Generator().manual_seed(1))
    one = find_part(gaussians, cameras(), VOLUME, OPTIONS)
    other = find_part(gaussians.select(order), cameras(), VOLUME, OPTIONS)
    assert one is not None
    assert other is not None
    assert (one.inside[order] != other.inside).float().mean() < 0.02


def test_nothing_at_the_focus_is_said():
    gaussians, kind = a_scene()
    away = Volume(torch.tensor([50.0, 0.0, 0.0]), 1.0)
    assert find_part(gaussians, cameras(), away, OPTIONS) is None
    assert find_part(gaussians.select(kind == 7), cameras(), VOLUME, OPTIONS) is None


def test_the_parts_share_is_hidden_by_what_stands_in_front():
    gaussians, kind = a_scene(table=False)
    size = 64
    at_ball = look_at(torch.tensor([2.5, 0.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(at_ball, 90.0, 90.0, size / 2, size / 2, size, size)
    alpha = part_alpha(gaussians, kind == BALL, camera, OPTIONS)
    assert alpha[24, 28] > 0.95
    behind = camera.project(torch.tensor([[0.85, 0.0, -0.15]]))[0]
    assert alpha[int(behind[1]), int(behind[0])] < 0.05  # the cup stands before the ball there
    assert alpha[2, 2] == 0


def test_a_photo_is_cut_to_the_part_over_white_and_its_mask_is_crisp():
    gaussians, kind = a_scene()
    camera = cameras()[0]
    photo = Photo("a", camera, torch.rand(64, 64, 3), torch.ones(64, 64), torch.zeros(3), None)
    assert is_cluttered(photo)
    alpha = Surroundings(gaussians, kind == BALL).alpha(camera, OPTIONS)
    cut = cut_out(photo, alpha)
    assert not is_cluttered(cut)
    assert cut.background.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(cut.rgb[alpha == 1], photo.rgb[alpha == 1])
    assert (cut.rgb[alpha == 0] == 1).all()
    assert ((alpha > 0) & (alpha < 1)).float().mean() < 0.1
    assert 0.03 < float((alpha == 1).float().mean()) < 0.5


def test_surroundings_are_read_back_as_written_and_a_damaged_file_is_named(tmp_path):
    gaussians, kind = a_scene(table=False)
    save_surroundings(tmp_path / "s.safetensors", Surroundings(gaussians, kind == BALL))
    read = load_surroundings(tmp_path / "s.safetensors")
    assert torch.equal(read.inside, kind == BALL)
    assert all(torch.equal(a, gaussians.tensors()[name]) for name, a in read.gaussians.tensors().items())
    (tmp_path / "s.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"s\.safetensors: damaged .*fit the part again"):
        load_surroundings(tmp_path / "s.safetensors")
