"""Which of several parts a photo shows: the right one, in any order, or none, with what was looked at."""

from dataclasses import replace

import pytest
import torch

from prepare.errors import InputError
from prepare.image import write_image
from prepare.scene import ViewImage
from splatad.finder import Finder
from splatad.identify import Identifier
from splatad.inspector import Inspector

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def loaded(toy, other_toy, finished_like_the_toy, tmp_path_factory):
    """The toy, another part, and a dark plain block of the toy's outline."""
    black = toy.reference.gaussians
    black = replace(black, sh=torch.full_like(black.sh, 0.0))
    black.sh[:, 0] = -1.6  # degree 0 of spherical harmonics: nearly black from everywhere
    made = tmp_path_factory.mktemp("references")
    return {
        "toy": toy.loaded,
        "other": other_toy[1],
        "black": finished_like_the_toy(black, "black", made / "black"),
    }


@pytest.fixture(scope="module")
def folder(toy, loaded, tmp_path_factory):
    """Two photos of each part, one of the toy with a painted spot, one blank, one of noise."""
    made = tmp_path_factory.mktemp("photos")
    cameras = toy.cameras(6, seed=51)
    for name, one in loaded.items():
        for i in range(2):
            photo = toy.photo(cameras[i], noise_seed=200 + i, gaussians=one.reference.gaussians)
            write_image(made / f"{name}_{i}.png", photo.rgb)
    rgb = toy.photo(cameras[3], noise_seed=7).rgb
    u, v, _ = cameras[3].project(torch.tensor([[0.0, 0.0, -0.1]]))[0].int().tolist()
    rgb[v - 5 : v + 6, u - 5 : u + 6] = torch.tensor([0.9, 0.1, 0.9])
    write_image(made / "painted.png", rgb)
    write_image(made / "blank.png", torch.ones(100, 100, 3))
    write_image(made / "noise.png", torch.rand(100, 100, 3, generator=torch.Generator().manual_seed(1)))
    return made


def identifier(loaded, *names, **options):
    return Identifier({name: Inspector(loaded[name], **options) for name in names})


