"""Rigid motions: exponential map, and the pose update that every optimiser here uses."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


def rotation_from_vector(vector: Float[Tensor, "xyz=3"]) -> Float[Tensor, "3 3"]:
    """Rotation by |vector| radians about `vector` (right-handed). Differentiable, also at zero.

    Source: Rodrigues' formula, with its Taylor series below 1e-4 rad.
    """
    squared = (vector * vector).sum()
    if float(squared.detach()) < 1e-8:
        a, b = 1.0 - squared / 6.0, 0.5 - squared / 24.0
    else:
        angle = squared.sqrt()
        a, b = torch.sin(angle) / angle, (1.0 - torch.cos(angle)) / squared
    cross = cross_matrix(vector)
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + a * cross + b * (cross @ cross)


def cross_matrix(vector: Float[Tensor, "xyz=3"]) -> Float[Tensor, "3 3"]:
    """The matrix [v] with [v] x = v x x."""
    x, y, z = vector.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)


def moved_about(
    world_to_cam: Float[Tensor, "4 4"], step: Float[Tensor, "six=6"], pivot: Float[Tensor, "xyz=3"]
) -> Float[Tensor, "4 4"]:
    """`world_to_cam` after a turn by step[:3] (radians, camera axes) about the world point `pivot`, then a shift step[3:].

    A point X_cam goes to exp(step[:3]) (X_cam - p) + p + step[3:] with p the pivot in camera coordinates. Turning
    about the part's centre, not the camera's, keeps turn and shift nearly independent.
    """
    rotation, translation = world_to_cam[:3, :3], world_to_cam[:3, 3]
    pivot_cam = rotation @ pivot + translation
    turn = rotation_from_vector(step[:3])
    new_rotation = turn @ rotation
    new_translation = turn @ (translation - pivot_cam) + pivot_cam + step[3:]
    top = torch.cat([new_rotation, new_translation[:, None]], dim=1)
    return torch.cat([top, world_to_cam[3:]], dim=0)


def nearest_rigid(world_to_cam: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """The rigid transform closest to a nearly rigid one: rounding of many updates taken out."""
    u, _, vh = torch.linalg.svd(world_to_cam[:3, :3].double())
    rotation = (
        u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vh))], dtype=torch.float64)) @ vh
    )
    fixed = world_to_cam.clone()
    fixed[:3, :3] = rotation.to(world_to_cam)
    return fixed


def stepped(
    world_to_cam: Float[Tensor, "4 4"], step: NDArray[np.float64], pivot: Float[Tensor, "xyz=3"]
) -> Float[Tensor, "4 4"]:
    """`nearest_rigid(moved_about(...))` in plain float64 arithmetic on the CPU: what each step of a refinement needs."""
    pose = world_to_cam.numpy().astype(np.float64)
    rotation, translation = pose[:3, :3], pose[:3, 3]
    x, y, z = step[:3]
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    squared = x * x + y * y + z * z
    if squared < 1e-8:
        a, b = 1.0 - squared / 6.0, 0.5 - squared / 24.0
    else:
        angle = math.sqrt(squared)
        a, b = math.sin(angle) / angle, (1.0 - math.cos(angle)) / squared
    turn = np.eye(3) + a * cross + b * (cross @ cross)
    pivot_cam = rotation @ pivot.numpy() + translation
    moved = turn @ rotation
    # One Newton step towards the nearest rotation (Higham 1986): from rounding's 1e-7 away it arrives.
    moved = moved @ (1.5 * np.eye(3) - 0.5 * moved.T @ moved)
    result = np.eye(4)
    result[:3, :3] = moved
    result[:3, 3] = turn @ (translation - pivot_cam) + pivot_cam + step[3:6]
    return torch.from_numpy(result).to(world_to_cam.dtype)


def turn_deg(a: Float[Tensor, "4 4"], b: Float[Tensor, "4 4"]) -> float:
    """Geodesic angle between the rotations of two rigid transforms, degrees."""
    relative = a[:3, :3].double() @ b[:3, :3].double().T
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(relative.trace()) - 1.0) / 2.0))))
