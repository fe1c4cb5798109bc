"""One photo in, what the shape's network says of it out: read, find the camera where splats allow it, compare, decide."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detect.calibrate import Calibration, calibrate
from detect.cmt.predict import Photo, Prediction, Predictor, frame_photo
from detect.cmt.reference import ReferenceViews
from detect.verdict import Verdict, no_part_verdict
from pose.locate import BeliefLimits, Located
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.foreground import without_shadow
from prepare.image import may_have_alpha, read_image
from prepare.scene import ViewImage, load_query_image
from splatad.cmt_reference import ShapeReference
from splatad.finder import over_background

LONGEST_PX = 1024  # of a photo: the network's own pictures are smaller
LEAST_AREA = 0.8  # under the ROC of held-out shapes: below it a score is no ground for a verdict
VOTED = 3  # sides that the matches vote for, from which the camera is sought too
DARK_GROUND = 0.4  # of its darkest channel: no shadow is told from it
WITHOUT_GOOD = "; photos of good parts (--good) set a limit of the part's own"
CLUTTERED = (
    "the ground behind the part is not plain, so that the part cannot be told from it: cut it out (a PNG with alpha), or "
    "photograph it on a plain ground"
)


@dataclass(frozen=True)
class ShapeInspection:
    """What was said of one photo."""

    name: str
    verdict: Verdict
    photo: Float[Tensor, "height width rgb=3"]  # on white where its ground is plain
    framed: Photo | None  # as the network saw it; None where it was not asked
    prediction: Prediction | None
    located: Located | None  # where the camera was sought
    aiding: ReferenceViews | None  # the reference from the photo's own camera, where it is believed
    seconds: Mapping[str, float]  # by stage

    @property
    def way(self) -> str:
        """aided: with a view from the photo's own camera; else plain."""
        return "plain" if self.aiding is None else "aided"


class ShapeInspector:
    """Inspects photos against one shape. A photo's result depends on that photo (and `calibration`) alone."""

    def __init__(self, predictor: Predictor, reference: ShapeReference) -> None:
        self.predictor, self.reference = predictor, reference
        self.calibration: Calibration | None = None  # of this part's own good photos; else the chairs' limit

    @property
    def usual_way(self) -> Literal["plain", "aided"]:
        """How photos are compared unless their camera cannot be found."""
        aided = self.reference.finder is not None
        return "aided" if aided else "plain"

    def calibrate(
        self,
        paths: Sequence[Path],
        false_alarm_rate: float | None,
        on_photo: Callable[[], None] = lambda: None,
    ) -> Calibration:
        """Set the limit by photos of good parts, compared in the usual way.

        Raises: InputError where none can be scored or one cannot be read; UsageError for a rate that they do not support.
        """
        self.calibration = None
        scores, names, lost = [], [], 0
        for path in paths:
            result = self.inspect(path)
            if result.prediction is None or result.way != self.usual_way:
                lost += 1
            else:
                scores.append(result.prediction.score)
                names.append(path.name)
            on_photo()
        if not scores:
            raise InputError(f"--good: in none of the {len(paths)} photos was the part found")
        self.calibration = calibrate(
            scores, names, false_alarm_rate, BeliefLimits(), source="given", detector="cmt", lost=lost
        )
        return self.calibration

    def inspect(self, path: Path) -> ShapeInspection:
        """The inspection of the photo in `path`.

        Raises: InputError for a file that is no readable photo.
        """
        began = time.perf_counter()
        finder = self.reference.finder
        lens = None if finder is None else finder.lens(path)
        if lens is None or self.reference.read is None:
            image = load_query_image(path, longest_px=LONGEST_PX)
        else:
            image = self.reference.read(path, lens)
        seconds = {"read": time.perf_counter() - began}
        shadowed = may_show_shadow(image) and not has_alpha(path)
        white = on_white(image) if shadowed else over_background(image, torch.ones(3))
        limits = BeliefLimits() if finder is None else finder.belief

        def cannot_tell(verdict: Verdict, located: Located | None = None) -> ShapeInspection:
            return ShapeInspection(path.name, verdict, white.clamp(0, 1), None, None, located, None, seconds)

        if image.background is None and not bool((image.alpha < 0.5).any()):
            return cannot_tell(Verdict("CANNOT TELL", (CLUTTERED,)))
        if float(image.alpha.mean()) < limits.least_part_share:
            return cannot_tell(no_part_verdict(limits.least_part_share))
        began = time.perf_counter()
        network = self.predictor.network.config
        framed = frame_photo(white, image.alpha, network.px, near=True, shadowed=shadowed)
        located: Located | None = None
        aiding: ReferenceViews | None = None
        notes: tuple[str, ...] = ()
        if lens is not None:
            sides = self.predictor.nearest_sides(framed, self.reference.encoded, VOTED)
            seconds["votes"] = time.perf_counter() - began
            if shadowed:  # shadows are no part of the outline
                image = replace(image, alpha=without_shadow(white, image.alpha))
            located = self.reference.locate(image, lens, sides)
            if located is None:
                return cannot_tell(no_part_verdict(limits.least_part_share))
            seconds |= located.seconds
            began = time.perf_counter()
            aiding, notes = self._aiding(located, framed)
        limit = None if self.calibration is None else self.calibration.threshold
        prediction = self.predictor.predict([framed], self.reference.encoded, [aiding], limit)[0]
        seconds["compare"] = time.perf_counter() - began
        verdict = self._verdict(prediction, "plain" if aiding is None else "aided", notes)
        return ShapeInspection(
            path.name, verdict, white.clamp(0, 1), framed, prediction, located, aiding, seconds
        )

    def _aiding(self, located: Located, framed: Photo) -> tuple[ReferenceViews | None, tuple[str, ...]]:
        """The part from the photo's own camera, in its square frame; else why not."""
        reference = self.reference
        assert reference.aiding is not None
        assert reference.frame is not None
        if not located.believed:
            why = located.reasons[0] if located.reasons else "it is not believed"
            return None, (f"compared without the photo's camera: {why}",)
        camera = reference.frame.into_network(
            in_frame(located.camera, framed, self.predictor.network.config.px)
        )
        try:
            return reference.aiding(camera), ()
        except InputError as error:
            return None, (f"compared without the photo's camera: {error}",)

    def _verdict(
        self, prediction: Prediction, way: Literal["plain", "aided"], notes: tuple[str, ...]
    ) -> Verdict:
        if self.calibration is not None:
            return self._verdict_of_this_part(prediction, way, notes)
        area = held_out_area(self.predictor, way)
        if area is not None and area < LEAST_AREA:
            hint = WITHOUT_GOOD if way == self.usual_way else ""
            weak = (
                f"{'with' if way == 'aided' else 'without'} the photo's camera this network puts only {area:.0%} of "
                f"held-out pairs of a defective and a good photo in the right order, too few for a verdict{hint}"
            )
            return Verdict("CANNOT TELL", (weak, f"probability of a defect {prediction.score:.2f}", *notes))
        side = "above" if prediction.label else "not above"
        said = f"probability of a defect {prediction.score:.2f}, {side} the limit {prediction.threshold:.2f}"
        return Verdict("NG" if prediction.label else "OK", (said, *notes, calibrated_on(self.predictor)))

    def _verdict_of_this_part(
        self, prediction: Prediction, way: Literal["plain", "aided"], notes: tuple[str, ...]
    ) -> Verdict:
        """By the limit that good photos of the part itself set."""
        assert self.calibration is not None
        score, limit = prediction.score, self.calibration.threshold
        if way != self.usual_way:
            return Verdict(
                "CANNOT TELL",
                (*notes, "the limit was set with photos whose camera was found"),
            )
        side = "above" if score > limit else "not above"
        said = (
            f"score {score:.6g}, {side} the limit {limit:.6g} of {len(self.calibration.good_scores)} good photos of this "
            f"part (false-alarm rate {self.calibration.false_alarm_rate:.1%})"
        )
        return Verdict("NG" if score > limit else "OK", (said, *notes))


