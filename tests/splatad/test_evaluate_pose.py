"""`splatad evaluate pose` on the toy part: which photos, both protocols, and files that agree with one another."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from detect.pose_metrics import recall_area
from prepare.errors import InputError
from prepare.image import write_image
from prepare.scene import load_scene
from splatad import cli
from splatad.commands.evaluate_pose import choose_photos
from splatad.pose_output import nerfstudio_frame

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@dataclass(frozen=True)
class SceneMaker:
    """Makes scene folders of toy photos."""

    toy: object

    def write(self, folder: Path, held_out: int, test: int, known: bool = True) -> Path:
        """`held_out` held-out views, one fitted one, and `test` test photos, the last of them without its part."""
        photos = [*[p for i, p in enumerate(self.toy.photos) if i % 4 == 2][:held_out], self.toy.photos[0]]
        frames = []
        for photo in photos:
            write_image(folder / photo.name, photo.rgb)
            frames.append(nerfstudio_frame(photo.camera, None, photo.name))
        queries = []
        for i, camera in enumerate(self.toy.cameras(test, seed=77) if test else []):
            blank = torch.ones(100, 100, 3)
            rgb = blank if i == test - 1 else self.toy.photo(camera, noise_seed=i).rgb
            write_image(folder / f"test_{i}.png", rgb)
            entry = {"file_path": f"test_{i}.png", "label": "good" if i else "Stains"}
            if known:
                entry["transform_matrix"] = nerfstudio_frame(camera, None, "")["transform_matrix"]
            queries.append(entry)
        (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
        (folder / "queries.json").write_text(json.dumps({"version": 1, "queries": queries}))
        return folder


@pytest.fixture(scope="module")
def maker(toy):
    return SceneMaker(toy)


def evaluate(toy, scene, out, *flags):
    return cli.main(
        ["evaluate", "pose", "--reference", str(toy.folder), "--scene", str(scene), "--out", str(out), *flags]
    )


def read_rows(out):
    with (out / "poses.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ran(toy, maker, tmp_path_factory):
    """Output folder of a run by both protocols and two ways to refine over two test photos, one of them blank."""
    scene = maker.write(tmp_path_factory.mktemp("scene"), 1, 2)
    out = tmp_path_factory.mktemp("out")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = ["--protocol", "retrieval", "perturbed", "--refine", "levenberg", "adam", "--starts", "2"]
    try:
        assert evaluate(toy, scene, out, *flags) == 0
    finally:
        torch.set_num_threads(before)
    return out


def test_every_attempt_is_a_row(ran):
    rows = read_rows(ran)
    counts = {}
    for row in rows:
        key = row["protocol"], row["refine"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("retrieval", "levenberg"): 2, ("retrieval", "adam"): 2, ("perturbed", "levenberg"): 4, ("perturbed", "adam"): 4,
    }  # fmt: skip
    assert rows[0]["label"] == "Stains"


def test_the_camera_is_found_from_the_photo_alone_and_a_blank_one_counts_as_infinite(ran):
    rows = [r for r in read_rows(ran) if (r["protocol"], r["refine"]) == ("retrieval", "levenberg")]
    assert float(rows[0]["rotation_error_deg"]) < 0.2
    assert float(rows[0]["shift_percent"]) < 0.2
    assert rows[0]["believed"] == "True"
    assert rows[1]["rotation_error_deg"] == rows[1]["shift_percent"] == "inf"
    assert rows[1]["believed"] == "False"
    assert "no part found" in rows[1]["reason"]


def test_perturbed_starts_are_far_the_same_for_each_way_to_refine_and_refined_home(ran):
    rows = [r for r in read_rows(ran) if r["protocol"] == "perturbed"]
    starts = {refine: [r for r in rows if r["refine"] == refine] for refine in ("levenberg", "adam")}
    keys = ("photo", "start", "start_rotation_deg", "start_scaled_distance")
    drawn = [[tuple(r[key] for key in keys) for r in starts[refine]] for refine in ("levenberg", "adam")]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    turns = [float(r["start_rotation_deg"]) for r in rows]
    assert max(turns) > 5
    assert max(turns) <= 40
    first = next(r for r in starts["levenberg"] if (r["photo"], r["start"]) == ("test_0.png", "0"))
    assert float(first["start_rotation_deg"]) > 10
    assert float(first["rotation_error_deg"]) < 0.2
    assert all(r["believed"] == "" for r in rows)


def test_the_metrics_are_those_of_the_rows(ran):
    document = json.loads((ran / "pose_metrics.json").read_text("utf-8"))
    assert document["format"] == "splatad-pose-evaluation"
    assert document["photos"] == {"kind": "test", "count": 2, "every": 1}
    for protocol, by_refine in document["results"].items():
        for refine, summary in by_refine.items():
            rows = [r for r in read_rows(ran) if (r["protocol"], r["refine"]) == (protocol, refine)]
            turns = [float(r["rotation_error_deg"]) for r in rows]
            assert summary["attempts"] == len(rows)
            assert summary["auc_deg"]["5"] == pytest.approx(recall_area(turns, 5.0), rel=1e-4)
            scaled = [float(r["scaled_distance"]) for r in rows]
            assert summary["auc_distance"]["0.05"] == pytest.approx(recall_area(scaled, 0.05), rel=1e-4)
    retrieval = document["results"]["retrieval"]["levenberg"]
    assert (retrieval["found"], retrieval["unflagged_errors"]) == (1, 0)
    assert retrieval["rotation_deg"]["max"] is None  # infinite
    assert retrieval["believed"] == pytest.approx(50)
    assert document["results"]["perturbed"]["levenberg"]["unflagged_errors"] is None
    assert len(document["published"]) == 6


def test_a_perturbed_start_depends_on_seed_and_photo_not_on_the_other_photos(toy, maker, tmp_path, ran):
    scene = maker.write(tmp_path / "scene", 1, 3)
    flags = ["--protocol", "perturbed", "--starts", "1", "--every", "2"]
    evaluate(toy, scene, tmp_path / "same", *flags)
    evaluate(toy, scene, tmp_path / "other", *flags, "--seed", "1")
    same, other = (
        {r["photo"]: r["start_rotation_deg"] for r in read_rows(tmp_path / o)} for o in ("same", "other")
    )
    before = {
        r["photo"]: r["start_rotation_deg"]
        for r in read_rows(ran)
        if (r["protocol"], r["refine"], r["start"]) == ("perturbed", "levenberg", "0")
    }
    assert list(same) == ["test_0.png", "test_2.png"]
    assert same["test_0.png"] == before["test_0.png"]
    assert all(same[name] != other[name] for name in same)


def test_the_held_out_views_serve_where_no_test_photo_has_a_camera(toy, maker, tmp_path, capsys):
    scene = maker.write(tmp_path / "scene", 2, 2, known=False)
    assert evaluate(toy, scene, tmp_path / "out") == 0
    rows = read_rows(tmp_path / "out")
    assert [r["photo"] for r in rows] == ["view_02.png", "view_06.png"]
    assert all(float(r["rotation_error_deg"]) < 0.2 for r in rows)
    shown = capsys.readouterr().out
    assert "toy, 2 held-out photos, protocol retrieval" in shown
    assert "SplatPose (Sprockets)" in shown
    assert "other objects" in shown
    assert "unflagged errors" in shown


def test_which_photos_are_taken(toy, maker, tmp_path):
    both = load_scene(maker.write(tmp_path / "both", 2, 2))
    held = load_scene(maker.write(tmp_path / "held", 2, 0))
    nothing = load_scene(maker.write(tmp_path / "nothing", 0, 0))
    assert [p.name for p in choose_photos(both, toy.reference, "auto")[1]] == ["test_0.png", "test_1.png"]
    kind, photos = choose_photos(both, toy.reference, "held-out")
    assert (kind, [p.name for p in photos]) == ("held-out", ["view_02.png", "view_06.png"])
    assert choose_photos(held, toy.reference, "auto")[0] == "held-out"
    for scene, wanted in ((held, "test"), (nothing, "auto"), (nothing, "held-out")):
        with pytest.raises(InputError, match=r"no test photos|no views held out"):
            choose_photos(scene, toy.reference, wanted)


@pytest.mark.parametrize(
    "flags", [["--every", "0"], ["--starts", "0"], ["--protocol"], ["--refine"], ["--refine", "sgd"]]
)
def test_flags_that_make_no_sense_are_usage_errors(toy, tmp_path, flags):
    assert evaluate(toy, tmp_path, tmp_path / "out", *flags) == 2
    assert not (tmp_path / "out").exists()
