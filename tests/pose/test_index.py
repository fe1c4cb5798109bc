"""The index's directions, patches and files."""

import math
from dataclasses import replace

import pytest
import torch

from pose.index import (
    DIRECTIONS,
    build_index,
    centred_patch,
    load_index,
    save_index,
    silhouette_of,
    sphere_directions,
    truncated_share,
    whole_patch,
)
from pose.pyramid import SplatLevels
from prepare.camera import Camera
from prepare.errors import InputError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_sphere_directions_are_spread_evenly():
    directions = sphere_directions(DIRECTIONS).double()
    assert torch.allclose(directions.norm(dim=1), torch.ones(DIRECTIONS, dtype=torch.float64), atol=1e-6)
    assert directions.mean(dim=0).norm() < 0.01
    cosine = directions @ directions.T
    cosine.fill_diagonal_(-1)
    nearest = torch.rad2deg(torch.acos(cosine.amax(dim=1)))
    # A cap of 4 pi / n steradians is about sqrt(16 / n) rad wide.
    ideal = math.degrees(math.sqrt(4 * math.pi / DIRECTIONS))
    assert nearest.min() > 0.6 * ideal
    assert nearest.max() < 1.2 * ideal


def figure(size=(120, 150), at=(70.0, 60.0), scale=1.0, turn=0.0):
    """A drawn arrow of soft outline with a coloured head: RGB difference and alpha, turned clockwise by `turn` radians."""
    rows, columns = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    x, y = (columns - at[0]) / scale, (rows - at[1]) / scale
    # What lies at angle phi (x right, y down: clockwise on screen) lay at phi - turn before.
    along, across = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    shaft = ((18 - along.abs()) * scale).clamp(0, 1) * ((5 - (across - 1).abs()) * scale).clamp(0, 1)
    head = ((9 - ((along - 14) ** 2 + (across + 4) ** 2).sqrt()) * scale).clamp(0, 1)
    alpha = torch.maximum(shaft, head)
    colour = shaft[..., None] * torch.tensor([0.2, -0.5, -0.6]) * (1 - head[..., None])
    return colour + head[..., None] * torch.tensor([-0.7, -0.1, 0.3]), alpha


def patch_of(picture, roll=0.0):
    difference, alpha = picture
    return centred_patch(difference, silhouette_of(alpha), roll)


def test_silhouette_is_centroid_and_rms_radius_of_a_disc():
    rows, columns = torch.meshgrid(torch.arange(90) + 0.5, torch.arange(110) + 0.5, indexing="ij")
    disc = (((columns - 60.3) ** 2 + (rows - 40.2) ** 2).sqrt() < 25).float()
    place = silhouette_of(disc)
    assert (place.u, place.v) == pytest.approx((60.3, 40.2), abs=0.1)
    assert place.radius == pytest.approx(25 / math.sqrt(2), rel=0.01)
    assert silhouette_of(torch.zeros(90, 110)) is None


def test_centred_patch_does_not_see_where_the_part_stands_nor_how_large_it_is():
    original = patch_of(figure())
    assert float(original.norm()) == pytest.approx(1.0, abs=1e-5)
    for changed in (figure(at=(81.0, 53.0)), figure(scale=0.7), figure(scale=1.3, at=(66.0, 63.0))):
        assert float(patch_of(changed) @ original) > 0.99
    turned = patch_of(figure(turn=math.pi / 2))
    assert float(turned @ original) < 0.8


@pytest.mark.parametrize("turn", [0.5, -0.9, 2.5])
def test_the_patch_of_a_turned_picture_at_the_opposite_roll_is_that_of_the_picture(turn):
    original = patch_of(figure())
    rolls = torch.arange(72) * (2 * math.pi / 72)
    similar = torch.stack([patch_of(figure(turn=turn), float(roll)) @ original for roll in rolls])
    best = float(rolls[similar.argmax()])
    # Clockwise by roll, as the docstring says: what was turned clockwise by `turn` is turned back by -turn.
    assert math.remainder(best + turn, 2 * math.pi) == pytest.approx(0.0, abs=math.radians(4))
    assert float(patch_of(figure(turn=turn), -turn) @ original) > 0.99


def test_whole_patch_is_a_unit_vector_that_sees_a_shift():
    original, shifted = whole_patch(figure()[0]), whole_patch(figure(at=(85.0, 60.0))[0])
    assert float(original.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(original @ shifted) < 0.8


def test_truncated_share_is_zero_inside_and_grows_where_the_border_cuts():
    whole, half = torch.zeros(60, 60), torch.zeros(60, 60)
    whole[20:40, 20:40] = 1
    half[20:40, :20] = 1
    assert truncated_share(whole) == 0.0
    assert truncated_share(half) == pytest.approx(20 / 80)


def test_index_sees_the_part_from_all_sides_and_holds_the_photos_own_cameras(toy):
    index = toy.loaded.index
    assert len(index.world_to_cam) == 40 + DIRECTIONS
    for view, pose in zip(toy.reference.views, index.world_to_cam, strict=False):
        assert torch.equal(view.camera.world_to_cam, pose)
    assert torch.allclose(index.whole.norm(dim=1), torch.ones(520), atol=1e-4)
    assert torch.allclose(index.centred.norm(dim=1), torch.ones(520), atol=1e-4)
    around = -index.world_to_cam[40:, 2, :3]
    for direction in sphere_directions(200):
        assert float((around @ direction).max()) > math.cos(math.radians(9))
    centres = torch.stack([Camera(p, 1.0, 1.0, 0.0, 0.0, 1, 1).centre for p in index.world_to_cam])
    assert torch.allclose(centres.norm(dim=1), torch.full((520,), 3.0), atol=1e-4)
    assert index.silhouettes[:, :2].min() > 0.3
    assert index.silhouettes[:, :2].max() < 0.7


def test_an_index_of_nothing_is_refused(toy):
    nothing = replace(
        toy.reference.gaussians, logit_opacities=torch.full((len(toy.reference.gaussians),), -20.0)
    )
    empty = replace(toy.reference, gaussians=nothing, views=toy.reference.views[:1])
    with pytest.raises(InputError, match="reference toy: no camera sees any splat"):
        build_index(empty, SplatLevels(nothing))


def test_a_stored_index_comes_back(toy, tmp_path):
    index = toy.loaded.index
    save_index(tmp_path / "index.safetensors", index)
    read = load_index(tmp_path / "index.safetensors")
    assert torch.equal(read.world_to_cam, index.world_to_cam)
    assert torch.equal(read.silhouettes, index.silhouettes)
    assert torch.equal(read.whole, index.whole)
    assert torch.equal(read.centred, index.centred)
    assert replace(read.camera, world_to_cam=index.camera.world_to_cam) == index.camera


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "text"])
def test_a_damaged_index_is_refused_with_its_name(toy, tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "index.safetensors"
    save_index(path, toy.loaded.index)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "other":
        save_file({"lens": torch.zeros(6)}, path)
    else:
        path.write_text("not a tensor file")
    with pytest.raises(InputError, match=r"index\.safetensors: the pose index cannot be read .*splatad fit"):
        load_index(path)
