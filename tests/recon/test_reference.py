"""A reference on disk comes back as it was; missing, unfinished and damaged ones are refused in one sentence."""

import json
import math
from dataclasses import replace

import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.errors import InputError
from prepare.undistort import Distortion
from recon.fit import Fit, FittedView
from recon.gaussians import gaussians_from_points
from recon.initial_points import Volume
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions
from recon.reference import Reference, ReferenceView, load_reference, reference_from_fit, save_reference


def camera(x, y, z):
    pose = look_at(torch.tensor([x, y, z]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.0, 1.0]))
    return Camera(pose, 91.25, 92.5, 31.0, 29.5, 64, 60)


def quality(i: int) -> ViewQuality:
    return ViewQuality(33.3 + i, 1 / 3, 0.91, 0.8, 0.05 if i == 1 else None)


def reference():
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(20, 3, generator=generator)
    gaussians = gaussians_from_points(
        points, torch.rand(20, 3, generator=generator), torch.rand(20, generator=generator) + 0.1, sh_degree=1
    )
    colours = ((1.0, 1.0, 1.0), (0.1, 0.2, 0.3), (0.9, 1.0, 0.8))
    views = tuple(
        ReferenceView(f"photos/{i} ä.png", camera(*at), torch.tensor(colour), i == 1, quality(i))
        for i, (at, colour) in enumerate(
            zip([(2.0, 0.0, 0.3), (0.0, 3.0, 0.0), (0.0, 0.0, 4.0)], colours, strict=True)
        )
    )
    return Reference(
        "part", gaussians, views, Volume(torch.tensor([0.1, 0.2, 0.3]), 0.7), RasterOptions(antialiased=True), 64,
        "/data/part", 12.5, Distortion(k1=-0.1, p2=0.003), {"fit": {"steps": 3}, "seed": 0},
    )  # fmt: skip


def test_a_stored_reference_comes_back_exactly(tmp_path):
    written = reference()
    save_reference(tmp_path / "part", written)
    read = load_reference(tmp_path / "part")
    for name, tensor in written.gaussians.tensors().items():
        assert torch.equal(getattr(read.gaussians, name), tensor), name
    assert len(read.views) == 3
    for a, b in zip(read.views, written.views, strict=True):
        assert torch.equal(a.camera.world_to_cam, b.camera.world_to_cam)
        assert torch.equal(a.background, b.background)
        assert replace(a.camera, world_to_cam=b.camera.world_to_cam) == b.camera
        assert (a.name, a.held_out, a.quality) == (b.name, b.held_out, b.quality)
    assert torch.equal(read.volume.centre, written.volume.centre)
    for name in ("name", "options", "size_px", "scene", "scale_to_mm", "distortion", "settings"):
        assert getattr(read, name) == getattr(written, name), name
    assert read.volume.half_size == 0.7


def test_what_is_not_known_stays_not_known(tmp_path):
    save_reference(tmp_path, replace(reference(), scale_to_mm=None, distortion=None))
    read = load_reference(tmp_path)
    assert read.scale_to_mm is None
    assert read.distortion is None


def test_typical_camera_background_distance_and_nearest_view_by_hand():
    part = reference()
    assert part.camera is part.views[0].camera
    assert part.background.tolist() == pytest.approx([0.9, 1.0, 0.8])
    distances = sorted(
        math.dist(at, (0.1, 0.2, 0.3)) for at in [(2.0, 0.0, 0.3), (0.0, 3.0, 0.0), (0.0, 0.0, 4.0)]
    )
    assert part.distance == pytest.approx(distances[1], rel=1e-5)
    assert part.nearest_view_deg(part.views[0].camera) == pytest.approx(0.0, abs=0.05)
    # The held-out view does not count: from there the nearest fitted one is far.
    offsets = [
        torch.tensor(at) - torch.tensor([0.1, 0.2, 0.3])
        for at in [(2.0, 0.0, 0.3), (0.0, 3.0, 0.0), (0.0, 0.0, 4.0)]
    ]
    cosines = [float(offsets[1] @ o / offsets[1].norm() / o.norm()) for o in (offsets[0], offsets[2])]
    expected = math.degrees(math.acos(max(cosines)))
    assert part.nearest_view_deg(part.views[1].camera) == pytest.approx(expected, abs=0.01)
    # Where all are held out there is nothing else to measure from.
    none_fitted = replace(part, views=tuple(replace(view, held_out=True) for view in part.views))
    assert none_fitted.nearest_view_deg(part.views[1].camera) == pytest.approx(0.0, abs=0.05)


