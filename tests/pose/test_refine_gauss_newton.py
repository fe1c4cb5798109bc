"""Levenberg-Marquardt on the photometric residual: how near it ends, what may not pull it, and that cost falls."""

import math

import numpy as np
import pytest
import torch

from detect.metrics import rotation_error_deg
from pose import refine_gauss_newton
from pose.pyramid import photo_pyramid
from pose.refine_gauss_newton import LevenbergConfig, refine_levenberg
from pose.residual import zoomed
from pose.se3 import moved_about
from recon.rasterize import RasterOptions

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ORIGIN = torch.zeros(3)


def refined(toy, photo, start, config=None, **options):
    return refine_levenberg(
        toy.loaded.levels, photo_pyramid(photo.rgb), start, torch.ones(3), ORIGIN, RasterOptions(),
        config or LevenbergConfig(), **options,
    )  # fmt: skip


def started_off(camera, seed, turn_deg=8.0, shift_share=0.03):
    """`camera` turned by `turn_deg` about the part and shifted by `shift_share` of the distance, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator), dim=1)
    step = torch.cat(
        [directions[0] * math.radians(turn_deg), directions[1] * shift_share * camera.centre.norm()]
    )
    return camera.moved(moved_about(camera.world_to_cam, step, ORIGIN))


def error_deg(result, camera):
    return float(rotation_error_deg(result.camera.world_to_cam.double(), camera.world_to_cam.double()))


@pytest.mark.parametrize("seed", range(3))
def test_from_eight_degrees_and_three_percent_off_it_ends_at_the_camera(toy, seed):
    camera = toy.cameras(5, seed=21)[seed]
    start = started_off(camera, seed)
    result = refined(toy, toy.photo(camera, noise_seed=seed), start)
    assert float(rotation_error_deg(start.world_to_cam, camera.world_to_cam)) == pytest.approx(8, abs=0.01)
    assert error_deg(result, camera) < 0.05
    assert (result.camera.centre - camera.centre).norm() < 0.002 * camera.centre.norm()
    rotation = result.camera.world_to_cam[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-6)
    assert (result.camera.width, result.camera.height, result.camera.fl_x) == (100, 100, camera.fl_x)


@pytest.mark.parametrize("seed", range(2))
def test_a_painted_defect_does_not_pull_the_camera(toy, seed):
    camera = toy.cameras(5, seed=22)[seed]
    photo = toy.photo(camera, noise_seed=seed)
    u, v, _ = camera.project(torch.tensor([[0.1, 0.05, 0.0]]))[0].round().int().tolist()
    photo.rgb[v - 5 : v + 6, u - 5 : u + 6] = torch.tensor([0.95, 0.1, 0.9])
    assert error_deg(refined(toy, photo, started_off(camera, seed, turn_deg=4.0)), camera) < 0.1


def test_the_redescending_round_resists_a_defect_better_than_least_squares(toy):
    camera = toy.cameras(5, seed=22)[0]
    photo = toy.photo(camera, noise_seed=0)
    u, v, _ = camera.project(torch.tensor([[0.1, 0.05, 0.0]]))[0].round().int().tolist()
    photo.rgb[v - 8 : v + 9, u - 8 : u + 9] = torch.tensor([0.95, 0.1, 0.9])
    start = started_off(camera, 0, turn_deg=2.0)
    robust = error_deg(refined(toy, photo, start), camera)
    plain = error_deg(refined(toy, photo, start, LevenbergConfig(huber=0.0, geman=0.0)), camera)
    assert robust < 0.5 * plain


def test_cost_never_rises_within_a_level(toy, monkeypatch):
    camera = toy.cameras(5, seed=23)[2]
    # The states a level is at, one after another, told apart by the gradient that the next step is solved for.
    passes, stepped = [], []
    original = refine_gauss_newton.normal_equations
    solve = np.linalg.solve

    def recorded(*arguments, **named):
        state = original(*arguments, **named)
        passes.append((state, named["reuse"]))
        return state

    def solved(system, gradient):
        stepped.append(gradient)
        return solve(system, gradient)

    monkeypatch.setattr(refine_gauss_newton, "normal_equations", recorded)
    monkeypatch.setattr(np.linalg, "solve", solved)
    photo = toy.photo(camera, noise_seed=3)
    for level in photo_pyramid(photo.rgb):
        passes.clear(), stepped.clear()
        result = refine_levenberg(
            toy.loaded.levels, (level,), started_off(camera, 1), torch.ones(3), ORIGIN, RasterOptions(),
            LevenbergConfig(exposure=False), last_round=False,
        )  # fmt: skip
        states = [state for state, _ in passes]
        visited = [s.cost for g in stepped for s in states if np.array_equal(s.gradient[:6].numpy(), g)]
        assert len(visited) > 3
        assert visited == sorted(visited, reverse=True)
        assert result.normal.cost <= visited[-1]
        assert result.cost == pytest.approx(result.normal.cost / (level.width * level.height))
        assert result.normal.cost == min(state.cost for state in states)
        assert {reused for _, reused in passes} == {False, True}  # both kinds of step were taken


def test_exposure_is_recovered_beside_the_camera(toy):
    camera = toy.cameras(5, seed=24)[1]
    photo = toy.photo(camera, noise_seed=1)
    gain, bias = torch.tensor([0.8, 0.85, 0.9]), torch.tensor([0.03, 0.02, -0.02])
    dimmed = toy.photo(camera)
    share = photo.alpha[..., None]  # the part alone is darker: the background is the reference's
    dimmed.rgb.copy_((photo.rgb - (1 - share)) * gain + bias * share + (1 - share))
    result = refined(toy, dimmed, started_off(camera, 2, turn_deg=4.0), LevenbergConfig(exposure=True))
    assert error_deg(result, camera) < 0.05
    assert result.exposure.gain == pytest.approx(gain.tolist(), abs=0.03)
    assert result.exposure.bias == pytest.approx(bias.tolist(), abs=0.03)


def test_iterations_stay_within_the_budget(toy):
    camera = toy.cameras(5, seed=25)[0]
    config = LevenbergConfig(iterations=(2, 2, 2, 2), last_iterations=1)
    result = refined(toy, toy.photo(camera), started_off(camera, 0), config)
    assert result.iterations <= 2 * 2 + 1


@pytest.mark.parametrize("seed", range(2))
def test_an_unknown_focal_length_is_found_along(toy, seed):
    camera = toy.cameras(5, seed=26)[seed]
    start = zoomed(started_off(camera, seed, turn_deg=4.0), 0.15)
    result = refined(toy, toy.photo(camera), start, LevenbergConfig(focal=True))
    assert error_deg(result, camera) < 0.3
    assert result.camera.fl_x == pytest.approx(camera.fl_x, rel=0.03)
    assert result.camera.fl_x / result.camera.fl_y == pytest.approx(camera.fl_x / camera.fl_y)
    assert abs(start.fl_x / camera.fl_x - 1.0) > 0.15  # it was off


def test_a_guess_pulls_a_focal_length_that_the_photo_hardly_tells(toy):
    """In the flat picture of a silhouette a longer lens looks like a nearer camera; colours tell more than the pull."""
    camera = toy.cameras(5, seed=26)[0]
    start = zoomed(started_off(camera, 0, turn_deg=2.0), 0.15)
    share = start.fl_x / start.width
    weak, strong = (
        refined(
            toy, toy.photo(camera), start, LevenbergConfig(focal=True, focal_guess=share, focal_pull=pull)
        )
        for pull in (5e-4, 1e3)
    )
    assert strong.camera.fl_x == pytest.approx(start.fl_x, rel=2e-3)
    assert weak.camera.fl_x == pytest.approx(camera.fl_x, rel=0.05)
    assert error_deg(weak, camera) < 0.5
