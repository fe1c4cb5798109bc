from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prepare.foreground import border_colour, foreground_alpha, part_on_white, without_shadow
from prepare.image import list_images, read_image

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")


def _disc(size: int = 60, centre: float = 30.0, radius: float = 15.0) -> Tensor:
    """Share of each pixel inside a disc, by 8x8 samples in each pixel."""
    at = (torch.arange(size * 8) + 0.5) / 8
    inside = ((at[:, None] - centre) ** 2 + (at[None] - centre) ** 2 < radius**2).float()
    return inside.reshape(size, 8, size, 8).mean(dim=(1, 3))


def _over(colour: list[float], share: Tensor, background: list[float]) -> Tensor:
    share = share[..., None]
    return share * torch.tensor(colour) + (1 - share) * torch.tensor(background)


@pytest.mark.parametrize("background", [[1.0, 1.0, 1.0], [0.1, 0.6, 0.2], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
def test_alpha_is_the_share_of_the_part_also_along_the_silhouette(background: list[float]) -> None:
    truth = _disc()
    found = foreground_alpha(_over([0.8, 0.3, 0.35], truth, background))
    assert found.background is not None
    torch.testing.assert_close(found.background, torch.tensor(background))
    edge = (truth > 0.02) & (truth < 1)
    assert torch.equal(found.alpha[truth == 1], torch.ones(int((truth == 1).sum())))
    assert torch.equal(found.alpha[truth == 0], torch.zeros(int((truth == 0).sum())))
    # Shares within the tolerance (2.5 levels of a contrast of 0.3) count as none.
    assert (found.alpha - truth).abs()[edge].max() < 0.035


def test_a_pure_green_part_on_white_is_found() -> None:
    """A test of one channel's exact 255 would take the part for background."""
    truth = _disc()
    found = foreground_alpha(_over([0.0, 1.0, 0.0], truth, [1.0, 1.0, 1.0]))
    assert torch.equal(found.alpha > 0.5, truth > 0.5)


def test_the_tolerance_follows_the_noise_of_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = _disc()
    noisy = _over([0.7, 0.2, 0.2], truth, [0.8, 0.8, 0.75]) + 0.008 * torch.randn(
        60, 60, 3, generator=generator
    )
    border = border_colour(noisy)
    assert border is not None
    assert 0.004 < border.noise < 0.016
    found = foreground_alpha(noisy.clamp(0, 1))
    wrong = (found.alpha > 0.5) != (truth > 0.5)
    assert wrong.float().mean() < 0.005


@pytest.mark.parametrize("sigma", [0.004, 0.012])
def test_noise_clipped_at_white_leaves_no_specks(sigma: float) -> None:
    truth = _disc(size=200, centre=100.0, radius=50.0)
    generator = torch.Generator().manual_seed(0)
    noisy = _over([0.7, 0.2, 0.2], truth, [1.0, 1.0, 1.0]) + sigma * torch.randn(
        200, 200, 3, generator=generator
    )
    found = foreground_alpha(noisy.clamp(0, 1))
    assert not found.alpha[truth == 0].any()
    assert (found.alpha[truth == 1] > 0.9).all()


def test_a_part_cut_by_the_frame_is_still_told_from_the_background() -> None:
    truth = _disc(centre=8.0, radius=20.0)
    found = foreground_alpha(_over([0.2, 0.2, 0.6], truth, [1.0, 1.0, 1.0]))
    assert found.background is not None
    assert torch.equal(found.alpha > 0.5, truth > 0.5)


def test_a_see_through_gap_is_background_and_a_fading_highlight_is_part() -> None:
    gap, part = _disc(radius=5.0), _disc(radius=20.0)
    ring = _over([0.3, 0.3, 0.7], part - gap, [1.0, 1.0, 1.0])
    assert torch.equal(foreground_alpha(ring).alpha > 0.5, (part - gap) > 0.5)

    at = torch.arange(60.0) + 0.5 - 30.0
    distance = (at[:, None] ** 2 + at[None] ** 2).sqrt()
    gloss = (1.4 - distance / 14).clamp(0, 1)[..., None]  # white, saturated in the middle, fading outwards
    solid = _over([0.3, 0.3, 0.7], part, [1.0, 1.0, 1.0])
    glossy = solid * (1 - gloss) + gloss
    assert (glossy == 1).all(dim=-1)[25:35, 25:35].any()
    assert (foreground_alpha(glossy).alpha == 1)[distance < 18].all()


def test_a_few_enclosed_pixels_of_background_colour_stay_part() -> None:
    part = _disc(radius=20.0)
    image = _over([0.3, 0.3, 0.7], part, [1.0, 1.0, 1.0])
    image[30, 30:32] = 1.0
    assert (foreground_alpha(image).alpha[29:32, 29:33] > 0.5).all()


def test_a_cluttered_border_gives_no_background_and_alpha_one() -> None:
    clutter = torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(0))
    found = foreground_alpha(clutter)
    assert found.background is None
    assert torch.equal(found.alpha, torch.ones(40, 50))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (40, 30)])
