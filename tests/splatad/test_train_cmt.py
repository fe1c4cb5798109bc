"""`splatad train cmt` and `splatad evaluate cmt` on a tiny set: what is said, written, refused, and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detect.cmt.checkpoint import load_network
from detect.metrics import auroc
from prepare.errors import InputError, UsageError
from prepare.shape_pairs import ShapePairs
from splatad import cli
from splatad.commands import train_cmt
from splatad.commands.train_cmt import TrainCmt, train_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")
REPO = Path(__file__).resolve().parents[2]
FAST = ("--steps", "2", "--check-every", "1", "--groups", "1", "--photos", "2", "--views", "2")


@pytest.fixture(scope="module")
def trained(pack_folder, tmp_path_factory):
    """Workspace after a training of two steps."""
    workspace = tmp_path_factory.mktemp("ws")
    assert cli.main(["train", "cmt", "--data", str(pack_folder), "--workspace", str(workspace), *FAST]) == 0
    return workspace


def test_training_leaves_the_network_its_history_and_what_made_it(trained):
    folder = trained / "networks" / "boxes-small"
    network, about = load_network(folder / "cmt.safetensors")
    assert network.config.px == 64
    assert about["data"] == {"name": "boxes", "shapes": 6, "source": {"made_by": "tests", "seed": 0}}
    assert set(about["thresholds"]) == {"plain", "aided"}
    assert about["versions"]["torch"] == torch.__version__
    config = json.loads((folder / "train.json").read_text())
    assert (config["steps"], config["model"]["px"]) == (2, 64)
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[0]["plain_photos"]) == 4


def test_training_says_how_small_the_held_out_split_is_and_what_comes_next(pack_folder, tmp_path, capsys):
    command = ["train", "cmt", "--data", str(pack_folder), "--out", str(tmp_path / "run"), *FAST]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "boxes: 6 shapes (4 train, 1 val, 1 test), 24 photos of 64 px" in said
    assert "held out: 4 photos of 1 shape only" in said
    assert "step 1: held out plain: AUC" in said
    assert "next: splatad evaluate cmt" in said
    assert cli.main(command) == 0
    assert "trained already" in capsys.readouterr().out
    assert cli.main([*command, "--rate", "0.5"]) == 3
    refused = capsys.readouterr().err
    assert "another configuration (rate)" in refused
    assert len(refused.splitlines()) == 1


def test_an_interrupted_training_goes_on_to_the_same_weights(pack_folder, tmp_path, monkeypatch, capsys):
    flags = ["--data", str(pack_folder), *FAST, "--steps", "3"]
    assert cli.main(["train", "cmt", *flags, "--out", str(tmp_path / "whole")]) == 0
    teller = train_cmt._teller
    before = signal.getsignal(signal.SIGINT)  # ignored in a shell's background

    def pressing(terminal, bar):
        tell = teller(terminal, bar)

        def press(progress):
            tell(progress)
            os.kill(os.getpid(), signal.SIGINT)

        return press

    monkeypatch.setattr(train_cmt, "_teller", pressing)
    assert cli.main(["train", "cmt", *flags, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    captured = capsys.readouterr()
    assert "run the same command again to go on" in captured.err
    assert cli.main(["train", "cmt", *flags, "--out", str(tmp_path / "cut")]) == 0
    assert "going on after step 1" in capsys.readouterr().out
    whole, cut = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_flags_change_the_preset_and_nothing_else(pack_folder):
    pack = ShapePairs.open(pack_folder)
    small = train_config(TrainCmt(pack_folder), pack)
    assert (small.found_masks, train_config(TrainCmt(pack_folder, found_masks=0.0), pack).found_masks) == (
        0.5,
        0.0,
    )
    assert (small.steps, small.views, small.rate, small.model.k, small.align) == (6000, 5, 1e-3, 20, 0.5)
    paper = train_config(TrainCmt(pack_folder, preset="paper", views=4, k=50), pack)
    assert (paper.steps, paper.views, paper.rate, paper.model.k, paper.crop_px) == (86_000, 4, 2e-5, 50, 56)
    plain = train_config(TrainCmt(pack_folder, ablation="A"), pack)
    assert (plain.model.k, plain.align, plain.model.positions) == (0, 0.0, False)
    alone = train_config(TrainCmt(pack_folder, ablation="query-only"), pack)
    assert (alone.model.reference, alone.model.aided) == (False, False)
    for wrong in (
        {"steps": 0},
        {"rate": 0.0},
        {"k": -1},
        {"k": 5, "ablation": "C"},
        {"imagenet": True},
        {"found_masks": 1.5},
        {"imagenet": True, "preset": "paper", "start": pack_folder},
    ):
        with pytest.raises(UsageError):
            train_config(TrainCmt(pack_folder, **wrong), pack)


def test_a_training_can_begin_with_anothers_weights(pack_folder, trained, tmp_path, capsys):
    first = trained / "networks" / "boxes-small"
    flags = [
        "--data",
        str(pack_folder),
        *FAST,
        "--steps",
        "1",
        "--rate",
        "1e-12",
        "--workspace",
        str(tmp_path),
    ]
    assert cli.main(["train", "cmt", *flags, "--start", str(first), "--out", str(tmp_path / "on")]) == 0
    begun, before = (load_file(folder / "cmt.safetensors") for folder in (tmp_path / "on", first))
    assert all(torch.allclose(begun[name], before[name], atol=1e-6) for name in before)
    capsys.readouterr()
    other = ["--ablation", "A", "--start", str(first), "--out", str(tmp_path / "a")]
    assert cli.main(["train", "cmt", *flags, *other]) == 3
    assert "another network's weights" in capsys.readouterr().err


def test_figures_with_found_masks_are_others_and_say_so(pack_folder, trained, tmp_path, capsys):
    network = trained / "networks" / "boxes-small"
    command = ["evaluate", "cmt", "--data", str(pack_folder), "--network", str(network), "--split", "train"]
    said = {}
    for masks in ("given", "found"):
        assert cli.main([*command, "--masks", masks, "--out", str(tmp_path / masks)]) == 0
        assert f"masks {masks}" in capsys.readouterr().out
        said[masks] = (tmp_path / masks / "photos.csv").read_text()
        assert json.loads((tmp_path / masks / "metrics.json").read_text())["data"]["masks"] == masks
    assert said["given"] != said["found"]


def test_data_is_found_as_a_set_a_pack_or_a_prepared_scene_and_else_refused(pack_maker, tmp_path):
    from splatad.cmt_inputs import find_pack
    from splatad.workspace import Workspace

    pack_maker(tmp_path / "raw" / "chairs" / "packed", shapes=3, photos=2)
    pack_maker(tmp_path / "ws" / "scenes" / "broken", shapes=3, photos=2)
    workspace = Workspace(tmp_path / "ws")
    assert find_pack(workspace, tmp_path / "raw" / "chairs")[0] == "chairs"
    assert find_pack(workspace, tmp_path / "raw" / "chairs" / "packed")[0] == "chairs"
    assert find_pack(workspace, Path("broken"))[0] == "broken"
    with pytest.raises(InputError, match=r"--data elsewhere: no packed shapes"):
        find_pack(workspace, Path("elsewhere"))


def test_evaluation_writes_what_it_prints_and_repeats(pack_folder, trained, tmp_path, capsys):
    network = trained / "networks" / "boxes-small"
    command = ["evaluate", "cmt", "--data", str(pack_folder), "--network", str(network), "--out"]
    assert cli.main([*command, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "CMT, trained with boxes" in said
    assert "85.9" in said
    assert "quoted" in said
    assert cli.main([*command, str(tmp_path / "b")]) == 0
    for name in ("metrics.csv", "photos.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    document = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert document["network"]["thresholds"] == load_network(network / "cmt.safetensors")[1]["thresholds"]
    assert document["data"]["split"] == "test"
    rows = list(csv.DictReader((tmp_path / "a" / "photos.csv").open()))
    pack = ShapePairs.open(pack_folder)
    assert [int(row["photo"]) for row in rows] == pack.queries_of("test").tolist()
    truth = np.array([int(row["defective"]) for row in rows])
    assert truth.tolist() == pack.query_label[pack.queries_of("test")].tolist()
    for way in ("plain", "aided"):
        figures = document["results"][way]["figures"]
        scores = np.array([float(row[f"{way}_score"]) for row in rows])
        assert figures["auc"] == pytest.approx(auroc(scores, truth))
        limit = document["network"]["thresholds"][way]
        assert figures["accuracy_at_threshold"] == pytest.approx(((scores > limit) == truth).mean())


def test_evaluation_without_aid_or_of_another_size_is_told(pack_folder, tmp_path, save_tiny_network, capsys):
    alone = save_tiny_network(tmp_path / "plain.safetensors", aided=False)
    command = ["evaluate", "cmt", "--data", str(pack_folder), "--out", str(tmp_path / "out"), "--network"]
    assert cli.main([*command, str(alone)]) == 0
    assert list(json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]) == ["plain"]
    capsys.readouterr()
    assert cli.main([*command, str(save_tiny_network(tmp_path / "big.safetensors", px=96))]) == 3
    assert "pictures of 96 px" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "none.safetensors")]) == 3
    assert "cannot be read as weights" in capsys.readouterr().err
    assert cli.main([*command, str(alone), "--views", "-1"]) == 2


@pytest.mark.parametrize("command", ["train cmt", "evaluate cmt", "detect"])
def test_help_comes_without_torch(command):
    code = "import sys; from splatad import cli; assert cli.main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cmt" in done.stdout


@pytest.mark.slow
def test_of_two_processes_the_first_alone_speaks(pack_folder, tmp_path):
    flags = [
        "train",
        "cmt",
        "--data",
        str(pack_folder),
        "--out",
        str(tmp_path / "run"),
        *FAST,
        "--groups",
        "2",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}

    def run(*more):
        return subprocess.run(
            [*torchrun, "-m", "splatad", *flags, *more], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2: held out") == 1
    assert "2 processes" in done.stdout
    assert load_network(tmp_path / "run" / "cmt.safetensors")[1]["train"]["groups"] == 2
    refused = run("--rate", "0.5")
    assert refused.returncode != 0
    assert refused.stderr.count("another configuration (rate)") == 1
