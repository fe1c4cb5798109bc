"""PSNR, SSIM and LPIPS of a render against its photo: hand values, the SSIM map's definition, weights of pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon.losses import make_target, ssim_map
from recon.lpips import MIN_SIDE_PX, Lpips
from recon.quality import measure_quality


def _pair(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Render (partly beyond [0, 1]), photo, share of the part, valid pixels."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    photo = uniform(height, width, 3)
    render = 0.8 * photo + 0.5 * uniform(height, width, 3) - 0.1
    part = (1.5 * uniform(height, width) - 0.25).clamp(0, 1)
    return render, photo, part, (uniform(height, width) > 0.2).float()


def _lpips() -> Lpips:
    """Small random weights in the shapes of the network."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    filters = tuple(
        torch.randn(n, inputs, side, side, generator=generator) * (2 / (inputs * side**2)) ** 0.5
        for n, inputs, side in shapes
    )
    return Lpips(
        filters,
        tuple(torch.zeros(n) for n, *_ in shapes),
        tuple(torch.rand(n, generator=generator) for n, *_ in shapes),
    )


@pytest.mark.parametrize("size", [(60, 83), (9, 7)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_ssim_is_the_mean_of_the_map_of_the_clamped_render_by_the_pixels_weights(
    size: tuple[int, int], masked: bool
) -> None:
    render, photo, part, mask = _pair(*size)
    assert float(render.min()) < 0
    assert float(render.max()) > 1
    valid = mask if masked else None
    by_pixel = ssim_map(render.clamp(0, 1).double().permute(2, 0, 1), make_target(photo.double())).mean(dim=0)
    whole = torch.ones_like(by_pixel) if valid is None else valid.double()
    found = measure_quality(render, photo, part, valid)
    assert found.ssim == pytest.approx(float((by_pixel * whole).sum() / whole.sum()), abs=2e-6)
    whole = whole * part
    assert found.part_ssim == pytest.approx(float((by_pixel * whole).sum() / whole.sum()), abs=2e-6)
    assert found.lpips is None


def test_ssim_inside_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    render, photo, _, _ = _pair(40, 52)
    part = torch.zeros(40, 52)
    part[5:-5, 5:-5] = 1.0  # scikit-image mirrors the border, 3DGS pads it with zeros
    truth = metrics.structural_similarity(
        render.clamp(0, 1).double().numpy(),
        photo.double().numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )  # which averages the same pixels
    assert measure_quality(render, photo, part, None).part_ssim == pytest.approx(truth, abs=2e-6)


def test_psnr_is_that_of_the_known_errors_inside_and_outside_the_part() -> None:
    photo = torch.full((20, 20, 3), 0.5)
    render = photo + 0.1
    part = torch.zeros(20, 20)
    part[5:10, 5:10] = 1.0
    render[5:10, 5:10] = 0.51
    found = measure_quality(render, photo, part, None)
    assert found.part_psnr == pytest.approx(40.0, abs=1e-3)
    assert found.psnr == pytest.approx(-10 * math.log10((375 * 0.01 + 25 * 1e-4) / 400), abs=1e-3)


def test_two_flat_pictures_have_the_ssim_of_their_means() -> None:
    found = measure_quality(
        torch.full((40, 40, 3), 1.7),  # counts as white
        torch.full((40, 40, 3), 0.6),
        torch.nn.functional.pad(torch.ones(20, 20), (10, 10, 10, 10)),
        None,
    )
    assert found.part_ssim == pytest.approx(
        (2 * 0.6 + 1e-4) / (1 + 0.36 + 1e-4), abs=1e-3
    )  # rounded variances


def test_a_render_that_is_the_photo_is_perfect() -> None:
    _, photo, part, valid = _pair(64, 64)
    found = measure_quality(photo.clone(), photo, part, valid, _lpips())
    assert found.psnr == found.part_psnr == pytest.approx(120.0)
    assert found.ssim == pytest.approx(1.0, abs=1e-6)
    assert found.part_ssim == pytest.approx(1.0, abs=1e-6)
    assert found.lpips == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("nothing", ["part", "valid"])
def test_a_part_of_no_pixels_is_matched_perfectly(nothing: str) -> None:
    render, photo, part, valid = _pair(30, 30)
    zero = torch.zeros(30, 30)
    found = measure_quality(
        render, photo, zero if nothing == "part" else part, zero if nothing == "valid" else valid
    )
    assert (found.part_psnr, found.part_ssim) == (pytest.approx(120.0), 1.0)


def test_a_part_of_one_pixel_has_that_pixels_ssim() -> None:
    render, photo, _, _ = _pair(300, 200)
    part = torch.zeros(300, 200)
    part[171, 64] = 0.5
    by_pixel = ssim_map(render.clamp(0, 1).permute(2, 0, 1).double(), make_target(photo.double()))
    found = measure_quality(render, photo, part, None)
    assert found.part_ssim == pytest.approx(float(by_pixel.mean(dim=0)[171, 64]), abs=1e-5)


def test_what_lies_in_invalid_pixels_beyond_the_windows_reach_changes_nothing() -> None:
    render, photo, part, _ = _pair(70, 90)
    valid = torch.ones(70, 90)
    valid[:, 40:] = 0.0
    changed, inside = render.clone(), valid.clone()
    changed[:, 45:] = torch.rand(70, 45, 3)
    inside[:, 39] = 0.0  # SSIM at column 39 reaches to 44
    lpips = _lpips()
    assert measure_quality(changed, photo, part, inside, lpips) == measure_quality(
        render, photo, part, inside, lpips
    )


def test_lpips_is_the_distance_of_the_clamped_pictures_where_they_are_large_enough() -> None:
    render, photo, part, valid = _pair(48, 40)
    lpips = _lpips()
    found = measure_quality(render, photo, part, None, lpips).lpips
    assert found == lpips.distance(render.clamp(0, 1), photo)
    assert found is not None
    masked = measure_quality(render, photo, part, valid, lpips).lpips
    composed = torch.where(valid[..., None] > 0, render.clamp(0, 1), photo)
    assert masked == pytest.approx(lpips.distance(composed, photo), rel=1e-6)
    small = slice(0, MIN_SIDE_PX - 1)
    assert measure_quality(render[small], photo[small], part[small], None, lpips).lpips is None
    small = slice(0, MIN_SIDE_PX)
    assert measure_quality(render[small], photo[small], part[small], None, lpips).lpips is not None


def test_numbers_fall_as_noise_grows_and_a_gradient_does_not_matter() -> None:
    _, photo, part, _ = _pair(64, 48)
    noise = torch.randn(64, 48, 3, generator=torch.Generator().manual_seed(5))
    lpips = _lpips()
    found = [
        measure_quality((photo + s * noise).requires_grad_(), photo, part, None, lpips)
        for s in (0.02, 0.06, 0.2)
    ]
    for name in ("psnr", "part_psnr", "ssim", "part_ssim"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values, reverse=True), name
    distances = [one.lpips for one in found if one.lpips is not None]
    assert len(distances) == 3
    assert distances == sorted(distances)
