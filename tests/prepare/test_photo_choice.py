from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from prepare.errors import InputError
from prepare.photo_choice import choose_photos, look_at_photo, look_at_photos, sharpness


def _photo(seed: int) -> Image.Image:
    """Coloured blobs with hard edges, other ones for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(90, 170, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((320, 240), Image.Resampling.NEAREST)


def _folder(tmp_path: Path, photos: dict[str, Image.Image]) -> dict[str, Path]:
    for name, image in photos.items():
        image.save(tmp_path / name)
    return {name: tmp_path / name for name in photos}


def test_a_blurred_photo_between_sharp_ones_is_left_out_by_name(tmp_path: Path) -> None:
    photos = {f"{index}.png": _photo(index) for index in range(6)}
    photos["3.png"] = photos["3.png"].filter(ImageFilter.GaussianBlur(3))

    kept, dropped = choose_photos(look_at_photos(_folder(tmp_path, photos), lambda done: None))

    assert kept == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert [one.name for one in dropped] == ["3.png"]
    assert dropped[0].reason.startswith("blurred: ")


def test_a_set_that_is_all_soft_is_kept(tmp_path: Path) -> None:
    photos = {f"{index}.png": _photo(index).filter(ImageFilter.GaussianBlur(3)) for index in range(5)}
    kept, dropped = choose_photos(look_at_photos(_folder(tmp_path, photos), lambda done: None))
    assert (len(kept), dropped) == (5, [])


def test_of_doubles_the_sharper_one_stays_and_a_small_change_is_no_double(tmp_path: Path) -> None:
    again = _photo(1).filter(ImageFilter.GaussianBlur(0.6))
    changed = _photo(2)
    changed.paste((255, 0, 0), (100, 100, 120, 120))
    photos = {"a.png": again, "b.png": _photo(1), "c.png": _photo(2), "d.png": changed, "e.png": _photo(2)}

    kept, dropped = choose_photos(look_at_photos(_folder(tmp_path, photos), lambda done: None))

    assert kept == ["b.png", "c.png", "d.png"]
    assert {one.name: one.reason for one in dropped} == {
        "a.png": "double of b.png",
        "e.png": "double of c.png",
    }


def test_a_damaged_photo_is_left_out_and_the_reason_names_it(tmp_path: Path) -> None:
    paths = _folder(tmp_path, {"a.png": _photo(0), "b.png": _photo(1)})
    paths["c.png"] = tmp_path / "c.png"
    paths["c.png"].write_bytes(paths["a.png"].read_bytes()[:300])

    told: list[int] = []
    looks = look_at_photos(paths, told.append)
    kept, dropped = choose_photos(looks, keep_all=True)

    assert told == [1, 2, 3]
    assert kept == ["a.png", "b.png"]
    assert dropped[0].reason.startswith(f"unreadable: {paths['c.png']}: is damaged")


def test_keep_all_keeps_doubles_and_blurred_photos(tmp_path: Path) -> None:
    photos = {f"{index}.png": _photo(0) for index in range(3)}
    kept, dropped = choose_photos(look_at_photos(_folder(tmp_path, photos), lambda done: None), keep_all=True)
    assert (kept, dropped) == (["0.png", "1.png", "2.png"], [])


def test_sharpness_does_not_change_with_exposure_and_falls_with_blur() -> None:
    noise = torch.rand(50, 60, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool2d(noise[None], 3, stride=1, padding=1)[0]
    assert sharpness(0.3 * noise + 0.1) == pytest.approx(sharpness(noise), rel=1e-4)
    assert sharpness(soft) < 0.5 * sharpness(noise)
    assert sharpness(torch.full((8, 8), 0.5)) == 0.0
    # White noise: the Laplacian's variance is the sum of its squared weights, 16 + 4.
    assert sharpness(torch.randn(600, 600, generator=torch.Generator().manual_seed(1))) == pytest.approx(
        20, rel=0.02
    )


def test_a_photo_that_cannot_be_read_raises_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such image"):
        look_at_photo(tmp_path / "none.png")
