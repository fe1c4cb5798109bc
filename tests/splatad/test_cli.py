"""The command line: lean help, one line for each kind of failure, the promised exit statuses."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from prepare.errors import InputError, MissingPartError, UsageError
from splatad import __version__, cli

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """Echo."""

    view_count: int = 3
    """How many."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Command], int]], None]:
    """Install the given function as what `splatad fit` runs."""

    def install(run: Callable[[Command], int]) -> None:
        module = types.ModuleType("splatad.commands.fit")
        module.Command, module.run = Command, run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "splatad.commands.fit", module)

    return install


def _raising(error: BaseException) -> Callable[[Command], int]:
    def run(config: Command) -> int:
        raise error

    return run


def test_help_and_version_load_no_heavy_package() -> None:
    code = (
        "import sys; from splatad.cli import main; main(['--help']); main(['--version']); main(['nonsense']); "
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'scipy', 'kornia'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"splatad {__version__}" in done.stdout


def test_help_lists_every_command_and_every_command_has_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in shown
        module = "splatad.commands." + name.replace(" ", "_")
        assert importlib.util.find_spec(module) is not None, name


def test_every_example_of_the_help_starts_with_its_own_command() -> None:
    for name, line in cli.COMMANDS.items():
        words = line.example.split()
        assert " ".join(words[: len(name.split())]) == name


def test_no_command_is_a_usage_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_an_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["detcet", "--query", "a.png"]) == 2
    assert capsys.readouterr().err == "splatad: detcet: no such command; did you mean detect?\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate", "pse"], "splatad: evaluate pse: no such command; did you mean evaluate pose"),
        (["evaluate", "mad_car"], "splatad: evaluate mad_car: no such command; "),
        (["--scene", "x", "evaluate"], "splatad: --scene: no such flag before the command; "),
    ],
)
def test_a_second_word_that_is_no_command_is_a_usage_error(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(line)


def test_two_words_are_a_command_of_their_own_and_one_word_stays_what_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, int]] = []

    def install(name: str) -> None:
        module = types.ModuleType(f"splatad.commands.{name}")
        module.Command = Command  # type: ignore[attr-defined]
        module.run = lambda config: ran.append((name, config.view_count)) or 0  # type: ignore[attr-defined,func-returns-value]
        monkeypatch.setitem(sys.modules, f"splatad.commands.{name}", module)

    install("evaluate")
    install("evaluate_pose")
    assert cli.main(["evaluate", "--view-count", "4"]) == 0
    assert cli.main(["evaluate", "pose", "--view-count", "5"]) == 0
    assert cli.main(["evaluate"]) == 0
    assert ran == [("evaluate", 4), ("evaluate_pose", 5), ("evaluate", 3)]
    assert cli.main(["help", "evaluate", "pose"]) == 0
    assert "usage: splatad evaluate pose " in capsys.readouterr().out
    assert cli.main(["help", "evaluate"]) == 0
    assert "usage: splatad evaluate [" in capsys.readouterr().out


def test_a_command_gets_its_flags_and_its_result_is_the_exit_status(command: Callable[..., None]) -> None:
    seen: list[int] = []

    def run(config: Command) -> int:
        seen.append(config.view_count)
        return 10

    command(run)
    assert cli.main(["fit", "--view-count", "7"]) == 10
    assert cli.main(["fit", "--view_count=8"]) == 10
    assert seen == [7, 8]


def test_global_flags_stand_before_or_after_the_command(command: Callable[..., None]) -> None:
    import logging

    levels: list[int] = []

    def run(config: Command) -> int:
        levels.append(logging.getLogger("recon").level)
        return 0

    command(run)
    assert cli.main(["--log-level", "error", "fit", "--view-count", "1"]) == 0
    assert cli.main(["fit", "--view-count", "1", "--log_level=warning"]) == 0
    assert cli.main(["fit", "--debug"]) == 0
    assert levels == [logging.ERROR, logging.WARNING, logging.DEBUG]


@pytest.mark.parametrize("arguments", [["--log-level", "loud", "doctor"], ["doctor", "--log-level"]])
def test_an_unknown_log_level_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert "--log-level: must be one of debug, info, warning, error, got" in capsys.readouterr().err


def test_a_wrong_flag_of_a_command_is_a_usage_error(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(AssertionError("must not run")))
    assert cli.main(["fit", "--view-count", "many"]) == 2
    assert cli.main(["fit", "--nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_help_of_a_command_comes_by_both_spellings(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(AssertionError("must not run")))
    assert cli.main(["fit", "--help"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["help", "fit"]) == 0
    assert capsys.readouterr().out == first
    assert "--view-count" in first


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.png: is empty; take another"), 3, "splatad: a.png: is empty; take another"),
        (InputError("a.png:\n two lines"), 3, "splatad: a.png: two lines"),
        (UsageError("--class: which?"), 2, "splatad: --class: which?"),
        (MissingPartError("no compiler"), 4, "splatad: no compiler"),
        (KeyboardInterrupt(), 130, "splatad: interrupted; run the same command again to go on"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.png"),
            3,
            "splatad: out.png: no space left on the disk; free some, then run the same command again",
        ),
        (
            ZeroDivisionError("by zero"),
            1,
            "splatad: internal error: ZeroDivisionError: by zero; run again with --debug",
        ),
        (AssertionError(), 1, "splatad: internal error: AssertionError; run again with --debug"),
    ],
)
def test_each_failure_is_one_line_and_its_status(
    error: BaseException,
    status: int,
    line: str,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(_raising(error))
    assert cli.main(["fit"]) == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_debug_shows_the_traceback_and_keeps_the_status(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(InputError("a.png: is empty")))
    assert cli.main(["fit", "--debug"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("splatad: a.png: is empty\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from splatad.cli import main; sys.stdin.read(1); sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()  # before the process may go on to print
    process.stdout = None
    _, complaint = process.communicate("x")
    assert process.returncode == cli.BROKEN_PIPE
    assert complaint == ""
