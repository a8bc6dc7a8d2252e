"""What can go wrong, as one small family of exceptions.

`HandlergenError` is "handlergen cannot proceed"; `ModuleFailed` is "your code failed". Only `handlergen.cli`
renders them, and only it turns them into exit statuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HandlergenError(Exception):
    """handlergen cannot do what was asked.

    Args:
        message: What is wrong, in one or a few lines.
        hint: What to do next; printed after the message.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, order=True)
class Problem:
    """One finding about a user's source: where it is, what is wrong and what to write instead."""

    file: str
    line: int
    message: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f"\n    {self.fix}" if self.fix else "")


class ContractError(HandlergenError):
    """The source does not meet the contract. Carries every problem found, not just the first."""

    exit_status = 3

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class ModuleFailed(HandlergenError):
    """The user's own code raised, or its model cannot be loaded in its environment.

    `traceback` is cut to the user's frames; empty if no code of the user's has failed.
    """

    exit_status = 4

    def __init__(self, message: str, *, traceback: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.traceback = traceback


class ServerError(HandlergenError):
    """TorchServe could not be started, reached or stopped, or refused a management call."""

    exit_status = 5


class NoServer(ServerError):
    """Nobody listens at the server's address."""


class TlsError(ServerError):
    """A client does not accept the server's certificate, or only one of the two uses TLS."""


class RequestFailed(HandlergenError):
    """A request was answered with an error. `body` is the answer as it came."""

    exit_status = 6

    def __init__(self, message: str, *, status: int, body: bytes = b"", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.body = body


class TooManyErrors(HandlergenError):
    """More rows failed than were allowed. What is done is kept."""

    exit_status = 7
