"""LPIPS against the paper's formula in numpy loops, under random weights in files like the real ones; what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prepare.weights as weights
from prepare.errors import InputError, MissingPartError
from prepare.weights import REGISTRY
from recon.lpips import MIN_SIDE_PX, Lpips, load_lpips

NETWORK, CALIBRATION = "alexnet-owt-7be5be79.pth", "lpips_alex_v0.1.pth"
# number in the file, channels, inputs, side of the filter, stride, padding, pooled before
LAYERS = [
    (0, 64, 3, 11, 4, 2, False),
    (3, 192, 64, 5, 1, 2, True),
    (6, 384, 192, 3, 1, 1, True),
    (8, 256, 384, 3, 1, 1, False),
    (10, 256, 256, 3, 1, 1, False),
]

Edit = Callable[[dict[str, Tensor]], Any]


def _features() -> dict[str, Tensor]:
    """Random filters that keep the signal's size from layer to layer, and a part of the classifier, which is unused."""
    generator = torch.Generator().manual_seed(1)
    tensors = {"classifier.6.bias": torch.zeros(1000)}
    for index, channels, inputs, side, *_ in LAYERS:
        scale = (2.0 / (inputs * side * side)) ** 0.5
        filters = torch.randn(channels, inputs, side, side, generator=generator)
        tensors[f"features.{index}.weight"] = scale * filters
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(channels, generator=generator)
    return tensors


def _calibration() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        f"lin{number}.model.1.weight": torch.rand(1, layer[1], 1, 1, generator=generator)
        for number, layer in enumerate(LAYERS)
    }


def _unchanged(tensors: dict[str, Tensor]) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder weights are looked for in, empty; any file passes for the registered one; there is no network."""

    def asked(url: str) -> None:
        raise AssertionError(f"the network was asked for {url}")

    monkeypatch.setattr(weights, "open_url", asked)
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    for name in ("alexnet", "lpips_alex"):
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], sha256=None))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def _write(folder: Path, edit_features: Edit = _unchanged, edit_calibration: Edit = _unchanged) -> None:
    for file, tensors, edit in (
        (NETWORK, _features(), edit_features),
        (CALIBRATION, _calibration(), edit_calibration),
    ):
        edit(tensors)
        torch.save(tensors, folder / file)


@pytest.fixture
def lpips(folder: Path) -> Lpips:
    _write(folder)
    loaded = load_lpips()
    assert loaded is not None
    return loaded


def _picture(height: int, width: int, seed: int) -> Tensor:
    """Smooth colours with some texture, in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    coarse = torch.nn.functional.interpolate(uniform(1, 3, 5, 6), (height, width), mode="bicubic")
    return (coarse[0].permute(1, 2, 0) + 0.2 * (uniform(height, width, 3) - 0.5)).clamp(0, 1)


# --------------------------------------------------------------------------------------------- an independent LPIPS


