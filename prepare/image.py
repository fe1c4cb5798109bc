"""Image files in and out: every odd kind a camera or a tool writes becomes RGB in [0, 1], upright, float32.

Nothing is decoded before the header's size and kind were accepted, and no colour profile is applied (sRGB is assumed).
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from prepare.atomic_write import write_bytes
from prepare.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif")
MAX_PIXELS = 100_000_000

# The decoders let near foreign files. Pillow knows more, some of which start other programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "PPM", "GIF", "TGA")
# We refuse by the size ourselves; Pillow would print a second line for the same file.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class DecodedImage:
    """An image file's content, upright."""

    rgb: Float[Tensor, "height width rgb=3"]  # in [0, 1], as stored: not multiplied by alpha
    alpha: Float[Tensor, "height width"] | None  # in [0, 1]; None where the file has none


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """RGB in [0, 1] and, where the file has one, alpha in [0, 1], with the EXIF orientation applied.

    8 and 16 bit, grey, palette, 1 bit, CMYK and float (in [0, 1]) files are all read; of an animation, the first frame.
    Raises: InputError for a file that is missing, empty, truncated, not an image, or larger than `max_pixels`.
    """
    with _opened(path, max_pixels) as image:
        image.load()
        return _decode(ImageOps.exif_transpose(image), path)


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in px of the upright image, from the header alone.

    Raises: InputError as `read_image`, except for what only decoding shows.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        # Pillow loads a PNG whole to look for EXIF data behind its pixels; `info` has what stands before them.
        turned = image.format != "PNG" or "exif" in image.info
        if turned and image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS:
            width, height = height, width
        return width, height


