# SPDX-License-Identifier: Apache-2.0
"""``kv_connector_extra_config``: names, types, bounds and defaults. Knows nothing of vLLM."""
from __future__ import annotations

import dataclasses
import os
from typing import Any, Mapping

MODE = ("load", "attend")
SAVE = ("all", "prompt", "none")


@dataclasses.dataclass(frozen=True)
class Options:
    """One field an option; docs/vllm.md explains them."""

    socket: str
    mode: str = "load"                # pages into vLLM's blocks, or attention on the pages
    profile: str = "k4v2"
    calibration: str = ""             # path of a calibration file; empty: the tenant's, if any
    window: int = 128                 # tokens
    sinks: int = 5                    # tokens
    save: str = "all"                 # prompt and output, the prompt alone, or nothing
    save_tokens_per_step: int = 1024  # tokens coded between two steps of the engine
    held_requests_max: int = 8        # finished requests whose blocks wait to be saved
    pinned_requests_max: int = 32     # waiting requests whose pages are pinned
    min_load_tokens: int = 128        # a shorter match is computed, not loaded
    timeout_ms: int = 1000            # the longest wait for the daemon in one call
    tokens_max: int = 0               # mode attend: tokens of all running requests; 0: no bound


BOUNDS = {
    "window": (0, 65536), "sinks": (0, 64), "save_tokens_per_step": (16, 1 << 20),
    "held_requests_max": (0, 4096), "pinned_requests_max": (1, 4096),
    "min_load_tokens": (1, 1 << 20), "timeout_ms": (10, 60000),
    "tokens_max": (0, 1 << 40),
}


def parse(extra: Mapping[str, Any]) -> Options:
    """Raises ValueError that names the option and what it takes."""
    fields = {f.name: f for f in dataclasses.fields(Options)}
    unknown = sorted(set(extra) - set(fields))
    if unknown:
        raise ValueError(f"kv_connector_extra_config: no option {', '.join(map(repr, unknown))}; "
                         f"there are {', '.join(sorted(fields))}")
    values = dict(extra)
    values.setdefault("socket", os.environ.get("SKVQD_SOCKET", ""))
    for name, value in values.items():
        if name in BOUNDS:
            low, high = BOUNDS[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"kv_connector_extra_config: '{name}' takes a whole number from "
                                 f"{low} to {high}, not {value!r}")
        elif not isinstance(value, str):
            raise ValueError(f"kv_connector_extra_config: '{name}' takes a text, not {value!r}")
    if not values["socket"]:
        raise ValueError("kv_connector_extra_config: 'socket' is missing: the path skvqd listens "
                         "on (or set SKVQD_SOCKET)")
    for name, choices in (("mode", MODE), ("save", SAVE)):
        if values.get(name, choices[0]) not in choices:
            raise ValueError(f"kv_connector_extra_config: '{name}' takes {', '.join(choices)}, not "
                             f"{values[name]!r}")
    got = Options(**values)
    if got.mode == "attend" and got.save == "prompt":
        raise ValueError("kv_connector_extra_config: in mode 'attend' what a request says lies in the same "
                         "pages as what it was asked: 'save' takes all or none")
    if got.mode != "attend" and got.tokens_max:
        raise ValueError("kv_connector_extra_config: 'tokens_max' is of mode 'attend'")
    return got
