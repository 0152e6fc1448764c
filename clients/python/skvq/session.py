# SPDX-License-Identifier: Apache-2.0
"""Session, Model, Sequence: the calls of skvq/plugin.h on arrays.

Threads. Calls marked [control] are taken in turn by a lock of the session, whatever thread makes
them. Calls marked [data] (append, attend, export) release the GIL and run side by side. A [control]
call on a sequence while a [data] call on it runs in another thread is a BusyError, and the reverse.
After os.fork() everything of the parent's session raises ForkedError in the child.
"""
from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import os
import select
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence as Seq

import numpy as np

from . import _abi, _arrays, _library
from .errors import BusyError, ClosedError, ForkedError, PluginError, SkvqError, error_class

log = logging.getLogger("skvq")
_LEVELS = {_abi.LOG_DEBUG: logging.DEBUG, _abi.LOG_INFO: logging.INFO,
           _abi.LOG_WARNING: logging.WARNING}
_DAEMON = ("embedded", "attached", "lost")
_in_log = threading.local()


@dataclass(frozen=True, slots=True)
class Info:
    """Where a sequence's tokens are; skvq_seq_info of plugin.h explains each field. ``daemon`` is
    "embedded", "attached" or "lost"; sizes are bytes."""
    n_tokens: int
    n_matched: int
    n_paged: int
    pages_shared: int
    pages_local: int
    pages_inflight: int
    daemon: str
    bytes_shared: int
    bytes_local: int
    bytes_window: int
    bytes_fp16: int
    boot_id: int
    n_refined: int
    n_base: int
    page_code_bytes: int
    pages_safe: int
    pages_dropped: int
    layer_groups: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of a session since it was opened; skvq_stats of plugin.h explains each field."""
    daemon: str
    boot_id: int
    tokens_asked: int
    tokens_matched: int
    tokens_committed: int
    pages_published: int
    pages_deduplicated: int
    publish_refused: int
    reconnects: int
    pages_off: int
    pages_safe: int


def _sized(kind: type) -> Any:
    value = kind()
    value.struct_size = ctypes.sizeof(kind)
    return value


def _filled(kind: type, struct: Any) -> Any:
    values = {n: getattr(struct, n) for n in kind.__dataclass_fields__}
    values["daemon"] = _DAEMON[values["daemon"]] if values["daemon"] < 3 else "unknown"
    return kind(**values)


def _bytes32(name: str, value: bytes | None, *, optional: bool = False) -> bytes | None:
    if value is None and optional:
        return None
    if not isinstance(value, (bytes, bytearray)) or len(value) != 32:
        raise ValueError(f"{name}: 32 bytes are needed (a SHA-256)")
    return bytes(value)


def _wait_readable(session: Session, seconds: float) -> None:
    """Until the daemon has said something, or that long. A daemon that is lost meanwhile takes its
    descriptor along: whoever asked looks again."""
    try:
        p = select.poll()  # select() knows no descriptor above 1023
        p.register(session.fileno(), select.POLLIN)
        p.poll(seconds * 1000)
    except (OSError, SkvqError):
        time.sleep(min(seconds, 0.005))


def _uint32(name: str, value: int) -> int:
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{name}: {type(value).__name__}; an integer is needed") from None
    if not 0 <= number < 2**32:
        raise ValueError(f"{name}: {number} does not fit in 32 bits")
    return number


class _Core:
    """What session, models, sequences and their finalizers share. Owns the C session."""

    def __init__(self, api: _abi.Api, pointer: int, keep: list[Any]) -> None:
        self.api, self.pointer, self.keep = api, pointer, keep
        self.pid = os.getpid()
        self.closing = False  # with the lock held
        # Not re-entrant: a finalizer that finds it taken, by its own thread even, buries instead.
        self.lock = threading.Lock()
        self.graves: collections.deque[tuple[int, str, int]] = collections.deque()

    def check_process(self) -> None:
        if self.pid != os.getpid():
            raise ForkedError("call", _abi.EFORKED, "SKVQ_EFORKED",
                              f"the session was opened by process {self.pid}, this is {os.getpid()}: "
                              "open a Session after fork(), or start processes by 'spawn'")

    def raise_error(self, call: str, code: int) -> None:
        """[control], with the lock held."""
        text = ctypes.create_string_buffer(512)
        self.api.last_error(self.pointer, text, len(text))
        raise self.error(call, code, text.value.decode("utf-8", "replace"))

    def error(self, call: str, code: int, detail: str) -> SkvqError:
        name = self.api.err_name(code)
        return error_class(-code)(call, -code, name.decode() if name else "unknown", detail)

    def checked(self, call: str, result: int) -> int:
        if result < 0:
            self.raise_error(call, result)
        return result

    def raise_data_error(self, call: str, code: int) -> None:
        """Of a [data] call that has not left its sequence: nobody closes the session before."""
        with self.control(entered=True):
            self.raise_error(call, code)

    @contextlib.contextmanager
    def control(self, *, entered: bool = False) -> Iterator[None]:
        self.check_process()
        if getattr(_in_log, "depth", 0):
            raise BusyError("a handler of the log 'skvq' must not call skvq")
        with self.lock:
            if not self.pointer:
                raise ClosedError("the session is closed")
            if self.closing and not entered:
                raise BusyError("another thread is closing the session")
            self.sweep()
            yield

    def sweep(self) -> None:
        """Frees what finalizers left, sequences before models. With the lock held."""
        while self.graves:
            buried = sorted(self.graves.popleft() for _ in range(len(self.graves)))
            for _, kind, pointer in buried:
                getattr(self.api, kind)(pointer)

    def bury(self, kind: str, pointer: int) -> None:
        """Finalizer of a model or sequence: any thread, any moment, never waits."""
        if self.pid != os.getpid() or not self.pointer:
            return
        self.graves.append((0 if kind == "seq_close" else 1, kind, pointer))
        if not getattr(_in_log, "depth", 0) and self.lock.acquire(blocking=False):
            try:
                if self.pointer:
                    self.sweep()
            finally:
                self.lock.release()

    def close(self) -> None:
        if self.pid != os.getpid():
            self.pointer = 0  # the parent's; this process's copy goes when it ends
            return
        with self.lock:
            pointer, self.pointer = self.pointer, 0
            self.graves.clear()
            if pointer:
                self.api.close(pointer)

    def finalize(self) -> None:
        """Of a session nobody refers to: no sequence of it can be in a call."""
        if self.pid == os.getpid() and self.lock.acquire(blocking=False):
            self.lock.release()
            self.close()


class Session:
    """A connection to skvqd, or none.

    Args:
        socket:     path of the daemon's socket; None: embedded, pages stay in this process.
        name:       shown by skvqctl.
        timeout_ms: longest a [control] call waits for the daemon; 0: the plugin's 2000.

    Raises NoDaemonError if nobody answers, PluginError if there is no plugin. What the plugin logs
    goes to the logger "skvq". Closing a session closes its models and sequences.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, name: str = "python",
                 timeout_ms: int = 0) -> None:
        self.plugin_path, api = _library.load()
        said: list[str] | None = []

        def on_log(_user: Any, level: int, text: bytes) -> None:
            _in_log.depth = getattr(_in_log, "depth", 0) + 1
            try:
                line = text.decode("utf-8", "replace")
                if said is not None:
                    said.append(line)
                log.log(_LEVELS.get(level, logging.ERROR), "%s", line)
            finally:
                _in_log.depth -= 1

        engine = _sized(_abi.Engine)
        engine.log = _abi.LOG_FN(on_log)
        engine.name = name.encode()
        engine.timeout_ms = _uint32("timeout_ms", timeout_ms)
        pointer = ctypes.c_void_p()
        path = None if socket is None else os.fsencode(socket)
        code = api.open(ctypes.byref(engine), path, ctypes.byref(pointer))
        if code < 0:
            name_of = api.err_name(code)
            raise error_class(-code)("open", -code, name_of.decode(),
                                     "; ".join(said) or f"socket {socket!r}")
        said = None
        self._core = _Core(api, pointer.value, [engine])
        self._children: weakref.WeakSet[Any] = weakref.WeakSet()
        # Not at exit: daemon threads may still be inside calls. The daemon sees the socket close.
        weakref.finalize(self, self._core.finalize).atexit = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return not self._core.pointer

    def close(self) -> None:
        """[control] Ends everything of the session; again is no error. BusyError if another thread
        is inside a [data] call of one of its sequences."""
        if self._core.pid != os.getpid():
            self._core.close()
            return
        with self._core.lock:
            if self.closed:
                return
            if self._core.closing:
                raise BusyError("another thread is closing the session")
            self._core.closing = True  # from here on nobody opens a sequence
            children = list(self._children)
        try:
            with contextlib.ExitStack() as held:
                for child in children:
                    if isinstance(child, Sequence) and not child.closed:
                        held.enter_context(child._exclusive())
                self._core.close()
        finally:
            self._core.closing = False

    def model(self, **description: Any) -> Model:
        """Registers a model; Model says what is needed."""
        return Model(self, **description)

    def stats(self) -> Stats:
        """[control] Counters since the session was opened."""
        stats = _sized(_abi.Stats)
        with self._core.control():
            self._core.checked("stats", self._core.api.stats(self._core.pointer, ctypes.byref(stats)))
        return _filled(Stats, stats)

    def fileno(self) -> int:
        """[control] Readable when the daemon has sent something, for select and asyncio; owned by
        the session. SKVQ_ESTATE in embedded mode."""
        with self._core.control():
            return self._core.checked("session_fd", self._core.api.session_fd(self._core.pointer))

    def _extension(self, name: bytes, kind: type) -> Any:
        address = self._core.api.get_extension(self._core.pointer, name)
        if not address:
            raise PluginError(f"this plugin has no extension {name.decode()}")
        return kind.from_address(address)

    def calibration(self, *, weights_digest: bytes, n_layer: int, n_q_heads: int, n_kv_heads: int,
                    head_dim_k: int, head_dim_v: int) -> bytes | None:
        """[control] The calibration file the daemon keeps for a model of this tenant; None if
        nobody has put one. NoDaemonError in embedded mode."""
        of = _sized(_abi.CalibrationOf)
        of.weights_digest = _bytes32("weights_digest", weights_digest)
        of.n_layer, of.n_q_heads, of.n_kv_heads = n_layer, n_q_heads, n_kv_heads
        of.head_dim_k, of.head_dim_v = head_dim_k, head_dim_v
        size = ctypes.c_uint64()
        buf = None
        with self._core.control():
            get = self._extension(_abi.EXT_CALIBRATION, _abi.ExtCalibration).get
            for _ in range(8):  # it may grow between the two questions
                room = len(buf) if buf is not None else 0
                code = get(self._core.pointer, ctypes.byref(of), buf, room, ctypes.byref(size))
                if code == -_abi.EAGAIN:
                    return None
                self._core.checked("calibration.get", code)
                if size.value <= room:
                    return buf.raw[:size.value]
                buf = ctypes.create_string_buffer(size.value)
        raise BusyError("the daemon's calibration keeps changing")

    def put_calibration(self, file: bytes) -> bool:
        """[control] Offers a calibration file to the tenant. True: it is the tenant's now; False:
        another was there before, which calibration() gives."""
        with self._core.control():
            put = self._extension(_abi.EXT_CALIBRATION, _abi.ExtCalibration).put
            return self._core.checked("calibration.put",
                                      put(self._core.pointer, file, len(file))) == 1


