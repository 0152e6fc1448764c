# SPDX-License-Identifier: Apache-2.0
"""skvqd as the connector needs it: match, read, write, each bounded in time, none of them fatal.

A session is opened when it is first needed, and again, at most every few seconds, while no daemon
answers. Whatever goes wrong later is a miss: the caller computes. One thread at a time.
"""
from __future__ import annotations

import hashlib
import time
from typing import Any, Callable, Sequence

import skvq

from .identity import Facts
from .options import Options

RETRY_S = 5.0        # between two attempts to open a session
APPEND_TOKENS = 256  # most tokens between two commits: bounds a sequence's FP16 ring
REFUSALS_MAX = 64    # texts remembered
_READ_ONLY = 16      # the same, of a sequence that is only read


class Refused(Exception):
    """The daemon or the plugin refuses this configuration; trying again does not help."""


class Failed(Exception):
    """A call failed: a miss. The text says which and why."""


class Store:
    """A session with a model registered.

    facts, options: the identity and how to store. max_tokens: of the longest sequence. name: shown
    by skvqctl. say(text): a line for the log, once a change. embedded: without a daemon; pages stay in
    this process.
    """

    def __init__(self, facts: Facts, options: Options, max_tokens: int, name: str,
                 say: Callable[[str], None], *, embedded: bool = False) -> None:
        self.facts, self.options, self.max_tokens = facts, options, max_tokens
        self._embedded = embedded
        self._name, self._say = name, say
        self._session: skvq.Session | None = None
        self._model: skvq.Model | None = None
        self._next_try = 0.0
        self._reachable = True
        self._calibration: bytes | None = None
        self._given: tuple[bytes | None] | None = None  # by use()
        self._refusals: set[str] = set()

    def calibration_id(self) -> str:
        """What codes depend on beside the identity's other parts: both halves must agree on it.
        Empty while there is no model."""
        return hashlib.sha256(self._calibration or b"").hexdigest() if self._model else ""

    def ready(self) -> bool:
        """A model is registered, with a daemon, or one that was there and is lost for the moment.

        Raises Refused.
        """
        if self._model is not None:
            return True
        now = time.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + RETRY_S
        where = self.options.socket
        try:
            session = skvq.Session(None if self._embedded else where, name=self._name,
                                   timeout_ms=self.options.timeout_ms)
        except (skvq.NoDaemonError, skvq.TryAgainError, skvq.BoundError) as e:
            if self._reachable:
                self._say(f"no skvqd at '{where}' ({e}): everything is computed, and it is looked "
                          f"for every {RETRY_S:.0f} s")
            self._reachable = False
            return False
        except (skvq.SkvqError, skvq.PluginError) as e:
            raise Refused(f"skvqd at '{where}' cannot be used: {e}") from None
        try:
            self._register(session)
        except skvq.SkvqError as e:
            session.close()
            raise Refused(f"the skvq plugin refuses the model: {e}") from None
        except BaseException:
            session.close()
            raise
        if not self._reachable:
            self._say(f"skvqd at '{where}' is there")
        self._session, self._reachable = session, True
        return True

    def _register(self, session: skvq.Session) -> None:
        f, o = self.facts, self.options
        geometry = dict(weights_digest=f.weights, n_layer=f.n_layer, n_q_heads=f.n_q_heads,
                        n_kv_heads=f.n_kv_heads, head_dim_k=f.head_dim, head_dim_v=f.head_dim)
        calibration = None
        if self._given is not None:
            (calibration,) = self._given
        elif o.calibration:
            try:
                with open(o.calibration, "rb") as file:
                    calibration = file.read()
            except OSError as e:
                raise Refused(f"calibration '{o.calibration}': {e.strerror}") from None
        else:
            try:
                calibration = session.calibration(**geometry)
            except (skvq.SkvqError, skvq.PluginError, skvq.BusyError):
                pass  # costs sharing with those who could ask, and nothing else
        self._model = session.model(
            tokenizer_digest=f.tokenizer, engine_numerics=f.numerics, model_name=f.model_name,
            rope_kind="post" if f.rope_theta else "none", rope_pairs="half", rope_dim=f.rope_dim,
            rope_theta=f.rope_theta, rope_scaling=f.rope_scaling or None, profile=o.profile,
            calibration=calibration, window=o.window, sinks=o.sinks, **geometry)
        self._calibration = calibration

    def open(self, tokens: Sequence[int], *, publish: bool, recompute_us: int = 0,
             match: bool = True, append: int = 0) -> skvq.Sequence:
        """A sequence on the longest prefix that the daemon has (``n_matched``), to be closed by the
        caller. publish: tokens are going to be appended and are the daemon's too. recompute_us: what one
        costs to compute; pages on disk that take longer are left out; 0: not known. match: look for pages at
        all. append: most tokens between two commits, 0: the usual. Raises Failed."""
        if not self.attempt():
            raise Failed(f"no skvqd at '{self.options.socket}'")
        with failing():
            return self._model.sequence(tokens, max_tokens=max(self.max_tokens, len(tokens)),
                                        max_append=append or (APPEND_TOKENS if publish else _READ_ONLY),
                                        match=match, publish=publish, recompute_us=recompute_us)

    def attempt(self) -> bool:
        """ready(), of a server that runs: what refuses is told once each. Raises Failed."""
        try:
            return self.ready()
        except Refused as e:
            text = str(e)
            if text not in self._refusals:
                if len(self._refusals) >= REFUSALS_MAX:
                    self._refusals.clear()
                self._refusals.add(text)
                self._say(f"{text}: everything is computed; it is tried every {RETRY_S:.0f} s")
            raise Failed(text) from None

    def calibration(self) -> bytes | None:
        """What the model was registered with; None: none."""
        return self._calibration

    def use(self, calibration: bytes | None) -> None:
        """Registers with this one from the next call on, whatever the daemon keeps or a file holds by
        now. Ends open sequences."""
        self._given = (calibration,)
        self.close()
        self._next_try = 0.0

    def close(self) -> None:
        """Ends everything, open sequences too."""
        if self._session is not None:
            self._session.close()
        self._session = self._model = None


class failing:
    """``with failing():`` turns what the plugin raises into Failed."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (skvq.SkvqError, skvq.ClosedError, skvq.BusyError)):
            raise Failed(str(error)) from None


def attached(seq: skvq.Sequence) -> bool:
    """Whether the daemon of a sequence is there. Raises Failed."""
    with failing():
        return seq.info().daemon == "attached"
