"""Masks found in photos on white ground: bounds of the cells' shares, settled by the reference."""

import torch

from detect.cmt.found_mask import CellBounds, bounds_on_white


def test_the_reference_settles_what_the_photo_leaves_open_and_nothing_else() -> None:
    bounds = CellBounds(
        torch.tensor([0.0, 0.2, 0.8]), torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0.0, 0.9, 1.0])
    )
    assert torch.equal(bounds.share(None), bounds.likely)
    # A part that the photo surely does not show is missing, whatever the reference says; and the other way round.
    assert bounds.share(torch.tensor([1.0, 0.4, 0.0])).tolist() == torch.tensor([0.0, 0.4, 0.8]).tolist()


def test_a_shadow_is_no_difference_but_a_missing_piece_is() -> None:
    rgb = torch.ones(64, 64, 3)
    rgb[8:40, 16:48] = torch.tensor([0.7, 0.4, 0.1])
    rgb[40:56, 16:64] = torch.linspace(0.6, 0.98, 48)[None, :, None]
    reference = torch.zeros(8, 8)
    reference[1:5, 2:6] = 1.0
    share = bounds_on_white(rgb).share(reference.flatten()).view(8, 8)
    assert float((share - reference).abs().max()) < 0.05
    rgb[8:24, 16:32] = 1.0
    share = bounds_on_white(rgb).share(reference.flatten()).view(8, 8)
    assert float(share[1:3, 2:4].max()) == 0.0
