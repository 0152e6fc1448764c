#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is taken as an array, without a copy, and how the rest is refused."""
import unittest

import numpy as np

import skvq
from skvq import _arrays
from support import DIM, KV_HEADS, model


def view(x, write=False):
    return _arrays.view("k", x, (None, 2, 4), "n_tokens n_kv_heads head_dim_k", write=write)


class Views(unittest.TestCase):
    def test_strides_are_bytes_and_nothing_is_copied(self):
        base = np.zeros((2, 7, 4), np.float16)
        got = view(base.transpose(1, 0, 2))
        self.assertEqual((got.pointer, got.shape, got.strides), (base.ctypes.data, (7, 2, 4), (8, 56, 2)))
        self.assertEqual(view(np.zeros((14, 2, 4), "f4")[::2]).strides, (64, 16, 4))
        self.assertEqual(view(skvq.BF16(np.zeros((3, 2, 4), np.uint16))).type, 2)

    def test_refusals_name_the_argument_and_what_is_wrong(self):
        good = np.zeros((3, 2, 4), "f4")
        frozen = good.copy()
        frozen.flags.writeable = False
        for x, write, kind, words in (
                ([[0.0]], False, TypeError, "k: list"),
                (good.astype("f8"), False, TypeError, "float64"),
                (good.astype(">f4"), False, TypeError, "byte order"),
                (good[:, :1], False, ValueError, "n_kv_heads=2"),
                (good[0], False, ValueError, "shape"),
                (np.zeros((3, 2, 8), "f4")[..., ::2], False, ValueError, "stride of 8"),
                (frozen, True, ValueError, "read-only"),
                (np.lib.stride_tricks.as_strided(good, (3, 2, 4), (0, 16, 4)), True, ValueError, "overlap"),
                (np.lib.stride_tricks.as_strided(good, (3, 2, 4), (16, 16, 4)), True, ValueError,
                 "overlap")):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words) as caught:
                view(x, write)
            self.assertTrue(str(caught.exception).startswith("k: "))
        with self.assertRaises(TypeError):
            skvq.BF16(good)

    def test_token_ids(self):
        for ids in ([1, 2], np.array([1, 2], "u8"), (1, 2), range(1, 3)):
            got = _arrays.tokens("tokens", ids)
            self.assertEqual((got.dtype, got.tolist()), (np.int32, [1, 2]))
        self.assertEqual(len(_arrays.tokens("tokens", [])), 0)
        for ids, kind in ([[1.5], TypeError], [[[1]], ValueError], [[2**31], ValueError]):
            with self.assertRaises(kind):
                _arrays.tokens("tokens", ids)


class Elements(unittest.TestCase):
    def test_bf16_and_f16_arrive_as_the_values_they_are(self):
        bits = (np.arange(3 * KV_HEADS * DIM, dtype=np.uint32) % 997 + 0x3F00).astype(np.uint16)
        bits = bits.reshape(3, KV_HEADS, DIM)
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
        half = wide.astype(np.float16)
        with skvq.Session(None) as s:
            seq = model(s, "fp16").sequence(max_tokens=16, max_append=16)
            for layer in range(2):
                seq.append(layer, 0, skvq.BF16(bits), half)
            k, v = seq.export(0, 0, 3)
            np.testing.assert_array_equal(k, wide.astype(np.float16).astype(np.float32))
            np.testing.assert_array_equal(v, half.astype(np.float32))
            out = np.zeros((3, KV_HEADS, DIM), np.uint16)
            seq.export(1, 0, 3, k=skvq.BF16(out))
            np.testing.assert_array_equal(out, bits)


if __name__ == "__main__":
    unittest.main()
