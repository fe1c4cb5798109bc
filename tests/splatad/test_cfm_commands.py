"""`train cfm`, `evaluate cfm` and `detect --detector cfm` on a tiny class: what is said, written and refused."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from detect.cfm.stored import FeatureConfig
from prepare.errors import InputError, UsageError
from prepare.organised_cloud import read_xyz, write_xyz
from splatad import cli
from splatad.cfm_inspector import Framing, photos_alone, points_of
from splatad.commands import train_cfm
from splatad.commands.train_cfm import TrainCfm, feature_config, train_config

from .cfm_class import SIZE, draw, make_class

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FAST = ("--steps", "120", "--batch", "4", "--pixels", "64", "--rate", "3e-3", "--check-every", "60")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workspace with the class and networks on features of 64 px."""
    workspace = tmp_path_factory.mktemp("ws")
    make_class(workspace / "scenes" / "cookie")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cfm, "feature_config", lambda config: FeatureConfig(px=64))
        assert cli.main(["train", "cfm", "--class", "cookie", "--workspace", str(workspace), *FAST]) == 0
    return workspace


def test_training_leaves_network_history_and_what_made_it(trained):
    folder = trained / "networks" / "cookie-cfm"
    assert {path.name for path in folder.iterdir()} == {
        "cfm.safetensors", "history.csv", "state.safetensors", "train.json",
    }  # fmt: skip
    assert [row["step"] for row in csv.DictReader((folder / "history.csv").open())] == ["60.0", "120.0"]
    about = json.loads((folder / "train.json").read_text())
    assert (about["steps"], about["class"]["name"], about["features"]["photo"]) == (
        120,
        "cookie",
        "handcrafted",
    )


