#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Session, Model, Sequence without a daemon: numbers, ownership, threads, fork()."""
import fcntl
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import numpy as np

import skvq
from skvq import session
from support import DIM, KV_HEADS, LAYERS, Q_HEADS, SCALE, exact, feed, kv, model, relative

N = 500


def in_child(test):
    """Runs test() in a child by fork(); its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            test()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Numbers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.k, cls.v, cls.q = kv(N)

    def setUp(self):
        self.session = skvq.Session(None)
        self.addCleanup(self.session.close)

    def sequence(self, profile="k8v8", n=N, **more):
        seq = model(self.session, profile).sequence(max_tokens=1000, max_append=128, **more)
        feed(seq, self.k, self.v, 0, n)
        return seq

    def test_attention_is_that_of_double_precision_over_what_is_exported(self):
        """The codec's loss is in what export gives; on those numbers only rounding is left."""
        for profile, bound in (("fp16", 1e-3), ("k8v8", 2e-3), ("k4v2", 5e-3)):
            seq = self.sequence(profile)
            for layer in range(LAYERS):
                k, v = seq.export(layer, 0, N)
                lse = np.empty((8, Q_HEADS), np.float32)
                q = self.q[layer, N - 8:]
                out = seq.attend(layer, N - 8, q, scale=SCALE, lse=lse)
                want, want_lse = exact(k, v, q, N - 8)
                self.assertLess(relative(out, want), bound, profile)
                np.testing.assert_allclose(lse, want_lse, atol=1e-2)

    def test_softcap_and_sliding_limit(self):
        seq = self.sequence("fp16")
        for window, softcap in ((200, 0.0), (0, 5.0), (30, 2.0)):
            out = seq.attend(0, N - 1, self.q[0, N - 1:], scale=SCALE, sliding_limit=window,
                             softcap=softcap)
            want, _ = exact(self.k[0], self.v[0], self.q[0, N - 1:], N - 1, window, softcap)
            self.assertLess(relative(out, want), 2e-3, (window, softcap))

    def test_export_is_what_was_appended_within_the_profiles_loss(self):
        for profile, k_bound, v_bound in (("fp16", 5e-4, 5e-4), ("k8v8", 0.01, 0.01), ("k4v2", 0.15, 0.5)):
            seq = self.sequence(profile)
            k, v = seq.export(1, 0, N)
            self.assertLess(relative(k, self.k[1]), k_bound, profile)
            self.assertLess(relative(v, self.v[1]), v_bound, profile)
            info = seq.info()
            np.testing.assert_array_equal(k[info.n_paged:], self.k[1, info.n_paged:].astype("f2"))
            only_k = np.zeros((3, KV_HEADS, DIM), np.float16)
            self.assertEqual(seq.export(1, 7, 3, k=only_k)[1], None)
            np.testing.assert_array_equal(only_k, k[7:10].astype("f2"))

    def test_strides_do_not_change_what_is_stored(self):
        a = self.sequence()
        b = model(self.session).sequence(max_tokens=1000, max_append=128)
        heads_first = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (self.k, self.v)]
        feed(b, *(x.transpose(0, 2, 1, 3) for x in heads_first), 0, N)
        self.assertEqual(a.snapshot(), b.snapshot())
        q = np.ascontiguousarray(self.q[0, N - 4:].transpose(1, 0, 2)).transpose(1, 0, 2)
        out = np.empty((Q_HEADS, 4, DIM), np.float32)
        b.attend(0, N - 4, q, scale=SCALE, out=out.transpose(1, 0, 2))
        np.testing.assert_array_equal(out.transpose(1, 0, 2),
                                      a.attend(0, N - 4, self.q[0, N - 4:], scale=SCALE))

    def test_shares_of_threads_make_the_whole(self):
        seq = self.sequence("k4v2")
        q = self.q[0, N - 1:]
        want = seq.attend(0, N - 1, q, scale=SCALE)
        out = np.full_like(want, np.nan)
        threads = [threading.Thread(target=seq.attend, args=(0, N - 1, q),
                                    kwargs=dict(scale=SCALE, out=out, ith=i, nth=2)) for i in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertLess(relative(out, want.astype("f8")), 1e-4)
        with self.assertRaises(ValueError):
            seq.attend(0, N - 1, q, scale=SCALE, nth=2)

    def test_snapshot_resumes_bit_for_bit(self):
        seq = self.sequence("k4v2", 300)
        data = seq.snapshot()
        other = skvq.Session(None)
        self.addCleanup(other.close)
        twin = model(other, "k4v2").resume(data)
        self.assertEqual((twin.snapshot(), len(twin)), (data, 300))
        for s in (seq, twin):
            feed(s, self.k, self.v, 300, N)
        q = self.q[1, N - 1:]
        np.testing.assert_array_equal(seq.attend(1, N - 1, q, scale=SCALE),
                                      twin.attend(1, N - 1, q, scale=SCALE))
        self.assertEqual(seq.snapshot(), twin.snapshot())
        with self.assertRaises(skvq.PeerError) as e:
            seq.model.resume(data[:len(data) // 2])
        self.assertEqual(e.exception.name, "SKVQ_ECORRUPT")
        with self.assertRaises(skvq.CallerError) as e:
            model(other, "k8v8").resume(data)
        self.assertEqual(e.exception.name, "SKVQ_EIDENTITY")

    def test_fork_goes_its_own_way(self):
        seq = self.sequence("k4v2", 300)
        branch = seq.fork()
        feed(branch, self.k[:, ::-1], self.v, 300, 400)
        feed(seq, self.k, self.v, 300, N)
        whole = self.sequence("k4v2")
        self.assertEqual(seq.snapshot(), whole.snapshot())
        self.assertEqual((len(branch), len(seq)), (400, N))
        seq.close()
        self.assertEqual(branch.attend(0, 399, self.q[0, 399:400], scale=SCALE).shape, (1, Q_HEADS, DIM))

    def test_truncate_leaves_no_trace_of_drafts(self):
        seq, plain = self.sequence("k4v2", 400), self.sequence("k4v2", 400)
        feed(seq, self.k[:, ::-1].copy(), self.v, 400, 408)
        seq.truncate(400)
        for s in (seq, plain):
            feed(s, self.k, self.v, 400, N)
        q = self.q[0, N - 1:]
        np.testing.assert_array_equal(seq.attend(0, N - 1, q, scale=SCALE),
                                      plain.attend(0, N - 1, q, scale=SCALE))
        with self.assertRaises(skvq.CallerError) as e:
            seq.truncate(N + 1)
        self.assertEqual(e.exception.name, "SKVQ_ERANGE")

    def test_several_sequences_in_one_call(self):
        m = model(self.session)
        seqs = [m.sequence(max_tokens=1000, max_append=128) for _ in range(2)]
        for seq, n in zip(seqs, (300, N)):
            feed(seq, self.k, self.v, 0, n)
        at = [299, N - 1]
        qs = [self.q[0, p:p + 1] for p in at]
        outs = skvq.attend(seqs, 0, at, qs, scale=SCALE)
        for seq, p, q, out in zip(seqs, at, qs, outs):
            np.testing.assert_array_equal(out, seq.attend(0, p, q, scale=SCALE))
        with self.assertRaises(ValueError):
            skvq.attend([seqs[0]] * 2, 0, at, qs, scale=SCALE)


class Errors(unittest.TestCase):
    def setUp(self):
        self.session = skvq.Session(None)
        self.addCleanup(self.session.close)

    def test_name_code_and_words_of_the_plugin(self):
        seq = model(self.session).sequence(max_tokens=100, max_append=16)
        bad = np.zeros((1, KV_HEADS, DIM), np.float32)
        bad[0, 1, 3] = np.nan
        with self.assertRaises(skvq.CallerError) as e:
            seq.append(0, 0, bad, np.zeros_like(bad))
        self.assertEqual((e.exception.call, e.exception.code, e.exception.name), ("append", 1, "SKVQ_EINVAL"))
        self.assertIn("layer 0", e.exception.detail)
        self.assertIn(e.exception.detail, str(e.exception))
        with self.assertRaises(skvq.CallerError) as e:
            seq.commit([1])
        self.assertEqual(e.exception.name, "SKVQ_ESTATE")
        with self.assertRaises(skvq.CallerError) as e:
            model(self.session, "k99")
        self.assertEqual(e.exception.name, "SKVQ_EPROFILE")

    def test_no_daemon(self):
        with self.assertRaises(skvq.NoDaemonError) as e:
            skvq.Session("/nonexistent/skvqd.sock")
        self.assertIn("/nonexistent/skvqd.sock", e.exception.detail)
        with self.assertRaises(skvq.NoDaemonError):
            self.session.calibration(weights_digest=b"w" * 32, n_layer=1, n_q_heads=1, n_kv_heads=1,
                                     head_dim_k=64, head_dim_v=64)
        with self.assertRaises(skvq.CallerError):
            self.session.fileno()

    def test_arguments_python_can_see_are_wrong(self):
        for change, words in (({"weights_digest": b"short"}, "weights_digest"), ({"rope_kind": "x"}, "rope_kind"),
                              ({"n_layer": -1}, "n_layer"), ({"layer_window": [1]}, "layer_window"),
                              ({"bit_table": [[4, 4], [300, 4]]}, "bit_table")):
            with self.subTest(words=words), self.assertRaisesRegex(ValueError, words):
                model(self.session, **change)
        seq = model(self.session).sequence(max_tokens=100, max_append=16)
        with self.assertRaisesRegex(ValueError, "^v: "):
            seq.append(0, 0, np.zeros((2, KV_HEADS, DIM), "f4"), np.zeros((1, KV_HEADS, DIM), "f4"))
        with self.assertRaisesRegex(TypeError, "^out: float32"):
            seq.attend(0, 0, np.zeros((1, Q_HEADS, DIM), "f4"), scale=1,
                       out=np.zeros((1, Q_HEADS, DIM), "f2"))


class Ownership(unittest.TestCase):
    def test_use_after_close_is_an_exception(self):
        with skvq.Session(None) as s, model(s) as m:
            with m.sequence(max_tokens=10, max_append=1) as seq:
                pass
            self.assertTrue(seq.closed)
            seq.close()
            for call in (seq.info, seq.snapshot, lambda: seq.commit([1]), seq.fork,
                         lambda: seq.attend(0, 0, np.zeros((1, Q_HEADS, DIM), "f4"), scale=1)):
                self.assertRaises(skvq.ClosedError, call)
            again = m.sequence(max_tokens=10, max_append=1)
            with self.assertRaises(skvq.CallerError):
                m.close()  # a sequence is open
            again.close()
        self.assertRaises(skvq.ClosedError, s.stats)
        self.assertRaises(skvq.ClosedError, lambda: m.sequence(max_tokens=10, max_append=1))
        s.close()

    def test_close_of_a_session_closes_what_it_has(self):
        s = skvq.Session(None)
        seq = model(s).sequence(max_tokens=10, max_append=1)
        s.close()
        self.assertTrue(seq.closed)
        self.assertRaises(skvq.ClosedError, seq.info)
        del seq
        gc.collect()

    def test_what_is_dropped_is_freed(self):
        s = skvq.Session(None)
        m = model(s)
        for _ in range(3):
            seq = m.sequence(max_tokens=10, max_append=1)
            seq.me = seq  # a cycle: only the collector finds it
            del seq
        gc.collect()
        m.close()  # an error while sequences are open
        s.close()

    def test_exit_with_everything_open_and_a_thread_in_a_call(self):
        code = ("import threading, numpy as np, skvq\nfrom support import *\n"
                "s = skvq.Session(None); seq = model(s).sequence(max_tokens=4000, max_append=128)\n"
                "k, v, q = kv(128)\nfeed(seq, k, v, 0, 128)\nstarted = threading.Event()\n"
                "def work():\n    while True:\n"
                "        seq.attend(0, 0, q[0], scale=SCALE); started.set()\n"
                "threading.Thread(target=work, daemon=True).start(); started.wait()\nprint('end')\n")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                                env=os.environ | {"PYTHONPATH": os.pathsep.join(
                                    [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])})
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "end\n", ""))


