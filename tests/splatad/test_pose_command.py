"""`splatad pose` on photos of the toy part: the files, what they say, and that nerfstudio's reader takes them back."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from detect.metrics import rotation_error_deg, translation_error
from prepare.camera import from_opengl_cam_to_world
from prepare.datasets.nerfstudio import prepare_nerfstudio
from prepare.image import read_image, write_image
from prepare.scene import load_scene
from prepare.undistort import Distortion
from splatad import cli
from splatad.lens import QueryLens
from splatad.pictures import CIRCLE_COLOUR, VERDICT_COLOURS
from splatad.pose_output import (
    NO_CAMERA,
    PosedPhoto,
    camera_document,
    camera_picture,
    camera_row,
    checkerboard,
    nerfstudio_frame,
    pose_document,
    summary,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def photos(toy, tmp_path_factory):
    """Two good photos of one name, the second larger than the reference's, and a blank one."""
    folder = tmp_path_factory.mktemp("photos")
    cameras = toy.cameras(3, seed=51)
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    write_image(folder / "a" / "part.png", toy.photo(cameras[0], noise_seed=1).rgb)
    write_image(folder / "b" / "part.png", toy.photo(cameras[1].resized(240, 240)).rgb)
    write_image(folder / "blank.png", torch.ones(100, 100, 3))
    return folder


@pytest.fixture(scope="module")
def ran(toy, photos, tmp_path_factory):
    """The output folder of one run over all of them, and its exit status."""
    out = tmp_path_factory.mktemp("out")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    notes = photos / "b" / "notes.png"
    notes.write_text("no picture")
    given = [str(photos / name) for name in ("a", "b", "blank.png")]
    try:
        status = cli.main(
            ["pose", "--query", *given, "--reference", str(toy.folder), "--out", str(out), "--exit-status"]
        )
    finally:
        notes.unlink()
        torch.set_num_threads(before)
    return out, status


