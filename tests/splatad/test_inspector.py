"""One photo in, one verdict out: good, damaged, foreign and unusable photos of the toy part."""

import json
from dataclasses import replace

import pytest
import torch

from detect.metrics import rotation_error_deg
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.image import write_image
from recon.rasterize import rasterize
from splatad.finder import over_background
from splatad.inspector import Inspector, verdict_document
from splatad.lens import reference_lens

pytestmark = pytest.mark.usefixtures("one_torch_thread")
MAGENTA = torch.tensor([0.9, 0.1, 0.9])


@pytest.fixture(scope="module")
def folder(toy, other_toy_gaussians, tmp_path_factory):
    """Photos as files: three good, two painted, one blank, one of another part."""
    made = tmp_path_factory.mktemp("photos")
    cameras = toy.cameras(6, seed=51)
    for i in range(3):
        write_image(made / f"good_{i}.png", toy.photo(cameras[i], noise_seed=200 + i).rgb)
    for i in (3, 4):
        write_image(
            made / f"painted_{i}.png",
            painted(toy.photo(cameras[i], noise_seed=200 + i).rgb, *middle(cameras[i])),
        )
    write_image(made / "blank.png", torch.ones(100, 100, 3))
    write_image(made / "other.png", toy.photo(cameras[5], noise_seed=1, gaussians=other_toy_gaussians).rgb)
    return made


def middle(camera):
    u, v, _ = camera.project(torch.tensor([[0.0, 0.0, -0.1]]))[0].int().tolist()
    return u, v


def painted(rgb, u, v, radius=5):
    rows, columns = torch.meshgrid(torch.arange(rgb.shape[0]), torch.arange(rgb.shape[1]), indexing="ij")
    spot = (columns - u) ** 2 + (rows - v) ** 2 <= radius**2
    return torch.where(spot[..., None], MAGENTA, rgb)


