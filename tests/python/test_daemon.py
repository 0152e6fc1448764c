#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""With skvqd: two processes share a prefix, a lost daemon, calibration that is not there."""
import multiprocessing
import unittest

import numpy as np

import skvq
from support import SCALE, Daemon, feed, kv, model

N = 480  # 6 pages


def other_process(socket, queue):
    """Takes the shared prefix, computes the rest, publishes all; tells what it saw."""
    k, v, q = kv(N)
    with skvq.Session(socket, name="second") as s:
        seq = model(s, "k4v2").sequence(range(N), max_tokens=1000, max_append=128)
        matched = seq.n_matched
        feed(seq, k, v, matched, N)
        flushed = seq.flush(120)
        queue.put((matched, flushed, seq.info().pages_shared, seq.export(1, 0, N)[0],
                   seq.attend(0, N - 1, q[0, N - 1:], scale=SCALE)))


class WithDaemon(unittest.TestCase):
    def test_two_processes_share_a_prefix(self):
        k, v, q = kv(N)
        with Daemon() as daemon, skvq.Session(daemon.socket, name="first") as s:
            m = model(s, "k4v2")
            seq = m.sequence(range(N), max_tokens=1000, max_append=128)
            self.assertEqual(seq.n_matched, 0)
            feed(seq, k, v, 0, N)
            self.assertTrue(seq.flush(120))
            self.assertEqual((seq.info().daemon, seq.info().pages_inflight), ("attached", 0))
            published = s.stats().pages_published
            self.assertGreaterEqual(published, 4)

            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            child = context.Process(target=other_process, args=(daemon.socket, queue))
            child.start()
            matched, flushed, shared, keys, out = queue.get(timeout=600)
            child.join()
            self.assertEqual(matched, (N - 128) // 80 * 80)
            self.assertTrue(flushed)
            self.assertEqual(shared, seq.info().pages_shared)
            np.testing.assert_array_equal(keys, seq.export(1, 0, N)[0])
            np.testing.assert_array_equal(out, seq.attend(0, N - 1, q[0, N - 1:], scale=SCALE))

            self.assertEqual(m.prefetch(range(N)), published * 80)
            with m.sequence(range(N), max_tokens=1000, max_append=128, match=False) as alone:
                self.assertEqual(alone.n_matched, 0)
            with model(s, "k8v8") as other, other.sequence(range(N), max_tokens=1000,
                                                           max_append=128) as none:
                self.assertEqual(none.n_matched, 0, "another identity")
            # A snapshot's pages are used from the daemon again.
            with m.resume(seq.snapshot()) as again:
                self.assertEqual(again.export(1, 0, N)[0].tobytes(), keys.tobytes())

    def test_the_tenants_calibration_when_there_is_none(self):
        with Daemon() as daemon, skvq.Session(daemon.socket) as s:
            self.assertIsNone(s.calibration(weights_digest=b"w" * 32, n_layer=2, n_q_heads=4, n_kv_heads=2,
                                            head_dim_k=64, head_dim_v=64))
            with self.assertRaises(skvq.PeerError) as e:
                s.put_calibration(b"not a calibration" * 100)
            self.assertEqual(e.exception.name, "SKVQ_ECORRUPT")
            self.assertGreaterEqual(s.fileno(), 0)

    def test_decoding_goes_on_when_the_daemon_is_gone(self):
        k, v, q = kv(N)
        with Daemon() as daemon:
            s = skvq.Session(daemon.socket, timeout_ms=500)
            seq = model(s, "k4v2").sequence(max_tokens=1000, max_append=128)
            feed(seq, k, v, 0, 300)
            self.assertTrue(seq.flush(120))
        feed(seq, k, v, 300, N)
        self.assertFalse(seq.flush(30))
        self.assertEqual(seq.info().daemon, "lost")
        with skvq.Session(None) as embedded:
            twin = model(embedded, "k4v2").sequence(max_tokens=1000, max_append=128)
            feed(twin, k, v, 0, N)
            np.testing.assert_array_equal(seq.attend(0, N - 1, q[0, N - 1:], scale=SCALE),
                                          twin.attend(0, N - 1, q[0, N - 1:], scale=SCALE))
        s.close()


if __name__ == "__main__":
    unittest.main()