def may_have_alpha(path: Path, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether the file can say what of it is see-through, from the header alone.

    Raises: InputError as `image_size`.
    """
    with _opened(path, max_pixels) as image:
        return image.has_transparency_data


def read_mask(path: Path, *, max_pixels: int = MAX_PIXELS) -> Bool[Tensor, "height width"]:
    """True where any colour channel of the file is above 0; an alpha channel is ignored.

    Raises: InputError as `read_image`.
    """
    return (read_image(path, max_pixels=max_pixels).rgb > 0).any(dim=-1)


def read_mask_share(path: Path, *, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "height width"]:
    """A foreground mask's value in [0, 1], the brightest channel's; alpha is ignored.

    A mask that nowhere reaches half of white was written as 0 and 1 (or another label): it counts as 0 and 1.
    Raises: InputError as `read_image`.
    """
    share = read_image(path, max_pixels=max_pixels).rgb.amax(dim=-1)
    return share if float(share.max()) >= 0.5 else (share > 0).float()


def write_image(path: Path, rgb: Float[Tensor, "height width rgb=3"]) -> None:
    """Write an 8-bit RGB PNG atomically; values are clamped to [0, 1] and rounded.

    Raises: InputError where the file cannot be written; ValueError for NaN.
    """
    _write_png(path, rgb)


def write_mask(path: Path, mask: Bool[Tensor, "height width"] | Float[Tensor, "height width"]) -> None:
    """Write an 8-bit grey PNG atomically: True or 1 is white, shares between are grey.

    Raises: InputError where the file cannot be written; ValueError for NaN.
    """
    _write_png(path, mask.float())


def resize(
    rgb: Float[Tensor, "height width channels"], width: int, height: int
) -> Float[Tensor, "out_h out_w channels"]:
    """The image at `width` x `height` px: each new pixel is the mean over the area it covers in the old ones.

    The exact area mean is what a coarser sensor would have measured: it keeps the range and a constant background as
    they are (bicubic rings at silhouettes), blurs less than a triangle filter, and moves nothing, so that
    `Camera.resized` fits (torch's "area" has uneven windows at odd ratios). A growing axis is interpolated linearly.
    """
    return _resize_axis(_resize_axis(rgb, 0, height), 1, width)


def list_images(folder_or_file: Path) -> list[Path]:
    """The image files of a folder (not of its subfolders), 2 before 10; a file is returned as it is.

    Raises: InputError where there is nothing, or no image.
    """
    if folder_or_file.is_file():
        return [folder_or_file]
    if not folder_or_file.is_dir():
        raise InputError(f"{folder_or_file}: no such file or folder; give a photo or a folder of photos")
    found = [
        entry
        for entry in folder_or_file.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    if not found:
        raise InputError(f"{folder_or_file}: no image files in it; expected {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found, key=lambda entry: natural_key(entry.name))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which numbers count as numbers: 2 before 10, case ignored."""
    parts: list[str | int] = [
        int(part) if index % 2 else part.lower() for index, part in enumerate(re.split(r"([0-9]+)", name))
    ]
    return parts, name


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The file opened with its header accepted; whatever goes wrong inside the block becomes an InputError."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not an image; give one of the images in it")
    if not path.is_file():  # a pipe or device would block or never end
        raise InputError(f"{path}: no such image; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes); copy the image again")
    too_large = f"{path}: is too large, limit {max_pixels} pixels; scale it down"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{path}: is too large, {width} x {height} with a limit of {max_pixels} pixels; scale it down"
                )
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(too_large) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is not an image that can be read; save it as PNG or JPEG") from error
    except PermissionError as error:
        raise InputError(f"{path}: cannot be opened (permission denied); make it readable") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
    ) as error:
        # What Pillow raises for damaged files depends on where the damage lies.
        raise InputError(
            f"{path}: is damaged or truncated ({_one_line(error)}); copy or export it again"
        ) from error
    except (struct.error, zlib.error, MemoryError) as error:
        raise InputError(
            f"{path}: is damaged or truncated ({_one_line(error)}); copy or export it again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decode(image: Image.Image, path: Path) -> DecodedImage:
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit grey. (16-bit RGB is already cut to its upper 8 bits by Pillow: an error below one 8-bit level.)
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{path}: has 32-bit integer values outside 0..65535; save it as 8 or 16 bit")
        key = image.info.get("transparency")
        alpha = torch.from_numpy((values != key).astype(np.float32)) if isinstance(key, int) else None
        return DecodedImage(_grey(values.astype(np.float32) / 65535.0), alpha)
    if image.mode == "F":
        floats = np.asarray(image, dtype=np.float32)
        # A little beyond [0, 1] is a resampling filter's overshoot; far beyond is another scale, which we cannot know.
        if not np.isfinite(floats).all() or floats.min() < -0.5 or floats.max() > 1.5:
            raise InputError(f"{path}: has float values outside [0, 1]; save it as 8 or 16 bit")
        return DecodedImage(_grey(floats.clip(0.0, 1.0)), None)

    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if image.mode == "La":
        image = image.convert("LA")
    if has_alpha:
        rgba = _scaled(image.convert("RGBA"))
        return DecodedImage(rgba[..., :3].contiguous(), rgba[..., 3].contiguous())
    return DecodedImage(_scaled(image.convert("RGB")), None)


def _scaled(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float().mul_(1.0 / 255.0).clamp_(max=1.0)


def _grey(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)[..., None].expand(-1, -1, 3).contiguous()


def _write_png(path: Path, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{path}: image to be written holds NaN or infinity")
    levels = values.detach().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=4)
    write_bytes(path, buffer.getvalue())


def _resize_axis(image: Tensor, axis: int, size: int) -> Tensor:
    old = image.shape[axis]
    if size == old:
        return image
    if old % size == 0:  # the same mean, without the multiplications by zero
        shape = (*image.shape[:axis], size, old // size, *image.shape[axis + 1 :])
        return image.reshape(shape).mean(dim=axis + 1)
    weights = _area_weights(old, size) if size < old else _linear_weights(old, size)
    return torch.tensordot(weights.to(image), image.movedim(axis, 0), dims=1).movedim(0, axis).contiguous()


def _area_weights(old: int, new: int) -> Tensor:
    """Share (new, old) of each old pixel in each new one; rows sum to 1."""
    edges = torch.arange(new + 1, dtype=torch.float64) * (old / new)
    left = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return overlap.clamp_(min=0.0).div_(old / new)


def _linear_weights(old: int, new: int) -> Tensor:
    """Linear interpolation weights (new, old) between old pixel centres, held constant beyond the outermost."""
    at = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp_(0.0, old - 1.0)
    return (1.0 - (at[:, None] - torch.arange(old, dtype=torch.float64)).abs()).clamp_(min=0.0)
