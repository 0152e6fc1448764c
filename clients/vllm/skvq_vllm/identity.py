# SPDX-License-Identifier: Apache-2.0
"""What makes keys and values of a vLLM server reusable by another. Knows nothing of vLLM.

The identity is made of the files the server loads (weights, tokenizer), of the model's
configuration as the server understood it, and of the numerics tag: versions, element type and
instruction set. vLLM mixes requests into batches as they come, and a batch's shape changes the
last bits of what it computes; the tag promises equal code, not equal bits.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, Mapping

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
             "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
             "tekken.json")
# What config.json says of where a model came from, not of what it computes.
_NO_MATTER = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


@dataclasses.dataclass(frozen=True)
class Facts:
    """A model's geometry and identity, as skvq_model_desc wants it."""

    weights: bytes      # 32
    tokenizer: bytes    # 32
    numerics: str
    model_name: str
    n_layer: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    rope_theta: float   # 0: no RoPE
    rope_scaling: str   # canonical text; empty: none


def digest_files(folder: str, names: list[str]) -> bytes:
    """SHA-256 over names, sizes and bytes. Reads every byte."""
    whole = hashlib.sha256(b"skvq files 1\n")
    for name in names:
        one = hashlib.sha256()
        path = os.path.join(folder, name)
        with open(path, "rb") as f:
            while piece := f.read(1 << 20):
                one.update(piece)
            size = f.tell()
        whole.update(f"{len(name.encode())} {name} {size} {one.hexdigest()}\n".encode())
    return whole.digest()


def weight_files(folder: str) -> list[str]:
    """Of every kind, for which ones are read depends on the loader. Raises ValueError if there are none."""
    found = sorted(n for n in os.listdir(folder)
                   if n.endswith(WEIGHTS) and os.path.isfile(os.path.join(folder, n)))
    if found:
        return found
    raise ValueError(f"'{folder}' holds no weights ({', '.join(WEIGHTS)}), so pages could not be "
                     "told from another model's")


def digest_weights(folder: str) -> bytes:
    return digest_files(folder, weight_files(folder))


def digest_tokenizer(folder: str) -> bytes:
    """Raises ValueError if the folder holds no tokenizer."""
    found = [n for n in TOKENIZER if os.path.isfile(os.path.join(folder, n))]
    if not found:
        raise ValueError(f"'{folder}' holds no tokenizer ({', '.join(TOKENIZER)})")
    return digest_files(folder, found)


def canonical(value: Any) -> str:
    """JSON of one spelling: sorted keys, no spaces. What JSON has no form for is its str()."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_config(config: Mapping[str, Any]) -> str:
    """12 hex digits over what a config says of the computation."""
    kept = {k: v for k, v in config.items() if k not in _NO_MATTER}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()[:12]


def rope(config: Mapping[str, Any], head_dim: int) -> tuple[int, float, str]:
    """(rotated channels, theta, canonical text of any scaling); theta 0 means no RoPE."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        return 0, 0.0, ""
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    dim = int(head_dim * float(share))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    rest = {k: v for k, v in parameters.items()
            if k not in ("rope_theta", "rope_type", "type", "partial_rotary_factor")}
    scaling = "" if kind == "default" and not rest else f"hf:{kind}:{canonical(rest)}"
    return dim, float(theta), scaling


def numerics(vllm: str, torch: str, dtype: str, isa: str, capability: str, quantization: str,
             load_format: str, implementation: str, config: Mapping[str, Any]) -> str:
    """The tag. load_format: how weights were read; implementation: whose code the model is. All of it
    is compared as text."""
    return (f"vllm-{vllm}/torch-{torch}/{dtype}/attn-{isa}/cpu-{capability}/"
            f"w-{quantization or 'none'}/load-{load_format}/impl-{implementation}/cfg-{digest_config(config)}")
