#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The connector's store with the real plugin and a real daemon: what it writes it reads back, in
another session too; a daemon that is not there, dies or comes late costs a miss and no more."""
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

try:
    import numpy as np
except ImportError:
    sys.exit(77)

from skvq_vllm import identity, options, store

LAYERS, HEADS, DIM, N = 3, 2, 64, 700
PROMPT = [(7 * i + 3) % 1000 for i in range(N)]


def facts(numerics="test"):
    return identity.Facts(b"w" * 32, b"t" * 32, numerics, "m", LAYERS, 2 * HEADS, HEADS, DIM, DIM, 1e4, "")


class Daemon:
    def __init__(self, folder):
        self.socket = os.path.join(folder, "skvqd.sock")
        self.start()

    def start(self):
        self.process = subprocess.Popen([os.environ["SKVQD"], "--socket", self.socket],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listens(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            return s.connect_ex(self.socket) == 0

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(60)


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise AssertionError("it did not come to pass")
        time.sleep(0.02)


class Store(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder, self.said, self.stores = folder.name, [], []
        rng = np.random.default_rng(1)
        self.k = rng.standard_normal((LAYERS, N, HEADS, DIM)).astype(np.float32)
        self.v = rng.standard_normal((LAYERS, N, HEADS, DIM)).astype(np.float32)

    def tearDown(self):
        for s in self.stores:
            s.close()

    def daemon(self):
        daemon = Daemon(self.folder)
        self.addCleanup(lambda: daemon.process.poll() is None and daemon.stop(signal.SIGKILL))
        until(daemon.listens)
        return daemon

    def store(self, socket, profile="fp16", numerics="test", timeout_ms=20000):
        s = store.Store(facts(numerics), options.parse({"socket": socket, "profile": profile,
                        "timeout_ms": timeout_ms}), N + 100, "test", self.said.append)
        self.stores.append(s)
        return s

    def write(self, s, n=N):
        seq = s.open(PROMPT[:n], publish=True)
        at = seq.n_matched
        while at < n:
            step = min(store.APPEND_TOKENS, n - at)
            for layer in range(LAYERS):
                seq.append(layer, at, self.k[layer, at:at + step], self.v[layer, at:at + step])
            seq.commit(PROMPT[at:at + step])
            self.assertTrue(seq.flush(60))
            at += step
        seq.close()

    def read(self, seq, layer, first, n):
        with store.failing():
            return seq.export(layer, first, n)

    def test_pages_are_read_by_another_session(self):
        daemon = self.daemon()
        self.write(self.store(daemon.socket))
        other = self.store(daemon.socket)
        seq = other.open(PROMPT, publish=False)
        self.assertEqual(seq.n_matched, (N - 128) // 80 * 80)
        for layer in range(LAYERS):
            for first, n in ((0, seq.n_matched), (96, 32), (79, 2)):
                k, v = self.read(seq, layer, first, n)
                for got, want in ((k, self.k), (v, self.v)):
                    np.testing.assert_array_equal(
                        got, want[layer, first:first + n].astype(np.float16).astype(np.float32))
        seq.close()
        # Another prompt has the common pages alone; another identity, none.
        seq = other.open(PROMPT[:200] + [5] * 300, publish=False)
        self.assertEqual(seq.n_matched, 160)
        seq.close()
        seq = self.store(daemon.socket, numerics="other").open(PROMPT, publish=False)
        self.assertEqual(seq.n_matched, 0)
        seq.close()

    def test_reading_beyond_what_matched_fails(self):
        daemon = self.daemon()
        s = self.store(daemon.socket)
        self.write(s)
        seq = s.open(PROMPT, publish=False)
        with self.assertRaisesRegex(store.Failed, "export_kv: SKVQ_ERANGE"):
            self.read(seq, 0, seq.n_matched - 1, 2)
        seq.close()

    def test_no_daemon_is_a_miss_told_once_and_one_that_comes_late_is_used(self):
        s = self.store(os.path.join(self.folder, "skvqd.sock"))
        for _ in range(3):
            with self.assertRaises(store.Failed):
                s.open(PROMPT, publish=False)
        self.assertEqual(len(self.said), 1, self.said)
        self.assertIn("no skvqd", self.said[0])
        self.daemon()

        def there():
            try:
                return s.ready()
            except store.Failed:
                return False

        until(there)
        self.write(s)
        self.assertIn("is there", self.said[-1])

    def test_a_daemon_that_dies(self):
        daemon = self.daemon()
        s = self.store(daemon.socket)
        self.write(s)
        reader = s.open(PROMPT, publish=False)
        writer = s.open(PROMPT[:300], publish=True)
        daemon.stop(signal.SIGKILL)
        k, _ = self.read(reader, 1, 0, 500)                # mapped pages stay
        np.testing.assert_array_equal(k, self.k[1, :500].astype(np.float16).astype(np.float32))
        reader.close()

        def lost():
            writer.poll()
            return not store.attached(writer)

        until(lost)
        writer.close()
        try:                                               # a miss, one way or the other
            seq = s.open(PROMPT, publish=False)
            self.assertEqual(seq.n_matched, 0)
            seq.close()
        except store.Failed:
            pass
        os.unlink(daemon.socket)
        daemon.start()

        def found():
            try:
                seq = s.open(PROMPT, publish=True)
            except store.Failed:
                return False
            try:
                return store.attached(seq)
            finally:
                seq.close()

        until(found)
        self.write(s)
        seq = s.open(PROMPT, publish=False)
        self.assertEqual(seq.n_matched, (N - 128) // 80 * 80)
        seq.close()

    def test_a_daemon_that_stands_still_is_waited_for_a_bounded_time(self):
        daemon = self.daemon()
        self.write(self.store(daemon.socket))
        s = self.store(daemon.socket, timeout_ms=300)
        self.assertTrue(s.ready())
        daemon.process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        try:
            seq = s.open(PROMPT, publish=False)
            self.assertEqual(seq.n_matched, 0)
            seq.close()
        except store.Failed:
            pass
        self.assertLess(time.monotonic() - start, 30)
        daemon.process.send_signal(signal.SIGCONT)

        def found():
            try:
                seq = s.open(PROMPT, publish=False)
            except store.Failed:
                return False
            try:
                return seq.n_matched == (N - 128) // 80 * 80
            finally:
                seq.close()

        until(found)

    def test_what_outlives_its_session_does_no_harm(self):
        daemon = self.daemon()
        s = self.store(daemon.socket)
        self.write(s)
        seq = s.open(PROMPT, publish=False)
        s.use(None)
        again = s.open(PROMPT, publish=False)
        seq.close()
        k, _ = self.read(again, 0, 0, 80)
        self.assertFalse(np.isnan(k).any())
        again.close()

    def test_a_half_takes_the_calibration_of_the_other(self):
        daemon = self.daemon()
        theirs, mine = self.store(daemon.socket, "k4v2"), self.store(daemon.socket, "k4v2")
        self.write(theirs)
        self.assertTrue(mine.ready())
        mine._calibration = b"what the daemon had at another time"
        self.assertNotEqual(mine.calibration_id(), theirs.calibration_id())
        mine.use(theirs.calibration())
        self.assertEqual(mine.calibration_id(), "")        # until the next call
        seq = mine.open(PROMPT, publish=False)
        self.assertEqual(seq.n_matched, (N - 128) // 80 * 80)
        seq.close()
        self.assertEqual(mine.calibration_id(), theirs.calibration_id())
        # Another one is really taken: what is none is refused, each time, and told of once.
        mine.use(b"no calibration" * 100)
        for _ in range(3):
            mine._next_try = 0.0
            with self.assertRaisesRegex(store.Failed, "refuses the model"):
                mine.open(PROMPT, publish=False)
        self.assertEqual(len(self.said), 1, self.said)

    def test_what_the_plugin_refuses_is_told_at_the_start(self):
        daemon = self.daemon()
        with self.assertRaisesRegex(store.Refused, "EPROFILE"):
            self.store(daemon.socket, profile="k9v9").ready()
        missing = os.path.join(self.folder, "none.skvqcal")
        s = store.Store(facts(), options.parse({"socket": daemon.socket, "calibration": missing}),
                        N, "test", self.said.append)
        with self.assertRaisesRegex(store.Refused, "none.skvqcal"):
            s.ready()


if __name__ == "__main__":
    unittest.main()
