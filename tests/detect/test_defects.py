"""Regions of a map as defects: box, area, kind, place in 3D."""

import math

import pytest
import torch

from detect.anomaly_map import AnomalyMap, combine
from detect.defects import GROW_SHARE, find_defects
from prepare.camera import Camera, look_at
from recon.rasterize import Render

SIZE = 200


def camera():
    pose = look_at(torch.tensor([0.0, -4.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Camera(pose, 300.0, 300.0, 100.0, 100.0, SIZE, SIZE)


def disc(u, v, radius):
    rows, columns = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    return (columns - u) ** 2 + (rows - v) ** 2 < radius**2


def wall(covered):
    """The render of the plane y = 0 at distance 4, opaque where `covered`."""
    alpha = covered.float()
    return Render(alpha[..., None].expand(-1, -1, 3) * 0.5, alpha, 4.0 * alpha)


PART = torch.zeros(SIZE, SIZE, dtype=torch.bool)
PART[30:170, 30:170] = True


def found(values, alpha=PART, rendered=PART, threshold=1.0):
    anomaly = AnomalyMap(values, torch.ones(SIZE, SIZE, dtype=torch.bool), float(values.max()))
    return find_defects(anomaly, threshold, alpha.float(), wall(rendered), camera())


def test_a_painted_disc_is_one_defect_with_its_box_area_and_place():
    raw = 5.0 * disc(120, 80, 12).float()
    smooth = combine(raw[None], torch.ones(SIZE, SIZE, dtype=torch.bool)).values
    (defect,) = found(smooth, threshold=5.0 * 0.98)
    assert defect.kind == "changed"
    assert defect.area_px == pytest.approx(math.pi * 12**2, rel=0.2)
    assert defect.box == pytest.approx((108, 68, 132, 92), abs=2)
    assert defect.peak == pytest.approx(5.0, abs=0.01)
    assert 2.5 < defect.mean < 5.0
    assert defect.area_px == int(defect.mask.sum())
    # u = 300 x / 4 + 100, and down in the image is -z in the world
    x, y, z = defect.centre
    assert math.dist((x, y, z), (20 * 4 / 300, 0.0, 20 * 4 / 300)) < 0.02
    assert defect.extent == pytest.approx(math.hypot(24, 24) * 4 / 300, rel=0.1)


def test_the_boxs_last_row_and_column_are_exclusive():
    values = torch.zeros(SIZE, SIZE)
    values[50:60, 70:90] = 2.0
    (defect,) = found(values)
    assert defect.box == (70, 50, 90, 60)
    assert defect.area_px == 200


@pytest.mark.parametrize("kind", ["missing", "added", "changed"])
def test_silhouettes_tell_missing_added_and_changed_apart(kind):
    spot = disc(170, 100, 10) if kind != "changed" else disc(100, 100, 10)
    photo, rendered = PART.clone(), PART.clone()
    if kind == "missing":
        photo &= ~spot
    elif kind == "added":
        photo |= spot
    values = 3.0 * spot.float()
    (defect,) = found(values, photo, rendered)
    assert defect.kind == kind
    # Where the silhouette is not known, nothing is called missing or added.
    (unknown,) = found(values, torch.ones_like(PART), rendered)
    assert unknown.kind == "changed"


def test_an_added_piece_beside_the_part_is_placed_at_the_parts_nearest_surface():
    spot = disc(176, 100, 5)
    (defect,) = found(3.0 * spot.float(), PART | spot)
    assert defect.kind == "added"
    x, y, z = defect.centre
    assert math.dist((x, y, z), (68 * 4 / 300, 0.0, 0.0)) < 0.1


def test_a_part_without_any_surface_gives_no_place():
    nothing = torch.zeros_like(PART)
    (defect,) = found(3.0 * disc(100, 100, 8).float(), PART, nothing)
    assert defect.centre is None
    assert defect.extent is None


def test_two_blobs_are_two_defects_strongest_first():
    values = 2.0 * disc(60, 60, 8).float() + 4.0 * disc(130, 120, 10).float()
    first, second = found(values)
    assert (first.peak, second.peak) == (4.0, 2.0)
    assert first.box[0] > second.box[2]
    assert not (first.mask & second.mask).any()


def test_a_defect_spreads_to_half_the_threshold_but_is_not_seeded_there():
    values = (GROW_SHARE + 0.1) * disc(100, 100, 20).float()
    assert found(values) == ()
    values[100, 100] = 1.2
    (defect,) = found(values)
    assert defect.area_px == int(disc(100, 100, 20).sum())


def test_nothing_above_the_threshold_is_no_defect():
    assert found(torch.zeros(SIZE, SIZE)) == ()
    assert found(torch.full((SIZE, SIZE), 1.0)) == ()


def test_specks_are_left_out():
    values = torch.zeros(SIZE, SIZE)
    values[40, 40] = 9.0  # 1 px of 200 x 200 is 4 of 400 x 400
    values[80:82, 80] = 9.0  # 8
    (defect,) = found(values)
    assert defect.box == (80, 80, 81, 82)
