#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/bench/tier: it measures a real daemon with a disk, and what it printed can be so."""
import json
import subprocess
import sys
import tempfile
import unittest

TOOL, BUILD = sys.argv.pop(1), sys.argv.pop(1)


class Tier(unittest.TestCase):
    def test_quick(self):
        with tempfile.TemporaryDirectory() as folder:
            out = subprocess.run([sys.executable, TOOL, "--folder", folder, "--build-dir", BUILD,
                                  "--quick", "--gib", "0.05", "--json"],
                                 check=True, capture_output=True, text=True, timeout=300).stdout
        result = json.loads(out)
        self.assertGreater(result["match512_p99_us"], result["match512_p50_us"])
        self.assertGreater(result["spill_mb_s"], 0)
        self.assertGreater(result["restart_pages"], 8 * 512)
        self.assertEqual(result["first_hit_pages"], 1)
        self.assertLess(result["restart_first_hit_s"], 10)
        self.assertEqual(result["restore_32k_8b_pages"], 400)
        self.assertGreater(result["restored_pages"], 0)


unittest.main()
