#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-store runs, prints the keys it names in --help, and leaves nothing behind."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop(1)
KEYS = {"store_put_mib_s", "store_get_mib_s", "raw_write_mib_s", "raw_read_mib_s",
        "restore_share_of_raw", "spill_share_of_raw", "restart_first_hit_s", "write_amplification"}


def bench(*args):
    return subprocess.run([os.path.join(BIN, "bench-store"), *args], capture_output=True, text=True,
                          timeout=240)


class BenchStore(unittest.TestCase):
    def test_a_short_run_by_each_engine(self):
        for engine in ([], ["--threads"]):
            with tempfile.TemporaryDirectory(dir=".") as folder:
                result = bench("--folder", folder, "--quick", "--rounds", "1", "--mib", "16",
                               "--json", *engine)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                found = json.loads(result.stdout)
                self.assertLessEqual(KEYS, set(found))
                for key, value in found.items():
                    self.assertGreater(value, 0, key)
                self.assertLess(found["write_amplification"], 1.2)
                self.assertEqual(os.listdir(folder), [])

    def test_what_makes_no_sense_is_refused(self):
        self.assertEqual(bench().returncode, 2)
        self.assertEqual(bench("--folder", ".", "--record-kib", "9").returncode, 2)
        self.assertEqual(bench("--folder", ".", "--depth", "0").returncode, 2)
        self.assertEqual(bench("--folder", "./no/such/folder").returncode, 1)


if __name__ == "__main__":
    unittest.main()
