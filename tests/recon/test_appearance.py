"""Silhouettes in one flat colour, of photos and of splats alike."""

import torch

from prepare.camera import Camera, look_at
from recon.appearance import DARK, LIGHT, flat_colour, flattened, flattened_photo, one_colour
from recon.fit import Photo
from recon.gaussians import gaussians_from_points
from recon.rasterize import RasterOptions, rasterize

WHITE, BLACK = torch.ones(3), torch.zeros(3)


def test_the_flat_colour_stands_out_from_the_background():
    assert flat_colour(WHITE) == DARK
    assert flat_colour(BLACK) == LIGHT


def test_a_photo_keeps_its_outline_and_nothing_else():
    alpha = torch.zeros(8, 8)
    alpha[2:6, 2:6] = 1
    alpha[2, 2:6] = 0.5
    camera = Camera(torch.eye(4), 8.0, 8.0, 4.0, 4.0, 8, 8)
    flat = flattened_photo(Photo("a", camera, torch.rand(8, 8, 3), alpha, WHITE, None))
    assert torch.equal(flat.rgb, flattened(alpha, WHITE))
    assert torch.allclose(flat.rgb[3, 3], torch.full((3,), DARK))
    assert torch.allclose(flat.rgb[2, 3], torch.full((3,), 0.5 * (DARK + 1)))
    assert torch.equal(flat.rgb[0, 0], WHITE)


def test_splats_of_one_colour_render_as_the_flattened_photo_of_their_own_silhouette():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 3, generator=generator) * 0.3
    gaussians = gaussians_from_points(
        points, torch.rand(400, 3, generator=generator), torch.full((400,), 0.1), opacity=0.8, sh_degree=2
    )
    gaussians.sh[:, 1:] = 0.3 * torch.randn(400, 8, 3, generator=generator)
    place = look_at(torch.tensor([2.0, 1.0, 1.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(place, 60.0, 60.0, 24.0, 24.0, 48, 48)
    for background in (WHITE, BLACK):
        render = rasterize(one_colour(gaussians, background), camera, background, options=RasterOptions())
        assert (render.rgb - flattened(render.alpha, background)).abs().max() < 1e-5
        coloured = rasterize(gaussians, camera, background, options=RasterOptions())
        assert torch.equal(render.alpha, coloured.alpha)
