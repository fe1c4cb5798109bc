"""The one exception type for whatever comes from outside: files, flags, data.

The command line prints its message on one line and exits with `exit_status`; no traceback unless `--debug`.
"""


class InputError(Exception):
    """Something the user gave cannot be used. The message reads *where: what, got; what to do next*.

    `exit_status` is 3 (bad input) unless the fault is one of usage (2) or of a missing optional part (4).
    """

    exit_status = 3


class UsageError(InputError):
    """A flag or a name given on the command line is wrong."""

    exit_status = 2


class MissingPartError(InputError):
    """An optional dependency, a compiler or a weights file is needed and not there."""

    exit_status = 4
