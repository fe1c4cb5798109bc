"""Which part of detection earns its place: each channel and each calibration switched off, on the same found cameras.

    .venv/bin/python scripts/bench_detect.py --workspace W --class mad_car truck [--backbone mobilenet_v2] [--json OUT.json]

For each fitted reference whose scene has test photos with truth: every photo's camera is found once; then each variant
makes its map of the same photo, render and statistics, and is measured. What is switched off is set to what it says where
nothing is the matter; nothing is trained or fitted anew. SPLATAD_WEIGHTS names the folder of a backbone's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detect.anomaly_map import (
    EVIDENCE_PX,
    AnomalyMap,
    combine,
    image_score,
    relative_channels,
    rule_logit,
)
from detect.backbones import Backbone, load_backbone
from detect.comparer import START, Compared, Comparer, compare, load_comparers
from detect.difference import UNSIGNED
from detect.evaluate import Metrics, Scored, evaluate, mask_at_map_size
from detect.expected import Expectation, expectation
from detect.recipe_splatpose import splatpose_recipe
from prepare.atomic_write import write_json
from prepare.image import read_mask
from prepare.scene import load_scene
from recon.rasterize import RasterOptions, rasterize
from splatad.finder import over_background
from splatad.inspector import Inspector
from splatad.reference_dir import choose_device, find_reference
from splatad.threads import leave_cores_to_the_kernel
from splatad.workspace import open_workspace

Variant = Callable[[Compared], AnomalyMap]


@dataclass(frozen=True)
class Bench:
    """Measure the variants of the map."""

    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")]
    """Fitted references in the workspace whose scenes have test photos with masks."""
    workspace: Path | None = None
    """Where they lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    backbone: str | None = None
    """ImageNet backbone for SplatPose's recipe; none of it if not given."""
    json: Path | None = None
    """Where to write the figures."""


def variants(networks: Sequence[Comparer], backbone: Backbone | None) -> dict[str, Variant]:
    """By name; the first is the product's default, each of the next lacks one thing."""

    def known_of(compared: Compared) -> Bool[Tensor, "height width"]:
        return compared.expected.evidence >= EVIDENCE_PX

    def rule(compared: Compared, *channels: int, excused: bool = True) -> AnomalyMap:
        expected = compared.expected if excused else _nothing_expected(compared.expected)
        relative = relative_channels(compared.channels, expected)
        return combine(relative[list(channels)] if channels else relative, known_of(compared))

    def ruled(*channels: int, excused: bool = True) -> Variant:
        return lambda compared: rule(compared, *channels, excused=excused)

    def learned(
        change: Callable[[Compared], Compared], *, used: Sequence[Comparer] = networks, with_rule: bool = True
    ) -> Variant:
        def made(compared: Compared) -> AnomalyMap:
            changed = change(compared)
            logit = compare(used, changed)
            if with_rule:
                logit = logit + rule_logit(rule(changed).values)
            values = F.softplus(logit) * known_of(compared)
            return AnomalyMap(values, known_of(compared), image_score(values))

        return made

    def hottest_pixel(compared: Compared) -> AnomalyMap:
        whole = learned(_same)(compared)
        return dataclasses.replace(whole, score=float(whole.values.max()))

    found: dict[str, Variant] = {}
    if networks:
        (start,) = load_comparers(START)
        found |= {
            "networks and rule": learned(_same),
            "  networks alone": learned(_same, with_rule=False),
            "  one network": learned(_same, used=networks[:1]),
            "  not trained for the part": learned(_same, used=[start]),
            "  without what good photos leave": learned(_average_expected),
            "  without gloss and light": learned(_without_gloss),
            "  without colour": learned(lambda c: _without_channel(c, 0)),
            "  without contrast": learned(lambda c: _without_channel(c, 1)),
            "  without silhouettes": learned(lambda c: dataclasses.replace(c, photo_alpha=c.render_alpha)),
            "  without depth edges": learned(lambda c: dataclasses.replace(c, depth=c.render_alpha)),
            "  score: the hottest pixel": hottest_pixel,
        }
    found |= {
        "rule": ruled(),
        "  rule without what good photos leave": ruled(excused=False),
        "  rule, colour alone": ruled(0),
        "  rule, contrast alone": ruled(1),
    }
    if backbone is not None:

        def recipe(compared: Compared) -> AnomalyMap:
            result = splatpose_recipe(compared.photo, compared.render, backbone)
            return AnomalyMap(result.values, compared.expected.evidence >= 0, result.score)

        found[f"SplatPose's map, {backbone.name}"] = recipe
    return found


