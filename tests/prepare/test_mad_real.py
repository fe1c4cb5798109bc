from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

import prepare.datasets.mad_real as mad_real
from prepare.datasets.mad_real import find_photo_classes, mask_finder, prepare_mad_real
from prepare.errors import InputError, UsageError


def _photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two classes, one with other names for its folders; and a folder that is none."""
    for name in (
        "train/good/0.png",
        "train/good/1.png",
        "test/good/0.png",
        "test/Stains/0.png",
        "test/Stains/1.png",
    ):
        _photo(tmp_path / "MAD-Real" / "01Gorilla" / name)
    _photo(tmp_path / "MAD-Real" / "01Gorilla" / "ground_truth" / "Stains" / "0_mask.png")
    for name in ("Train/a.jpg", "Train/b.jpg", "Test/Burrs/7.jpg", "GT/Burrs/7.png"):
        _photo(tmp_path / "MAD-Real" / "02Unicorn" / name)
    (tmp_path / "MAD-Real" / "notes").mkdir()
    return tmp_path / "MAD-Real"


def test_classes_are_folders_with_train_photos_whatever_their_case(dataset: Path) -> None:
    assert list(find_photo_classes(dataset)) == ["01Gorilla", "02Unicorn"]
    assert find_photo_classes(dataset / "02Unicorn") == {"02Unicorn": dataset / "02Unicorn"}


def test_masks_are_found_by_either_name_and_good_photos_have_none(dataset: Path) -> None:
    gorilla, unicorn = mask_finder(dataset / "01Gorilla"), mask_finder(dataset / "02Unicorn")
    assert gorilla(PurePosixPath("Stains/0.png")) == dataset / "01Gorilla/ground_truth/Stains/0_mask.png"
    assert gorilla(PurePosixPath("Stains/1.png")) is None
    assert gorilla(PurePosixPath("good/0.png")) is None
    assert unicorn(PurePosixPath("Burrs/7.jpg")) == dataset / "02Unicorn/GT/Burrs/7.png"


def test_each_class_is_prepared_from_its_train_photos_with_its_test_photos(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, dict[str, Any]]] = []

    def record(data: Path, scene_folder: Callable[[str], Path], **flags: Any) -> list[Path]:
        asked.append((data, flags))
        return [scene_folder(flags["name"])]

    monkeypatch.setattr(mad_real, "prepare_photos", record)
    written = prepare_mad_real(dataset, lambda name: tmp_path / name)

    assert written == [tmp_path / "01Gorilla", tmp_path / "02Unicorn"]
    assert [data for data, _ in asked] == [dataset / "01Gorilla/train", dataset / "02Unicorn/Train"]
    assert [flags["queries"] for _, flags in asked] == [
        dataset / "01Gorilla/test",
        dataset / "02Unicorn/Test",
    ]
    assert {flags["kind"] for _, flags in asked} == {"mad-real"}
    prepare_mad_real(dataset, lambda name: tmp_path / name, classes=["02Unicorn"])
    assert len(asked) == 3


def test_what_is_not_there_is_said(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no class 'gorila'; did you mean 01Gorilla"):
        prepare_mad_real(dataset, lambda name: tmp_path / name, classes=["gorila"])
    with pytest.raises(InputError, match="no class in it; expected CLASS/train"):
        prepare_mad_real(dataset / "notes", lambda name: tmp_path / name)
    with pytest.raises(InputError, match="no such folder"):
        prepare_mad_real(tmp_path / "none", lambda name: tmp_path / name)
