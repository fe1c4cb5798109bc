"""How well CFM tells defective from good on a class's test photos: the papers' metrics, and the absolute scale's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from detect.cfm.absolute import Absolute, decide
from detect.cfm.mapping import MappingPair
from detect.cfm.score import (
    Distances,
    Features,
    Fusion,
    ScoreConfig,
    anomaly_map,
    distances,
    published_image_score,
    published_pixel_map,
    published_region_map,
)
from detect.cfm.train import Store
from detect.metrics import ProCurve, auroc, auroc_error, pro_curve, pro_curve_of_99
from detect.verdict import Verdict
from prepare.errors import InputError
from prepare.registered import Registered, Sample

LIMITS = {"30": 0.3, "10": 0.1, "5": 0.05, "1": 0.01}  # false positive rates of AUPRO, by the name's ending
WARM_UP = 2  # photos before the clock starts


@runtime_checkable
class Truth(Protocol):
    """Where masks come from: `prepare.registered.RegisteredClass`."""

    def load(self, sample: Sample, px: int) -> Registered:
        """The sample with its mask. Raises: InputError for one that cannot be read."""
        ...


@dataclass(frozen=True)
class Looked:
    """What the networks say of one photo, before fusion, with the truth."""

    name: str
    defect: str  # "good" or the defect's name
    label: int
    found: Distances  # on the CPU
    mask: Bool[Tensor, "px px"] | None  # None where the truth is missing


@dataclass(frozen=True)
class Photo:
    """One photo's scores by one fusion."""

    name: str
    defect: str
    label: int
    published: float | None  # the papers' image score, relative to the photo's own level; None for zmean
    score: float | None  # z, standard deviations of good photos; None without a scale
    verdict: Verdict


@dataclass(frozen=True)
class Evaluation:
    """The figures of one fusion. Rates and areas are in [0, 1]; one that the photos do not define is left out."""

    config: ScoreConfig
    photos: tuple[Photo, ...]
    figures: Mapping[str, float]
    by_defect: Mapping[str, Mapping[str, float]]  # each against all good photos


@dataclass(frozen=True)
class Speed:
    """Seconds per photo, from tensors in memory to the smoothed map: no reading, no preprocessing, as the paper measures."""

    photos: int
    with_features: float  # median, features computed too
    without_features: float  # median, features given
    parameter_bytes: int  # of both networks and of the feature networks, the paper's memory
    peak_bytes: int | None  # of the GPU while it ran; None on a CPU


def look(
    pair: MappingPair,
    samples: Sequence[Sample],
    store: Store,
    truth: Truth,
    masked: bool = True,
    on_photo: Callable[[int, int], None] | None = None,
) -> tuple[list[Looked], list[tuple[str, str]]]:
    """What the networks say of each photo, and the names of those that cannot be used, with why. The others go on.

    Raises: UsageError and MissingPartError, which concern all photos; InputError where none can be used.
    """
    looked: list[Looked] = []
    refused: list[tuple[str, str]] = []
    for number, sample in enumerate(samples, start=1):
        try:
            found = distances(pair, store.get(sample), masked)
            mask = truth.load(sample, found.photo.shape[0]).mask
            on_cpu = Distances(found.photo.cpu(), found.shape.cpu(), found.valid.cpu())
            looked.append(Looked(sample.name, sample.defect, sample.label, on_cpu, mask))
        except InputError as error:
            if error.exit_status != InputError.exit_status:
                raise
            refused.append((sample.name, str(error)))
        if on_photo is not None:
            on_photo(number, len(samples))
    if not looked:
        why = f": {refused[0][0]}: {refused[0][1]}" if refused else ""
        raise InputError(f"none of {len(samples)} photos can be evaluated{why}")
    return looked, refused


def evaluate(
    looked: Sequence[Looked], fusion: Fusion, scale: Absolute | None, config: ScoreConfig
) -> Evaluation:
    """The figures of one fusion; `scale` must be that fusion's. `config` says what else of the score.

    image_auroc, pixel_auroc, aupro_30 .. aupro_1 (exact) and aupro99_30 .. aupro99_1 (the papers' form) are of the papers'
    three normalisations (not of zmean); z_image_auroc, z_pixel_auroc and z_aupro_30 .. z_aupro_1 (exact) of the absolute
    scale. Photos whose truth is missing count for the images' figures alone.
    """
    score = replace(config, fusion=fusion, levels=None if scale is None else scale.score.levels)
    if fusion == "zmean" and scale is None:
        raise InputError("fusion zmean: needs good photos kept from the training; choose another fusion")
    relative = fusion != "zmean"  # the papers' normalisations are of maps that are not negative
    photos: list[Photo] = []
    maps: dict[str, list[np.ndarray]] = {"pixel": [], "region": [], "z": []}
    masks: list[np.ndarray] = []
    rows: list[int] = []  # of the maps, which photo
    for number, one in enumerate(looked):
        anomaly = anomaly_map(one.found, score)
        z_map = None if scale is None else scale.z_map(anomaly)
        photos.append(
            Photo(
                one.name, one.defect, one.label, published_image_score(anomaly) if relative else None,
                None if z_map is None else float(z_map.max()),
                decide(one.found, anomaly if z_map is None else z_map, scale),
            )
        )  # fmt: skip
        if one.mask is not None:
            rows.append(number)
            masks.append(one.mask.numpy())
            if relative:
                maps["pixel"].append(published_pixel_map(anomaly).numpy())
                maps["region"].append(published_region_map(anomaly).numpy())
            if z_map is not None:
                maps["z"].append(z_map.numpy())
    labels = np.array([photo.label for photo in photos])
    figures = {"photos": float(len(photos)), "good": float((labels == 0).sum())}
    figures |= _image_figures(photos, labels) | _pixel_figures(maps, masks)
    by_defect: dict[str, dict[str, float]] = {}
    for defect in sorted({photo.defect for photo in photos if photo.label}):
        own = [n for n, photo in enumerate(photos) if photo.defect == defect or not photo.label]
        places = [place for place, number in enumerate(rows) if number in set(own)]
        by_defect[defect] = {
            "photos": float(sum(photo.defect == defect for photo in photos)),
            **_image_figures([photos[n] for n in own], labels[own]),
            **_pixel_figures(
                {name: [some[place] for place in places] for name, some in maps.items() if some},
                [masks[place] for place in places],
            ),
        }
    return Evaluation(score, tuple(photos), figures, by_defect)


