"""`splatad detect --same-part`: several photos of one part, one verdict, one set of defects in 3D."""

import json
import math
from dataclasses import replace

import pytest
import torch

from prepare.errors import UsageError
from prepare.image import write_image
from recon.harmonics import SH_C0
from splatad.cli import main
from splatad.commands.detect import Detect, run

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SPOT = torch.tensor([0.0, -0.4, -0.2])  # on the toy's front, which faces -y


@pytest.fixture(scope="module")
def photos(toy, tmp_path_factory):
    """Two photos of a toy with a painted spot, from left and right of it; one from behind; a blank one."""
    from prepare.camera import look_at

    gaussians = toy.reference.gaussians
    near = (gaussians.means - SPOT).norm(dim=1) < 0.17
    sh = gaussians.sh.clone()
    sh[near, 0] = (torch.tensor([0.95, 0.1, 0.95]) - 0.5) / SH_C0
    painted = replace(gaussians, sh=sh)
    folder = tmp_path_factory.mktemp("photos")
    lens = toy.reference.camera
    up = torch.tensor([0.0, 0.0, 1.0])
    for i, eye in enumerate(((-1.2, -2.6, 0.8), (1.3, -2.5, 0.9), (0.5, 2.8, 0.8))):
        camera = lens.moved(look_at(torch.tensor(eye), torch.zeros(3), up))
        write_image(folder / f"{i}.png", toy.photo(camera, noise_seed=70 + i, gaussians=painted).rgb)
    write_image(folder / "blank.png", torch.ones(100, 100, 3))
    return folder


@pytest.fixture(scope="module")
def out(toy, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    assert (
        run(Detect(query=(photos,), reference=toy.folder, same_part=True, out=folder, exit_status=True)) == 10
    )
    return folder


def test_two_photos_of_a_painted_spot_give_one_defect_at_its_place_in_mm(out):
    part = json.loads((out / "part.json").read_text("utf-8"))
    assert (part["format"], part["verdict"]) == ("splatad-part", "NG")
    assert part["photos_judged"] == ["0.png", "1.png", "2.png"]
    assert part["photos_not_judged"] == ["blank.png"]
    assert any("blank.png counts for nothing" in reason for reason in part["reasons"])
    first = part["defects"][0]
    assert first["seen_in"] == ["0.png", "1.png"]
    assert math.dist(first["centre"], SPOT.tolist()) < 0.06
    assert first["centre_mm"] == pytest.approx([25 * value for value in first["centre"]])
    assert 0.2 < first["extent"] < 0.6
    assert first["extent_mm"] == pytest.approx(25 * first["extent"])
    assert first["area_mm2"] == pytest.approx(625 * first["area"])
    assert "2.png" not in first["not_seen_in"]  # it shows the other side
    assert first["agreement"] == 1.0


def test_the_run_holds_a_file_of_defects_for_all_and_for_each_photo(out):
    run_document = json.loads((out / "defects.json").read_text("utf-8"))
    assert [p["photo"] for p in run_document["photos"]] == ["0.png", "1.png", "2.png", "blank.png"]
    for place in ("0", "1", "2"):
        assert {p.name for p in (out / place).iterdir()} >= {
            "defects.json",
            "mask.png",
            "labels.png",
            "verdict.json",
        }
    assert not (out / "blank" / "mask.png").exists()
    coco = json.loads((out / "coco.json").read_text("utf-8"))
    assert len(coco["images"]) == 4
    assert len(coco["annotations"]) == sum(len(p["defects"]) for p in run_document["photos"]) >= 2


def test_order_of_the_photos_on_the_command_line_changes_nothing(toy, photos, out, tmp_path, capsys):
    names = [photos / name for name in ("blank.png", "2.png", "1.png", "0.png")]
    arguments = [
        "detect",
        "--reference",
        toy.folder,
        "--same-part",
        "--out",
        tmp_path / "out",
        "--query",
        *names,
    ]
    assert main([str(a) for a in arguments]) == 0
    assert (tmp_path / "out" / "part.json").read_text() == (out / "part.json").read_text()
    said = capsys.readouterr().out
    assert "the part: NG: " in said
    assert "mm long; in 2 of 2 photos that show the place" in said


def test_least_coverage_asks_for_more_photos(toy, photos, tmp_path):
    config = Detect(
        query=(photos / "2.png",), reference=toy.folder, same_part=True, out=tmp_path, exit_status=True
    )
    seen = run(config)
    assert seen in (0, 10)
    if seen == 0:
        assert run(replace(config, least_coverage=0.95)) == 20
        part = json.loads((tmp_path / "part.json").read_text("utf-8"))
        assert "less than the 95% asked for" in part["reasons"][0]


@pytest.mark.parametrize("changes", [{"least_coverage": 0.5}, {"same_part": True, "least_coverage": 1.5}])
def test_least_coverage_is_a_share_and_goes_with_same_part(toy, photos, changes):
    with pytest.raises(UsageError, match="--least-coverage"):
        run(replace(Detect(query=(photos,), reference=toy.folder), **changes))


def test_same_part_needs_one_reference(toy, photos, tmp_path):
    import shutil

    for name in ("a", "b"):
        shutil.copytree(toy.folder, tmp_path / "references" / name)
    with pytest.raises(UsageError, match="name the one part"):
        run(Detect(query=(photos,), workspace=tmp_path, same_part=True))
