"""Features of a sample: what is kept gives back what was computed; the store computes once, resumes, and sees changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

import detect.cfm.stored as stored
from detect.cfm.features3d import descriptors_at_pixels
from detect.cfm.stored import FeatureConfig, FeatureStore, SampleFeatures, TokenFeatures, extract
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.organised_cloud import write_xyz
from prepare.registered import RegisteredClass, write_class

if TYPE_CHECKING:
    from pathlib import Path

    from prepare.registered import Registered

PX = 64
SMALL = FeatureConfig(px=PX)


def _same(a: SampleFeatures, b: SampleFeatures) -> bool:
    kept = [
        {"valid": f.valid, **f.photo.tensors(), **{f"s.{k}": v for k, v in f.shape.tensors().items()}}
        for f in (a, b)
    ]
    return kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][k], kept[1][k]) for k in kept[0])


@pytest.mark.parametrize(
    ("shape", "width"), [("fpfh", 33), ("fpfh_multi", 103), ("curvature", 15), ("normals", 78)]
)
def test_features_of_a_bowl(bowl: Registered, shape: str, width: int, tmp_path: Path) -> None:
    features = extract(replace(SMALL, shape=shape), bowl)
    assert (features.photo_width, features.shape_width) == (78, width)
    assert torch.equal(features.valid, bowl.valid.flatten())  # every point of a bowl has a surface
    pixels = features.valid.nonzero()[:, 0]
    photo, points = features.rows(pixels)
    assert photo.dtype == points.dtype == torch.float32
    assert photo.shape == (len(pixels), 78)
    assert points.shape == (len(pixels), width)
    assert torch.isfinite(points).all()
    some = torch.tensor([7, 3, 300])
    assert torch.equal(features.rows(pixels[some])[1], points[some])

    assert _same(features, extract(replace(SMALL, shape=shape), bowl))
    features.save(tmp_path / "a.safetensors", "key")
    assert _same(features, SampleFeatures.load(tmp_path / "a.safetensors", "key"))
    assert type(SampleFeatures.load(tmp_path / "a.safetensors").shape) is type(features.shape)
    with pytest.raises(InputError, match="no features of this sample"):
        SampleFeatures.load(tmp_path / "a.safetensors", "another")


def test_half_precision_loses_nothing_that_matters(bowl: Registered) -> None:
    values, weights = descriptors_at_pixels(bowl.xyz, bowl.valid, "fpfh_multi")
    pixels = bowl.valid.flatten().nonzero()[:, 0]
    exact, kept = (TokenFeatures(v, weights).rows(pixels) for v in (values, values.half()))
    deviation = exact.std(dim=0)
    assert ((exact - kept).abs().amax(dim=0) <= 0.05 * deviation + 1e-3 * exact.abs().amax(dim=0)).all()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (FeatureConfig(shape="pfh"), "one of point_mae"),
        (FeatureConfig(blocks=4), "neither handcrafted nor curvature"),
        (FeatureConfig(blocks=-1, shape="point_mae"), "blocks -1"),
        (FeatureConfig(px=16), "px 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: FeatureConfig, says: str, bowl: Registered) -> None:
    with pytest.raises(UsageError, match=says):
        extract(config, bowl)


def test_a_photo_of_another_size_is_refused(bowl: Registered) -> None:
    with pytest.raises(UsageError, match="load it at that size"):
        extract(FeatureConfig(px=96), bowl)


# -------------------------------------------------------------------------------------------------------------- store


@pytest.fixture
def prepared(bowl: Registered, tmp_path: Path) -> RegisteredClass:
    """Two good samples, and one without enough points."""
    folder, rows = tmp_path / "bowl", []
    for number, scale in enumerate((1.0, 1.1, 0.0)):
        name = f"train/good/{number:03d}"
        xyz = bowl.xyz.numpy() * np.float32(scale)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((bowl.rgb.numpy() * 255 / (1 + number)).astype(np.uint8)).save(folder / f"{name}.png")
        write_xyz(folder / f"{name}.tiff", xyz)
        rows.append(
            {"name": name, "split": "train", "defect": "good", "rgb": f"{name}.png", "xyz": f"{name}.tiff", "gt": None}
        )  # fmt: skip
    header = {
        "name": "bowl",
        "source": "mvtec-3d",
        "variant": "rgb",
        "defects": [],
        "refused": [],
        "settings": {"seed": 1},
        "licence": "ours",
    }
    write_class(folder, header, rows)
    return RegisteredClass.open(folder)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    computed: list[str] = []
    real = stored.extract

    def extract_and_count(config: FeatureConfig, *rest: object) -> SampleFeatures:
        computed.append(config.shape)
        return real(config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stored, "extract", extract_and_count)
    return computed


def test_the_store_computes_each_sample_once(
    prepared: RegisteredClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = _counted(monkeypatch)
    first, second, _ = prepared.samples("train")
    store = FeatureStore(tmp_path / "kept", SMALL, prepared)
    features = store.get(first)
    assert _same(features, extract(SMALL, prepared.load(first, PX)))
    assert not store.has(second)
    assert computed == ["curvature"]
    again = FeatureStore(tmp_path / "kept", SMALL, prepared)
    assert _same(again.get(first), features)
    assert again.has(first)
    assert computed == ["curvature"]
    assert not _same(again.get(second), features)


def test_a_broken_off_run_goes_on_and_bad_samples_are_listed(
    prepared: RegisteredClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = _counted(monkeypatch)
    samples = prepared.samples("train")
    store = FeatureStore(tmp_path / "kept", SMALL, prepared)
    store.get(samples[1])
    store.path(samples[0]).parent.mkdir(parents=True, exist_ok=True)
    store.path(samples[0]).write_bytes(b"half a file")  # as a machine that stopped may leave
    seen: list[tuple[int, int]] = []
    refused = store.prepare(samples, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [name for name, _ in refused] == ["train/good/002"]
    assert "the cloud is empty" in refused[0][1]
    assert len(computed) == 2
    assert store.has(samples[0])
    assert store.prepare(samples[:2]) == []
    assert len(computed) == 2


def test_changed_files_and_changed_settings_are_seen(
    prepared: RegisteredClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = _counted(monkeypatch)
    first, second, _ = prepared.samples("train")
    store = FeatureStore(tmp_path / "kept", SMALL, prepared)
    before = store.get(first)
    first.rgb.write_bytes(second.rgb.read_bytes())
    again = FeatureStore(tmp_path / "kept", SMALL, prepared)
    assert not again.has(first)
    after = again.get(first)
    assert not torch.equal(before.photo.values, after.photo.values)
    assert torch.equal(before.shape.values, after.shape.values)
    other = FeatureStore(tmp_path / "kept", replace(SMALL, shape="normals"), prepared)
    assert other.folder != store.folder
    assert (
        FeatureStore(tmp_path / "kept", SMALL, replace(prepared, settings={"seed": 2})).folder != store.folder
    )
    assert other.get(first).shape_width == 78
    assert computed == ["curvature", "curvature", "normals"]


def test_missing_weights_stop_the_whole_preparation(
    prepared: RegisteredClass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("SPLATAD_WEIGHTS", raising=False)
    store = FeatureStore(tmp_path / "kept", replace(SMALL, photo="dino_vitb8"), prepared)
    with pytest.raises(MissingPartError, match="dino_vitb8"):
        store.prepare(prepared.samples("train"))
