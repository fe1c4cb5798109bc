"""The pose residual's Jacobian and normal equations."""

import pytest
import torch

from pose.residual import (
    Exposure,
    JacobianMemory,
    Robustness,
    _by_differences,
    normal_equations,
    robust_loss,
    zoomed,
)
from pose.se3 import moved_about
from prepare.camera import Camera, look_at
from recon.gaussians import Gaussians
from recon.kernel.library import choose_instruction_set
from recon.rasterize import RasterOptions, rasterize
from recon.rasterize_reference import rasterize_reference

BACKGROUND = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def splats(degree, count=40):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        draw(count, 3) * 0.5,
        draw(count, 4),
        draw(count, 3) * 0.3 - 1.6,
        draw(count),
        draw(count, (degree + 1) ** 2, 3) * 0.3,
    )


def camera():
    def vector(*xyz):
        return torch.tensor(xyz, dtype=torch.float64)

    pose = look_at(vector(1.0, -2.5, 0.8), vector(0.1, 0.0, 0.0), vector(0.0, 0.0, 1.0))
    return Camera(pose, 40.0, 42.0, 19.7, 17.6, 38, 35)


def as_float(gaussians):
    return Gaussians(**{name: t.float() for name, t in gaussians.tensors().items()})


@pytest.fixture(params=["base", "v3", "v4"])
def instruction_set(request):
    from prepare.errors import MissingPartError

    try:
        choose_instruction_set(request.param)
    except MissingPartError as error:
        pytest.skip(str(error))
    yield request.param
    choose_instruction_set("auto")


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 2])
def test_jacobian_is_the_central_difference_of_the_reference_render(degree, antialiased, instruction_set):
    gaussians, view = splats(degree), camera()
    pivot = torch.tensor([0.1, 0.05, -0.1], dtype=torch.float64)
    options = RasterOptions(antialiased=antialiased)
    step = 1e-5
    columns = []
    for k in range(7):
        sides = []
        for sign in (1, -1):
            move = torch.zeros(6, dtype=torch.float64)
            if k < 6:
                move[k] = sign * step
            moved = view.moved(moved_about(view.world_to_cam, move, pivot))
            moved = zoomed(moved, sign * step if k == 6 else 0.0)
            sides.append(rasterize_reference(gaussians, moved, BACKGROUND, None, options).rgb)
        columns.append((sides[0] - sides[1]) / (2 * step))
    expected = torch.stack(columns, dim=-1).permute(2, 3, 0, 1)
    jacobian = torch.empty(3, 7, view.height, view.width)
    arguments = (
        as_float(gaussians), view.moved(view.world_to_cam.float()), BACKGROUND.float(),
        torch.zeros(3, view.height, view.width), pivot.float(), Robustness(0.0), Exposure(), options,
    )  # fmt: skip
    normal_equations(*arguments, jacobian=jacobian, focal=True)
    six = torch.empty(3, 6, view.height, view.width)
    normal_equations(*arguments, jacobian=six)
    assert torch.allclose(six, jacobian[:, :6], rtol=1e-4, atol=1e-5 * float(six.abs().max()))
    # A difference that straddles an alpha threshold is not a derivative: leave those few pixels out.
    error = (jacobian - expected).abs()
    clean = error < 1e-3 * expected.abs().max()
    assert clean.double().mean() > 0.995
    assert (jacobian - expected)[clean].norm() / expected[clean].norm() < 2e-5


@pytest.mark.parametrize("robustness", [Robustness(0.0), Robustness(0.1), Robustness(0.1, 0.2)])
def test_normal_equations_are_the_weighted_sums_of_jacobian_and_residual(robustness):
    gaussians, view = as_float(splats(0)), camera()
    view = view.moved(view.world_to_cam.float())
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, view.height, view.width, generator=generator)
    pixel_weight = torch.rand(view.height, view.width, generator=generator)
    exposure = Exposure((2.5, 0.9, 1.2), (0.02, -0.25, 0.0))
    jacobian = torch.empty(3, 7, view.height, view.width)
    got = normal_equations(
        gaussians, view, BACKGROUND.float(), target, torch.zeros(3), robustness, exposure, RasterOptions(),
        pixel_weight, jacobian, focal=True,
    )  # fmt: skip
    gain, bias = torch.tensor(exposure.gain)[:, None, None], torch.tensor(exposure.bias)[:, None, None]
    shown = gain * got.rgb.permute(2, 0, 1) + bias
    assert (
        0.002 < ((shown < 0) | (shown > 1)).double().mean() < 0.9
    )  # some pixels are cut, so that the rule shows
    residual = shown.clamp(0, 1) - target
    loss, weight = robust_loss(residual.square().sum(0), robustness)
    weight = (weight * pixel_weight).double() * ((shown >= 0) & (shown <= 1))
    # The whole design: pose and focal length, then gains, then biases; these act on the part alone.
    behind = exposure.behind(BACKGROUND.float())[:, None, None]
    part = got.rgb.permute(2, 0, 1) - (1 - got.alpha) * behind
    design = torch.zeros(3, 13, view.height, view.width, dtype=torch.float64)
    design[:, :7] = (jacobian * gain[:, None]).double()
    for channel in range(3):
        design[channel, 7 + channel] = part[channel].double()
        design[channel, 10 + channel] = got.alpha.double()
    hessian = torch.einsum("cihw,chw,cjhw->ij", design, weight, design)
    gradient = torch.einsum("cihw,chw,chw->i", design, weight, residual.double())
    assert (got.hessian - hessian).abs().max() < 1e-5 * hessian.abs().max()
    assert torch.equal(got.hessian, got.hessian.T)
    assert (got.gradient - gradient).norm() / gradient.norm() < 1e-5
    assert got.cost == pytest.approx(float((loss * pixel_weight).sum()), rel=1e-5)
    assert got.squared == pytest.approx(float((residual.square().sum(0) * pixel_weight).sum()), rel=1e-5)


