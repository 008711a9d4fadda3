"""Errors a user can act on. The command line maps `InvalidInputError` to exit 2 and every other `NemodiffError` to exit 1."""

from __future__ import annotations


class NemodiffError(Exception):
    """Base of every error raised on purpose by this project."""


class InvalidInputError(NemodiffError, ValueError):
    """One field of the input is not usable.

    Args:
        field: name of the option, file or tensor as the user wrote it.
        value: what was given.
        allowed: what would have been accepted.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: got {value!r}, allowed: {allowed}")


class CheckpointError(InvalidInputError):
    """A checkpoint file, tensor or configuration field does not match the published layout."""


class BundleError(NemodiffError):
    """A bundle is missing, incomplete, altered or made for something else."""


class ExportError(NemodiffError):
    """An exported checkpoint cannot be written."""


class PassError(NemodiffError):
    """A graph pass fired another number of times than its pipeline expects."""


class LoweringError(NemodiffError):
    """A graph holds a node the target has no converter for."""


class ParityError(NemodiffError):
    """A compiled engine disagrees with the eager decoder."""


class AuditError(NemodiffError):
    """A strict build or inspection found something in a compiled plan that should not be there."""


class BatchError(NemodiffError):
    """A batch job cannot go on: a worker failed, or a file of its folder is not what was written."""


class BusyError(NemodiffError):
    """As many requests wait as may. Nothing was queued; the same request may be sent again."""


class EngineStoppedError(NemodiffError):
    """The engine loop was closed, or an engine run failed, while a request was not finished."""
