#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvq.Batch: rows of several sequences in one array are what the sequences' own calls give."""
import threading
import unittest

import numpy as np

import skvq
from support import DIM, KV_HEADS, LAYERS, Q_HEADS, SCALE, feed, kv, model

LENGTHS = (300, 0, 77)  # tokens before the batch
COUNTS = (1, 16, 5)


class Batches(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.k, cls.v, cls.q = kv(400)

    def setUp(self):
        self.session = skvq.Session(None)
        self.addCleanup(self.session.close)
        self.model = model(self.session, "k4v2")

    def sequences(self):
        seqs = []
        for n in LENGTHS:
            seqs.append(self.model.sequence(max_tokens=1000, max_append=128))
            feed(seqs[-1], self.k, self.v, 0, n)
        return seqs

    def rows(self, source, layer, starts, total):
        """The rows of all sequences in one array; what is no sequence's is NaN."""
        out = np.full((total, *source.shape[2:]), np.nan, np.float32)
        for start, n, count in zip(starts, LENGTHS, COUNTS):
            out[start:start + count] = source[layer, n:n + count]
        return out

    def test_rows_anywhere_in_an_array(self):
        for starts, total in ((None, sum(COUNTS)), ((30, 2, 20), 40)):
            for nth, run in ((1, None), (3, None), (3, in_threads), (2, in_threads)):
                with self.subTest(starts=starts, nth=nth):
                    seqs, alone = self.sequences(), self.sequences()
                    batch = skvq.Batch(seqs, LENGTHS, COUNTS, starts=starts, scale=SCALE, nth=nth)
                    self.assertEqual(batch.starts, list(starts or (0, 1, 17)))
                    for layer in range(LAYERS):
                        k, v, q = (self.rows(x, layer, batch.starts, total) for x in (self.k, self.v, self.q))
                        out = np.full((total, Q_HEADS, DIM), 7, np.float32)
                        self.assertEqual(batch.append(layer, k, v), {})
                        batch.attend(layer, q, out, run)
                        mine = np.zeros(total, bool)
                        for seq, start, n, count in zip(alone, batch.starts, LENGTHS, COUNTS):
                            rows = slice(start, start + count)
                            mine[rows] = True
                            seq.append(layer, n, k[rows], v[rows])
                            want = seq.attend(layer, n, q[rows], scale=SCALE)
                            np.testing.assert_allclose(out[rows], want, rtol=1e-4, atol=1e-5)
                        self.assertTrue((out[~mine] == 7).all())
                    for seq, other, count in zip(seqs, alone, COUNTS):
                        seq.commit(range(count))
                        other.commit(range(count))
                        self.assertEqual(len(seq), len(other))

    def test_what_fails_is_named_and_the_rest_goes_on(self):
        seqs = self.sequences()
        batch = skvq.Batch(seqs, LENGTHS, COUNTS, scale=SCALE)
        k, v = (self.rows(x, 0, batch.starts, sum(COUNTS)) for x in (self.k, self.v))
        k[batch.starts[1]] = np.nan
        failed = batch.append(0, k, v)
        self.assertEqual([(i, e.name) for i, e in failed.items()], [(1, "SKVQ_EINVAL")])
        others = [0, 2]
        rest = skvq.Batch([seqs[i] for i in others], [LENGTHS[i] for i in others], [COUNTS[i] for i in others],
                          starts=[batch.starts[i] for i in others], scale=SCALE)
        out = np.zeros((sum(COUNTS), Q_HEADS, DIM), np.float32)
        rest.attend(0, self.rows(self.q, 0, batch.starts, sum(COUNTS)), out)
        self.assertTrue(out[batch.starts[2]:].any() and not out[batch.starts[1]:batch.starts[2]].any())
        self.assertIn("SKVQ_", str(rest.append(0, k, v)[0]))  # these rows are there already
        seqs[0].close()
        with self.assertRaises(skvq.ClosedError):
            rest.attend(0, np.zeros((sum(COUNTS), Q_HEADS, DIM), np.float32), out)

    def test_errors_of_shares_are_raised(self):
        seqs = self.sequences()
        batch = skvq.Batch(seqs, [n + 50 for n in LENGTHS], COUNTS, scale=SCALE, nth=2)
        q = np.zeros((sum(COUNTS), Q_HEADS, DIM), np.float32)
        with self.assertRaises(skvq.CallerError):
            batch.attend(0, q, np.empty_like(q), in_threads)
        for seq in seqs:
            seq.close()  # nobody is inside

    def test_arguments(self):
        one, two, three = self.sequences()
        other = model(self.session, "k8v8").sequence(max_tokens=10, max_append=10)
        for seqs, positions, counts, more in (
                ([], [], [], {}), ([one], [0, 1], [1], {}), ([one, one], [0, 0], [1, 1], {}),
                ([one], [0], [0], {}), ([one], [0], [1], {"starts": [-1]}), ([one], [0], [1], {"nth": 0}),
                ([one], [0], [1], {"starts": [0, 1]}), ([one, other], [0, 0], [1, 1], {})):
            with self.subTest(seqs=len(seqs), more=more), self.assertRaises(ValueError):
                skvq.Batch(seqs, positions, counts, scale=SCALE, **more)
        batch = skvq.Batch([one, two], [300, 0], [1, 2], scale=SCALE)
        good = np.zeros((3, KV_HEADS, DIM), np.float32)
        for bad in (good[:2], good[:, :1], good[..., :32], good.astype(np.float64), [1]):
            with self.assertRaises((TypeError, ValueError)):
                batch.append(0, bad, good)
        q = np.zeros((3, Q_HEADS, DIM), np.float32)
        with self.assertRaises(TypeError):
            batch.attend(0, q, q.astype(np.float16))


def in_threads(work, n):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


if __name__ == "__main__":
    unittest.main()
