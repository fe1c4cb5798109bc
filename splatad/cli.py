"""The command `splatad`: finds the module of a command, and turns every outcome into one line and an exit status.

Nothing heavy is imported here: `splatad --help` answers at once, and a command's module is loaded when it is called.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prepare.errors import InputError, UsageError

INTERNAL_ERROR, USAGE_ERROR, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141


@dataclass(frozen=True)
class CommandLine:
    """One row of the table of commands; `splatad.commands.NAME` holds its `Command` and `run`.

    A name of two words ("evaluate pose") is a command of its own, in the module `evaluate_pose`.
    """

    help: str
    example: str  # the words after "splatad"


COMMANDS = {
    "generate": CommandLine(
        "make a toy dataset: a procedural part, its photos, defects", "generate --out DATA"
    ),
    "generate chairs": CommandLine(
        "make chairs with and without an anomaly, to train CMT", "generate chairs --out DATA"
    ),
    "generate registered": CommandLine(
        "make parts with a measured point at every pixel, to try CFM", "generate registered --out DATA"
    ),
    "prepare": CommandLine(
        "turn a dataset or photos into scenes; changes no file of yours", "prepare mad-sim --data DATA"
    ),
    "fit": CommandLine("fit Gaussian splats to a scene: the reference", "fit --class NAME"),
    "calibrate": CommandLine(
        "the threshold for a chosen false-alarm rate", "calibrate --class NAME --false-alarm-rate 0.01"
    ),
    "detect": CommandLine(
        "inspect photos: camera, anomaly map, verdict, report", "detect --query PHOTO_OR_FOLDER"
    ),
    "pose": CommandLine(
        "the cameras of photos, how far to believe them, pictures", "pose --query PHOTO_OR_FOLDER"
    ),
    "evaluate": CommandLine("metrics over a class's test photos", "evaluate --class NAME"),
    "evaluate pose": CommandLine(
        "errors of the cameras that are found, by two protocols", "evaluate pose --class NAME"
    ),
    "train cmt": CommandLine(
        "train the network that compares a photo with a shape", "train cmt --data DATA/chairs"
    ),
    "evaluate cmt": CommandLine(
        "its metrics on shapes it has not seen, beside the published ones", "evaluate cmt --data DATA/chairs"
    ),
    "train cfm": CommandLine(
        "train the network that compares a photo with its measured points", "train cfm --class bagel"
    ),
    "evaluate cfm": CommandLine(
        "its metrics on the class's test photos, beside the published ones", "evaluate cfm --class bagel"
    ),
    "doctor": CommandLine("what is installed, what is missing, and what brings it", "doctor"),
}
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class GlobalFlags:
    """What may stand before or after any command."""

    debug: bool
    log_level: str  # one of LOG_LEVELS
    version: bool
    rest: list[str]  # the arguments that are not global


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of `splatad ARGV`: the command's, else 1 internal error, 2 usage, 3 bad input, 4 missing part."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        status = _dispatch(_take_global_flags(arguments))
        sys.stdout.flush()  # a closed pipe shows here, not while Python shuts down
        return status
    except BrokenPipeError:
        # Whoever read our output has enough. The rest goes nowhere, so that Python's own flush at exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to go on", INTERRUPTED)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        if isinstance(error, InputError):
            return _complain(str(error), error.exit_status)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = error.filename or "output"
            return _complain(
                f"{where}: no space left on the disk; free some, then run the same command again", BAD_INPUT
            )
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _complain(f"internal error: {what}; run again with --debug", INTERNAL_ERROR)


def _complain(message: str, status: int) -> int:
    print("splatad: " + " ".join(message.split()), file=sys.stderr)
    return status


def _take_global_flags(arguments: list[str]) -> GlobalFlags:
    """The global flags, wherever they stand before a lone `--`. Raises: UsageError for an unknown log level."""
    debug, version, log_level = False, False, "info"
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            rest += [argument, *waiting]
        elif argument == "--debug":
            debug = True
        elif argument == "--version":
            version = True
        elif flag in ("--log-level", "--log_level"):
            log_level = (value if equals else next(waiting, "")).lower()
            if log_level not in LOG_LEVELS:
                raise UsageError(f"--log-level: must be one of {', '.join(LOG_LEVELS)}, got {log_level!r}")
        else:
            rest.append(argument)
    return GlobalFlags(debug, "debug" if debug else log_level, version, rest)


def _dispatch(flags: GlobalFlags) -> int:
    if flags.version:
        import splatad

        print(f"splatad {splatad.__version__}")
        return 0
    if not flags.rest:
        print(_help(), file=sys.stderr)
        return USAGE_ERROR
    if flags.rest[0] in ("--help", "-h", "help"):
        if flags.rest[0] != "help" or len(flags.rest) == 1:
            print(_help())
            return 0
        command, _ = _split_command(flags.rest[1:])
        return _run(command, ["--help"], flags.log_level)
    command, arguments = _split_command(flags.rest)
    return _run(command, arguments, flags.log_level)


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that `words` begin with and its arguments; a second word belongs to it where such commands exist.

    No command takes a word without a flag, so a second word that is none of them is a slip.

    Raises: UsageError for an unknown command.
    """
    first, rest = words[0], words[1:]
    pairs = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if pairs and rest and not rest[0].startswith("-"):
        command, rest = f"{first} {rest[0]}", rest[1:]
    else:
        command = first
    if command in COMMANDS:
        return command, rest
    if command.startswith("-"):
        raise UsageError(f"{command}: no such flag before the command; `splatad --help` lists what there is")
    near = difflib.get_close_matches(command.lower(), COMMANDS, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}"
    raise UsageError(f"{command}: no such command; {hint}")


def _run(command: str, arguments: list[str], log_level: str) -> int:
    """Parse `arguments` into the command's own `Command` and run it."""
    module = importlib.import_module(f"splatad.commands.{command.replace(' ', '_')}")
    import tyro

    _start_logging(log_level)
    try:
        config = tyro.cli(module.Command, args=arguments, prog=f"splatad {command}")
    except SystemExit as finished:  # tyro has printed its help (0) or what is wrong with the flags (2)
        return finished.code if isinstance(finished.code, int) else USAGE_ERROR
    return int(module.run(config))


def _start_logging(level: str) -> None:
    """Our packages log to stderr from `level` on; all others only their warnings."""
    import logging

    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for package in ("prepare", "recon", "pose", "detect", "splatad"):
        logging.getLogger(package).setLevel(level.upper())


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    examples = "\n".join(f"  splatad {command.example}" for command in COMMANDS.values())
    return f"""\
usage: splatad COMMAND [FLAGS]

Finds what is wrong with a part from one photo: reference photos in, a verdict on a new photo out.

commands:
{rows}

examples, in the order of the work:
{examples}

flags of every command:
  --help             what the command takes
  --log-level LEVEL  {", ".join(LOG_LEVELS)} (default info)
  --debug            show where an error came from
  --version          print the version

exit status: 0 done, 2 usage, 3 bad input, 4 something missing, 1 internal error;
detect --exit-status: 10 a photo is NG, 20 one is CANNOT TELL, else 0;
pose --exit-status: 20 a camera is not believed, else 0"""


if __name__ == "__main__":
    sys.exit(main())
