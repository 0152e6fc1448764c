#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_faithful.py FAITHFUL_STREAM [SEED]: SKVQ's quantizer in C against numpy, bit for bit.

Written from the formulas of arXiv 2405.06219 and its fake quantization in half precision, without a
look at the C: numpy's float16 rounds after every operation, E4M3 is a table searched for the nearest
value.
"""
import struct
import subprocess
import sys

try:
    import numpy as np
except ImportError:
    print("numpy is missing")
    sys.exit(77)

F16 = np.float16


def e4m3_table():
    """Values of codes 0..126 (the positive ones; 127 is NaN)."""
    out = []
    for code in range(127):
        exponent, fraction = code >> 3, code & 7
        out.append(fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))
    return np.array(out)


TABLE = e4m3_table()


def e4m3(x):
    """Codes of the values nearest to x, ties to the even code, 448 beyond."""
    x = x.astype(np.float64)
    distance = np.abs(np.abs(x)[:, None] - TABLE[None, :])
    best = distance.min(axis=1)
    code = np.empty(len(x), np.int64)
    for i in range(len(x)):
        candidates = np.flatnonzero(distance[i] == best[i])
        even = candidates[candidates % 2 == 0]
        code[i] = even[0] if len(even) else candidates[0]
    negative = (x < 0) & (code > 0)
    return (code | np.where(negative, 128, 0)).astype(np.uint8)


def e4m3_value(code):
    value = TABLE[code & 127]
    return np.where(code & 128, -value, value).astype(F16)


def quantize(x, groups, n_groups, m, clip):
    """Codes, scales, zeros and what they stand for, of one token's channels x (float16)."""
    codes = np.zeros(len(x), np.uint8)
    back = np.zeros(len(x), F16)
    scale, zero = np.zeros(n_groups, F16), np.zeros(n_groups, F16)
    members = [np.flatnonzero(groups == g) for g in range(n_groups)]
    clip, m = F16(clip), F16(m)
    for g, at in enumerate(members):
        low, high = clip * x[at].min(), clip * x[at].max()
        scale[g] = max((high - low) / m, F16(1e-5))
        zero[g] = low
        codes[at] = np.rint(np.clip((x[at] - zero[g]) / scale[g], F16(0), m)).astype(np.uint8)
    scale8, zero8 = e4m3(scale), e4m3(zero)
    s, z = e4m3_value(scale8), e4m3_value(zero8)
    for g, at in enumerate(members):
        back[at] = codes[at].astype(F16) * s[g] + z[g]
    return codes, scale8, zero8, back


def run(program, groups, n_groups, m, clip, x):
    header = struct.pack("<4If", x.shape[0], x.shape[1], n_groups, m, clip)
    data = header + groups.astype("<u2").tobytes() + x.astype("<f2").tobytes()
    out = subprocess.run([program], input=data, stdout=subprocess.PIPE, check=True).stdout
    at = 0
    for _ in range(x.shape[0]):
        token = []
        for dtype, n in (("u1", x.shape[1]), ("u1", n_groups), ("u1", n_groups), ("<f2", x.shape[1])):
            token.append(np.frombuffer(out, dtype, n, at))
            at += token[-1].nbytes
        yield token
    assert at == len(out)


def inputs(rng, tokens, channels):
    spread = np.exp(rng.normal(0, 1.5, channels))
    yield "channels of many sizes", rng.normal(0, 1, (tokens, channels)) * spread
    yield "small", rng.normal(0, 1e-4, (tokens, channels))
    yield "one value", np.full((tokens, channels), rng.normal())
    yield "zeros", np.zeros((tokens, channels))
    x = rng.normal(0, 1, (tokens, channels))
    x[:, rng.integers(channels)] = 60000
    yield "one outlier", x
    yield "biased", rng.normal(0, 1, (tokens, channels)) + rng.normal(0, 20, channels)


def main():
    program, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    rng, n = np.random.default_rng(seed), 0
    for channels, n_groups in ((192, 3), (192, 6), (256, 4), (512, 4), (96, 1)):
        for m in (15, 7, 3, 2):
            groups = rng.integers(0, n_groups, channels)
            groups[:n_groups] = np.arange(n_groups)  # none is empty
            for clip in (1.0, 0.92):
                for name, x in inputs(rng, 6, channels):
                    x = x.astype(F16)
                    for t, have in enumerate(run(program, groups, n_groups, m, clip, x)):
                        want = quantize(x[t], groups, n_groups, m, clip)
                        for what, h, w in zip(("codes", "scales", "zeros", "values"), have, want):
                            if not np.array_equal(h, w):
                                i = int(np.flatnonzero(h != w)[0])
                                sys.exit(f"{name}, {channels} channels, M {m}, clip {clip}, token {t}: "
                                         f"{what}[{i}] is {h[i]}, not {w[i]}")
                        n += 1
    print(f"{n} tokens equal")


main()