def test_evaluation_writes_every_fusion_s_figures_and_pictures_and_names_what_is_left_out(
    trained, tmp_path, capsys
):
    scene = tmp_path / "cookie"
    shutil.copytree(trained / "scenes" / "cookie", scene)
    document = json.loads((scene / "class.json").read_text())
    stain = next(row for row in document["samples"] if row["defect"] == "stain")
    document["samples"].append({**stain, "name": "test/stain/001", "gt": None})
    document["samples"].append({**stain, "name": "test/stain/002", "xyz": "test/stain/xyz/nan.tiff"})
    (scene / "class.json").write_text(json.dumps(document))
    (scene / "test/stain/xyz/nan.tiff").write_bytes(b"no TIFF")
    out = tmp_path / "out"
    flags = [
        "--class",
        str(scene),
        "--workspace",
        str(trained),
        "--out",
        str(out),
        "--ablations",
        "--speed-photos",
        "1",
    ]
    assert cli.main(["evaluate", "cfm", *flags, "--features", str(tmp_path / "features")]) == 3
    said, complained = capsys.readouterr()
    assert "cookie, test: 5 photos (3 defective); 4 training photos; percent" in said
    assert "Published rows, cookie: " in said
    assert "other photos than these" in said
    assert "CFM" in said
    assert "without ground truth, so of the images' figures alone: test/stain/001" in said
    assert "speed: " in said
    assert complained.startswith("splatad: left out: test/stain/002: ")
    assert len(complained.splitlines()) == 1
    results = json.loads((out / "results.json").read_text())
    assert set(results["results"]) == {"product", "sum", "max", "zmean", "photo", "shape"}
    assert results["without_truth"] == ["test/stain/001"]
    assert [row["name"] for row in results["refused"]] == ["test/stain/002"]
    figures = results["results"]["product"]["figures"]
    assert figures["photos"] == 5
    assert {"image_auroc", "pixel_auroc", "aupro_30", "aupro99_1", "z_aupro_5", "found"} <= set(figures)
    assert results["results"]["product"]["by_defect"]["stain"]["photos"] == 2
    assert results["speed"]["seconds_without_features"] < results["speed"]["seconds_with_features"]
    pair = results["network"]["mapping"]
    width = max((pair["photo_width"] + pair["shape_width"]) // 2, 256)
    widths = ((pair["photo_width"], pair["shape_width"]), (pair["shape_width"], pair["photo_width"]))
    count = sum(a * width + width + width**2 + width + width * b + b for a, b in widths)
    assert results["speed"]["parameter_megabytes"] >= 4 * count / 1e6
    assert Image.open(out / "pictures.png").width > 200
    rows = list(csv.DictReader((out / "photos.csv").open()))
    assert [row["photo"] for row in rows][-1] == "test/stain/001"
    assert rows[0]["zmean_published"] == ""


def test_a_photo_with_its_points_gives_a_verdict_pictures_and_a_report(trained, tmp_path, capsys):
    query = trained / "scenes" / "cookie" / "test" / "stain" / "rgb"
    out = tmp_path / "out"
    flags = ["--class", "cookie", "--workspace", str(trained), "--query", str(query), "--out", str(out)]
    status = cli.main(["detect", "--detector", "cfm", *flags, "--exit-status"])
    said = capsys.readouterr().out
    verdict = json.loads((out / "000" / "verdict.json").read_text())
    assert status == {"OK": 0, "NG": 10, "CANNOT TELL": 20}[verdict["verdict"]]
    assert verdict["verdict"] in said
    assert (verdict["detector"], verdict["class"], verdict["points"]) == ("cfm", "cookie", "000.tiff")
    assert verdict["false_alarm_rate"] == pytest.approx(0.25)  # three good photos support no less
    for name in ("marked.png", "heatmap.png"):
        assert Image.open(out / "000" / name).size == (SIZE, SIZE)
    assert Image.open(out / "000" / "overlay.png").width > 2 * SIZE
    results = json.loads((out / "results.json").read_text())
    assert [(one["photo"], one["score"]) for one in results["photos"]] == [("000.png", verdict["score"])]
    row = next(csv.DictReader((out / "verdicts.csv").open()))
    assert float(row["score"]) == pytest.approx(verdict["score"], rel=1e-5)
    assert "cookie" in (out / "report.html").read_text()
    # The score lies above those of all good photos that set the limit, and the defect is where the stain is.
    assert verdict["score"] > verdict["threshold"]
    _, _, mask = draw(11, "stain")
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = verdict["defects"][0]["box_px"]
    assert x0 <= columns.mean() <= x1
    assert y0 <= rows.mean() <= y1
    assert verdict["defects"][0]["centre_mm"][2] == pytest.approx(496, abs=5)


def test_points_on_the_ground_are_the_part_alone_once_it_is_taken_away(trained, tmp_path):
    scene = trained / "scenes" / "cookie" / "test" / "good"
    part = read_xyz(scene / "xyz" / "000.tiff")
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    ground = np.stack([columns * 4e-4 + 1e-6, rows * 4e-4 + 1e-6, np.full(rows.shape, 0.506)], axis=-1)
    whole = np.where(part[..., 2:] > 0, part - [0, 0, 0.004], ground).astype(np.float32)
    (tmp_path / "a").mkdir()
    shutil.copy(scene / "rgb" / "000.png", tmp_path / "a" / "000.png")
    write_xyz(tmp_path / "a" / "000.tiff", whole)
    shares = {}
    for ground_flag in ("auto", "keep"):
        out = tmp_path / ground_flag
        flags = [
            "--class",
            "cookie",
            "--workspace",
            str(trained),
            "--query",
            str(tmp_path / "a"),
            "--out",
            str(out),
        ]
        assert cli.main(["detect", "--detector", "cfm", *flags, "--ground", ground_flag]) == 0
        verdict = json.loads((out / "000" / "verdict.json").read_text())
        shares[ground_flag] = verdict["valid_share"]
        assert verdict["ground_removed"] == (ground_flag == "auto")
    assert shares["keep"] > 0.95
    assert shares["auto"] == pytest.approx(float((part[..., 2] > 0).mean()), abs=0.05)


def test_bad_input_is_one_line(trained, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    shutil.copy(trained / "scenes" / "cookie" / "test" / "good" / "rgb" / "000.png", photo)
    usual = ["detect", "--detector", "cfm", "--workspace", str(trained), "--query", str(photo)]
    (tmp_path / "empty.tiff").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.tiff")
    cases = [
        ([*usual], 2, "--network: name the file"),
        ([*usual, "--class", "pretzel"], 3, "train it with `splatad train cfm --class pretzel`"),
        ([*usual, "--class", "cookie"], 3, "no points of it"),
        ([*usual, "--class", "cookie", "--xyz", str(tmp_path / "empty.tiff")], 3, "empty.tiff"),
        ([*usual, "--class", "cookie", "--xyz", str(tmp_path / "picture.tiff")], 3, "picture.tiff"),
        ([*usual, "--class", "cookie", "--network", str(tmp_path)], 3, "no cfm.safetensors in this folder"),
        ([*usual, "--class", "cookie", "--same-part"], 2, "not with --detector cfm"),
        (["detect", "--query", str(photo), "--xyz", str(photo)], 2, "for --detector cfm, not difference"),
        (["train", "cfm", "--class", "pretzel", "--workspace", str(trained)], 3, "there are cookie"),
        (["evaluate", "cfm", "--class", "pretzel", "--workspace", str(trained)], 3, "splatad prepare mvtec-3d"),
    ]  # fmt: skip
    for command, status, words in cases:
        assert cli.main(command) == status, command
        complained = capsys.readouterr().err
        assert words in complained
        assert len(complained.splitlines()) == 1


def test_flags_change_the_preset_and_senseless_ones_are_refused():
    published = train_config(TrainCfm("bagel", preset="published", shots=5))
    assert (published.epochs, published.steps, published.batch, published.shots) == (250, 0, 4, 5)
    features = feature_config(TrainCfm("bagel", preset="published", blocks=4))
    assert (features.photo, features.shape, features.blocks) == ("dino_vitb8", "point_mae", 4)
    assert feature_config(TrainCfm("bagel")) == FeatureConfig()
    changed = train_config(TrainCfm("bagel", epochs=3, rate=1e-4, masked=False, deep=True))
    assert (changed.steps, changed.epochs, changed.rate, changed.masked, changed.deep) == (
        0,
        3,
        1e-4,
        False,
        True,
    )
    for bad, words in (
        (TrainCfm("bagel", steps=0), "--steps 0"), (TrainCfm("bagel", steps=1, epochs=1), "--steps, --epochs"),
        (TrainCfm("bagel", drawn=True), "--drawn"), (TrainCfm("bagel", rate=0.0), "--rate 0.0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            train_config(bad)


def test_points_are_found_by_the_photo_s_name(tmp_path):
    for folder in ("rgb", "xyz", "mine"):
        (tmp_path / folder).mkdir()
    photo = tmp_path / "rgb" / "007.png"
    for path in (
        photo,
        tmp_path / "xyz" / "007.tiff",
        tmp_path / "mine" / "007.tif",
        tmp_path / "mine" / "008.tif",
    ):
        path.touch()
    assert points_of(photo, ()) == tmp_path / "xyz" / "007.tiff"
    assert points_of(photo, (tmp_path / "mine",)) == tmp_path / "mine" / "007.tif"
    assert points_of(photo, (tmp_path / "mine" / "008.tif",)) == tmp_path / "mine" / "008.tif"
    (tmp_path / "rgb" / "007.tiff").touch()
    assert points_of(photo, ()) == tmp_path / "rgb" / "007.tiff"
    assert photos_alone([photo, tmp_path / "rgb" / "007.tiff", tmp_path / "mine" / "008.tif"]) == [
        photo, tmp_path / "mine" / "008.tif",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"no 009\.tiff in .*--xyz"):
        points_of(tmp_path / "rgb" / "009.png", ())


def test_a_map_of_the_square_lies_on_the_photo_where_it_was_padded():
    # 900 x 400: rows 250 of each side of the square were added.
    framing = Framing.of((400, 900), (900, 900))
    assert (framing.side, framing.left, framing.top) == (900, 0, 250)
    square = torch.zeros(90, 90)
    square[26, 10] = 1.0  # rows 260..270 of the square: 10..20 of the photo
    on_photo = framing.on_photo(square)
    assert on_photo.shape == (400, 900)
    row, column = divmod(int(on_photo.argmax()), 900)
    assert 10 <= row < 20
    assert 100 <= column < 110
    assert framing.box((10, 26, 11, 27), 90, shown=False) == (100, 10, 110, 20)
    assert framing.box((10, 3, 11, 4), 90, shown=False) is None  # in what was added
    # Larger photos are shown smaller; the file's pixels stay.
    large = Framing.of((1024, 2048), (1024, 2048))
    assert (large.shown_width, large.shown_height) == (1024, 512)
    assert large.on_photo(torch.zeros(64, 64)).shape == (512, 1024)
    assert large.box((32, 32, 48, 40), 64, shown=False) == (1024, 512, 1536, 768)
    assert large.box((32, 32, 48, 40), 64, shown=True) == (512, 256, 768, 384)
