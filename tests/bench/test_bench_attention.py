#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-attention runs, refuses what makes no sense, and prints the keys it names in --help."""
import json
import os
import re
import subprocess
import sys
import unittest

BIN = sys.argv.pop(1)
SHORT = ["--quick", "--rounds", "1", "--tokens", "1024", "--working-set", "8", "--json"]
RATIOS = {f"speedup_{peer}_g{g}" for peer in ("f16", "q8_0", "q4_0") for g in (1, 4)}
KEYS = RATIOS | {"tier", "threads", "headline_tokens", "bandwidth_share_g1", "prefill_ratio_f16",
                 "shared_batch4_gain", "rotation_share"}


def bench(*args, cpu=None):
    environment = {k: v for k, v in os.environ.items() if k != "SKVQ_CPU"}
    if cpu:
        environment["SKVQ_CPU"] = cpu
    return subprocess.run([os.path.join(BIN, "bench-attention"), *args], capture_output=True,
                          text=True, timeout=240, env=environment)


class BenchAttention(unittest.TestCase):
    def measured(self, **kwargs):
        result = bench(*SHORT, **kwargs)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        found = json.loads(result.stdout.splitlines()[-1])
        self.assertLessEqual(KEYS, set(found))
        for key, value in found.items():
            if key not in ("tier", "profile"):
                self.assertGreater(value, 0, key)
        self.assertLess(found["profile_k8v8_error"], 0.05)
        self.assertEqual(found["headline_tokens"], 1024)
        return found

    def test_a_short_run_prints_every_key(self):
        self.measured()

    def test_a_lower_tier_is_told(self):
        self.assertEqual(self.measured(cpu="ref")["tier"], "ref")

    def test_help_names_the_keys(self):
        text = bench("--help").stdout
        for key in KEYS:
            self.assertRegex(text, rf"\b{re.escape(key)}\b")

    def test_wrong_usage_is_status_2(self):
        for args in (["--rounds", "0"], ["--tokens", "100"], ["--nonsense"], ["extra"],
                     ["--threads", "1x"], ["--only", "nothing"]):
            with self.subTest(args=args):
                result = bench(*args)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertTrue(result.stderr)
        self.assertEqual(bench("--quick", cpu="z80").returncode, 2)


if __name__ == "__main__":
    unittest.main(verbosity=1)