class Threads(unittest.TestCase):
    def test_a_call_lets_other_threads_run(self):
        """While one long attend is inside C, this thread goes on: with the GIL held it could not
        count between the call's begin and end."""
        s = skvq.Session(None)
        self.addCleanup(s.close)
        n = 2048
        seq = model(s, "k4v2").sequence(max_tokens=n, max_append=n)
        rows = np.random.default_rng(0).standard_normal((n, Q_HEADS, DIM), np.float32)
        for layer in range(LAYERS):
            seq.append(layer, 0, rows[:, :KV_HEADS], rows[:, KV_HEADS:])
        seq.commit(range(n))
        real, inside = s._core.api.attend, threading.Event()
        seen = []

        def attend(*args):
            # From here to the return only the C call runs in this thread.
            inside.set()
            code = real(*args)
            inside.clear()
            return code

        s._core.api = _Table(s._core.api, attend=attend)
        worker = threading.Thread(target=seq.attend, args=(0, 0, rows), kwargs=dict(scale=SCALE))
        worker.start()
        inside.wait(300)
        busy = 0
        while inside.is_set():
            busy += 1
            if busy == 1:
                # A [control] call on the same sequence must not overlap, and says so at once.
                with self.assertRaises(skvq.BusyError):
                    seq.truncate(0)
                with self.assertRaises(skvq.BusyError):
                    s.close()
                seen.append(s.stats())  # [control] of the session may
            time.sleep(0)
        worker.join()
        self.assertEqual(len(seen), 1, "the GIL was held through the whole call")
        seq.truncate(0)

    def test_nothing_is_opened_in_a_session_that_is_being_closed(self):
        s = skvq.Session(None)
        m = model(s)
        seq, tried = m.sequence(max_tokens=100, max_append=16), []
        real = seq._exclusive

        def exclusive():  # close() is between its look at what is open and the end
            for call in (lambda: m.sequence(max_tokens=100, max_append=16), s.close):
                with self.assertRaisesRegex(skvq.BusyError, "closing the session"):
                    call()
                tried.append(call)
            return real()

        seq._exclusive = exclusive
        s.close()
        self.assertEqual((len(tried), s.closed), (2, True))
        s.close()

    def test_a_failed_call_is_inside_until_its_error_is_read(self):
        s = skvq.Session(None)
        self.addCleanup(s.close)
        seq = model(s).sequence(max_tokens=100, max_append=16)
        real, running = s._core.api.last_error, []

        def last_error(*args):
            running.append(seq._running)
            return real(*args)

        s._core.api = _Table(s._core.api, last_error=last_error)
        row = np.zeros((1, Q_HEADS, DIM), np.float32)
        for call in (lambda: seq.append(LAYERS, 0, row[:, :KV_HEADS], row[:, :KV_HEADS]),
                     lambda: seq.attend(LAYERS, 0, row, scale=SCALE)):
            with self.assertRaises(skvq.CallerError):
                call()
        self.assertEqual((running, seq._running), ([1, 1], 0))

    def test_waiting_knows_high_descriptors_and_lost_ones(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 1100:
            self.skipTest(f"at most {hard} descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        reader, writer = os.pipe()
        high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1024)
        for fd in (reader, writer, high):
            self.addCleanup(os.close, fd)
        os.write(writer, b"x")
        asked = []

        class Asked:
            def fileno(self):
                asked.append(high)
                return high

        with mock.patch.object(session.time, "sleep") as slept:
            session._wait_readable(Asked(), 60)  # what is there is seen: no error, no wait
            slept.assert_not_called()
        self.assertEqual(asked, [high])
        with skvq.Session(None) as s:  # it has no descriptor: look again
            session._wait_readable(s, 0.001)


class _Table:
    """The plugin's table with an entry of its own."""

    def __init__(self, table, **own):
        self.__dict__.update(own)
        self._table = table

    def __getattr__(self, name):
        return getattr(self._table, name)


class Fork(unittest.TestCase):
    def test_a_child_is_refused_and_may_open_its_own(self):
        s = skvq.Session(None)
        m = model(s)
        seq = m.sequence(max_tokens=100, max_append=16)

        def child():
            row = np.zeros((1, KV_HEADS, DIM), np.float32)
            for call in (s.stats, seq.info, lambda: m.sequence(max_tokens=9, max_append=1),
                         lambda: seq.append(0, 0, row, row)):
                try:
                    call()
                    raise AssertionError("not refused")
                except skvq.ForkedError as e:
                    assert e.name == "SKVQ_EFORKED" and str(os.getppid()) in e.detail
            seq.close()
            s.close()
            with skvq.Session(None) as mine:
                model(mine).sequence(max_tokens=10, max_append=1).info()

        self.assertEqual(in_child(child), 0)
        self.assertEqual(seq.info().n_tokens, 0)
        s.close()

    def test_multiprocessing_by_fork_gets_the_exception(self):
        s = skvq.Session(None)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            with self.assertRaises(skvq.ForkedError) as e:
                pool.apply(_stats_of, (id(s),))
        self.assertEqual((e.exception.name, e.exception.code), ("SKVQ_EFORKED", 10))
        s.close()


def _stats_of(address):
    [s] = [o for o in gc.get_objects() if isinstance(o, skvq.Session) and id(o) == address]
    return s.stats()


if __name__ == "__main__":
    unittest.main()
