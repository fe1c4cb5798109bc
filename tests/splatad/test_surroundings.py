"""Photos of a part on a patterned floor, no masks: cut to the part where the place is known, and inspected."""

from dataclasses import replace

import pytest
import torch

from prepare.image import write_image
from recon.fit import Photo
from recon.gaussians import Gaussians, gaussians_from_points
from recon.rasterize import rasterize
from recon.surroundings import Surroundings, cut_out
from splatad.inspector import Inspector
from splatad.reference_dir import finish_reference, load_whole_reference
from splatad.run_output import overlay_picture, report_photo

pytestmark = pytest.mark.usefixtures("one_torch_thread")
BLACK = torch.zeros(3)


def a_floor():
    """A board of coloured patches below the toy."""
    generator = torch.Generator().manual_seed(3)
    line = torch.linspace(-1.7, 1.7, 58)
    x, y = (grid.reshape(-1) for grid in torch.meshgrid(line, line, indexing="ij"))
    patches = torch.rand(12, 12, 3, generator=generator) * 0.8 + 0.1
    row, column = ((v + 1.75) / 3.5 * 12 for v in (x, y))
    places = torch.stack([x, y, torch.full_like(x, -0.45)], dim=1)
    return gaussians_from_points(
        places, patches[row.long(), column.long()], torch.full((len(x),), 0.045), opacity=0.95
    )


@pytest.fixture(scope="module")
def scene(toy):
    """Splats of toy and floor together, and which are the toy's."""
    part, floor = toy.reference.gaussians, a_floor().with_degree(toy.reference.gaussians.sh_degree)
    both = {name: torch.cat([tensor, floor.tensors()[name]]) for name, tensor in part.tensors().items()}
    inside = torch.arange(len(part) + len(floor)) < len(part)
    return Surroundings(Gaussians(**both), inside)


@pytest.fixture(scope="module")
def inspector(toy, scene, tmp_path_factory):
    """The toy's reference, calibrated on photos from above that were cut out of that scene."""
    views = tuple(view for view in toy.reference.views if float(view.camera.centre[2]) > 0.3)
    photos = [
        cut_out(
            Photo(
                view.name, view.camera, photographed(scene, view.camera, i), torch.ones(100, 100), BLACK, None
            ),
            scene.alpha(view.camera, toy.reference.options),
        )
        for i, view in enumerate(views)
    ]
    folder = tmp_path_factory.mktemp("placed")
    reference = replace(toy.reference, views=views)
    finish_reference(folder, reference, photos, None, surroundings=scene)
    return Inspector(load_whole_reference(folder))


@pytest.fixture(scope="module")
def camera(toy):
    """One from above, that sees the floor."""
    return next(c for c in toy.cameras(20, seed=9) if 1.2 < float(c.centre[2]) < 2.2)


def photographed(scene, camera, seed=0):
    with torch.no_grad():
        rgb = rasterize(scene.gaussians, camera, BLACK).rgb
    return (rgb + 0.01 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def test_a_photo_taken_in_the_same_place_is_cut_to_the_part(toy, scene, inspector, camera, tmp_path):
    write_image(tmp_path / "a.png", photographed(scene, camera))
    image = inspector.read(tmp_path / "a.png")
    true = scene.alpha(camera, toy.reference.options)
    assert (image.alpha - true).abs().mean() < 0.01
    assert 0.05 < float(image.alpha.mean()) < 0.6
    assert torch.equal(image.background, toy.reference.background)
    assert (image.rgb[image.alpha == 0] == toy.reference.background).all()


def test_the_part_is_ok_and_a_painted_spot_on_it_is_ng_there(scene, inspector, camera, tmp_path):
    rgb = photographed(scene, camera)
    write_image(tmp_path / "good.png", rgb)
    assert inspector.inspect(tmp_path / "good.png").verdict.name == "OK"
    u, v, _ = camera.project(torch.tensor([[0.1, 0.2, 0.0]]))[0].int().tolist()
    rgb[v - 4 : v + 5, u - 4 : u + 5] = torch.tensor([0.9, 0.1, 0.9])
    write_image(tmp_path / "painted.png", rgb)
    result = inspector.inspect(tmp_path / "painted.png")
    assert result.verdict.name == "NG"
    assert any(bool(defect.mask[v, u]) for defect in result.defects)


def test_what_lies_beside_the_part_does_not_matter(scene, inspector, camera, tmp_path):
    rgb = photographed(scene, camera)
    free = scene.alpha(camera, inspector.loaded.reference.options) == 0
    free[:-12] = False  # a strip of floor in front
    rgb[free] = torch.tensor([0.1, 0.9, 0.1])
    write_image(tmp_path / "beside.png", rgb)
    assert inspector.inspect(tmp_path / "beside.png").verdict.name == "OK"


def test_people_are_shown_the_photo_as_it_was_taken(scene, inspector, camera, tmp_path):
    rgb = photographed(scene, camera)
    write_image(tmp_path / "good.png", rgb)
    result = inspector.inspect(tmp_path / "good.png")
    floor = result.alpha == 0
    assert floor.float().mean() > 0.3
    assert (
        result.photo[floor] == inspector.loaded.reference.background
    ).all()  # what is compared: the part alone
    assert (result.shown - rgb).abs().max() < 1 / 255
    assert torch.equal(report_photo(result).photo, result.shown)
    sheet = overlay_picture(result, inspector.loaded)
    patches = (
        sheet.unfold(0, 100, 1).unfold(1, 100, 1).movedim(2, -1)
    )  # the photo stands in the sheet, unmarked
    assert float((patches[:, :8] - result.shown).abs().amax(dim=(2, 3, 4)).min()) < 1 / 255


def test_a_photo_of_another_place_is_left_as_it_is(inspector, tmp_path):
    noise = torch.rand(100, 100, 3, generator=torch.Generator().manual_seed(1))
    write_image(tmp_path / "noise.png", noise)
    assert bool((inspector.read(tmp_path / "noise.png").alpha == 1).all())
    assert inspector.inspect(tmp_path / "noise.png").verdict.name == "CANNOT TELL"


def test_without_the_surroundings_a_cluttered_photo_is_not_cut(toy, scene, camera, tmp_path):
    write_image(tmp_path / "a.png", photographed(scene, camera))
    assert bool((Inspector(toy.loaded).read(tmp_path / "a.png").alpha == 1).all())
