#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-decode fills all caches, compares both sides, and prints the keys it promises."""
import json
import os
import subprocess
import sys
import unittest

BIN, MODEL = sys.argv.pop(1), sys.argv.pop(1)
BACKEND = os.path.join(BIN, "..", "lib", "libggml-skvq.so")  # needs a header of ggml's to be built
TYPES = ("f16", "q8_0", "q4_0")


def bench(*args):
    return subprocess.run([os.path.join(BIN, "bench-decode"), *args], capture_output=True,
                          text=True, timeout=240)


class BenchDecode(unittest.TestCase):
    def test_a_short_run_prints_every_key(self):
        # 9k is beyond the context the model was trained for.
        result = bench("--model", MODEL, "--contexts", "1,9", "--threads", "1", "--rounds", "1",
                       "--steps", "1", "--block", "128", "--profile", "k8v8", "--json",
                       *(("--ggml-backend", BACKEND) if os.path.exists(BACKEND) else ()))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        found = json.loads(result.stdout.splitlines()[-1])
        wanted = {f"tokens_per_s_{who}_{n}" for who in ("skvq", *TYPES) for n in ("1k", "9k")}
        wanted |= {f"tokens_per_s_ratio_{t}_{n}" for t in TYPES for n in ("1k", "9k")}
        if os.path.exists(BACKEND):
            wanted |= {f"{key}_{n}" for key in ("tokens_per_s_ggml", "ggml_ratio_f16", "kld_ggml")
                       for n in ("1k", "9k")}
        self.assertEqual(set(found) - wanted, {"kld_f16_1k", "kld_f16_9k", "profile", "rounds"})
        for key in wanted:
            self.assertGreater(found[key], 0, key)
        # Both sides have the same keys and values in the same places, or this would be far off.
        self.assertLess(found["kld_f16_1k"], 0.5)
        self.assertLess(found["kld_f16_9k"], 0.5)
        self.assertLess(found.get("kld_ggml_1k", 0), 0.5)
        self.assertLess(found.get("kld_ggml_9k", 0), 0.5)

    def test_wrong_usage_is_status_2(self):
        for args in ([], ["--model", MODEL, "--contexts", "0"], ["--model", MODEL, "--threads", "1,"],
                     ["--model", MODEL, "extra"], ["--nonsense"]):
            with self.subTest(args=args):
                result = bench(*args)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertTrue(result.stderr)

    def test_a_file_that_is_no_model(self):
        result = bench("--model", os.path.join(BIN, "bench-decode"))
        self.assertEqual(result.returncode, 1)
        self.assertTrue(result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
