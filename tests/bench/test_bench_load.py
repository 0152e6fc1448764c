#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-load: it loads a real daemon, every byte it compared was right, and what it printed can be so.
How fast is no question for a test."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop(1)
SMALL = ("--layers", "4", "--kv-heads", "1")
KINDS = ("hello", "echo", "ping", "status", "match_small", "match", "match_512", "publish", "unpin_small",
         "unpin")
PEERS = ("private_fp16", "private_fp16_arc", "private_pages", "shared_fp16")


def bench(*args):
    return subprocess.run([os.path.join(BIN, "bench-load"), *args], capture_output=True, text=True,
                          timeout=240)


class Load(unittest.TestCase):
    def load(self, *args):
        before = set(os.listdir(tempfile.gettempdir()))
        r = bench("--json", *args)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        left = {f for f in set(os.listdir(tempfile.gettempdir())) - before
                if f.startswith("skvq-load")}
        self.assertEqual(left, set())
        return json.loads(r.stdout)

    def test_short(self):
        # 64 MiB: engines' pages go and come back.
        o = self.load("--seconds", "8", "--clients", "8", "--ram-mib", "64", *SMALL)
        self.assertEqual(o["clients"], 8)
        self.assertEqual(o["wrong_bytes"], 0)
        self.assertGreater(o["pages_compared"], 0)
        for phase in ("", "saturated_"):
            for kind in KINDS:
                with self.subTest(phase=phase, kind=kind):
                    self.assertGreater(o[f"{phase}{kind}_n"], 0)
                    self.assertGreater(o[f"{phase}{kind}_p50_us"], 1)
                    self.assertGreaterEqual(o[f"{phase}{kind}_p99_us"], o[f"{phase}{kind}_p50_us"])
            self.assertGreater(o[f"{phase}served"], 0)
            self.assertTrue(0 < o[f"{phase}hit_rate_tokens"] < 1)
            self.assertLess(o[f"{phase}tokens_recomputed"], o[f"{phase}tokens_asked"])
        self.assertGreaterEqual(o["p99_us"], o["p50_us"])
        self.assertGreater(o["attach512_p50_us"], 0)
        self.assertGreater(o["publish_gb_s"], 0)
        self.assertTrue(o["ram_bytes"] / 2 < o["arena_bytes"] <= o["ram_bytes"])
        self.assertGreater(o["idle_rss_bytes"], 1 << 20)
        self.assertLess(abs(o["fd_growth"]), 8)
        self.assertIsInstance(o["rss_growth_bytes"], int)
        self.assertTrue(0 <= o["idle_cpu_percent"] < 100)
        self.assertEqual(len(o["p50_us_over_time"]), 10)
        for peer in PEERS:
            self.assertTrue(0 <= o[f"{peer}_hit_rate_tokens"] < 1, peer)
        self.assertLess(o["private_fp16_pages"], o["private_pages_pages"])

    def test_one_engine_alone(self):
        """Nothing to share: one cache is as good as another if all fits, but for the window."""
        o = self.load("--seconds", "4", "--clients", "1", "--ram-mib", "512", "--scenario", "talk",
                      "--pace", "100000", *SMALL)
        self.assertGreater(o["served"], 20)
        self.assertAlmostEqual(o["private_fp16_hit_rate_tokens"], o["shared_fp16_hit_rate_tokens"])
        self.assertLessEqual(o["hit_rate_tokens"], o["shared_fp16_hit_rate_tokens"])
        # What was in flight at the end is asked for and not served.
        self.assertAlmostEqual(o["hit_rate_tokens"], o["private_pages_hit_rate_tokens"], delta=0.02)

    def test_what_makes_no_sense_is_refused(self):
        for args in (("--clients", "0"), ("--clients", "65"), ("--seconds", "x"), ("--pace", "-1"),
                     ("--scenario", "mail"), ("--profile", "k9v9"), ("extra",)):
            with self.subTest(args=args):
                r = bench(*args)
                self.assertEqual(r.returncode, 2)
                self.assertNotEqual(r.stderr, "")
        self.assertEqual(bench("--help").returncode, 0)


unittest.main()
