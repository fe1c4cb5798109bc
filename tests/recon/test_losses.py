"""The fused loss against its definition in float64, the definition against scikit-image and hand values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prepare.errors import MissingPartError
from recon.kernel.library import choose_instruction_set, set_threads
from recon.losses import Target, make_target, photometric_loss, photometric_loss_reference, psnr, ssim_map

SIZES = [
    (37, 53),
    (8, 64),
    (11, 11),
    (5, 3),
    (1, 1),
    (1, 40),
]  # the last four: smaller than the window somewhere
# The kernel takes strips of at most 100 rows, ten rows at a time, in registers of 4, 8 or 16 columns.
STRIPS = [(99, 1), (100, 15), (101, 16), (104, 17), (106, 33), (111, 33), (201, 17), (205, 1)]


def _pair(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Render, photo (alike but not the same) and weights, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    photo = uniform(height, width, 3)
    render = 0.6 * photo + 0.5 * uniform(height, width, 3) - 0.05
    return render, photo, uniform(height, width)


def _value_and_gradient(
    render: Tensor, photo: Tensor, weight: Tensor | None, share: float
) -> tuple[Tensor, Tensor]:
    rgb = render.clone().requires_grad_()
    loss = photometric_loss(rgb, make_target(photo, weight), share)
    (gradient,) = torch.autograd.grad(loss, rgb)
    return loss.detach(), gradient


@pytest.fixture(params=["base", "v3", "v4"])
def _each_instruction_set(request: pytest.FixtureRequest):
    try:
        choose_instruction_set(request.param)
    except MissingPartError as error:
        pytest.skip(str(error))
    yield
    choose_instruction_set("auto")


@pytest.mark.usefixtures("_each_instruction_set")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES + STRIPS, ids=str)
def test_the_fused_loss_and_its_gradient_are_those_of_the_definition_in_float64(
    size: tuple[int, int], weighted: bool
) -> None:
    render, photo, weights = _pair(*size)
    weight = weights if weighted else None
    for share in (0.0, 0.2, 1.0):
        rgb = render.clone().requires_grad_()
        truth = photometric_loss_reference(rgb, make_target(photo, weight), share)
        (slope,) = torch.autograd.grad(truth, rgb)
        truth = truth.detach()
        narrow = None if weight is None else weight.float()
        loss, gradient = _value_and_gradient(render.float(), photo.float(), narrow, share)
        assert float(loss) == pytest.approx(float(truth), rel=1e-5, abs=1e-6)
        # Variances are differences of rounded means: the gradient keeps five digits, not seven.
        assert float((gradient - slope).norm() / slope.norm()) < 2e-5, share


@pytest.mark.usefixtures("_each_instruction_set")
def test_every_width_up_to_three_registers_and_every_height_up_to_three_blocks_is_blurred_alike() -> None:
    sizes = [(7, width) for width in range(1, 50)] + [(height, 5) for height in range(1, 32)]
    for size in sizes:
        render, photo, weight = _pair(*size)
        rgb = render.clone().requires_grad_()
        target = make_target(photo, weight)
        (slope,) = torch.autograd.grad(photometric_loss_reference(rgb, target, 1.0), rgb)
        narrow = make_target(photo.float(), weight.float())
        for moment in ("mean", "mean_square"):
            torch.testing.assert_close(
                getattr(narrow, moment).double(), getattr(target, moment), rtol=1e-6, atol=1e-6, msg=str(size)
            )
        _, gradient = _value_and_gradient(render.float(), photo.float(), weight.float(), 1.0)
        assert float((gradient - slope).norm() / slope.norm()) < 2e-5, size


@pytest.mark.usefixtures("_each_instruction_set")
@pytest.mark.parametrize("size", [(37, 53), (211, 18)], ids=str)
def test_the_loss_is_the_same_where_no_gradient_is_wanted(size: tuple[int, int]) -> None:
    render, photo, weight = (t.float() for t in _pair(*size))
    for weighted in (None, weight):
        loss, _ = _value_and_gradient(render, photo, weighted, 0.2)
        alone = photometric_loss(render, make_target(photo, weighted), 0.2)
        assert float(alone) == pytest.approx(float(loss), rel=1e-6)


def test_the_definition_is_differentiated_as_central_differences_say() -> None:
    render, photo, weight = _pair(9, 12)
    target = make_target(photo, weight)
    rgb = render.clone().requires_grad_()
    (slope,) = torch.autograd.grad(photometric_loss_reference(rgb, target, 0.3), rgb)
    for row, column, channel in ((0, 0, 0), (4, 7, 1), (8, 11, 2)):
        step = torch.zeros_like(render)
        step[row, column, channel] = 1e-6
        values = [photometric_loss_reference(render + sign * step, target, 0.3) for sign in (1, -1)]
        expected = float(values[0] - values[1]) / 2e-6
        assert float(slope[row, column, channel]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_ssim_is_scikit_images_away_from_the_border() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    render, photo, _ = _pair(40, 33)
    _, full = metrics.structural_similarity(
        render.numpy(),
        photo.numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    ours = ssim_map(render.permute(2, 0, 1), make_target(photo)).permute(1, 2, 0)
    inside = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(ours.numpy()[inside], full[inside], rtol=0, atol=1e-12)
    # and the fused loss is one minus that mean, plus the border that both treat alike
    loss = photometric_loss(render.float(), make_target(photo.float()), 1.0)
    assert float(loss) == pytest.approx(1.0 - float(ours.mean()), abs=1e-6)


def test_equal_pictures_lose_nothing_and_a_grey_step_loses_its_height() -> None:
    photo = torch.rand(16, 20, 3)
    assert float(photometric_loss(photo, make_target(photo), 0.2)) == pytest.approx(0.0, abs=1e-6)
    flat = torch.full((16, 20, 3), 0.25)
    assert float(photometric_loss(flat + 0.125, make_target(flat), 0.0)) == pytest.approx(0.125, rel=1e-6)


def test_pixels_of_weight_zero_do_not_count() -> None:
    render, photo, _ = (t.float() for t in _pair(30, 30))
    weight = torch.zeros(30, 30)
    weight[:, :15] = 1.0
    changed = render.clone()
    changed[:, 21:] = 0.5  # further than the window's radius from any pixel that counts
    target = make_target(photo, weight)
    assert float(photometric_loss(changed, target, 0.2)) == float(photometric_loss(render, target, 0.2))
    _, gradient = _value_and_gradient(render, photo, weight, 0.2)
    assert gradient[:, 21:].abs().max() == 0
    assert gradient[:, :15].abs().min() > 0


def test_the_gradient_is_scaled_by_what_comes_after_the_loss() -> None:
    render, photo, _ = (t.float() for t in _pair(14, 18))
    _, gradient = _value_and_gradient(render, photo, None, 0.2)
    rgb = render.clone().requires_grad_()
    (3.0 * photometric_loss(rgb, make_target(photo), 0.2)).backward()
    assert rgb.grad is not None
    torch.testing.assert_close(rgb.grad, 3.0 * gradient)


@pytest.mark.usefixtures("_each_instruction_set")
@pytest.mark.parametrize("size", [(70, 61), (211, 33)], ids=str)
def test_threads_do_not_change_a_bit(size: tuple[int, int]) -> None:
    render, photo, weight = (t.float() for t in _pair(*size))
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        target = make_target(photo, weight)
        loss, gradient = _value_and_gradient(render, photo, weight, 0.2)
        results.append((loss, gradient, target.mean, target.mean_square))
    set_threads(2)
    for result in results[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(result, results[0], strict=True))


def test_a_target_the_kernel_cannot_read_is_refused() -> None:
    render, photo, weight = _pair(12, 14)
    narrow = render.float()
    with pytest.raises(TypeError, match="planes"):
        photometric_loss(narrow, make_target(photo), 0.2)
    with pytest.raises(TypeError, match="weight"):
        photometric_loss(narrow, make_target(photo.float(), weight), 0.2)
    with pytest.raises(ValueError, match="planes"):
        photometric_loss(narrow[:-1], make_target(photo.float()), 0.2)
    short = object.__new__(
        Target
    )  # as production sees it: the shapes in annotations are checked in tests only
    short.__dict__.update(vars(make_target(photo.float())) | {"weight": weight.float()[:-1]})
    with pytest.raises(ValueError, match="weight"):
        photometric_loss(narrow, short, 0.2)


def test_psnr_of_a_known_error() -> None:
    target = torch.full((6, 7, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    weight = torch.zeros(6, 7)
    weight[0, 0] = 2.0
    off = target.clone()
    off[0, 0] += 0.01
    off[3, 3] += 0.4
    assert psnr(off, target, weight) == pytest.approx(40.0, abs=1e-3)
    assert psnr(torch.full_like(target, 7.0), torch.ones_like(target)) == pytest.approx(
        120.0
    )  # clamped first
    assert math.isfinite(psnr(target, target, torch.zeros(6, 7)))
