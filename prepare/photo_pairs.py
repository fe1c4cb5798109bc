"""Which photos to match with which: all with all for few, neighbours and look-alikes for many.

Look-alikes are found by the photos' own words: a vocabulary of descriptors is clustered from the set itself, so that
nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

WORDS = 64
_SAMPLE = 40_000  # descriptors that the vocabulary is made from
_ROUNDS = 12


def all_pairs(count: int) -> list[tuple[int, int]]:
    """Every two of `count` photos."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def sequence_pairs(count: int, neighbours: int) -> set[tuple[int, int]]:
    """Each photo with the `neighbours` after it, and with those 2, 4, 8, ... (up to 2 ** neighbours) further on."""
    steps = {*range(1, neighbours + 1), *(2**power for power in range(neighbours + 1))}
    return {(i, i + step) for i in range(count) for step in steps if i + step < count}


def alike_pairs(signatures: Float[Tensor, "photos length"], nearest: int) -> set[tuple[int, int]]:
    """Each photo with the `nearest` others whose signatures are most like its own."""
    likeness = signatures @ signatures.T
    likeness.fill_diagonal_(-torch.inf)
    count = len(signatures)
    best = likeness.topk(min(nearest, count - 1), dim=1).indices.tolist()
    return {(min(i, j), max(i, j)) for i in range(count) for j in best[i]}


def signatures(descriptors: list[Float[Tensor, "_ length"]], seed: int) -> Float[Tensor, "photos all"]:
    """One unit vector for each photo: the residuals of its descriptors to their words, summed (VLAD, 64 words).

    A photo without features gets zeros. Source: Jegou et al. 2010; the signed root and the normalisation word by word
    are Arandjelovic and Zisserman's, 2013.
    """
    length = next((features.shape[1] for features in descriptors if len(features)), 128)
    everything = torch.cat(
        [features for features in descriptors if len(features)] or [torch.zeros(1, length)]
    )
    rng = np.random.default_rng(seed)
    if len(everything) > _SAMPLE:
        everything = everything[
            torch.from_numpy(np.sort(rng.choice(len(everything), _SAMPLE, replace=False)))
        ]
    words = _cluster(everything, rng)
    out = torch.zeros(len(descriptors), len(words), length)
    for row, features in enumerate(descriptors):
        if len(features):
            word = _nearest(features, words)
            out[row].index_add_(0, word, features - words[word])
    out = torch.nn.functional.normalize(out.sign() * out.abs().sqrt(), dim=-1)
    return torch.nn.functional.normalize(out.flatten(1), dim=1)


def _cluster(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Lloyd's k-means from random points; a word that loses all its points stays where it is."""
    start = np.sort(rng.choice(len(points), min(WORDS, len(points)), replace=False))
    words = points[torch.from_numpy(start)].clone()
    for _ in range(_ROUNDS):
        word = _nearest(points, words)
        count = torch.bincount(word, minlength=len(words)).to(points)
        total = torch.zeros_like(words).index_add_(0, word, points)
        words = torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], words)
    return words


def _nearest(points: Tensor, words: Tensor) -> Int[Tensor, " points"]:
    return (points @ words.T - 0.5 * words.square().sum(dim=1)).argmax(dim=1)
