#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-evict counts what can be counted by hand, is the same for the same seed, and holds the
daemon's choice against LRU on traffic that does not change."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop(1)


def bench(*args):
    return subprocess.run([os.path.join(BIN, "bench-evict"), *args], capture_output=True, text=True,
                          timeout=240)


def traces(*args):
    result = bench("--json", *args)
    if result.returncode or result.stderr:
        raise AssertionError((result.returncode, result.stderr))
    return json.loads(result.stdout)["traces"]


def hits(requests, *args):
    """requests: (input_length, hash_ids). Percent found, by policy and size."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "some_trace.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for length, ids in requests:
                print(json.dumps({"timestamp": 0, "input_length": length, "output_length": 1,
                                  "hash_ids": ids}), file=file)
        (trace,) = traces("--trace", path, *args)
    return trace


class BenchEvict(unittest.TestCase):
    def test_counted_by_hand(self):
        # 1,024 tokens have 12 full pages, the first 512 only 6.
        trace = hits([(1024, [1, 2]), (1024, [1, 3]), (1024, [1, 2])], "--sizes", "100")
        self.assertEqual((trace["name"], trace["requests"], trace["pages"],
                          trace["footprint_pages"]), ("some_trace", 3, 36, 18))
        for policy, found in trace["hit_percent"].items():
            self.assertAlmostEqual(found[0], 100 * 18 / 36, places=3, msg=policy)
        self.assertAlmostEqual(trace["hit_percent_without_bound"], 50, places=3)

    def test_a_scan_of_ten_times_the_cache(self):
        # A prompt of 12 pages, asked for twice, after 504 pages once more; room for 51.
        prompt = (1024, [1, 2])
        scan = [(1024, [1000 + 2 * i, 1001 + 2 * i]) for i in range(42)]
        trace = hits([prompt, prompt, *scan, prompt], "--sizes", "10")
        pages = 3 * 12 + 42 * 12
        self.assertEqual(trace["pages"], pages)
        found = {policy: round(values[0] * pages / 100)
                 for policy, values in trace["hit_percent"].items()}
        self.assertEqual((found["lru"], found["skvqd"], found["optimal"]), (12, 24, 24))

    def test_policies_on_the_same_traffic(self):
        gains = []
        for trace in traces("--quick"):
            found = trace["hit_percent"]
            for policy, values in found.items():
                for i, value in enumerate(values):
                    where = (trace["name"], policy, trace["sizes_percent"][i])
                    self.assertLessEqual(value, trace["hit_percent_without_bound"] + 1e-3, where)
                    self.assertLessEqual(value, found["optimal"][i] + 1e-3, where)
            gains += [a - b for a, b in zip(found["skvqd"], found["lru"])]
        self.assertEqual(len(gains), 7 * 6)
        self.assertGreater(sum(gains) / len(gains), 0.3)
        self.assertGreater(min(gains), -1.5)

    def test_a_seed_makes_the_same_traffic(self):
        args = ("--quick", "--traffic", "mix", "--policy", "skvqd", "--sizes", "5")
        runs = [traces(*args, "--seed", seed)[0] for seed in ("7", "7", "8")]
        for run in runs:
            del run["seconds"]
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_what_makes_no_sense_is_refused(self):
        for args in (("--policy", "mru"), ("--traffic", "mail"), ("--sizes", "0"),
                     ("--sizes", "5,nan"), ("--sizes", "5,,6"), ("--block-tokens", "0"),
                     ("--requests", "x"), ("more",)):
            self.assertEqual(bench(*args).returncode, 2, args)
        self.assertEqual(bench("--trace", "no/such/file").returncode, 1)
        for text in ("{}", "not json", '{"input_length": 80, "hash_ids": 1}',
                     '{"input_length": 80, "hash_ids": ["a"]}',
                     '{"input_length": -80, "hash_ids": [1]}',
                     '{"input_length": 79, "hash_ids": [1]}', ""):
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                file.write(text + "\n")
                file.flush()
                result = bench("--trace", file.name)
                self.assertEqual(result.returncode, 1, text)
                self.assertIn(file.name, result.stderr)


if __name__ == "__main__":
    unittest.main()