def may_show_shadow(image: ViewImage) -> bool:
    """Whether what was told from the photo's ground may be shadow: not on dark ground, nor where the part was cut out."""
    return (
        image.background is not None and image.uncut is None and float(image.background.min()) >= DARK_GROUND
    )


def on_white(image: ViewImage) -> Float[Tensor, "height width rgb=3"]:
    """A photo on plain light ground as if that were white: a shadow keeps its share of the ground's light.

    What is lighter than the ground gets values above 1.
    """
    assert image.background is not None
    return image.rgb / image.background


def has_alpha(path: Path) -> bool:
    """Whether the file itself says what of it is the part."""
    if not may_have_alpha(path):  # most cannot, and are not decoded a second time
        return False
    alpha = read_image(path).alpha
    return alpha is not None and bool((alpha < 1).any())


def held_out_area(predictor: Predictor, way: Literal["plain", "aided"]) -> float | None:
    """Area under the ROC that the network reached on held-out shapes in this way of use; None where its file says none."""
    held_out = predictor.about.get("held_out")
    found = held_out.get(f"{way}_auc") if isinstance(held_out, dict) else None
    return float(found) if isinstance(found, float | int) else None


def limit_note(inspector: ShapeInspector) -> str:
    """What the limit means, as a plain sentence."""
    if inspector.calibration is not None:
        return inspector.calibration.note
    return calibrated_on(inspector.predictor)


def calibrated_on(predictor: Predictor) -> str:
    """For what kind of part the probability and its limit hold, as a plain sentence."""
    about = predictor.about
    data = about.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    made_by = source.get("made_by") if isinstance(source, dict) else None
    chairs = "generated chairs" if "generate chairs" in str(made_by) else "the chairs of its training set"
    shapes = about.get("held_out_shapes")
    held_out = f" (its limit on {shapes} held-out shapes)" if isinstance(shapes, int) and shapes else ""
    return f"probability calibrated on {chairs} alone{held_out}: of other parts and of real photos it is only a hint"


def in_frame(camera: Camera, framed: Photo, px: int) -> Camera:
    """The photo's camera for its square frame of `px`: the same rays, other pixels."""
    scale = px / framed.side
    return Camera(
        camera.world_to_cam,
        camera.fl_x * scale,
        camera.fl_y * scale,
        (camera.cx + framed.left) * scale,
        (camera.cy + framed.top) * scale,
        px,
        px,
    )