def _convolved(maps: np.ndarray, filters: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Correlation of (inputs, height, width) with the filters, one tap of theirs after the other."""
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    side = filters.shape[2]
    rows, columns = ((n - side) // stride + 1 for n in padded.shape[1:])
    out = np.zeros((len(filters), rows, columns))
    for i in range(side):
        for j in range(side):
            shifted = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            out += np.tensordot(filters[:, :, i, j], shifted[:, :rows, :columns], axes=1)
    return out


def _pooled(maps: np.ndarray) -> np.ndarray:
    """Maxima of 3x3 at every second pixel, no padding."""
    rows, columns = ((n - 3) // 2 + 1 for n in maps.shape[1:])
    out = np.zeros((len(maps), rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = maps[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            out[:, row, column] = patch.reshape(len(maps), 9).max(axis=1)
    return out


def _by_the_paper(one: np.ndarray, other: np.ndarray) -> float:
    """Eq. 1 in float64, place after place; pictures are (height, width, 3) in [0, 1]."""
    features, calibration = _features(), _calibration()
    mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    pair = [((picture * 2 - 1 - mean) / deviation).transpose(2, 0, 1) for picture in (one, other)]
    distance = 0.0
    for number, (index, _, _, _, stride, padding, pooled) in enumerate(LAYERS):
        filters = features[f"features.{index}.weight"].double().numpy()
        bias = features[f"features.{index}.bias"].double().numpy()
        pair = [_pooled(maps) for maps in pair] if pooled else pair
        pair = [
            np.maximum(_convolved(maps, filters, stride, padding) + bias[:, None, None], 0) for maps in pair
        ]
        weight = calibration[f"lin{number}.model.1.weight"].double().numpy()[0, :, 0, 0]
        _, rows, columns = pair[0].shape
        over_places = 0.0
        for row in range(rows):
            for column in range(columns):
                a, b = (maps[:, row, column] for maps in pair)
                unit_a, unit_b = (v / np.linalg.norm(v) if v.any() else v for v in (a, b))
                over_places += float(np.sum((np.sqrt(weight) * (unit_a - unit_b)) ** 2))
        distance += over_places / (rows * columns)
    return distance


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("size", [(47, 63), (MIN_SIDE_PX, MIN_SIDE_PX)], ids=str)
def test_the_distance_is_the_papers_formula_worked_out_place_by_place(
    lpips: Lpips, size: tuple[int, int]
) -> None:
    one, other = _picture(*size, seed=3), _picture(*size, seed=4)
    truth = _by_the_paper(one.numpy(), other.numpy())
    assert truth > 0.1
    assert lpips.distance(one, other) == pytest.approx(truth, rel=1e-9)
    assert lpips.distance(one.float(), other.float()) == pytest.approx(truth, rel=1e-4)


def test_equal_pictures_are_at_distance_zero_and_others_alike_both_ways(lpips: Lpips) -> None:
    one, other = _picture(50, 70, seed=5).float(), _picture(50, 70, seed=6).float()
    assert lpips.distance(one, one.clone()) == pytest.approx(0.0, abs=1e-9)
    assert lpips.distance(one, other) > 0.01
    assert lpips.distance(one, other) == pytest.approx(lpips.distance(other, one), rel=1e-6)


def test_the_distance_grows_with_noise(lpips: Lpips) -> None:
    one = _picture(64, 64, seed=7).float()
    noise = torch.randn(64, 64, 3, generator=torch.Generator().manual_seed(8))
    distances = [lpips.distance(one, (one + s * noise).clamp(0, 1)) for s in (0.01, 0.03, 0.1, 0.3)]
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[-1] > 5 * distances[0]


def test_a_black_network_gives_no_distance_and_no_nan(folder: Path) -> None:
    def silence(tensors: dict[str, Tensor]) -> None:
        tensors["features.10.weight"].zero_()
        tensors["features.10.bias"].fill_(
            -1.0
        )  # no feature is on at any place: unit vectors of nothing are zero

    _write(folder)
    whole = load_lpips()
    _write(folder, silence)
    silenced = load_lpips()
    assert whole is not None
    assert silenced is not None
    one, other = _picture(40, 40, seed=9), _picture(40, 40, seed=10)
    assert 0 < silenced.distance(one, other) < whole.distance(one, other)


# -------------------------------------------------------------------------------------------------------------- files


def test_without_either_file_there_is_no_lpips_and_nothing_is_fetched(folder: Path) -> None:
    assert load_lpips() is None
    for missing in (NETWORK, CALIBRATION):
        _write(folder)
        (folder / missing).unlink()
        assert load_lpips() is None
    _write(folder)
    assert load_lpips() is not None


def test_a_file_with_another_digest_than_registered_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder)
    entry = dataclasses.replace(REGISTRY["alexnet"], sha256="7be5be79")
    monkeypatch.setitem(REGISTRY, "alexnet", entry)
    with pytest.raises(InputError, match=f"{NETWORK}: sha256"):
        load_lpips()


def test_a_damaged_file_is_refused_by_its_name(folder: Path) -> None:
    for name in (NETWORK, CALIBRATION):
        _write(folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=name) as raised:
            load_lpips()
        assert not isinstance(raised.value, MissingPartError)


@pytest.mark.parametrize(
    ("name", "tensor", "edit", "says"),
    [
        (NETWORK, "features.3.weight", lambda t: t[:, :, 1:, 1:], r"has shape \(192, 64, 4, 4\)"),
        (NETWORK, "features.10.bias", lambda t: t[:-1], r"has shape \(255,\), \(256,\) expected"),
        (NETWORK, "features.8.weight", lambda t: t / 0, "not finite"),
        (NETWORK, "features.6.bias", None, "lacks"),
        (CALIBRATION, "lin1.model.1.weight", lambda t: t[0], r"has shape \(192, 1, 1\)"),
        (CALIBRATION, "lin4.model.1.weight", lambda t: t.long(), "not finite"),
        (CALIBRATION, "lin0.model.1.weight", None, "lacks"),
    ],
)
def test_another_networks_file_is_refused_by_its_name_and_tensor(
    folder: Path, name: str, tensor: str, edit: Callable[[Tensor], Tensor] | None, says: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        before = tensors.pop(tensor)
        if edit is not None:
            tensors[tensor] = edit(before).clone()

    _write(folder, *((change, _unchanged) if name == NETWORK else (_unchanged, change)))
    with pytest.raises(InputError, match=says) as raised:
        load_lpips()
    assert str(raised.value).startswith(str(folder / name))
    assert tensor in str(raised.value)
    assert "\n" not in str(raised.value)
