# SPDX-License-Identifier: Apache-2.0
"""The connector: vLLM's interface on one side, plan and store on the other.

vLLM makes two of it, one beside its scheduler and one in its worker, usually in different
processes; each has a session of its own. The scheduler's half asks the daemon how much of a
prompt it has, pins that until it is loaded, and plans; the worker's half reads pages into vLLM's
blocks, and codes blocks into pages.
"""
from __future__ import annotations

import dataclasses
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import skvq
from vllm import __version__ as vllm_version
from vllm import _custom_ops as ops
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import RequestStatus

from . import attend, identity, layout, options, pages, plan
from .attend import unsupported
from .store import APPEND_TOKENS, Failed, Store, attached, failing

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm." + __name__)

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
READ_TOKENS = 2048        # of one call to export_kv: bounds the buffer
SETTLE_S = 2.0            # all waits of one step for the daemon to take what is saved
# Those that read the files of the model's folder and nothing else.
LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "mistral", "pt", "npcache",
                "sharded_state", "runai_streamer")
# Drafts that are no model of their own: they add no layers to the cache.
DRAFTS = ("ngram", "ngram_gpu", "suffix")


@dataclasses.dataclass
class Metadata(KVConnectorMetadata):
    step: plan.Step
    calibration_id: str = ""
    calibration: bytes | None = None  # if the id is another than in the step before
    recompute_us: int = 0
    # Mode attend.
    rows: list[plan.Row] = dataclasses.field(default_factory=list)
    ended: list[str] = dataclasses.field(default_factory=list)  # requests
    drop_all: bool = False            # sequences


