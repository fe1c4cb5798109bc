"""The detectors by name: MAP or MAP+BACKBONE, as a calibration records it."""

from __future__ import annotations

from collections.abc import Sequence

from detect.anomaly_map import DifferenceDetector
from detect.backbones import load_backbone
from detect.comparer import Comparer
from detect.expected import ExpectedResidual
from detect.features import difference_with
from prepare.errors import InputError
from recon.reference import Reference

RULE, LEARNED = "difference", "comparer"  # the channels' geometric mean; with networks trained for the part
MAPS = (RULE, LEARNED)


def detector_name(map_name: str, features: str | None = None) -> str:
    """What a calibration calls a detector: `difference`, or `difference+NAME` with a backbone's features."""
    return map_name if features in (None, "none") else f"{map_name}+{features}"


def is_learned(name: str) -> bool:
    """Whether the detector of that name has networks of its own."""
    return name.partition("+")[0] == LEARNED


def detector_of(
    name: str, reference: Reference, expected: ExpectedResidual, comparers: Sequence[Comparer] = ()
) -> DifferenceDetector:
    """The detector of that name; `comparers` are its networks where it is learned.

    Raises: InputError for a name this version does not know; MissingPartError where a backbone's weights are not there.
    """
    map_name, _, features = name.partition("+")
    if map_name not in MAPS:
        raise InputError(f"detector {name}: unknown to this version; fit the reference again")
    difference = difference_with(load_backbone(features) if features else None)
    networks = tuple(network.to(reference.gaussians.device) for network in comparers)
    return DifferenceDetector(reference, expected, difference, networks)