class Model:
    """A registered identity: everything that makes K/V bytes reusable, and how to store them.

    Two engines share pages only if all of this is equal but ``model_name`` and ``rope_pairs``.

    Args:
        session:          where; the model keeps it alive.
        weights_digest:   32 bytes over the weights.
        tokenizer_digest: 32 bytes over the tokenizer.
        lora_digest:      32 bytes over adapters and their scales; None: none.
        engine_numerics:  who computes K and V and how. Equal tags promise equal rounding.
        n_layer, n_q_heads, n_kv_heads, head_dim_k, head_dim_v: geometry; head_dim a multiple of 16,
                          at most 256; n_q_heads a multiple of n_kv_heads.
        rope_kind:        "post" (keys come rotated) or "none".
        rope_pairs:       "half" (Hugging Face, vLLM) or "interleaved" (GGUF).
        rope_dim:         rotated channels of a head; 0: all.
        rope_theta:       frequency base. rope_scaling: canonical text of any scaling.
        profile:          codec, e.g. "k4v2", "k8v8", "fp16"; None: the plugin's default.
        calibration:      bytes of a calibration file; None: data-free.
        window, sinks:    FP16 tokens; None: the plugin's 128 and 5.
        bit_table:        uint8 [n_layer][2]. reorder_k, reorder_v: uint16 [n_layer][n_kv_heads][head_dim].
        layer_window:     tokens each layer sees, 0: all; [n_layer]. None: all layers see all.

    Raises CallerError: SKVQ_EIDENTITY, SKVQ_EGEOMETRY, SKVQ_EPROFILE, SKVQ_ENOTSUP ...; PeerError
    SKVQ_ECORRUPT for a damaged calibration.
    """

    def __init__(self, session: Session, *, weights_digest: bytes, tokenizer_digest: bytes,
                 engine_numerics: str, n_layer: int, n_q_heads: int, n_kv_heads: int,
                 head_dim_k: int, head_dim_v: int | None = None, rope_kind: str = "post",
                 rope_pairs: str = "half", rope_dim: int = 0, rope_theta: float = 0.0,
                 rope_scaling: str | None = None, lora_digest: bytes | None = None,
                 model_name: str | None = None, profile: str | None = None,
                 calibration: bytes | None = None, window: int | None = None,
                 sinks: int | None = None, bit_table: np.ndarray | None = None,
                 reorder_k: np.ndarray | None = None, reorder_v: np.ndarray | None = None,
                 layer_window: Seq[int] | None = None, clip: float = 0.0) -> None:
        def text(value: str | None) -> bytes | None:
            return None if value is None else value.encode()

        def table(name: str, value: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray | None:
            if value is None:
                return None
            array = np.ascontiguousarray(value)
            if array.shape != shape:
                raise ValueError(f"{name}: shape {list(array.shape)}; {list(shape)} is needed")
            info = np.iinfo(dtype)
            if array.dtype.kind not in "iu" or array.size and (array.min() < 0 or array.max() > info.max):
                raise ValueError(f"{name}: whole numbers from 0 to {info.max} are needed")
            return array.astype(dtype)

        desc = _sized(_abi.ModelDesc)
        for name, value in (("n_layer", n_layer), ("n_q_heads", n_q_heads),
                            ("n_kv_heads", n_kv_heads), ("head_dim_k", head_dim_k),
                            ("head_dim_v", head_dim_k if head_dim_v is None else head_dim_v),
                            ("rope_dim", rope_dim),
                            ("window", _abi.DEFAULT if window is None else window),
                            ("sinks", _abi.DEFAULT if sinks is None else sinks)):
            setattr(desc, name, _uint32(name, value))
        kinds, pairs = {"none": _abi.ROPE_NONE, "post": _abi.ROPE_POST, "pre": _abi.ROPE_PRE}, \
            {"half": _abi.PAIRS_HALF, "interleaved": _abi.PAIRS_INTERLEAVED}
        if rope_kind not in kinds:
            raise ValueError(f"rope_kind: {rope_kind!r}; one of {sorted(kinds)}")
        if rope_pairs not in pairs:
            raise ValueError(f"rope_pairs: {rope_pairs!r}; one of {sorted(pairs)}")
        desc.rope_kind, desc.rope_pairs, desc.rope_theta = kinds[rope_kind], pairs[rope_pairs], rope_theta
        desc.weights_digest = _bytes32("weights_digest", weights_digest)
        desc.tokenizer_digest = _bytes32("tokenizer_digest", tokenizer_digest)
        desc.lora_digest = _bytes32("lora_digest", lora_digest, optional=True)
        desc.engine_numerics, desc.model_name = text(engine_numerics), text(model_name)
        desc.rope_scaling, desc.profile, desc.clip = text(rope_scaling), text(profile), clip
        if calibration is not None:
            desc.calibration, desc.calibration_bytes = bytes(calibration), len(calibration)
        bits = table("bit_table", bit_table, np.uint8, (n_layer, 2))
        if bits is not None:
            desc.bit_table = bits.tobytes()
        heads = (n_layer, n_kv_heads)
        maps = [table("reorder_k", reorder_k, np.uint16, (*heads, desc.head_dim_k)),
                table("reorder_v", reorder_v, np.uint16, (*heads, desc.head_dim_v))]
        desc.reorder_k, desc.reorder_v = (None if m is None else m.ctypes.data for m in maps)
        windows = table("layer_window", layer_window, np.uint32, (n_layer,))
        if windows is not None:
            desc.layer_window = windows.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
        self.session, self.profile = session, profile
        self.n_layer, self.n_q_heads, self.n_kv_heads = desc.n_layer, desc.n_q_heads, desc.n_kv_heads
        self.head_dim_k, self.head_dim_v = desc.head_dim_k, desc.head_dim_v
        self._core = session._core
        pointer = ctypes.c_void_p()
        with self._core.control():
            self._core.checked("model_register", self._core.api.model_register(
                self._core.pointer, ctypes.byref(desc), ctypes.byref(pointer)))
        self._pointer = pointer.value
        self._finalizer = weakref.finalize(self, self._core.bury, "model_unregister", self._pointer)
        self._finalizer.atexit = False

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return not self._pointer or not self._core.pointer

    def _open(self) -> int:
        if self.closed:
            raise ClosedError("the model is closed")
        return self._pointer

    def close(self) -> None:
        """[control] Unregisters; again is no error. SKVQ_ESTATE while sequences of it are open."""
        if self.closed or self._core.pid != os.getpid():
            return
        with self._core.control():
            if self._pointer:
                self._core.checked("model_unregister", self._core.api.model_unregister(self._pointer))
                self._finalizer.detach()
                self._pointer = 0

    def sequence(self, tokens: Any = (), *, max_tokens: int, max_append: int, match: bool = True,
                 publish: bool = True, whole: bool = False, drop_unseen: bool = False,
                 recompute_us: int = 0) -> Sequence:
        """[control] Opens a sequence; the daemon pins the longest chain of shared pages that is a
        prefix of ``tokens`` and leaves at least the window to compute. ``n_matched`` of what comes
        back tells how long it is: the caller computes and appends from there on.

        Args:
            tokens:       the prompt's ids [n]: a list, an array or a tensor.
            max_tokens:   capacity; memory is taken as tokens come.
            max_append:   most tokens between two commits.
            match, publish: look for shared pages; hand pages of this sequence to the daemon.
            whole:        of an elastic profile, take pages with their refinements or not at all.
            drop_unseen:  where all layers slide, let go of pages no layer sees any more.
            recompute_us: what a prompt token costs to compute: disk is not waited for longer.
        """
        ids = _arrays.tokens("tokens", tokens)
        desc = _sized(_abi.SeqDesc)
        desc.flags = ((0 if match else _abi.SEQ_NO_MATCH) | (0 if publish else _abi.SEQ_NO_PUBLISH)
                      | (_abi.SEQ_WHOLE if whole else 0)
                      | (_abi.SEQ_DROP_UNSEEN if drop_unseen else 0))
        desc.tokens = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        desc.n_tokens = len(ids)
        desc.max_tokens = _uint32("max_tokens", max_tokens)
        desc.max_append = _uint32("max_append", max_append)
        desc.recompute_us = _uint32("recompute_us", recompute_us)
        pointer = ctypes.c_void_p()
        with self._core.control():
            matched = self._core.checked("seq_open", self._core.api.seq_open(
                self._open(), ctypes.byref(desc), ctypes.byref(pointer)))
            return Sequence._adopt(self, pointer.value, matched, desc.max_append)

    def resume(self, snapshot: bytes) -> Sequence:
        """[control] A sequence from what Sequence.snapshot() gave, bit for bit, of this process or
        another. Hostile bytes are SKVQ_ECORRUPT, those of another model SKVQ_EIDENTITY."""
        data = np.frombuffer(snapshot, np.uint8)
        pointer = ctypes.c_void_p()
        with self._core.control():
            self._core.checked("seq_resume", self._core.api.seq_resume(
                self._open(), data.ctypes.data, len(data), ctypes.byref(pointer)))
            return Sequence._adopt(self, pointer.value, None, None)

    def prefetch(self, tokens: Any) -> int:
        """[control] Has the daemon read from disk what sequence(tokens) would wait for; pins
        nothing. Returns how many tokens are in memory or on their way there."""
        ids = _arrays.tokens("tokens", tokens)
        with self._core.control():
            call = self.session._extension(_abi.EXT_PREFETCH, _abi.ExtPrefetch).prefetch
            return self._core.checked("prefetch", call(
                self._open(), ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(ids)))


class Sequence:
    """One token sequence; made by Model.sequence(), fork() and Model.resume().

    Life: for new tokens, append() K and V of every layer and attend() each layer; then commit()
    their ids. Attributes: ``model``; ``n_matched``, tokens found in the daemon when it was opened.
    """

    def __init__(self) -> None:
        raise TypeError("Model.sequence() opens a Sequence")

    @classmethod
    def _adopt(cls, model: Model, pointer: int, matched: int | None, max_append: int | None) -> Sequence:
        """With the session's lock held."""
        self = object.__new__(cls)
        self.model, self._core, self._pointer = model, model._core, pointer
        self._finalizer = weakref.finalize(self, self._core.bury, "seq_close", pointer)
        self._finalizer.atexit = False
        self._gate = threading.Lock()
        self._running, self._held = 0, False
        model.session._children.add(self)
        info = _sized(_abi.SeqInfo)
        self._core.checked("seq_info", self._core.api.seq_info(pointer, ctypes.byref(info)))
        self.n_matched = info.n_matched if matched is None else matched
        self.max_append = max_append
        return self

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Committed tokens."""
        return self.info().n_tokens

    def __bool__(self) -> bool:
        return True  # not by length

    @property
    def closed(self) -> bool:
        return not self._pointer or not self._core.pointer

    # --- who may be inside at once ---------------------------------------------------------------

    def _enter(self) -> None:
        self._core.check_process()
        with self._gate:
            if self.closed:
                raise ClosedError("the sequence is closed")
            if self._held:
                raise BusyError("another thread is inside a [control] call on this sequence")
            self._running += 1

    def _leave(self) -> None:
        with self._gate:
            self._running -= 1

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._gate:
            if self._running or self._held:
                raise BusyError("another thread is inside a call on this sequence")
            self._held = True
        try:
            yield
        finally:
            with self._gate:
                self._held = False

    @contextlib.contextmanager
    def _control(self) -> Iterator[None]:
        self._core.check_process()
        if self.closed:
            raise ClosedError("the sequence is closed")
        with self._exclusive(), self._core.control():
            if not self._pointer:
                raise ClosedError("the sequence is closed")
            yield

    def _data(self, call: str, function: Callable[[], int]) -> None:
        self._enter()
        try:
            code = function()
            if code < 0:
                self._core.raise_data_error(call, code)
        finally:
            self._leave()

    # --- [control] -------------------------------------------------------------------------------

    def close(self) -> None:
        """[control] Unpins and frees; again is no error."""
        if self.closed or self._core.pid != os.getpid():
            return
        with self._control():
            self._finalizer.detach()
            pointer, self._pointer = self._pointer, 0
            self._core.api.seq_close(pointer)

    def commit(self, tokens: Any) -> None:
        """[control] States the ids of the next n tokens, which every layer has been given. Encodes
        what leaves the window and hands full pages to the daemon without waiting for it.
        SKVQ_ESTATE if a layer is missing."""
        ids = _arrays.tokens("tokens", tokens)
        with self._control():
            self._core.checked("seq_commit", self._core.api.seq_commit(
                self._pointer, ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(ids)))

    def truncate(self, n_tokens: int) -> None:
        """[control] Forgets tokens from n_tokens on, committed or not. SKVQ_ERANGE beyond the end.
        plugin-abi/README.md, Going back, says what is exact."""
        with self._control():
            self._core.checked("seq_truncate", self._core.api.seq_truncate(
                self._pointer, _uint32("n_tokens", n_tokens)))

    def fork(self) -> Sequence:
        """[control] A second sequence with the same past; full pages are the same memory."""
        pointer = ctypes.c_void_p()
        with self._control():
            self._core.checked("seq_fork", self._core.api.seq_fork(self._pointer, ctypes.byref(pointer)))
            return Sequence._adopt(self.model, pointer.value, self.n_matched, self.max_append)

    def snapshot(self) -> bytes:
        """[control] The whole sequence, FP16 window included, for Model.resume(). SKVQ_ESTATE while
        tokens are appended and not committed."""
        size = ctypes.c_uint64()
        with self._control():
            call = self._core.api.seq_snapshot
            self._core.checked("seq_snapshot", call(self._pointer, None, 0, ctypes.byref(size)))
            data = bytearray(size.value)
            buf = (ctypes.c_char * len(data)).from_buffer(data)
            self._core.checked("seq_snapshot",
                               call(self._pointer, buf, len(data), ctypes.byref(size)))
            del buf
        if size.value != len(data):
            raise BusyError("the sequence changed while it was written")
        return bytes(data)

    def info(self) -> Info:
        """[control] Where the tokens are."""
        info = _sized(_abi.SeqInfo)
        with self._control():
            self._core.checked("seq_info", self._core.api.seq_info(self._pointer, ctypes.byref(info)))
        return _filled(Info, info)

    def poll(self) -> bool:
        """[control] Takes in what the daemon has answered and sends full pages. True: nothing is in
        flight."""
        with self._control():
            return self._core.checked("seq_poll", self._core.api.seq_poll(self._pointer)) == 1

    def flush(self, timeout: float = 10.0) -> bool:
        """Polls until all full pages are published, at most ``timeout`` seconds. True: they are.
        False: time is up, or the daemon is lost. In embedded mode there is nothing to wait for."""
        deadline = time.monotonic() + timeout
        while not self.poll():
            left = deadline - time.monotonic()
            if left <= 0 or self.info().daemon != "attached":
                return False
            # Another sequence's poll may have read the answer: look again soon, whatever comes.
            _wait_readable(self.model.session, min(left, 0.02))
        return self.info().daemon != "lost"

    # --- [data] ----------------------------------------------------------------------------------

    def append(self, layer: int, position: int, k: Any, v: Any) -> None:
        """[data] K and V of new tokens of one layer.

        Args:
            layer:    0 to n_layer - 1.
            position: of the first token: the next this layer has not seen.
            k, v:     [n_tokens, n_kv_heads, head_dim_k] and [..., head_dim_v]; float32, float16 or
                      bfloat16, each its own; any stride of tokens and heads, channels contiguous.
                      Read during the call, not copied.

        One layer by one thread at a time. SKVQ_EINVAL for NaN and infinity; SKVQ_EFULL, SKVQ_ELIMIT.
        """
        m = self.model
        a = _arrays.view("k", k, (None, m.n_kv_heads, m.head_dim_k), "n_tokens n_kv_heads head_dim_k")
        b = _arrays.view("v", v, (a.shape[0], m.n_kv_heads, m.head_dim_v),
                         "n_tokens n_kv_heads head_dim_v")
        kv = _abi.Kv(ctypes.sizeof(_abi.Kv), _uint32("layer", layer), _uint32("position", position),
                     a.shape[0], a.type, b.type, a.pointer, b.pointer, a.strides[0], a.strides[1],
                     b.strides[0], b.strides[1])
        self._data("append", lambda: self._core.api.append(self._pointer, ctypes.byref(kv)))

    def attend(self, layer: int, position: int, q: Any, *, scale: float, out: Any = None,
               lse: Any = None, softcap: float = 0.0, sliding_limit: int = 0, ith: int = 0,
               nth: int = 1) -> Any:
        """[data] Attention of query rows over everything appended at or before each of them.

        Args:
            q:        [n_rows, n_q_heads, head_dim_k], as append() takes K; row r is the token at
                      position + r.
            scale:    factor of q.k, usually head_dim_k ** -0.5.
            out:      float32 [n_rows, n_q_heads, head_dim_v] to write to; None: a new one, of torch
                      if q is.
            lse:      float32 [n_rows, n_q_heads], C-contiguous, gets the natural log-sum-exp.
            softcap:  s = softcap * tanh(s / softcap); 0: none.
            sliding_limit: a row sees the last so many tokens, itself included; 0: all.
            ith, nth: this call does share ith of nth; all shares need the same ``out`` (and lse).

        Returns out. ``attend`` of this module takes several sequences in one call.
        """
        return attend([self], layer, [position], [q], scale=scale, outs=[out], lses=[lse],
                      softcap=softcap, sliding_limit=sliding_limit, ith=ith, nth=nth)[0]

    def export(self, layer: int, position: int, n_tokens: int, *, k: Any = None, v: Any = None,
               dtype: str = "float32") -> tuple[Any, Any]:
        """[data] Tokens copied out, decoded: lossy where the codec is.

        Args:
            k, v:  [n_tokens, n_kv_heads, head_dim_k] and [..., head_dim_v] to write to, one element
                   type for both. Both None: new numpy arrays of ``dtype`` ("float32", "float16").
                   One None: that side is not wanted.

        Returns (k, v). SKVQ_ERANGE outside the sequence and for dropped tokens.
        """
        m = self.model
        if k is None and v is None:
            if dtype not in ("float32", "float16"):
                raise ValueError(f"dtype: {dtype!r}; numpy arrays are float32 or float16. Give k and v "
                                 "for bfloat16")
            k = np.empty((n_tokens, m.n_kv_heads, m.head_dim_k), dtype)
            v = np.empty((n_tokens, m.n_kv_heads, m.head_dim_v), dtype)
        desc = _sized(_abi.Export)
        desc.layer, desc.position = _uint32("layer", layer), _uint32("position", position)
        desc.n_tokens = _uint32("n_tokens", n_tokens)
        kinds = set()
        for name, array, dim in (("k", k, m.head_dim_k), ("v", v, m.head_dim_v)):
            if array is None:
                continue
            a = _arrays.view(name, array, (n_tokens, m.n_kv_heads, dim),
                             f"n_tokens n_kv_heads head_dim_{name}", write=True)
            kinds.add(a.type)
            setattr(desc, name, a.pointer)
            setattr(desc, name + "_token_stride", a.strides[0])
            setattr(desc, name + "_head_stride", a.strides[1])
        if len(kinds) != 1:
            raise TypeError("k and v: one element type for both is needed")
        desc.type = kinds.pop()
        self._data("export_kv", lambda: self._core.api.export_kv(self._pointer, ctypes.byref(desc)))
        return k, v


def _new_out(q: Any, shape: tuple[int, ...]) -> Any:
    if _arrays.is_torch(q):
        import torch
        return torch.empty(shape, dtype=torch.float32)
    return np.empty(shape, np.float32)


def attend(seqs: Seq[Sequence], layer: int, positions: Seq[int], qs: Seq[Any], *, scale: float,
           outs: Seq[Any] | None = None, lses: Seq[Any] | None = None, softcap: float = 0.0,
           sliding_limit: int = 0, ith: int = 0, nth: int = 1) -> list[Any]:
    """[data] Sequence.attend of several sequences of one model at once: pages they share are read
    once. positions, qs, outs, lses: one for each. Returns the list of outs."""
    n = len(seqs)
    outs = list(outs) if outs is not None else [None] * n
    lses = list(lses) if lses is not None else [None] * n
    if not n or not len(positions) == len(qs) == len(outs) == len(lses) == n:
        raise ValueError("seqs, positions, qs, outs, lses: as many of each, and one at least")
    if nth > 1 and any(o is None for o in outs):
        raise ValueError("out: shares of one call write one array; give it")
    if len(set(map(id, seqs))) != n:
        raise ValueError("seqs: a sequence is there twice")
    model = seqs[0].model
    attns = (_abi.Attn * n)()
    pointers = (ctypes.c_void_p * n)()
    for i, seq in enumerate(seqs):
        if seq.model is not model:
            raise ValueError("seqs: all must be of the same model")
        q = _arrays.view("q", qs[i], (None, model.n_q_heads, model.head_dim_k),
                         "n_rows n_q_heads head_dim_k")
        shape = (q.shape[0], model.n_q_heads, model.head_dim_v)
        if outs[i] is None:
            outs[i] = _new_out(qs[i], shape)
        out = _arrays.view("out", outs[i], shape, "n_rows n_q_heads head_dim_v", write=True)
        if out.type != _abi.F32:
            raise TypeError("out: float32 is needed")
        lse = None
        if lses[i] is not None:
            got = _arrays.view("lse", lses[i], shape[:2], "n_rows n_q_heads", write=True)
            if got.type != _abi.F32:
                raise TypeError("lse: float32 is needed")
            if shape[0] > 1 and got.strides[0] != 4 * shape[1]:
                raise ValueError("lse: it must be C-contiguous")
            lse = got.pointer
        attns[i] = _abi.Attn(ctypes.sizeof(_abi.Attn), _uint32("layer", layer),
                             _uint32("position", positions[i]), q.shape[0], q.type,
                             _uint32("sliding_limit", sliding_limit), _uint32("ith", ith),
                             _uint32("nth", nth), scale, softcap, q.pointer, q.strides[0],
                             q.strides[1], out.pointer, out.strides[0], out.strides[1], lse)
    entered = []
    try:
        for i, seq in enumerate(seqs):
            seq._enter()
            entered.append(seq)
            pointers[i] = seq._pointer
        code = model._core.api.attend(pointers, attns, n)
        if code < 0:
            model._core.raise_data_error("attend", code)
    finally:
        for seq in entered:
            seq._leave()
    return outs
