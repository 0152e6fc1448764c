# SPDX-License-Identifier: Apache-2.0
"""skvq: low-bit, shared K/V cache pages of skvqd, from Python.

A thin ctypes layer over libskvq_plugin.so; see docs/python.md. Session, Model and Sequence follow
plugin-abi/include/skvq/plugin.h call by call, on numpy arrays and torch CPU tensors.
"""
from ._arrays import BF16
from .batch import Batch
from .errors import (BoundError, BusyError, CallerError, ClosedError, ForkedError, NoDaemonError,
                     PeerError, PluginError, SkvqError, TryAgainError)
from .session import Info, Model, Sequence, Session, Stats, attend

__version__ = "0.1.0"
__all__ = ["BF16", "Batch", "BoundError", "BusyError", "CallerError", "ClosedError", "ForkedError", "Info",
           "Model", "NoDaemonError", "PeerError", "PluginError", "Sequence", "Session", "SkvqError",
           "Stats", "TryAgainError", "attend", "__version__"]