@pytest.fixture(scope="module")
def inspections(toy, folder):
    inspector = Inspector(toy.loaded)
    return {path.name: inspector.inspect(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_good_photo_is_ok_at_its_camera(toy, inspections, i):
    inspection = inspections[f"good_{i}.png"]
    truth = toy.cameras(6, seed=51)[i].world_to_cam
    assert float(rotation_error_deg(inspection.located.camera.world_to_cam.double(), truth.double())) < 0.1
    # Of three good photos at a false-alarm rate of a tenth one may pass the threshold, but not by much.
    assert inspection.verdict.name == "OK" or inspection.score < 1.3 * toy.loaded.calibration.threshold
    assert inspection.defects == () or inspection.verdict.name == "NG"
    assert {"read", "coarse pose", "fine pose", "compare"} <= set(inspection.seconds)


def test_most_good_photos_are_ok(inspections):
    assert sum(inspections[f"good_{i}.png"].verdict.name == "OK" for i in range(3)) >= 2


@pytest.mark.parametrize("i", [3, 4])
def test_a_painted_spot_is_ng_with_its_defect_where_it_was_painted(toy, inspections, i):
    inspection = inspections[f"painted_{i}.png"]
    camera = toy.cameras(6, seed=51)[i]
    u, v = middle(camera)
    assert inspection.verdict.name == "NG"
    assert inspection.score > 1.5 * toy.loaded.calibration.threshold
    strongest = inspection.defects[0]
    x0, y0, x1, y1 = strongest.box
    assert x0 <= u < x1
    assert y0 <= v < y1
    assert x1 - x0 < 35
    assert strongest.kind == "discoloured"
    assert (
        float(
            rotation_error_deg(inspection.located.camera.world_to_cam.double(), camera.world_to_cam.double())
        )
        < 0.2
    )
    # Its place in 3D projects back into the box, on the part.
    centre = torch.tensor([strongest.centre])
    back_u, back_v, depth = camera.project(centre)[0].tolist()
    assert x0 - 1 <= back_u <= x1 + 1
    assert y0 - 1 <= back_v <= y1 + 1
    assert 2.0 < depth < 3.2


def test_a_blank_photo_is_cannot_tell(inspections):
    inspection = inspections["blank.png"]
    assert inspection.verdict.name == "CANNOT TELL"
    assert "no part found" in inspection.verdict.reasons[0]
    assert (inspection.located, inspection.anomaly, inspection.render, inspection.score) == (
        None,
        None,
        None,
        None,
    )
    assert inspection.defects == ()


def test_another_part_is_cannot_tell_and_keeps_its_numbers(inspections):
    inspection = inspections["other.png"]
    assert inspection.verdict.name == "CANNOT TELL"
    assert "of the part looks as it should" in inspection.verdict.reasons[0]
    assert inspection.score > 0
    assert inspection.defects == ()


def test_of_sides_that_look_the_same_the_one_that_the_photo_differs_least_from_is_judged(
    toy, folder, inspections
):
    inspector = Inspector(toy.loaded)
    image = inspector.read(folder / "good_1.png")
    right = inspections["good_1.png"].located
    wrong = toy.cameras(6, seed=51)[2]
    mistaken = replace(right, camera=wrong, alternatives=(right.camera,))
    inspection = inspector.judge("good_1.png", image, mistaken)
    assert torch.equal(inspection.located.camera.world_to_cam, right.camera.world_to_cam)
    assert inspection.score == inspections["good_1.png"].score
    assert [torch.equal(c.world_to_cam, wrong.world_to_cam) for c in inspection.located.alternatives] == [
        True
    ]


def test_a_photos_result_is_the_same_alone_and_in_a_folder_in_any_order(toy, folder, inspections):
    alone = Inspector.open(toy.folder)
    names = ["painted_3.png", "good_1.png"]
    for name in names:
        again = alone.inspect(folder / name)
        assert again.verdict == inspections[name].verdict
        assert again.score == inspections[name].score
        assert torch.equal(again.anomaly.values, inspections[name].anomaly.values)
        assert [d.box for d in again.defects] == [d.box for d in inspections[name].defects]


def test_a_larger_photo_is_brought_to_the_references_size(toy, folder, tmp_path, inspections):
    camera = toy.cameras(6, seed=51)[1].resized(230, 230)
    write_image(tmp_path / "large.png", toy.photo(camera).rgb)
    inspection = Inspector(toy.loaded).inspect(tmp_path / "large.png")
    assert inspection.photo.shape == (100, 100, 3)
    assert inspection.located.believed
    assert (
        float(
            rotation_error_deg(inspection.located.camera.world_to_cam.double(), camera.world_to_cam.double())
        )
        < 0.5
    )


def landscape(toy):
    """A loaded reference whose lens is wider than high."""
    views = tuple(
        replace(view, camera=replace(view.camera, width=100, height=75, cy=37.5))
        for view in toy.reference.views
    )
    reference = replace(toy.reference, views=views)
    return replace(
        toy.loaded, reference=reference, detector=replace(toy.loaded.detector, reference=reference)
    )


def test_a_portrait_photo_of_a_landscape_lens_is_turned_and_found(toy, tmp_path):
    lens = reference_lens(landscape(toy).reference.camera, 75, 100)
    assert (lens.width, lens.height, lens.cx, lens.cy) == (75, 100, 37.5, 50.0)
    camera = lens.moved(toy.cameras(6, seed=51)[0].world_to_cam)
    write_image(tmp_path / "portrait.png", toy.photo(camera, noise_seed=9).rgb)
    inspection = Inspector(landscape(toy)).inspect(tmp_path / "portrait.png")
    assert inspection.photo.shape == (100, 75, 3)
    assert inspection.located.believed
    assert (
        float(
            rotation_error_deg(inspection.located.camera.world_to_cam.double(), camera.world_to_cam.double())
        )
        < 0.1
    )


def test_the_lens_of_another_size_keeps_the_field_of_view():
    camera = Camera(torch.eye(4), 300.0, 310.0, 190.0, 140.0, 400, 300)
    large = reference_lens(camera, 1600, 1200)
    assert (large.fl_x, large.fl_y, large.cx, large.cy) == (1200.0, 1240.0, 760.0, 560.0)
    turned = reference_lens(camera, 300, 400)
    assert (turned.fl_x, turned.fl_y) == (310.0, 300.0)
    assert (turned.width, turned.height) == (300, 400)


@pytest.mark.parametrize(("width", "height"), [(400, 200), (150, 100), (99, 120)])
def test_a_photo_of_another_shape_is_refused_in_one_sentence_where_the_lens_must_be_the_same(
    toy, tmp_path, width, height
):
    path = tmp_path / "wide.png"
    write_image(path, torch.ones(height, width, 3))
    with pytest.raises(InputError, match=r"wide\.png: .* px, but the reference's photos are 100 x 100"):
        Inspector(toy.loaded, lens_mode="reference").inspect(path)
    assert Inspector(toy.loaded).inspect(path).verdict.name == "CANNOT TELL"  # blank, but read


def test_a_file_that_is_no_photo_is_refused_with_its_name(toy, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.png"):
        Inspector(toy.loaded).inspect(tmp_path / "notes.png")
    with pytest.raises(InputError, match=r"gone\.png"):
        Inspector(toy.loaded).inspect(tmp_path / "gone.png")


def test_a_photo_over_another_plain_background_is_brought_over_the_references(toy, tmp_path):
    camera = toy.cameras(6, seed=51)[2]
    with torch.no_grad():
        render = rasterize(toy.reference.gaussians, camera, torch.tensor([0.1, 0.35, 0.2]))
    write_image(tmp_path / "green.png", render.rgb)
    inspection = Inspector(toy.loaded).inspect(tmp_path / "green.png")
    white = rasterize(toy.reference.gaussians, camera, torch.ones(3)).rgb
    assert (inspection.photo[render.alpha < 0.01] > 0.98).all()
    inside = render.alpha > 0.99
    assert (inspection.photo - white)[inside].abs().max() < 0.02
    assert inspection.located.believed
    assert (
        float(
            rotation_error_deg(inspection.located.camera.world_to_cam.double(), camera.world_to_cam.double())
        )
        < 0.2
    )


def test_a_cluttered_background_is_left_as_it_is(toy):
    from prepare.scene import ViewImage

    rgb = torch.rand(10, 10, 3)
    image = ViewImage(rgb, torch.ones(10, 10), None, torch.ones(10, 10, dtype=torch.bool), None)
    assert over_background(image, torch.ones(3)) is rgb


KEYS = {
    "format", "version", "splatad", "photo", "reference", "verdict", "reasons", "score", "threshold",
    "score_divided_by", "false_alarm_rate", "attainable_rate", "threshold_note", "unknown_px", "pose", "defects", "seconds",
}  # fmt: skip


@pytest.mark.parametrize("name", ["good_0.png", "painted_3.png", "blank.png", "other.png"])
def test_the_document_is_plain_json_with_the_documented_keys(toy, inspections, name):
    inspection = inspections[name]
    document = json.loads(json.dumps(verdict_document(inspection, toy.loaded, "1.2.3"), allow_nan=False))
    assert set(document) >= KEYS
    assert (document["photo"], document["reference"], document["splatad"]) == (name, "toy", "1.2.3")
    assert document["verdict"] == inspection.verdict.name
    assert document["reasons"] == list(inspection.verdict.reasons)
    assert document["score"] == inspection.score
    assert document["threshold"] == toy.loaded.calibration.threshold
    assert (document["pose"] is None) == (inspection.located is None)
    if document["pose"] is not None:
        assert torch.equal(
            torch.tensor(document["pose"]["world_to_cam"]), inspection.located.camera.world_to_cam
        )
        assert document["pose"]["believed"] == inspection.located.believed
    assert len(document["defects"]) == len(inspection.defects)
    for written, defect in zip(document["defects"], inspection.defects, strict=True):
        assert tuple(written["box_px"]) == defect.box
        assert written["area_px"] == defect.area_px
        assert written["extent_mm"] == pytest.approx(25 * defect.extent)
