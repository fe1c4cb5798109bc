"""What good photos leave, kept on the splats: sums against brute force, and what comes back at a camera."""

import math
from dataclasses import replace

import pytest
import torch

from detect.difference import difference_channels
from detect.expected import (
    ENOUGH_PIXELS,
    PRIOR_PIXELS,
    ExpectedResidual,
    ResidualSums,
    expectation,
    load_expected,
    residual_sums,
    save_expected,
)
from prepare.camera import Camera, look_at
from prepare.errors import InputError
from recon.fit import Photo
from recon.gaussians import gaussians_from_points
from recon.initial_points import Volume
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions, rasterize
from recon.rasterize_reference import rasterize_reference
from recon.reference import Reference, ReferenceView

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WHITE = torch.ones(3)


def small_scene(count=9):
    """A few large splats, the last one behind the camera, and the one camera."""
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(count, 3, generator=generator) * 0.3
    points[-1] = torch.tensor([0.0, -9.0, 0.0])
    gaussians = gaussians_from_points(
        points, torch.rand(count, 3, generator=generator), torch.full((count,), 0.15), opacity=0.8
    )
    pose = look_at(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(pose, 30.0, 30.0, 12.0, 10.0, 24, 20)
    view = ReferenceView("one", camera, WHITE, False, ViewQuality(30.0, 30.0, 0.9, 0.9, None))
    reference = Reference(
        "small", gaussians, (view,), Volume(torch.zeros(3), 1.0), RasterOptions(), 24, "", None, None, {}
    )
    return reference, camera


def photo(camera, seed, valid=None):
    rgb = torch.rand(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(seed))
    return Photo(f"p{seed}", camera, rgb, torch.ones(camera.height, camera.width), WHITE, valid)


def weights(reference, camera):
    """(splat, row, column): compositing weights by the plain-torch rasteriser, one splat coloured at a time."""
    count = len(reference.gaussians)
    planes = []
    for i in range(count):
        colours = torch.zeros(count, 3)
        colours[i] = 1.0
        planes.append(
            rasterize_reference(reference.gaussians, camera, torch.zeros(3), colours, RasterOptions()).rgb[
                ..., 0
            ]
        )
    return torch.stack(planes)


@pytest.mark.parametrize("masked", [False, True])
def test_residual_sums_are_the_brute_force_sums_by_compositing_weight(masked):
    reference, camera = small_scene()
    valid = (torch.rand(20, 24, generator=torch.Generator().manual_seed(1)) > 0.3).float() if masked else None
    one = photo(camera, 0, valid)
    sums = residual_sums(reference, one)
    apart = difference_channels(one.rgb, rasterize(reference.gaussians, camera, WHITE).rgb)
    squared = apart.square()
    counted = torch.ones(20, 24) if valid is None else valid
    weight = weights(reference, camera) * counted
    assert torch.allclose(sums.squared, torch.einsum("nhw,chw->nc", weight, squared), rtol=1e-4, atol=1e-5)
    assert torch.allclose(sums.total, torch.einsum("nhw,chw->nc", weight, apart), rtol=1e-4, atol=1e-4)
    assert torch.allclose(sums.seen, weight.sum(dim=(1, 2)), rtol=1e-4, atol=1e-4)
    off = counted - weight.sum(dim=0)
    assert torch.allclose(sums.off_squared, (squared * off).sum(dim=(1, 2)), rtol=1e-3)
    assert sums.off_seen == pytest.approx(float(off.sum()), rel=1e-3)
    # Every counted pixel is shared out, none twice.
    assert float(sums.seen.sum()) + sums.off_seen == pytest.approx(float(counted.sum()), rel=1e-5)


def test_a_difference_of_another_kind_is_used_where_given():
    reference, camera = small_scene()

    def constant(photo, render):
        return torch.full((2, 20, 24), 0.5)

    sums = residual_sums(reference, photo(camera, 0), constant)
    assert torch.allclose(sums.squared, 0.25 * sums.seen[:, None].expand(-1, 2), rtol=1e-4, atol=1e-6)
    expected = sums.expected()
    assert torch.allclose(expected.mean[sums.seen > 20], torch.tensor(0.5), rtol=0.1)
    assert float(expected.spread.max()) < 0.3  # the same in all pixels


def test_sums_add_up_and_leaving_one_out_leaves_the_rest():
    reference, camera = small_scene()
    a, b = (residual_sums(reference, photo(camera, seed)) for seed in (0, 1))
    both = a.plus(b)
    assert torch.allclose(both.squared, a.squared + b.squared)
    rest = both.plus(b, -1.0)
    assert torch.allclose(rest.squared, a.squared, atol=1e-4)
    assert torch.allclose(rest.seen, a.seen, atol=1e-3)
    assert torch.allclose(rest.off_squared, a.off_squared, rtol=1e-4)
    assert rest.off_seen == pytest.approx(a.off_seen)
    assert torch.allclose(a.plus(b, 3.0).squared, a.squared + 3 * b.squared)
    assert torch.allclose(rest.expected().variance, a.expected().variance, rtol=1e-3)


def test_a_splat_seen_nowhere_is_given_the_mean_and_one_seen_often_its_own():
    sums = ResidualSums(
        torch.tensor([[8.0], [4000.0], [0.0]]),
        torch.tensor([100.0, 1000.0, 0.0]),
        torch.tensor([6.0]),
        3.0,
        torch.tensor([[20.0], [2000.0], [0.0]]),
    )
    expected = sums.expected()
    average = 4008 / 1100
    assert expected.variance[2, 0] == pytest.approx(average)
    assert expected.variance[0, 0] == pytest.approx((8 + PRIOR_PIXELS * average) / (100 + PRIOR_PIXELS))
    assert expected.variance[1, 0] == pytest.approx(4.0, rel=0.01)
    assert expected.background.tolist() == [2.0]
    assert expected.mean[1, 0] == pytest.approx(2.0, rel=0.01)
    assert expected.spread[1, 0] == pytest.approx(0.0, abs=0.15)
    reference, camera = small_scene()
    assert float(residual_sums(reference, photo(camera, 0)).seen[-1]) == 0.0


@pytest.mark.parametrize("channels", [3, 4, 6])
def test_a_constant_variance_gives_that_constant_everywhere(toy, channels):
    count = len(toy.reference.gaussians)
    values = torch.arange(1, channels + 1) / 10
    expected = ExpectedResidual(
        values.square().expand(count, -1),
        torch.full((count,), 50.0),
        values.square(),
        values.expand(count, -1),
    )
    camera = toy.cameras(1, seed=1)[0]
    shown = expectation(toy.reference, expected, camera)
    deviation, evidence = shown.deviation, shown.evidence
    assert deviation.shape == (channels, 100, 100)
    assert torch.allclose(deviation, values[:, None, None].expand(-1, 100, 100), rtol=1e-3)
    alpha = rasterize(toy.reference.gaussians, camera).alpha
    assert torch.allclose(evidence, torch.full((), ENOUGH_PIXELS), rtol=1e-3)
    rarely = replace(expected, seen=torch.full((count,), 0.5))
    evidence = expectation(toy.reference, rarely, camera).evidence
    assert torch.allclose(evidence, 0.5 * alpha + ENOUGH_PIXELS * (1 - alpha), rtol=1e-3)


def test_mean_light_and_gloss_come_back_on_the_part_and_are_none_off_it(toy):
    reference = toy.reference
    count = len(reference.gaussians)
    sh = torch.zeros(count, 4, 3)
    sh[:, 1:] = 0.2
    reference = replace(reference, gaussians=replace(reference.gaussians, sh=sh))
    mean = torch.tensor([9.0, 9.0, -0.3]).expand(count, -1)
    expected = ExpectedResidual(torch.ones(count, 3), torch.full((count,), 9.0), torch.ones(3), mean)
    camera = toy.cameras(1, seed=1)[0]
    shown = expectation(reference, expected, camera)
    alpha = rasterize(reference.gaussians, camera).alpha
    assert torch.allclose(shown.light, -0.3 * alpha, atol=1e-4)
    # Three harmonics of 0.2 each: their mean square over the sphere is the sum of squares / 4 pi.
    assert torch.allclose(shown.gloss, math.sqrt(3 * 0.04 / (4 * math.pi)) * alpha, atol=1e-4)


def test_photos_are_compared_with_splats_that_have_not_seen_them_where_there_are_any():
    reference, camera = small_scene()
    one = photo(camera, 0)
    dark = replace(reference.gaussians, sh=reference.gaussians.sh - 1.0)
    sums = residual_sums(reference, one, unseen=dark)
    shown = rasterize(dark, camera, WHITE).rgb
    squared = difference_channels(one.rgb, shown).square()
    assert torch.allclose(
        sums.squared, torch.einsum("nhw,chw->nc", weights(reference, camera), squared), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(sums.squared, residual_sums(reference, one).squared, rtol=1e-2)


def test_what_was_noisy_in_the_photos_is_expected_to_be_noisy(toy):
    """A region that flickers in all good photos, and only it, is expected to differ in a new one."""
    reference = toy.reference
    flickers = reference.gaussians.means[:, 0] > 0.25
    total = None
    for i, view in enumerate(reference.views[:12]):
        colours = torch.full((len(flickers), 3), 0.5)
        colours[flickers] += 0.3 * (-1) ** i
        rgb = rasterize(reference.gaussians, view.camera, WHITE, colours=colours).rgb
        flat = replace(
            reference, gaussians=replace(reference.gaussians, sh=torch.zeros_like(reference.gaussians.sh))
        )
        one = residual_sums(flat, Photo("p", view.camera, rgb, torch.ones(100, 100), WHITE, None))
        total = one if total is None else total.plus(one)
    deviation = total.expected().variance[:, 0].sqrt()
    seen = total.seen > 10
    still = reference.gaussians.means[:, 0] < 0.0
    assert (seen & flickers).sum() > 50
    assert (seen & still).sum() > 50
    assert deviation[seen & flickers].median() > 3 * deviation[seen & still].median()


def test_stored_statistics_come_back_exactly(toy, tmp_path):
    expected = toy.loaded.detector.expected
    save_expected(tmp_path / "expected.safetensors", expected)
    read = load_expected(tmp_path / "expected.safetensors")
    assert torch.equal(read.variance, expected.variance)
    assert torch.equal(read.seen, expected.seen)
    assert torch.equal(read.background, expected.background)
    assert torch.equal(read.mean, expected.mean)


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_damaged_statistics_are_refused_with_their_name(toy, tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "expected.safetensors"
    save_expected(path, toy.loaded.detector.expected)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        save_file({"seen": torch.zeros(3)}, path)
    with pytest.raises(
        InputError, match=r"expected\.safetensors: the residual statistics cannot be read .*splatad fit"
    ):
        load_expected(path)
