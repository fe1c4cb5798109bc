"""CFM on the toy reference by the commands: trained into its folder, judging alone and with the difference, refused without."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
import torch

from prepare.image import write_image, write_mask
from splatad import cli
from splatad.cfm_splats import NETWORKS, judges_by_splats, train_command, with_detector
from splatad.pose_output import nerfstudio_frame
from splatad.workspace import open_workspace

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VIEWS = 8
SMALL = ("--steps", "60")


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """Workspace with the toy's scene of few views, two good and one stained test photo, its reference and the networks."""
    work = tmp_path_factory.mktemp("work")
    scene = work / "scenes" / "toy"
    folder = work / "references" / "toy"
    shutil.copytree(toy.folder, folder)
    document = json.loads((folder / "reference.json").read_text())
    document["views"] = document["views"][:VIEWS]
    (folder / "reference.json").write_text(json.dumps(document | {"scene": str(scene)}))
    scene.mkdir(parents=True)
    frames = []
    for photo in toy.photos[:VIEWS]:
        write_image(scene / photo.name, photo.rgb)
        frames.append(nerfstudio_frame(photo.camera, None, photo.name))
    queries = []
    for i, label in enumerate(("good", "good", "stain")):
        camera = toy.cameras(3, seed=51)[i]
        rgb = toy.photo(camera, noise_seed=200 + i).rgb
        mask = torch.zeros(100, 100, dtype=torch.bool)
        if label == "stain":
            u, v = camera.project(torch.tensor([[0.0, 0.0, -0.1]]))[0].int().tolist()[:2]
            mask[v - 5 : v + 5, u - 5 : u + 5] = True
            rgb[mask] = torch.tensor([0.9, 0.1, 0.9])
            write_mask(scene / f"{i}_mask.png", mask)
        write_image(scene / f"{i}.png", rgb)
        mask_path = f"{i}_mask.png" if label == "stain" else None
        queries.append({"file_path": f"{i}.png", "label": label, "mask_path": mask_path})
    (scene / "transforms.json").write_text(json.dumps({"frames": frames}))
    (scene / "queries.json").write_text(json.dumps({"version": 1, "queries": queries}))
    before = torch.get_num_threads()
    assert cli.main(["train", "cfm", "--class", "toy", "--workspace", str(work), *SMALL]) == 0
    torch.set_num_threads(before)
    return work


@pytest.fixture
def untrained(trained, tmp_path):
    """The same before the training."""
    shutil.copytree(trained, tmp_path / "work")
    (tmp_path / "work/references/toy" / NETWORKS).unlink()
    return tmp_path / "work"


