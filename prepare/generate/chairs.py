"""Sets of procedural chairs with and without an anomaly: BrokenChairs' folders, and the packed arrays of `prepare.shape_pairs`.

Half of a shape's photos have an anomaly; the others are their twins: the unmodified shape under the same camera, material and
light. Everything about a shape depends on the settings and its own number alone, so that a stopped run is taken up where it
stood and the number of workers changes nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from prepare.atomic_write import write_json, write_text, write_with
from prepare.camera import Camera, look_at
from prepare.errors import InputError, UsageError
from prepare.generate.chair_anomalies import (
    CHECK_PX,
    KINDS,
    Change,
    Clouds,
    Kind,
    clouds_of,
    compare,
    is_seen,
    propose,
)
from prepare.generate.chair_materials import LIGHT_SETUPS, lighting, make_texture
from prepare.generate.chair_mesh import chair_triangles, obj_text
from prepare.generate.chair_parts import LABELS, Chair, Solid, rotation_about
from prepare.generate.chair_render import (
    GreyView,
    Hits,
    Photo,
    cast,
    cast_points,
    grey_view,
    photograph,
)
from prepare.generate.chair_shapes import make_chair
from prepare.generate.made_folder import check_name, check_ranges, claim_folder, make_all
from prepare.generate.raycast import ray_slopes
from prepare.shape_pairs import PACK, SPLITS, TYPES, PairSizes, PairWriter, ShapePairs, cell_share

PACKED = "packed"
GENERATOR_VERSION = 1  # raised whenever the same settings give other pictures
FOCAL = 355.0 / 256.0  # of the picture's width: BrokenChairs' lens for views
VIEW_DISTANCE = 3.0
PHOTO_DISTANCE = (2.8, 3.15)
PHOTO_ELEVATION_DEG = (0.0, 55.0)
OFF_CENTRE = 0.03  # world units by which a photo's camera looks beside the middle
RINGS_DEG = (-20.0, 10.0, 35.0, 60.0)
SHARES = {"train": 0.775, "val": 0.076, "test": 0.149}  # BrokenChairs'
LEAST_CONTRAST = 0.06  # of a channel, in [0, 1], between photo and twin
CONTRAST_SHARE = 0.35  # of the changed pixels that must differ so much
TRIES = 240  # proposals for one photo
TRIES_A_CAMERA = 8
POSE_ERROR_DEG, POSE_SHIFT = 0.3, 0.003  # of an aided render's camera: turn, shift in units of the distance


@dataclass(frozen=True)
class ChairSettings:
    """All that decides the pictures."""

    seed: int = 0
    shapes: int = 500
    photos_per_shape: int = 20  # an even number: half anomalous, half their twins
    views: int = 20  # reference views a shape
    px: int = 256  # width and height of every picture
    points: int = 2000  # surface points a shape
    supersample: int = 2  # rays per pixel along each axis
    aided: bool = True  # renders of the unmodified shape from near each photo's camera
    files: bool = True  # BrokenChairs' folders beside the packed arrays


@dataclass(frozen=True)
class Generated:
    """What `generate_chairs` left on disk."""

    folder: Path
    pairs: ShapePairs
    written: int  # shapes made by this call
    kept: int  # shapes that were there already
    tries: Counter[str]  # proposals by outcome: accepted, empty (nothing sensible), unseen, faint


def generate_chairs(
    out: Path,
    name: str,
    settings: ChairSettings,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Write the set `out`/`name`, its arrays in `out`/`name`/packed. `workers` 0: one per processor.

    `on_progress` gets the number of shapes done and of all. With more than one worker the caller's script needs the usual
    `if __name__ == "__main__"` guard.

    Raises: UsageError for settings out of range, a folder that something else made, or one made with other settings;
    InputError where the disk refuses.
    """
    check(name, settings, workers)
    folder = out / name
    claim(folder, name, settings)
    report = on_progress or (lambda _done, _all: None)
    if (folder / PACKED / PACK).is_file():
        report(settings.shapes, settings.shapes)
        pairs = ShapePairs.open(folder / PACKED)
        return Generated(folder, pairs, 0, settings.shapes, Counter(pairs.source["tries"]))
    writer = PairWriter(folder / PACKED, pair_sizes(settings))
    waiting = [number for number in range(settings.shapes) if not writer.done(_piece(number))]
    done = settings.shapes - len(waiting)
    report(done, settings.shapes)
    for _ in make_all(partial(_make_shape, folder, settings), waiting, workers):
        done += 1
        report(done, settings.shapes)
    notes = [json.loads(writer.note(_piece(number))) for number in range(settings.shapes)]
    tries = sum((Counter(note["tries"]) for note in notes), Counter())
    splits = shape_splits(settings)
    ids = [shape_id(number) for number in range(settings.shapes)]
    if settings.files:
        named = {split: [ids[i] for i in numbers] for split, numbers in splits.items()}
        write_json(folder / "split.json", named)
    source = {
        "made_by": "splatad generate chairs",
        "generator_version": GENERATOR_VERSION,
        **asdict(settings),
        "licence": "made by a program; Apache-2.0 as the program",
        "families": [note["family"] for note in notes],
        "tries": dict(tries),
        "box": "around the pixels that differ in geometry from the unmodified shape",
    }
    pairs = writer.finish(up="y", shapes=ids, splits=splits, parts=LABELS, source=source)
    return Generated(folder, pairs, len(waiting), settings.shapes - len(waiting), tries)


