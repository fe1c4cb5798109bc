"""BrokenChairs-180K, and sets of `splatad generate chairs` in its folders, become packed pairs (`prepare.shape_pairs`).

What is read: images/SUB/render_*.png; annotations/SUB/{info,mask_old,mask_new,seg,change}_*; shapes/shape_ID/mv_images/*.{png,
json,npy or npz}; split.json. The names of the release are only partly documented, so their order and presence are taken as
loosely as can be. A sample that is damaged or lacks a half is named and left out. The user's files are only read.

Released `xyz` maps are off by half a cell and two cells' points may be swapped (the cell was found by round, the last point
won). They are made anew: the map's points and the 2000 surface points (triangulated from the views that see them) are projected
into the view, and each cell takes the one nearest to its middle, NaN where none falls into it. Cells of our own sets are exact
and kept.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from prepare.datasets.scene_folder import Progress, no_progress
from prepare.datasets.view_records import ViewRecord, read_record
from prepare.errors import InputError, UsageError
from prepare.generate.chair_parts import LABELS
from prepare.image import read_image
from prepare.shape_pairs import CELL_PX, PACK, SPLITS, TYPES, PairSizes, PairWriter, ShapePairs, cell_share

KIND = "broken-chairs"
BOX_PX = 512  # of the picture in which a released box is told
WHITE = 0.98  # grey from which on a pixel of a view without alpha is background
QUERY_WHITE = 0.9  # the same of a photo: its soft shadow is lighter than this, mostly
TYPE_NAMES = {
    "position": 1, "translate": 1, "translation": 1, "rotate": 2, "rotation": 2, "damaged": 3, "broken": 3, "fracture": 3,
    "swapped": 4, "swap": 4, "missing": 5,
}  # fmt: skip
NAMED = 20  # damaged samples that the record names
UNLABELLED = "unknown"


@dataclass(frozen=True)
class BrokenChairs:
    """A packed dataset."""

    folder: Path
    pairs: ShapePairs
    skipped: tuple[str, ...]  # samples left out, with the reason
    notes: tuple[str, ...]  # what else there is to say, a line each


@dataclass(frozen=True)
class _Photo:
    path: Path
    stem: str  # without render_
    shape: str
    anomalous: bool
    view: tuple[str, ...]  # texture, radius, azimuth, elevation, light: what a twin shares


@dataclass(frozen=True)
class _Views:
    shape: str
    stems: tuple[Path, ...]  # without suffix, ordered by elevation and azimuth


class _Damaged(Exception):
    """A sample cannot be used; the text says which and why."""


def prepare_broken_chairs(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    px: int = 256,
    views: int | None = None,
    shapes: int | None = None,
    progress: Progress = no_progress,
) -> BrokenChairs:
    """The packed set in the scene folder called `name` (else as the dataset's folder).

    `views`: reference views a shape, evenly among those there (else as many as most shapes have; shapes with fewer are left
    out). `shapes`: only the first so many of each split in proportion. A stopped run is taken up where it stood.

    Raises: UsageError for settings out of range or a name that is taken; InputError where the folder is no such dataset.
    """
    source = data.resolve()
    if px % 32 or not 32 <= px <= 1024:
        raise UsageError(f"--px: a multiple of 32 up to 1024 is wanted, got {px}; choose 256")
    title = name or source.name
    folder = scene_folder(title)
    if folder.resolve() in (source, *source.parents) or source in folder.resolve().parents:
        raise UsageError(f"{folder}: would be written into the dataset itself; choose another --workspace")
    if (folder / PACK).is_file():
        pairs = ShapePairs.open(folder)
        if pairs.source.get("data") != str(source):
            raise UsageError(f"{folder}: was packed from {pairs.source.get('data')}; choose another --name")
        return BrokenChairs(folder, pairs, tuple(pairs.source["skipped"]), ("was packed already",))
    skipped: list[str] = []
    splits = _read_splits(source)
    photos = _photos(source)
    found = _chosen(source, splits, photos, views, shapes, skipped)
    count = len(found[0].stems)
    by_shape: dict[str, list[_Photo]] = {}
    for photo in photos:
        by_shape.setdefault(photo.shape, []).append(photo)
    known = {item.shape for item in found}
    for shape in sorted(set(by_shape) - known - {line.split(":")[0] for line in skipped}):
        if shapes is None:
            skipped.append(f"{shape}: {len(by_shape[shape])} photos of a shape without views or split")
    rows: list[tuple[int, _Photo]] = [
        (number, photo) for number, item in enumerate(found) for photo in by_shape.get(item.shape, [])
    ]
    if not rows:
        raise InputError(
            f"{source / 'images'}: no photo of a shape that has views and a split; copy the dataset again"
        )
    points = _points_of(found)
    writer = PairWriter(folder, PairSizes(len(found), count, len(rows), points, px))
    kept_shapes, kept_queries = np.ones(len(found), bool), np.ones(len(rows), bool)
    parts: list[str] = [*LABELS, UNLABELLED]
    twins = {(p.shape, p.view): row for row, (_, p) in enumerate(rows) if not p.anomalous}
    row_of_shape = np.array([number for number, _ in rows])
    for number, item in enumerate(found):
        piece = f"shape-{number}"
        if not writer.done(piece):
            lost: dict[str, str] = {}
            try:
                writer.put(number, **_packed_views(item, points, px))
            except (_Damaged, InputError) as error:
                lost["views"] = f"{item.shape}: {error}"
            for row in np.flatnonzero(row_of_shape == number):
                photo = rows[row][1]
                try:
                    twin = twins.get((photo.shape, photo.view), -1) if photo.anomalous else -1
                    writer.put(int(row), query_shape=number, query_twin=twin)
                    writer.put(int(row), **_packed_photo(source, photo, px, parts))
                except (_Damaged, InputError) as error:
                    lost[str(row)] = f"{photo.path.name}: {error}"
            writer.mark(piece, json.dumps(lost))
        lost = json.loads(writer.note(piece))
        for key, reason in lost.items():
            skipped.append(reason)
            if key == "views":
                kept_shapes[number] = False
            else:
                kept_queries[int(key)] = False
        progress(title, number + 1, len(found))
    pairs = writer.finish(
        up="y",
        shapes=[item.shape for item in found],
        splits={
            split: [i for i, item in enumerate(found) if item.shape in splits[split]] for split in SPLITS
        },
        parts=parts,
        source={
            "made_by": f"splatad prepare {KIND}",
            "data": str(source),
            "licence": _licence(source),
            "skipped": skipped[:NAMED],
            "skipped_count": len(skipped),
        },
        keep_shapes=kept_shapes,
        keep_queries=kept_queries,
    )
    return BrokenChairs(folder, pairs, tuple(skipped), ())


# --- what there is -------------------------------------------------------------------------------------------------------


def _licence(source: Path) -> str:
    ours = source / "generator.json"
    return (
        "made by splatad generate chairs"
        if ours.is_file()
        else "BrokenChairs-180K: CC BY-NC-SA 4.0, shapes of PartNet/ShapeNet"
    )


def _read_splits(source: Path) -> dict[str, set[str]]:
    path = source / "split.json"
    if not path.is_file():
        raise InputError(
            f"{path}: is not there; give the folder with split.json, images, annotations and shapes (--data)"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        splits = {split: {str(value) for value in found[split]} for split in SPLITS}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path}: lists of shapes under train, val and test are wanted ({error!r}); copy it again"
        ) from error
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        both = splits[a] & splits[b]
        if both:
            raise InputError(f"{path}: shape {sorted(both)[0]} is in {a} and in {b}; copy it again")
    return splits


def _photos(source: Path) -> list[_Photo]:
    paths = sorted(
        p for p in (source / "images").glob("*/*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    if not paths:
        raise InputError(f"{source / 'images'}: no photos in images/*/; unpack images.zip there")
    found = []
    for path in paths:
        fields = path.stem.split("_")
        if fields[0] == "render":
            fields = fields[1:]
        if not fields or not fields[0]:
            continue
        stem = "_".join(fields)
        found.append(_Photo(path, stem, fields[0], "anomal" in path.name.lower(), tuple(fields[1:6])))
    return found


def _chosen(
    source: Path,
    splits: dict[str, set[str]],
    photos: list[_Photo],
    views: int | None,
    limit: int | None,
    skipped: list[str],
) -> list[_Views]:
    """Shapes with a split and enough views."""
    split_of = {shape: split for split in SPLITS for shape in splits[split]}
    pictured = {photo.shape for photo in photos}
    wanted = sorted(pictured & set(split_of), key=_natural)
    if limit is not None:
        if limit < 3:
            raise UsageError(f"--shapes: at least 3 are wanted (a shape of each split), got {limit}")
        taken: list[str] = []
        for split in SPLITS:
            members = [shape for shape in wanted if split_of[shape] == split]
            taken += members[: max(1, round(limit * len(members) / max(len(wanted), 1)))]
        wanted = sorted(taken, key=_natural)
    found = []
    for shape in wanted:
        folder = source / "shapes" / f"shape_{shape}" / "mv_images"
        stems = _view_stems(folder)
        if stems:
            found.append(_Views(shape, stems))
        else:
            skipped.append(f"{shape}: no views with picture, camera and record in {folder}")
    if not found:
        raise InputError(
            f"{source / 'shapes'}: no shape has both photos, a split and views; unpack shapes.zip there"
        )
    count = views or Counter(len(item.stems) for item in found).most_common(1)[0][0]
    if count < 1:
        raise UsageError(f"--views: at least 1 is wanted, got {views}")
    enough = []
    for item in found:
        if len(item.stems) < count:
            skipped.append(f"{item.shape}: {len(item.stems)} whole views of the {count} wanted")
            continue
        pick = np.floor((np.arange(count) + 0.5) * len(item.stems) / count).astype(int)
        enough.append(_Views(item.shape, tuple(item.stems[i] for i in pick)))
    if not enough:
        raise InputError(f"--views: no shape has {count} views; ask for fewer")
    return enough


def _natural(text: str) -> tuple[int, str]:
    return (int(text) if text.isdigit() else 1 << 60, text)


def _view_stems(folder: Path) -> tuple[Path, ...]:
    """Views with a picture, a camera and a record; of azimuths that are the same turn (0 and 360) the first."""
    found: dict[tuple[float, float, float, str], Path] = {}
    for picture in sorted(folder.glob("*.png")):
        stem = picture.with_name(picture.name[: -len(".png")])
        if not _beside(stem, ".json").is_file() or _record_path(stem) is None:
            continue
        numbers = _numbers(stem.name)
        if len(numbers) < 3:
            found[math.inf, math.inf, math.inf, stem.name] = stem
            continue
        distance, azimuth, elevation = numbers[-3:]
        key = (elevation, azimuth % 360.0, distance, "")
        if key not in found or azimuth < 360.0:
            found[key] = stem
    return tuple(found[key] for key in sorted(found))


def _numbers(name: str) -> list[float]:
    numbers = []
    for piece in name.split("_"):
        try:
            numbers.append(float(piece))
        except ValueError:
            numbers = []
    return numbers


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _record_path(stem: Path) -> Path | None:
    return next((p for p in (_beside(stem, ".npz"), _beside(stem, ".npy")) if p.is_file()), None)


def _points_of(found: list[_Views]) -> int:
    """Surface points of most of the first shapes' records."""
    counts: Counter[int] = Counter()
    for item in found[:20]:
        path = _record_path(item.stems[0])
        assert path is not None
        try:
            counts[len(read_record(path).pxy)] += 1
        except InputError:
            continue
    if not counts:
        raise InputError(
            f"{found[0].stems[0].parent}: none of the first view records can be read; copy the dataset again"
        )
    return counts.most_common(1)[0][0]


# --- views ---------------------------------------------------------------------------------------------------------------


def _packed_views(item: _Views, points: int, px: int) -> dict[str, np.ndarray]:
    """The rows of a shape. Raises: _Damaged, InputError."""
    cells = px // CELL_PX
    pictures, cameras, lenses, records, alphas = [], [], [], [], []
    for stem in item.stems:
        picture = _square(_on_white(_beside(stem, ".png")))
        world_to_cam, lens = _camera(_read_json(_beside(stem, ".json")), str(stem.name))
        path = _record_path(stem)
        if path is None:
            raise _Damaged(f"{stem.name}: its record is gone")
        record = read_record(path)
        if len(record.pxy) != points:
            raise _Damaged(f"{path.name}: {points} points are wanted, got {len(record.pxy)}")
        ratio = px / picture.shape[0]
        if ratio != 1.0:
            record = ViewRecord(
                (record.pxy * ratio).astype(np.int64),
                record.is_visible,
                record.xyz,
                record.alpha,
                record.exact,
            )
        grey = _resized(picture, px).mean(axis=-1)
        pictures.append(np.round(255 * grey).astype(np.uint8))
        cameras.append(world_to_cam)
        lenses.append(lens * np.array([[ratio], [ratio], [1.0]]))
        records.append(record)
        told = record.alpha
        whole = told is not None and told.shape == (cells, cells)
        alphas.append(told if told is not None and whole else cell_share(grey < WHITE))
    camera, lens = np.stack(cameras), np.stack(lenses)
    pxy = np.stack([record.pxy for record in records])
    visible = np.stack([record.is_visible for record in records])
    if all(record.exact and record.xyz.shape[0] == cells for record in records):
        xyz = np.stack([record.xyz for record in records])
    else:
        world = triangulated(pxy, visible, camera, lens)
        placed = np.isfinite(world).all(axis=1)
        xyz = np.full((len(records), cells, cells, 3), np.nan)
        for k, record in enumerate(records):
            candidates = np.concatenate([record.xyz.reshape(-1, 3), world[placed & visible[k]]])
            xyz[k] = cell_map(candidates[np.isfinite(candidates).all(axis=1)], camera[k], lens[k], px)
            at = _project(world[placed], camera[k], lens[k])
            pxy[k, placed] = np.floor(at[:, ::-1])
    return {
        "views": np.stack(pictures),
        "view_alpha": np.stack(alphas),
        "view_xyz": xyz.astype(np.float32),
        "view_camera": camera,
        "view_K": lens,
        "point_pxy": pxy.clip(-1, px).astype(np.int16),
        "point_visible": visible & (pxy >= 0).all(axis=-1) & (pxy < px).all(axis=-1),
    }


def triangulated(
    pxy: Int[np.ndarray, "views points 2"],
    visible: Bool[np.ndarray, "views points"],
    world_to_cam: Float[np.ndarray, "views 4 4"],
    lens: Float[np.ndarray, "views 3 3"],
) -> Float[np.ndarray, "points xyz=3"]:
    """World points nearest to the rays of the views that see them, NaN for points seen by fewer than two.

    `pxy` (row, column) is rounded, as released: the ray goes through the pixel's corner, up to half a pixel off.
    """
    total, offset = np.zeros((pxy.shape[1], 3, 3)), np.zeros((pxy.shape[1], 3))
    for k in range(len(pxy)):
        turn, shift = world_to_cam[k, :3, :3], world_to_cam[k, :3, 3]
        flat = (
            np.stack([pxy[k, :, 1], pxy[k, :, 0], np.ones(pxy.shape[1])], axis=1) @ np.linalg.inv(lens[k]).T
        )
        ray = flat @ turn
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
        across[~visible[k]] = 0.0
        total += across
        offset += across @ (-turn.T @ shift)
    found = np.full((pxy.shape[1], 3), np.nan)
    # The smallest eigenvalue says how far apart the rays' directions are: 0 for one ray.
    spread = np.linalg.eigvalsh(total)[:, 0]
    good = (visible.sum(axis=0) >= 2) & (spread > 0.01)
    found[good] = np.linalg.solve(total[good], offset[good][..., None])[..., 0]
    return found


def cell_map(
    candidates: Float[np.ndarray, "n xyz=3"],
    world_to_cam: Float[np.ndarray, "4 4"],
    lens: Float[np.ndarray, "3 3"],
    px: int,
) -> Float[np.ndarray, "cells cells xyz=3"]:
    """Of the world points that fall into each cell the one nearest to its middle; NaN where none does."""
    cells = px // CELL_PX
    at = _project(candidates, world_to_cam, lens)
    cell = np.floor(at / CELL_PX).astype(int)
    inside = ((cell >= 0) & (cell < cells)).all(axis=1)
    at, cell, points = at[inside], cell[inside], candidates[inside]
    away = np.linalg.norm(at - CELL_PX * (cell + 0.5), axis=1)
    found = np.full((cells, cells, 3), np.nan)
    for index in np.argsort(-away, kind="stable"):  # the nearest is written last
        found[cell[index, 1], cell[index, 0]] = points[index]
    return found


def _project(points: np.ndarray, world_to_cam: np.ndarray, lens: np.ndarray) -> Float[np.ndarray, "n uv=2"]:
    seen = (points @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]) @ lens.T
    return seen[:, :2] / seen[:, 2:]


