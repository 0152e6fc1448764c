# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python client share: a model, K/V, attention in double precision, skvqd."""
import os
import subprocess
import tempfile
import time

import numpy as np

import skvq

LAYERS, Q_HEADS, KV_HEADS, DIM = 2, 4, 2, 64
SCALE = DIM ** -0.5


def model(session, profile="k8v8", **more):
    description = dict(weights_digest=b"w" * 32, tokenizer_digest=b"t" * 32, engine_numerics="test",
                       n_layer=LAYERS, n_q_heads=Q_HEADS, n_kv_heads=KV_HEADS, head_dim_k=DIM,
                       rope_kind="none", profile=profile)
    return session.model(**(description | more))


def kv(n, seed=1):
    """K, V [layers][n][kv_heads][dim] and Q [layers][n][q_heads][dim], float32. A prefix of a longer
    one is the same."""
    make = lambda s, h: np.stack([np.random.default_rng((seed, s, t)).standard_normal(
        (LAYERS, h, DIM), np.float32) for t in range(n)], 1)
    return make(1, KV_HEADS), make(2, KV_HEADS), make(3, Q_HEADS)


def exact(k, v, q, position, window=0, softcap=0.0):
    """Causal attention in double precision: k, v [n, kv_heads, dim], q [rows, q_heads, dim]. Returns
    (out, lse)."""
    k, v, q = (a.astype(np.float64) for a in (k, v, q))
    group = q.shape[1] // k.shape[1]
    s = np.einsum("rhd,thd->hrt", q, np.repeat(k, group, 1)) * SCALE
    if softcap:
        s = softcap * np.tanh(s / softcap)
    row, token = np.arange(len(q))[:, None] + position, np.arange(len(k))[None]
    s = np.where((token > row) | ((window > 0) & (token <= row - window)), -np.inf, s)
    top = s.max(-1, keepdims=True)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    return (np.einsum("hrt,thd->rhd", p / total, np.repeat(v, group, 1)),
            (top + np.log(total))[..., 0].T)


def relative(got, want):
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


def feed(seq, keys, values, start, end, ids=None, chunk=128):
    """Appends and commits tokens [start, end)."""
    while start < end:
        n = min(chunk, end - start)
        for layer in range(LAYERS):
            seq.append(layer, start, keys[layer, start:start + n], values[layer, start:start + n])
        seq.commit(range(start, start + n) if ids is None else ids[start:start + n])
        start += n


class Daemon:
    """skvqd of the build, on a socket of its own."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self.folder.name, "skvqd.sock")
        self.process = subprocess.Popen(
            [os.path.join(os.environ["SKVQ_TEST_BIN"], "skvqd"), "--socket", self.socket],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                skvq.Session(self.socket, name="probe").close()
                return self
            except skvq.NoDaemonError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.folder.cleanup()
