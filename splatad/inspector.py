"""One photo in, one inspection out: load, locate, render, compare, decide. Keeps the reference loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from detect.anomaly_map import AnomalyMap
from detect.defects import Defect, find_defects
from detect.illumination import fit_illumination, is_other_light
from detect.verdict import Verdict, decide, no_part_verdict
from pose.locate import BeliefLimits, LocateConfig, Located, locate
from pose.residual import Exposure
from prepare.camera import Camera
from prepare.scene import ViewImage
from recon.rasterize import RasterOptions, Render, rasterize
from recon.surroundings import over
from splatad.finder import Finder, over_background
from splatad.lens import LensMode, QueryLens
from splatad.pose_output import pose_document
from splatad.reference_dir import LoadedReference, load_whole_reference

SHAPE_ONLY = (
    "the reference has no colours of its own: geometry alone was compared. The part's outline and the edges of its shape "
    "inside it gave the camera; defects are looked for along the outline, not inside it"
)
# Surroundings reach beyond every frame and have no outline.
IN_SURROUNDINGS = BeliefLimits(least_overlap=0.0, least_in_frame=0.0)


@dataclass(frozen=True)
class Inspection:
    """What was found in one photo."""

    name: str
    verdict: Verdict
    photo: Float[Tensor, "height width rgb=3"]  # as compared: scaled, over the reference's background
    alpha: Float[Tensor, "height width"]  # the part's share of each photo pixel
    located: Located | None  # None where no part was found
    render: Render | None  # of the reference at the found camera
    anomaly: AnomalyMap | None
    defects: tuple[Defect, ...]  # strongest first; empty unless NG
    seconds: Mapping[str, float]  # by stage
    lens: QueryLens | None = None  # as it was before the camera was found; None for an image in memory
    uncut: Float[Tensor, "height width rgb=3"] | None = (
        None  # before its surroundings were cut away; None: as `photo`
    )

    @property
    def shown(self) -> Float[Tensor, "height width rgb=3"]:
        """The photo for people, on the CPU: with its own surroundings where these were cut away to compare it."""
        return (self.photo if self.uncut is None else self.uncut).cpu()

    @property
    def score(self) -> float | None:
        return None if self.anomaly is None else self.anomaly.score


class Inspector:
    """Inspects photos against one reference. A photo's result depends on that photo alone."""

    def __init__(
        self, loaded: LoadedReference, config: LocateConfig | None = None, lens_mode: LensMode = "auto"
    ) -> None:
        self.loaded = loaded
        self.finder = Finder(
            loaded.reference,
            loaded.levels,
            loaded.index,
            loaded.calibration.belief,
            loaded.landmarks,
            config or LocateConfig(),
            lens_mode,
        )

    @classmethod
    def open(
        cls, folder: Path, device: torch.device | None = None, lens_mode: LensMode = "auto"
    ) -> Inspector:
        """An inspector for the reference in `folder`.

        Raises: InputError where it is not a finished reference.
        """
        return cls(load_whole_reference(folder, device), lens_mode=lens_mode)

    def inspect(self, path: Path) -> Inspection:
        """The inspection of the photo in `path`.

        Raises: InputError for a file that is no readable photo, or whose lens is not what `lens_mode` asks for.
        """
        started = time.perf_counter()
        lens = self.lens(path)
        image = self.read(path, lens)
        read = time.perf_counter() - started
        return self.inspect_image(path.name, image, {"read": read}, lens)

    def lens(self, path: Path) -> QueryLens:
        """The lens of the photo in `path`, at the photo's own size.

        Raises: InputError as `splatad.lens.query_lens`.
        """
        return self.finder.lens(path)

    def read(self, path: Path, lens: QueryLens | None = None) -> ViewImage:
        """The photo in `path` as it is inspected: scaled, undistorted, with its lens (`self.lens(path)` if not given).

        Of a cluttered photo taken where the reference photos were, all but the part is cut away.
        Raises: InputError as `inspect`.
        """
        lens = lens or self.lens(path)
        return self.cut_out(self.finder.decode(path, lens), lens)

    def cut_out(self, image: ViewImage, lens: QueryLens | None = None) -> ViewImage:
        """`image` with the part alone, where it is cluttered and shows the surroundings that the reference photos show.

        The part's place is that of the reference's own silhouette at the camera that the whole scene gives; a camera
        that is not believed leaves `image` as it is.
        """
        whole = self.loaded.whole_scene
        if whole is None or image.background is not None or bool((image.alpha[image.valid] < 0.999).any()):
            return image
        assert image.camera is not None
        located = locate(
            whole.reference, whole.index, whole.levels, image.rgb, image.alpha, image.camera,
            background=whole.reference.background, config=self.finder.config_for(lens), limits=IN_SURROUNDINGS,
        )  # fmt: skip
        if located is None or not located.believed:
            return image
        camera = located.camera.moved(located.camera.world_to_cam.to(whole.reference.gaussians.device))
        alpha = whole.surroundings.alpha(camera, whole.reference.options)
        background = self.loaded.reference.background.cpu()
        return replace(
            image, rgb=over(image.rgb, alpha, background), alpha=alpha, background=background, uncut=image.rgb
        )

    def inspect_image(
        self,
        name: str,
        image: ViewImage,
        seconds: Mapping[str, float] | None = None,
        lens: QueryLens | None = None,
    ) -> Inspection:
        """The inspection of an image in memory; `image.camera` gives the lens, its pose is not looked at.

        `lens` says whether the focal length is to be refined; it is not where `lens` is not given.
        """
        return self.judge(name, image, self.locate(image, lens), seconds, lens)

    def locate(self, image: ViewImage, lens: QueryLens | None = None) -> Located | None:
        """The camera of `image`, None where it shows no part."""
        return self.finder.locate(image, lens)

    def _other_sides(self, located: Located) -> list[Located]:
        """The same with each of the other cameras from which the part looks the same."""
        cameras = (located.camera, *located.alternatives)
        return [
            replace(
                located,
                camera=camera,
                alternatives=tuple(other for other in cameras if other is not camera),
                nearest_view_deg=self.loaded.reference.nearest_view_deg(camera),
            )
            for camera in located.alternatives
        ]

    def _look(self, image: ViewImage, photo: Float[Tensor, "height width rgb=3"], located: Located) -> _Look:
        """`photo`, which is `image` over the reference's background, against the render at `located`."""
        loaded = self.loaded
        reference = loaded.reference
        background, device = reference.background, reference.gaussians.device
        camera = located.camera.moved(located.camera.world_to_cam.to(device))
        options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
        with torch.no_grad():
            render = rasterize(reference.gaussians, camera, background.to(device), options=options)
            compared, exposure = photo, located.exposure
            notes: tuple[str, ...] = ()
            if reference.shape_only:
                compared, notes = self.finder.compared(image), (SHAPE_ONLY,)
            elif is_other_light(located.exposure):
                light = fit_illumination(photo, image.alpha, render.rgb.cpu(), render.alpha.cpu())
                compared, exposure = light.removed(photo, image.alpha, background.cpu()), Exposure()
                notes = (light.words,)
            anomaly = loaded.detector.anomaly_map(compared.to(device), image.alpha.to(device), render, camera)
        difficulty = loaded.calibration.difficulty.at(located.nearest_view_deg)
        return _Look(
            located,
            camera,
            render,
            replace(anomaly, score=anomaly.score / difficulty),
            compared,
            exposure,
            notes,
        )

    def judge(
        self,
        name: str,
        image: ViewImage,
        located: Located | None,
        seconds: Mapping[str, float] | None = None,
        lens: QueryLens | None = None,
    ) -> Inspection:
        """The inspection of an image whose camera was found: comparison, verdict, defects."""
        loaded = self.loaded
        reference = loaded.reference
        background = reference.background
        photo = over_background(image, background)
        times = dict(seconds or {})
        if located is None:
            verdict = no_part_verdict(loaded.calibration.belief.least_part_share)
            return Inspection(
                name, verdict, photo, image.alpha, None, None, None, (), times, lens, image.uncut
            )
        times |= located.seconds
        started = time.perf_counter()
        look = min(
            (self._look(image, photo, one) for one in (located, *self._other_sides(located))),
            key=lambda look: look.anomaly.score,
        )
        located, render, anomaly, compared = look.located, look.render, look.anomaly, look.compared
        difficulty = loaded.calibration.difficulty.at(located.nearest_view_deg)
        part_px = int(((render.alpha.cpu() > 0.5) | (image.alpha > 0.5)).sum())
        verdict = decide(located, anomaly, part_px, loaded.calibration)
        verdict = replace(verdict, reasons=(*verdict.reasons, *look.notes))
        defects: tuple[Defect, ...] = ()
        if verdict.name == "NG":
            threshold = min(loaded.calibration.threshold, anomaly.score) * difficulty
            defects = find_defects(
                anomaly, threshold, compared, image.alpha, render, reference, look.camera, look.exposure
            )
        times["compare"] = time.perf_counter() - started
        return Inspection(
            name, verdict, photo, image.alpha, located, render, anomaly, defects, times, lens, image.uncut
        )


