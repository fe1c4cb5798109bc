"""The pose residual's Jacobian and normal equations."""

import pytest
import torch

from pose.residual import Exposure, Robustness, _by_differences, normal_equations, robust_loss
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
    for k in range(6):
        sides = []
        for sign in (1, -1):
            move = torch.zeros(6, dtype=torch.float64)
            move[k] = sign * step
            moved = view.moved(moved_about(view.world_to_cam, move, pivot))
            sides.append(rasterize_reference(gaussians, moved, BACKGROUND, None, options).rgb)
        columns.append((sides[0] - sides[1]) / (2 * step))
    expected = torch.stack(columns, dim=-1).permute(2, 3, 0, 1)
    jacobian = torch.empty(3, 6, view.height, view.width)
    normal_equations(
        as_float(gaussians), view.moved(view.world_to_cam.float()), BACKGROUND.float(),
        torch.zeros(3, view.height, view.width), pivot.float(), Robustness(0.0), Exposure(), options, jacobian=jacobian,
    )  # fmt: skip
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
    exposure = Exposure((1.1, 0.9, 1.2), (0.02, -0.03, 0.0))
    jacobian = torch.empty(3, 6, view.height, view.width)
    got = normal_equations(
        gaussians, view, BACKGROUND.float(), target, torch.zeros(3), robustness, exposure, RasterOptions(),
        pixel_weight, jacobian,
    )  # fmt: skip
    gain, bias = torch.tensor(exposure.gain)[:, None, None], torch.tensor(exposure.bias)[:, None, None]
    residual = gain * got.rgb.permute(2, 0, 1) + bias - target
    loss, weight = robust_loss(residual.square().sum(0), robustness)
    weight = (weight * pixel_weight).double()
    scaled = (jacobian * gain[:, None]).double()
    hessian = torch.einsum("cihw,hw,cjhw->ij", scaled, weight, scaled)
    gradient = torch.einsum("cihw,hw,chw->i", scaled, weight, residual.double())
    assert torch.allclose(got.hessian, hessian, rtol=1e-5)
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
    analytic, numeric = normal_equations(*arguments), _by_differences(*arguments, None)
    assert numeric.cost == pytest.approx(analytic.cost, rel=1e-5)
    # Differences 1e-3 wide also cross alpha's 1/255 threshold here and there.
    assert (numeric.hessian - analytic.hessian).norm() / analytic.hessian.norm() < 0.1
    assert (numeric.gradient - analytic.gradient).norm() / analytic.gradient.norm() < 0.15


def test_exposure_is_the_least_squares_gain_and_bias_with_a_thousandth_pulling_to_none():
    gaussians, view = as_float(splats(0)), camera()
    view = view.moved(view.world_to_cam.float())
    shown = rasterize(gaussians, view, BACKGROUND.float()).rgb
    target = 0.8 * shown + 0.05
    got = normal_equations(
        gaussians, view, BACKGROUND.float(), target.permute(2, 0, 1), torch.zeros(3), Robustness(0.0), Exposure(),
        RasterOptions(),
    ).exposure  # fmt: skip
    for channel in range(3):
        render, photo = shown[..., channel].double().reshape(-1), target[..., channel].double().reshape(-1)
        pull = (1e-3 * len(render)) ** 0.5
        design = torch.cat(
            [torch.stack([render, torch.ones_like(render)], 1), pull * torch.eye(2, dtype=torch.float64)]
        )
        gain, bias = torch.linalg.lstsq(
            design, torch.cat([photo, torch.tensor([pull, 0.0]).double()])
        ).solution.tolist()
        assert got.gain[channel] == pytest.approx(gain, abs=1e-4)
        assert got.bias[channel] == pytest.approx(bias, abs=1e-4)
    assert sum(got.gain) / 3 < 0.9
