"""Every error that tare reports, as one tree.

::

    TareError
    ├── InvalidError      400  what was asked for makes no sense (bad name, flag, size, archive)
    ├── DeniedError       403  understood, and refused by a rule or for lack of privilege
    ├── MissingError      404  the thing named does not exist
    ├── ConflictError     409  it exists, or is in a state that forbids the action
    ├── FailedError       500  the host or the kernel could not do it
    └── UnsupportedError  501  tare, or this host, does not have it

An error's text is one sentence that names the thing and the cause; ``hint`` says what to do.
Libraries raise; only the two ``main`` functions print and exit.
"""

from __future__ import annotations


class TareError(Exception):
    """Base of all errors that a user is meant to read.

    ``exit_code`` is what a command exits with: 1 as Docker's clients do, or 125, 126 and 127
    of ``docker run`` where the raiser knows better.
    """

    http_status = 500

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


class InvalidError(TareError):
    """What was asked for makes no sense, whatever the state of the host."""

    http_status = 400


class DeniedError(TareError):
    """The request was understood and is refused: by policy, or for lack of privilege."""

    http_status = 403


class MissingError(TareError):
    """The named thing does not exist."""

    http_status = 404


class ConflictError(TareError):
    """The named thing exists already, or its state forbids the action."""

    http_status = 409


class FailedError(TareError):
    """The host or its kernel could not do it."""

    http_status = 500


class UnsupportedError(TareError):
    """Neither wrong nor forbidden: tare or this host does not have it."""

    http_status = 501
