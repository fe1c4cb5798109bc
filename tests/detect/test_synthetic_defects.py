"""Defects made by editing splats: what each kind changes, and that the rest of the photo stays what it was."""

import pytest
import torch

from detect.synthetic_defects import KINDS, RADII_PX, edit, with_defects
from recon.rasterize import RasterOptions, rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")
OPTIONS = RasterOptions(depth=True)


@pytest.fixture
def seen(toy):
    camera = toy.cameras(1, seed=4)[0]
    photo = toy.photo(camera, noise_seed=3)
    return photo, rasterize(toy.reference.gaussians, camera, photo.background, options=OPTIONS)


def edited(toy, seen, kind, seed):
    photo, render = seen
    generator = torch.Generator().manual_seed(seed)
    return edit(toy.reference.gaussians, photo.camera, render, kind, generator)


def test_missing_takes_splats_away_from_one_place(toy, seen):
    before = toy.reference.gaussians
    after = edited(toy, seen, "missing", 1)
    assert 3 <= len(before) - len(after) < 0.5 * len(before)
    left = {tuple(row) for row in after.means.tolist()}
    gone = torch.tensor([row for row in before.means.tolist() if tuple(row) not in left])
    reach = RADII_PX[1] * 4.0 / seen[0].camera.fl_x * 8  # the largest radius at the far side, stretched
    assert (gone - gone.mean(dim=0)).norm(dim=1).max() < reach


def test_a_stain_changes_colours_alone(toy, seen):
    before, after = toy.reference.gaussians, edited(toy, seen, "stained", 2)
    for name in ("means", "quats", "log_scales", "logit_opacities"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    changed = (before.sh != after.sh).any(dim=2).any(dim=1)
    assert 0 < changed.sum() < len(before)


def test_added_matter_comes_on_top_of_all_there_was(toy, seen):
    before, after = toy.reference.gaussians, edited(toy, seen, "added", 3)
    assert len(after) >= len(before) + 3
    for name, tensor in before.tensors().items():
        assert torch.equal(tensor, getattr(after, name)[: len(before)])
    assert (after.logit_opacities[len(before) :] >= 2.0).all()


def test_the_photo_changes_where_the_render_does_and_the_label_says_where(toy, seen):
    photo, render = seen
    marked = 0
    for seed in range(6):
        defective, label = with_defects(
            photo, toy.reference.gaussians, render, OPTIONS, torch.Generator().manual_seed(seed)
        )
        changed = (defective.rgb - photo.rgb).abs().amax(dim=-1) > 1e-3
        assert not (label & ~changed).any()
        assert changed.float().mean() < 0.6
        marked += int(label.sum())
        # The photo's own noise stays in it: off the edit it is the photo.
        assert (defective.rgb - photo.rgb)[~changed].abs().max() <= 1e-3
        assert defective.camera is photo.camera
    assert marked > 50


def test_the_same_seed_makes_the_same_defect_and_another_another(toy, seen):
    photo, render = seen

    def made(seed):
        return with_defects(
            photo, toy.reference.gaussians, render, OPTIONS, torch.Generator().manual_seed(seed)
        )[0]

    assert torch.equal(made(5).rgb, made(5).rgb)
    assert not torch.equal(made(5).rgb, made(6).rgb)


def test_a_render_without_any_part_is_refused(toy, seen):
    photo, render = seen
    nothing = type(render)(render.rgb, torch.zeros_like(render.alpha), render.depth)
    with pytest.raises(ValueError, match="shows no part"):
        edit(toy.reference.gaussians, photo.camera, nothing, KINDS[0], torch.Generator())