def refusal(config: "VllmConfig", kv: "KVCacheConfig") -> str:
    """Why this server cannot use skvqd; empty if it can."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    cache, model = config.cache_config, config.model_config
    if current_platform.device_type != "cpu":
        return f"the platform is '{current_platform.device_type}'; only CPU is supported"
    if transfer.kv_role != "kv_both":
        return f"kv_role is '{transfer.kv_role}'; it must be 'kv_both'"
    if transfer.kv_load_failure_policy != "recompute":
        return ("kv_load_failure_policy is "
                f"'{transfer.kv_load_failure_policy}'; it must be 'recompute', so that a page that "
                "is lost costs time and not a request")
    for what, size in (("tensor", parallel.tensor_parallel_size),
                       ("pipeline", parallel.pipeline_parallel_size),
                       ("decode context", getattr(parallel, "decode_context_parallel_size", 1)),
                       ("prefill context", getattr(parallel, "prefill_context_parallel_size", 1))):
        if size > 1:
            return f"{what} parallelism of {size}; only 1 is supported"
    if config.scheduler_config.async_scheduling:
        return "asynchronous scheduling; start with --no-async-scheduling"
    if model.is_encoder_decoder:
        return "an encoder-decoder model"
    if model.runner_type != "generate":
        return f"the runner '{model.runner_type}'; only 'generate' is supported"
    if model.use_mla:
        return "multi-head latent attention"
    if config.load_config.load_format not in LOAD_FORMATS:
        return f"load_format '{config.load_config.load_format}': weights without an identity"
    if model.dtype not in DTYPES:
        return f"the element type {model.dtype}"
    if cache.cache_dtype not in ("auto", DTYPES[model.dtype]):
        return f"a KV cache of {cache.cache_dtype}; only the model's own element type is supported"
    drafts = config.speculative_config
    if drafts is not None and drafts.method not in DRAFTS:
        return f"speculative decoding by '{drafts.method}'; only {', '.join(DRAFTS)} are supported"
    if len(kv.kv_cache_groups) != 1:
        return (f"{len(kv.kv_cache_groups)} groups of layers that see different extents (sliding "
                "windows, or recurrent layers)")
    spec = kv.kv_cache_groups[0].kv_cache_spec
    if attend.asked_for(config):
        if type(spec) is not attend.PagesSpec:
            return (f"mode 'attend', and layers of kind {type(spec).__name__}: only full attention is supported, "
                    "and the package skvq-vllm must be installed, so that vLLM loads its plugin (and "
                    "VLLM_PLUGINS, if it is set, must name 'skvqd')")
    elif type(spec) is not FullAttentionSpec:
        return f"layers of kind {type(spec).__name__}; only full attention is supported"
    if getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None):
        return "layers with a sliding window or chunked attention"
    if getattr(spec, "head_size_v", spec.head_size) != spec.head_size:
        return "keys and values of different width"
    if spec.dtype != model.dtype:
        return f"a KV cache of {spec.dtype} for a model of {model.dtype}"
    n_layer = len(kv.kv_cache_groups[0].layer_names)
    n_config = getattr(model.hf_text_config, "num_hidden_layers", n_layer)
    if n_layer != n_config:
        return f"{n_layer} layers with a cache in a model of {n_config}"
    return ""


def unshared(request: "Request") -> str:
    """Why a request neither loads nor saves; empty if it does."""
    if request.cache_salt:
        return "cache_salt"
    if request.lora_request is not None:
        return "a LoRA adapter"
    if request.mm_features:
        return "multimodal input"
    if request.prompt_embeds is not None:
        return "prompt embeddings"
    if request.prompt_token_ids is None:
        return "no token ids"
    if request.pooling_params is not None:
        return "pooling"
    return ""


def model_folder(model: Any, cache: str | None) -> str:
    """Where the model's files are. cache: the folder they were loaded into, if it is not the usual one.
    Raises ValueError."""
    if model.model_weights or "://" in model.model:  # vLLM has fetched the configuration alone
        raise unsupported(f"the model '{model.model_weights or model.model}' is remote, so its files cannot "
                          "be hashed")
    if os.path.isdir(model.model):
        return model.model
    if os.path.exists(model.model):
        raise unsupported(f"the model '{model.model}' is a file; a folder or a repository is needed")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model.model, revision=model.revision, cache_dir=cache,
                                 local_files_only=True)
    except (ValueError, OSError) as e:
        raise unsupported(f"no files are found of the model '{model.model}': {e}") from None


def facts_of(config: "VllmConfig", kv: "KVCacheConfig") -> identity.Facts:
    model, spec = config.model_config, kv.kv_cache_groups[0].kv_cache_spec
    folder = model_folder(model, config.load_config.download_dir)
    text = model.hf_text_config.to_dict()
    if isinstance(spec, attend.PagesSpec):
        kv_heads, head_dim, how, block = spec.kv_heads, spec.head_dim, "pages+", pages.BLOCK
    else:
        kv_heads, head_dim, how, block = spec.num_kv_heads, spec.head_size, "", spec.block_size
    dim, theta, scaling = identity.rope(text, head_dim)
    isa = how + _get_attn_isa(model.dtype, block, head_dim, config.cache_config.cache_dtype)
    tag = identity.numerics(vllm_version, torch.__version__, DTYPES[model.dtype], isa,
                            torch.backends.cpu.get_cpu_capability(), str(model.quantization or ""),
                            str(config.load_config.load_format), str(model.model_impl),
                            model.hf_config.to_dict())
    return identity.Facts(
        weights=identity.digest_weights(folder), tokenizer=identity.digest_tokenizer(folder),
        numerics=tag, model_name=os.path.basename(folder.rstrip("/")),
        n_layer=len(kv.kv_cache_groups[0].layer_names),
        n_q_heads=model.get_num_attention_heads(config.parallel_config),
        n_kv_heads=kv_heads, head_dim=head_dim,
        rope_dim=dim, rope_theta=theta, rope_scaling=scaling)


class SkvqdConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module's head. Raises ValueError at start for what it does not support."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole,
                 kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        opts = options.parse(self._kv_transfer_config.kv_connector_extra_config)
        why = refusal(vllm_config, kv_cache_config)
        if why:
            raise unsupported(why)
        facts = facts_of(vllm_config, kv_cache_config)
        spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        side = "scheduler" if role == KVConnectorRole.SCHEDULER else "worker"
        max_len, dtype = vllm_config.model_config.max_model_len, vllm_config.model_config.dtype

        def make_store(embedded: bool) -> Store:
            return Store(facts, opts, max_len, f"vllm {side}", lambda text: logger.warning("skvqd: %s", text),
                         embedded=embedded)

        self._scheduler = self._worker = self._attend = self._pages = None
        if opts.mode == "attend" and side == "worker":
            self._pages = attend.current.worker = pages.Worker(make_store, opts, dtype)
            return
        store = make_store(False)
        store.ready()  # a daemon that refuses this model is told of now
        if side == "worker":
            self._worker = _Worker(store, opts, spec.block_size)
        elif opts.mode == "attend":
            self._scheduler = self._attend = _AttendScheduler(store, opts, max_len)
        else:
            self._scheduler = _Scheduler(store, opts, spec.block_size)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a save that is lost is a miss later

    # ---- the worker's half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._pages is not None:
            _in_order(kv_caches, self._pages.store.facts.n_layer)
            return
        self._worker.register(kv_caches)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._pages is not None:  # start_load_kv may come after the layers
            meta = connector_metadata
            if meta.drop_all:
                self._pages.drop_all()
            self._pages.begin(meta.rows, meta.ended, (meta.calibration_id, meta.calibration), meta.recompute_us)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._pages is not None:
            return
        meta = self._get_connector_metadata()
        self._worker.calibration(meta.calibration_id, meta.calibration)
        self._worker.load(meta.step, meta.recompute_us)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any,
                      **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        if self._pages is not None:
            self._pages.finish()
            return
        meta = self._get_connector_metadata()
        self._worker.save(meta.step)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return (self._worker.take_released() if self._worker is not None else None), None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return (self._pages or self._worker).take_errors()

    def shutdown(self) -> None:
        if self._pages is not None:
            attend.current.worker = None
            self._pages.close()
        for half in (self._scheduler, self._worker):
            if half is not None:
                half.store.close()

    # ---- the scheduler's half

    def get_num_new_matched_tokens(self, request: "Request",
                                   num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._scheduler.match(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks",
                                 num_external_tokens: int) -> None:
        self._scheduler.admitted(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        half = self._scheduler
        if self._attend is not None:
            half.cost.begins(scheduler_output.total_num_scheduled_tokens, True)
            return half.metadata(scheduler_output, self._kv_cache_manager)
        step = half.step(self._kv_cache_manager)
        half.cost.begins(scheduler_output.total_num_scheduled_tokens, not step)
        return Metadata(step, *half.calibration(), half.cost.us())

    def update_connector_output(self, connector_output: Any) -> None:
        self._scheduler.cost.ends()
        if connector_output.invalid_block_ids:
            self._scheduler.failed(self._kv_cache_manager, set(connector_output.invalid_block_ids))

    def reset_cache(self) -> bool:
        self._scheduler.reset()
        return True

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict | None]:
        return self._scheduler.finished(request), None

    def request_finished_all_groups(self, request: "Request", block_ids: tuple[list[int], ...]
                                    ) -> tuple[bool, dict | None]:
        return self._scheduler.finished(request), None


class _Scheduler:
    """Matches and plans. Scheduler's thread."""

    def __init__(self, store: Store, opts: options.Options, block_size: int) -> None:
        """block_size: matches are rounded down to a multiple of it."""
        self.store, self.options, self.block_size = store, opts, block_size
        self.saver = plan.Saver(opts.save_tokens_per_step, opts.held_requests_max, opts.window)
        self.cost = plan.Cost()
        self._patience = plan.Patience(opts.timeout_ms / 1000)
        # Of waiting requests: (tokens asked for, tokens vLLM has itself, what the daemon has).
        self._matches: OrderedDict[str, tuple[int, int, skvq.Sequence]] = OrderedDict()
        self._loads: list[tuple[Any, int, int]] = []  # of the next step: (request, first, last)
        self._pins: list[skvq.Sequence] = []              # what the next step loads
        self._old_pins: list[skvq.Sequence] = []          # what the last step has loaded
        self._live: dict[str, Any] = {}               # all that were admitted and have not finished
        self._requests: dict[str, Any] = {}           # those the saver may ask about
        self._saved: dict[str, int] = {}              # tokens of a request that were asked for
        self._told: set[str] = set()
        self._calibration_id = ""
        self._stale = False                           # the identity is no more that of the weights

    def calibration(self) -> tuple[str, bytes | None]:
        """The id of the one that pages are matched with; itself, if the worker has not been told."""
        told, self._calibration_id = self._calibration_id, self.store.calibration_id()
        changed = self._calibration_id and self._calibration_id != told
        return self._calibration_id or told, self.store.calibration() if changed else None

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.info("skvqd: requests with %s are not shared; they are computed as ever", what)

    def match(self, request: "Request", n_local: int) -> int | None:
        """Tokens beyond n_local, whole blocks, that the daemon has; they stay pinned."""
        if self._stale:
            return 0
        why = unshared(request)
        if why:
            self._tell(why)
            return 0
        n = request.num_tokens
        # The last token is always computed: its logits are wanted.
        most = (n - 1) // self.block_size * self.block_size
        if most - n_local < self.options.min_load_tokens:
            return 0
        kept = self._matches.get(request.request_id)
        if kept is None or kept[0] != n:
            self._unpin(request.request_id)
            if self._patience.over:
                return 0
            try:
                with self._patience:
                    seq = self.store.open(request.all_token_ids[:], publish=False,
                                          recompute_us=self.cost.us())
            except Failed as e:
                logger.debug("skvqd: no match for %s: %s", request.request_id, e)
                return 0
            while len(self._matches) >= self.options.pinned_requests_max:
                self._matches.popitem(last=False)[1][2].close()
            kept = (n, n_local, seq)
        self._matches[request.request_id] = (n, n_local, kept[2])
        last = min(kept[2].n_matched // self.block_size * self.block_size, most)
        return last - n_local if last - n_local >= self.options.min_load_tokens else 0

    def _unpin(self, req_id: str) -> None:
        kept = self._matches.pop(req_id, None)
        if kept is not None:
            kept[2].close()

    def _unpin_old(self) -> None:
        for seq in self._old_pins:
            seq.close()
        self._old_pins.clear()

    def admitted(self, request: "Request", n_external: int) -> None:
        req_id = request.request_id
        self._live[req_id] = request
        kept = self._matches.pop(req_id, None)
        matched = 0
        if kept is not None:
            _, n_local, seq = kept
            matched = seq.n_matched
            if n_external:
                self._loads.append((request, n_local, n_local + n_external))
            self._pins.append(seq)
        if self.options.save == "none" or self._stale or unshared(request):
            return
        target = request.num_tokens
        self._requests[req_id] = request
        self._saved[req_id] = target
        self.saver.want(req_id, target, matched, _ids(request))

    def finished(self, request: "Request") -> bool:
        """Whether the blocks are to be held until they are saved."""
        req_id = request.request_id
        self._live.pop(req_id, None)
        self._unpin(req_id)
        self._unpin_old()
        saved = self._saved.pop(req_id, 0)
        # The last token was sampled and never computed.
        target = min(request.num_computed_tokens, request.num_tokens - 1)
        if self.options.save == "prompt":
            target = min(target, saved)
        if not saved or target < saved or request.status == RequestStatus.FINISHED_ABORTED:
            self.saver.drop(req_id)
        elif self.saver.finished(req_id, target, saved, _ids(request)):
            return True
        self._requests.pop(req_id, None)
        return False

    def failed(self, manager: Any, invalid: set[int]) -> None:
        """Loads of the last step failed: these blocks, and those computed on them, hold anything."""
        self.saver.fail()
        # vLLM has them in its prefix cache since they were allocated, and leaves them there, for they
        # are to be computed anew; but the request that would may be aborted or preempted before.
        tables = {req_id: manager.get_block_ids(req_id)[0] for req_id, request in self._live.items()
                  if request.status == RequestStatus.RUNNING}
        first, blocks = plan.spoilt(invalid, tables)
        manager.evict_blocks(blocks)
        # One that shared them in the same step does not wait for them either: it computes its own.
        for req_id, at in first.items():
            request = self._live[req_id]
            request.num_computed_tokens = min(request.num_computed_tokens, at * self.block_size)

    def reset(self) -> None:
        """vLLM resets caches when weights were changed, and does not tell which there are now: nothing
        is loaded or saved from here on. Blocks that are held are given back by the next step."""
        if not self._stale:
            logger.warning("skvqd: caches were reset, so the weights may be others than those of the "
                           "files: nothing is loaded or saved any more until a restart")
        self._stale = True
        for req_id in list(self._matches):
            self._unpin(req_id)
        self._unpin_old()
        self._saved.clear()
        self.saver.fail()

    def step(self, manager: Any) -> plan.Step:
        # Steps do not overlap: when one is planned, the one before it has run.
        self._patience.renew()
        self._unpin_old()
        self._old_pins, self._pins = self._pins, []

        def blocks(req_id: str) -> list[int]:
            return list(manager.get_block_ids(req_id)[0])

        def computed(req_id: str) -> tuple[int, list[int]] | None:
            request = self._requests.get(req_id)
            if request is None:
                return None
            if not request.is_finished() and request.status != RequestStatus.RUNNING:
                return None  # preempted: its blocks are gone
            ids = blocks(req_id)
            n = min(request.num_computed_tokens, len(ids) * self.block_size)
            return n, ids

        step = self.saver.step(computed)
        for request, first, last in self._loads:
            ids = blocks(request.request_id)
            # vLLM counts on them, so too few blocks are the worker's to report.
            step.loads.append(plan.Load(request.request_id, request.all_token_ids[:], ids, first, last))
        self._loads.clear()
        for save in step.saves:
            if save.release:
                self._requests.pop(save.req_id, None)
        for req_id in step.release:
            self._requests.pop(req_id, None)
        return step


class _AttendScheduler(_Scheduler):
    """Mode attend. What the daemon has is not loaded: a sequence of the worker's half starts on it. Nothing is
    saved afterwards, for everything lies in pages already."""

    def __init__(self, store: Store, opts: options.Options, max_len: int) -> None:
        super().__init__(store, opts, plan.PAGE)
        self._max_len = max_len
        self.admission = plan.Admission(opts.tokens_max)
        self._drop_all = False

    def _need(self, request: "Request") -> int:
        more = max(request.max_tokens - request.num_output_tokens, 0)
        return min(request.num_tokens + more, self._max_len)

    def match(self, request: "Request", n_local: int) -> int | None:
        """None: not now, there are too many tokens."""
        if not self.admission.fits(request.request_id, self._need(request)):
            return None
        return super().match(request, n_local)

    def admitted(self, request: "Request", n_external: int) -> None:
        self._live[request.request_id] = request
        self.admission.enter(request.request_id, self._need(request))
        kept = self._matches.pop(request.request_id, None)
        if kept is not None:
            self._pins.append(kept[2])  # until the worker's half has its own

    def _left(self, req_id: str) -> None:
        self._live.pop(req_id, None)
        self.admission.leave(req_id)
        self._unpin(req_id)

    def finished(self, request: "Request") -> bool:
        self._left(request.request_id)
        self._unpin_old()
        return False

    def failed(self, manager: Any, invalid: set[int]) -> None:
        pass  # vLLM begins these requests anew, and blocks hold nothing

    def reset(self) -> None:
        self._drop_all = self._drop_all or not self._stale
        super().reset()

    def metadata(self, output: "SchedulerOutput", manager: Any) -> Metadata:
        self._patience.renew()
        self._unpin_old()
        self._old_pins, self._pins = self._pins, []
        preempted = set(output.preempted_req_ids or ())
        for req_id in preempted - set(output.num_scheduled_tokens):
            self.admission.leave(req_id)  # it comes again by admitted()
        cached = output.scheduled_cached_reqs
        now = [(r.req_id, r.num_computed_tokens, True) for r in output.scheduled_new_reqs]
        now += [(req_id, n, n == 0 or req_id in cached.resumed_req_ids)
                for req_id, n in zip(cached.req_ids, cached.num_computed_tokens)]
        rows = [self._row(output, manager, *one) for one in now]
        drop, self._drop_all = self._drop_all, False
        return Metadata(plan.Step(), *self.calibration(), self.cost.us(), rows,
                        sorted(preempted | set(output.finished_req_ids)), drop)

    def _row(self, output: "SchedulerOutput", manager: Any, req_id: str, n_computed: int,
             begins: bool) -> plan.Row:
        request, n = self._live[req_id], output.num_scheduled_tokens[req_id]
        drafts = list(output.scheduled_spec_decode_tokens.get(req_id, ()))
        tokens = list(request.all_token_ids[n_computed:n_computed + n - len(drafts)]) + drafts
        prefix = plan.prefix_of(request.all_token_ids[:], n_computed, self.options.window) if begins else ()
        return plan.Row(req_id, manager.get_block_ids(req_id)[0][0], begins,
                        not self._stale and not unshared(request), n_computed, tokens,
                        prefix if n_computed else ())


def _ids(request: "Request") -> Any:
    return lambda first, last: request.all_token_ids[first:last]


class _Worker:
    """Reads and codes. Worker's thread."""

    def __init__(self, store: Store, opts: options.Options, block_size: int) -> None:
        self.store, self.block_size = store, block_size
        # What the scheduler's half has registered with; an empty id: it has not.
        self._calibration_id, self._calibration = "", None
        self._load_patience = plan.Patience(opts.timeout_ms / 1000)
        self._save_patience = plan.Patience(SETTLE_S)
        self._caches: list[torch.Tensor] = []
        self._isa = ""
        self._seq: skvq.Sequence | None = None
        self._seq_of = ""
        self._n = 0  # tokens it has
        self._errors: set[int] = set()
        self._failed_step = False
        self._released: set[str] = set()
        self._k_order: torch.Tensor | None = None
        self._v_order: torch.Tensor | None = None

    # ---- start

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        f = self.store.facts
        names = _in_order(kv_caches, f.n_layer)
        self._caches = [kv_caches[n] for n in names]
        for name, cache in zip(names, self._caches):
            want = (f.n_kv_heads, self.block_size, 2 * f.head_dim)
            if cache.dim() != 4 or tuple(cache.shape[1:]) != want or not cache[0].is_contiguous():
                raise ValueError(f"skvqd: the cache of '{name}' is {list(cache.shape)} with strides "
                                 f"{list(cache.stride())}; [blocks, {', '.join(map(str, want))}] with "
                                 "contiguous blocks is needed")
        self._isa = _get_attn_isa(self._caches[0].dtype, self.block_size, f.head_dim, "auto")
        k, v = self._learn("k"), self._learn("v")
        logger.info("skvqd: %d layers, blocks of %d tokens, attention '%s': keys in %s, values in %s",
                    f.n_layer, self.block_size, self._isa, layout.name(k), layout.name(v))
        self._k_order = torch.from_numpy(k.reshape(-1))
        self._v_order = torch.from_numpy(v.reshape(-1))

    def _learn(self, which: str) -> np.ndarray:
        f, dtype = self.store.facts, self._caches[0].dtype
        scratch = torch.zeros((1, f.n_kv_heads, self.block_size, 2 * f.head_dim), dtype=dtype)
        n = self.block_size * f.head_dim

        def store(rows: np.ndarray) -> np.ndarray:
            new = torch.from_numpy(rows).to(dtype)[:, None, :].expand(-1, f.n_kv_heads, -1).contiguous()
            zero = torch.zeros_like(new)
            scratch.zero_()
            self._write(scratch, *((new, zero) if which == "k" else (zero, new)),
                        torch.arange(self.block_size))
            halves = scratch.view(f.n_kv_heads, 2, n).float()
            mine = halves[:, 0 if which == "k" else 1]
            if halves[:, 1 if which == "k" else 0].any() or (mine != mine[0]).any():
                raise ValueError("keys and values, or heads, are not apart")
            return mine[0].numpy()

        try:
            return layout.learn(store, self.block_size, f.head_dim)
        except ValueError as e:
            raise ValueError(f"skvqd: this vLLM's cache layout (attention '{self._isa}') is not "
                             f"understood: {e}") from None

    def _write(self, cache: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
               slots: torch.Tensor) -> None:
        blocks, heads, size, _ = cache.shape
        keys, values = cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(k, v, keys, values, slots, self._isa, k_scale=1.0,
                                       v_scale=1.0, kv_cache_dtype="auto")

    # ---- loads

    def calibration(self, calibration_id: str, calibration: bytes | None) -> None:
        if calibration_id != self._calibration_id:
            self._calibration_id, self._calibration = calibration_id, calibration

    def _agree(self) -> None:
        """Codes of another calibration are other pages: take the one the scheduler matches with. The
        daemon may have been given one between the starts of the halves, or a file have changed."""
        if (self._calibration_id and self.store.attempt()
                and self.store.calibration_id() != self._calibration_id):
            self._end()
            self.store.use(self._calibration)

    def load(self, step: plan.Step, recompute_us: int) -> None:
        self._failed_step = False
        self._load_patience.renew()
        for one in step.loads:
            start = time.monotonic()
            try:
                n = self._load(one, recompute_us)
            except Exception as e:  # whatever it is, the answer is to compute
                if not isinstance(e, Failed):
                    logger.exception("skvqd: loading %s", one.req_id)
                n, why = one.first, str(e)
            else:
                why = f"the daemon has {n} of {one.last} tokens"
            if n < one.last:
                a = n // self.block_size
                lost = one.block_ids[a:layout.block_range(self.block_size, 0, one.last)[1]]
                self._errors.update(lost or one.block_ids)
                self._failed_step = True
                logger.warning("skvqd: %s: tokens %d to %d are computed anew: %s", one.req_id,
                               a * self.block_size, one.last, why)
            else:
                logger.info("skvqd: %s: %d of %d prompt tokens loaded in %.3f s", one.req_id,
                            one.last - one.first, len(one.tokens), time.monotonic() - start)

    def _load(self, one: plan.Load, recompute_us: int) -> int:
        """Returns the token up to which blocks are filled. Raises Failed."""
        f = self.store.facts
        if len(one.block_ids) * self.block_size < one.last:
            raise Failed(f"there are {len(one.block_ids)} blocks for {one.last} tokens")
        if self._load_patience.over:
            raise Failed(f"loads of this step have waited {self._load_patience.seconds:g} s for the daemon")
        with self._load_patience:
            self._agree()
            seq = self.store.open(one.tokens, publish=False, recompute_us=recompute_us)
        try:
            last = min(one.last, seq.n_matched // self.block_size * self.block_size)
            for first in range(one.first, last, READ_TOKENS):
                n = min(READ_TOKENS, last - first)
                k = torch.empty((n, f.n_kv_heads, f.head_dim), dtype=self._caches[0].dtype)
                v = torch.empty_like(k)
                slots = torch.from_numpy(layout.slots(one.block_ids, self.block_size, first, first + n))
                for layer, cache in enumerate(self._caches):
                    with failing():
                        seq.export(layer, first, n, k=k, v=v)
                    self._write(cache, k, v, slots)
            return max(last, one.first)
        finally:
            seq.close()

    def take_errors(self) -> set[int]:
        errors, self._errors = self._errors, set()
        return errors

    # ---- saves

    def _end(self) -> None:
        if self._seq is not None:
            with failing():
                self._seq.close()
        self._seq, self._seq_of = None, ""

    def save(self, step: plan.Step) -> None:
        self._save_patience.renew()
        self._released.update(step.release)
        if step.abandon and step.abandon == self._seq_of:
            self._end()
        for one in step.saves:
            # After a failed load blocks may hold anything; the scheduler drops what it had planned.
            if self._failed_step:
                self._end()
            else:
                try:
                    self._save(one)
                except Exception as e:
                    self._end()
                    if isinstance(e, Failed):
                        logger.info("skvqd: %s is not saved: %s", one.req_id, e)
                    else:
                        logger.exception("skvqd: saving %s", one.req_id)
            if one.release:
                self._released.add(one.req_id)

    def _save(self, one: plan.Save) -> None:
        if one.opens:
            self._end()
            if self._save_patience.over:
                raise Failed(f"saves of this step have waited {SETTLE_S:.0f} s for the daemon")
            with self._save_patience:
                self._agree()
                # It may have more by now than the scheduler knew of: what is left is appended.
                self._seq, self._seq_of = self.store.open(one.tokens, publish=True), one.req_id
            self._n = self._seq.n_matched
        elif self._seq is None or self._seq_of != one.req_id:
            return  # it failed before
        if not attached(self._seq):
            raise Failed("the daemon is lost")
        while self._n < one.last:
            first, n = self._n, min(APPEND_TOKENS, one.last - self._n)
            with failing():
                for layer, cache in enumerate(self._caches):
                    self._seq.append(layer, first, *self._rows(cache, one.block_ids, first, first + n))
                self._seq.commit(one.tokens[first - one.first:first - one.first + n])
                self._n += n
                with self._save_patience:
                    taken = self._seq.flush(max(self._save_patience.left, 0))
                if not taken:
                    raise Failed(f"the daemon has not taken pages before token {self._n}; a step waits "
                                 f"for {SETTLE_S:.0f} s")
        if one.closes:
            logger.info("skvqd: %s: %d tokens saved, %d were there", one.req_id,
                        self._n - self._seq.n_matched, self._seq.n_matched)
            self._end()

    def _rows(self, cache: torch.Tensor, block_ids: Any, first: int,
              last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens [first, last): contiguous [last - first, heads, dim] each."""
        f, size = self.store.facts, self.block_size
        a, b = layout.block_range(size, first, last)
        if b > len(block_ids):
            raise Failed(f"tokens {first} to {last} do not lie in {len(block_ids)} blocks")
        blocks = cache[torch.tensor(list(block_ids[a:b]))].view(b - a, f.n_kv_heads, 2, size * f.head_dim)
        rows = []
        for half, order in ((0, self._k_order), (1, self._v_order)):
            x = blocks[:, :, half].index_select(2, order).view(b - a, f.n_kv_heads, size, f.head_dim)
            x = x.permute(0, 2, 1, 3).reshape((b - a) * size, f.n_kv_heads, f.head_dim)
            rows.append(x[first - a * size:last - a * size].contiguous())
        return rows[0], rows[1]

    def take_released(self) -> set[str] | None:
        released, self._released = self._released, set()
        return released or None


def _in_order(kv_caches: dict[str, torch.Tensor], n_layer: int) -> list[str]:
    """Names of layers 0 to n_layer - 1. Raises ValueError."""
    names = sorted(kv_caches, key=attend.layer_number)
    numbers = [attend.layer_number(n) for n in names]
    if numbers != list(range(n_layer)):
        raise ValueError(f"skvqd: layers are numbered {numbers}; 0 to {n_layer - 1} is needed")
    return names
