# SPDX-License-Identifier: Apache-2.0
"""Rows of several sequences that lie one after the other in one array, layer by layer.

An engine that computes a batch has the rows of all its sequences in one tensor. A Batch appends and
attends them where they are, with the structs of the C calls made once for all layers, so that a layer
costs few instructions of Python.
"""
from __future__ import annotations

import ctypes
from typing import Any, Callable, Sequence as Seq

from . import _abi, _arrays
from .errors import SkvqError
from .session import Sequence


class Batch:
    """One step of some sequences of one model.

    Args:
        seqs:      one or more, each once.
        positions: of each sequence's first row: the next one it has not seen.
        counts:    rows of each.
        starts:    where these lie in the arrays that the calls are given; None: one after the other from 0.
        scale, softcap, sliding_limit: as Sequence.attend() has them.
        nth:       shares that attend() splits its work into.

    Not thread-safe: one thread makes its calls, layer by layer. Lives for one step: it keeps no
    sequence from being closed.
    """

    def __init__(self, seqs: Seq[Sequence], positions: Seq[int], counts: Seq[int], *, scale: float,
                 starts: Seq[int] | None = None, softcap: float = 0.0, sliding_limit: int = 0,
                 nth: int = 1) -> None:
        n = len(seqs)
        if not n or not len(positions) == len(counts) == n or starts is not None and len(starts) != n:
            raise ValueError("seqs, positions, counts, starts: as many of each, and one at least")
        if len(set(map(id, seqs))) != n:
            raise ValueError("seqs: a sequence is there twice")
        if any(c < 1 for c in counts) or starts is not None and min(starts) < 0:
            raise ValueError("counts, starts: each sequence has one row at least, at 0 or later")
        if nth < 1:
            raise ValueError("nth: 1 or more")
        self.model = seqs[0].model
        if any(s.model is not self.model for s in seqs):
            raise ValueError("seqs: all must be of the same model")
        self.seqs, self.counts, self.nth = list(seqs), list(counts), nth
        if starts is None:
            starts = [sum(counts[:i]) for i in range(n)]
        self.starts = list(starts)
        self.rows = max(s + c for s, c in zip(self.starts, self.counts))
        api = self.model._core.api
        self._append, self._attend = api.append, api.attend
        self._pointers = (ctypes.c_void_p * n)(*(s._pointer for s in seqs))
        self._kv = [_abi.Kv(struct_size=ctypes.sizeof(_abi.Kv), position=p, n_tokens=c)
                    for p, c in zip(positions, counts)]
        self._attn = [(_abi.Attn * n)(*(
            _abi.Attn(struct_size=ctypes.sizeof(_abi.Attn), position=p, n_rows=c, scale=scale,
                      softcap=softcap, sliding_limit=sliding_limit, ith=i, nth=nth)
            for p, c in zip(positions, counts))) for i in range(nth)]
        self._known: dict[tuple[Any, ...], tuple[int, tuple[int, ...]]] = {}

    def _view(self, name: str, x: Any, heads: int, dim: int, write: bool = False
              ) -> tuple[int, int, tuple[int, ...]]:
        """Pointer, element type, strides in bytes. What was looked at in one layer is not in the next."""
        torch = _arrays.is_torch(x)
        if torch:
            key = (name, x.dtype, x.shape, x.stride(), x.device, x.requires_grad)
            if key in self._known:
                return x.data_ptr(), *self._known[key]
        got = _arrays.view(name, x, (None, heads, dim), "n_rows n_heads head_dim", write=write)
        if got.shape[0] < self.rows:
            raise ValueError(f"{name}: {got.shape[0]} rows; there are {self.rows} in this batch")
        if torch:
            self._known[key] = got.type, got.strides
        return got.pointer, got.type, got.strides

    def append(self, layer: int, k: Any, v: Any) -> dict[int, SkvqError]:
        """[data] K and V of one layer, [n_rows, n_kv_heads, head_dim] as Sequence.append() takes them.

        Returns what failed: {index of the sequence: error}. Others have been given their rows.
        """
        m, failed = self.model, {}
        kp, kt, ks = self._view("k", k, m.n_kv_heads, m.head_dim_k)
        vp, vt, vs = self._view("v", v, m.n_kv_heads, m.head_dim_v)
        for i, kv in enumerate(self._kv):
            at = self.starts[i]
            kv.layer, kv.k_type, kv.v_type = layer, kt, vt
            kv.k, kv.v = kp + at * ks[0], vp + at * vs[0]
            kv.k_token_stride, kv.k_head_stride = ks[0], ks[1]
            kv.v_token_stride, kv.v_head_stride = vs[0], vs[1]
            seq = self.seqs[i]
            try:
                seq._data("append", lambda: self._append(seq._pointer, ctypes.byref(kv)))
            except SkvqError as e:
                failed[i] = e
        return failed

    def attend(self, layer: int, q: Any, out: Any,
               run: Callable[[Callable[[int], None], int], None] | None = None) -> None:
        """[data] Attention of all rows, after append().

        Args:
            q:   [n_rows, n_q_heads, head_dim_k]; float32, float16 or bfloat16.
            out: float32 [n_rows, n_q_heads, head_dim_v], written.
            run: run(work, nth) calls work(i) for each i below nth, on any threads, and returns when all
                 of them have; None: this thread does all shares.

        An error of any share is raised when all have ended.
        """
        m, n = self.model, len(self.seqs)
        qp, qt, qs = self._view("q", q, m.n_q_heads, m.head_dim_k)
        op, ot, os = self._view("out", out, m.n_q_heads, m.head_dim_v, True)
        if ot != _abi.F32:
            raise TypeError("out: float32 is needed")
        for attns in self._attn:
            for at, attn in zip(self.starts, attns):
                attn.layer, attn.q_type = layer, qt
                attn.q, attn.out = qp + at * qs[0], op + at * os[0]
                attn.q_row_stride, attn.q_head_stride = qs[0], qs[1]
                attn.out_row_stride, attn.out_head_stride = os[0], os[1]
        codes = [0] * self.nth
        entered: list[Sequence] = []

        def work(ith: int) -> None:
            codes[ith] = self._attend(self._pointers, self._attn[ith], n)

        try:
            for seq in self.seqs:
                seq._enter()
                entered.append(seq)
            if run is None or self.nth == 1:
                for ith in range(self.nth):
                    work(ith)
            else:
                run(work, self.nth)
            for code in codes:
                if code < 0:
                    m._core.raise_data_error("attend", code)
        finally:
            for seq in entered:
                seq._leave()
