"""The detectors by name: MAP or MAP+BACKBONE, as a calibration records it."""

from __future__ import annotations

import copy

from detect.anomaly_map import DifferenceDetector
from detect.backbones import load_backbone
from detect.comparer import load_comparer
from detect.expected import ExpectedResidual
from detect.features import difference_with
from prepare.errors import InputError
from recon.reference import Reference

MAPS = ("comparer", "difference")  # the learned comparison; the channels' geometric mean
DETECTOR = MAPS[0]


def detector_name(map_name: str = DETECTOR, features: str | None = None) -> str:
    """What a calibration calls a detector: `comparer`, or `comparer+NAME` with a backbone's features."""
    return map_name if features in (None, "none") else f"{map_name}+{features}"


def detector_of(name: str, reference: Reference, expected: ExpectedResidual) -> DifferenceDetector:
    """The detector of that name, weights loaded.

    Raises: InputError for a name this version does not know; MissingPartError where a backbone's weights are not there.
    """
    map_name, _, features = name.partition("+")
    if map_name not in MAPS:
        raise InputError(f"detector {name}: unknown to this version; fit the reference again")
    comparer = load_comparer() if map_name == "comparer" else None
    device = reference.gaussians.device
    if comparer is not None and device.type != "cpu":
        comparer = copy.deepcopy(comparer).to(device)  # the loaded one is shared
    difference = difference_with(load_backbone(features) if features else None)
    return DifferenceDetector(reference, expected, difference, comparer)
