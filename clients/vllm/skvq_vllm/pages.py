# SPDX-License-Identifier: Apache-2.0
"""Mode attend, the worker's half: each request is a sequence, and attention is over its pages.

A step goes like this: begin() opens, cuts and closes sequences as the scheduler's half says; then each
layer's forward() is given the rows of all requests; finish() commits what they have added. Rows are one of
three kinds:

  in place   up to APPEND rows: appended to the sequence's window, attended on pages and window. Decoding,
             drafts, ends of prompts.
  far        longer pieces of a prompt: what the sequence has is decoded into a cache of one layer, in vLLM's
             layout, and vLLM's own kernel attends to that and to the piece. The piece is coded when all layers
             have run, APPEND tokens at a time, so that no sequence needs a window as large as a piece.
  plain      pages cannot serve it (a NaN, a profile without its calibration): a cache of its own, in
             vLLM's layout, and vLLM's kernel.

Whatever goes wrong with a sequence ends it, and the request's block is reported: vLLM computes the
request anew from its first token.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Callable

import torch
import skvq
from vllm import _custom_ops as ops
from vllm import envs
from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from . import options, plan
from .store import Failed, Store, failing
from .threads import Team

logger = init_logger("vllm." + __name__)

APPEND = 64            # most tokens between two commits: with the window, what a sequence keeps in FP16
BLOCK = 128            # tokens of a block of our own caches
SETTLE_S = 2.0         # all waits of one step for the daemon to take what finished requests leave
ALONE = 2048           # rows times tokens before them, below which one thread is as fast as a team


class Cache:
    """Keys and values of one request and layer in vLLM's layout, for its kernel."""

    def __init__(self, heads: int, dim: int, dtype: torch.dtype) -> None:
        self.heads, self.dim, self.dtype = heads, dim, dtype
        self.isa = _get_attn_isa(dtype, BLOCK, dim, "auto")
        self._cache = torch.empty((0, heads, BLOCK, 2 * dim), dtype=dtype)

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def room(self, n_tokens: int, keep: bool) -> None:
        """For so many tokens. keep: those that are there stay; else they are all to be written anew."""
        blocks = -(-n_tokens // BLOCK)
        if blocks <= len(self._cache):
            if not keep:  # what another request has left behind our last token may be no number
                self._cache[max(blocks - 1, 0):blocks + 1].zero_()
            return
        old = self._cache
        # Zeros: the kernel multiplies what lies behind the last token by a weight of nothing.
        self._cache = torch.zeros((max(blocks, len(old) + len(old) // 4), *old.shape[1:]), dtype=old.dtype)
        if keep:
            self._cache[:len(old)] = old

    def _halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._cache.view(len(self._cache), self.heads, 2 * BLOCK, -1).chunk(2, dim=2)

    def write(self, position: int, k: torch.Tensor, v: torch.Tensor) -> None:
        keys, values = self._halves()
        ops.cpu_attn_reshape_and_cache(k, v, keys, values, torch.arange(position, position + len(k)),
                                       self.isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")

    def attend(self, q: torch.Tensor, out: torch.Tensor, call: "Call", scale: float, softcap: float) -> None:
        keys, values = self._halves()
        ops.cpu_attention_with_kv_cache(
            query=q, key_cache=keys, value_cache=values, output=out, query_start_loc=call.starts,
            seq_lens=call.lens, scale=scale, causal=True, alibi_slopes=None, sliding_window=-1,
            block_table=torch.arange(len(self._cache), dtype=torch.int32)[None], softcap=softcap,
            scheduler_metadata=call.schedule, s_aux=None, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")


class Call:
    """What vLLM's kernel wants to know of one request in a step, the same for all layers."""

    def __init__(self, rows: int, n_tokens: int, n_q_heads: int, cache: Cache) -> None:
        self.starts = torch.tensor([0, rows], dtype=torch.int32)
        self.lens = torch.tensor([n_tokens], dtype=torch.int32)
        self.schedule = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1, num_heads=n_q_heads, num_kv_heads=cache.heads, head_dim=cache.dim, seq_lens=self.lens,
            dtype=cache.dtype, query_start_loc=self.starts, causal=True, sliding_window_size=-1, isa=cache.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV, kv_cache_dtype="auto")


def _unforeseen(why: Exception | str) -> bool:
    """Whether the log wants to know where it came from."""
    return not isinstance(why, (str, Failed, skvq.SkvqError))


@dataclasses.dataclass(eq=False)
class Request:
    """A request that runs: its sequence, or the caches of its layers."""

    n: int                                # tokens it has
    seq: skvq.Sequence | None = None
    store: Store | None = None            # of seq
    plain: list[Cache] | None = None
    in_flight: bool = False               # pages were handed to the daemon, or are to be
    n_pages: int = 0


@dataclasses.dataclass(eq=False)
class Live:
    """A request in this step. first, last: its rows in the batch."""

    row: plan.Row
    request: Request | None               # None: it is lost; vLLM is told
    first: int = 0
    last: int = 0
    call: Call | None = None
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None  # far: keys and values by layer


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that hold keys and values."""

    tokens: int       # of running requests
    shared: int       # pages in the daemon's arena that sequences read
    local: int        # pages in this process
    window: int       # FP16 windows and sinks
    plain: int        # requests that pages cannot serve
    scratch: int      # the cache of one layer


class Worker:
    """Worker's thread. make_store(embedded): a store for this server's model."""

    def __init__(self, make_store: Callable[[bool], Store], opts: options.Options, dtype: torch.dtype) -> None:
        self._make_store, self._options = make_store, opts
        self.store = make_store(False)
        self.store.ready()  # a daemon that refuses this model is told of now
        self._embedded: Store | None = None
        self._retired: list[Store] = []        # of another calibration, with requests that still run
        f = self.store.facts
        self._facts, self._dtype = f, dtype
        self._requests: dict[str, Request] = {}
        self._unfit: set[str] = set()          # requests that pages cannot serve
        self._errors: set[int] = set()
        self._wait = plan.Patience(opts.timeout_ms / 1000)
        self._settle = plan.Patience(SETTLE_S)
        # What the scheduler's half has registered with; an empty id: it has not.
        self._calibration_id, self._calibration = "", None
        self._team = Team()
        self._scratch = Cache(f.n_kv_heads, f.head_dim, dtype)
        self._live: dict[int, Live] = {}       # by block
        self._metadata: Any = None             # of the step that was laid out
        self._batches: list[tuple[skvq.Batch, list[Live]]] = []
        self._far: list[Live] = []
        self._plain: list[Live] = []
        self._nothing: list[tuple[int, int]] = []  # rows of what is lost
        self._out: torch.Tensor | None = None
        self._export: tuple[torch.Tensor, torch.Tensor] | None = None

    # ---- a step begins

    def begin(self, rows: list[plan.Row], ended: list[str], calibration: tuple[str, bytes | None],
              recompute_us: int) -> None:
        """ended: requests that have finished or were preempted."""
        self._wait.renew()
        self._settle.renew()
        self._forget_step()
        if calibration[0] != self._calibration_id:  # the bytes come once
            self._calibration_id, self._calibration = calibration
        for req_id in ended:
            self._unfit.discard(req_id)
            self._end(req_id, settle=True)
        self._retire()
        for row in rows:
            live = self._live[row.block] = Live(row, None)
            try:
                if row.begins:
                    self._end(row.req_id, settle=False)
                    self._open(row, recompute_us)
                live.request = self._requests.get(row.req_id)
                if live.request is None:
                    raise Failed("nothing is kept of it")
                self._cut(live.request, row.position)
            except Exception as e:
                self._lose(live, e)

    def drop_all(self) -> None:
        """What the identity says of the weights is no longer so: running requests are computed anew."""
        for req_id in list(self._requests):
            self._end(req_id, settle=False)

    def _cut(self, request: Request, position: int) -> None:
        if request.n < position:
            raise Failed(f"it has {request.n} of {position} tokens")
        if request.n > position:  # drafts that were not taken
            if request.seq is not None:
                with failing():
                    request.seq.truncate(position)
            request.n = position

    def _open(self, row: plan.Row, recompute_us: int) -> None:
        if row.req_id not in self._unfit:
            try:
                store, seq = self._sequence(row, recompute_us)
            except Exception as e:
                logger.warning("skvqd: %s: attention on pages is not possible, vLLM's own is used: %s",
                               row.req_id, e, exc_info=_unforeseen(e))
                self._unfit.add(row.req_id)
            else:
                self._requests[row.req_id] = Request(seq.n_matched, seq, store, n_pages=seq.n_matched // plan.PAGE)
                return
        if row.position == 0:
            self._requests[row.req_id] = self._without_pages()

    def _without_pages(self) -> Request:
        f = self._facts
        return Request(0, plain=[Cache(f.n_kv_heads, f.head_dim, self._dtype) for _ in range(f.n_layer)])

    def _sequence(self, row: plan.Row, recompute_us: int) -> tuple[Store, skvq.Sequence]:
        """The best that is to be had: on the daemon's pages, without, without the daemon. Raises Failed."""
        publish = row.shared and self._options.save != "none"
        match = bool(row.position) and not self._wait.over
        try:
            usable = self.store.attempt()
            if usable and match:
                self._agree()
        except Failed as e:  # refused, or lost just now
            logger.info("skvqd: %s: %s", row.req_id, e)
            usable = False
        if usable:
            ways = ([(row.prefix, True, publish)] if match else []) + [((), False, publish)]
            for prefix, match, publish in ways + ([((), False, False)] if publish else []):
                try:
                    with self._wait:
                        return self.store, self.store.open(prefix, publish=publish, match=match, append=APPEND,
                                                           recompute_us=recompute_us)
                except Failed as e:
                    logger.info("skvqd: %s: %s", row.req_id, e)
        if self._embedded is None:
            self._embedded = self._make_store(True)
            self._embedded.use(self.store.calibration() or self._calibration)
        return self._embedded, self._embedded.open((), publish=False, match=False, append=APPEND)

    def _agree(self) -> None:
        """Pages were matched with that calibration. Sequences of another run on with theirs."""
        if self._calibration_id and self.store.calibration_id() != self._calibration_id:
            self._retired.append(self.store)
            self.store = self._make_store(False)
            self.store.use(self._calibration)
            if not self.store.attempt():
                raise Failed("the daemon is lost")

    def _retire(self) -> None:
        used = {id(r.store) for r in self._requests.values()}
        for store in [s for s in self._retired if id(s) not in used]:
            self._retired.remove(store)
            store.close()

    def _end(self, req_id: str, settle: bool) -> None:
        request = self._requests.pop(req_id, None)
        if request is None or request.seq is None:
            return
        try:
            with failing():
                if settle and request.in_flight and not self._settle.over:
                    with self._settle:
                        request.seq.flush(max(self._settle.left, 0))
                request.seq.close()
        except Failed as e:
            logger.debug("skvqd: %s: %s", req_id, e)

    # ---- what goes wrong

    def _lose(self, live: Live, why: Exception | str, unfit: bool = False) -> None:
        """Ends a request's sequence, has vLLM compute the request anew, and its rows mean nothing."""
        logger.warning("skvqd: %s: is computed anew from its first token%s: %s", live.row.req_id,
                       ", without pages" if unfit else "", why, exc_info=_unforeseen(why))
        if unfit:
            self._unfit.add(live.row.req_id)
        live.request = None
        self._end(live.row.req_id, settle=False)
        self._errors.add(live.row.block)
        if live.last > live.first:
            self._nothing.append((live.first, live.last))

    def take_errors(self) -> set[int]:
        errors, self._errors = self._errors, set()
        return errors

    # ---- layers

    def _forget_step(self) -> None:
        self._live, self._metadata, self._out = {}, None, None
        self._batches, self._far, self._plain, self._nothing = [], [], [], []

    def _lay_out(self, metadata: Any, n_rows: int, scale: float, softcap: float) -> None:
        """Which rows of the batch are whose, and of what kind."""
        self._metadata = metadata
        starts, lens = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        blocks = metadata.block_table[:, 0].tolist()
        left, in_place = dict(self._live), []
        for i, (first, last) in enumerate(zip(starts, starts[1:])):
            if first == last:
                continue
            live = left.pop(blocks[i], None)
            if live is None:
                self._nothing.append((first, last))
                continue
            live.first, live.last = first, last
            request, n = live.request, last - first
            if request is None:
                self._nothing.append((first, last))
            elif n != len(live.row.tokens) or lens[i] != live.row.position + n:
                what = f"vLLM computes {n} tokens up to {lens[i]}, not {len(live.row.tokens)} from {live.row.position}"
                if lens[i] != n:
                    self._lose(live, what)
                    continue
                # From its first token: vLLM would not compute that anew, so it must be right now.
                logger.warning("skvqd: %s: attention on pages is not possible: %s", live.row.req_id, what)
                self._unfit.add(live.row.req_id)
                self._end(live.row.req_id, settle=False)
                live.request = self._requests[live.row.req_id] = self._without_pages()
                live.call = Call(n, n, self._facts.n_q_heads, live.request.plain[0])
                self._plain.append(live)
            elif request.plain is not None:
                live.call = Call(n, lens[i], self._facts.n_q_heads, request.plain[0])
                self._plain.append(live)
            elif n <= APPEND and live.row.position:
                in_place.append(live)
            else:
                # Also what begins at the first token, whatever its length: vLLM computes a reported block
                # anew only behind tokens that it had before, so that what is said first must be right even if
                # pages cannot hold it. Here outputs are vLLM's, and coding comes after all of them.
                live.call, live.kept = Call(n, lens[i], self._facts.n_q_heads, self._scratch), {}
                self._far.append(live)
        for live in left.values():
            self._lose(live, "vLLM has no row for it")
        self._batches, self._scaled = self._make_batches(in_place, scale, softcap), (scale, softcap)
        if in_place and self._dtype != torch.float32:
            self._out = torch.empty((n_rows, self._facts.n_q_heads, self._facts.head_dim))

    def _make_batches(self, lives: list[Live], scale: float,
                      softcap: float) -> list[tuple[skvq.Batch, list[Live]]]:
        """One for each model: sessions, and calibrations, have their own."""
        batches = []
        groups: dict[int, list[Live]] = {}
        for live in lives:
            groups.setdefault(id(live.request.seq.model), []).append(live)
        for group in groups.values():
            work = sum((x.last - x.first) * (x.row.position + 1) for x in group)
            threads = 1 if work < ALONE or not self._team.parallel else torch.get_num_threads()
            batch = skvq.Batch([x.request.seq for x in group], [x.row.position for x in group],
                               [x.last - x.first for x in group], starts=[x.first for x in group],
                               scale=scale, softcap=softcap, nth=threads)
            batches.append((batch, group))
        return batches

    def forward(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
                metadata: Any, scale: float, softcap: float) -> bool:
        """Fills out, [rows, q heads, head dim] as all. False: this is no step of requests."""
        if not self._live:
            return False
        if metadata is not self._metadata:
            self._lay_out(metadata, len(out), scale, softcap)
        batches, self._batches = self._batches, []
        if batches and self._scaled != (scale, softcap):  # this layer's are others
            batches = self._make_batches([x for _, group in batches for x in group], scale, softcap)
            self._scaled = scale, softcap
        for batch, group in batches:
            self._in_place(layer, batch, group, q, k, v, out, scale, softcap)
        for live in list(self._far):
            rows = slice(live.first, live.last)
            kept = live.kept[layer] = k[rows].clone(), v[rows].clone()
            try:
                self._fill(live.request.seq, layer, live.row.position, live.last - live.first)
            except Exception as e:
                self._far.remove(live)
                self._lose(live, e, unfit=True)
                continue
            self._scratch.write(live.row.position, *kept)
            self._scratch.attend(q[rows], out[rows], live.call, scale, softcap)
        for live in self._plain:
            rows, cache = slice(live.first, live.last), live.request.plain[layer]
            cache.room(live.row.position + live.last - live.first, keep=True)
            cache.write(live.row.position, k[rows], v[rows])
            cache.attend(q[rows], out[rows], live.call, scale, softcap)
        for first, last in self._nothing:
            out[first:last].zero_()
        return True

    def _in_place(self, layer: int, batch: skvq.Batch, group: list[Live], q: torch.Tensor, k: torch.Tensor,
                  v: torch.Tensor, out: torch.Tensor, scale: float, softcap: float) -> None:
        try:
            failed = batch.append(layer, k, v)
            for i, error in failed.items():
                self._lose(group[i], error, unfit=True)
            group = [x for i, x in enumerate(group) if i not in failed]
            if failed and group:
                ((batch, _),) = self._make_batches(group, scale, softcap)
            if group:
                batch.attend(layer, q, out if self._out is None else self._out, self._team.run)
        except Exception as e:
            for live in group:
                self._lose(live, e, unfit=True)
            return
        if not group:
            return
        self._batches.append((batch, group))
        if self._out is not None:
            for live in group:
                out[live.first:live.last].copy_(self._out[live.first:live.last])

    def _fill(self, seq: skvq.Sequence, layer: int, n_tokens: int, n_more: int) -> None:
        """Decodes a sequence's tokens into the scratch cache. Raises Failed."""
        f = self._facts
        self._scratch.room(n_tokens + n_more, keep=False)
        if not n_tokens:
            return
        if self._export is None or len(self._export[0]) < n_tokens:
            shape = (-(-n_tokens // 1024) * 1024, f.n_kv_heads, f.head_dim)
            self._export = torch.empty(shape, dtype=self._dtype), torch.empty(shape, dtype=self._dtype)
        k, v = self._export
        threads = torch.get_num_threads() if self._team.parallel else 1
        piece = -(-n_tokens // threads)

        def work(i: int) -> None:
            a, b = i * piece, min((i + 1) * piece, n_tokens)
            if a < b:
                seq.export(layer, a, b - a, k=k[a:b], v=v[a:b])

        with failing():
            self._team.run(work, threads)
        self._scratch.write(0, k[:n_tokens], v[:n_tokens])

    # ---- a step ends

    def finish(self) -> None:
        if self._metadata is None:  # no layer has run
            self._live = {}
            return
        for _, group in self._batches:
            for live in group:
                self._try(live, lambda: self._commit(live, live.row.tokens))
        for live in self._far:
            self._try(live, lambda: self._code(live))
        for live in self._plain:
            live.request.n += live.last - live.first
        self._forget_step()
        for request in self._requests.values():
            if request.in_flight:
                try:
                    with failing():
                        request.in_flight = not request.seq.poll()
                except Failed:
                    pass  # the next commit says so, too

    def _try(self, live: Live, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as e:
            self._lose(live, e, unfit=True)

    def _commit(self, live: Live, tokens: Any) -> None:
        request = live.request
        with failing():
            request.seq.commit(tokens)
        request.n += len(tokens)
        pages = plan.full_pages(request.n, self._options.window)
        request.in_flight = request.in_flight or pages > request.n_pages
        request.n_pages = pages

    def _code(self, live: Live) -> None:
        """A piece of a prompt, from the keys and values that layers have left. Raises Failed."""
        row, n = live.row, live.last - live.first
        for a in range(0, n, APPEND):
            b = min(a + APPEND, n)
            with failing():
                batch = skvq.Batch([live.request.seq], [row.position + a], [b - a], scale=1.0)
                for layer, (k, v) in live.kept.items():
                    for error in batch.append(layer, k[a:b], v[a:b]).values():
                        raise error
            self._commit(live, row.tokens[a:b])

    # ---- for people

    def memory(self) -> Memory:
        infos = []
        for request in self._requests.values():
            if request.seq is not None:
                with failing():
                    infos.append(request.seq.info())
        return Memory(
            tokens=sum(r.n for r in self._requests.values()), shared=sum(i.bytes_shared for i in infos),
            local=sum(i.bytes_local for i in infos), window=sum(i.bytes_window for i in infos),
            plain=sum(c.nbytes for r in self._requests.values() for c in r.plain or ()),
            scratch=self._scratch.nbytes + sum(t.nbytes for t in self._export or ()))

    def close(self) -> None:
        self._requests.clear()
        for store in (self.store, self._embedded, *self._retired):
            if store is not None:
                store.close()
