"""`splatad detect` over several references: which part each photo shows, in every output, and what one name changes."""

import csv
import json
import shutil

import pytest
import torch

from prepare.image import write_image
from splatad.cli import main
from splatad.commands.detect import Detect, run

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def workspace(toy, other_toy, tmp_path_factory):
    """A workspace with the toy and another part."""
    root = tmp_path_factory.mktemp("work")
    shutil.copytree(toy.folder, root / "references" / "toy")
    shutil.copytree(other_toy[0], root / "references" / "other")
    return root


@pytest.fixture(scope="module")
def photos(toy, other_toy_gaussians, tmp_path_factory):
    """One photo of each part, one blank one; two names that differ by case alone."""
    made = tmp_path_factory.mktemp("photos")
    cameras = toy.cameras(6, seed=51)
    write_image(made / "A.png", toy.photo(cameras[0], noise_seed=200).rgb)
    write_image(made / "a.png", toy.photo(cameras[1], noise_seed=201, gaussians=other_toy_gaussians).rgb)
    write_image(made / "blank.png", torch.ones(100, 100, 3))
    return made


@pytest.fixture(scope="module")
def out(workspace, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    assert run(Detect(query=(photos,), workspace=workspace, out=folder)) == 0
    return folder


def documents(out):
    return {
        json.loads(path.read_text("utf-8"))["photo"]: json.loads(path.read_text("utf-8"))
        for path in out.glob("*/verdict.json")
    }


def test_each_photos_part_is_named_in_the_table(out):
    with (out / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert {name: row["reference"] for name, row in rows.items()} == {
        "A.png": "toy",
        "a.png": "other",
        "blank.png": "",
    }
    assert rows["blank.png"]["verdict"] == "CANNOT TELL"
    assert rows["A.png"]["verdict"] in ("OK", "NG")


def test_the_documents_name_the_part_and_those_looked_at(out, workspace):
    by_photo = documents(out)
    toy, other, blank = by_photo["A.png"], by_photo["a.png"], by_photo["blank.png"]
    assert (toy["reference"], other["reference"], blank["reference"]) == ("toy", "other", None)
    assert [c["reference"] for c in toy["candidates"]] == ["toy", "other"]
    assert [c["reference"] for c in other["candidates"]] == ["other", "toy"]
    assert toy["candidates"][0]["evidence"] > 1 > toy["candidates"][1]["evidence"]
    assert (blank["candidates"], blank["nearest_reference"]) == ([], None)
    assert (blank["score"], blank["threshold"], blank["threshold_note"]) == (None, None, None)
    for document in (toy, other):
        calibration = json.loads(
            (workspace / "references" / document["reference"] / "calibration.json").read_text("utf-8")
        )
        assert document["threshold"] == calibration["threshold"]


def test_photos_that_differ_by_case_alone_get_two_folders_everywhere(out):
    folders = [path.parent.name for path in out.glob("*/verdict.json")]
    assert len(folders) == 3
    assert len({name.casefold() for name in folders}) == 3


def test_the_report_shows_part_and_scores_in_units_of_its_own_limit(out):
    page = (out / "report.html").read_text("utf-8")
    assert "each compared with the good part it shows, of" in page
    assert "part: <bdi>toy</bdi>" in page
    assert "part: <bdi>other</bdi>" in page
    assert "no known part" in page
    assert 'data-part="toy"' in page
    for document in documents(out).values():
        if document["reference"] is not None:
            assert f"{document['reference']}: {document['threshold']:.4g}" in page
            share = document["score"] / document["threshold"]
            assert f'data-score="{share}"' in page


def test_the_terminal_names_the_parts(workspace, photos, tmp_path, capsys):
    arguments = ["detect", "--query", photos, "--workspace", workspace, "--out", tmp_path / "out"]
    assert main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out
    assert "toy    A.png: anomaly score" in said
    assert "other  a.png: anomaly score" in said
    assert "CANNOT TELL -      blank.png: no part found" in said
    assert "shown: 1 no known part, 1 other, 1 toy" in said


def test_one_name_compares_with_that_reference_alone(workspace, photos, tmp_path):
    out = tmp_path / "out"
    arguments = ["detect", "--class", "toy", "--query", photos, "--workspace", workspace, "--out", out]
    assert main([str(a) for a in arguments]) == 0
    by_photo = documents(out)
    assert {d["reference"] for d in by_photo.values()} == {"toy"}
    assert by_photo["a.png"]["verdict"] == "CANNOT TELL"
    assert "candidates" not in by_photo["A.png"]
    assert "no known part" not in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("flags", [["--class", "third", "other"], ["--class", "third", "--class", "other"]])
def test_names_limit_the_choice(workspace, photos, tmp_path, flags):
    shutil.copytree(workspace / "references", tmp_path / "references")
    shutil.copytree(tmp_path / "references" / "toy", tmp_path / "references" / "third")
    out = tmp_path / "out"
    arguments = ["detect", *flags, "--query", photos / "A.png", "--workspace", tmp_path]
    assert main([str(a) for a in [*arguments, "--out", out]]) == 0
    assert [c["reference"] for c in documents(out)["A.png"]["candidates"]] == ["third", "other"]
    assert documents(out)["A.png"]["reference"] == "third"


def test_a_photo_of_none_of_the_references_is_cannot_tell_with_the_nearest(workspace, photos, tmp_path):
    shutil.copytree(workspace / "references" / "toy", tmp_path / "references" / "toy")
    shutil.copytree(workspace / "references" / "toy", tmp_path / "references" / "twin")
    out = tmp_path / "out"
    config = Detect(query=(photos / "a.png",), workspace=tmp_path, out=out, exit_status=True)
    assert run(config) == 20
    document = documents(out)["a.png"]
    assert (document["reference"], document["verdict"], document["threshold"]) == (None, "CANNOT TELL", None)
    assert document["score"] is None
    assert (
        (out / "verdicts.csv")
        .read_text("utf-8")
        .splitlines()[1]
        .startswith("a.png,,CANNOT TELL,,0,0,,False,")
    )
    assert document["nearest_reference"] == "toy"  # twins are told apart by name alone
    assert document["reasons"][0].startswith("none of the 2 references: the nearest is toy, but ")
    assert (out / "a" / "overlay.png").is_file()


def test_an_unknown_name_among_known_ones_is_a_usage_error(workspace, photos, capsys):
    arguments = ["detect", "--class", "toy", "othr", "--query", photos, "--workspace", workspace]
    assert main([str(a) for a in arguments]) == 2
    assert "--class othr: no such reference" in capsys.readouterr().err


def test_another_lens_is_asked_for_by_name(workspace, photos, tmp_path, capsys):
    write_image(tmp_path / "wide.png", torch.ones(60, 100, 3))
    arguments = ["detect", "--query", tmp_path / "wide.png", "--workspace", workspace, "--lens", "reference"]
    assert main([str(a) for a in arguments]) == 3
    assert "wide.png: 100 x 60 px, but the reference's photos are 100 x 100" in capsys.readouterr().err