def read_json(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def located(toy):
    """A photo of the toy with its camera, as the command holds it."""
    photo = toy.photo(toy.cameras(3, seed=51)[0], noise_seed=1)
    from pose.locate import locate
    from recon.rasterize import rasterize

    loaded = toy.loaded
    found = locate(
        loaded.reference, loaded.index, loaded.levels, photo.rgb, photo.alpha, photo.camera,
        limits=loaded.calibration.belief,
    )  # fmt: skip
    with torch.no_grad():
        render = rasterize(toy.reference.gaussians, found.camera, torch.ones(3))
    return PosedPhoto("a/part.png", photo.rgb, found, render, found.reasons, {"fine pose": 0.25})


def test_an_unreadable_photo_among_others_is_bad_input_and_the_others_are_answered(ran):
    out, status = ran
    assert status == 3
    assert sorted(p.parent.name for p in out.glob("*/camera.json")) == ["a-part", "b-part", "blank"]


@pytest.mark.parametrize(("place", "which", "size"), [("a-part", 0, 100), ("b-part", 1, 240)])
def test_camera_json_holds_the_camera_in_both_conventions_with_the_files_own_lens(
    toy, ran, place, which, size
):
    document = read_json(ran[0] / place / "camera.json")
    assert (document["format"], document["version"], document["reference"]) == ("splatad-pose", 1, "toy")
    assert document["photo"] == place.replace("-", "/") + ".png"
    assert document["believed"] is True
    assert document["reasons"] == []
    truth = toy.cameras(3, seed=51)[which].resized(size, size)
    found = torch.tensor(document["world_to_cam"], dtype=torch.float64)
    assert float(rotation_error_deg(found, truth.world_to_cam)) < 0.5
    assert float(translation_error(found, truth.world_to_cam)) < 0.03
    opengl = torch.tensor(document["transform_matrix"], dtype=torch.float64)
    assert torch.allclose(from_opengl_cam_to_world(opengl), found, atol=1e-6)
    assert torch.allclose(opengl[:3, 3].float(), truth.centre, atol=0.03)  # where the camera stands
    assert torch.allclose(-opengl[:3, 2].float(), truth.forward, atol=0.01)  # it looks along its -z
    assert (document["w"], document["h"]) == (size, size)
    assert document["fl_x"] == pytest.approx(truth.fl_x)
    assert document["cx"] == pytest.approx(size / 2)
    assert set(document) >= set(NO_CAMERA) | {"seconds"}
    assert set(document["seconds"]) >= {"read", "fine pose"}


def test_a_photo_without_a_part_gets_a_camera_json_that_says_so(ran):
    document = read_json(ran[0] / "blank" / "camera.json")
    assert document["believed"] is False
    assert document["belief"] == 0
    assert "no part found" in document["reasons"][0]
    assert document["world_to_cam"] is document["fl_x"] is document["inliers"] is None
    assert document["alternatives"] == []


def test_the_scene_of_the_believed_photos_is_read_back_by_prepare_nerfstudio(toy, photos, ran, tmp_path):
    out = ran[0]
    (folder,) = prepare_nerfstudio(out / "scene", lambda name: tmp_path / name, name="again")
    views = {view.name: view for view in load_scene(folder).views}
    assert sorted(views) == ["images/images/a-part.png", "images/images/b-part.png"]
    for place, path in (("a-part", "a/part.png"), ("b-part", "b/part.png")):
        view = views[f"images/images/{place}.png"]
        document = read_json(out / place / "camera.json")
        assert torch.allclose(view.camera.world_to_cam, torch.tensor(document["world_to_cam"]), atol=1e-5)
        assert view.camera.fl_x == pytest.approx(document["fl_x"])
        assert torch.equal(read_image(view.image_path).rgb, read_image(photos / path).rgb)


def test_cameras_csv_has_a_line_for_each_photo_that_could_be_read(ran):
    with (ran[0] / "cameras.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a/part.png", "b/part.png", "blank.png"]
    assert [row["believed"] for row in rows.values()] == ["True", "True", "False"]
    document = read_json(ran[0] / "a-part" / "camera.json")
    assert float(rows["a/part.png"]["inliers"]) == pytest.approx(document["inliers"], rel=1e-5)
    assert rows["blank.png"]["inliers"] == ""
    assert "no part found" in rows["blank.png"]["reason"]


def run_on(toy, path, out, *flags):
    return cli.main(["pose", "--query", str(path), "--reference", str(toy.folder), "--out", str(out), *flags])


def test_exit_status_tells_a_camera_that_is_not_believed_only_where_asked(toy, photos, tmp_path, capsys):
    assert run_on(toy, photos / "blank.png", tmp_path / "plain") == 0
    assert run_on(toy, photos / "blank.png", tmp_path / "asked", "--exit-status") == 20
    assert "0 of 1 cameras believed" in capsys.readouterr().out
    assert not (tmp_path / "asked" / "scene" / "transforms.json").exists()
    assert (tmp_path / "asked" / "blank" / "overlay.png").is_file()


def test_a_second_run_into_the_same_folder_leaves_no_scene_of_the_first(toy, photos, tmp_path):
    assert run_on(toy, photos / "a" / "part.png", tmp_path, "--exit-status") == 0
    assert (tmp_path / "scene" / "transforms.json").is_file()
    run_on(toy, photos / "blank.png", tmp_path)
    assert not (tmp_path / "scene" / "transforms.json").exists()


def test_a_single_unreadable_photo_is_one_line_and_writes_nothing(toy, tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no picture")
    assert run_on(toy, tmp_path / "notes.png", tmp_path / "out") == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_several_photos_of_which_none_can_be_read_are_bad_input(toy, tmp_path, capsys):
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_text("no picture")
    assert run_on(toy, tmp_path, tmp_path / "out") == 3
    assert "none of the 2 photos could be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_recipe_splatpose_drives_its_own_refinement(toy, photos, tmp_path, monkeypatch):
    from splatad import finder

    used = []

    def noted(*arguments, config, **keywords):
        used.append(config.refine)

    monkeypatch.setattr(finder, "locate", noted)
    for number, flags in enumerate(([], ["--refine", "adam"], ["--recipe", "splatpose"])):
        run_on(toy, photos / "a" / "part.png", tmp_path / str(number), *flags)
    assert used == ["levenberg", "adam", "splatpose"]


# ------------------------------------------------------------------------------------------------------------- the parts


def test_the_pose_document_is_plain_json_with_the_numbers_of_the_located_camera(located, toy):
    other = toy.cameras(3, seed=51)[1]
    found = replace(
        located.located,
        alternatives=(other,),
        ambiguity="looks the same from 2 sides",
        sigma_deg=math.inf,
    )
    document = json.loads(json.dumps(pose_document(found), allow_nan=False))
    assert set(document) == set(NO_CAMERA)
    assert document["sigma_deg"] is None
    assert document["ambiguity"] == "looks the same from 2 sides"
    assert torch.equal(torch.tensor(document["alternatives"][0]["world_to_cam"]), other.world_to_cam)
    centre = torch.tensor(document["alternatives"][0]["transform_matrix"])[:3, 3]
    assert torch.allclose(centre, other.centre, atol=1e-5)
    assert document["inliers"] == found.inliers
    assert document["in_frame"] == found.in_frame
    assert document["belief"] == found.belief
    assert document["nearest_reference_view_deg"] == found.nearest_view_deg
    assert document["exposure"] == {"gain": list(found.exposure.gain), "bias": list(found.exposure.bias)}


def test_a_bent_lens_stands_in_camera_json_and_in_the_frame(located, toy):
    bent = Distortion(k1=-0.1, p2=0.001)
    loaded = replace(toy.loaded, reference=replace(toy.reference, distortion=bent))
    lens = QueryLens(toy.reference.camera, False, bent, "the reference's lens")
    document = camera_document(replace(located, lens=lens), 200, 200, loaded, "1.2.3")
    frame = nerfstudio_frame(located.located.camera, bent, "images/x.png")
    for written in (document, frame):
        assert (written["camera_model"], written["k1"], written["p2"]) == ("OPENCV", -0.1, 0.001)
    assert document["splatad"] == "1.2.3"
    assert document["lens"] == "the reference's lens"
    straight = replace(lens, distortion=None)  # a photo through another lens than the bent one
    assert "k1" not in camera_document(replace(located, lens=straight), 200, 200, loaded, "1.2.3")
    assert document["seconds"] == {"fine pose": 0.25}
    assert "k1" not in nerfstudio_frame(located.located.camera, None, "images/x.png")


def test_the_picture_shows_outline_render_and_both_in_turn_under_a_banner(located):
    shown = camera_picture(located)
    assert shown.shape[1] >= 3 * 100
    assert shown.shape[0] > 100 + 40
    assert torch.allclose(shown[2, -2], torch.tensor(VERDICT_COLOURS["OK"]) / 255, atol=0.01)
    outline = (shown - torch.tensor(CIRCLE_COLOUR) / 255).abs().amax(dim=-1) < 0.01
    columns = outline.any(dim=0).nonzero()
    assert len(columns) > 10
    assert int(columns.max()) < 115  # on the photo alone

    unsure = replace(located, located=replace(located.located, believed=False), reasons=("another part",))
    banner = camera_picture(unsure)[2, -2]
    assert torch.allclose(banner, torch.tensor(VERDICT_COLOURS["CANNOT TELL"]) / 255, atol=0.01)


def test_the_checkerboard_takes_the_photos_exposure_on_the_part_alone(located):
    from pose.residual import Exposure

    dim = replace(located.located, exposure=Exposure(gain=(0.5, 0.5, 0.5)))
    plain, dimmed = (
        camera_picture(replace(located, located=located.located)),
        camera_picture(replace(located, located=dim)),
    )
    changed = (plain - dimmed).abs().amax(dim=-1) > 0.02
    assert int(changed.any(dim=0).nonzero().min()) > 2 * 100  # photo and render are as they were
    third = located.render.alpha
    assert 0.2 * float((third > 0.5).sum()) < int(changed.sum()) < 0.8 * float((third > 0).sum())


def test_the_summary_names_the_first_reason_or_what_speaks_for_the_camera(located):
    assert summary(located).startswith("belief ")
    assert f"{located.located.inliers:.0%} of the part agrees" in summary(located)
    ambiguous = replace(located, located=replace(located.located, ambiguity="alike from the back"))
    assert summary(ambiguous).endswith("; alike from the back")
    unsure = replace(
        located, located=replace(located.located, believed=False), reasons=("another part", "more")
    )
    assert summary(unsure) == "another part"
    row = camera_row(unsure)
    assert (row["believed"], row["reason"]) == (False, "another part")


def test_a_checkerboard_takes_its_squares_in_turn():
    board = checkerboard(torch.zeros(16, 32, 3), torch.ones(16, 32, 3))[..., 0]
    assert board[0, 0] == 0
    assert (board[:4, :4] == 0).all()
    assert (board[:4, 4:8] == 1).all()
    assert (board[4:8, :4] == 1).all()
    assert (board[4:8, 4:8] == 0).all()
    assert float(board.mean()) == 0.5