def pair_sizes(settings: ChairSettings) -> PairSizes:
    return PairSizes(
        settings.shapes,
        settings.views,
        settings.shapes * settings.photos_per_shape,
        settings.points,
        settings.px,
        settings.aided,
    )


def shape_id(number: int) -> str:
    return str(100_000 + number)


def shape_splits(settings: ChairSettings) -> dict[str, list[int]]:
    """Numbers of the shapes of each split, no shape in two."""
    order = np.random.default_rng([settings.seed, 21]).permutation(settings.shapes)
    ends = np.round(np.cumsum([SHARES[split] for split in SPLITS]) * settings.shapes).astype(int)
    starts = (0, *ends[:-1])
    found: dict[str, list[int]] = {}
    for split, start, end in zip(
        ("train", "val", "test"), starts, (*ends[:-1], settings.shapes), strict=True
    ):
        found[split] = sorted(int(i) for i in order[start:end])  # type: ignore[index]
    return found


def view_cameras(settings: ChairSettings) -> list[tuple[float, float, Camera]]:
    """Azimuth, elevation (degrees) and camera of the reference views: rings from below to above, turned against each other."""
    count = settings.views
    rings = RINGS_DEG if count >= 2 * len(RINGS_DEG) else (RINGS_DEG[2],) if count < 4 else RINGS_DEG[1:3]
    weight = np.cos(np.deg2rad(rings)) + 0.1 * (np.asarray(rings) == RINGS_DEG[2])
    marks = np.round(np.cumsum(weight) / weight.sum() * count).astype(int)
    cameras = []
    for ring, (elevation, on_ring) in enumerate(zip(rings, np.diff(marks, prepend=0), strict=True)):
        for step in range(on_ring):
            azimuth = round((23.0 + 31.0 * ring + 360.0 * step / on_ring) % 360.0, 2)
            cameras.append((azimuth, elevation, camera_at(settings.px, azimuth, elevation, VIEW_DISTANCE)))
    return cameras