def test_a_fits_views_and_volume_become_the_references(tmp_path):
    part = reference()
    view = part.views[0]
    fitted = FittedView("a.png", view.camera, view.background, True, quality(2), (1.0,) * 3, (0.0,) * 3)
    fit = Fit(part.gaussians, (fitted,), part.volume, "hull", 100, 1.0)
    made = reference_from_fit("x", fit, RasterOptions(), 64, tmp_path / "scene", {"seed": 1}, scale_to_mm=2.0)
    assert made.views == (ReferenceView("a.png", view.camera, view.background, True, quality(2)),)
    assert made.scene == str((tmp_path / "scene").resolve())
    assert made.gaussians is part.gaussians
    assert (made.scale_to_mm, made.distortion) == (2.0, None)


def test_a_folder_that_is_not_there_and_one_that_is_unfinished_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such reference; fit one with `splatad fit`"):
        load_reference(tmp_path / "nowhere")
    save_reference(tmp_path, reference())
    (tmp_path / "reference.json").unlink()
    with pytest.raises(InputError, match=r"no reference\.json, the fit did not finish; .*resume"):
        load_reference(tmp_path)


def test_reference_json_is_written_last(tmp_path, monkeypatch):
    def fails(path, gaussians):
        raise InputError("disk full")

    monkeypatch.setattr("recon.reference.write_splats", fails)
    with pytest.raises(InputError, match="disk full"):
        save_reference(tmp_path, reference())
    assert not (tmp_path / "reference.json").exists()


def view_with(**changes):
    def change(document):
        document["views"][0] |= changes
        return document

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda document: [],
        lambda document: None,
        lambda document: document | {"format": "another"},
        lambda document: document | {"version": 3},
        lambda document: document | {"version": 1},
        lambda document: document | {"version": "two"},
        lambda document: document | {"views": []},
        lambda document: document | {"views": 5},
        lambda document: document | {"views": [7]},
        lambda document: {k: v for k, v in document.items() if k != "views"},
        lambda document: document | {"centre": [0.0]},
        lambda document: document | {"centre": "middle"},
        lambda document: document | {"distortion": {"k9": 1.0}},
        lambda document: document | {"half_size": None},
        view_with(world_to_cam=[[1.0, 0.0], [0.0, 1.0]]),
        view_with(world_to_cam=[[1.0, 0.0], [0.0]]),
        view_with(world_to_cam=float("nan")),
        view_with(world_to_cam=[[float("nan")] * 4] * 4),
        view_with(fl_x="long"),
        view_with(fl_x=float("inf")),
        view_with(w=None),
        view_with(background=[1.0]),
    ],
)
def test_a_damaged_reference_json_is_refused_with_its_path(tmp_path, change):
    save_reference(tmp_path, reference())
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))))
    with pytest.raises(InputError, match=r"(?s)reference\.json: .*; .*fit the part again"):
        load_reference(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "not json", "\x00"])
def test_a_reference_json_that_is_no_json_is_refused(tmp_path, text):
    save_reference(tmp_path, reference())
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(InputError, match=r"reference\.json: damaged .*; fit the part again"):
        load_reference(tmp_path)


def test_binary_in_reference_json_is_refused(tmp_path):
    save_reference(tmp_path, reference())
    (tmp_path / "reference.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"reference\.json: damaged"):
        load_reference(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_damaged_splats_are_refused_with_their_path(tmp_path, damage):
    save_reference(tmp_path, reference())
    path = tmp_path / "splats.ply"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 700 if damage == "cut" else 0])
    with pytest.raises(InputError, match=r"splats\.ply"):
        load_reference(tmp_path)
