from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.errors import InputError
from prepare.image import (
    image_size,
    list_images,
    may_have_alpha,
    read_image,
    read_mask,
    read_mask_share,
    resize,
    write_image,
    write_mask,
)


def _levels(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def _png(path: Path, width: int, height: int, depth: int, colour_type: int, rows: bytes = b"") -> Path:
    """A PNG file written by hand, as an oracle independent of Pillow's writer."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_an_rgb_file_is_read_exactly_and_has_no_alpha(tmp_path: Path) -> None:
    levels = _levels()
    image = read_image(_save(tmp_path / "a.png", levels))
    assert image.alpha is None
    assert image.rgb.dtype == torch.float32
    torch.testing.assert_close(image.rgb, torch.from_numpy(levels / np.float32(255)))
    assert float(read_image(_save(tmp_path / "w.png", np.full((2, 2, 3), 255, np.uint8))).rgb.max()) == 1.0


def test_rgba_keeps_the_colour_as_stored_beside_alpha(tmp_path: Path) -> None:
    levels = _levels(channels=4)
    image = read_image(_save(tmp_path / "a.png", levels))
    assert image.alpha is not None
    torch.testing.assert_close(image.rgb, torch.from_numpy(levels[..., :3] / np.float32(255)))
    torch.testing.assert_close(image.alpha, torch.from_numpy(levels[..., 3] / np.float32(255)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_by_65535(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
    image = read_image(_save(tmp_path / f"a{suffix}", values))
    expected = torch.from_numpy(values / np.float32(65535))[..., None].expand(-1, -1, 3)
    torch.testing.assert_close(image.rgb, expected, rtol=0, atol=1e-7)


def test_16_bit_rgb_is_right_to_one_8_bit_level(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = read_image(_png(tmp_path / "a.png", 6, 4, 16, 2, rows))
    assert (image.rgb - torch.from_numpy(values / np.float32(65535))).abs().max() < 1 / 255


def test_grey_grey_alpha_and_one_bit_become_rgb(tmp_path: Path) -> None:
    grey = _levels(channels=1)[..., 0]
    image = read_image(_save(tmp_path / "l.png", grey))
    torch.testing.assert_close(
        image.rgb, torch.from_numpy(grey / np.float32(255))[..., None].expand(-1, -1, 3)
    )

    grey_alpha = _levels(channels=2)
    image = read_image(_save(tmp_path / "la.png", grey_alpha))
    assert image.alpha is not None
    torch.testing.assert_close(image.rgb[..., 1], torch.from_numpy(grey_alpha[..., 0] / np.float32(255)))
    torch.testing.assert_close(image.alpha, torch.from_numpy(grey_alpha[..., 1] / np.float32(255)))

    image = read_image(_save(tmp_path / "bit.png", grey > 127))
    torch.testing.assert_close(image.rgb[..., 0], torch.from_numpy((grey > 127).astype(np.float32)))


def test_palette_gives_its_colours_and_its_transparency(tmp_path: Path) -> None:
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    indices.save(tmp_path / "opaque.png")
    image = read_image(tmp_path / "opaque.png")
    assert image.alpha is None
    assert image.rgb.tolist() == [[red, green], [blue, green]]

    indices.save(tmp_path / "clear.png", transparency=1)
    image = read_image(tmp_path / "clear.png")
    assert image.alpha is not None
    assert image.alpha.tolist() == [[1, 0], [1, 0]]
    assert image.rgb[0, 0].tolist() == red


def test_cmyk_is_turned_into_rgb(tmp_path: Path) -> None:
    cmyk = np.zeros((8, 8, 4), dtype=np.uint8)
    cmyk[..., 1] = cmyk[..., 2] = 255  # full magenta and yellow: red
    Image.fromarray(cmyk, mode="CMYK").save(tmp_path / "a.jpg", quality=95)
    colour = read_image(tmp_path / "a.jpg").rgb.mean(dim=(0, 1))
    torch.testing.assert_close(colour, torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=0.02)


def test_float_images_in_0_1_are_read_and_others_refused(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.25], [0.5, 1.001]], dtype=np.float32)
    image = read_image(_save(tmp_path / "f.tif", values))
    torch.testing.assert_close(image.rgb[..., 2], torch.from_numpy(values).clamp(max=1))
    with pytest.raises(InputError, match="float values"):
        read_image(_save(tmp_path / "big.tif", values * 255))
    with pytest.raises(InputError, match="float values"):
        read_image(_save(tmp_path / "nan.tif", values * np.float32("nan")))


def test_32_bit_integers_beyond_16_bit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="32-bit"):
        read_image(_save(tmp_path / "i.tif", np.array([[0, 70000]], dtype=np.int32)))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # the top left corner is white
    # What the sensor stored so that the viewer's transform makes it upright; from the EXIF standard's table.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / f"a{suffix}", np.ascontiguousarray(stored), exif=exif)
    image = read_image(path)
    assert image_size(path) == (32, 16)
    torch.testing.assert_close(image.rgb, torch.from_numpy(upright).float() / 255, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["part.png", "part.jpg", "part.tif", "part.webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, name: str, share: float) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = _save(tmp_path / name, levels)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=name) as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_every_single_byte_of_damage_is_read_or_refused_never_a_crash(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", _levels())
    data = bytearray(path.read_bytes())
    refused = []
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            read_image(path, max_pixels=1_000_000)
        except InputError as error:
            refused.append(str(error))
    assert 0 < len(refused) <= len(data)
    assert not any("\n" in message for message in refused)


def test_missing_empty_folder_and_not_an_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [
        ("empty.png", "empty"),
        ("text.png", "not an image"),
        ("gone.png", "no such"),
        (".", "folder"),
        ("pipe.png", "no such"),  # opening it would wait for ever
    ]:
        with pytest.raises(InputError, match=reason):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [100_000, 12_000])
def test_a_header_that_announces_too_many_pixels_is_refused_at_once(tmp_path: Path, side: int) -> None:
    path = _png(tmp_path / "bomb.png", side, side, 8, 2, b"\0" * 100)
    start = time.perf_counter()
    with pytest.raises(InputError, match="too large"):
        read_image(path)
    with pytest.raises(InputError, match="too large"):
        image_size(path)
    assert time.perf_counter() - start < 0.5


def test_mask_is_true_where_any_colour_is_above_zero_and_ignores_alpha(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[0, 1] = (0, 0, 1, 0)
    rgba[1, 2, 3] = 255
    mask = read_mask(_save(tmp_path / "m.png", rgba))
    assert mask.tolist() == [[False, True, False], [False, False, False]]


def test_mask_share_keeps_grey_and_reads_labels_of_0_and_1_as_a_mask(tmp_path: Path) -> None:
    soft = read_mask_share(_save(tmp_path / "soft.png", np.array([[0, 51, 255]], dtype=np.uint8)))
    torch.testing.assert_close(soft, torch.tensor([[0.0, 0.2, 1.0]]))
    labels = read_mask_share(_save(tmp_path / "labels.png", np.array([[0, 1, 1]], dtype=np.uint8)))
    assert labels.tolist() == [[0, 1, 1]]


def test_written_images_come_back_rounded_and_clamped(tmp_path: Path) -> None:
    rgb = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    write_image(tmp_path / "deep" / "a.png", rgb)
    assert (read_image(tmp_path / "deep" / "a.png").rgb - rgb.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["a.png"]

    mask = torch.tensor([[True, False]])
    write_mask(tmp_path / "m.png", mask)
    assert torch.equal(read_mask(tmp_path / "m.png"), mask)
    with pytest.raises(ValueError, match="NaN"):
        write_image(tmp_path / "nan.png", rgb * float("nan"))
    assert not (tmp_path / "nan.png").exists()


@pytest.mark.parametrize(("width", "height"), [(4, 3), (5, 3), (8, 6), (3, 5), (1, 1), (7, 6)])
def test_downscaling_is_the_exact_mean_over_the_area(width: int, height: int) -> None:
    image = torch.rand(6, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Brute force: a grid so fine that both pixel grids fall on it.
    fine = image.repeat_interleave(height, 0).repeat_interleave(width, 1)
    expected = fine.reshape(height, 6, width, 8, 2).mean(dim=(1, 3))
    torch.testing.assert_close(resize(image, width, height), expected)


def test_upscaling_interpolates_between_pixel_centres() -> None:
    ramp = torch.arange(4.0)[None, :, None]
    doubled = resize(ramp, 8, 1)[0, :, 0]
    torch.testing.assert_close(doubled, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_resizing_keeps_a_constant_image_and_the_centre_of_mass() -> None:
    torch.testing.assert_close(resize(torch.full((9, 11, 3), 0.3), 4, 5), torch.full((5, 4, 3), 0.3))
    spot = torch.zeros(12, 12, 1, dtype=torch.float64)
    spot[7, 3] = 1.0
    small = resize(spot, 5, 5)[..., 0]
    at = (torch.arange(5, dtype=torch.float64) + 0.5) * 12 / 5
    # The area mean puts a spot into the pixels that it covers: within half a new pixel of where it was.
    assert abs(float((small.sum(0) * at).sum() / small.sum()) - 3.5) <= 1.2
    assert abs(float((small.sum(1) * at).sum() / small.sum()) - 7.5) <= 1.2


def test_images_are_listed_with_2_before_10_and_without_subfolders(tmp_path: Path) -> None:
    for name in ["10.png", "2.PNG", "1.jpg", "b.png", ".hidden.png", "notes.txt", "sub/3.png"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.name for path in list_images(tmp_path)] == ["1.jpg", "2.PNG", "10.png", "b.png"]
    assert list_images(tmp_path / "10.png") == [tmp_path / "10.png"]
    with pytest.raises(InputError, match="no such"):
        list_images(tmp_path / "gone")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no image files"):
        list_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("RGB", {}, False),
        ("L", {}, False),
        ("RGBA", {}, True),
        ("LA", {}, True),
        ("RGB", {"transparency": (0, 0, 0)}, True),
    ],
)
def test_whether_a_file_may_have_alpha_is_as_decoding_finds(tmp_path, mode, options, expected):
    Image.new(mode, (8, 6)).save(tmp_path / "a.png", **options)
    assert may_have_alpha(tmp_path / "a.png") is expected
    assert (read_image(tmp_path / "a.png").alpha is not None) is expected
