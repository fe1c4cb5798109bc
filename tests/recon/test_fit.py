"""The fit of splats to photos, on a coloured ball rendered in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.errors import InputError
from recon.fit import (
    CHECK_EVERY,
    FLAT_CHECKS,
    Fit,
    FitConfig,
    FitProgress,
    Photo,
    Schedule,
    compositing_weights,
    cross_fit,
    fit_photos,
    folds_of,
    held_out_indices,
    preset,
    resumable_step,
    unseen_of,
)
from recon.losses import psnr
from recon.rasterize import RasterOptions, rasterize

SIZE = 40
TINY = FitConfig(
    steps=90, size_px=SIZE, splats=500, initial_splats=250, sh_degree=1, densify_every=20, held_out_every=6
)


def ball_photo(index: int, *, silhouette: bool = True, gain: float = 1.0) -> Photo:
    """A ball of radius 0.5 whose colour is its normal, over white, ray-traced."""
    azimuth, elevation = 2.4 * index, math.asin(0.8 * math.sin(1.7 * index))
    centre = 3 * torch.tensor(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    camera = Camera(
        look_at(centre, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])), 80.0, 80.0, 20.0, 20.0, SIZE, SIZE
    )
    rows, columns = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    rays = torch.stack([(columns - 20.0) / 80.0, (rows - 20.0) / 80.0, torch.ones_like(rows)], dim=-1)
    rays = torch.nn.functional.normalize(rays, dim=-1) @ camera.world_to_cam[:3, :3]
    along = -(rays @ centre)
    gap = 0.25 - (9 - along.square())
    hit = gap > 0
    normal = (centre + rays * (along - gap.clamp_min(0).sqrt())[..., None]) / 0.5
    colour = (0.5 + 0.4 * normal) * gain
    rgb = torch.where(hit[..., None], colour, torch.ones(3))
    alpha = hit.float() if silhouette else torch.ones(SIZE, SIZE)
    return Photo(f"{index}.png", camera, rgb.contiguous(), alpha, torch.ones(3), None)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return [ball_photo(i) for i in range(18)]


@pytest.fixture(scope="module")
def fitted(photos: list[Photo]) -> Fit:
    return fit_photos(photos, TINY)


def assert_same(first: Fit, second: Fit) -> None:
    for name, tensor in first.gaussians.tensors().items():
        assert torch.equal(tensor, second.gaussians.tensors()[name]), name
    assert [view.quality for view in first.views] == [view.quality for view in second.views]


def test_a_fitted_ball_renders_as_its_photos_from_views_that_were_held_out(
    photos: list[Photo], fitted: Fit
) -> None:
    held_out = [view.name for view in fitted.views if view.held_out]
    assert held_out == ["3.png", "9.png", "15.png"]
    quality = fitted.mean_psnr(held_out=True)
    nothing = sum(psnr(torch.ones(SIZE, SIZE, 3), photos[i].rgb) for i in (3, 9, 15)) / 3
    assert quality is not None
    assert quality > nothing + 8.0  # the ball's outline is jagged, so 40 dB cannot be
    assert fitted.initial_source == "visual hull"


def test_the_budget_of_splats_holds_and_the_splats_lie_on_the_ball(fitted: Fit) -> None:
    assert 250 <= len(fitted.gaussians) <= TINY.splats
    opaque = torch.sigmoid(fitted.gaussians.logit_opacities) > 0.5
    assert float(fitted.gaussians.means[opaque].norm(dim=1).quantile(0.95)) < 0.6


def test_the_same_bits_come_out_whatever_the_number_of_threads(photos: list[Photo], fitted: Fit) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        expected_after = torch.get_num_threads()
        again = fit_photos(photos, TINY)
        assert torch.get_num_threads() == expected_after
    finally:
        torch.set_num_threads(before)
    assert_same(fitted, again)


def test_a_killed_fit_goes_on_to_the_same_bits(
    photos: list[Photo], fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(progress: FitProgress) -> None:
        if progress.step == 50:
            raise Killed

    config = replace(TINY, checkpoint_seconds=1e-9)  # after each step
    with pytest.raises(Killed):
        fit_photos(photos, config, checkpoint=tmp_path, on_progress=kill)
    assert resumable_step(tmp_path) == 49
    steps: list[int] = []
    resumed = fit_photos(
        photos,
        replace(TINY, checkpoint_seconds=1e9),
        checkpoint=tmp_path,
        on_progress=lambda progress: steps.append(progress.step),
    )
    assert steps[0] == 50
    assert_same(fitted, resumed)


def test_a_checkpoint_of_other_photos_or_settings_is_not_resumed(photos: list[Photo], tmp_path: Path) -> None:
    short = replace(TINY, steps=4, checkpoint_seconds=1e-9)
    fit_photos(photos, short, checkpoint=tmp_path)
    assert resumable_step(tmp_path) == 4
    steps: list[int] = []
    other = replace(short, steps=10, seed=1)
    fit_photos(photos, other, checkpoint=tmp_path, on_progress=lambda progress: steps.append(progress.step))
    assert steps == [10]
    assert_same(fit_photos(photos, other), fit_photos(photos, other, checkpoint=tmp_path))


def test_folds_deal_out_every_photo_once() -> None:
    folds = folds_of(11, 3)
    assert sorted(i for fold in folds for i in fold) == list(range(11))
    assert folds[0] == {0, 3, 6, 9}


def test_each_fold_is_fitted_without_its_photos_and_a_stopped_run_keeps_the_finished_ones(
    photos: list[Photo], tmp_path: Path
) -> None:
    short = replace(TINY, steps=6, held_out_every=0)
    seen: list[tuple[int, int]] = []
    fits = cross_fit(
        photos, short, 2, checkpoints=tmp_path, on_progress=lambda fold, p: seen.append((fold, p.step))
    )
    assert [fold for fold, _ in seen] == [0, 1]
    for fit, fold in zip(fits, folds_of(len(photos), 2), strict=True):
        assert {i for i, view in enumerate(fit.views) if view.held_out} == fold
    alone = fit_photos(
        photos, replace(short, seed=short.seed + 1, stop_early=False), held_out=folds_of(len(photos), 2)[0]
    )
    assert_same(fits[0], alone)
    changed = [replace(photo, rgb=1 - photo.rgb) if i % 2 == 0 else photo for i, photo in enumerate(photos)]
    other = fit_photos(
        changed, replace(short, seed=short.seed + 1, stop_early=False), held_out=folds_of(len(photos), 2)[0]
    )
    assert torch.equal(other.gaussians.means, alone.gaussians.means)  # the held-out photos do not matter
    seen.clear()
    again = cross_fit(
        photos, short, 2, checkpoints=tmp_path, on_progress=lambda fold, p: seen.append((fold, p.step))
    )
    assert seen == []  # both were found finished
    for a, b in zip(fits, again, strict=True):
        assert_same(a, b)
    assert unseen_of(fits, len(photos))[3] is fits[1].gaussians


def test_a_damaged_checkpoint_is_ignored(photos: list[Photo], tmp_path: Path) -> None:
    short = replace(TINY, steps=4, checkpoint_seconds=1e-9)
    whole = fit_photos(photos, short, checkpoint=tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    assert_same(whole, fit_photos(photos, short, checkpoint=tmp_path))


def test_photos_without_silhouettes_start_from_random_points_and_still_fit() -> None:
    photos = [ball_photo(i, silhouette=False) for i in range(12)]
    fit = fit_photos(photos, TINY)
    assert fit.initial_source == "random"
    quality = fit.mean_psnr(held_out=False)
    assert quality is not None
    assert quality > 18.0


def test_fitted_exposure_finds_the_gain_between_photos() -> None:
    photos = [ball_photo(i, gain=0.8 if i % 2 else 1.0) for i in range(12)]
    fit = fit_photos(photos, replace(TINY, exposure=True, steps=240, held_out_every=0))
    gains = torch.tensor([view.gain for view in fit.views]).mean(dim=1)
    ratio = float(gains[1::2].mean() / gains[::2].mean())
    assert 0.7 < ratio < 0.93  # true 0.8; bias takes some of it


def test_held_out_photos_are_the_middle_of_each_run() -> None:
    assert held_out_indices(96, 8) == set(range(4, 96, 8))
    assert held_out_indices(15, 8) == set()
    assert held_out_indices(40, 0) == set()


def test_presets_differ_in_effort() -> None:
    assert preset("default") == FitConfig()
    assert preset("fast").steps < preset("default").steps < preset("best").steps


def test_one_photo_is_refused() -> None:
    with pytest.raises(InputError, match="needs two"):
        fit_photos([ball_photo(0)], TINY)


def test_the_pull_from_3d_gradients_is_the_kernels_gradient_by_the_projected_centre():
    from prepare.camera import Camera, look_at
    from recon.fit import projected_pull
    from recon.gaussians import Gaussians
    from recon.rasterize import RasterOptions
    from recon.rasterize_cpu import rasterize_cpu

    generator = torch.Generator().manual_seed(2)
    count = 400
    means = (torch.rand(count, 3, generator=generator) - 0.5).requires_grad_()
    splats = Gaussians(
        means,
        torch.randn(count, 4, generator=generator),
        torch.full((count, 3), -4.5),
        torch.zeros(count),
        torch.randn(count, 1, 3, generator=generator),
    )
    pose = look_at(torch.tensor([1.0, -2.8, 0.6]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(pose, 130.0, 130.0, 48.0, 48.0, 96, 96)
    direct = torch.zeros(count, 2)
    render = rasterize_cpu(splats, camera, torch.zeros(3), None, RasterOptions(), direct)
    (render.rgb * torch.rand(96, 96, 3, generator=generator)).sum().backward()
    indirect = projected_pull(means.detach(), means.grad, camera)
    assert direct.norm() > 0
    assert (indirect - direct).norm() / direct.norm() < 0.02
    assert torch.equal(projected_pull(means.detach(), None, camera), torch.zeros(count, 2))


def test_splats_that_colour_too_little_of_the_photos_are_gone_at_the_end(photos: list[Photo]) -> None:
    strict = fit_photos(photos, replace(TINY, min_cover_px=0.6))
    kept = fit_photos(photos, replace(TINY, min_cover_px=0.0))
    options = RasterOptions()
    shown = [p for p in photos if p.name not in {"3.png", "9.png", "15.png"}]

    def least(fit: Fit) -> float:
        cover = sum(compositing_weights(fit.gaussians, p.camera, options) for p in shown)
        assert isinstance(cover, torch.Tensor)
        return float(cover.min()) / len(shown)

    assert least(kept) < 0.1
    assert least(strict) >= 0.15  # a third of 0.6, less what changes when others go


def test_compositing_weights_sum_to_what_the_picture_covers(photos: list[Photo], fitted: Fit) -> None:
    render = rasterize(fitted.gaussians, photos[0].camera, torch.zeros(3))
    weights = compositing_weights(fitted.gaussians, photos[0].camera, RasterOptions())
    assert float(weights.sum()) == pytest.approx(float(render.alpha.sum()), rel=1e-4)


def test_the_rates_decay_over_all_steps_while_held_out_photos_get_better() -> None:
    schedule = Schedule(4000)
    for check in range(12):
        schedule.check((check + 1) * CHECK_EVERY, 20.0 + 0.1 * check)
    assert schedule.end == 4000
    assert (schedule.share(0), schedule.share(3999)) == (0.0, 1.0)


def test_the_decay_is_wound_up_once_held_out_photos_stop_getting_better() -> None:
    schedule = Schedule(10_000)
    done = 0
    while schedule.cool_from is None:
        done += CHECK_EVERY
        schedule.check(done, min(30.0, 20.0 + done / 100))
        assert done < 10_000
    assert done == 1000 + FLAT_CHECKS * CHECK_EVERY
    assert schedule.end == done + 1000
    shares = [schedule.share(step) for step in range(done - 1, schedule.end)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[1] - shares[0] < 0.01  # no jump where it begins
    again = Schedule.from_text(10_000, schedule.text())
    assert again.share(done + 500) == schedule.share(done + 500)
    assert again.end == schedule.end


def test_a_fit_stops_early_and_a_killed_one_stops_at_the_same_step(
    photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.fit.CHECK_EVERY", 5)
    config = replace(TINY, steps=600, checkpoint_seconds=1e-9)
    whole = fit_photos(photos, config)
    assert TINY.steps < whole.steps < 600

    class Killed(Exception):
        pass

    def kill(progress: FitProgress) -> None:
        if progress.steps < 600:  # while it winds down
            raise Killed

    with pytest.raises(Killed):
        fit_photos(photos, config, checkpoint=tmp_path, on_progress=kill)
    assert_same(whole, fit_photos(photos, config, checkpoint=tmp_path))
    everything = fit_photos(photos, replace(config, stop_early=False))
    assert everything.steps == 600
