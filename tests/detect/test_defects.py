"""Regions of a map as defects: box, area, kind, place in 3D."""

import math

import pytest
import torch

from detect.anomaly_map import AnomalyMap, combine
from detect.defects import GROW_SHARE, MOST_EXAMINED, find_defects, weights_within
from pose.residual import Exposure
from prepare.camera import Camera, look_at
from recon.fit import compositing_weights
from recon.gaussians import Gaussians, gaussians_from_points
from recon.initial_points import Volume
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions, Render, rasterize
from recon.reference import Reference, ReferenceView

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


def reference_of(gaussians):
    """A reference of these splats over white."""
    view = ReferenceView("view", camera(), torch.ones(3), False, ViewQuality(40.0, 36.0, 0.98, 0.95, None))
    return Reference(
        "wall", gaussians, (view,), Volume(torch.zeros(3), 1.0), RasterOptions(), SIZE, "", None, None, {}
    )


def patch(centre, radius, colour_of, step=0.03):
    """Opaque splats on a disc in the plane y = centre[1], `colour_of(x, z)` of the offset from the centre."""
    line = torch.arange(-radius, radius + step / 2, step)
    x, z = (grid.reshape(-1) for grid in torch.meshgrid(line, line, indexing="ij"))
    inside = x.square() + z.square() <= radius**2
    x, z = x[inside], z[inside]
    points = torch.stack([x, torch.zeros_like(x), z], dim=1) + torch.tensor(centre)
    colours = colour_of(x, z).clamp(0.02, 0.98)
    return gaussians_from_points(points, colours, torch.full((len(x),), 0.7 * step), opacity=0.97)


def plain(*rgb):
    return lambda x, z: torch.tensor(rgb).expand(len(x), 3)


