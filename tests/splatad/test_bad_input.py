"""What comes from outside and is wrong: one clear line, status 2 or 3, nothing half-written."""

import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from splatad.cli import main

GOOD_POSE = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]]


def scene(folder, frames=None, text=None):
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (16, 12), (200, 30, 30)).save(folder / name)
    if frames is None:
        frames = [{"file_path": name, "transform_matrix": GOOD_POSE} for name in ("a.png", "b.png", "c.png")]
    document = {"fl_x": 20.0, "fl_y": 20.0, "cx": 8.0, "cy": 6.0, "w": 16, "h": 12, "frames": frames}
    (folder / "transforms.json").write_text(text if text is not None else json.dumps(document))
    return folder


def refused(capsys, argv, status, *words):
    assert main([str(a) for a in argv]) == status
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("splatad: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0], lines[0]


def with_pose(pose):
    frames = [{"file_path": name, "transform_matrix": GOOD_POSE} for name in ("a.png", "b.png")]
    return [*frames, {"file_path": "c.png", "transform_matrix": pose}]


def changed(row, column, value):
    pose = [list(r) for r in GOOD_POSE]
    pose[row][column] = value
    return pose


@pytest.mark.parametrize(
    ("frames", "text", "word"),
    [
        (None, "{not json", "JSON"),
        (None, "[]", "transforms.json"),
        (with_pose(changed(0, 3, float("nan"))), None, "NaN"),
        (with_pose(changed(0, 0, 2.0)), None, "frames[2]"),
        ([{"file_path": "/etc/passwd", "transform_matrix": GOOD_POSE}], None, "/etc/passwd"),
        ([{"file_path": "../../secret.png", "transform_matrix": GOOD_POSE}], None, ".."),
        ([{"file_path": "gone.png", "transform_matrix": GOOD_POSE}], None, "gone.png"),
        ([], None, "frames"),
    ],
)
def test_a_wrong_transforms_json_is_refused_and_no_reference_appears(tmp_path, capsys, frames, text, word):
    folder = scene(tmp_path / "scene", frames, text)
    before = sorted(p.name for p in folder.iterdir())
    refused(capsys, ["fit", "--scene", folder, "--workspace", tmp_path / "work"], 3, word)
    assert not (tmp_path / "work").exists()
    assert sorted(p.name for p in folder.iterdir()) == before


def huge_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["empty", "truncated", "huge", "text"])
def test_a_photo_that_is_none_is_refused_by_fit_and_by_detect(tmp_path, capsys, toy, kind):
    photo = tmp_path / "bad.png"
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    contents = {
        "empty": b"",
        "truncated": whole.read_bytes()[:700],
        "huge": huge_png(),
        "text": b"hello, not a photo",
    }
    photo.write_bytes(contents[kind])
    out = tmp_path / "out"
    refused(capsys, ["detect", "--reference", toy.folder, "--query", photo, "--out", out], 3, "bad.png")
    assert not out.exists()
    folder = scene(tmp_path / "scene")
    (folder / "b.png").write_bytes(contents[kind])
    refused(capsys, ["fit", "--scene", folder, "--workspace", tmp_path / "work"], 3, "b.png")
    assert not (tmp_path / "work").exists()


def test_one_bad_photo_among_good_ones_is_named_and_the_others_are_inspected(tmp_path, capsys, toy):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = (toy.photos[0].rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(folder / "1.png")
    (folder / "2.png").write_bytes(b"")
    Image.fromarray(pixels).save(folder / "3.png")
    out = tmp_path / "out"
    refused(capsys, ["detect", "--reference", toy.folder, "--query", folder, "--out", out], 3, "2.png")
    assert (out / "report.html").exists()
    first, third = (json.loads((out / name / "verdict.json").read_text()) for name in ("1", "3"))
    assert first["verdict"] == third["verdict"] == "OK"
    assert first["score"] == third["score"]


def test_missing_folders_and_names_are_said_with_what_is_there(tmp_path, capsys, toy):
    work = tmp_path / "work"
    refused(capsys, ["prepare", "mad-sim", "--data", tmp_path / "nowhere"], 3, "nowhere")
    refused(capsys, ["fit", "--class", "01Gorilla", "--workspace", work], 2, "01Gorilla")
    photo = tmp_path / "y.png"
    Image.new("RGB", (16, 16)).save(photo)
    refused(capsys, ["detect", "--class", "x", "--query", photo, "--workspace", work], 2, "x")
    refused(capsys, ["detect", "--reference", tmp_path, "--query", photo], 3, "reference.json")
    refused(capsys, ["detect", "--reference", toy.folder, "--query", tmp_path / "no.png"], 3, "no.png")
    folder = scene(tmp_path / "scene")
    refused(capsys, ["fit", "--scene", folder, "--workspace", work, "--false-alarm-rate", "2"], 2, "0.05")
    refused(capsys, ["fit", "--scene", folder, "--workspace", work, "--steps", "0"], 2, "steps")
    refused(capsys, ["fit", "--scene", folder, "--workspace", work, "--device", "tpu"], 2, "tpu")
    (work / "references" / "01Gorilla").mkdir(parents=True)
    (work / "references" / "01Gorilla" / "reference.json").write_text("{}")
    refused(capsys, ["detect", "--class", "01Gorila", "--query", photo, "--workspace", work], 2, "01Gorilla")


def test_no_space_left_is_one_line_and_leaves_no_half_file(tmp_path, capsys, toy, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    photo = tmp_path / "p.png"
    Image.fromarray((toy.photos[0].rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(photo)
    monkeypatch.setattr(os, "fsync", full)
    refused(
        capsys, ["detect", "--reference", toy.folder, "--query", photo, "--out", tmp_path / "out"], 3, "space"
    )
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
