# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers 5.x on skvqd: ``generate(..., past_key_values=SkvqCache(model))``.

Keys and values live in the plugin alone; attention is computed there, on the codes. See
docs/python.md for what is refused.
"""
from __future__ import annotations

import hashlib
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Sequence as Seq

import torch
import transformers
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from . import _arrays
from .session import Model, Sequence, Session, attend

NAME = "skvq"
KINDS = ("llama", "gemma3_text")
_local = threading.local()  # .cache: whose forward pass this thread is in
_hooked: weakref.WeakSet[Any] = weakref.WeakSet()
_stock: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


def weights_digest(model: Any) -> bytes:
    """SHA-256 over names, types, shapes and bytes of the model's state, in order of names. Computed
    anew each time, some seconds for each GB: nothing tells reliably that a tensor is as it was."""
    sha = hashlib.sha256(b"skvq state 1\0")
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.digest()


def tokenizer_digest(tokenizer: Any) -> bytes:
    """SHA-256 over a tokenizer's vocabulary. None: of "ids alone": pages are found by token ids
    whatever text made them."""
    if tokenizer is None:
        return hashlib.sha256(b"skvq token ids alone").digest()
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(b"skvq vocab hf 1" + json.dumps(vocabulary).encode()).digest()


_NOT_NUMERICS = ("_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype",
                 "architectures", "_attn_implementation", "_attn_implementation_internal",
                 "quantization_config", "use_cache")


def numerics_tag(model: Any) -> str:
    """Who computes K and V, and how: never that of another engine. Norms, activations and factors are
    in the configuration, not in the weights, so it goes in by its digest."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_NUMERICS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    return (f"transformers-{transformers.__version__} torch-{torch.__version__} {model.dtype} "
            f"{torch.backends.cpu.get_cpu_capability()} config-{digest[:16]}")


def _text_config(model: Any) -> Any:
    config = model.config.get_text_config()
    if config.model_type not in KINDS:
        raise ValueError(f"model: architecture '{config.model_type}'; SkvqCache knows {', '.join(KINDS)}")
    if config is not model.config:
        raise ValueError("model: it has parts besides text, whose inputs token ids do not tell")
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError("model: its attention is not causal")
    if getattr(model, "peft_config", None):
        raise ValueError("model: it has adapters; merge them first (merge_and_unload)")
    return config


def describe(model: Any, digest: bytes | None = None, **more: Any) -> dict[str, Any]:
    """What Session.model() needs to know of a transformers model. digest: its weights_digest, if it is
    known and the weights are as they were then."""
    config = _text_config(model)
    if model.device.type != "cpu":
        raise ValueError(f"model: on '{model.device}'; skvq works on CPU memory")
    if getattr(config, "attn_logit_softcapping", None):
        raise ValueError("model: attention with a soft cap is not covered by a test yet")
    rope = config.rope_parameters
    first = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scaling = json.dumps(rope, sort_keys=True, default=str)
    if len(scaling) > 127:  # the ABI's bound; Gemma 3 has two sets of parameters
        scaling = "sha256:" + hashlib.sha256(scaling.encode()).hexdigest()
    windows = None
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        windows = [config.sliding_window if t == "sliding_attention" else 0 for t in config.layer_types]
    return dict(weights_digest=digest or weights_digest(model), engine_numerics=numerics_tag(model),
                n_layer=config.num_hidden_layers, n_q_heads=config.num_attention_heads,
                n_kv_heads=config.num_key_value_heads, head_dim_k=head_dim,
                rope_theta=float(first["rope_theta"]), layer_window=windows,
                rope_scaling=scaling) | more


