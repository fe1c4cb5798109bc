from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare.datasets.photos import prepare_photos
from prepare.errors import InputError, MissingPartError
from prepare.exif import focal_from_exif
from prepare.heic import convert_heic
from prepare.image import image_size, read_image


def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands for pi-heif: Pillow reads files of this kind (they are PNGs inside), as with the real one."""
    _without_plugins(monkeypatch)
    fake = types.ModuleType("pi_heif")

    def register() -> None:
        from PIL import PngImagePlugin

        class HeifImage(PngImagePlugin.PngImageFile):
            format = "HEIF"

        Image.register_open("HEIF", HeifImage, lambda prefix: prefix.startswith(b"\x89PNG"))

    fake.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pi_heif", fake)
    Image.preinit()
    yield
    if Image.OPEN.pop("HEIF", None) is not None:
        Image.ID.remove("HEIF")


def _heic(path: Path) -> np.ndarray:
    """30 x 20 as the sensor lies, to be turned by a quarter; with a focal length."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, :15] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.fromarray(pixels).save(path, format="PNG", exif=exif)
    return np.rot90(pixels, -1)


@pytest.mark.usefixtures("plugin")
def test_a_heic_photo_becomes_an_upright_jpeg_with_its_focal_length(tmp_path: Path) -> None:
    upright = _heic(tmp_path / "a.heic")
    target = convert_heic(tmp_path / "a.heic", tmp_path / "out" / "a.heic.jpg")
    assert image_size(target) == (20, 30)
    found = read_image(target).rgb.numpy() * 255
    assert np.abs(found - upright).mean() < 4
    assert focal_from_exif(target) == pytest.approx(26 / np.hypot(36, 24) * np.hypot(20, 30))

    stamp = target.stat().st_mtime_ns
    assert convert_heic(tmp_path / "a.heic", target).stat().st_mtime_ns == stamp  # not done again


@pytest.mark.usefixtures("plugin")
def test_a_damaged_heic_photo_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"ftypheic and nothing")
    with pytest.raises(InputError, match=r"a\.heic: is no HEIC photo that can be read .*; save it as JPEG"):
        convert_heic(tmp_path / "a.heic", tmp_path / "a.jpg")


def test_without_a_plugin_the_command_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    _without_plugins(monkeypatch)
    for name in ("1.HEIC", "2.HEIC"):
        (tmp_path / "data").mkdir(exist_ok=True)
        _heic(tmp_path / "data" / name)
    with pytest.raises(
        MissingPartError, match=r"1\.HEIC: reading HEIC needs a plugin; pip install pi-heif"
    ) as caught:
        prepare_photos(tmp_path / "data", lambda name: tmp_path / "work" / name)
    assert caught.value.exit_status == 4
    assert "\n" not in str(caught.value)
