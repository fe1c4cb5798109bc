from __future__ import annotations

import numpy as np
import torch

from prepare.photo_pairs import alike_pairs, all_pairs, sequence_pairs, signatures


def test_few_photos_are_matched_all_with_all() -> None:
    assert all_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_a_sequence_has_neighbours_and_farther_ones_at_powers_of_two() -> None:
    pairs = sequence_pairs(40, neighbours=3)
    assert {j for i, j in pairs if i == 10} == {11, 12, 13, 14, 18}
    assert all(0 <= i < j < 40 for i, j in pairs)


def test_photos_of_the_same_things_are_found_however_far_apart_in_the_list() -> None:
    rng = np.random.default_rng(0)
    things = rng.normal(size=(5, 40, 128))  # five sides of a part, 40 details each

    def photo(side: int) -> torch.Tensor:
        features = things[side] + 0.1 * rng.normal(size=(40, 128))
        return torch.nn.functional.normalize(torch.from_numpy(features.astype(np.float32)), dim=1)

    sides = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    found = signatures([photo(side) for side in sides], seed=0)
    assert alike_pairs(found, nearest=1) == {(i, i + 5) for i in range(5)}
    assert torch.allclose(found.norm(dim=1), torch.ones(10))


def test_a_photo_without_features_has_a_signature_of_zeros() -> None:
    features = torch.nn.functional.normalize(torch.rand(20, 128), dim=1)
    found = signatures([features, torch.zeros(0, 128)], seed=0)
    assert float(found[1].abs().max()) == 0.0
    assert alike_pairs(found, nearest=5) == {(0, 1)}