@dataclass(frozen=True)
class _Look:
    """A photo held against the reference at one camera."""

    located: Located
    camera: Camera  # the same, on the reference's device
    render: Render
    anomaly: AnomalyMap  # its score divided by how hard the camera's side is
    compared: Float[Tensor, "height width rgb=3"]  # the photo in the reference's light
    exposure: Exposure  # left in it
    notes: tuple[str, ...]  # for the verdict


def verdict_document(inspection: Inspection, loaded: LoadedReference, version: str) -> dict[str, Any]:
    """What goes into `verdict.json`: plain values only."""
    located, anomaly = inspection.located, inspection.anomaly
    reference, calibration = loaded.reference, loaded.calibration
    pose: dict[str, Any] | None = None
    if located is not None:
        pose = pose_document(located) | {
            "lens": None if inspection.lens is None else inspection.lens.source,
            "focal_refined": inspection.lens is not None and inspection.lens.fit_focal,
        }
    scale = reference.scale_to_mm
    return {
        "format": "splatad-verdict",
        "version": 1,
        "splatad": version,
        "photo": inspection.name,
        "reference": reference.name,
        "verdict": inspection.verdict.name,
        "reasons": list(inspection.verdict.reasons),
        "score": None if anomaly is None else anomaly.score,
        "score_divided_by": None if located is None else calibration.difficulty.at(located.nearest_view_deg),
        "threshold": calibration.threshold,
        "false_alarm_rate": calibration.false_alarm_rate,
        "attainable_rate": calibration.attainable_rate,
        "threshold_note": calibration.note,
        "unknown_px": None if anomaly is None else int((~anomaly.known).sum()),
        "pose": pose,
        "defects": [
            {
                "kind": defect.kind,
                "box_px": list(defect.box),
                "area_px": defect.area_px,
                "peak": defect.peak,
                "mean": defect.mean,
                "centre": None if defect.centre is None else list(defect.centre),
                "extent": defect.extent,
                "extent_mm": None if scale is None or defect.extent is None else defect.extent * scale,
            }
            for defect in inspection.defects
        ],
        "seconds": {stage: round(value, 4) for stage, value in inspection.seconds.items()},
    }
