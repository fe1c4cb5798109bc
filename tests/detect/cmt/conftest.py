"""A small pack of chairs of boxes, drawn as dense points with a depth buffer: every array of the format, and its truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

CELL = 8
DISTANCE = 3.0


@dataclass
class Solid:
    points: np.ndarray
    normals: np.ndarray
    part: np.ndarray


def chair(rng: np.random.Generator) -> list[np.ndarray]:
    """Boxes (centre, half sides) of a chair with a seat, a back and four legs; no two alike, none symmetric."""
    w, d, h = rng.uniform(0.3, 0.5, 3)
    seat = rng.uniform(-0.1, 0.15)
    leg = rng.uniform(0.04, 0.08)
    boxes = [
        np.array([[0, 0, seat], [w, d, 0.05]]),
        np.array([[-w + 0.05, 0, seat + h], [0.05, d * rng.uniform(0.5, 1), h]]),
    ]
    for x in (-1, 1):
        for y in (-1, 1):
            boxes.append(
                np.array([[x * (w - leg), y * (d - leg), (seat - 0.8) / 2], [leg, leg, (seat + 0.8) / 2]])
            )
    boxes.append(np.array([[0.1, d * rng.choice([-1, 1]), seat + 0.2], [w * 0.6, 0.04, 0.05]]))  # one arm
    return boxes


def surface(boxes: list[np.ndarray], step: float) -> Solid:
    points, normals, part = [], [], []
    for number, (centre, half) in enumerate(boxes):
        for axis in range(3):
            a, b = [i for i in range(3) if i != axis]
            u = np.arange(-half[a], half[a] + step, step).clip(max=half[a])
            v = np.arange(-half[b], half[b] + step, step).clip(max=half[b])
            grid = np.stack(np.meshgrid(u, v, indexing="ij"), axis=-1).reshape(-1, 2)
            for side in (-1.0, 1.0):
                face = np.zeros((len(grid), 3))
                face[:, [a, b]] = grid
                face[:, axis] = side * half[axis]
                normal = np.zeros_like(face)
                normal[:, axis] = side
                points.append(face + centre)
                normals.append(normal)
                part.append(np.full(len(face), number))
    return Solid(np.concatenate(points), np.concatenate(normals), np.concatenate(part))


def camera(azimuth: float, elevation: float) -> np.ndarray:
    place = DISTANCE * np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    forward = -place / DISTANCE
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, -turn @ place
    return pose


@dataclass
class Seen:
    grey: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    part: np.ndarray
    pixel: np.ndarray  # of every point
    visible: np.ndarray


def draw(solid: Solid, pose: np.ndarray, K: np.ndarray, px: int) -> Seen:
    in_cam = solid.points @ pose[:3, :3].T + pose[:3, 3]
    uv = in_cam @ K.T
    uv = uv[:, :2] / uv[:, 2:]
    pixel = np.floor(uv).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < px)).all(axis=1)
    flat = np.where(inside, pixel[:, 1] * px + pixel[:, 0], 0)
    depth = np.full(px * px, np.inf)
    np.minimum.at(depth, flat[inside], in_cam[inside, 2])
    front = inside & (in_cam[:, 2] <= depth[flat] + 1e-12)
    grey, part = np.ones(px * px), np.full(px * px, -1)
    facing = np.abs(solid.normals @ pose[2, :3])
    grey[flat[front]] = 0.2 + 0.5 * facing[front] + 0.15 * solid.normals[front, 2]
    part[flat[front]] = solid.part[front]
    visible = inside & (in_cam[:, 2] <= depth[flat] + 0.05)
    return Seen(
        grey.reshape(px, px), np.isfinite(depth).reshape(px, px), depth.reshape(px, px), part.reshape(px, px),
        pixel[:, ::-1], visible,
    )  # fmt: skip


def cells_of(seen: Seen, pose: np.ndarray, K: np.ndarray, px: int) -> tuple[np.ndarray, np.ndarray]:
    cells = px // CELL
    alpha = seen.mask.reshape(cells, CELL, cells, CELL).mean(axis=(1, 3))
    xyz = np.full((cells, cells, 3), np.nan, dtype=np.float32)
    for row, column in np.argwhere(alpha > 0):
        rows, columns = np.nonzero(
            seen.mask[row * CELL : row * CELL + CELL, column * CELL : column * CELL + CELL]
        )
        near = ((rows + 0.5 - CELL / 2) ** 2 + (columns + 0.5 - CELL / 2) ** 2).argmin()
        v, u = row * CELL + rows[near], column * CELL + columns[near]
        z = seen.depth[v, u]
        in_cam = np.linalg.inv(K) @ np.array([u + 0.5, v + 0.5, 1.0]) * z
        xyz[row, column] = pose[:3, :3].T @ (in_cam - pose[:3, 3])
    return (alpha * 255).round().astype(np.uint8), xyz


def make_pack(
    folder: Path,
    shapes: int = 6,
    views: int = 4,
    photos: int = 4,
    px: int = 64,
    seed: int = 0,
    step: float = 0.012,
) -> Path:
    """Each photo of a defect is followed by its twin; two thirds of the shapes train, the rest validate and test."""
    rng = np.random.default_rng(seed)
    cells, points = px // CELL, 500
    K = np.array([[355 * px / 256, 0, px / 2], [0, 355 * px / 256, px / 2], [0, 0, 1]])
    a: dict[str, list[np.ndarray]] = {}

    def add(name: str, value: object) -> None:
        a.setdefault(name, []).append(np.asarray(value))

    types = ["none", "position", "rotation", "broken", "swapped", "missing"]
    photo = 0
    for shape in range(shapes):
        boxes = chair(rng)
        solid = surface(boxes, step)
        sample = rng.choice(len(solid.points), points, replace=False)
        record: dict[str, list[np.ndarray]] = {
            n: [] for n in ("views", "alpha", "xyz", "camera", "pxy", "visible")
        }
        for view in range(views):
            pose = camera(2 * math.pi * view / views + 0.1, 0.35)
            seen = draw(solid, pose, K, px)
            alpha, xyz = cells_of(seen, pose, K, px)
            for name, value in zip(
                record,
                (
                    (seen.grey * 255).astype(np.uint8),
                    alpha,
                    xyz,
                    pose,
                    seen.pixel[sample],
                    seen.visible[sample],
                ),
                strict=True,
            ):
                record[name].append(value)
        add("views", record["views"])
        add("view_alpha", record["alpha"])
        add("view_xyz", record["xyz"])
        add("view_camera", record["camera"])
        add("view_K", [K] * views)
        add("point_pxy", np.array(record["pxy"]).clip(-1, px).astype(np.int16))
        add("point_visible", record["visible"])
        for _ in range(photos // 2):
            kind = 5 if rng.integers(2) else 1  # missing, or moved
            part = int(rng.integers(1, len(boxes)))
            changed = [box.copy() for box in boxes]
            if kind == 1:
                changed[part][0] += rng.choice([-1, 1], 3) * rng.uniform(0.1, 0.2, 3)
            else:
                del changed[part]
            azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.6)
            pose = camera(azimuth, elevation)
            good, bad = draw(solid, pose, K, px), draw(surface(changed, step), pose, K, px)
            old = good.part == part
            new = bad.part == part if kind == 1 else np.zeros_like(old)
            change = (old | new) & (
                np.abs(np.nan_to_num(good.depth - bad.depth, nan=0.0, posinf=9, neginf=9)) > 0.01
            )
            near = camera(azimuth + rng.normal() * 0.004, elevation + rng.normal() * 0.004)
            aiding = draw(solid, near, K, px)
            aid_alpha, aid_xyz = cells_of(aiding, near, K, px)
            tint = rng.uniform(0.5, 1.0, 3)
            for label, seen in ((1, bad), (0, good)):
                rgb = np.where(seen.mask[..., None], seen.grey[..., None] * tint, 1.0)
                add("queries", (rgb * 255).astype(np.uint8))
                add("query_alpha", cells_of(seen, pose, K, px)[0])
                add("query_shape", np.int32(shape))
                add("query_label", np.uint8(label))
                add("query_type", np.uint8(kind * label))
                add("query_part", np.int16(part if label else -1))
                rows, columns = np.nonzero(change)
                box = np.full(4, np.nan)
                if label and len(rows):
                    low, high = (
                        np.array([columns.min(), rows.min()]),
                        np.array([columns.max(), rows.max()]) + 1,
                    )
                    box = np.concatenate([(low + high) / 2, high - low]) / px
                add("query_box", box.astype(np.float32))
                mask = change if label else np.zeros_like(change)
                add(
                    "query_change",
                    (mask.reshape(cells, CELL, cells, CELL).mean(axis=(1, 3)) * 255).round().astype(np.uint8),
                )
                add("query_change_mask", np.packbits(mask, axis=1))
                add("query_twin", np.int32(photo + 1 if label else -1))
                add("query_camera", pose)
                add("query_K", K)
                add("aided", (aiding.grey * 255).astype(np.uint8))
                add("aided_alpha", aid_alpha)
                add("aided_xyz", aid_xyz)
                add("aided_camera", near)
                photo += 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in a.items():
        np.save(folder / f"{name}.npy", np.stack(values))
    train, val = max(1, shapes * 2 // 3), max(1, shapes // 6)
    order = list(range(shapes))
    about = {
        "format": 1, "px": px, "cells": cells, "views": views, "points": points, "up": "z",
        "shapes": [f"box{n}" for n in order],
        "splits": {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]},
        "types": types, "parts": ["seat", "back", "leg1", "leg2", "leg3", "leg4", "arm"],
        "source": {"made_by": "tests", "seed": seed},
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="session")
def pack_maker() -> Callable[..., Path]:
    return make_pack