def _same(compared: Compared) -> Compared:
    return compared


def _nothing_expected(expected: Expectation) -> Expectation:
    return dataclasses.replace(expected, deviation=torch.zeros_like(expected.deviation))


def _average_expected(compared: Compared) -> Compared:
    """Each channel's mean over the part in place of what the splats carry."""
    part = compared.render_alpha > 0.5
    expected = compared.expected
    flat = torch.stack([plane[part].mean().expand_as(plane) for plane in expected.deviation])
    return _without_gloss(
        dataclasses.replace(compared, expected=dataclasses.replace(expected, deviation=flat))
    )


def _without_gloss(compared: Compared) -> Compared:
    zero = torch.zeros_like(compared.expected.light)
    return dataclasses.replace(
        compared, expected=dataclasses.replace(compared.expected, light=zero, gloss=zero)
    )


def _without_channel(compared: Compared, channel: int) -> Compared:
    """That channel at what good photos leave."""
    assert channel < UNSIGNED
    channels = compared.channels.clone()
    channels[channel] = compared.expected.deviation[channel]
    return dataclasses.replace(compared, channels=channels)


def main(config: Bench) -> None:
    device = choose_device("auto")
    leave_cores_to_the_kernel(device)
    workspace = open_workspace(config.workspace)
    backbone = None if config.backbone is None else load_backbone(config.backbone)
    console = Console()
    document: dict[str, dict[str, object]] = {}
    for name in config.class_:
        inspector = Inspector.open(find_reference(workspace, name, None), device)
        reference = inspector.loaded.reference
        table = variants(inspector.loaded.detector.comparers, backbone)
        scored: dict[str, list[Scored]] = {variant: [] for variant in table}
        for query in load_scene(Path(reference.scene)).queries:
            image = inspector.read(query.image_path)
            located = inspector.locate(image)
            if located is None:
                continue
            photo = over_background(image, reference.background)
            options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
            with torch.no_grad():
                render = rasterize(reference.gaussians, located.camera, reference.background, options=options)
                channels = inspector.loaded.detector.difference(photo, render.rgb)
                expected = expectation(reference, inspector.loaded.detector.expected, located.camera)
            assert render.depth is not None
            compared = Compared(
                photo, image.alpha, render.rgb, render.alpha, render.depth, channels, expected
            )
            mask = torch.zeros(photo.shape[:2], dtype=torch.bool)
            if query.mask_path is not None:
                mask = mask_at_map_size(read_mask(query.mask_path), *photo.shape[:2])
            for variant, make in table.items():
                with torch.no_grad():
                    result = make(compared)
                scored[variant].append(Scored(query.label, result.score, result.values, mask))
        shown = Table(title=f"{name}: {len(next(iter(scored.values())))} photos, percent")
        for title in ("", "image AUROC", "pixel AUROC", "AUPRO 0.3", "AUPRO 0.05"):
            shown.add_column(title, justify="left" if not title else "right")
        document[name] = {}
        for variant, results in scored.items():
            metrics = evaluate(results)
            shown.add_row(variant, *(f"{value:.2f}" for value in _main(metrics) if value is not None))
            document[name][variant] = dataclasses.asdict(metrics)
        console.print(shown)
    if config.json is not None:
        write_json(config.json, document)


def _main(metrics: Metrics) -> tuple[float | None, ...]:
    return metrics.image_auroc, metrics.pixel_auroc, metrics.aupro_30, metrics.aupro_05


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
