"""The definition against closed forms and gsplat's own torch code; the C++ kernel against the definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import recon.rasterize_cpu
from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians, gaussians_from_points, rotation_matrices
from recon.harmonics import SH_C0
from recon.kernel.library import choose_instruction_set
from recon.rasterize import BLUR_PX2, Backend, ExtraChannels, RasterOptions, Render, choose_backend, rasterize
from recon.rasterize_cpu import rasterize_cpu

BACKGROUND = (0.2, 0.5, 0.9)
BOTH: tuple[Backend, ...] = ("reference", "cpu")
INSTRUCTION_SETS = ("base", "v3", "v4")


def _splats(n: int, degree: int, *, seed: int = 0, spread: float = 0.5, log_scale: float = -2.0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=normal(n, 3) * spread,
        quats=normal(n, 4),
        log_scales=normal(n, 3) * 0.4 + log_scale,
        logit_opacities=normal(n) * 1.5,
        sh=normal(n, (degree + 1) ** 2, 3) * 0.3,
    )


def _camera(width: int, height: int, fl: float = 40.0) -> Camera:
    position = torch.tensor([1.0, -2.5, 0.8], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    pose = look_at(position, torch.zeros_like(position), up)
    return Camera(pose, fl, 1.05 * fl, width / 2 + 0.7, height / 2 - 0.4, width, height)


def _straight_camera(width: int, height: int, fl: float) -> Camera:
    """At the origin, looking along +z."""
    return Camera(torch.eye(4), fl, fl, width / 2, height / 2, width, height)


def _single(gaussians: Gaussians, camera: Camera) -> tuple[Gaussians, Camera]:
    """The same in float32."""
    narrow = Gaussians(**{name: tensor.float() for name, tensor in gaussians.tensors().items()})
    return narrow, camera.moved(camera.world_to_cam.float())


@dataclass(frozen=True)
class _Result:
    render: Render
    gradients: dict[str, Tensor]  # by every differentiable input


def _render_and_gradients(
    gaussians: Gaussians,
    camera: Camera,
    backend: Backend,
    options: RasterOptions,
    colours: Tensor | None = None,
) -> _Result:
    """One render and the gradients of a fixed random weighting of everything it returns."""
    dtype = gaussians.means.dtype
    leaves = {name: t.detach().clone().requires_grad_() for name, t in gaussians.tensors().items()}
    inputs = dict(leaves)
    inputs["background"] = torch.tensor(BACKGROUND, dtype=dtype, requires_grad=True)
    inputs["world_to_cam"] = camera.world_to_cam.to(dtype).clone().requires_grad_()
    if colours is not None:
        inputs["colours"] = colours.to(dtype).clone().requires_grad_()
    render = rasterize(
        Gaussians(**leaves),
        camera.moved(inputs["world_to_cam"]),
        inputs["background"],
        colours=inputs.get("colours"),
        options=options,
        backend=backend,
    )
    outputs = [render.rgb, render.alpha] + ([] if render.depth is None else [render.depth])
    outputs = [o for o in outputs if o.requires_grad]  # without splats alpha is a constant
    generator = torch.Generator().manual_seed(1)
    torch.autograd.backward(
        outputs,
        [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(dtype) for o in outputs],
    )
    gradients = {
        name: torch.zeros_like(t) if t.grad is None else t.grad.clone() for name, t in inputs.items()
    }
    gradients["world_to_cam"] = gradients["world_to_cam"][:3]
    return _Result(render, gradients)


def _relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def _assert_agrees(found: _Result, truth: _Result, tolerance: float = 1e-5) -> None:
    pairs = [("rgb", found.render.rgb, truth.render.rgb), ("alpha", found.render.alpha, truth.render.alpha)]
    if truth.render.depth is not None:
        assert found.render.depth is not None
        pairs.append(("depth", found.render.depth, truth.render.depth))
    for name, value, expected in pairs:
        scale = float(expected.detach().abs().max())
        worst = float((value.detach().double() - expected.detach()).abs().max())
        assert worst <= tolerance * scale, f"{name}: off by {worst:.2e} of {scale:.2e}"
    assert found.gradients.keys() == truth.gradients.keys()
    for name, expected in truth.gradients.items():
        if expected.norm() == 0:
            assert found.gradients[name].norm() == 0, name
            continue
        error = _relative(found.gradients[name], expected)
        assert error <= tolerance, f"gradient by {name}: relative error {error:.2e}"


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest):
    """Switches the kernel to one code path for a test; skips where this processor or build lacks it."""
    try:
        choose_instruction_set(request.param)
    except MissingPartError as error:
        pytest.skip(str(error))
    yield request.param
    choose_instruction_set("auto")


each_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)


# ------------------------------------------------------------------------------------------- the definition itself


@pytest.mark.parametrize("backend", BOTH)
def test_one_splat_at_a_pixel_has_the_closed_form_value(backend: Backend) -> None:
    # A round splat of standard deviation s at depth z, centred 2 px right of and 1 px below a pixel's centre.
    camera = _straight_camera(16, 12, fl=20.0)
    depth, deviation, opacity = 4.0, 0.3, 0.7
    column, row = 6, 5
    centre_px = (column + 0.5 + 2.0, row + 0.5 + 1.0)
    mean = torch.tensor(
        [[(centre_px[0] - camera.cx) / 20.0 * depth, (centre_px[1] - camera.cy) / 20.0 * depth, depth]]
    )
    colour = torch.tensor([[0.8, 0.3, 0.1]])
    splats = gaussians_from_points(mean, colour, torch.tensor([deviation]), opacity=opacity)
    background = torch.tensor(BACKGROUND)
    render = rasterize(splats, camera, background, options=RasterOptions(depth=True), backend=backend)

    # J W Sigma W^T J^T for Sigma = s^2 I is s^2 (f/z)^2 (I + u u^T), u = (x/z, y/z), then the blur.
    u = torch.tensor([mean[0, 0] / depth, mean[0, 1] / depth], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    covariance = (deviation * 20.0 / depth) ** 2 * (eye + torch.outer(u, u)) + BLUR_PX2 * eye
    offset = torch.tensor([-2.0, -1.0], dtype=torch.float64)
    sigma = float(0.5 * offset @ torch.linalg.solve(covariance, offset))
    alpha = opacity * math.exp(-sigma)
    assert float(render.alpha[row, column]) == pytest.approx(alpha, rel=2e-6)
    expected = alpha * colour[0] + (1 - alpha) * background
    torch.testing.assert_close(render.rgb[row, column], expected, rtol=2e-6, atol=1e-7)
    assert render.depth is not None
    assert float(render.depth[row, column]) == pytest.approx(alpha * depth, rel=2e-6)


@pytest.mark.parametrize("backend", BOTH)
def test_a_splat_appears_where_its_centre_projects_by_hand(backend: Backend) -> None:
    # A camera at (0, 0, -5) looking along +z: (1, 0.5, 0) has u = 30 * 1/5 + 20 = 26, v = 30 * 0.5/5 + 16 = 19.
    pose = torch.eye(4)
    pose[2, 3] = 5.0
    camera = Camera(pose, 30.0, 30.0, 20.0, 16.0, 40, 32)
    mean, white = torch.tensor([[1.0, 0.5, 0.0]]), torch.ones(1, 3)
    splats = gaussians_from_points(mean, white, torch.tensor([0.02]), opacity=0.9)
    alpha = rasterize(splats, camera, backend=backend).alpha
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    centroid = ((alpha * columns).sum() / alpha.sum(), (alpha * rows).sum() / alpha.sum())
    assert float(centroid[0]) == pytest.approx(26.0, abs=1e-4)
    assert float(centroid[1]) == pytest.approx(19.0, abs=1e-4)


@pytest.mark.parametrize("antialiased", [False, True])
def test_the_definition_agrees_with_gsplats_torch_projection_composited_splat_by_splat(
    antialiased: bool,
) -> None:
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    splats, camera = _splats(40, 3, spread=0.8), _camera(24, 18, fl=20.0)
    background = torch.tensor(BACKGROUND, dtype=torch.float64)
    render = rasterize(
        splats,
        camera,
        background,
        options=RasterOptions(antialiased=antialiased, depth=True),
        backend="reference",
    )

    quats = torch.nn.functional.normalize(splats.quats, dim=-1)
    covariances, _ = gsplat._quat_scale_to_covar_preci(
        quats, splats.log_scales.exp(), compute_preci=False, triu=False
    )
    _, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        splats.means,
        covariances,
        camera.world_to_cam[None],
        camera.intrinsics[None],
        camera.width,
        camera.height,
        eps2d=0.3,
        near_plane=0.01,
        calc_compensations=antialiased,
    )
    colours = (gsplat._spherical_harmonics(3, splats.means - camera.centre, splats.sh) + 0.5).clamp_min(0.0)
    opacities = torch.sigmoid(splats.logit_opacities)
    if antialiased:
        opacities = opacities * compensations[0]
    rgb = torch.zeros(camera.height, camera.width, 3, dtype=torch.float64)
    depth = torch.zeros(camera.height, camera.width, dtype=torch.float64)
    for row in range(camera.height):
        for column in range(camera.width):
            through = 1.0
            for i in torch.argsort(depths[0]).tolist():
                dx = column + 0.5 - float(means2d[0, i, 0])
                dy = row + 0.5 - float(means2d[0, i, 1])
                a, b, c = conics[0, i].tolist()
                sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
                alpha = min(0.999, float(opacities[i]) * math.exp(-sigma))
                if float(depths[0, i]) <= 0.01 or alpha < 1 / 255:
                    continue
                if through * (1 - alpha) <= 1e-4:
                    break
                rgb[row, column] += through * alpha * colours[i]
                depth[row, column] += through * alpha * depths[0, i]
                through *= 1 - alpha
            rgb[row, column] += through * background
            assert float(render.alpha[row, column]) == pytest.approx(1 - through, abs=1e-9)
    torch.testing.assert_close(render.rgb, rgb, rtol=0, atol=1e-9)
    assert render.depth is not None
    torch.testing.assert_close(render.depth, depth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["tiny_case", "basic_case"])
@pytest.mark.parametrize("backend", BOTH)
def test_the_brush_reference_renders_are_reproduced(testdata: Path, case: str, backend: Backend) -> None:
    stored = load_file(testdata / "brush_reference" / "test_cases" / f"{case}.safetensors")
    expected = stored["out_img"]
    height, width = expected.shape[:2]
    splats = Gaussians(
        means=stored["means"],
        quats=stored["quats"],
        log_scales=stored["scales"],
        logit_opacities=stored["opacities"],
        sh=stored["coeffs"],
    )
    pose = torch.eye(4)
    pose[:3, 3] = -torch.tensor([0.123, 0.456, -8.0])
    camera = Camera(pose, 0.5 * width, 0.5 * width, width / 2, height / 2, width, height)
    render = rasterize(splats, camera, backend=backend)
    assert float(expected[..., :3].max()) > 0.5
    assert float((render.rgb - expected[..., :3]).abs().max()) < 1e-5
    assert float((render.alpha - expected[..., 3]).abs().max()) < 1e-5


def test_a_camera_gradient_of_the_definition_is_the_slope_of_central_differences() -> None:
    splats, camera = _splats(30, 3), _camera(21, 17)
    weight = torch.randn(17, 21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(world_to_cam: Tensor) -> Tensor:
        # alpha's cut at 1/255 and the stop make the loss jump; steps are small enough to stay between the jumps.
        return (rasterize(splats, camera.moved(world_to_cam), backend="reference").rgb * weight).sum()

    pose = camera.world_to_cam.clone().requires_grad_()
    value(pose).backward()
    assert pose.grad is not None
    for row, column in ((0, 3), (1, 3), (2, 3), (0, 1), (2, 0)):
        step = torch.zeros(4, 4, dtype=torch.float64)
        step[row, column] = 1e-7
        slope = float(value(camera.world_to_cam + step) - value(camera.world_to_cam - step)) / 2e-7
        assert float(pose.grad[row, column]) == pytest.approx(slope, rel=1e-4), (row, column)


# -------------------------------------------------------------------------------------- the kernel and the definition


@pytest.fixture(scope="module")
def few_truth() -> dict[tuple[int, bool], _Result]:
    options = {aa: RasterOptions(antialiased=aa, depth=True) for aa in (False, True)}
    return {
        (degree, aa): _render_and_gradients(_splats(60, degree), _camera(45, 37), "reference", options[aa])
        for degree in (0, 3)
        for aa in (False, True)
    }


@each_instruction_set
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 3])
def test_the_kernels_image_and_all_its_gradients_are_those_of_float64_autograd(
    few_truth: dict[tuple[int, bool], _Result], degree: int, antialiased: bool, instruction_set: str
) -> None:
    splats, camera = _single(_splats(60, degree), _camera(45, 37))
    found = _render_and_gradients(splats, camera, "cpu", RasterOptions(antialiased=antialiased, depth=True))
    truth = few_truth[degree, antialiased]
    assert all(gradient.norm() > 0 for gradient in truth.gradients.values())
    _assert_agrees(found, truth)


@pytest.fixture(scope="module")
def many() -> tuple[Gaussians, Camera]:
    # Three chunks of splats, six tiles; sides that are no multiples of 4 nor of 32.
    return _splats(3000, 1, seed=5, spread=0.4, log_scale=-3.5), _camera(67, 35, fl=60.0)


@pytest.fixture(scope="module")
def many_truth(many: tuple[Gaussians, Camera]) -> _Result:
    return _render_and_gradients(*many, "reference", RasterOptions(depth=True))


@each_instruction_set
def test_the_kernel_agrees_where_splats_fill_several_chunks_and_tiles(
    many: tuple[Gaussians, Camera], many_truth: _Result, instruction_set: str
) -> None:
    _assert_agrees(_render_and_gradients(*_single(*many), "cpu", RasterOptions(depth=True)), many_truth)


@each_instruction_set
def test_colours_that_replace_the_harmonics_are_composited_and_differentiated_as_they_stand(
    instruction_set: str,
) -> None:
    splats, camera = _splats(60, 2), _camera(45, 37)
    colours = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))  # any sign
    options = RasterOptions()
    truth = _render_and_gradients(splats, camera, "reference", options, colours)
    found = _render_and_gradients(*_single(splats, camera), "cpu", options, colours)
    _assert_agrees(found, truth)
    assert truth.gradients["colours"].norm() > 0
    assert found.gradients["sh"].abs().max() == 0


def test_fewer_harmonics_than_stored_can_be_used_and_the_rest_has_no_gradient() -> None:
    splats, camera = _splats(60, 3), _camera(45, 37)
    options = RasterOptions(sh_degree=1)
    truth = _render_and_gradients(splats, camera, "reference", options)
    found = _render_and_gradients(*_single(splats, camera), "cpu", options)
    _assert_agrees(found, truth)
    assert found.gradients["sh"][:, 4:].abs().max() == 0
    same = rasterize(*_single(splats.with_degree(1), camera), backend="cpu").rgb
    plain = rasterize(*_single(splats, camera), options=options, backend="cpu").rgb
    assert torch.equal(same, plain)


def test_a_camera_inside_the_splats_gives_the_same_gradients_as_the_definition() -> None:
    # Splats behind, beside and around the camera: the near plane, and the clamp of the projection's Jacobian.
    splats = _splats(80, 1, seed=4, spread=1.5, log_scale=-1.8)
    pose = look_at(
        torch.tensor([0.1, 0.2, 0.0], dtype=torch.float64),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    )
    camera = Camera(pose, 25.0, 25.0, 20.0, 15.0, 41, 30)
    depth = camera.project(splats.means)[:, 2]
    assert int((depth < 0).sum()) > 20
    options = RasterOptions(depth=True, near_plane=0.2)
    truth = _render_and_gradients(splats, camera, "reference", options)
    _assert_agrees(_render_and_gradients(*_single(splats, camera), "cpu", options), truth, tolerance=2e-5)


def test_means2d_gradient_is_the_loss_by_the_projected_centre() -> None:
    # Round splats and an in-plane shift: the loss depends on the shift through the projected centre alone.
    camera = _straight_camera(30, 26, fl=25.0)
    means = torch.tensor([[0.1, -0.2, 4.0], [-0.5, 0.3, 5.0], [0.4, 0.4, 6.0]], requires_grad=True)
    splats = gaussians_from_points(means.detach(), torch.rand(3, 3), torch.full((3,), 0.2), opacity=0.6)
    by_centre = torch.full((3, 2), float("nan"))
    weight = torch.randn(26, 30, 3, generator=torch.Generator().manual_seed(0))
    # Far from the field of view's edge the shift changes the covariance too, by x/z: compare with differences
    # of a render whose principal point moves, which moves every centre and changes no covariance.
    render = rasterize_cpu(
        replace(splats, means=means), camera, torch.zeros(3), None, RasterOptions(), by_centre
    )
    (render.rgb * weight).sum().backward()
    wide = Gaussians(**{name: tensor.double() for name, tensor in splats.tensors().items()})
    step = 1e-6
    values = [
        (
            rasterize(
                wide,
                replace(camera, cx=camera.cx + sign * step, world_to_cam=camera.world_to_cam.double()),
                backend="reference",
            ).rgb
            * weight
        ).sum()
        for sign in (1, -1)
    ]
    assert float(by_centre[:, 0].sum()) == pytest.approx(float(values[0] - values[1]) / (2 * step), rel=1e-4)


# ---------------------------------------------------------------------------------------------------- invariants


def test_permuting_the_splats_leaves_the_image_within_rounding() -> None:
    splats, camera = _single(_splats(200, 1), _camera(45, 37))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    plain = rasterize(splats, camera, torch.tensor(BACKGROUND), backend="cpu")
    shuffled = rasterize(splats.select(order), camera, torch.tensor(BACKGROUND), backend="cpu")
    torch.testing.assert_close(shuffled.rgb, plain.rgb, rtol=0, atol=1e-6)


def test_moving_world_and_camera_together_changes_nothing() -> None:
    splats, camera = _splats(60, 0), _camera(45, 37)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = rotation_matrices(torch.tensor([0.3, -0.5, 0.7, 0.4], dtype=torch.float64))
    turn[:3, 3] = torch.tensor([0.4, -1.0, 2.0])
    # The splat's own rotation composed with the world's: quaternion product of the two.
    w, x, y, z = torch.nn.functional.normalize(
        torch.tensor([0.3, -0.5, 0.7, 0.4], dtype=torch.float64), dim=0
    )
    left = torch.stack(
        [torch.stack(row) for row in ([w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w])]
    )
    moved = replace(splats, means=splats.means @ turn[:3, :3].T + turn[:3, 3], quats=splats.quats @ left.T)
    other = camera.moved(camera.world_to_cam @ torch.linalg.inv(turn))
    here = rasterize(*_single(splats, camera), backend="cpu").rgb
    there = rasterize(*_single(moved, other), backend="cpu").rgb
    torch.testing.assert_close(there, here, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", BOTH)
def test_no_splats_give_the_background(backend: Backend) -> None:
    splats, camera = _single(_splats(0, 1), _camera(13, 11))
    background = torch.tensor(BACKGROUND)
    result = _render_and_gradients(splats, camera, backend, RasterOptions(depth=True))
    assert torch.equal(result.render.rgb, background.expand(11, 13, 3))
    assert result.render.alpha.abs().max() == 0
    assert result.render.depth is not None
    assert result.render.depth.abs().max() == 0
    assert result.gradients["means"].shape == (0, 3)
    assert result.gradients["world_to_cam"].abs().max() == 0


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("mean", "log_scale", "logit"),
    [
        ((0.0, 0.0, -3.0), -1.0, 3.0),  # behind the camera
        ((0.0, 0.0, 0.005), -1.0, 3.0),  # nearer than the near plane
        ((0.0, 0.0, 4.0), -1.0, -30.0),  # no opacity
        ((0.0, 0.0, 4.0), -1.0, -5.6),  # opacity just below 1/255
        ((90.0, 0.0, 4.0), -3.0, 3.0),  # far outside the picture
    ],
)
def test_a_splat_that_cannot_be_seen_changes_nothing_and_has_no_gradient(
    backend: Backend, mean: tuple[float, float, float], log_scale: float, logit: float
) -> None:
    visible = gaussians_from_points(torch.tensor([[0.2, 0.1, 5.0]]), torch.rand(1, 3), torch.tensor([0.5]))
    camera = _straight_camera(24, 20, fl=20.0)
    plain = rasterize(visible, camera, backend=backend).rgb
    both = Gaussians(
        means=torch.cat([visible.means, torch.tensor([mean])]),
        quats=torch.cat([visible.quats, torch.tensor([[0.9, 0.1, 0.2, 0.3]])]),
        log_scales=torch.cat([visible.log_scales, torch.full((1, 3), log_scale)]),
        logit_opacities=torch.cat([visible.logit_opacities, torch.tensor([logit])]),
        sh=torch.cat([visible.sh, torch.ones(1, 1, 3)]),
    )
    result = _render_and_gradients(both, camera, backend, RasterOptions())
    assert torch.equal(rasterize(both, camera, backend=backend).rgb, plain)
    for name in both.tensors():
        assert result.gradients[name][1].abs().max() == 0, name
    assert result.gradients["means"][0].abs().max() > 0


@pytest.mark.parametrize(
    ("log_scale", "label"),
    [(-40.0, "of no extent"), (-12.0, "far below a pixel"), (3.0, "far above the picture")],
)
def test_tiny_and_huge_splats_are_drawn_as_the_definition_draws_them(log_scale: float, label: str) -> None:
    splats, camera = _splats(12, 0, spread=0.3), _camera(37, 29)
    splats = replace(splats, log_scales=torch.full_like(splats.log_scales, log_scale))
    truth = _render_and_gradients(splats, camera, "reference", RasterOptions(depth=True))
    found = _render_and_gradients(*_single(splats, camera), "cpu", RasterOptions(depth=True))
    assert truth.render.alpha.max() > 0.1, label
    torch.testing.assert_close(found.render.rgb.double(), truth.render.rgb, rtol=0, atol=1e-5)
    for name, gradient in found.gradients.items():
        assert torch.isfinite(gradient).all(), name


def test_long_needles_are_drawn_as_the_definition_draws_them() -> None:
    # Their covariance is all but singular: the definition in float32 loses three digits of the gradients, the kernel's
    # Cholesky factor keeps them.
    splats, camera = _splats(40, 0, spread=0.3), _camera(65, 50)
    splats = replace(splats, log_scales=splats.log_scales + torch.tensor([1.0, -6.0, -6.0]))
    truth = _render_and_gradients(splats, camera, "reference", RasterOptions(depth=True))
    found = _render_and_gradients(*_single(splats, camera), "cpu", RasterOptions(depth=True))
    torch.testing.assert_close(found.render.rgb.double(), truth.render.rgb, rtol=0, atol=1e-5)
    _assert_agrees(found, truth)


def test_two_views_alive_at_once_keep_their_own_gradients() -> None:
    splats, camera = _single(_splats(60, 1), _camera(45, 37))
    other = camera.resized(23, 61)

    def gradient(order: tuple[int, ...]) -> Tensor:
        means = splats.means.clone().requires_grad_()
        moving = replace(splats, means=means)
        losses = [rasterize(moving, view, backend="cpu").rgb.square().sum() for view in (camera, other)]
        total = torch.zeros_like(means)
        for i in order:
            (part,) = torch.autograd.grad(losses[i], means)
            total = total + part * (1, 10)[i]
        return total

    alone = gradient((0,)) + gradient((1,))
    assert torch.equal(gradient((0, 1)), alone)
    assert torch.equal(gradient((1, 0)), alone)


def test_backward_can_run_twice() -> None:
    splats, camera = _single(_splats(60, 1), _camera(45, 37))
    means = splats.means.clone().requires_grad_()
    loss = rasterize(replace(splats, means=means), camera, backend="cpu").rgb.square().sum()
    (first,) = torch.autograd.grad(loss, means, retain_graph=True)
    (second,) = torch.autograd.grad(loss, means)
    assert first.abs().max() > 0
    assert torch.equal(first, second)


def test_a_second_derivative_is_refused_not_silently_wrong() -> None:
    splats, camera = _single(_splats(10, 0), _camera(20, 20))
    means = splats.means.clone().requires_grad_()
    loss = rasterize(replace(splats, means=means), camera, backend="cpu").rgb.square().sum()
    (first,) = torch.autograd.grad(loss, means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_a_gradient_by_alpha_or_depth_alone_is_that_of_the_definition() -> None:
    splats, camera = _splats(40, 0), _camera(30, 26)
    for output in ("alpha", "depth"):
        slopes = []
        for backend, (some, view) in zip(BOTH, ((splats, camera), _single(splats, camera)), strict=True):
            means = some.means.clone().requires_grad_()
            render = rasterize(
                replace(some, means=means), view, options=RasterOptions(depth=True), backend=backend
            )
            (slope,) = torch.autograd.grad(getattr(render, output).square().sum(), means)
            slopes.append(slope)
        assert _relative(slopes[1], slopes[0]) < 1e-5, output


# --------------------------------------------------------------------------------------------- inputs and the choice


@pytest.mark.parametrize("field", ["means", "quats", "log_scales", "logit_opacities", "sh"])
def test_a_tensor_of_another_type_is_a_type_error(field: str) -> None:
    splats, camera = _single(_splats(5, 0), _camera(8, 8))
    wide = replace(splats, **{field: getattr(splats, field).double()})
    with pytest.raises(TypeError, match="float32"):
        rasterize(wide, camera, torch.zeros(3), backend="cpu")


@pytest.mark.parametrize("field", ["quats", "log_scales", "logit_opacities", "sh"])
def test_fields_of_different_lengths_are_refused_before_any_memory_is_read(field: str) -> None:
    splats, camera = _single(_splats(5, 0), _camera(8, 8))
    short = object.__new__(
        Gaussians
    )  # as production sees it: the shapes in annotations are checked in tests only
    short.__dict__.update(splats.tensors() | {field: getattr(splats, field)[:3]})
    with pytest.raises(ValueError, match=rf"{field}: .*for 5 splats"):
        rasterize(short, camera, backend="cpu")


def test_not_contiguous_tensors_give_the_same_picture() -> None:
    splats, camera = _single(_splats(20, 1), _camera(20, 20))
    strided = replace(splats, means=splats.means.T.contiguous().T, sh=splats.sh.flip(0).flip(0))
    assert not strided.means.is_contiguous()
    assert torch.equal(
        rasterize(strided, camera, backend="cpu").rgb, rasterize(splats, camera, backend="cpu").rgb
    )


def test_auto_takes_the_kernel_for_cpu_tensors_and_gsplat_for_cuda_ones() -> None:
    assert choose_backend(torch.device("cpu")) == "cpu"
    assert choose_backend(torch.device("cuda")) == "cuda"
    with pytest.raises(MissingPartError, match="meta"):
        choose_backend(torch.device("meta"))


def test_auto_never_falls_back_where_the_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> object:
        raise MissingPartError("the C++ kernel is not built")

    splats, camera = _single(_splats(5, 0), _camera(8, 8))
    monkeypatch.setattr(recon.rasterize_cpu, "library", absent)
    with pytest.raises(MissingPartError, match="not built"):
        rasterize(splats, camera)


def test_colours_of_constant_harmonics_are_half_plus_the_coefficient() -> None:
    splats, camera = _single(_splats(30, 0), _camera(20, 20))
    shaded = rasterize(splats, camera, backend="cpu").rgb
    given = rasterize(
        splats, camera, colours=(0.5 + SH_C0 * splats.sh[:, 0]).clamp_min(0.0), backend="cpu"
    ).rgb
    torch.testing.assert_close(given, shaded, rtol=0, atol=1e-6)


@each_instruction_set
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("antialiased", [False, True])
def test_extra_channels_come_with_the_same_pass_and_leave_the_picture_and_its_gradients_alone(
    channels: int, antialiased: bool, instruction_set: str
) -> None:
    splats, camera = _splats(300, 1, spread=0.6), _camera(77, 45)
    generator = torch.Generator().manual_seed(5)
    extra = ExtraChannels(
        torch.randn(300, channels, generator=generator, dtype=torch.float64),
        torch.randn(channels, generator=generator, dtype=torch.float64),
    )
    options = RasterOptions(antialiased=antialiased)
    truth = rasterize(splats, camera, options=options, extra=extra, backend="reference")
    single, view = _single(splats, camera)
    for parameter in single.tensors().values():
        parameter.requires_grad_()
    beside = ExtraChannels(extra.values.float(), extra.background.float())
    found = rasterize(single, view, options=options, extra=beside)
    plain = rasterize(single, view, options=options)
    assert found.extra is not None
    assert truth.extra is not None
    assert found.extra.shape == (channels, 45, 77)
    assert not found.extra.requires_grad
    torch.testing.assert_close(found.extra.double(), truth.extra, rtol=0, atol=2e-5)
    assert torch.equal(found.rgb, plain.rgb)
    weight = torch.rand(45, 77, 3, generator=generator)
    leaves = list(single.tensors().values())
    with_extra = torch.autograd.grad((found.rgb * weight).sum(), leaves)
    without = torch.autograd.grad((plain.rgb * weight).sum(), leaves)
    for a, b in zip(with_extra, without, strict=True):
        assert torch.equal(a, b)


def test_extra_channels_that_do_not_fit_the_splats_are_refused() -> None:
    splats, camera = _single(_splats(20, 0), _camera(32, 32))
    with pytest.raises(ValueError, match="19, 2"):
        rasterize(splats, camera, extra=ExtraChannels(torch.zeros(19, 2), torch.zeros(2)))
    with pytest.raises(TypeError, match="float64"):
        rasterize(splats, camera, extra=ExtraChannels(torch.zeros(20, 1).double(), torch.zeros(1)))