def test_a_uniform_image_is_all_background(size: tuple[int, int]) -> None:
    found = foreground_alpha(torch.full((*size, 3), 0.4))
    assert found.background is not None
    torch.testing.assert_close(found.background, torch.full((3,), 0.4))
    assert not found.alpha.any()


def test_the_bulldozer_over_white_gives_its_true_alpha_back() -> None:
    if not (_DATA / "nerf_lego").is_dir():
        pytest.skip(f"no real input at {_DATA / 'nerf_lego'}; set SPLATAD_TESTDATA")
    for path in list_images(_DATA / "nerf_lego" / "train")[::30]:
        image = read_image(path)
        assert image.alpha is not None
        found = foreground_alpha(image.rgb * image.alpha[..., None] + 1 - image.alpha[..., None])
        part, truth = found.alpha > 0.5, image.alpha > 0.5
        assert (part & truth).sum() / (part | truth).sum() > 0.99
        edge = (image.alpha > 0) & (image.alpha < 1)
        assert (found.alpha - image.alpha).abs()[edge].mean() < 0.1  # a binary mask has 0.31


def test_the_toy_car_is_found_in_each_photo_and_clutter_in_none() -> None:
    if not (_DATA / "mad_car").is_dir() or not (_DATA / "fox").is_dir():
        pytest.skip(f"no real input at {_DATA}; set SPLATAD_TESTDATA")
    for path in list_images(_DATA / "mad_car" / "train" / "good")[::8]:
        found = foreground_alpha(read_image(path).rgb)
        assert found.background is not None
        assert 0.2 < found.alpha.mean() < 0.55
    for path in list_images(_DATA / "fox" / "images")[::20]:
        assert foreground_alpha(read_image(path).rgb).background is None


def test_a_soft_shadow_on_white_is_not_the_part_but_an_enclosed_light_spot_is():
    rgb = torch.ones(40, 40, 3)
    rgb[10:30, 10:20] = torch.tensor([0.6, 0.3, 0.2])  # the part
    rgb[14:18, 13:16] = 0.9  # a light spot inside it
    rgb[28:34, 20:34] = torch.linspace(0.82, 0.97, 14)[None, :, None]  # its shadow
    alpha = ((1 - rgb).amax(dim=-1) > 0.02).float()
    found = without_shadow(rgb, alpha)
    assert bool((found[10:30, 10:20] == 1).all())
    assert float(found.sum()) == 200
    coloured = rgb.clone()
    coloured[28:34, 20:34, 2] -= 0.1  # paint, no shadow
    assert torch.equal(without_shadow(coloured, alpha), alpha)


def _with_shadow():
    """A brown part with a grey leg on white, its shadow fading away from it, and the masks of both."""
    rgb, part, shadow = torch.ones(64, 64, 3), torch.zeros(64, 64).bool(), torch.zeros(64, 64).bool()
    shadow[44:56, 22:60] = True
    rgb[44:56, 22:60] = torch.linspace(0.55, 0.99, 38)[None, :, None]
    part[10:40, 10:30] = True
    rgb[10:40, 10:30] = torch.tensor([0.6, 0.3, 0.2])
    leg = torch.zeros(64, 64).bool()
    leg[40:56, 24:28] = True
    rgb[leg] = 0.25
    return rgb, part | leg, shadow & ~leg


def test_bounds_of_a_part_with_a_shadow_hold_the_part_and_leave_the_shadow_open():
    rgb, part, shadow = _with_shadow()
    found = part_on_white(rgb)
    assert not bool((found.surely & ~part).any())
    assert not bool((part & ~found.possibly).any())
    assert bool((found.surely <= found.likely).all())
    assert bool((found.likely <= found.possibly).all())
    assert not bool((found.surely & shadow).any())
    assert float((found.likely & shadow).sum()) < 0.05 * float(shadow.sum())
    dark = shadow & (rgb[..., 0] < 0.9)
    assert bool((found.possibly & dark)[dark].all())
    assert float(found.surely[part].float().mean()) > 0.7  # all but its rim
    assert not bool(found.possibly[:8].any())  # white ground


def test_a_hard_edge_ends_a_shadow_and_paint_is_none():
    rgb, part, shadow = _with_shadow()
    grey = rgb.clone()
    grey[part] = 0.5  # a grey part: only its edges tell it from shadow
    assert float(part_on_white(grey).surely[12:38, 12:28].float().mean()) == 1.0
    painted = rgb.clone()
    painted[shadow, 2] -= 0.1
    assert bool(part_on_white(painted).surely[46:54, 30:50].all())


def test_a_light_shadow_may_have_an_edge():
    rgb, _, _ = _with_shadow()
    rgb[58:, :40] = 0.87
    found = part_on_white(rgb)
    assert not bool(found.likely[58:, :40].any())
    assert bool(found.possibly[59:, 1:39].all())
    rgb[58:, :40] = 0.5
    assert bool(part_on_white(rgb).likely[60:, 2:38].all())


def test_what_is_lighter_than_the_ground_is_the_part():
    rgb = torch.ones(32, 32, 3)
    rgb[8:24, 8:24] = 1.2
    found = part_on_white(rgb)
    assert bool(found.surely[9:23, 9:23].all())
    assert not bool(found.possibly[:8].any())
