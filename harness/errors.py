"""Errors that carry their meaning. The first two are for the person at the terminal and print as one line; the
others are raised by engines and workloads inside a worker and become the class of a failed record."""

from __future__ import annotations


class HarnessError(Exception):
    """Something a user can mend; printed as one line, never as a traceback."""

    exit_code = 1


class UsageError(HarnessError):
    """Wrong usage: an unknown name, a bad option, a folder that cannot be written."""

    exit_code = 2


class CellError(Exception):
    """A cell that could not be measured; `failure_class` is what its record says."""

    failure_class = "internal"


class LoadFailed(CellError):
    failure_class = "load_failed"


class OutOfMemory(CellError):
    failure_class = "out_of_memory"


class BadOutput(CellError):
    """NaN, an early stop, or a wrong number of tokens: the engine answered, but not what was asked."""

    failure_class = "bad_output"


class Unsupported(CellError):
    failure_class = "unsupported"
