"""Defects: masks against what was changed by hand, and what every random defect promises."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import get_args

import numpy as np
import pytest
import torch

from prepare.camera import Camera, focal_from_fov, look_at
from prepare.generate.defects import DEFECT_PX, DefectKind, defect_mask, photograph_defect
from prepare.generate.objects import make_object
from prepare.generate.parts import Assembly, Part, Stain
from prepare.generate.raycast import cast, light, photograph, surface
from prepare.generate.shapes import Box

KINDS = get_args(DefectKind)


def camera_at(position, size=96):
    world_to_cam = look_at(
        torch.tensor(position, dtype=torch.float64),
        torch.zeros(3).double(),
        torch.tensor([0.0, 0.0, 1.0]).double(),
    )
    focal = focal_from_fov(size, 0.69111)
    return Camera(world_to_cam, focal, focal, size / 2, size / 2, size, size)


def brick(at, half, colour=(0.6, 0.2, 0.2)):
    return Part("brick", "", Box(half), np.asarray(at, float), np.eye(3), colour, 0.0)


def mask_of(good, bad, origin, camera, supersample=2):
    pairs = []
    for assembly in (good, bad):
        hits = cast(assembly.parts, camera, supersample)
        pairs += [hits, surface(assembly, camera, supersample, hits)]
    return defect_mask(*pairs, np.asarray(origin), supersample), pairs[0], pairs[2]


def any_sample(samples, supersample=2):
    rows, columns = (n // supersample for n in samples.shape)
    return samples.reshape(rows, supersample, columns, supersample).any(axis=(1, 3))


BASE, KNOB = brick((0, 0, -0.3), (0.6, 0.6, 0.1)), brick((0.2, 0.1, 0.0), (0.1, 0.1, 0.2))


def test_the_mask_of_a_missing_part_is_where_it_was_seen():
    camera = camera_at((2.0, -1.5, 1.6))
    mask, good_hits, _ = mask_of(Assembly("a", (BASE, KNOB)), Assembly("a", (BASE,)), [0], camera)
    np.testing.assert_array_equal(mask, any_sample(good_hits.part == 1))
    assert mask.sum() > 50


def test_the_mask_of_an_added_part_is_where_it_is_seen_even_in_the_colour_of_its_ground():
    camera = camera_at((2.0, -1.5, 1.6))
    mask, _, bad_hits = mask_of(Assembly("a", (BASE,)), Assembly("a", (BASE, KNOB)), [0, -1], camera)
    np.testing.assert_array_equal(mask, any_sample(bad_hits.part == 1))


def test_the_mask_of_a_part_gone_from_the_middle_of_the_list_does_not_mix_up_the_others():
    camera = camera_at((2.0, -1.5, 1.6))
    other = brick((-0.3, -0.3, 0.0), (0.1, 0.1, 0.2))
    mask, good_hits, _ = mask_of(
        Assembly("a", (BASE, KNOB, other)), Assembly("a", (BASE, other)), [0, 2], camera
    )
    np.testing.assert_array_equal(mask, any_sample(good_hits.part == 1))


def test_the_mask_of_a_dent_is_where_the_depth_changed():
    camera = camera_at((0.3, 0.2, 3.0))
    dented = replace(BASE, shape=Box((0.6, 0.6, 0.09)))
    mask, good_hits, bad_hits = mask_of(Assembly("a", (BASE,)), Assembly("a", (dented,)), [0], camera)
    np.testing.assert_array_equal(mask, any_sample((good_hits.part == 0) | (bad_hits.part == 0)))


def test_the_mask_of_a_stain_is_the_stained_surface_and_a_stain_of_the_same_colour_has_none():
    camera = camera_at((0.3, 0.2, 3.0))
    good = Assembly("a", (BASE, KNOB))
    spot = Stain((0.0, 0.0, -0.2), 0.2, (0.1, 0.1, 0.6), 0.9, (0.3, 1.0, 2.0))
    mask, hits, _ = mask_of(good, replace(good, stains=(spot,)), [0, 1], camera)
    weight = np.zeros(hits.part.shape)
    weight[hits.part >= 0] = spot.weight(surface(good, camera, 2, hits).points)
    assert mask[any_sample(weight > 0.3)].all()
    assert not mask[~any_sample(weight > 0)].any()
    unseen = replace(spot, colour=BASE.colour)
    assert not mask_of(good, replace(good, stains=(unseen,)), [0, 1], camera)[0].any()


def test_nothing_changed_gives_an_empty_mask():
    good = make_object("robot", 0)
    mask, _, _ = mask_of(good, good, np.arange(len(good.parts)), camera_at((2.0, 2.0, 1.0)))
    assert not mask.any()


@lru_cache(maxsize=1)
def product():
    assembly = make_object("robot", 5)
    return assembly, light(assembly)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_defect_is_seen_where_its_mask_says_and_nowhere_else(kind, seed):
    assembly, maps = product()
    camera = camera_at([(2.2, 1.5, 1.4), (-1.8, 2.0, -1.3), (2.4, -1.7, 0.6)][seed])
    photo = photograph_defect(kind, assembly, maps, camera, 2, np.random.default_rng(seed))
    assert photo is not None
    assert DEFECT_PX[0] <= photo.mask.mean() * 400**2 <= DEFECT_PX[1]
    good = photograph(assembly, maps, camera, 2).rgb
    change = np.abs(photo.view.rgb - good).max(axis=2)
    assert (change[photo.mask] > 0.1).mean() >= 0.5
    # Outside only light changes: a shadow more or less, near the defect.
    assert (change[~photo.mask] > 0.25).mean() < 0.005
    if kind == "Stains":
        assert change[~photo.mask].max() < 0.02
    counts = {"Burrs": (1, 6), "Missing": (-60, 0), "Stains": (0, 0)}[kind]
    assert counts[0] <= len(photo.faulty.assembly.parts) - len(assembly.parts) <= counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_small_defects_are_made_where_small_ones_are_asked_for(kind):
    assembly, maps = product()
    camera = camera_at((2.2, 1.5, 1.4))
    photo = photograph_defect(kind, assembly, maps, camera, 2, np.random.default_rng(1), (100.0, 300.0))
    assert photo is not None
    assert 100 <= photo.mask.mean() * 400**2 <= 300


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_defect_and_another_seed_another(kind):
    assembly, maps = product()
    camera = camera_at((2.2, 1.5, 1.4), 64)
    first, again, other = (
        photograph_defect(kind, assembly, maps, camera, 1, np.random.default_rng(seed)) for seed in (8, 8, 9)
    )
    np.testing.assert_array_equal(first.view.rgb, again.view.rgb)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.mask != other.mask).any()


def test_no_defect_is_made_up_where_the_camera_sees_nothing():
    assembly, maps = product()
    away = camera_at((2.2, 1.5, 1.4))
    turned = away.moved(torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()) @ away.world_to_cam)
    assert photograph_defect("Stains", assembly, maps, turned, 1, np.random.default_rng(0)) is None
