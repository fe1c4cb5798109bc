"""Trains `detect/comparer.safetensors`, from which `splatad fit` trains the networks of a part.

    .venv/bin/python scripts/train_comparer.py [--seeds 11 12] [--train.steps 3000] [--out detect/comparer.safetensors]

Makes products, fits them with every third photo held out, and takes as examples the held-out photos, the same with
made-up defects, and the products' own test photos, whose defects the ray caster made. Every stage is kept under --work and
a stopped run goes on where it was. The products have other seeds than those of docs/results.md; no photo of anybody's is
seen.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file

import recon.fit
from detect.comparer import START, new_comparer, save_comparers
from detect.detectors import RULE, detector_of
from detect.difference import difference_channels
from detect.evaluate import mask_at_map_size
from detect.expected import NOTHING_EXPECTED, expectation
from detect.good_photos import look_at_good_photos
from detect.train_comparer import Example, TrainConfig, example_of, examples_of, train
from prepare.atomic_write import write_with
from prepare.datasets.mad_sim import prepare_mad_sim
from prepare.generate.dataset import Settings, generate
from prepare.generate.objects import Family
from prepare.image import read_mask
from prepare.scene import Scene, load_query_image, load_scene
from recon.fit import Photo, fit_photos, load_photo
from recon.rasterize import RasterOptions, rasterize
from recon.reference import Reference, load_reference, reference_from_fit, save_reference
from splatad.finder import over_background
from splatad.threads import leave_cores_to_the_kernel

HELD_OUT_EVERY = 3  # few fitted photos: a render is to be as wrong as a sparse reference's


@dataclass(frozen=True)
class Train:
    """Make the products, fit them, train the comparison."""

    families: tuple[Family, ...] = ("truck", "pump", "locomotive", "robot")
    """Kinds of product."""
    seeds: tuple[int, ...] = (11, 12)
    """Another seed is another product of the kind."""
    views: int = 48
    """Reference photos a product; every third is kept from the fit and becomes examples."""
    defects: int = 8
    """Test photos of each of the three defect types a product."""
    splats: int = 50_000
    """Most splats a product may have."""
    work: Path = Path("splatad-work/train-comparer")
    """Where products, fits and examples are kept."""
    out: Path = START
    """The file of weights to write."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3000, synthetic=5))
    """How the network is trained."""


def main(config: Train) -> None:
    leave_cores_to_the_kernel(torch.device("cpu"))
    examples: list[Example] = []
    for seed in config.seeds:
        for family in config.families:
            name = f"{family}_{seed}"
            path = config.work / "examples" / f"{name}.safetensors"
            if not path.exists():
                started = time.perf_counter()
                made = _examples(config, family, seed, name)
                tensors = {f"{i}.inputs": e.inputs.contiguous() for i, e in enumerate(made)}
                tensors |= {f"{i}.defect": e.defect.contiguous() for i, e in enumerate(made)}
                write_with(path, lambda temporary, held=tensors: save_file(held, temporary))
                print(f"{name}: {len(made)} examples in {time.perf_counter() - started:.0f} s", flush=True)
            tensors = load_file(path)
            examples += [
                Example(tensors[f"{i}.inputs"], tensors[f"{i}.defect"]) for i in range(len(tensors) // 2)
            ]
    print(f"{len(examples)} examples", flush=True)
    torch.set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    running = 0.0

    def show(step: int, loss: float) -> None:
        nonlocal running
        running = loss if step == 1 else 0.98 * running + 0.02 * loss
        if step % 100 == 0:
            print(f"step {step}: loss {running:.3f}, {time.perf_counter() - started:.0f} s", flush=True)

    network = train(examples, config.train, new_comparer(config.train.seed), show)
    save_comparers(config.out, [network])
    print(f"written to {config.out}: {sum(p.numel() for p in network.parameters()):,} weights")


def _examples(config: Train, family: Family, seed: int, name: str) -> list[Example]:
    settings = Settings(
        family=family, seed=seed, views=config.views, good=4, defects=config.defects, size_px=400
    )
    generate(config.work / "raw", name, settings, 0, lambda done, total: None)
    folder = config.work / "scenes" / name
    if not (folder / "transforms.json").exists():
        prepare_mad_sim(config.work / "raw", lambda n: config.work / "scenes" / n, classes=[name])
    scene = load_scene(folder)
    fit_config = dataclasses.replace(
        recon.fit.PRESETS["default"], splats=config.splats, stop_early=False, seed=seed
    )
    photos = [load_photo(view, fit_config.size_px) for view in scene.views]
    reference = _reference(config.work / "references" / name, name, photos, fit_config, folder)
    good = look_at_good_photos(detector_of(RULE, reference, NOTHING_EXPECTED), photos, [None] * len(photos))
    made: list[Example] = []
    for i, (photo, view) in enumerate(zip(photos, reference.views, strict=True)):
        if view.held_out:
            expected = expectation(reference, good.expected_without(i), photo.camera)
            made += examples_of(
                photo, reference.gaussians, reference.options, expected, difference_channels,
                config.train.synthetic, 1000 * seed + i,
            )  # fmt: skip
    options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
    for photo, defect in _tests(scene, reference):
        with torch.no_grad():
            render = rasterize(reference.gaussians, photo.camera, photo.background, options=options)
        expected = expectation(reference, good.expected, photo.camera)
        made.append(example_of(photo, defect, render, expected, difference_channels))
    return made


def _reference(
    folder: Path, name: str, photos: list[Photo], config: recon.fit.FitConfig, scene: Path
) -> Reference:
    if not (folder / "reference.json").exists():
        held_out = set(range(0, len(photos), HELD_OUT_EVERY))
        fit = fit_photos(photos, config, held_out=held_out, checkpoint=folder / "checkpoint")
        options = RasterOptions(antialiased=config.antialiased)
        save_reference(
            folder, reference_from_fit(name, fit, options, config.size_px, scene, dataclasses.asdict(config))
        )
    return load_reference(folder)


def _tests(scene: Scene, reference: Reference) -> list[tuple[Photo, torch.Tensor]]:
    """The product's test photos at their true cameras, with their true defects."""
    found = []
    for query in scene.queries:
        assert query.world_to_cam is not None
        camera = reference.camera.moved(query.world_to_cam.float())
        image = load_query_image(query.image_path, longest_px=reference.size_px)
        rgb = over_background(image, reference.background)
        defect = torch.zeros(rgb.shape[:2], dtype=torch.bool)
        if query.mask_path is not None:
            defect = mask_at_map_size(read_mask(query.mask_path), *rgb.shape[:2])
        found.append((Photo(query.name, camera, rgb, image.alpha, reference.background, None), defect))
    return found


if __name__ == "__main__":
    main(tyro.cli(Train, description=__doc__))
