"""`splatad detect --detector cmt`: meshes and splats as references, what is written, and bad input in one line each."""

from __future__ import annotations

import csv
import html
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detect.cmt.predict import Predictor, frame_photo
from pose.se3 import turn_deg
from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError
from prepare.image import write_image
from prepare.mesh import load_mesh
from prepare.mesh_render import MeshPainter, surface_finder
from prepare.scene import ViewImage
from splatad import cli, cmt_inputs, mesh_finder
from splatad.cmt_inspector import ShapeInspector, in_frame, may_show_shadow, on_white
from splatad.cmt_reference import reference_of_mesh, reference_of_splats
from splatad.inspector import Inspector

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ABOUT = {
    "thresholds": {"plain": 0.0, "aided": 0.0}, "held_out_shapes": 6,
    "data": {"name": "chairs", "source": {"made_by": "splatad generate chairs"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def network(save_tiny_network, tmp_path_factory):
    return save_tiny_network(tmp_path_factory.mktemp("network") / "cmt.safetensors", ABOUT)


@pytest.fixture(autouse=True)
def _few_splats(monkeypatch):
    monkeypatch.setattr(mesh_finder, "SPLATS", 4000)


@pytest.fixture
def stool(tmp_path):
    """An .obj of two boxes, one on the other."""
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    lines, first = [], 1
    for centre, half in (((0, 0, 0), (0.2, 0.5, 0.2)), ((0, 0.6, 0), (0.6, 0.1, 0.5))):
        for sign in np.ndindex(2, 2, 2):
            lines.append(
                "v " + " ".join(str(c + (2 * s - 1) * h) for c, s, h in zip(centre, sign, half, strict=True))
            )
        for a, b, c, d in (
            (1, 2, 4, 3),
            (5, 7, 8, 6),
            (1, 5, 6, 2),
            (3, 4, 8, 7),
            (1, 3, 7, 5),
            (2, 6, 8, 4),
        ):
            lines.append("f " + " ".join(str(first - 1 + i) for i in (a, b, c, d)))
        first += 8
    path = tmp_path / "stool.obj"
    path.write_text("\n".join(lines) + "\n")
    return path


def picture(path, size=(120, 80)):
    """A photo of a brown block on white, a little off its middle."""
    rgb = np.full((size[1], size[0], 3), 255, np.uint8)
    rgb[15:70, 50:100] = (150, 90, 40)
    rgb[30:40, 60:70] = (40, 90, 150)
    Image.fromarray(rgb).save(path)
    return path


def stool_photo(path, stool, angle, focal=1.1, px=160):
    """A photo of the stool on white from `angle` (radians round it) with a shadow beside it, and its camera."""
    mesh = load_mesh(stool).mesh
    painter = MeshPainter(mesh, surface_finder(mesh), np.array([0.0, 1.0, 0.0]))
    from_ = torch.tensor([3.0 * math.cos(angle), 1.6, 3.0 * math.sin(angle)], dtype=torch.float64)
    middle = torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64)
    pose = look_at(from_, middle, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    camera = Camera(pose, focal * px, focal * px, px / 2, px / 2, px, px)
    seen = painter.photograph(camera)
    ground = np.ones((px, px, 3))
    ground[-px // 4 :, : px // 2] = 0.9
    rgb = np.array([0.6, 0.3, 0.2]) / 0.7 * seen.rgb * seen.alpha[..., None] + ground * (
        1 - seen.alpha[..., None]
    )
    write_image(path, torch.from_numpy(rgb).float().clamp(0, 1))
    return camera


def detect(*flags):
    return cli.main(["detect", "--detector", "cmt", *map(str, flags)])


def test_a_photo_against_a_mesh_gives_a_verdict_with_box_map_and_matches(stool, network, tmp_path, capsys):
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "out"
    stool.write_text(stool.read_text() + "f 1 1 2\n")
    flags = ["--reference", stool, "--query", photo, "--network", network, "--workspace", tmp_path / "ws"]
    assert detect(*flags, "--out", out, "--exit-status") == 10
    said = capsys.readouterr().out
    assert "made and kept" in said
    assert "stool.obj: 1 of 25 faces have no area" in said
    assert "calibrated on generated chairs alone (its limit on 6 held-out shapes)" in said
    verdict = json.loads((out / "photo" / "verdict.json").read_text())
    assert (verdict["verdict"], verdict["detector"], verdict["threshold"]) == ("NG", "cmt", 0.0)
    assert verdict["camera_used"] is False
    x0, y0, x1, y1 = verdict["box_px"]
    assert 0 <= x0 < x1 <= 120
    assert 0 <= y0 < y1 <= 80
    first = verdict["suspicious_cells"][0]
    assert len(first["matches"]) == 3
    assert first["probability"] == max(cell["probability"] for cell in verdict["suspicious_cells"])
    assert 50 - 8 <= first["centre_px"][0] <= 100 + 8
    for name in ("overlay.png", "matches.png"):
        assert Image.open(out / "photo" / name).width > 300
    page = (out / "report.html").read_text()
    assert "stool.obj" in page
    assert "calibrated on generated chairs alone" in page
    row = next(csv.DictReader((out / "verdicts.csv").open()))
    assert float(row["score"]) == pytest.approx(verdict["score"], rel=1e-5)
    # A second photo costs its own features alone, and the answer is the same.
    assert detect(*flags, "--out", tmp_path / "again") == 0
    assert "kept from before" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "photo" / "verdict.json").read_text())
    assert again["score"] == verdict["score"]


@pytest.mark.parametrize(("area", "verdict"), [(0.61, "CANNOT TELL"), (0.97, "NG")])
def test_a_network_that_told_little_on_held_out_shapes_gives_no_verdict(
    stool, save_tiny_network, tmp_path, capsys, area, verdict
):
    weak = save_tiny_network(
        tmp_path / "w.safetensors", ABOUT | {"held_out": {"plain_auc": area, "aided_auc": 0.98}}
    )
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "out"
    flags = ["--reference", stool, "--query", photo, "--network", weak, "--workspace", tmp_path / "ws"]
    assert detect(*flags, "--out", out) == 0
    found = json.loads((out / "photo" / "verdict.json").read_text())
    assert found["verdict"] == verdict
    assert ("only 61% of held-out pairs" in capsys.readouterr().out) == (verdict == "CANNOT TELL")


def test_good_photos_of_the_part_set_its_limit(stool, save_tiny_network, tmp_path, capsys):
    weak = save_tiny_network(tmp_path / "w.safetensors", ABOUT | {"held_out": {"plain_auc": 0.5}})
    (tmp_path / "good").mkdir()
    for number in range(3):
        stool_photo(tmp_path / "good" / f"{number}.png", stool, 0.4 + number)
    flags = [
        "--reference",
        stool,
        "--network",
        weak,
        "--workspace",
        tmp_path / "ws",
        "--good",
        tmp_path / "good",
    ]
    assert detect(*flags, "--query", tmp_path / "good", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "3 OK" in said
    assert "split conformal, 3 given good photos" in said
    found = [json.loads((tmp_path / "out" / str(n) / "verdict.json").read_text()) for n in range(3)]
    assert {v["threshold"] for v in found} == {max(v["score"] for v in found)}
    assert (
        detect(*flags, "--query", tmp_path / "good", "--false-alarm-rate", "0.01", "--out", tmp_path / "no")
        == 2
    )
    assert "0.01" in capsys.readouterr().err


def test_another_mesh_or_another_network_is_encoded_anew(stool, network, tmp_path, save_tiny_network, capsys):
    photo = picture(tmp_path / "photo.png")
    flags = ["--query", photo, "--workspace", tmp_path / "ws"]
    other = save_tiny_network(tmp_path / "other.safetensors", {"step": 3})
    moved = tmp_path / "moved.obj"
    moved.write_text(stool.read_text().replace("0.6", "0.7"))
    for mesh, file in ((stool, network), (moved, network), (stool, other)):
        assert detect("--reference", mesh, "--network", file, *flags) == 0
        assert "made and kept" in capsys.readouterr().out
    assert len(list((tmp_path / "ws" / "features").glob("*.safetensors"))) == 3


def test_splats_give_the_photos_camera_and_the_aiding_view_lies_on_the_photo(toy, network, tmp_path):
    predictor = Predictor.from_file(network)
    splats = Inspector.open(toy.folder)
    reference = reference_of_splats(splats, toy.folder, "auto", predictor, network, tmp_path / "features")
    camera = toy.cameras(1, seed=77)[0]
    write_image(tmp_path / "photo.png", toy.photo(camera, noise_seed=1).rgb)
    found = ShapeInspector(predictor, reference).inspect(tmp_path / "photo.png")
    assert found.way == "aided"
    assert found.prediction is not None
    assert found.prediction.threshold == predictor.thresholds.aided
    ours, theirs = found.framed.share > 0.5, found.aiding.share[0] > 0.5
    assert float((ours & theirs).sum() / (ours | theirs).sum()) > 0.9


@pytest.mark.parametrize("angle", [0.3, 4.0])
def test_a_mesh_is_found_in_a_photo_through_a_lens_that_nobody_told(stool, network, tmp_path, angle):
    predictor = Predictor.from_file(network)
    reference = reference_of_mesh(stool, "auto", predictor, network, tmp_path / "features")
    camera = stool_photo(tmp_path / "photo.png", stool, angle)
    found = ShapeInspector(predictor, reference).inspect(tmp_path / "photo.png")
    assert found.way == "aided"
    assert found.located is not None
    # In the mesh's own world; the stool looks the same when turned by half a turn.
    true = camera.world_to_cam
    half = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))
    at = found.located.camera.world_to_cam.double()
    assert min(float(turn_deg(at, true)), float(turn_deg(at, true @ half))) < 3
    assert float(found.located.camera.centre.norm()) == pytest.approx(float(camera.centre.norm()), rel=0.3)
    # The shadow beside the part makes no difference to the shares of its cells.
    assert found.framed is not None
    assert found.framed.bounds is not None
    ours, theirs = found.framed.bounds.share(found.aiding.share[0]) > 0.5, found.aiding.share[0] > 0.5
    assert float((ours & theirs).sum() / (ours | theirs).sum()) > 0.95


def test_ground_of_another_colour_is_as_if_white():
    ground, rgb = torch.tensor([0.8, 0.7, 0.6]), torch.zeros(4, 4, 3)
    rgb[:2], rgb[2], rgb[3] = ground, 0.5 * ground, torch.tensor([0.2, 0.1, 0.9])
    image = ViewImage(
        rgb, (torch.arange(4) > 1)[:, None].expand(4, 4).float(), ground, torch.ones(4, 4).bool(), None
    )
    white = on_white(image)
    assert torch.allclose(white[:2], torch.ones(2, 4, 3))
    assert torch.allclose(white[2], torch.full((4, 3), 0.5))
    assert float(white[3, 0, 2]) == pytest.approx(1.5)
    assert may_show_shadow(image)
    assert not may_show_shadow(replace(image, background=torch.zeros(3)))
    assert not may_show_shadow(replace(image, uncut=rgb))


def test_a_part_on_dark_ground_is_known_to_its_edge(stool, network, tmp_path):
    predictor = Predictor.from_file(network)
    reference = reference_of_mesh(stool, "auto", predictor, network, tmp_path / "features")
    rgb = np.zeros((80, 120, 3), np.uint8)
    rgb[15:70, 50:100] = 230  # light grey: on white ground it might be a shadow
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    framed = ShapeInspector(predictor, reference).inspect(tmp_path / "photo.png").framed
    assert framed is not None
    assert framed.bounds is None
    assert float(framed.share.mean()) * framed.side**2 == pytest.approx(55 * 50, rel=0.1)


def test_the_photos_camera_follows_into_its_square_frame():
    rgb = torch.ones(100, 200, 3)
    rgb[20:40, 150:180] = 0.3
    framed = frame_photo(rgb, None, 64, near=True)
    camera = Camera(torch.eye(4, dtype=torch.float64), 150.0, 140.0, 100.0, 50.0, 200, 100)
    points = torch.tensor([[0.2, -0.1, 1.0], [0.9, -0.3, 2.0]], dtype=torch.float64)
    seen = in_frame(camera, framed, 64).project(points)[:, :2]
    # The frame of 40 px about (165, 30) begins at (145, 10).
    there = (camera.project(points)[:, :2] - torch.tensor([145.0, 10.0])) * 64 / 40
    torch.testing.assert_close(seen, there)


def test_splats_through_the_command(toy, network, tmp_path, capsys):
    camera = toy.cameras(1, seed=77)[0]
    write_image(tmp_path / "photo.png", toy.photo(camera, noise_seed=1).rgb)
    out = tmp_path / "out"
    assert (
        detect("--reference", toy.folder, "--query", tmp_path / "photo.png", "--network", network, "--out", out,
               "--workspace", tmp_path / "ws") == 0
    )  # fmt: skip
    verdict = json.loads((out / "photo" / "verdict.json").read_text())
    assert verdict["camera_used"] is True
    assert verdict["pose"]["believed"] is True
    assert "0.00 where the photo's camera was found" in html.unescape((out / "report.html").read_text())


@pytest.mark.parametrize(("kind", "words"), [("blank", "no part found"), ("clutter", "not plain")])
def test_a_photo_that_shows_no_part_is_cannot_tell(stool, network, tmp_path, capsys, kind, words):
    rgb = np.full((80, 120, 3), 255, np.uint8)
    if kind == "clutter":
        rgb = np.random.default_rng(0).integers(0, 255, rgb.shape).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    flags = ["--reference", stool, "--query", tmp_path / "photo.png", "--network", network, "--out", out]
    assert detect(*flags, "--workspace", tmp_path / "ws", "--exit-status") == 20
    verdict = json.loads((out / "photo" / "verdict.json").read_text())
    assert verdict["verdict"] == "CANNOT TELL"
    assert verdict["score"] is None
    assert words in verdict["reasons"][0]
    assert not (out / "photo" / "matches.png").exists()


def test_bad_input_is_one_line_each(stool, network, tmp_path, capsys, save_tiny_network, monkeypatch):
    photo = picture(tmp_path / "photo.png")
    common = ["--query", photo, "--workspace", tmp_path / "ws"]

    def refused(status, words, *flags):
        assert detect(*flags, *common) == status
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1

    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    refused(3, "no faces", "--reference", tmp_path / "empty.obj", "--network", network)
    refused(3, "no such mesh", "--reference", tmp_path / "none.stl", "--network", network)
    (tmp_path / "folder").mkdir()
    refused(3, "folder", "--reference", tmp_path / "folder", "--network", network)
    refused(3, "no mesh file", "--reference", photo, "--network", network)
    refused(3, "no cmt.safetensors", "--reference", stool, "--network", tmp_path / "folder")
    alone = save_tiny_network(tmp_path / "alone.safetensors", reference=False, aided=False, explained=False)
    refused(3, "sees the photo alone", "--reference", stool, "--network", alone)
    refused(2, "--same-part", "--reference", stool, "--network", network, "--same-part")
    monkeypatch.setattr(cmt_inputs, "SHIPPED", tmp_path / "not-shipped.safetensors")
    refused(MissingPartError.exit_status, "splatad train cmt", "--reference", stool)
    assert cli.main(["detect", "--reference", str(stool), "--query", str(photo)]) == 2
    assert "use --detector cmt" in capsys.readouterr().err
    assert cli.main(["detect", "--network", str(network), "--query", str(photo)]) == 2
