# SPDX-License-Identifier: Apache-2.0
"""Mode attend, vLLM's side: the attention backend in place of CPU_ATTN.

``Backend`` is what vLLM asks for when it makes an attention layer (register() names it). A server that
does not ask for the mode gets vLLM's own class, so nothing of this is in its way. One that does gets
layers whose keys and values are handed to the connector's worker half, which answers with attention
over skvqd's pages; vLLM's cache is one block of a few bytes a request, whose number names the
request in a batch.
"""
from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none
from vllm.utils.math_utils import cdiv
from vllm.v1.attention.backend import AttentionMetadataBuilder, AttentionType, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
)
from vllm.v1.core.single_type_kv_cache_manager import CircularBufferManager
from vllm.v1.kv_cache_interface import AttentionSpec, CircularBufferSpec, FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import CommonAttentionMetadata

SPARE_BLOCKS = 2  # beyond one a request: vLLM's null block, and one for a request that comes as another goes


def unsupported(why: str) -> ValueError:
    return ValueError(f"skvqd does not support this server: {why}. docs/vllm.md lists what is supported")


def asked_for(config: "VllmConfig | None") -> bool:
    """Whether a server wants the mode. Its connector checks the options."""
    transfer = config and config.kv_transfer_config
    return (transfer is not None and transfer.kv_connector == "SkvqdConnector"
            and transfer.kv_connector_extra_config.get("mode") == "attend")


def layer_number(name: str) -> int:
    """Of ``model.layers.7.self_attn.attn``. Raises ValueError."""
    found = re.findall(r"(?<=\.)\d+(?=\.)", name)
    if len(found) != 1:
        raise ValueError(f"skvqd: which layer is '{name}'?")
    return int(found[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagesSpec(CircularBufferSpec):
    """One block a request, for as long as it runs, of one number a token: nothing is kept in it. What the
    layer's keys and values are is said beside."""

    kv_heads: int
    head_dim: int

    def max_num_blocks_per_req(self, vllm_config: "VllmConfig", max_len: int) -> int:
        # The runner maps each position to a slot, which nobody uses: the table is as long as for others.
        return cdiv(max_len, self.block_size)


KVCacheSpecRegistry._ensure_registered()  # a registry that is not empty does not fill itself
KVCacheSpecRegistry.register(PagesSpec, CircularBufferManager, uniform_type_base_spec=CircularBufferSpec)


class AttendBuilder(AttentionMetadataBuilder[CPUAttentionMetadata]):
    """vLLM's metadata without the plan of its kernel, which does not run."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: "VllmConfig",
                 device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: "CommonAttentionMetadata",
              fast_build: bool = False) -> CPUAttentionMetadata:
        m = common_attn_metadata
        return CPUAttentionMetadata(
            num_actual_tokens=m.num_actual_tokens, max_query_len=m.max_query_len,
            query_start_loc=m.query_start_loc, max_seq_len=m.max_seq_len, seq_lens=m.seq_lens,
            block_table=m.block_table_tensor, slot_mapping=m.slot_mapping, scheduler_metadata=None,
            causal=m.causal)


class AttendImpl(CPUAttentionBackendImpl):
    """Raises ValueError at start for a layer that pages cannot serve."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for what, is_there in (("alibi slopes", self.alibi_slopes is not None),
                               ("a sliding window", self.sliding_window != -1),
                               ("attention sinks", self.sinks is not None),
                               (f"attention of kind '{self.attn_type}'", self.attn_type != AttentionType.DECODER),
                               ("a cache shared by layers", self.kv_sharing_target_layer_name is not None)):
            if is_there:
                raise unsupported(f"mode 'attend' and a layer with {what}")
        shrink(get_current_vllm_config())

    def do_kv_cache_update(self, layer: Any, key: torch.Tensor, value: torch.Tensor,
                           kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        pass  # forward() has them, too

    def forward(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                kv_cache: torch.Tensor, attn_metadata: CPUAttentionMetadata | None, output: torch.Tensor,
                output_scale: torch.Tensor | None = None,
                output_block_scale: torch.Tensor | None = None) -> torch.Tensor:
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fused output quantization")
        if attn_metadata is None:
            return output  # a warm-up
        if current.worker is None or not current.worker.forward(
                layer_number(layer.layer_name), query, key, value, output, attn_metadata, self.scale,
                self.logits_soft_cap):
            output.zero_()  # of a run without requests, to warm up or to measure
        return output


class _Current:
    """This process's worker half, which comes after the layers were made."""

    worker: Any = None


current = _Current()


class AttendBackend(CPUAttentionBackend):
    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @staticmethod
    def get_impl_cls() -> type[AttendImpl]:
        return AttendImpl

    @staticmethod
    def get_builder_cls() -> type[AttendBuilder]:
        return AttendBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        if type(spec) is not FullAttentionSpec:
            return spec  # the connector refuses it
        if spec.head_size_v != spec.head_size:
            raise unsupported("keys and values of different width")
        return PagesSpec(block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=spec.dtype,
                         kv_heads=spec.num_kv_heads, head_dim=spec.head_size)


def shrink(config: "VllmConfig") -> None:
    """Has vLLM make no more cache than it needs for a block for each request that may run.

    In the worker and before it says how much memory there is, so before blocks are counted. What the
    operator gave for the cache (VLLM_CPU_KVCACHE_SPACE) is not taken.
    """
    model, cache = config.model_config, config.cache_config
    a_token = 2 * model.dtype.itemsize * model.get_num_layers(config.parallel_config)
    blocks = config.scheduler_config.max_num_seqs + SPARE_BLOCKS
    # Blocks may become another size once the model is loaded: never more than this.
    cache.kv_cache_memory_bytes = blocks * a_token * max(cache.block_size or 0, 128)


def __getattr__(name: str) -> Any:
    if name == "Backend":  # asked for while a layer is made, and then the configuration is known
        return AttendBackend if asked_for(get_current_vllm_config_or_none()) else CPUAttentionBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