@pytest.fixture(scope="module")
def identified(loaded, folder):
    every = identifier(loaded, "toy", "other", "black")
    return {path.stem: every.identify(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["toy", "other", "black"])
@pytest.mark.parametrize("i", [0, 1])
def test_a_good_photo_is_of_its_part(identified, name, i):
    result = identified[f"{name}_{i}"]
    assert (result.name, result.nearest) == (name, name)
    assert result.inspection.located.believed
    assert result.inspection.verdict.name in ("OK", "NG")
    first, *others = result.candidates
    assert (first.name, first.located) == (name, True)
    assert first.evidence > 1.0
    assert {other.name for other in others} == {"toy", "other", "black"} - {name}
    assert all(other.evidence < first.evidence for other in others)


def test_the_inspection_is_the_one_made_against_that_part_alone(identified, loaded, folder):
    alone = Inspector(loaded["toy"]).inspect(folder / "toy_1.png")
    inspection = identified["toy_1"].inspection
    assert (inspection.verdict, inspection.score) == (alone.verdict, alone.score)
    assert torch.equal(inspection.located.camera.world_to_cam, alone.located.camera.world_to_cam)
    assert list(inspection.seconds) == ["read", "which part", "coarse pose", "fine pose", "compare"]


def test_a_defect_does_not_hide_the_part(identified):
    assert identified["painted"].name == "toy"
    assert identified["painted"].inspection.verdict.name == "NG"
    assert identified["painted"].inspection.defects


def test_a_photo_of_none_of_them_names_the_nearest_and_why_it_is_not_believed(loaded, folder):
    result = identifier(loaded, "toy", "black").identify(folder / "other_0.png")
    assert result.name is None
    assert result.nearest in ("toy", "black")
    assert result.inspection.verdict.name == "CANNOT TELL"
    assert result.inspection.defects == ()
    reason = result.inspection.verdict.reasons[0]
    assert reason.startswith(f"none of the 2 references: the nearest is {result.nearest}, but ")
    assert reason.endswith(result.inspection.located.reasons[0])
    assert not result.inspection.located.believed
    assert result.candidates[0].name == result.nearest


def test_a_dark_plain_part_does_not_win_by_being_dark(loaded, folder):
    for photo in ("toy_0.png", "toy_1.png", "other_0.png"):
        assert identifier(loaded, "black").identify(folder / photo).name is None


def test_a_blank_photo_is_of_no_part(identified):
    result = identified["blank"]
    assert (result.name, result.nearest, result.candidates) == (None, None, ())
    assert result.inspection.verdict.name == "CANNOT TELL"
    assert "no part found" in result.inspection.verdict.reasons[0]


def test_noise_is_none_of_them(identified):
    assert identified["noise"].name is None
    assert identified["noise"].inspection.verdict.name == "CANNOT TELL"


def test_neither_the_order_of_references_nor_other_photos_matter(identified, loaded, folder):
    turned = identifier(loaded, "black", "other", "toy")
    for stem in ("toy_0", "black_1", "noise"):
        again, before = turned.identify(folder / f"{stem}.png"), identified[stem]
        assert again.candidates == before.candidates
        assert again.inspection.score == before.inspection.score
        assert again.inspection.verdict == before.inspection.verdict


def test_more_references_than_are_compared_at_first_do_not_hide_the_right_one(loaded, folder, monkeypatch):
    """With one place in the first comparison and a photo whose rough views mislead, the others are still looked at."""
    import splatad.identify

    monkeypatch.setattr(splatad.identify, "COMPARED", 1)
    real = splatad.identify._rough_views

    def misled(inspector, image, lens):
        views = real(inspector, image, lens)
        shift = 1.0 if inspector.loaded is loaded["other"] else 0.0
        return tuple(replace(view, similarity=view.similarity + shift) for view in views)

    monkeypatch.setattr(splatad.identify, "_rough_views", misled)
    result = identifier(loaded, "toy", "other", "black").identify(folder / "toy_0.png")
    assert result.name == "toy"
    assert {candidate.name for candidate in result.candidates} == {"toy", "other", "black"}


def test_a_reference_whose_photos_have_another_shape_is_left_out_of_the_choice(toy, loaded, folder):
    views = tuple(
        replace(view, camera=replace(view.camera, width=100, height=75, cy=37.5))
        for view in toy.reference.views
    )
    reference = replace(loaded["other"].reference, views=views)
    wide = replace(loaded["other"], reference=reference)
    both = Identifier(
        {
            "toy": Inspector(loaded["toy"], lens_mode="reference"),
            "wide": Inspector(wide, lens_mode="reference"),
        }
    )
    result = both.identify(folder / "toy_0.png")
    assert [candidate.name for candidate in result.candidates] == ["toy"]
    only_wide = Identifier({"wide": Inspector(wide, lens_mode="reference")})
    with pytest.raises(
        InputError, match=r"toy_0\.png: 100 x 100 px, but the reference's photos are 100 x 75"
    ):
        only_wide.identify(folder / "toy_0.png")


def test_a_file_that_is_no_photo_is_refused(loaded, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.png"):
        identifier(loaded, "toy", "other").identify(tmp_path / "notes.png")


def test_a_photo_is_decoded_once_for_references_that_want_the_same_of_it(loaded, folder, monkeypatch):
    read = []
    real = Finder.decode

    def counted(self, path, lens):
        read.append(path)
        return real(self, path, lens)

    monkeypatch.setattr(Finder, "decode", counted)
    identifier(loaded, "toy", "other", "black").identify(folder / "blank.png")
    assert len(read) == 1


def test_a_guessed_focal_length_is_refined_when_references_are_compared_too(toy, monkeypatch):
    import splatad.identify as module
    from splatad.lens import QueryLens

    used = []
    refine = module.refine_levenberg

    def noted(*arguments, **named):
        used.append(arguments[6].focal)
        return refine(*arguments, **named)

    monkeypatch.setattr(module, "refine_levenberg", noted)
    photo = toy.photo(toy.cameras(3, seed=51)[0], noise_seed=1)
    image = ViewImage(photo.rgb, photo.alpha, torch.ones(3), photo.alpha > 0.5, photo.camera)
    inspector = Inspector(toy.loaded)
    for guessed in (False, True):
        lens = QueryLens(photo.camera, guessed, None, "a test")
        views = module._rough_views(inspector, image, lens)[:1]
        assert module._small_evidence(inspector, image, lens, views) > 0.5
        assert set(used) == {guessed}
        assert inspector.finder.config_for(lens).levenberg.focal == guessed
        used.clear()


def test_what_one_reference_cuts_away_stays_for_the_others(loaded, folder, monkeypatch):
    every = identifier(loaded, "toy", "other")

    def blackened(image: ViewImage, lens: object = None) -> ViewImage:
        return replace(image, rgb=torch.zeros_like(image.rgb))

    monkeypatch.setattr(every.inspectors["toy"], "cut_out", blackened)
    photos = every._read(folder / "toy_0.png")
    assert float(photos["toy"][0].rgb.max()) == 0.0
    assert float(photos["other"][0].rgb.max()) > 0.5