class _Layer(CacheLayerMixin):
    """One layer's door to the cache; it holds no K or V."""

    is_compileable = False
    is_sliding = False

    def __init__(self, cache: SkvqCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = weakref.ref(cache), index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Any, value_states: Any = None) -> None:
        pass

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> tuple[Any, Any]:
        self._cache()._append(self._index, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self._cache().length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        n = query_length if isinstance(query_length, int) else len(query_length)
        return self._cache().length + n, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class SkvqCache(Cache):
    """A cache for ``generate()`` and ``forward()`` whose K/V are skvqd's pages.

    Args:
        model:       a llama or gemma3 text model on the CPU, in eval mode.
        socket:      skvqd's socket; None: no daemon. Or ``session``, to share one.
        prompt:      the prompt's ids [n] or [batch, n]: what another sequence, of any process, has
                     published of it is taken over, and ``generate`` with the whole prompt computes
                     the rest. None: nothing is looked for.
        tokenizer:   goes into the identity; None: token ids alone count.
        profile:     codec. The default without ``calibration`` (bytes of a file) is data-free: it
                     loses more than a calibrated one; tools/bench/transformers measures it.
        max_tokens:  capacity of a row; None: the model's.
        max_append:  most tokens of one forward pass; None: those of the first, at least 512.
        threads:     that share attention of long contexts; None: torch's.
        digest:      weights_digest(model), computed once for many caches by a caller who knows that
                     the weights stay as they are. None: it is computed here.
        description: fields of skvq.Model to set otherwise, e.g. window.

    While one is open the model's attention is skvq's; close() of the last one puts back what was.
    One forward pass at a time. Rows of a batch have one length: padding is a ValueError, and so are
    training, gradients, inputs_embeds and other architectures.
    """

    def __init__(self, model: Any, *, socket: str | None = None, session: Session | None = None,
                 prompt: Any = None, tokenizer: Any = None, profile: str = "k4v2",
                 calibration: bytes | None = None, max_tokens: int | None = None,
                 max_append: int | None = None, threads: int | None = None, publish: bool = True,
                 digest: bytes | None = None,
                 description: dict[str, Any] | None = None) -> None:
        described = describe(model, digest, tokenizer_digest=tokenizer_digest(tokenizer), profile=profile,
                             calibration=calibration) | (description or {})
        config = _text_config(model)
        super().__init__(layers=[_Layer(self, i) for i in range(config.num_hidden_layers)])
        self._seqs: list[Sequence] = []
        self.length, self._pending, self._ids = 0, 0, None
        self._own = session is None
        self._session = Session(socket, name="skvq-transformers") if session is None else session
        self._threads = threads or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None
        self._max_tokens = max_tokens or config.max_position_embeddings
        self._max_append, self._publish = max_append, publish
        self._windows = described["layer_window"]
        self._engine = weakref.ref(model)
        self._finalizer: weakref.finalize[Any, Any] | None = None
        try:
            self._model: Model = self._session.model(**described)
            if prompt is not None:
                self._match(prompt)
            _attach(model)
            # Also of one that is dropped: a model that stays skvq's could not be used any more.
            self._finalizer = weakref.finalize(self, _detach, self._engine)
            self._finalizer.atexit = False
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SkvqCache:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def sequences(self) -> list[Sequence]:
        """One for each row of the batch."""
        return list(self._seqs)

    def close(self) -> None:
        """Frees the sequences, and the session if it is the cache's own. Again is no error."""
        try:
            for seq in self._seqs:
                seq.close()
            self._seqs = []
            if self._own:
                self._session.close()
            elif hasattr(self, "_model"):
                self._model.close()
        finally:
            if self._pool:
                self._pool.shutdown()
            if self._finalizer:
                self._finalizer()  # once

    # --- sequences -------------------------------------------------------------------------------

    def _sequence(self, ids: Any, n: int) -> Sequence:
        append = self._max_append or max(n, 512)
        return self._model.sequence(ids, max_tokens=self._max_tokens, max_append=append,
                                    match=len(ids) > 0, publish=self._publish)

    def _match(self, prompt: Any) -> None:
        if not _arrays.is_torch(prompt):
            prompt = torch.as_tensor(prompt)
        rows = prompt.reshape(1, -1) if prompt.dim() == 1 else prompt
        self._seqs = [self._sequence(row, rows.shape[1]) for row in rows]
        self.length = min(seq.n_matched for seq in self._seqs)
        for seq in self._seqs:  # rows of a batch have one length
            if seq.n_matched > self.length:
                seq.truncate(self.length)

    def _begin(self, ids: Any, mask: Any, position_ids: Any, training: bool) -> None:
        if training or torch.is_grad_enabled():
            raise ValueError("SkvqCache: inference only: model.eval() and torch.no_grad() are needed")
        if ids is None:
            raise ValueError("SkvqCache: input_ids are needed: pages are found by token ids")
        if mask is not None and (mask.dim() != 2 or not bool((mask != 0).all())):
            raise ValueError("SkvqCache: attention_mask: padded rows and masks of one's own are not "
                             "possible; batch prompts of one length")
        rows, n = ids.shape
        plain = torch.arange(self.length, self.length + n)
        if position_ids is not None and not bool((position_ids.reshape(-1, n) == plain).all()):
            raise ValueError("SkvqCache: position_ids of one's own are not possible: others would find "
                             "keys of other positions")
        if not self._seqs:
            self._seqs = [self._sequence((), n) for _ in range(rows)]
        if rows != len(self._seqs):
            if self.length == 0 or rows % len(self._seqs):
                if self.length:
                    raise ValueError(f"SkvqCache: {rows} rows; the cache has {len(self._seqs)}")
                raise ValueError(f"SkvqCache: {rows} rows; the prompt it was opened with has "
                                 f"{len(self._seqs)}. Open one without prompt, or with one row for each")
            self.batch_repeat_interleave(rows // len(self._seqs))  # beams of a prompt that matched
        limit = self._seqs[0].max_append
        if n > limit:
            raise ValueError(f"SkvqCache: {n} tokens in one pass; at most {limit} were asked for "
                             "(max_append)")
        if self._pending:  # a pass that ended by an exception
            for seq in self._seqs:
                seq.truncate(self.length)
        self._pending, self._ids = n, ids
        _local.cache = self

    def _end(self) -> None:
        for seq, row in zip(self._seqs, self._ids):
            seq.commit(row)
        self.length += self._pending
        self._pending, self._ids = 0, None

    def _append(self, layer: int, k: Any, v: Any) -> None:
        if getattr(_local, "cache", None) is not self or k.shape[0] != len(self._seqs):
            raise RuntimeError("SkvqCache: update() outside a forward pass of the model it was made for")
        for seq, a, b in zip(self._seqs, k, v):
            seq.append(layer, self.length, a.transpose(0, 1), b.transpose(0, 1))

    def _attend(self, layer: int, query: Any, scale: float) -> Any:
        rows, heads, n, dim = query.shape
        out = torch.empty((rows, n, heads, dim), dtype=torch.float32)
        qs = [q.transpose(0, 1) for q in query]
        at = [self.length] * rows
        limit = self._windows[layer] if self._windows else 0
        nth = self._threads if self._pool and self.length + n > 256 else 1

        def share(ith: int) -> None:
            attend(self._seqs, layer, at, qs, scale=scale, outs=list(out), sliding_limit=limit,
                   ith=ith, nth=nth)

        others = [self._pool.submit(share, i) for i in range(1, nth)]
        try:
            share(0)
        finally:  # none may outlive the call
            errors = [o.exception() for o in others]
        for e in errors:
            if e:
                raise e
        return out.to(query.dtype)

    # --- what generate() asks of a cache ---------------------------------------------------------

    def _choose(self, rows: Seq[int]) -> None:
        """Row i becomes what row rows[i] was."""
        kept, new = set(), []
        for r in rows:
            new.append(self._seqs[r].fork() if r in kept else self._seqs[r])
            kept.add(r)
        for i, seq in enumerate(self._seqs):
            if i not in kept:
                seq.close()
        self._seqs = new

    def reorder_cache(self, beam_idx: Any) -> None:
        """Beams: rows that go on more than once are forked."""
        self._choose(beam_idx.tolist())

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._choose([r for r in range(len(self._seqs)) for _ in range(repeats)])

    def crop(self, max_length: int) -> None:
        """Not positive: drops so many tokens, 0 none. Positive: leaves at most so many."""
        n = self.length + max_length if max_length <= 0 else min(max_length, self.length)
        self._truncate(max(n, 0))

    def _truncate(self, n: int) -> None:
        for seq in self._seqs:
            seq.truncate(n)
        self.length, self._pending, self._ids = n, 0, None

    def reset(self) -> None:
        """An empty cache."""
        self._truncate(0)

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until the daemon has all full pages; Sequence.flush says what comes back."""
        return all([seq.flush(timeout) for seq in self._seqs])


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None,
               dropout: float = 0.0, **_kwargs: Any) -> tuple[Any, None]:
    cache = getattr(_local, "cache", None)
    if cache is None:
        raise RuntimeError("this model's attention is skvq's while a SkvqCache of it is open: pass "
                           "past_key_values=SkvqCache(model), or close() it")
    if dropout:
        raise ValueError("SkvqCache: dropout is not possible")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return cache._attend(module.layer_idx, query, scale), None


def _before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _local.cache = None
    cache = kwargs.get("past_key_values")
    if isinstance(cache, SkvqCache):
        if cache._engine() is not module:
            raise ValueError("SkvqCache: it was made for another model")
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        position_ids = kwargs.get("position_ids", args[2] if len(args) > 2 else None)
        cache._begin(ids, mask, position_ids, module.training)


def _after(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
    cache, _local.cache = getattr(_local, "cache", None), None
    if cache is not None and output is not None:  # None: it ended by an exception
        cache._end()


def _attach(model: Any) -> None:
    AttentionInterface.register(NAME, _attention)
    if model not in _hooked:
        model.register_forward_pre_hook(_before, with_kwargs=True)
        model.register_forward_hook(_after, with_kwargs=True, always_call=True)
        _hooked.add(model)
    state = _stock.setdefault(model, [model.config._attn_implementation, 0])
    state[1] += 1
    model.set_attn_implementation(NAME)


def _detach(engine: weakref.ref[Any]) -> None:
    model = engine()
    if model is None or model not in _stock:
        return
    state = _stock[model]
    state[1] -= 1
    if state[1] == 0:
        del _stock[model]
        model.set_attn_implementation(state[0])
