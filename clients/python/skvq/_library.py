# SPDX-License-Identifier: Apache-2.0
"""Finds and loads libskvq_plugin.so, once in a process."""
from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from . import _abi
from .errors import PluginError

NAME = "libskvq_plugin.so"
VARIABLE = "SKVQ_PLUGIN"

_lock = threading.Lock()
_loaded: tuple[str, _abi.Api] | None = None


def candidates() -> list[tuple[str, str]]:
    """(path, why) in the order in which they are tried. The environment's is the only one then."""
    named = os.environ.get(VARIABLE)
    if named:
        return [(named, f"${VARIABLE}")]
    return [(str(Path(__file__).parent / NAME), "the package"), (NAME, "the loader's path")]


def _table(path: str) -> _abi.Api:
    library = ctypes.CDLL(path)
    try:
        get = library.skvq_plugin_api
    except AttributeError:
        raise PluginError(f"{path} has no skvq_plugin_api: it is not the skvq plugin") from None
    get.argtypes, get.restype = [ctypes.c_uint32], ctypes.c_void_p
    address = get(_abi.ABI_MAJOR)
    if not address:
        raise PluginError(f"{path} does not serve ABI {_abi.ABI_MAJOR}; package and plugin are of "
                          "different releases")
    size = ctypes.c_uint32.from_address(address).value
    # Entries beyond the plugin's struct_size do not exist; here they are NULL.
    table = _abi.Api()
    ctypes.memmove(ctypes.byref(table), address, min(size, ctypes.sizeof(table)))
    for name in ("open", "close", "model_register", "seq_open", "seq_close", "append", "err_name",
                 "last_error"):
        if not getattr(table, name):
            raise PluginError(f"{path}: its table has no {name}")
    return table


def load() -> tuple[str, _abi.Api]:
    """The plugin's path and its table.

    Raises PluginError: not found (with every place that was looked at), or of another ABI.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            tried = []
            for path, why in candidates():
                try:
                    _loaded = (path, _table(path))
                    break
                except OSError as e:
                    tried.append(f"{path} ({why}): {e}")
            else:
                raise PluginError(f"{NAME} cannot be loaded. Tried {'; '.join(tried)}. Set "
                                  f"{VARIABLE} to the plugin of a build, e.g. build/lib/{NAME}")
        return _loaded
