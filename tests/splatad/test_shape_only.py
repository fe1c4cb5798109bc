"""A reference without colours of its own against photos of painted parts: outline alone."""

from dataclasses import replace

import pytest
import torch

from pose.inner_edges import photo_edges
from pose.se3 import turn_deg
from prepare.scene import ViewImage
from recon.appearance import flattened_photo, one_colour
from splatad.inspector import SHAPE_ONLY, Inspector
from splatad.reference_dir import finish_reference, load_whole_reference

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WHITE = torch.ones(3)


@pytest.fixture(scope="module")
def inspector(toy, tmp_path_factory):
    """The toy as if from a bare CAD file, written and read again."""
    grey = one_colour(toy.reference.gaussians, WHITE)
    settings = {"seed": 0, "appearance": "shape"}
    reference = replace(toy.reference, name="bare", gaussians=grey, settings=settings)
    folder = tmp_path_factory.mktemp("bare")
    finish_reference(folder, reference, [flattened_photo(photo) for photo in toy.photos], 0.1)
    return Inspector(load_whole_reference(folder))


def image_of(photo):
    everywhere = torch.ones(photo.alpha.shape, dtype=torch.bool)
    return ViewImage(photo.rgb, photo.alpha, photo.background, everywhere, photo.camera)


@pytest.mark.parametrize("i", range(4))
def test_a_painted_part_is_found_by_its_outline_and_is_not_ng_for_its_paint(toy, inspector, i):
    photo = toy.photo(toy.cameras(4, seed=77)[i], noise_seed=i)
    result = inspector.inspect_image("painted", image_of(photo))
    assert result.located is not None
    assert turn_deg(result.located.camera.world_to_cam, photo.camera.world_to_cam) < 1.0
    assert result.verdict.name in ("OK", "CANNOT TELL")
    assert SHAPE_ONLY in result.verdict.reasons
    assert torch.equal(result.photo, photo.rgb)  # shown as it was taken


def test_the_same_outline_in_other_colours_has_the_same_score(toy, inspector):
    photo = toy.photo(toy.cameras(4, seed=77)[1])
    other = replace(photo, rgb=(1 - photo.rgb) * photo.alpha[..., None] + (1 - photo.alpha[..., None]))
    scores = [inspector.inspect_image("a", image_of(one)).score for one in (photo, other)]
    assert scores[0] == scores[1]


def test_inner_edges_come_from_the_photo_itself_and_only_for_a_reference_without_colours(
    toy, inspector, monkeypatch
):
    photo = toy.photo(toy.cameras(4, seed=77)[0])
    given = []
    monkeypatch.setattr("splatad.finder.locate", lambda *_, inner, **__: given.append(inner))
    inspector.locate(image_of(photo))
    Inspector(toy.loaded).locate(image_of(photo))
    assert torch.equal(given[0].rank, photo_edges(photo.rgb, photo.alpha).rank)
    assert given[1] is None


def test_a_missing_piece_of_the_outline_is_ng_there(toy, inspector):
    gaussians = toy.reference.gaussians
    kept = gaussians.select(gaussians.means[:, 2] < 0.3)  # the two small boxes lose their tops
    camera = next(camera for camera in toy.cameras(12, seed=5) if abs(float(camera.centre[2])) < 1.0)
    photo = toy.photo(camera, noise_seed=1, gaussians=kept)
    result = inspector.inspect_image("broken", image_of(photo))
    assert result.verdict.name == "NG"
    gone = toy.photo(camera).alpha - photo.alpha > 0.5
    assert any(bool((defect.mask & gone).any()) for defect in result.defects)