def camera_at(
    px: int, azimuth_deg: float, elevation_deg: float, distance: float, target: np.ndarray | None = None
) -> Camera:
    """BrokenChairs' camera: at distance (cos e cos a, sin e, cos e sin a) from the origin."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    position = torch.tensor(
        [math.cos(e) * math.cos(a), math.sin(e), math.cos(e) * math.sin(a)], dtype=torch.float64
    )
    towards = torch.zeros(3, dtype=torch.float64) if target is None else torch.from_numpy(target)
    pose = look_at(distance * position, towards, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    return Camera(pose, FOCAL * px, FOCAL * px, 0.5 * px, 0.5 * px, px, px)


def near_camera(camera: Camera, rng: np.random.Generator) -> Camera:
    """A camera off the true one by what an estimate of the pose is off."""
    turn = np.eye(4)
    angles = rng.normal(0, math.radians(POSE_ERROR_DEG), 3) / math.sqrt(3)
    turn[:3, :3] = rotation_about(angles, float(np.linalg.norm(angles)))
    pose = camera.world_to_cam.numpy() @ turn
    distance = float(np.linalg.norm(pose[:3, 3]))
    pose[:3, 3] += rng.normal(0, POSE_SHIFT * distance, 3) / math.sqrt(3)
    return camera.moved(torch.from_numpy(pose))


def cell_points(
    solids: list[Solid], camera: Camera, hits: Hits, supersample: int, cell: int = 8
) -> Float[np.ndarray, "rows columns xyz=3"]:
    """World surface point at each cell's middle, else at its sub-pixel nearest to the middle, NaN where it shows nothing."""
    coarse = camera.resized(camera.width // cell, camera.height // cell)
    middle = cast(solids, coarse)
    x, y = ray_slopes(coarse, 1)
    slope = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).astype(np.float64)
    depth = middle.depth.astype(np.float64)
    block = cell * supersample
    rows, columns = middle.depth.shape
    fine = hits.depth.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(rows, columns, -1)
    away = (np.arange(block) + 0.5 - 0.5 * block) ** 2
    order = np.argsort((away[:, None] + away[None, :]).ravel(), kind="stable")
    hit = np.isfinite(fine[..., order])
    chosen = order[hit.argmax(axis=-1)]
    instead = ~np.isfinite(depth) & hit.any(axis=-1)
    fine_x, fine_y = ray_slopes(camera, supersample)
    r, c = np.nonzero(instead)
    within = chosen[r, c]
    depth[r, c] = fine[r, c, within]
    slope[r, c, 0] = fine_x[c * block + within % block]
    slope[r, c, 1] = fine_y[r * block + within // block]
    seen = np.isfinite(depth)
    found = np.full((rows, columns, 3), np.nan, np.float32)
    pose = camera.world_to_cam.double().numpy()
    in_camera = np.concatenate([slope[seen], np.ones((int(seen.sum()), 1))], axis=1) * depth[seen][:, None]
    found[seen] = (in_camera - pose[:3, 3]) @ pose[:3, :3]
    return found


@dataclass(frozen=True)
class _View:
    """A grey view as it is packed."""

    azimuth: float
    elevation: float
    camera: Camera
    pixels: UInt8[np.ndarray, "px px"]
    alpha: UInt8[np.ndarray, "cells cells"]
    xyz: Float[np.ndarray, "cells cells 3"]


@dataclass(frozen=True)
class _Query:
    """A photo with all that is known of it."""

    kind: Kind | None  # None: normal
    component: int
    stem: str  # shape, texture, radius, azimuth, elevation, light, suffix
    camera: Camera
    pixels: UInt8[np.ndarray, "px px 3"]
    alpha: UInt8[np.ndarray, "px px"]
    changed: Bool[np.ndarray, "px px"]
    old: Bool[np.ndarray, "px px"]
    new: Bool[np.ndarray, "px px"]


@lru_cache(maxsize=48)
def _chair(seed: int, number: int) -> Chair:
    return make_chair(seed, number)


def _make_shape(folder: Path, settings: ChairSettings, number: int) -> int:
    """Render one shape with its photos into the packed arrays and, where wanted, the folders."""
    chair = _chair(settings.seed, number)
    writer = _writer(folder, settings)
    views, raw = [], []
    for azimuth, elevation, camera in view_cameras(settings):
        grey = grey_view(chair, camera, settings.supersample)
        raw.append(grey)
        views.append(_as_view(chair, azimuth, elevation, camera, grey, settings.supersample))
    pxy, visible = _surface_points(chair, views, raw, settings, number)
    del raw
    writer.put(
        number,
        views=np.stack([view.pixels for view in views]),
        view_alpha=np.stack([view.alpha for view in views]),
        view_xyz=np.stack([view.xyz for view in views]),
        view_camera=np.stack([view.camera.world_to_cam.numpy() for view in views]),
        view_K=np.stack([view.camera.intrinsics.numpy() for view in views]),
        point_pxy=pxy,
        point_visible=visible,
    )
    tries: Counter[str] = Counter()
    clouds = clouds_of(chair)
    for pair in range(settings.photos_per_shape // 2):
        bad, good = make_pair(chair, clouds, settings, number, pair, tries)
        row = number * settings.photos_per_shape + 2 * pair
        _put_query(writer, chair, settings, row, number, bad, row + 1, pair)
        _put_query(writer, chair, settings, row + 1, number, good, -1, pair)
        if settings.files:
            _write_photo(folder, number, bad, chair)
            _write_photo(folder, number, good, chair)
    if settings.files:
        _write_views(folder, number, chair, views, pxy, visible)
    writer.mark(_piece(number), json.dumps({"family": chair.family, "tries": dict(tries)}))
    return number


def make_pair(
    chair: Chair,
    clouds: Clouds,
    settings: ChairSettings,
    number: int,
    pair: int,
    tries: Counter[str],
) -> tuple[_Query, _Query]:
    """A photo with an anomaly that shows, and its twin; `tries` counts the proposals by outcome.

    Raises: InputError where no proposal shows at this size.
    """
    rng = np.random.default_rng([settings.seed, number, pair, 3])
    texture_id = number * (settings.photos_per_shape // 2) + pair
    texture = make_texture(np.random.default_rng([settings.seed, texture_id, 5]))
    light_index = int(rng.integers(LIGHT_SETUPS))
    light, exposure = lighting(light_index), float(rng.uniform(0.85, 1.15))
    first = (number + pair) % len(KINDS)
    ss, px = settings.supersample, settings.px

    def donor() -> Chair:
        return _chair(settings.seed, int(rng.integers(max(settings.shapes, 40))))

    good: Photo | None = None
    for attempt in range(TRIES):
        kind = KINDS[(first + attempt // 60) % len(KINDS)]
        if attempt % TRIES_A_CAMERA == 0:
            azimuth = round(float(rng.uniform(0, 360)), 1)
            elevation = round(float(rng.uniform(*PHOTO_ELEVATION_DEG)), 1)
            radius = round(float(rng.uniform(*PHOTO_DISTANCE)), 2)
            target = rng.uniform(-OFF_CENTRE, OFF_CENTRE, 3)
            camera = camera_at(px, azimuth, elevation, radius, target)
            check_camera = camera.resized(CHECK_PX, CHECK_PX)
            check_hits = cast(chair.solids(), check_camera)
            good = None
        proposal = propose(kind, chair, clouds, donor, rng)
        if proposal is None:
            tries["empty"] += 1
            continue
        if not is_seen(kind, chair, check_hits, proposal, check_camera):
            tries["unseen"] += 1
            continue
        if good is None:
            good = photograph(chair, camera, texture, light, exposure, ss)
        bad = photograph(proposal.chair, camera, texture, light, exposure, ss)
        change = _per_pixel(compare(chair, good.hits, proposal.chair, bad.hits, proposal.component), ss)
        differs = np.abs(bad.rgb - good.rgb).max(axis=-1) > LEAST_CONTRAST
        if (differs & change.changed).sum() < CONTRAST_SHARE * change.changed.sum():
            tries["faint"] += 1
            continue
        tries["accepted"] += 1
        stem = f"{shape_id(number)}_{texture_id}_{radius}_{azimuth}_{elevation}_{light_index}"
        return (
            _Query(
                kind, proposal.component, f"{stem}_{kind}_anomaly", camera, _bytes(bad.rgb), _bytes(bad.alpha),
                change.changed, change.old, change.new,
            ),
            _Query(
                None, -1, f"{stem}_normal", camera, _bytes(good.rgb), _bytes(good.alpha),
                *(np.zeros((px, px), bool) for _ in range(3)),
            ),
        )  # fmt: skip
    raise InputError(
        f"shape {number} ({chair.family}): no anomaly shows in {TRIES} tries at {px} px; try a larger --px or another --seed"
    )


def _put_query(
    writer: PairWriter,
    chair: Chair,
    settings: ChairSettings,
    row: int,
    number: int,
    query: _Query,
    twin: int,
    pair: int,
) -> None:
    anomalous = query.kind is not None
    part = LABELS.index(chair.components[query.component].label) if anomalous else -1
    writer.put(
        row,
        queries=query.pixels,
        query_alpha=cell_share(query.alpha / np.float32(255)),
        query_shape=number,
        query_label=int(anomalous),
        query_type=TYPES.index(query.kind or "none"),
        query_part=part,
        query_box=normalised_box(query.changed),
        query_change=cell_share(query.changed),
        query_change_mask=np.packbits(query.changed, axis=-1),
        query_twin=twin,
        query_camera=query.camera.world_to_cam.numpy(),
        query_K=query.camera.intrinsics.numpy(),
    )
    if settings.aided:
        rng = np.random.default_rng([settings.seed, number, pair, int(anomalous), 9])
        camera = near_camera(query.camera, rng)
        grey = grey_view(chair, camera, settings.supersample)
        view = _as_view(chair, 0.0, 0.0, camera, grey, settings.supersample)
        writer.put(
            row,
            aided=view.pixels,
            aided_alpha=view.alpha,
            aided_xyz=view.xyz,
            aided_camera=camera.world_to_cam.numpy(),
        )


def normalised_box(mask: Bool[np.ndarray, "rows columns"]) -> Float[np.ndarray, "cxcywh=4"]:
    """The box around a mask's pixels as centre and size in [0, 1]; NaN for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return np.full(4, np.nan, np.float32)
    height, width = mask.shape
    left, right = columns[0] / width, (columns[-1] + 1) / width
    top, bottom = rows[0] / height, (rows[-1] + 1) / height
    return np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], np.float32)


def _as_view(
    chair: Chair, azimuth: float, elevation: float, camera: Camera, grey: GreyView, supersample: int
) -> _View:
    xyz = cell_points(chair.solids(), camera, grey.hits, supersample)
    return _View(azimuth, elevation, camera, _bytes(grey.grey), cell_share(grey.alpha), xyz)


def _surface_points(
    chair: Chair, views: list[_View], raw: list[GreyView], settings: ChairSettings, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where points that some view sees are in every view, (row, column) by floor, and whether they are seen there."""
    rng = np.random.default_rng([settings.seed, number, 13])
    share = max(1, 3 * settings.points // len(views))
    points, weights = [], []
    for grey in raw:
        here = grey.surface
        chosen = rng.integers(len(here.points), size=share)
        # A pixel covers depth^2 / cosine of surface.
        depth = grey.hits.depth[here.rows[chosen], here.columns[chosen]]
        cosine = np.einsum("ij,ij->i", here.normals[chosen], here.to_eye[chosen]).clip(0.1, 1.0)
        points.append(here.points[chosen])
        weights.append(depth**2 / cosine)
    pool, weight = np.concatenate(points), np.concatenate(weights).astype(np.float64)
    index = rng.choice(
        len(pool), settings.points, p=weight / weight.sum(), replace=len(pool) < settings.points
    )
    world = pool[index].astype(np.float64)
    solids = chair.solids()
    pxy = np.zeros((len(views), settings.points, 2), np.int16)
    visible = np.zeros((len(views), settings.points), bool)
    for k, view in enumerate(views):
        u, v, _ = view.camera.project(torch.from_numpy(world)).numpy().T
        pxy[k] = np.stack([np.floor(v), np.floor(u)], axis=1).clip(-1, settings.px)
        inside = (pxy[k] >= 0).all(axis=1) & (pxy[k] < settings.px).all(axis=1)
        origin = view.camera.centre.numpy()
        visible[k] = inside & (cast_points(solids, origin, world) > 1 - 1e-3)
    return pxy, visible


def _per_pixel(change: Change, supersample: int) -> Change:
    """True where some ray of a pixel is."""

    def blocks(mask: np.ndarray) -> np.ndarray:
        cells = [mask[i::supersample, j::supersample] for i in range(supersample) for j in range(supersample)]
        return np.logical_or.reduce(cells)

    return Change(blocks(change.changed), blocks(change.old), blocks(change.new))


# --- BrokenChairs' folders -----------------------------------------------------------------------------------------------


def _write_photo(folder: Path, number: int, query: _Query, chair: Chair) -> None:
    """images/SHAPE/render_*.png, and annotations/SHAPE/{info,seg,mask_old,mask_new,change}_*."""
    name = f"shape_{shape_id(number)}"
    notes = folder / "annotations" / name
    info: dict[str, Any] = {
        "shape_id": shape_id(number),
        "texture_id": query.stem.split("_")[1],
        "config": {"type": query.kind or "none"},
        "camera": {**_opengl(query.camera)},
    }
    if query.kind is not None:
        box = normalised_box(query.changed).astype(np.float64) * 512
        info["2d_bbox"] = [box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]]
        union = (query.old | query.new).sum()
        info["iou"] = float((query.old & query.new).sum() / max(union, 1))
        info["part"] = chair.components[query.component].label
        for kind, mask in (("old", query.old), ("new", query.new)):
            if mask.any():
                write_png(notes / f"mask_{kind}_{query.stem}.png", mask.astype(np.uint8) * 255)
        write_png(notes / f"change_{query.stem}.png", query.changed.astype(np.uint8) * 255)
    write_png(notes / f"seg_{query.stem}.png", query.alpha)
    write_json(notes / f"info_{query.stem}.json", info)
    write_png(folder / "images" / name / f"render_{query.stem}.png", query.pixels)


def _write_views(
    folder: Path, number: int, chair: Chair, views: list[_View], pxy: np.ndarray, visible: np.ndarray
) -> None:
    """shapes/shape_ID/mv_images/ID_DISTANCE_AZIMUTH_ELEVATION.{png,json,npz}, and shapes/shape_ID/model.obj."""
    target = folder / "shapes" / f"shape_{shape_id(number)}"
    for k, view in enumerate(views):
        stem = target / "mv_images" / f"{shape_id(number)}_{VIEW_DISTANCE}_{view.azimuth}_{view.elevation}"
        record = {
            "pxy": pxy[k], "is_visible": visible[k], "xyz": view.xyz, "alpha": view.alpha, "exact": np.array(True),
        }  # fmt: skip

        def save(path: Path, record: dict[str, np.ndarray] = record) -> None:
            np.savez_compressed(path, **record)  # type: ignore[arg-type]

        write_with(stem.with_name(stem.name + ".npz"), save)
        write_json(stem.with_name(stem.name + ".json"), _opengl(view.camera))
        write_png(stem.with_name(stem.name + ".png"), view.pixels)
    write_text(target / "model.obj", obj_text(*chair_triangles(chair)))
    write_text(target / "model_id.txt", f"{chair.family}\n")


def _opengl(camera: Camera) -> dict[str, Any]:
    """BrokenChairs' camera record: K, RT (world to camera, OpenGL axes) and RT_ (its inverse)."""
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    world_to_cam = flip @ camera.world_to_cam.numpy()
    return {
        "K": camera.intrinsics.numpy().tolist(),
        "RT": world_to_cam.tolist(),
        "RT_": np.linalg.inv(world_to_cam).tolist(),
    }


def write_png(path: Path, pixels: UInt8[np.ndarray, "height width *rgb"]) -> None:
    write_with(
        path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)
    )


def _bytes(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


# --- workers, claims, checks ---------------------------------------------------------------------------------------------


def _piece(number: int) -> str:
    return f"shape-{number}"


@lru_cache(maxsize=2)
def _writer(folder: Path, settings: ChairSettings) -> PairWriter:
    return PairWriter(folder / PACKED, pair_sizes(settings))


def claim(folder: Path, name: str, settings: ChairSettings) -> None:
    """Mark `folder` as ours with these settings, or see that it is.

    Raises: UsageError where it is not.
    """
    wanted = {"kind": "chairs", "generator_version": GENERATOR_VERSION, "name": name, **asdict(settings)}
    claim_folder(folder, "splatad generate chairs", wanted)


def check(name: str, settings: ChairSettings, workers: int) -> None:
    """Raises: UsageError for a value out of its range."""
    check_name(name)
    ranges = {
        "seed": (0, 2**31 - 1), "shapes": (1, 100_000), "photos_per_shape": (2, 1000), "views": (1, 200),
        "px": (64, 1024), "points": (32, 100_000), "supersample": (1, 4),
    }  # fmt: skip
    check_ranges(settings, ranges)
    if settings.photos_per_shape % 2:
        raise UsageError(
            f"--photos-per-shape: an even number is wanted, got {settings.photos_per_shape}: every photo with an anomaly"
            " has a twin without; add one"
        )
    if settings.px % 32:
        raise UsageError(f"--px: a multiple of 32 is wanted, got {settings.px}; choose 256")
    if workers < 0:
        raise UsageError(f"--workers: 0 (one per processor) or more is wanted, got {workers}")
