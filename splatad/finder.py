"""What finds the camera of a photo: a reference with its pose index, and how a photo is read to be held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from pose.index import PoseIndex
from pose.inner_edges import photo_edges
from pose.landmarks import Landmarks
from pose.locate import BeliefLimits, LocateConfig, Located, locate
from pose.pyramid import SplatLevels
from prepare.scene import ViewImage, load_query_image
from recon.appearance import flattened
from recon.reference import Reference
from splatad.lens import LensMode, QueryLens, query_lens


@dataclass(frozen=True)
class Finder:
    """Finds the cameras of photos of one part. A photo's result depends on that photo alone."""

    reference: Reference
    levels: SplatLevels
    index: PoseIndex
    belief: BeliefLimits
    landmarks: Landmarks | None = None  # local features that give rough cameras too
    config: LocateConfig = field(default_factory=LocateConfig)
    lens_mode: LensMode = "auto"

    def lens(self, path: Path) -> QueryLens:
        """The lens of the photo in `path`, at the photo's own size.

        Raises: InputError as `splatad.lens.query_lens`.
        """
        return query_lens(self.reference, path, self.lens_mode)

    def decode(self, path: Path, lens: QueryLens) -> ViewImage:
        """The photo in `path` scaled and undistorted, with all that it shows.

        Raises: InputError for a file that is no readable photo.
        """
        return load_query_image(
            path, longest_px=self.reference.size_px, camera=lens.camera, distortion=lens.distortion
        )

    def compared(self, image: ViewImage) -> Float[Tensor, "height width rgb=3"]:
        """What of `image` is held against the reference: the photo over its background, or its silhouette alone."""
        background = self.reference.background.cpu()
        if self.reference.shape_only:
            return flattened(image.alpha, background)
        return over_background(image, background)

    def config_for(self, lens: QueryLens | None) -> LocateConfig:
        """How to seek the camera of a photo through `lens`: its focal length is solved along where it is a guess."""
        if lens is None or not lens.fit_focal:
            return self.config
        # Outlines alone hardly tell a long lens from a near camera.
        guess = lens.camera.fl_x / lens.camera.width if self.reference.shape_only else 0.0
        levenberg = replace(self.config.levenberg, focal=True, focal_guess=guess)
        return replace(self.config, levenberg=levenberg)

    def locate(
        self,
        image: ViewImage,
        lens: QueryLens | None = None,
        towards: Sequence[Float[Tensor, "xyz=3"]] = (),
    ) -> Located | None:
        """The camera of `image`, None where it shows no part; `towards` as `pose.locate.locate` takes it."""
        assert image.camera is not None
        inner = None
        if self.reference.shape_only:
            inner = photo_edges(over_background(image, self.reference.background.cpu()), image.alpha)
        return locate(
            self.reference,
            self.index,
            self.levels,
            self.compared(image),
            image.alpha,
            image.camera,
            background=self.reference.background,
            config=self.config_for(lens),
            limits=self.belief,
            landmarks=self.landmarks,
            inner=inner,
            towards=towards,
        )


def over_background(
    image: ViewImage, background: Float[Tensor, "rgb=3"]
) -> Float[Tensor, "height width rgb=3"]:
    """The photo with its own plain background exchanged for `background`; as it is where its background is not plain."""
    if image.background is None:
        return image.rgb
    share = 1.0 - image.alpha[..., None]
    return (image.rgb + share * (background - image.background)).clamp(0, 1)
