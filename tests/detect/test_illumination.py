"""Light told from stains."""

import pytest
import torch

from detect.illumination import fit_illumination, is_other_light
from pose.residual import Exposure

SIZE = 120


def a_part():
    """A textured disc over white, and the share of it in each pixel."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")[0].permute(1, 2, 0)
    texture = 0.15 + 0.5 * texture.clamp(0, 1)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    alpha = ((rows - 60) ** 2 + (columns - 60) ** 2 < 50**2).float()
    return texture * alpha[..., None] + (1 - alpha[..., None]), alpha


def under(rgb, alpha, gain, bias, tilt):
    """The part under another light: brighter to one side by `tilt`."""
    shade = 1 + tilt * (torch.arange(SIZE) - 60) / 50
    part = rgb * torch.tensor(gain) * shade[None, :, None] + torch.tensor(bias)
    return (part * alpha[..., None] + (1 - alpha[..., None])).clamp(0, 1)


def test_gain_bias_and_a_light_from_one_side_are_taken_away():
    render, alpha = a_part()
    photo = under(render, alpha, (0.75, 0.9, 1.2), (0.02, 0.0, -0.02), 0.2)
    light = fit_illumination(photo, alpha, render, alpha)
    back = light.removed(photo, alpha, torch.ones(3))
    assert (photo - render).abs()[alpha > 0].mean() > 0.05
    assert (back - render).abs()[alpha > 0].mean() < 0.008
    assert torch.equal(back[alpha == 0], photo[alpha == 0])
    assert "uneven by" in light.words
    assert "0.7" in light.words


def test_no_other_light_leaves_the_photo_as_it_is():
    render, alpha = a_part()
    light = fit_illumination(render, alpha, render, alpha)
    assert light.gain.tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert (light.removed(render, alpha, torch.ones(3)) - render).abs().max() < 5e-3


@pytest.mark.parametrize("radius", [4, 8, 14])
def test_a_stain_stays_as_different_as_it_was(radius):
    render, alpha = a_part()
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stain = (rows - 45) ** 2 + (columns - 70) ** 2 < radius**2
    stained = render.clone()
    stained[stain] = torch.tensor([0.05, 0.3, 0.05])
    photo = under(stained, alpha, (0.8, 0.8, 0.8), (0.0, 0.0, 0.0), 0.15)
    back = fit_illumination(photo, alpha, render, alpha).removed(photo, alpha, torch.ones(3))
    before = (stained - render)[stain].norm(dim=-1).mean()
    after = (back - render)[stain].norm(dim=-1).mean()
    assert after > 0.9 * before
    assert (back - render)[(alpha > 0) & ~stain].norm(dim=-1).mean() < 0.03


def test_a_part_painted_all_over_is_not_explained_by_its_light():
    render, alpha = a_part()
    photo = under(render, alpha, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 0.0)
    photo[alpha > 0] = torch.tensor([0.9, 0.1, 0.1])
    back = fit_illumination(photo, alpha, render, alpha).removed(photo, alpha, torch.ones(3))
    assert (back - render)[alpha > 0].norm(dim=-1).mean() > 0.25


def test_too_little_of_the_part_tells_nothing():
    render, _ = a_part()
    alpha = torch.zeros(SIZE, SIZE)
    alpha[:5, :5] = 1
    light = fit_illumination(0.5 * render, alpha, render, alpha)
    assert light.gain.tolist() == [1, 1, 1]
    assert (light.shade == 1).all()


def test_what_counts_as_another_light():
    assert not is_other_light(Exposure())
    assert not is_other_light(Exposure((1.03, 0.98, 1.0), (0.01, 0.0, 0.0)))
    assert is_other_light(Exposure((1.0, 1.0, 0.9)))
    assert is_other_light(Exposure(bias=(0.0, 0.05, 0.0)))
