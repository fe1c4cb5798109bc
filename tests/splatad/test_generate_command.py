"""`splatad generate` as a command: its defaults, its dataset, its closing lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prepare.errors import UsageError
from splatad.commands.generate import Generate, run


def tiny(out, **changes):
    values = {
        "family": "robot",
        "views": 1,
        "good": 1,
        "defects": 0,
        "size_px": 32,
        "supersample": 1,
        "workers": 1,
    }
    return Generate(out=out, **{**values, **changes})


def test_the_class_is_named_after_the_family_and_the_next_command_is_printed(tmp_path, capsys):
    assert run(tiny(tmp_path)) == 0
    record = json.loads((tmp_path / "robot" / "generator.json").read_text())
    assert (record["family"], record["views"], record["size_px"]) == ("robot", 1, 32)
    printed = capsys.readouterr().out
    assert "76 parts" in printed
    assert f"next: splatad prepare mad-sim --data {tmp_path}" in printed


def test_a_second_run_says_that_all_was_there(tmp_path, capsys):
    run(tiny(tmp_path, name="mine"))
    capsys.readouterr()
    assert run(tiny(tmp_path, name="mine")) == 0
    assert "2 were there already" in capsys.readouterr().out
    assert (tmp_path / "mine" / "train" / "good" / "0.png").is_file()


def test_a_bad_flag_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--supersample"):
        run(tiny(tmp_path, supersample=9))


def test_the_commands_module_loads_without_torch():
    code = "import sys, splatad.commands.generate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