def test_difference_quotients_give_the_same_normal_equations_as_the_analytic_jacobian():
    gaussians, view = as_float(splats(2)), camera()
    view = view.moved(view.world_to_cam.float())
    target = torch.rand(3, view.height, view.width, generator=torch.Generator().manual_seed(1))
    arguments = (
        gaussians,
        view,
        BACKGROUND.float(),
        target,
        torch.zeros(3),
        Robustness(0.2),
        Exposure(),
        RasterOptions(),
    )
    analytic = normal_equations(*arguments, focal=True)
    numeric = _by_differences(*arguments, None, focal=True)
    assert numeric.cost == pytest.approx(analytic.cost, rel=1e-5)
    # Differences 1e-3 wide also cross alpha's 1/255 threshold here and there.
    assert (numeric.hessian - analytic.hessian).norm() / analytic.hessian.norm() < 0.1
    assert (numeric.gradient - analytic.gradient).norm() / analytic.gradient.norm() < 0.15


def test_exposure_leaves_the_background_as_it_is():
    gaussians, view = as_float(splats(0)), camera()
    view = view.moved(view.world_to_cam.float())
    exposure = Exposure((0.6, 1.2, 0.8), (0.05, -0.04, 0.0))
    over_black = rasterize(gaussians, view, torch.zeros(3))
    alpha = over_black.alpha[..., None]
    expected = over_black.rgb * torch.tensor(exposure.gain) + alpha * torch.tensor(exposure.bias)
    expected = (expected + (1 - alpha) * BACKGROUND.float()).clamp(0, 1)
    behind = exposure.behind(BACKGROUND.float())
    assert torch.allclose(exposure.applied(rasterize(gaussians, view, behind).rgb), expected, atol=1e-5)


@pytest.mark.parametrize("focal", [False, True])
def test_a_kept_jacobian_serves_a_nearby_camera(focal, instruction_set):
    gaussians, view = as_float(splats(2)), camera()
    view = view.moved(view.world_to_cam.float())
    near = view.moved(
        moved_about(view.world_to_cam, torch.tensor([0.01, -0.02, 0.01, 0.02, 0.0, 0.01]), torch.zeros(3))
    )
    target = torch.rand(3, view.height, view.width, generator=torch.Generator().manual_seed(2))
    shared = (BACKGROUND.float(), target, torch.zeros(3), Robustness(0.2), Exposure(), RasterOptions())
    memory = JacobianMemory()
    kept = torch.empty(3, 7 if focal else 6, view.height, view.width)
    first = normal_equations(gaussians, view, *shared, jacobian=kept, focal=focal, memory=memory)
    again = normal_equations(gaussians, view, *shared, focal=focal, memory=memory, reuse=True)
    assert torch.equal(first.hessian, again.hessian)
    assert torch.equal(first.gradient, again.gradient)
    # The residual is the near camera's own, the Jacobian the first one's.
    got = normal_equations(gaussians, near, *shared, focal=focal, memory=memory, reuse=True)
    fresh = normal_equations(gaussians, near, *shared, focal=focal)
    assert got.cost == fresh.cost != first.cost
    residual = fresh.rgb.permute(2, 0, 1) - target
    _, weight = robust_loss(residual.square().sum(0), Robustness(0.2))
    inside = (fresh.rgb.permute(2, 0, 1) >= 0) & (fresh.rgb.permute(2, 0, 1) <= 1)
    expected = torch.einsum("cihw,chw,chw->i", kept.double(), weight.double() * inside, residual.double())
    n = kept.shape[1]
    assert (got.gradient[:n] - expected).norm() < 1e-5 * expected.norm()
    assert (got.gradient[:n] - fresh.gradient[:n]).norm() > 1e-3 * expected.norm()


def test_a_jacobian_that_was_not_kept_is_refused():
    gaussians, view = as_float(splats(0)), camera()
    view = view.moved(view.world_to_cam.float())
    target = torch.rand(3, view.height, view.width)
    with pytest.raises(ValueError, match="kept for the same image size"):
        normal_equations(
            gaussians, view, BACKGROUND.float(), target, torch.zeros(3), Robustness(), Exposure(), RasterOptions(),
            memory=JacobianMemory(), reuse=True,
        )  # fmt: skip
