"""Keypoints where blobs are, the networks against their definition, and what is said where a part is missing."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import pose.keypoints as keypoints_module
from pose.keypoints import ALIKE_SIZES, EXTRACTORS, AlikeNetwork, extractor
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.image import read_image
from prepare.weights import REGISTRY, WeightsFile

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BLOBS = ((60.3, 80.7, 4.0), (140.5, 50.2, 6.0), (100.0, 150.0, 3.0))  # u, v (px), standard deviation (px)


def blobs() -> torch.Tensor:
    """A grey image of bright Gaussian blobs, 200 px square."""
    line = torch.arange(200) + 0.5
    image = torch.full((200, 200), 0.4)
    for u, v, sigma in BLOBS:
        image += 0.5 * torch.exp(-((line[None, :] - u) ** 2 + (line[:, None] - v) ** 2) / (2 * sigma**2))
    return image[..., None].expand(-1, -1, 3).contiguous()


@dataclass
class Shelf:
    """A folder of weights that the registry knows."""

    folder: Path
    patch: pytest.MonkeyPatch

    def put(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        file = f"{name}.safetensors"
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, self.folder / file)
        self.register(name, file)

    def register(self, name: str, file: str) -> None:
        self.patch.setitem(REGISTRY, name, WeightsFile(name, file, "BSD-3-Clause", None, None, "a test"))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    return Shelf(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["sift_colmap", "sift_kornia"])
def test_sift_finds_blobs_at_their_centres(name: str):
    if name == "sift_colmap":
        pytest.importorskip("pycolmap")
    found = extractor(name).extract(blobs())
    assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    sizes = []
    for u, v, sigma in BLOBS[:2] if name == "sift_colmap" else BLOBS:
        distance = (found.positions - torch.tensor([u, v])).norm(dim=1)
        assert distance.min() < 0.1
        sizes.append(float(found.scales[distance.argmin()]))
        assert sizes[-1] == pytest.approx(sigma, rel=0.15)
    assert sizes[1] / sizes[0] == pytest.approx(1.5, rel=0.03)


def test_an_image_of_one_colour_has_no_keypoints(shelf):
    shelf.put("alike_t", random_network("t").state_dict())
    grey = torch.full((64, 64, 3), 0.5)
    nothing = torch.zeros(64, 64, dtype=torch.bool)
    for found in (extractor("sift_kornia").extract(grey), extractor("alike_t").extract(grey, nothing)):
        assert len(found) == 0
        assert found.descriptors.shape[1] in (64, 128)


def test_sift_keeps_to_the_mask():
    image = blobs()
    mask = torch.zeros(200, 200, dtype=torch.bool)
    mask[40:60, 130:150] = True  # about the second blob
    found = extractor("sift_kornia").extract(image, mask)
    everywhere = extractor("sift_kornia").extract(image)
    assert 0 < len(found) < len(everywhere)
    assert (
        (found.positions > torch.tensor([130.0, 40.0])) & (found.positions < torch.tensor([150.0, 60.0]))
    ).all()


def test_sift_is_colmaps_where_it_is_installed_and_kornias_elsewhere(monkeypatch):
    pytest.importorskip("pycolmap")
    assert extractor("sift").name == "sift_colmap"
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert extractor("sift").name == "sift_kornia"
    with pytest.raises(MissingPartError, match="sift_colmap: need pycolmap"):
        extractor("sift_colmap")


def test_an_unknown_extractor_is_answered_with_all_names():
    with pytest.raises(UsageError) as error:
        extractor("superpoint")
    assert all(name in str(error.value) for name in EXTRACTORS)


# --------------------------------------------------------------------------------------------------------------- ALIKE


def random_network(size: str) -> AlikeNetwork:
    """An ALIKE network of random weights whose scores on noise spread over (0, 1)."""
    torch.manual_seed(3)
    network = AlikeNetwork(ALIKE_SIZES[size]).eval().requires_grad_(False)
    weight = network.convhead2.weight[-1]
    weight *= 20 / weight.norm()
    weight -= weight.mean()  # else one sign wins: what comes in is positive
    return network


@pytest.mark.parametrize("size", ["t", "l"])
def test_alike_samples_what_the_dense_head_would_give(size: str):
    network, image = random_network(size), torch.rand(1, 3, 64, 96)
    maps, score = network(image)
    # As published: all maps upsampled, the head at every pixel.
    joined = torch.cat(
        [F.interpolate(x, size=(64, 96), mode="bilinear", align_corners=True) for x in maps], dim=1
    )
    if network.convhead1 is not None:
        joined = torch.relu(network.convhead1(joined))
    dense = network.convhead2(joined)[0]
    assert torch.allclose(score, torch.sigmoid(dense[-1]), atol=1e-5)
    assert score.std() > 0.01
    pixels = torch.tensor([[0, 0], [17, 5], [95, 63], [40, 33]])
    described = network.describe(maps, pixels.float(), 64, 96)
    wanted = F.normalize(dense[:-1, pixels[:, 1], pixels[:, 0]].T, dim=1)
    assert torch.allclose(described, wanted, atol=1e-4)


def test_alike_takes_strict_maxima_and_refines_them_by_the_weighted_mean(shelf: Shelf, monkeypatch):
    network = random_network("t")
    shelf.put("alike_t", network.state_dict())
    score = torch.zeros(64, 64)
    score[20, 30], score[20, 31] = 0.9, 0.8  # one peak between two pixels
    score[40, 10] = 0.5
    score[50, 50] = 0.05  # too faint
    score[1, 30] = 0.9  # at the border
    score[21, 12], score[22, 12] = 0.6, 0.7  # the second outdoes the first

    def forward(self, image):
        return tuple(torch.rand(1, 16, 64 // s, 64 // s) for s in (1, 2, 8, 32)), score

    monkeypatch.setattr(AlikeNetwork, "forward", forward)
    found = extractor("alike_t").extract(torch.rand(64, 64, 3))
    assert len(found) == 3  # strongest first
    e9, e8, rest = (torch.tensor(x / 0.1).exp() for x in (0.9, 0.8, 0.0))
    shift = float(
        e8 / (e9 + e8 + 23 * rest)
    )  # of 25 pixels; all others cancel out or are one px left of the pair
    assert found.positions[0].tolist() == pytest.approx([30.5 + shift, 20.5], abs=1e-3)
    assert found.positions[2].tolist() == pytest.approx([10.5, 40.5], abs=1e-4)
    assert found.positions[1, 1] == pytest.approx(22.5, abs=0.4)


def test_alike_is_the_same_on_one_and_two_threads(shelf: Shelf):
    shelf.put("alike_t", random_network("t").state_dict())
    image = torch.rand(100, 130, 3)
    alone = extractor("alike_t").extract(image)
    torch.set_num_threads(2)
    both = extractor("alike_t").extract(image)
    assert len(alone) > 5
    assert torch.equal(alone.positions, both.positions)
    assert torch.equal(alone.descriptors, both.descriptors)


@pytest.mark.parametrize("size", ["t", "s", "n", "l"])
def test_alike_reads_the_published_weights_and_follows_a_turned_photo(
    size: str, testdata: Path, shelf: Shelf
):
    published = testdata / "weights/alike/models" / f"alike-{size}.pth"
    if not published.is_file():
        pytest.skip(f"no {published}")
    shelf.put(f"alike_{size}", torch.load(published, map_location="cpu", weights_only=True))
    alike = extractor(f"alike_{size}")
    photo = read_image(testdata / "mad_car/test/good/0.png").rgb[40:360, 40:360].contiguous()
    turn = torch.deg2rad(torch.tensor(8.0))
    rotation = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    grid = F.affine_grid(
        torch.cat([rotation, torch.zeros(2, 1)], 1)[None], [1, 3, 320, 320], align_corners=False
    )
    turned = F.grid_sample(photo.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False)
    a, b = alike.extract(photo), alike.extract(turned[0].permute(1, 2, 0).contiguous())
    similarity = a.descriptors @ b.descriptors.T
    nearest = similarity.argmax(dim=1)
    mutual = similarity.argmax(dim=0)[nearest] == torch.arange(len(a))
    # What lies at x in the turned photo was at rotation @ x in the photo, about the centre.
    came_from = (b.positions[nearest] - 160) @ rotation.T + 160
    error = (came_from - a.positions).norm(dim=1)[mutual]
    assert len(error) > 60
    assert (error < 2).float().mean() > 0.7
    assert error[error < 2].median() < 0.6


def test_weights_of_another_network_are_refused(shelf: Shelf):
    shelf.put("alike_t", random_network("s").state_dict())
    with pytest.raises(InputError, match=r"alike_t\.safetensors holds another network"):
        extractor("alike_t")


@pytest.mark.parametrize("name", ["alike_n", "disk", "xfeat"])
def test_missing_weights_are_named_with_where_to_put_them(name: str, shelf: Shelf):
    shelf.register(name, "not_there.safetensors")
    with pytest.raises(MissingPartError, match=r"put not_there\.safetensors into"):
        extractor(name)


# --------------------------------------------------------------------------------------------------------- DISK, XFeat


def test_disk_is_kornias_with_pixel_centres_at_half(shelf: Shelf):
    kornia_feature = pytest.importorskip("kornia.feature")
    torch.manual_seed(0)
    disk = kornia_feature.DISK().eval()
    shelf.put("disk", disk.state_dict())
    image = torch.rand(50, 70, 3)
    mask = torch.zeros(50, 70, dtype=torch.bool)
    mask[:, :35] = True
    found, left = extractor("disk").extract(image), extractor("disk").extract(image, mask)
    with torch.no_grad():
        direct = disk(image.permute(2, 0, 1)[None], pad_if_not_divisible=True)[0]
    order = direct.detection_scores.argsort(descending=True, stable=True)
    assert len(found) > 10
    assert torch.allclose(found.positions, direct.keypoints[order] + 0.5)
    assert torch.allclose(found.descriptors, direct.descriptors[order], atol=1e-5)
    assert torch.equal(left.positions, found.positions[found.positions[:, 0] < 35])


def test_xfeat_is_kornias_with_pixel_centres_at_half_and_never_resizes(shelf: Shelf):
    kornia_feature = pytest.importorskip("kornia.feature")
    if not hasattr(kornia_feature, "XFeat"):
        pytest.skip("this kornia has no XFeat")
    torch.manual_seed(0)
    xfeat = kornia_feature.XFeat(top_k=keypoints_module.MOST, detection_threshold=0.05).eval()
    shelf.put("xfeat", xfeat.net.state_dict())
    image = torch.rand(96, 128, 3)
    found = extractor("xfeat").extract(image)
    direct = xfeat.detectAndCompute(image.permute(2, 0, 1)[None])[0]
    assert len(found) == len(direct["keypoints"])
    assert torch.allclose(found.positions, direct["keypoints"].clone() + 0.5)
    assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    odd = extractor("xfeat").extract(image[:90, :100].contiguous())
    assert ((odd.positions - 0.5).frac() == 0).all()  # pixels of the image itself
    assert (odd.positions < torch.tensor([100.0, 90.0])).all()


def test_a_kornia_without_xfeat_is_named(shelf: Shelf, monkeypatch):
    kornia_feature = pytest.importorskip("kornia.feature")
    monkeypatch.delattr(kornia_feature, "XFeat", raising=False)
    with pytest.raises(MissingPartError, match="has no XFeat; pip install --upgrade kornia"):
        extractor("xfeat")
