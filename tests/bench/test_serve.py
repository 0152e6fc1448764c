#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What of tools/bench/serve needs no engine: who is asked what, and the plot.

  test_serve.py SOURCE
"""
import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest

SOURCE = sys.argv.pop(1)
BENCH = os.path.join(SOURCE, "tools", "bench")
sys.path.insert(0, BENCH)
import serve_load  # noqa: E402
from serving import Failed  # noqa: E402


class Load(unittest.TestCase):
    def test_both_engines_meet_every_document(self):
        plan = serve_load.plan_of(["a", "b", "c"], ["q0", "q1"], 9, 4, 2, seed=1)
        for requests in plan.requests:
            self.assertEqual(len(requests), 9)
            self.assertEqual([sum(d == i for d, _ in requests) for i in range(3)], [3, 3, 3])
        again = serve_load.plan_of(["a", "b", "c"], ["q0", "q1"], 9, 4, 2, seed=1)
        self.assertEqual(plan, again)

    def test_every_question_is_asked_once_and_so_many_at_a_time(self):
        plan = serve_load.plan_of(["a", "b"], ["q0", "q1", "q2"], 6, 4, 2, seed=2)
        asked, lock = [], threading.Lock()
        at_once, most = [0, 0], [0, 0]
        # Both clients of an engine are with it at some time, or the test would wait for ever.
        both = [threading.Barrier(2, timeout=30) for _ in range(2)]

        def ask(engine, document, question):
            with lock:
                at_once[engine] += 1
                most[engine] = max(most[engine], at_once[engine])
            both[engine].wait()
            with lock:
                at_once[engine] -= 1
                asked.append((engine, document, question))
            return .25, 1.0
        got = serve_load.run(plan, ask)
        want = [(e, "ab"[d], q) for e in range(2) for d, q in plan.requests[e]]
        self.assertEqual(sorted(asked), sorted(want))
        self.assertEqual(most, [2, 2])
        self.assertEqual((got["requests"], got["ttft_p50_s"], got["ttft_max_s"]), (12, .25, .25))
        self.assertAlmostEqual(got["tokens_per_s"], 48 / got["seconds"])

    def test_a_request_that_fails_ends_it(self):
        plan = serve_load.plan_of(["a"], ["q"], 50, 4, 2, seed=3)

        def ask(engine, document, question):
            raise Failed("no")
        with self.assertRaisesRegex(Failed, "no"):
            serve_load.run(plan, ask)

    def test_documents_differ_from_the_first_word_on(self):
        found = serve_load.texts(3, 200)
        self.assertEqual(len({text.split(".")[0] for text in found}), 3)


class Plot(unittest.TestCase):
    def plot(self, report):
        with tempfile.TemporaryDirectory() as folder:
            path, picture = os.path.join(folder, "r.json"), os.path.join(folder, "p.svg")
            with open(path, "w", encoding="utf-8") as f:
                f.write(report)
            done = subprocess.run([sys.executable, os.path.join(BENCH, "serve-plot"), "-o", picture, path],
                                  capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 77:
                self.skipTest(done.stderr)
            drawn = ""
            if os.path.exists(picture):
                with open(picture, encoding="utf-8") as f:
                    drawn = f.read()
            return done, drawn

    def test_a_picture(self):
        done, drawn = self.plot(json.dumps({
            "vllm_ttft_plain_cold_s": [60, 70], "vllm_ttft_skvqd_shared_s": [1, 2],
            "vllm_load_none_tokens_per_s": [3], "vllm_load_skvqd_tokens_per_s": [9, 10, 11]}))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for text in ("read by another server", "tokens a second, both engines", "nothing kept"):
            self.assertIn(f"<!-- {text} -->", drawn)

    def test_what_is_no_report(self):
        for text, sentence in (("{}", "has no figures"), ("nonsense", "r.json")):
            done, drawn = self.plot(text)
            self.assertEqual((done.returncode, drawn), (2, ""))
            self.assertIn(sentence, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
