"""`splatad evaluate` on the toy part: figures beside a recipe's, photos that do not count, files that agree."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from detect.evaluate import Scored, evaluate, evaluate_at_224, evaluate_by_size, evaluate_verdicts
from prepare.image import write_image, write_mask
from splatad import cli
from splatad.commands.evaluate import (
    COLUMNS,
    OURS,
    RECIPE,
    Figures,
    _captions,
    main_table,
    metric_rows,
    report_metrics,
    size_table,
)
from splatad.pose_output import nerfstudio_frame

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Means:
    """A backbone of one layer: the mean colour of blocks of 4 px."""

    name = "means"
    strides = (4,)
    channels = (3,)

    def features(self, rgb):
        return [torch.nn.functional.avg_pool2d(rgb.permute(2, 0, 1), 4)]


@pytest.fixture(scope="module")
def scene(toy, tmp_path_factory):
    """Three good photos, two with a magenta square and its mask, a blank one with a known camera, one without label."""
    folder = tmp_path_factory.mktemp("scene")
    cameras = toy.cameras(7, seed=51)
    queries = []
    for i, label in enumerate(["good", "good", "good", "Stains", "Stains", "Missing", ""]):
        rgb = toy.photo(cameras[i], noise_seed=200 + i).rgb
        mask = torch.zeros(200, 200, dtype=torch.bool)  # masks of twice the photo's size
        if label == "Stains":
            u, v = cameras[i].project(torch.tensor([[0.0, 0.0, -0.1]]))[0].int().tolist()[:2]
            rgb[v - 5 : v + 5, u - 5 : u + 5] = torch.tensor([0.9, 0.1, 0.9])
            mask[2 * (v - 5) : 2 * (v + 5), 2 * (u - 5) : 2 * (u + 5)] = True
        if label == "Missing":
            rgb = torch.ones(100, 100, 3)
            mask[90:110, 90:110] = True
        write_image(folder / f"{i}.png", rgb)
        entry = {"file_path": f"{i}.png", "label": label, "mask_path": None}
        if label in ("Stains", "Missing"):
            write_mask(folder / f"{i}_mask.png", mask)
            entry["mask_path"] = f"{i}_mask.png"
        if label != "good":
            entry["transform_matrix"] = nerfstudio_frame(cameras[i], None, "")["transform_matrix"]
        queries.append(entry)
    photo = toy.photos[0]
    write_image(folder / photo.name, photo.rgb)
    frames = [nerfstudio_frame(photo.camera, None, photo.name)]
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    (folder / "queries.json").write_text(json.dumps({"version": 1, "queries": queries}))
    return folder


@pytest.fixture(scope="module")
def ran(toy, scene, tmp_path_factory):
    """Output folder and printed text of a run beside the recipe, with a backbone that needs no weights."""
    out = tmp_path_factory.mktemp("out")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = ["--reference", str(toy.folder), "--scene", str(scene), "--out", str(out)]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.backbones.load_backbone", lambda name: Means())
        patch.setattr("sys.stdout", printed)
        status = cli.main(["evaluate", *flags, "--recipe", "splatpose", "--backbone", "mobilenet_v2"])
    torch.set_num_threads(before)
    assert status == 0
    return out, printed.getvalue()


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def document(ran):
    return json.loads((ran[0] / "metrics.json").read_text("utf-8"))


def test_the_guessed_kinds_are_counted_by_true_type(document, ran):
    assert set(document["kinds"]) <= {"Stains", "Missing"}
    assert sum(document["kinds"]["Stains"].values()) >= 1
    assert set(document["kinds"]["Stains"]) <= {"added", "missing", "discoloured", "changed"}
    assert "kind guessed of what was found on Stains: " in ran[1]


def test_both_methods_are_measured_on_the_same_labelled_photos(document):
    assert document["version"] == 2
    assert document["recipe"]["name"] == "splatpose"
    assert document["recipe"]["backbone"] == "means"
    for part in (document, document["recipe"]):
        assert part["overall"]["photos"] == 6  # the photo without a label has no truth
        assert {label: one["photos"] for label, one in part["by_type"].items()} == {"Stains": 5, "Missing": 4}
        assert part["by_type"]["Stains"]["image_auroc"] == pytest.approx(100.0)
        assert part["by_type"]["Stains"]["pixel_auroc"] > 95
        assert set(part["at_224"]) == set(part["sizes"]) == {"all", "Stains", "Missing"}
        assert part["at_224"]["all"]["defects"] == 3
        # 400 px of 200 x 200 are 1600 at 400 x 400
        assert [row["regions"] for row in part["sizes"]["all"]] == [0, 0, 0, 3]
        assert part["sizes"]["Stains"][3]["regions_found"] == part["sizes"]["Stains"][3]["photos_found"] == 2


def test_aupimo_of_too_few_good_pixels_is_missing_with_its_reason(document, ran):
    for part in (document, document["recipe"]):
        assert part["overall"]["aupimo"] is None
        assert "30000 pixels of 3 good photos" in part["overall"]["aupimo_missing"]
    assert "splatad: no AUPIMO (AUPIMO: the 30000 pixels" in ran[1]


def test_a_photo_without_the_part_counts_at_the_threshold_and_as_not_told(document, ran):
    photos = {row["photo"]: row for row in read(ran[0] / "photos.csv")}
    blank = photos["5.png"]
    assert blank["verdict"] == "CANNOT TELL"
    assert blank["score"] == ""
    assert document["verdicts"]["Missing"]["cannot_tell"]["count"] >= 1
    assert "1 photos show no part" in ran[1]
    # The recipe has no way to decline: of the bare background its map is empty.
    assert float(blank["recipe_score"]) == pytest.approx(0.0, abs=1e-6)


def test_poses_are_summed_up_as_evaluate_pose_does_with_the_photo_that_has_none(document, ran):
    pose = document["pose"]
    assert (pose["attempts"], pose["found"]) == (4, 3)  # two stains, the blank one and the unlabelled one
    assert pose["rotation_deg"]["max"] is None  # infinite
    photos = read(ran[0] / "photos.csv")
    errors = [float(row["rotation_error_deg"]) for row in photos if row["rotation_error_deg"]]
    assert len(errors) == 3
    assert pose["rotation_deg"]["median"] == pytest.approx(sum(sorted(errors)[1:]) / 2, abs=1e-4)
    assert max(errors) < 0.5


def test_the_tables_files_hold_what_the_document_holds(document, ran):
    rows = {(row["method"], row["defect"]): row for row in read(ran[0] / "metrics.csv")}
    assert set(rows) == {
        (method, label) for method in (OURS, RECIPE) for label in ("all", "Stains", "Missing")
    }
    assert float(rows[OURS, "Stains"]["pixel_ap"]) == document["by_type"]["Stains"]["pixel_ap"]
    assert float(rows[RECIPE, "all"]["aupro_01"]) == document["recipe"]["overall"]["aupro_01"]
    at_224 = document["recipe"]["at_224"]["all"]["pixel_auroc"]
    assert float(rows[RECIPE, "all"]["pixel_auroc_at_224"]) == at_224
    assert int(rows[OURS, "all"]["found_of"]) == document["verdicts"]["all"]["found"]["of"] == 3
    assert rows[RECIPE, "all"]["found"] == ""  # the recipe gives no verdicts
    sizes = [row for row in read(ran[0] / "sizes.csv") if row["method"] == OURS and row["defect"] == "Stains"]
    assert [row["size"] for row in sizes] == ["< 25 px", "25-100 px", "100-400 px", ">= 400 px"]
    assert (sizes[3]["regions"], sizes[3]["regions_found"], sizes[3]["regions_recall"]) == ("2", "2", "100.0")
    assert float(sizes[3]["regions_recall_low"]) == pytest.approx(100 * 0.025**0.5)
    assert sizes[0]["regions_recall"] == ""


def test_the_report_shows_the_recipes_row_and_every_photo(ran):
    html = (ran[0] / "report.html").read_text("utf-8")
    assert (
        "SplatPose&#39;s map with means (this run)" in html or "SplatPose's map with means (this run)" in html
    )
    assert all(f"{i}.png" in html for i in range(7))


def test_a_backbone_without_the_recipe_is_refused(toy, scene, tmp_path, capsys):
    flags = ["--reference", str(toy.folder), "--scene", str(scene), "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", *flags, "--backbone", "mobilenet_v2"]) == 2
    assert "--recipe splatpose" in capsys.readouterr().err


def test_the_recipe_without_any_weights_says_which_file_to_put_where(
    toy, scene, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLATAD_WEIGHTS", raising=False)
    flags = ["--reference", str(toy.folder), "--scene", str(scene), "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", *flags, "--recipe", "splatpose"]) == 4
    said = capsys.readouterr().err
    assert "put efficientnet-b4-6ed6700e.pth" in said
    assert str(tmp_path / "cache/weights") in said
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def figures():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[20:30, 20:30] = True
    scored = []
    for i, label in enumerate(["good"] * 4 + ["Burrs"] * 3 + ["Stains"] * 3):
        truth = mask if label != "good" else torch.zeros_like(mask)
        values = torch.rand(100, 100, generator=generator) + truth.float()
        scored.append(Scored(label, float(i), values, truth))
    groups = (None, "Burrs", "Stains")
    return Figures(
        {label or "all": evaluate(scored, label) for label in groups},
        {label or "all": evaluate_at_224(scored, label) for label in groups},
        {label or "all": evaluate_by_size(scored, label) for label in groups},
        1.25,
    )


def shown(table, width):
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


@pytest.mark.parametrize("name", ["01Gorilla", "a_part_of_ours"])
def test_the_tables_fit_into_80_columns_with_nothing_cut(figures, name):
    methods = {OURS: figures, RECIPE: replace(figures, seconds_per_photo=2.5)}
    text = shown(main_table(name, methods, "efficientnet_b4", 80), 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "efficientnet_b4" in text
    head = next(line for line in text.splitlines() if "I-AUROC" in line)
    for title in ("I-AUROC", "P-AUROC", "AUPRO.3", "AUPRO.05", "I-R@5", "s"):
        assert title in head.split()
    ours = next(line for line in text.splitlines() if line.startswith("splatad "))
    assert ours.split()[1:4] == ["100.00", f"{figures.metrics['all'].pixel_auroc:.2f}", "100.00"]
    assert ours.split()[-1] == "1.25"
    assert "OmniposeAD (PIAD's re-run)" in text
    sizes = shown(size_table(methods), 80)
    assert max(len(line.rstrip()) for line in sizes.splitlines()) <= 80
    assert "…" not in sizes
    row = next(line for line in sizes.splitlines() if line.startswith(">= 400 px"))
    assert row.split("px")[1].split() == ["6", "of", "6"] * 4


def test_a_wide_terminal_shows_more_columns(figures):
    wide = shown(main_table("a_part", {OURS: figures}, None, 140), 140)
    assert all(title in wide for title in ("AUPIMO", "AUPRO.01", "I-R@5", "I-R@1", "I-AP", "P-AP"))
    assert max(len(line.rstrip()) for line in wide.splitlines()) <= 140
    assert "recipe" not in wide


def test_the_recipe_is_a_row_of_the_reports_table_before_the_published_ones(figures):
    rows = report_metrics("01Gorilla", {OURS: figures, RECIPE: figures}, "mobilenet_v2")
    assert list(rows)[:2] == ["splatad (this run)", "SplatPose's map with mobilenet_v2 (this run)"]
    assert "SplatPose (01Gorilla)" in rows
    assert len({tuple(row) for row in rows.values()}) == 1  # the same columns


def test_the_caption_explains_the_columns_that_are_shown_and_no_others(figures):
    methods = {OURS: figures, RECIPE: figures}
    narrow = _captions("mobilenet_v2", methods, ["", "I-AUROC", "AUPRO.3", "s"])
    assert "AUROC: how surely" in narrow[0]
    assert "AUPIMO" not in narrow[0]
    assert "more columns in metrics.csv" in narrow[0]
    assert "features of mobilenet_v2 (the paper's are efficientnet_b4's)" in narrow[1]
    whole = _captions(None, {OURS: figures}, ["", *(title for title, _ in COLUMNS), "s"])
    assert all(word in whole[0] for word in ("AUPIMO:", "R@:", "AP:", "F1:"))
    assert "metrics.csv" not in whole[0]
    assert not any("recipe" in line for line in whole)
    assert "splatad by SplatPose's protocol, maps and masks at 224 px: I-AUROC 100.00" in "\n".join(whole)
    assert "at 224 px 0 of 6 defects vanish" in whole[-1]


def test_metric_rows_have_verdicts_for_those_that_give_some(figures):
    pairs = [("good", "OK")] * 4 + [("Burrs", "NG")] * 3 + [("Stains", "CANNOT TELL")] * 3
    verdicts = {label or "all": evaluate_verdicts(pairs, 0.1, label) for label in (None, "Burrs", "Stains")}
    rows = metric_rows({OURS: figures, RECIPE: figures}, {OURS: verdicts})
    assert [row["method"] for row in rows] == [OURS] * 3 + [RECIPE] * 3
    assert (rows[0]["cannot_tell"], rows[0]["cannot_tell_of"], rows[0]["accurate_percent"]) == (3, 10, 100.0)
    assert rows[3]["cannot_tell"] == ""
    assert all(list(row) == list(rows[0]) for row in rows)
