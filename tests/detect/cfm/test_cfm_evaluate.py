"""A planted anomaly is found from end to end; figures against other ways to compute them; what is left out is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from detect.cfm.absolute import regions
from detect.cfm.evaluate import (
    as_plain,
    evaluate,
    extremes,
    look,
    parameter_bytes,
    speed,
    without_truth,
)
from detect.cfm.mapping import MappingConfig, MappingPair
from detect.cfm.published import (
    EYECANDIES,
    EYECANDIES_CLASSES,
    FEW_SHOT,
    METRICS,
    MVTEC_3D,
    MVTEC_CLASSES,
    ROWS,
    published_for,
)
from detect.cfm.score import ScoreConfig, anomaly_map, published_pixel_map
from detect.cfm.train import TrainConfig, train
from detect.metrics import aupro, aupro_of_99
from prepare.errors import InputError

from .conftest import PHOTO_WIDTH, PX, SHAPE_WIDTH, MadeClass, made_features

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made = MadeClass()
    config = TrainConfig(steps=150, batch=4, pixels=64, rate=5e-3, least_hidden=32, check_every=150)
    result = train(made.samples(), made, tmp_path_factory.mktemp("run"), config, {})
    looked, refused = look(result.checkpoint.pair, made.samples("test"), made, made)
    assert refused == []
    return made, result, looked


def test_a_planted_anomaly_is_found_where_it_is(trained):
    _, result, looked = trained
    scale = result.checkpoint.scales["product"]
    found = evaluate(looked, "product", scale, ScoreConfig())
    assert found.figures["image_auroc"] > 0.95
    assert found.figures["z_image_auroc"] == 1.0
    assert found.figures["found"] == 1.0
    assert found.figures["pixel_auroc"] > 0.95
    assert found.figures["z_pixel_auroc"] > 0.95
    for photo, one in zip(found.photos, looked, strict=True):
        if not photo.label:
            continue
        assert photo.verdict.name == "NG"
        region = regions(scale.z_map(anomaly_map(one.found, scale.score)), scale.limit)[0]
        x0, y0, x1, y1 = region.box
        assert x0 < 24 < x1  # the square is 16..28 x 18..30
        assert y0 < 22 < y1
    # Held-out losses fall far below those of unrelated features (1).
    assert result.history[-1]["to_shape"] < 0.2


def test_every_fusion_finds_it_and_one_direction_too(trained):
    _, result, looked = trained
    for fusion, scale in result.checkpoint.scales.items():
        found = evaluate(looked, fusion, scale, ScoreConfig())
        assert found.figures["z_image_auroc"] > 0.9, fusion
        assert ("image_auroc" in found.figures) == (fusion != "zmean")


def test_figures_are_those_of_other_implementations(trained):
    _, result, looked = trained
    found = evaluate(looked, "sum", result.checkpoint.scales["sum"], ScoreConfig())
    labels = [one.label for one in looked]
    assert found.figures["image_auroc"] == pytest.approx(
        roc_auc_score(labels, [p.published for p in found.photos])
    )
    with_truth = [one for one in looked if one.mask is not None]
    maps = [anomaly_map(one.found, ScoreConfig("sum")) for one in with_truth]
    masks = [one.mask.numpy() for one in with_truth]
    pixels = np.concatenate([published_pixel_map(one).numpy().ravel() for one in maps])
    truth = np.concatenate([mask.ravel() for mask in masks])
    assert found.figures["pixel_auroc"] == pytest.approx(roc_auc_score(truth, pixels))
    region_maps = [(one / one[one != 0].mean()).numpy() for one in maps]
    for ending, limit in (("30", 0.3), ("1", 0.01)):
        assert found.figures[f"aupro_{ending}"] == pytest.approx(aupro(region_maps, masks, limit), abs=1e-4)
        assert found.figures[f"aupro99_{ending}"] == pytest.approx(
            aupro_of_99(region_maps, masks, limit), abs=2e-3
        )
    assert found.by_defect["hole"]["photos"] == 5
    assert found.by_defect["hole"]["image_auroc"] == pytest.approx(found.figures["image_auroc"])
    plain = as_plain(found)
    assert [photo["name"] for photo in plain["photos"]] == [one.name for one in looked]


def test_missing_truth_is_named_and_counts_for_images_alone(trained):
    _, _, looked = trained
    assert without_truth(looked) == ["test/hole/001"]
    blind = [one for one in looked if not one.label or one.mask is None]
    found = evaluate(blind, "product", None, ScoreConfig())
    assert "pixel_auroc" not in found.figures
    assert found.figures["image_auroc"] >= 0.0
    assert "z_image_auroc" not in found.figures
    assert {photo.verdict.name for photo in found.photos} == {"CANNOT TELL"}
    with pytest.raises(InputError, match="zmean"):
        evaluate(blind, "zmean", None, ScoreConfig())


def test_photos_that_cannot_be_read_are_named_and_the_others_go_on(trained):
    _, result, _ = trained
    made = MadeClass(good=2, bad=2)
    made.broken = {"test/hole/000"}
    looked, refused = look(result.checkpoint.pair, made.samples("test"), made, made)
    assert [one.name for one in looked] == ["test/good/000", "test/good/001", "test/hole/001"]
    assert refused[0][0] == "test/hole/000"
    made.broken = {s.name for s in made.everything}
    with pytest.raises(InputError, match="none of 4 photos"):
        look(result.checkpoint.pair, made.samples("test"), made, made)


def test_extremes_are_the_photos_to_look_at(trained):
    _, result, looked = trained
    found = evaluate(looked, "product", result.checkpoint.scales["product"], ScoreConfig())
    places = extremes(found, 2)
    scores = [photo.score for photo in found.photos]
    good = [s for s, p in zip(scores, found.photos, strict=True) if not p.label]
    bad = [s for s, p in zip(scores, found.photos, strict=True) if p.label]
    assert [scores[p] for p in places["good, highest"]] == sorted(good)[::-1][:2]
    assert [scores[p] for p in places["defective, lowest"]] == sorted(bad)[:2]


def test_speed_and_memory_count_what_the_paper_counts(trained):
    made, result, _ = trained
    photos = [made.load(sample, PX) for sample in made.samples("test")[:3]]
    calls = []

    def extract(photo):
        calls.append(photo)
        return made_features(0)

    class Holder:
        def __init__(self):
            self.network = nn.Linear(10, 10)

    pair = result.checkpoint.pair
    measured = speed(pair, photos, extract, ScoreConfig(), [Holder()])
    assert len(calls) == 5  # two to warm up
    assert measured.photos == 3
    assert 0 < measured.without_features < measured.with_features
    assert measured.parameter_bytes == parameter_bytes(pair) + 110 * 4
    # Both networks at the published widths: 22 MB.
    assert parameter_bytes(MappingPair(MappingConfig(768, 1152))) == 5_535_360 * 4
    assert parameter_bytes(torch.device("cpu")) == 0
    assert pair.config.photo_width == PHOTO_WIDTH
    assert pair.config.shape_width == SHAPE_WIDTH


def test_published_means_are_the_means_of_their_classes():
    for row in ROWS:
        assert row.metric in METRICS
        if row.classes:
            assert len(row.classes) == 10, row.method
            # Rounded figures of ten classes; read or recalled, a slip of a digit would show.
            assert np.mean(row.classes) == pytest.approx(row.mean, abs=1.1e-3), (row.method, row.metric)
    assert all(row.dataset in (MVTEC_3D, EYECANDIES) for row in ROWS)
    assert len(MVTEC_CLASSES) == len(EYECANDIES_CLASSES) == 10
    assert {row.shots for row in FEW_SHOT} == {1, 2, 4, 5, 10, 50}


def test_published_figures_are_those_of_the_class_or_else_the_mean():
    scope, rows = published_for(MVTEC_3D, "bagel")
    cfm = dict(rows)["CFM"]
    assert scope == "bagel"
    assert cfm == {"image_auroc": "99.4~", "pixel_auroc": "99.7", "aupro_30": "97.9~", "aupro_1": "45.9?"}
    scope, rows = published_for(MVTEC_3D, "my part")
    assert scope == "mean"
    assert dict(rows)["CFM"]["image_auroc"] == "95.4"
    assert dict(rows)["M3DM"]["aupro_1"] == "39.4?"
    assert dict(published_for(EYECANDIES, "Lollipop")[1])["CFM"]["image_auroc"] == "84.0~"