def _camera(record: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV world to camera and K of a record with RT (OpenGL axes) and K. Raises: _Damaged."""
    try:
        pose, lens = np.asarray(record["RT"], np.float64), np.asarray(record["K"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise _Damaged(f"{where}: no camera RT (4 x 4) and K (3 x 3) in its record") from error
    if pose.shape == (3, 4):
        pose = np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])
    if (
        pose.shape != (4, 4)
        or lens.shape != (3, 3)
        or not (np.isfinite(pose).all() and np.isfinite(lens).all())
    ):
        raise _Damaged(f"{where}: no camera RT (4 x 4) and K (3 x 3) in its record")
    if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-3:
        raise _Damaged(f"{where}: its camera RT does not turn but distort")
    return np.diag([1.0, -1.0, -1.0, 1.0]) @ pose, lens


# --- photos --------------------------------------------------------------------------------------------------------------


def _packed_photo(source: Path, photo: _Photo, px: int, parts: list[str]) -> dict[str, Any]:
    """The row of a photo, less its shape and twin. Raises: _Damaged, InputError."""
    notes = source / "annotations" / photo.path.parent.name
    picture = _square(_on_white(photo.path))
    size = picture.shape[0]
    pixels = _resized(picture, px)
    info_path = notes / f"info_{photo.stem}.json"
    info = _read_json(info_path) if info_path.is_file() else None
    if info is None and photo.anomalous:
        raise _Damaged("its annotation is not there")
    segments = _mask(notes, photo.stem, ("seg", "seg_new", "segmentation", "seg_anomaly", "mask_seg"), px)
    alpha = segments if segments is not None else (pixels.mean(axis=-1) < QUERY_WHITE).astype(np.float32)
    changed = np.zeros((px, px), bool)
    box, kind, part = np.full(4, np.nan), 0, -1
    if photo.anomalous:
        kind = _kind(info, photo)
        exact = _mask(notes, photo.stem, ("change",), px)
        masks = [
            m for m in (_mask(notes, photo.stem, (f"mask_{k}",), px) for k in ("old", "new")) if m is not None
        ]
        if exact is None and not masks:
            raise _Damaged("neither of its masks is there")
        changed = exact > 0 if exact is not None else np.any([mask >= 0.5 for mask in masks], axis=0)
        if not changed.any():
            raise _Damaged("its masks are empty")
        box = _box(info, changed)
        part = _part(info, parts)
    camera, lens = np.full((4, 4), np.nan), np.full((3, 3), np.nan)
    stored = _find_camera(info)
    if stored is not None:
        try:
            camera, lens = _camera(stored, photo.path.name)
            lens = lens * np.array([[px / size], [px / size], [1.0]])
        except _Damaged:
            camera, lens = np.full((4, 4), np.nan), np.full((3, 3), np.nan)
    return {
        "queries": np.round(255 * pixels).astype(np.uint8),
        "query_alpha": cell_share(alpha),
        "query_label": int(photo.anomalous),
        "query_type": kind,
        "query_part": part,
        "query_box": box.astype(np.float32),
        "query_change": cell_share(changed),
        "query_change_mask": np.packbits(changed, axis=-1),
        "query_camera": camera,
        "query_K": lens,
    }


def _kind(info: Any, photo: _Photo) -> int:
    config = info.get("config") if isinstance(info, dict) else None
    told = config.get("type") if isinstance(config, dict) else None
    told = told or (info.get("type") if isinstance(info, dict) else None)
    if isinstance(told, str) and told.lower() in TYPE_NAMES:
        return TYPE_NAMES[told.lower()]
    for word, kind in TYPE_NAMES.items():
        if word in photo.stem.lower():
            return kind
    raise _Damaged(f"its type of anomaly {told!r} is none of {', '.join(TYPES[1:])}")


def _part(info: Any, parts: list[str]) -> int:
    config = info.get("config") if isinstance(info.get("config"), dict) else {}
    for told in (info.get("part"), info.get("part_name"), config.get("part"), config.get("part_name")):
        if isinstance(told, str):
            wanted = told.replace("_", "").replace(" ", "").lower()
            for index, label in enumerate(parts):
                if wanted.rstrip("s") == label.lower().rstrip("s"):
                    return index
    return parts.index(UNLABELLED)


def _box(info: Any, changed: Bool[np.ndarray, "px px"]) -> Float[np.ndarray, "cxcywh=4"]:
    told = info.get("2d_bbox", info.get("bbox"))
    try:
        x, y, width, height = (float(v) / BOX_PX for v in told)
        if (
            width > 0
            and height > 0
            and x >= -0.01
            and x + width <= 1.01
            and y >= -0.01
            and y + height <= 1.01
        ):
            return np.array([x + width / 2, y + height / 2, width, height])
    except (TypeError, ValueError):
        pass
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    px = len(changed)
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / px


def _find_camera(info: Any) -> Any:
    """The first dict within `info` that has RT and K."""
    if isinstance(info, dict):
        if "RT" in info and "K" in info:
            return info
        for value in info.values():
            found = _find_camera(value)
            if found is not None:
                return found
    return None


def _mask(folder: Path, stem: str, prefixes: tuple[str, ...], px: int) -> Float[np.ndarray, "px px"] | None:
    """Share in [0, 1] of a mask picture with one of these names; None where there is none."""
    for prefix in prefixes:
        path = folder / f"{prefix}_{stem}.png"
        if path.is_file():
            image = read_image(path).rgb.numpy().max(axis=-1)
            return _resized(_square(image[..., None].repeat(3, axis=-1), 0.0), px)[..., 0]
    return None


def _on_white(path: Path) -> Float[np.ndarray, "height width rgb=3"]:
    image = read_image(path)
    rgb = image.rgb.numpy()
    if image.alpha is None:
        return rgb
    alpha = image.alpha.numpy()[..., None]
    return rgb * alpha + (1 - alpha)  # type: ignore[no-any-return]


def _square(
    image: Float[np.ndarray, "height width rgb=3"], fill: float = 1.0
) -> Float[np.ndarray, "size size rgb=3"]:
    """Padded to a square, centred."""
    height, width = image.shape[:2]
    size = max(height, width)
    if height == width:
        return image
    square = np.full((size, size, 3), fill, np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _resized(image: Float[np.ndarray, "size size rgb=3"], px: int) -> Float[np.ndarray, "px px rgb=3"]:
    if image.shape[0] == px:
        return image
    if image.shape[0] % px == 0:
        k = image.shape[0] // px
        return image.reshape(px, k, px, k, 3).mean(axis=(1, 3))
    channels = [
        np.asarray(Image.fromarray(image[..., c]).resize((px, px), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).clip(0, 1)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _Damaged(f"{path.name}: cannot be read as JSON") from error