def _image_figures(photos: Sequence[Photo], labels: np.ndarray) -> dict[str, float]:
    found: dict[str, float] = {}
    defective, good = int((labels == 1).sum()), int((labels == 0).sum())
    judged = [(photo.verdict.name, photo.label) for photo in photos]
    if photos and photos[0].score is not None:
        if defective:
            found["found"] = sum(name == "NG" for name, label in judged if label) / defective
        if good:
            found["false_alarms"] = sum(name == "NG" for name, label in judged if not label) / good
        found["cannot_tell"] = sum(name == "CANNOT TELL" for name, _ in judged) / len(judged)
    if defective and good:
        for name, scores in (
            ("image_auroc", [photo.published for photo in photos]),
            ("z_image_auroc", [photo.score for photo in photos]),
        ):
            if all(score is not None for score in scores):
                found[name] = auroc(np.array(scores, dtype=np.float64), labels)
                found[f"{name}_error"] = auroc_error(found[name], defective, good)
    return found


def _pixel_figures(maps: Mapping[str, Sequence[np.ndarray]], masks: Sequence[np.ndarray]) -> dict[str, float]:
    defect = sum(int(mask.sum()) for mask in masks)
    if defect == 0 or defect == sum(mask.size for mask in masks):
        return {}
    truth = np.concatenate([mask.ravel() for mask in masks])
    found: dict[str, float] = {}
    curves: dict[str, ProCurve] = {}
    if maps.get("pixel"):
        found["pixel_auroc"] = auroc(np.concatenate([one.ravel() for one in maps["pixel"]]), truth)
        curves |= {
            "aupro": pro_curve(maps["region"], masks),
            "aupro99": pro_curve_of_99(maps["region"], masks),
        }
    if maps.get("z"):
        found["z_pixel_auroc"] = auroc(np.concatenate([one.ravel() for one in maps["z"]]), truth)
        curves["z_aupro"] = pro_curve(maps["z"], masks)
    for name, curve in curves.items():
        found |= {f"{name}_{ending}": curve.area_to(limit) for ending, limit in LIMITS.items()}
    return found


def speed(
    pair: MappingPair,
    photos: Sequence[Registered],
    extract: Callable[[Registered], Features],
    config: ScoreConfig,
    feature_networks: Sequence[object] = (),
) -> Speed:
    """Times of some photos, after WARM_UP photos that do not count. Raises: ValueError without photos."""
    if not photos:
        raise ValueError("speed: needs photos")
    device = next(pair.parameters()).device
    with_features, without = [], []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(WARM_UP + len(photos)):
        photo = photos[number % len(photos)]
        began = now()
        features = extract(photo)
        middle = now()
        anomaly_map(distances(pair, features, config.masked), config)
        ended = now()
        if number >= WARM_UP:
            with_features.append(ended - began)
            without.append(ended - middle)
    size = sum(parameter_bytes(one) for one in (pair, *feature_networks))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Speed(len(photos), float(np.median(with_features)), float(np.median(without)), size, peak)


def parameter_bytes(holder: object) -> int:
    """Bytes of the parameters of a network, or of the networks that an object holds."""
    if isinstance(holder, nn.Module):
        return sum(parameter.nbytes for parameter in holder.parameters())
    return (
        sum(parameter_bytes(value) for value in vars(holder).values()) if hasattr(holder, "__dict__") else 0
    )


def without_truth(looked: Sequence[Looked]) -> list[str]:
    """Names of the photos whose truth is missing."""
    return [one.name for one in looked if one.mask is None]


def extremes(evaluation: Evaluation, count: int = 4) -> dict[str, list[int]]:
    """Which photos to look at: places of good ones that score most, of defective ones that score least and most."""

    def score(place: int) -> float:
        photo = evaluation.photos[place]
        return (photo.published or 0.0) if photo.score is None else photo.score

    order = sorted(range(len(evaluation.photos)), key=lambda place: (score(place), place))
    good = [place for place in order if not evaluation.photos[place].label]
    bad = [place for place in order if evaluation.photos[place].label]
    return {
        "good, highest": good[::-1][:count],
        "defective, lowest": bad[:count],
        "defective, highest": bad[::-1][:count],
    }


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """All of it as plain values, for a file."""

    def number(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    return {
        "fusion": evaluation.config.fusion,
        "masked": evaluation.config.masked,
        "smooth": evaluation.config.smooth,
        "figures": {name: number(value) for name, value in evaluation.figures.items()},
        "by_defect": {
            defect: {name: number(value) for name, value in figures.items()}
            for defect, figures in evaluation.by_defect.items()
        },
        "photos": [
            {
                "name": photo.name, "defect": photo.defect, "label": photo.label, "published_score": number(photo.published),
                "score": number(photo.score), "verdict": photo.verdict.name, "reasons": list(photo.verdict.reasons),
            }
            for photo in evaluation.photos
        ],
    }  # fmt: skip
