"""A photo taken under another light than the reference photos, brought back to their light before it is compared.

Model, on the part: photo = gain_c * shade(u, v) * render_c + bias_c, with `shade` smooth over a quarter of the part. It
has few and bounded freedoms and is fitted robustly, so that no stain is explained away: a stain is smaller than the
shading's cells, and its pixels lose their say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pose.residual import Exposure

CELLS = 4  # of the shading along each side of the part's box
MOST_SHADE = math.log(1.35)  # the shading lies within 1 / 1.35 and 1.35
LEAST_GAIN, MOST_GAIN, MOST_BIAS = 0.4, 2.5, 0.15
SHADE_PRIOR, GAIN_PRIOR, BIAS_PRIOR = 2e-2, 1e-4, 1e-2  # pull to none, as shares of the part's pixels
HUBER = 0.06  # residual norm beyond which a pixel's say falls
ROUNDS = 8
SAMPLED_PX = 20_000  # at most so many pixels of the part are fitted to
OTHER_GAIN, OTHER_BIAS = 0.06, 0.03  # an exposure so far from none is another light
LEAST_SHADE = 0.02  # light less than this is told as brightness alone


@dataclass(frozen=True)
class Illumination:
    """How the light on the part in a photo differs from the reference's."""

    gain: Float[Tensor, "rgb=3"]
    bias: Float[Tensor, "rgb=3"]
    shade: Float[Tensor, "height width"]  # mean about 1 over the part

    def removed(
        self,
        rgb: Float[Tensor, "height width rgb=3"],
        alpha: Float[Tensor, "height width"],
        background: Float[Tensor, "rgb=3"],
    ) -> Float[Tensor, "height width rgb=3"]:
        """The photo (over `background`) as the reference's light would have shown it; what was clipped stays so."""
        share = alpha[..., None]
        part = rgb - (1 - share) * background
        part = (part - self.bias * share) / (self.gain * self.shade[..., None])
        return (part + (1 - share) * background).clamp(0, 1)

    @property
    def words(self) -> str:
        """For people."""
        brightness = ", ".join(f"{value:.2f}" for value in self.gain.tolist())
        uneven = float(self.shade.max() / self.shade.min()) - 1.0
        told = f"the light is not the reference's (brightness of red, green, blue {brightness}"
        return told + (f"; uneven by {uneven:.0%})" if uneven > LEAST_SHADE else ")") + ": allowed for"


def is_other_light(exposure: Exposure) -> bool:
    """Whether an exposure found along with the camera is more than what differs between photos of one session."""
    return (
        max(abs(math.log(max(gain, 1e-6))) for gain in exposure.gain) > OTHER_GAIN
        or max(abs(bias) for bias in exposure.bias) > OTHER_BIAS
    )


def fit_illumination(
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    render: Float[Tensor, "height width rgb=3"],
    render_alpha: Float[Tensor, "height width"],
) -> Illumination:
    """The light that brings `render` nearest to the photo `rgb` where both show the part.

    Iteratively reweighted least squares (Huber 1964), gains and biases in turn with the shading; clipped pixels have no
    say. Nothing changes where too little of the part is seen.
    """
    height, width = alpha.shape
    even = Illumination(torch.ones(3), torch.zeros(3), torch.ones(height, width))
    seen = (alpha > 0.95) & (render_alpha > 0.95) & (rgb > 0.004).any(dim=-1) & (rgb < 0.996).all(dim=-1)
    rows, columns = seen.nonzero().unbind(-1)
    if len(rows) < 20 * CELLS * CELLS:
        return even
    box = (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
    step = math.ceil(len(rows) / SAMPLED_PX)
    rows, columns = rows[::step], columns[::step]
    photo, model = rgb[rows, columns].double(), render[rows, columns].double()
    basis = _bilinear(rows, columns, box)
    count = len(rows)
    gain, bias = torch.ones(3).double(), torch.zeros(3).double()
    log_shade = torch.zeros(CELLS * CELLS).double()
    for _ in range(ROUNDS):
        shaded = model * (basis @ log_shade).exp()[:, None]
        residual = (gain * shaded + bias - photo).norm(dim=1)
        weight = (HUBER / residual.clamp_min(HUBER)) ** 2
        for channel in range(3):
            columns_ = torch.stack([shaded[:, channel], torch.ones(count).double()], dim=1)
            prior = torch.diag(torch.tensor([GAIN_PRIOR, BIAS_PRIOR]).double()) * count
            system = columns_.T @ (weight[:, None] * columns_) + prior
            wanted = columns_.T @ (weight * photo[:, channel]) + prior @ torch.tensor([1.0, 0.0]).double()
            solved = torch.linalg.solve(system, wanted)
            gain[channel] = solved[0].clamp(LEAST_GAIN, MOST_GAIN)
            bias[channel] = solved[1].clamp(-MOST_BIAS, MOST_BIAS)
        # The shading, linearised: photo - bias - exposed = exposed * basis * change.
        exposed = gain * shaded
        slope = exposed.square().sum(dim=1)
        pull = (exposed * (photo - bias - exposed)).sum(dim=1)
        system = basis.T @ ((weight * slope)[:, None] * basis)
        system += (
            SHADE_PRIOR * float((weight * slope).sum()) / len(log_shade) * torch.eye(len(log_shade)).double()
        )
        wanted = basis.T @ (weight * (pull + slope * (basis @ log_shade)))
        log_shade = torch.linalg.solve(system, wanted).clamp(-MOST_SHADE, MOST_SHADE)
        log_shade -= float((basis @ log_shade).mean())  # brightness as a whole is the gain's
    grid_rows, grid_columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    everywhere = _bilinear(grid_rows.reshape(-1), grid_columns.reshape(-1), box)
    shade = (everywhere @ log_shade).exp().reshape(height, width)
    return Illumination(gain.float(), bias.float(), shade.float())


def _bilinear(rows: Tensor, columns: Tensor, box: tuple[int, int, int, int]) -> Float[Tensor, "n cells"]:
    """Weights of the CELLS x CELLS knots over `box` (top, bottom, left, right) at pixels; constant beyond it."""
    top, bottom, left, right = box
    weights = torch.zeros(len(rows), CELLS * CELLS).double()
    down = ((rows.double() + 0.5 - top) / max(1, bottom - top) * (CELLS - 1)).clamp(0, CELLS - 1)
    along = ((columns.double() + 0.5 - left) / max(1, right - left) * (CELLS - 1)).clamp(0, CELLS - 1)
    first_row, first_column = down.long().clamp(max=CELLS - 2), along.long().clamp(max=CELLS - 2)
    part_down, part_along = down - first_row, along - first_column
    index = torch.arange(len(rows))
    for row, by_row in ((0, 1 - part_down), (1, part_down)):
        for column, by_column in ((0, 1 - part_along), (1, part_along)):
            weights[index, (first_row + row) * CELLS + first_column + column] = by_row * by_column
    return weights
