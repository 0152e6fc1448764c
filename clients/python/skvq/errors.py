# SPDX-License-Identifier: Apache-2.0
"""What can go wrong: one exception for each range of the ABI's error numbers (skvq/error.h)."""
from __future__ import annotations


class SkvqError(Exception):
    """A call of the plugin failed.

    Attributes:
        call:   the call, e.g. ``"seq_open"``.
        code:   the positive number of ``skvq/error.h``, e.g. 34. Numbers are pinned for ever.
        name:   its name, e.g. ``"SKVQ_ENODAEMON"``; ``"unknown"`` if the plugin does not know it.
        detail: what the plugin said of this failure: which argument, which token, which path.
    """

    def __init__(self, call: str, code: int, name: str, detail: str = "") -> None:
        super().__init__(call, code, name, detail)
        self.call, self.code, self.name, self.detail = call, code, name, detail

    def __str__(self) -> str:
        return f"{self.call}: {self.name} ({self.code}){': ' if self.detail else ''}{self.detail}"


class CallerError(SkvqError):
    """1 to 31: an argument, the order of calls, or an identity is wrong."""


class PeerError(SkvqError):
    """32 to 63: the system or the daemon failed."""


class NoDaemonError(PeerError):
    """SKVQ_ENODAEMON: nobody answers on the socket. ``Session(None)`` works without."""


class TryAgainError(SkvqError):
    """64 to 79: not yet, or the deadline passed. What was asked counts as a miss."""


class BoundError(SkvqError):
    """80 to 95: a bound was hit; ``detail`` says which and where."""


class ForkedError(CallerError):
    """SKVQ_EFORKED: the session was opened by another process. Open one in this process."""


class ClosedError(RuntimeError):
    """The session, model or sequence was closed before."""


class BusyError(RuntimeError):
    """Another thread is inside a call that this one must not overlap."""


class PluginError(RuntimeError):
    """The plugin was not found, does not load, or serves another ABI."""


def error_class(code: int) -> type[SkvqError]:
    if code == 34:
        return NoDaemonError
    if code == 10:
        return ForkedError
    for last, kind in ((31, CallerError), (63, PeerError), (79, TryAgainError), (95, BoundError)):
        if code <= last:
            return kind
    return SkvqError