def together(*parts):
    return Gaussians(
        **{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
    )


SPLAT = patch((0.0, 0.0, 0.0), 0.0, plain(0.5, 0.5, 0.5))
PART = torch.zeros(SIZE, SIZE, dtype=torch.bool)
PART[30:170, 30:170] = True


def found(values, alpha=PART, rendered=PART, threshold=1.0):
    anomaly = AnomalyMap(values, torch.ones(SIZE, SIZE, dtype=torch.bool), float(values.max()))
    render = wall(rendered)
    return find_defects(anomaly, threshold, render.rgb, alpha.float(), render, reference_of(SPLAT), camera())


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
    # its greatest length is the diameter of what stands above half the threshold, its area that many pixels
    assert defect.extent == pytest.approx(math.sqrt(defect.area_px * 4 / math.pi) * 4 / 300, rel=0.06)
    assert defect.area == pytest.approx(defect.area_px * (4 / 300) ** 2, rel=1e-5)
    assert defect.normal == pytest.approx((0.0, -1.0, 0.0), abs=1e-4)


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
    (defect,) = found(3.0 * spot.float(), photo, rendered)
    gone, extra = defect.evidence.gone, defect.evidence.extra
    assert (gone > 0.35, extra > 0.35) == (kind == "missing", kind == "added")
    if kind != "changed":
        assert defect.kind == kind
    # Where the silhouette is not known, it says nothing.
    (unknown,) = found(3.0 * spot.float(), torch.ones_like(PART), rendered)
    assert (unknown.evidence.gone, unknown.evidence.extra) == (0.0, 0.0)


def test_an_added_piece_beside_the_part_is_placed_at_the_parts_nearest_surface():
    spot = disc(176, 100, 5)
    (defect,) = found(3.0 * spot.float(), PART | spot)
    assert defect.kind == "added"
    x, y, z = defect.centre
    assert math.dist((x, y, z), (68 * 4 / 300, 0.0, 0.0)) < 0.1


def test_a_part_without_any_surface_gives_no_place():
    nothing = torch.zeros_like(PART)
    (defect,) = found(3.0 * disc(100, 100, 8).float(), PART, nothing)
    assert (defect.centre, defect.extent, defect.area, defect.normal) == (None, None, None, None)


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


def test_a_ring_is_filled_and_what_stands_inside_stays_a_defect_of_its_own():
    ring = disc(100, 100, 20) & ~disc(100, 100, 15)
    (defect,) = found(2.0 * ring.float())
    assert torch.equal(defect.mask, disc(100, 100, 20))
    values = 2.0 * ring.float() + 3.0 * disc(100, 100, 6).float()
    inner, outer = found(values)
    assert torch.equal(inner.mask, disc(100, 100, 6))
    assert torch.equal(outer.mask, disc(100, 100, 20) & ~disc(100, 100, 6))


def test_what_shows_far_behind_a_defects_edge_does_not_make_it_longer():
    spot = disc(100, 100, 10)
    render = wall(PART)
    far = torch.where(torch.arange(SIZE)[None] >= 106, 9.0, 4.0).expand(SIZE, SIZE) * render.alpha
    render = Render(render.rgb, render.alpha, far)
    anomaly = AnomalyMap(3.0 * spot.float(), torch.ones_like(spot), 3.0)
    (defect,) = find_defects(anomaly, 1.0, render.rgb, PART.float(), render, reference_of(SPLAT), camera())
    assert defect.extent == pytest.approx(20 * 4 / 300, rel=0.1)
    assert abs(defect.centre[1]) < 1e-4


def test_a_slanted_surface_has_its_own_normal_and_length():
    # the plane z = 4 + 0.5 x of the camera: seen 100 px to each side of the middle x = z (u - 100) / 300
    u = torch.arange(SIZE) + 0.5
    slope = (u - 100) / 300
    depth = (4 / (1 - 0.5 * slope)).expand(SIZE, SIZE)
    render = Render(torch.full((SIZE, SIZE, 3), 0.5), torch.ones(SIZE, SIZE), depth)
    values = torch.zeros(SIZE, SIZE)
    values[99:101, 80:120] = 3.0
    anomaly = AnomalyMap(values, torch.ones(SIZE, SIZE, dtype=torch.bool), 3.0)
    (defect,) = find_defects(anomaly, 1.0, render.rgb, render.alpha, render, reference_of(SPLAT), camera())
    # camera x is world x, camera z world y: the normal lies along (0.5, -1) of (x, y)
    assert defect.normal == pytest.approx((0.5 / 1.25**0.5, -1 / 1.25**0.5, 0.0), abs=1e-3)
    ends = [(4 / (1 - 0.5 * s)) for s in ((80 - 100) / 300, (120 - 100) / 300)]
    assert defect.extent == pytest.approx((ends[1] - ends[0]) * 2 * 1.25**0.5, rel=0.05)


# ------------------------------------------------------------------------------ splats: a red disc before a blue wall


def stripes(red, green, blue):
    """A colour with soft stripes."""
    return lambda x, z: torch.tensor([red, green, blue]) * (1 + 0.3 * torch.sin(25 * x))[:, None]


WALL = patch((0.0, 0.6, 0.0), 1.2, stripes(0.25, 0.35, 0.7), step=0.05)
DISC = patch((0.0, 0.0, 0.0), 0.35, stripes(0.7, 0.15, 0.1))
SCENE = together(WALL, DISC)


def seen(gaussians):
    with torch.no_grad():
        return rasterize(gaussians, camera(), torch.ones(3), options=RasterOptions(depth=True))


def inspected(gaussians, exposure=None):
    """The defects of a photo of `gaussians` against SCENE, with a map of 5 where they differ."""
    photo, render = seen(gaussians), seen(SCENE)
    differs = (photo.rgb - render.rgb).abs().amax(dim=-1) > 0.08
    anomaly = AnomalyMap(5.0 * differs.float(), torch.ones_like(differs), 5.0)
    exposure = exposure or Exposure()
    return find_defects(
        anomaly,
        4.0,
        exposure.applied(photo.rgb),
        photo.alpha,
        render,
        reference_of(SCENE),
        camera(),
        exposure,
    )


def recoloured(gaussians, chosen, rgb):
    sh = gaussians.sh.clone()
    sh[chosen, 0] = (torch.tensor(rgb) - 0.5) / 0.28209479
    return Gaussians(**{**gaussians.tensors(), "sh": sh})


def test_a_disc_whose_splats_are_taken_away_is_missing_with_its_place_size_and_splats():
    (defect,) = inspected(WALL)
    assert defect.kind == "missing"
    assert defect.evidence.behind < 0.3  # without its splats the render is the photo
    assert (defect.evidence.gone, defect.evidence.extra) == (
        0.0,
        0.0,
    )  # the wall's silhouette hides the disc's
    assert math.dist(defect.centre, (0, 0, 0)) < 0.02
    assert defect.extent == pytest.approx(0.7, rel=0.06)
    # pixels that the outermost splats show in count as well, to about two standard deviations
    assert defect.area == pytest.approx(math.pi * (0.35 + 2 * 0.021) ** 2, rel=0.06)
    assert abs(defect.normal[1]) > 0.99
    disc_splats = set(range(len(WALL), len(SCENE)))
    hit = set(defect.splats.tolist())
    assert len(hit & disc_splats) >= 0.9 * len(disc_splats)
    # those of the wall that show only where the disc's edge mixes with it, at a depth between the two
    beside = SCENE.means[sorted(hit - disc_splats)]
    assert len(beside) <= 0.12 * len(disc_splats)
    assert bool((beside[:, [0, 2]].norm(dim=1) > 0.3).all())


def test_splats_put_on_the_disc_in_its_own_colours_are_something_added():
    lump = patch((0.05, -0.1, 0.03), 0.13, lambda x, z: torch.tensor([0.7, 0.15, 0.1]) * (0.45 + z)[:, None])
    (defect,) = inspected(together(SCENE, lump))
    assert defect.kind == "added"
    assert defect.evidence.behind > 0.8
    assert math.dist(defect.centre, (0.05, 0.0, 0.03)) < 0.05  # on the surface below it


@pytest.mark.parametrize("exposure", [None, Exposure((0.8, 0.9, 0.7), (0.05, 0.0, 0.08))])
def test_recoloured_splats_are_discoloured_in_any_light(exposure):
    near = (SCENE.means - torch.tensor([0.05, 0.0, -0.05])).norm(dim=1) < 0.15
    (defect,) = inspected(recoloured(SCENE, near, (0.1, 0.6, 0.2)), exposure)
    assert defect.kind == "discoloured"
    assert defect.evidence.novelty > 0.1
    assert math.dist(defect.centre, (0.05, 0.0, -0.05)) < 0.03
    assert min(defect.splats.tolist()) >= len(
        WALL
    )  # not of the wall behind, though the disc is not quite opaque


def test_a_stain_that_leaves_the_structure_is_discoloured_even_in_a_known_colour():
    # the disc as in less light: no colour is new, but every edge is where it was
    sh = SCENE.sh.clone()
    sh[len(WALL) :] = patch((0.0, 0.0, 0.0), 0.35, stripes(0.42, 0.09, 0.06)).sh
    (defect,) = inspected(Gaussians(**{**SCENE.tensors(), "sh": sh}))
    assert defect.evidence.novelty < 0.016
    assert defect.evidence.structure > 0.8
    assert defect.kind == "discoloured"


def test_weights_within_masks_add_up_to_the_splats_weights():
    cut = torch.arange(SIZE) < 90
    left = cut.expand(SIZE, SIZE).numpy()
    top = cut[:, None].expand(SIZE, SIZE).numpy()
    masks = [left, ~left, top, ~top]
    sums = weights_within(SCENE, camera(), RasterOptions(), masks)
    whole = compositing_weights(SCENE, camera(), RasterOptions())
    assert sums.shape == (4, len(SCENE))
    assert torch.allclose(sums[0] + sums[1], whole, atol=1e-4)
    assert torch.allclose(sums[2] + sums[3], whole, atol=1e-4)
    alpha = seen(SCENE).alpha
    assert float(sums[2].sum()) == pytest.approx(float(alpha[torch.from_numpy(top)].sum()), rel=1e-4)


def test_only_the_strongest_defects_are_examined_closely_but_all_are_listed():
    values = torch.zeros(SIZE, SIZE)
    for i in range(MOST_EXAMINED + 2):
        values[60:68, 35 + 13 * i : 43 + 13 * i] = 3.0 + 0.1 * i
    render = seen(SCENE)
    anomaly = AnomalyMap(values, torch.ones(SIZE, SIZE, dtype=torch.bool), 4.0)
    defects = find_defects(anomaly, 1.0, render.rgb, render.alpha, render, reference_of(SCENE), camera())
    assert len(defects) == MOST_EXAMINED + 2
    assert all(d.evidence.behind is not None for d in defects[:MOST_EXAMINED])
    assert all(d.evidence.behind is None and len(d.splats) == 0 for d in defects[MOST_EXAMINED:])
    assert [d.peak for d in defects] == sorted((d.peak for d in defects), reverse=True)
