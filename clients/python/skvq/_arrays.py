# SPDX-License-Identifier: Apache-2.0
"""numpy arrays and torch tensors as pointer, element type and strides. Nothing is copied."""
from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from . import _abi

_NUMPY_TYPES = {"float32": _abi.F32, "float16": _abi.F16, "bfloat16": _abi.BF16}
TYPE_NAMES = ("float32", "float16", "bfloat16")


class BF16:
    """bfloat16 for numpy, which has no such type: wraps an array of uint16 that holds the bits.

    ``BF16(bits)`` is accepted wherever an array is. bits: uint16, any shape; not copied.
    """

    __slots__ = ("bits",)

    def __init__(self, bits: np.ndarray) -> None:
        if not isinstance(bits, np.ndarray) or bits.dtype != np.uint16:
            raise TypeError("BF16 wraps a numpy array of uint16")
        self.bits = bits


class View(NamedTuple):
    pointer: int
    type: int                  # _abi.F32, F16, BF16
    shape: tuple[int, ...]
    strides: tuple[int, ...]   # bytes


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor cannot be here before torch is
    return torch is not None and isinstance(x, torch.Tensor)


def _torch_view(name: str, x: Any) -> View:
    torch = sys.modules["torch"]
    kind = {torch.float32: _abi.F32, torch.float16: _abi.F16, torch.bfloat16: _abi.BF16}.get(x.dtype)
    if kind is None:
        raise TypeError(f"{name}: dtype {x.dtype}; float32, float16 or bfloat16 is needed")
    if x.device.type != "cpu":
        raise TypeError(f"{name}: a tensor on '{x.device}'; skvq works on CPU memory")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: a {x.layout} tensor; a strided one is needed")
    if x.requires_grad:
        raise ValueError(f"{name}: requires_grad is set, and no gradient comes back from here; use "
                         "torch.no_grad() or detach()")
    size = x.element_size()
    return View(x.data_ptr(), kind, tuple(x.shape), tuple(s * size for s in x.stride()))


def view(name: str, x: Any, shape: tuple[int | None, ...], axes: str, *, write: bool = False) -> View:
    """Describes x, which must have ``shape`` (None: any length) and a contiguous last axis.

    Raises TypeError or ValueError that names the argument and what is wrong with it.
    """
    if is_torch(x):
        got = _torch_view(name, x)
    else:
        array = x.bits if isinstance(x, BF16) else x
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: {type(x).__name__}; a numpy array or a torch tensor is needed")
        kind = _abi.BF16 if isinstance(x, BF16) else _NUMPY_TYPES.get(array.dtype.name)
        if kind is None:
            raise TypeError(f"{name}: dtype {array.dtype}; float32, float16 or bfloat16 is needed")
        if not array.dtype.isnative:
            raise TypeError(f"{name}: dtype {array.dtype} is in the other byte order")
        if write and not array.flags.writeable:
            raise ValueError(f"{name}: the array is read-only")
        got = View(array.ctypes.data, kind, array.shape, array.strides)
    want = "[" + ", ".join(f"{a}={n}" if n is not None else a
                           for a, n in zip(axes.split(), shape)) + "]"
    if len(got.shape) != len(shape) or any(n is not None and n != m
                                           for n, m in zip(shape, got.shape)):
        raise ValueError(f"{name}: shape {list(got.shape)}; {want} is needed")
    item = 4 if got.type == _abi.F32 else 2
    if got.shape[-1] > 1 and got.strides[-1] != item:
        raise ValueError(f"{name}: its last axis has a stride of {got.strides[-1]} bytes; it must be "
                         f"contiguous ({item}). Other axes may have any stride")
    if write:
        # Elements that overlap would be written by one row over another. The axes in order of
        # stride must nest, and none may run backwards or stand still.
        span = item * got.shape[-1]
        for stride, n in sorted((s, n) for s, n in zip(got.strides[:-1], got.shape[:-1]) if n > 1):
            if stride < span:
                raise ValueError(f"{name}: strides {list(got.strides)} bytes make rows overlap")
            span = stride * (n - 1) + span
    return got


def tokens(name: str, ids: Any) -> np.ndarray:
    """Token ids as contiguous int32 [n]. Copies unless they are just that."""
    if is_torch(ids):
        ids = ids.detach().cpu().numpy()
    array = np.asarray(ids)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {list(array.shape)}; one sequence [n_tokens] is needed")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {array.dtype}; token ids are integers")
    if array.dtype != np.int32 and (array.min() < -2**31 or array.max() >= 2**31):
        raise ValueError(f"{name}: a token id does not fit in 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)
