"""Pictures for people: maps over photos on an absolute colour scale, defects circled, captions, verdicts.

Pure functions from images to images; an image is RGB in [0, 1], `(height, width, 3)`. Boxes are (x0, y0, x1, y1) in
px, x1 and y1 exclusive. Colours are RGB in [0, 255]. Every verdict has a sign of its own besides its colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prepare.camera import fit_within
from prepare.image import resize

Verdict = Literal["OK", "NG", "CANNOT TELL"]
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

# Red, green and amber that differ in lightness too, so that they stay apart for colour-blind readers and in print.
VERDICT_COLOURS: dict[str, Colour] = {"OK": (22, 128, 74), "NG": (200, 30, 45), "CANNOT TELL": (222, 150, 20)}
CIRCLE_COLOUR: Colour = (225, 0, 120)  # a magenta: rarer on parts than red


@dataclass(frozen=True)
class Mark:
    """How a kind of defect is drawn: by shape and by colour, so that neither is needed alone."""

    name: str  # as in a style sheet
    words: str  # for the legend
    shape: Literal["box", "hexagon", "pill"]  # of the plate that holds the number
    colour: Colour  # white letters on it have a contrast of 4.5 at least


MARKS = (
    Mark("missing", "something missing", "box", (11, 87, 176)),
    Mark("added", "something added", "hexagon", (196, 0, 104)),
    Mark("changed", "looks different", "pill", (160, 80, 0)),
)

INK: Colour = (28, 32, 38)
PAPER: Colour = (255, 255, 255)

# Stops of the map's colours from `low` to `high`: lightness falls evenly from pale yellow to dark violet, so that the
# order also survives a grey print. Blended in OKLab.
_STOPS: tuple[Colour, ...] = ((255, 233, 120), (255, 178, 50), (245, 100, 45), (205, 25, 80), (105, 10, 120))

# Source: Björn Ottosson, "A perceptual color space for image processing" (2020), OKLab's two matrices.
_LMS_FROM_RGB = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB_FROM_LMS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_SUPERSAMPLE = 3  # PIL draws without anti-aliasing: drawn this much larger, then reduced


def map_colours(count: int = 256) -> Float[Tensor, "count 3"]:
    """The map's colours from its low end to its high end, RGB in [0, 1], evenly spaced to the eye (OKLab)."""
    stops = _oklab(np.array(_STOPS) / 255)
    at = np.linspace(0, len(_STOPS) - 1, count)
    blended = np.stack([np.interp(at, np.arange(len(_STOPS)), stops[:, i]) for i in range(3)], axis=-1)
    return torch.from_numpy(_rgb_from_oklab(blended)).float()


def overlay_map(
    rgb: Float[Tensor, "height width 3"],
    anomaly_map: Float[Tensor, "height width"],
    low: float,
    high: float,
    opacity: float = 0.8,
) -> Float[Tensor, "height width 3"]:
    """The photo under the map's colours, on an absolute scale: a value has the same colour in every photo.

    Nothing is drawn below `low`; from there the cover rises to `opacity` at a fifth of the range, and the colour
    runs to `high`, where it stays. Values that are not numbers are drawn as nothing.
    """
    if not low < high:
        raise ValueError(f"overlay_map: low must lie below high, got {low} and {high}")
    level = ((torch.nan_to_num(anomaly_map, nan=low, posinf=high, neginf=low) - low) / (high - low)).clamp(
        0, 1
    )
    colours = map_colours().to(rgb)
    cover = opacity * (level / 0.2).clamp(0, 1)[..., None]
    return rgb * (1 - cover) + colours[(level * 255).round().long()] * cover


def faded(rgb: Float[Tensor, "height width 3"], strength: float = 0.75) -> Float[Tensor, "height width 3"]:
    """The image without its colours and nearer to white: a map over it is not taken for the part's paint."""
    grey = (rgb * rgb.new_tensor([0.2126, 0.7152, 0.0722])).sum(-1, keepdim=True).expand_as(rgb)
    return rgb * (1 - strength) + (0.35 + 0.65 * grey) * strength


def mark_of(kind: str) -> Mark:
    """The mark of a kind of defect told in words: of "missing" or "added" where the words hold that, else of "changed"."""
    return next((mark for mark in MARKS[:2] if mark.name in kind.casefold()), MARKS[2])


