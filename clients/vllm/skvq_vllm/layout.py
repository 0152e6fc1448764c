# SPDX-License-Identifier: Apache-2.0
"""How vLLM's CPU attention lays out a block of keys or values, and how to read it back.

A layer's cache is [blocks, kv_heads, block_size, 2 * head_dim]; per block and head it holds
block_size * head_dim elements of keys and then as many of values. Inside, the instruction set
decides: values are rows, keys are columns for "vec", and both are packed for AMX. Writing goes
through vLLM's own operator. For reading, the order is *learned* from that operator when the
connector starts: numbered elements are written, and where they land is looked up. An operator
that does not permute elements of one block and head is refused.

Knows numpy alone.
"""
from __future__ import annotations

from typing import Callable

import numpy as np

# Whole numbers below this are exact in bfloat16, the narrowest of the element types.
_BASE = 128


def digits(n: int) -> int:
    """How many probes number n elements."""
    count = 1
    while _BASE ** count < n:
        count += 1
    return count


def learn(store: Callable[[np.ndarray], np.ndarray], block_size: int, head_dim: int) -> np.ndarray:
    """The order of one block and head.

    store: writes float32 rows [block_size, head_dim] the way the engine does, and returns the
    block's elements as stored, [block_size * head_dim], of any number type.

    Returns: int64 [block_size, head_dim]; element d of token t lies at result[t, d].
    Raises ValueError if store does not merely permute.
    """
    n = block_size * head_dim
    numbers = np.arange(n).reshape(block_size, head_dim)
    found = np.zeros(n, np.int64)
    for digit in range(digits(n)):
        scale = _BASE ** digit
        stored = np.asarray(store((numbers // scale % _BASE).astype(np.float32)))
        if stored.shape != (n,):
            raise ValueError(f"a block of {block_size} tokens of {head_dim} channels is stored in "
                             f"{stored.size} elements, not {n}")
        whole = np.rint(stored).astype(np.int64)
        if not np.array_equal(whole, stored) or whole.min() < 0 or whole.max() >= _BASE:
            raise ValueError("blocks do not hold the elements that were written to them (a scaled "
                             "or quantized cache?)")
        found += whole * scale
    if not np.array_equal(np.sort(found), np.arange(n)):
        raise ValueError("a block is no permutation of the elements that were written to it")
    order = np.empty(n, np.int64)
    order[found] = np.arange(n)
    return order.reshape(block_size, head_dim)


def name(order: np.ndarray) -> str:
    """``"rows"``, ``"columns"`` or ``"packed"``: for people."""
    block_size, head_dim = order.shape
    rows = np.arange(order.size).reshape(block_size, head_dim)
    if np.array_equal(order, rows):
        return "rows"
    if np.array_equal(order, rows.reshape(head_dim, block_size).T):
        return "columns"
    return "packed"


def slots(block_ids: list[int], block_size: int, first: int, last: int) -> np.ndarray:
    """vLLM's slot numbers of tokens [first, last); block_ids[0] holds token 0. int64 [last-first].

    Raises ValueError where the blocks do not reach.
    """
    if not 0 <= first <= last or last > len(block_ids) * block_size:
        raise ValueError(f"tokens {first} to {last} do not lie in {len(block_ids)} blocks of "
                         f"{block_size}")
    at = np.arange(first, last)
    return np.asarray(block_ids, np.int64)[at // block_size] * block_size + at % block_size


def block_range(block_size: int, first: int, last: int) -> tuple[int, int]:
    """The blocks [a, b) that tokens [first, last) lie in."""
    return first // block_size, -(-last // block_size)
