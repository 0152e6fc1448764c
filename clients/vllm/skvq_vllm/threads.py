# SPDX-License-Identifier: Apache-2.0
"""Python work on the threads that OpenMP has already.

Between two layers vLLM's OpenMP threads spin on the cores they are bound to. Threads of our own would
share these cores with them; so work is given to them, by the entry point that compilers use. Knows
nothing of vLLM or of the plugin.
"""
from __future__ import annotations

import ctypes
import itertools
import os
from typing import Callable

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _entry() -> Callable[..., None] | None:
    """GOMP_parallel of the runtime that is loaded; Intel's has it too. None: there is none."""
    try:
        return ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        pass
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as f:
            paths = {line.split(None, 5)[5].strip() for line in f if line.count("/")}
    except OSError:
        return None
    # One that is in the process already: a second runtime would bring threads of its own.
    for path in sorted(paths):
        if os.path.basename(path).startswith(("libiomp5", "libgomp")):
            try:
                return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
            except (OSError, AttributeError):
                continue
    return None


class Team:
    """``run(work, n)`` calls work(0) ... work(n - 1), on as many threads as there are to be had.

    Each call of work holds the GIL, so it is worth while where it spends its time outside it. One run
    at a time.
    """

    def __init__(self) -> None:
        self._parallel = _entry()
        if self._parallel is not None:
            self._parallel.restype = None
            self._parallel.argtypes = [_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._work: Callable[[int], None] | None = None
        self._n = 0
        self._take = itertools.count().__next__  # one step of the interpreter: each number comes once
        self._error: BaseException | None = None
        self._call = _WORK(self._share)  # kept: C holds no reference

    @property
    def parallel(self) -> bool:
        return self._parallel is not None

    def _share(self, _: object) -> None:
        while (i := self._take()) < self._n:
            try:
                self._work(i)
            except BaseException as e:  # it must not reach C
                self._error = self._error or e

    def run(self, work: Callable[[int], None], n: int) -> None:
        """Raises what a work has raised, after all have ended."""
        self._work, self._n, self._error = work, n, None
        self._take = itertools.count().__next__
        if self._parallel is not None and n > 1:
            self._parallel(self._call, None, n, 0)
        self._share(None)  # what no thread has taken: all, where the team is smaller, or none
        self._work = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