def hatched(
    rgb: Float[Tensor, "height width 3"], mask: Bool[Tensor, "height width"]
) -> Float[Tensor, "height width 3"]:
    """The image with slanted grey-blue stripes over the mask: nothing can be said there."""
    height, width = mask.shape
    pitch = max(6, round(max(height, width) / 50))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    stripe = (rows + columns) % pitch < max(2, pitch // 3)
    cover = torch.where(stripe, 0.75, 0.25).to(rgb) * mask.to(rgb)
    return rgb * (1 - cover[..., None]) + rgb.new_tensor([0.35, 0.45, 0.6]) * cover[..., None]


def draw_boxes(
    rgb: Float[Tensor, "height width 3"],
    boxes: Sequence[Box],
    labels: Sequence[str],
    colours: Sequence[Colour],
) -> Float[Tensor, "height width 3"]:
    """The image with a labelled frame round each box; line and letters grow with the image."""
    line = _line_px(rgb)

    def draw(canvas: ImageDraw.ImageDraw, scale: int) -> None:
        for box, label, colour in zip(boxes, labels, colours, strict=True):
            x0, y0, x1, y1 = (float(edge * scale) for edge in box)
            width = line * scale
            out = width + scale  # the line and the white rim on its inner side
            frame = (x0 - out, y0 - out, x1 + out - 1, y1 + out - 1)
            canvas.rectangle(_grown(frame, float(scale)), outline=PAPER, width=width + 2 * scale)
            canvas.rectangle(frame, outline=colour, width=width)
            _draw_tag(canvas, frame, label, colour, scale, rgb, overlap=0.0)

    return _drawn_over(rgb, draw)


def draw_lines(
    rgb: Float[Tensor, "height width 3"],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    colours: Sequence[Colour],
) -> Float[Tensor, "height width 3"]:
    """The image with a line between each pair of points (x, y) px, with a white rim."""
    line = _line_px(rgb)

    def draw(canvas: ImageDraw.ImageDraw, scale: int) -> None:
        for ends, colour in zip(lines, colours, strict=True):
            points = [(x * scale, y * scale) for x, y in ends]
            canvas.line(points, fill=PAPER, width=(line + 2) * scale)
            canvas.line(points, fill=colour, width=line * scale)

    return _drawn_over(rgb, draw)


def circle_defects(
    rgb: Float[Tensor, "height width 3"],
    boxes: Sequence[Box],
    labels: Sequence[str] | None = None,
    colour: Colour = CIRCLE_COLOUR,
) -> Float[Tensor, "height width 3"]:
    """The image with an ellipse round each box, a margin away from it so that the defect itself stays uncovered.

    A white rim keeps the line visible on a part of the same colour; a speck of one pixel still gets a circle that
    the eye finds.
    """
    height, width = rgb.shape[:2]
    line = _line_px(rgb)
    least_radius = max(6.0, 0.035 * max(height, width))
    margin = max(3.0, 0.012 * max(height, width))

    def draw(canvas: ImageDraw.ImageDraw, scale: int) -> None:
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
            # An ellipse through the corners of the box is wider than it by the square root of two.
            radius_x = max(least_radius, (x1 - x0) / 2 * 2**0.5 + margin)
            radius_y = max(least_radius, (y1 - y0) / 2 * 2**0.5 + margin)
            around = (
                (centre_x - radius_x) * scale,
                (centre_y - radius_y) * scale,
                (centre_x + radius_x) * scale,
                (centre_y + radius_y) * scale,
            )
            canvas.ellipse(_grown(around, float(scale)), outline=PAPER, width=(line + 2) * scale)
            canvas.ellipse(around, outline=colour, width=line * scale)
            if labels is not None:
                _draw_tag(canvas, around, labels[number], colour, scale, rgb, overlap=0.3)

    return _drawn_over(rgb, draw)


def contact_sheet(
    pictures: Sequence[Float[Tensor, "height width 3"]], most: int = 20, longest_px: int = 200
) -> Float[Tensor, "rows columns 3"]:
    """At most `most` of `pictures`, evenly spread, small and side by side on a grid, row by row."""
    count = min(most, len(pictures))
    chosen = [pictures[round(i * (len(pictures) - 1) / max(1, count - 1))] for i in range(count)]
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    sheet = torch.ones(rows * longest_px, columns * longest_px, 3)
    for i, picture in enumerate(chosen):
        height, width = picture.shape[:2]
        width, height = fit_within(width, height, longest_px)
        top, left = i // columns * longest_px, i % columns * longest_px
        sheet[top : top + height, left : left + width] = resize(picture, width, height)
    return sheet


def draw_contour(
    rgb: Float[Tensor, "height width 3"], mask: Bool[Tensor, "height width"], colour: Colour
) -> Float[Tensor, "height width 3"]:
    """The image with a line along the outside of the mask; the masked pixels themselves stay as they are."""
    reach = _line_px(rgb)
    solid = mask.to(rgb)[None, None]
    grown = torch.nn.functional.max_pool2d(solid, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    line = grown & ~mask
    return torch.where(line[..., None], rgb.new_tensor(colour) / 255, rgb)


def side_by_side(
    images: Sequence[Float[Tensor, "_height _width 3"]], captions: Sequence[str]
) -> Float[Tensor, "total_height total_width 3"]:
    """The images in one row, each scaled to the tallest one's height, with its caption above it, on white."""
    if not images or len(images) != len(captions):
        raise ValueError(
            f"side_by_side: one caption per image, got {len(images)} images, {len(captions)} captions"
        )
    height = max(int(image.shape[0]) for image in images)
    gap = max(4, height // 50)
    letters = max(11.0, height / 22)
    strip = round(2 * letters)
    pictures = [_to_pil(image) for image in images]
    pictures = [
        p.resize((max(1, round(p.width * height / p.height)), height), Image.Resampling.LANCZOS)
        for p in pictures
    ]
    total = sum(p.width for p in pictures) + gap * (len(pictures) + 1)
    sheet = Image.new("RGB", (total, height + strip + gap), PAPER)
    canvas = ImageDraw.Draw(sheet)
    x = gap
    for picture, caption in zip(pictures, captions, strict=True):
        font = _font_to_fit(caption, letters, float(picture.width))
        canvas.text((x, strip / 2), caption, fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (x, strip))
        x += picture.width + gap
    return _from_pil(sheet)


def colour_bar(
    low: float, high: float, width: int = 400, height: int = 44
) -> Float[Tensor, "height width 3"]:
    """The map's scale as a picture: colours from `low` to `high`, with both ends and the middle written below."""
    sheet = Image.new("RGB", (width, height), PAPER)
    bar = map_colours(width)[None].expand(max(1, height // 2), -1, -1)
    sheet.paste(_to_pil(bar), (0, 0))
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=max(9, height // 3))
    for value, x, anchor in ((low, 1, "lm"), ((low + high) / 2, width / 2, "mm"), (high, width - 1, "rm")):
        canvas.text((x, height * 0.76), f"{value:.3g}", fill=INK, font=font, anchor=anchor)
    return _from_pil(sheet)


def verdict_banner(
    verdict: Verdict, text: str, width: int, height: int = 48, *, word: str | None = None
) -> Float[Tensor, "height width 3"]:
    """A strip that says the verdict by colour, by sign (tick, cross, question mark) and by word, then `text`.

    `word` stands in the verdict's place where something else than a part is judged, such as a camera.
    """
    sheet = Image.new("RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), VERDICT_COLOURS[verdict])
    canvas = ImageDraw.Draw(sheet)
    high = height * _SUPERSAMPLE
    ink = INK if verdict == "CANNOT TELL" else PAPER  # white on amber is too faint to read
    stroke = max(2, high // 11)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * high, y * high) for x, y in points]

    if verdict == "OK":
        canvas.line(at((0.27, 0.52), (0.44, 0.70), (0.75, 0.30)), fill=ink, width=stroke, joint="curve")
    elif verdict == "NG":
        canvas.line(at((0.30, 0.28), (0.72, 0.72)), fill=ink, width=stroke)
        canvas.line(at((0.72, 0.28), (0.30, 0.72)), fill=ink, width=stroke)
    else:
        font = ImageFont.load_default(size=high * 0.7)
        canvas.text((0.5 * high, 0.5 * high), "?", fill=ink, font=font, anchor="mm")
    word = word or verdict
    words = f"{word}   {text}" if text else word
    font = _font_to_fit(words, high * 0.42, width * _SUPERSAMPLE - high * 1.15)
    canvas.text((high, high / 2), words, fill=ink, font=font, anchor="lm")
    return _from_pil(sheet.resize((width, height), Image.Resampling.LANCZOS))


def to_bytes(rgb: Float[Tensor, "height width 3"], kind: Literal["JPEG", "PNG"]) -> bytes:
    """The image as a file's content, 8 bits per channel; JPEG at quality 88 without colour subsampling."""
    buffer = BytesIO()
    if kind == "JPEG":
        _to_pil(rgb).save(buffer, "JPEG", quality=88, subsampling=0)  # optimize=True fails on noisy photos
    else:
        _to_pil(rgb).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def resized(
    rgb: Float[Tensor, "_height _width 3"], width: int, height: int
) -> Float[Tensor, "height width 3"]:
    """The image resampled to `width` x `height` px (Lanczos, 8 bits)."""
    if rgb.shape[:2] == (height, width):
        return rgb
    return _from_pil(_to_pil(rgb).resize((width, height), Image.Resampling.LANCZOS))


def _line_px(rgb: Float[Tensor, "height width 3"]) -> int:
    return max(1, round(max(rgb.shape[:2]) / 220))


def _grown(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _font_to_fit(text: str, size: float, width: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The built-in font at `size` px or at what makes `text` as wide as `width` px, whichever is smaller."""
    font = ImageFont.load_default(size=size)
    needed = font.getlength(text)
    return font if needed <= width else ImageFont.load_default(size=max(6.0, size * width / needed))


def _draw_tag(
    canvas: ImageDraw.ImageDraw,
    around: tuple[float, float, float, float],
    label: str,
    colour: Colour,
    scale: int,
    rgb: Float[Tensor, "height width 3"],
    overlap: float,
) -> None:
    """A filled tag at the frame's top right, else below it; `overlap` of its height lies inside the frame."""
    if not label:
        return
    height, width = rgb.shape[0] * scale, rgb.shape[1] * scale
    size = max(10.0, 0.032 * max(rgb.shape[:2])) * scale
    font = ImageFont.load_default(size=size)
    tag_width, tag_height = max(font.getlength(label) + 0.7 * size, 1.35 * size), 1.35 * size
    left = min(max(0.0, around[2] - 0.3 * tag_width), width - tag_width)
    top = around[1] - (1 - overlap) * tag_height
    if top < 0:
        top = min(around[3] + (scale if overlap == 0 else -overlap * tag_height), height - tag_height)
    tag = (left, top, left + tag_width, top + tag_height)
    canvas.rounded_rectangle(_grown(tag, float(scale)), radius=0.5 * tag_height, fill=PAPER)
    canvas.rounded_rectangle(tag, radius=0.5 * tag_height, fill=colour)
    canvas.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), label, fill=PAPER, font=font, anchor="mm")


def _drawn_over(
    rgb: Float[Tensor, "height width 3"], draw: Callable[[ImageDraw.ImageDraw, int], None]
) -> Float[Tensor, "height width 3"]:
    """The image with smooth strokes over it; pixels that no stroke touches come back unchanged, bit for bit."""
    height, width = rgb.shape[:2]
    large = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
    layers = Image.new("RGB", large, (0, 0, 0)), Image.new("RGB", large, (255, 255, 255))
    for layer in layers:
        draw(ImageDraw.Draw(layer), _SUPERSAMPLE)
    on_black, on_white = (_from_pil(layer.resize((width, height), Image.Resampling.BOX)) for layer in layers)
    # What shows the two grounds alike is stroke; by how much they differ, the photo shines through.
    through = (on_white - on_black).to(rgb)
    return on_black.to(rgb) + through * rgb


def _to_pil(rgb: Float[Tensor, "height width 3"]) -> Image.Image:
    eight_bit = (torch.nan_to_num(rgb.detach().float()).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(eight_bit.cpu().numpy())


def _from_pil(image: Image.Image) -> Float[Tensor, "height width 3"]:
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LMS_FROM_RGB.T) @ _LAB_FROM_LMS.T


def _rgb_from_oklab(lab: np.ndarray) -> np.ndarray:
    linear = ((lab @ np.linalg.inv(_LAB_FROM_LMS).T) ** 3 @ np.linalg.inv(_LMS_FROM_RGB).T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).clip(0, 1)