def test_training_again_with_the_same_flags_changes_nothing_and_another_seed_does(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "work")
    file = tmp_path / "work/references/toy" / NETWORKS
    before = file.read_bytes()
    command = ["train", "cfm", "--class", "toy", "--workspace", str(tmp_path / "work")]
    assert cli.main([*command, *SMALL]) == 0
    assert "trained already" in capsys.readouterr().out
    assert file.read_bytes() == before
    assert cli.main([*command, "--steps", "2", "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "its splats take the place of measured points" in said
    assert "limit of cfm: " in said
    assert "limit of difference+cfm: " in said
    assert file.read_bytes() != before


@pytest.mark.parametrize("detector", ["cfm", "difference+cfm"])
def test_detect_finds_the_stain_with_the_main_lines_outputs(trained, tmp_path, detector):
    scene = trained / "scenes/toy"
    flags = [
        "--detector",
        detector,
        "--class",
        "toy",
        "--workspace",
        str(trained),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["detect", "--query", str(scene / "2.png"), *flags]) == 0
    verdict = json.loads((tmp_path / "out/2/verdict.json").read_text())
    assert verdict["verdict"] == "NG"
    x0, y0, x1, y1 = verdict["defects"][0]["box_px"]
    true = json.loads((scene / "queries.json").read_text())["queries"][2]["mask_path"]
    from prepare.image import read_mask

    rows, columns = read_mask(scene / true).nonzero().T
    assert x0 <= columns.float().mean() < x1
    assert y0 <= rows.float().mean() < y1
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
    assert (tmp_path / "out/2/overlay.png").exists()


def test_evaluate_measures_all_detectors_at_the_same_cameras(trained, tmp_path, capsys):
    flags = ["--class", "toy", "--workspace", str(trained), "--out", str(tmp_path)]
    assert cli.main(["evaluate", *flags, "--detector", "difference+cfm", "difference", "cfm"]) == 0
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["detector"] == "difference+cfm"
    assert list(document["besides"]) == ["difference", "cfm"]
    for part in (document, *document["besides"].values()):
        assert part["overall"]["photos"] == 3
        assert part["overall"]["image_auroc"] == 100.0
        assert part["overall"]["pixel_auroc"] > 95
        assert part["verdicts"]["all"]["found"]["count"] == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert [row["method"] for row in rows] == ["splatad"] * 2 + ["difference"] * 2 + ["cfm"] * 2
    assert all(row["found_of"] == "1" for row in rows)
    photos = list(csv.DictReader(io.StringIO((tmp_path / "photos.csv").read_text())))
    alone = json.loads((trained / "references/toy/calibration.json").read_text())["threshold"]
    for row in photos:
        # The difference beside the joined detector says what it says alone.
        assert (float(row["difference_score"]) > alone) == (row["difference_verdict"] == "NG")
    assert "splatad: --detector difference+cfm, limit " in said
    assert "cfm: defective photos NG: 1 of 1" in said


@pytest.mark.parametrize(
    "command",
    [
        ("detect", "--detector", "cfm", "--query", "0.png"),
        ("detect", "--detector", "difference+cfm", "--query", "0.png"),
        ("evaluate", "--detector", "cfm"),
        ("evaluate", "--detector", "difference", "difference+cfm"),
    ],
)
def test_without_a_training_one_line_says_what_to_run(untrained, capsys, command):
    command = [str(untrained / "scenes/toy" / one) if one == "0.png" else one for one in command]
    assert cli.main([*command, "--class", "toy", "--workspace", str(untrained)]) == 3
    said = capsys.readouterr().err
    assert "train it with `splatad train cfm --class toy`" in said
    assert said.count("\n") == 1


def test_a_damaged_file_is_trained_anew_and_elsewhere_refused(untrained, capsys):
    file = untrained / "references/toy" / NETWORKS
    file.write_bytes(b"nothing")
    where = ["--class", "toy", "--workspace", str(untrained)]
    assert cli.main(["evaluate", "--detector", "cfm", *where]) == 3
    said = capsys.readouterr().err
    assert "cannot be read as weights" in said
    assert said.count("\n") == 1
    assert cli.main(["train", "cfm", *where, "--steps", "2"]) == 0
    assert "training anew" in capsys.readouterr().out
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("train", "cfm", "--shape", "fpfh"), "--shape"),
        (("train", "cfm", "--shots", "5"), "--shots"),
        (("train", "cfm", "--steps", "0"), "--steps"),
        (("detect", "--detector", "difference+cfm", "--query", "0.png", "--fusion", "sum"), "--fusion"),
        (
            ("detect", "--detector", "cfm", "--query", "0.png", "--false-alarm-rate", "0.1"),
            "splatad calibrate",
        ),
        (("evaluate", "--detector", "cfm", "cfm"), "--detector"),
    ],
)
def test_flags_that_do_not_go_with_a_fitted_reference_are_refused(trained, capsys, command, flag):
    assert cli.main([*command, "--class", "toy", "--workspace", str(trained)]) == 2
    said = capsys.readouterr().err
    assert flag in said
    assert said.count("\n") == 1


def test_a_reference_without_colours_is_refused(untrained, capsys):
    path = untrained / "references/toy/reference.json"
    document = json.loads(path.read_text())
    document["settings"]["appearance"] = "shape"
    path.write_text(json.dumps(document))
    assert cli.main(["train", "cfm", "--class", "toy", "--workspace", str(untrained)]) == 3
    assert "colours mean nothing" in capsys.readouterr().err


def test_cfm_means_splats_where_the_class_is_a_reference_without_a_network_of_points(trained, tmp_path):
    workspace = open_workspace(trained)
    assert judges_by_splats(workspace, None, ("toy",), False)
    assert judges_by_splats(workspace, None, (), False)
    assert not judges_by_splats(workspace, None, ("bagel",), False)
    assert not judges_by_splats(workspace, tmp_path, ("toy",), False)
    assert not judges_by_splats(workspace, None, ("toy",), True)
    assert not judges_by_splats(open_workspace(tmp_path), None, (), False)
    shutil.copytree(trained / "references", tmp_path / "references")
    (tmp_path / "networks/toy-cfm").mkdir(parents=True)
    (tmp_path / "networks/toy-cfm" / NETWORKS).write_bytes(b"")
    assert not judges_by_splats(open_workspace(tmp_path), None, ("toy",), False)


def test_the_difference_is_the_reference_as_it_was_loaded(toy, tmp_path):
    assert with_detector(toy.loaded, tmp_path, "difference") is toy.loaded
    assert train_command(tmp_path) == f"splatad train cfm --class {tmp_path}"
