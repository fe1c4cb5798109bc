"""Rough cameras of a photo from the index: several hypotheses, no matching against photos one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pose.index import (
    TRUNCATED_SHARE,
    PoseIndex,
    centred_patch,
    silhouette_of,
    truncated_share,
    whole_patch,
)
from pose.se3 import rotation_from_vector
from prepare.camera import Camera

ROLLS = 24  # in-plane turns tried, 15 degrees apart
OTHER_ROLL_DEG = 60.0  # in-plane turns further apart than this are different answers
OTHER_ROLL_LOSS = (
    0.08  # of similarity, up to which the second best is tried too: long parts look alike upside down
)
APART_DEG = 12.0  # hypotheses nearer to a better one of the same kind than this are dropped


@dataclass(frozen=True)
class Hypothesis:
    """A rough camera."""

    camera: Camera
    similarity: float  # cosine of the compared patches, in [-1, 1]
    source: Literal[
        "whole", "centred"
    ]  # taken as the photo stands, or after bringing the part to one place and size


def coarse_cameras(
    index: PoseIndex,
    difference: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    camera: Camera,
    *,
    most: int = 12,
    sides: Sequence[int] = (),
) -> tuple[Hypothesis, ...]:
    """Rough cameras for a photo, best first; none where the photo shows no part.

    At most `most` from different sides, beside them those turned in their plane that fit about as well, and the rows `sides`
    of the index.

    `difference` is the photo less its background (zero off the part), `alpha` the part's share of each pixel, both at
    about the index's render size; `camera` is the photo's lens at that size.
    """
    place = silhouette_of(alpha)
    if place is None:
        return ()
    found: list[Hypothesis] = []
    similarity = index.whole @ whole_patch(difference)
    for i, value in _separate(similarity, index.world_to_cam, most // 3):
        found.append(Hypothesis(camera.moved(index.world_to_cam[i]), value, "whole"))

    rolls = torch.arange(ROLLS) * (2 * math.pi / ROLLS)
    patches = torch.stack([centred_patch(difference, place, float(roll)) for roll in rolls])
    table = index.centred @ patches.T
    best, which = table.max(dim=1)
    second, second_which = _other_rolls(table, which)
    penalty = 0.0 if truncated_share(alpha) < TRUNCATED_SHARE else 0.05
    longest = max(camera.width, camera.height)
    chosen = _separate(best, index.world_to_cam, most - len(found))
    known = {i for i, _ in chosen}
    chosen += [(i, float(best[i])) for i in sides if i not in known]
    for i, value in chosen:
        u, v, radius = (index.silhouettes[i] * longest).tolist()
        lens_ratio = camera.fl_x / (
            index.camera.fl_x * longest / max(index.camera.width, index.camera.height)
        )
        tried = [(value, which[i])]
        if float(second[i]) > value - OTHER_ROLL_LOSS:
            tried.append((float(second[i]), second_which[i]))
        for similar, roll in tried:
            moved = _moved_in_image(
                index.world_to_cam[i], camera, index.camera, (u, v), (place.u, place.v),
                radius * lens_ratio / place.radius, float(rolls[roll]),
            )  # fmt: skip
            found.append(Hypothesis(camera.moved(moved), similar - penalty, "centred"))
    found.sort(key=lambda hypothesis: -hypothesis.similarity)
    return tuple(found)


def _other_rolls(
    table: Float[Tensor, "n roll"], best: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The best of the rolls at least OTHER_ROLL_DEG from `best`: value and number."""
    rolls = table.shape[1]
    apart = (torch.arange(rolls)[None] - best[:, None]) % rolls
    apart = torch.minimum(apart, rolls - apart) * (360.0 / rolls)
    found = table.masked_fill(apart < OTHER_ROLL_DEG, -math.inf).max(dim=1)
    return found.values, found.indices


def _moved_in_image(
    world_to_cam: Float[Tensor, "4 4"],
    camera: Camera,
    index_lens: Camera,
    seen_at: tuple[float, float],
    wanted_at: tuple[float, float],
    distance_ratio: float,
    roll_rad: float,
) -> Float[Tensor, "4 4"]:
    """`world_to_cam` rolled by `roll_rad`, its distance scaled, and turned so that what was at `seen_at` px is at `wanted_at`.

    `centred_patch` turned the photo by roll_rad (clockwise) to look like the render: the photo is the render rolled
    back, which is a camera turned by the same angle.
    """
    scale = max(camera.width, camera.height) / max(index_lens.width, index_lens.height)
    lens_x, lens_y = index_lens.fl_x * scale, index_lens.fl_y * scale
    seen = _ray(seen_at, lens_x, lens_y, index_lens.cx * scale, index_lens.cy * scale)
    wanted = _ray(wanted_at, camera.fl_x, camera.fl_y, camera.cx, camera.cy)
    straight = torch.tensor([0.0, 0.0, 1.0])
    turn = (
        _shortest_turn(straight, wanted)
        @ rotation_from_vector(torch.tensor([0.0, 0.0, -roll_rad]))
        @ _shortest_turn(seen, straight)
    )
    moved = world_to_cam.clone()
    moved[:3, :3] = turn @ world_to_cam[:3, :3]
    moved[:3, 3] = turn @ world_to_cam[:3, 3] * distance_ratio
    return moved


def _ray(at: tuple[float, float], fl_x: float, fl_y: float, cx: float, cy: float) -> Float[Tensor, "xyz=3"]:
    ray = torch.tensor([(at[0] - cx) / fl_x, (at[1] - cy) / fl_y, 1.0])
    return ray / ray.norm()


def _shortest_turn(source: Float[Tensor, "xyz=3"], target: Float[Tensor, "xyz=3"]) -> Float[Tensor, "3 3"]:
    """The rotation that takes one unit vector to another by the shortest way."""
    axis = torch.linalg.cross(source, target)
    sine = float(axis.norm())
    if sine < 1e-7:
        return torch.eye(3)
    return rotation_from_vector(axis / sine * math.atan2(sine, float(source @ target)))


def _separate(
    similarity: Float[Tensor, " n"], world_to_cam: Float[Tensor, "n 4 4"], most: int
) -> list[tuple[int, float]]:
    """The most similar entries, each at least APART_DEG from the better ones."""
    order = similarity.argsort(descending=True)
    chosen: list[int] = []
    cosine = math.cos(math.radians(APART_DEG))
    for i in order.tolist():
        axis = world_to_cam[i, 2, :3]
        if all(float(axis @ world_to_cam[j, 2, :3]) < cosine for j in chosen):
            chosen.append(i)
        if len(chosen) >= most:
            break
    return [(i, float(similarity[i])) for i in chosen]
