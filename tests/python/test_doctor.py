#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""python -m skvq doctor, as people and scripts meet it."""
import json
import os
import subprocess
import sys
import unittest

from support import Daemon


def doctor(*args, **env):
    return subprocess.run([sys.executable, "-m", "skvq", *args], capture_output=True, text=True,
                          timeout=300, env=os.environ | env)


class Doctor(unittest.TestCase):
    def test_with_a_daemon_all_is_well(self):
        with Daemon() as daemon:
            result = doctor("doctor", "--socket", daemon.socket, "--json")
        report = json.loads(result.stdout)
        self.assertEqual(report["plugin"], os.environ["SKVQ_PLUGIN"])
        self.assertEqual((report["abi"].split(".")[0], report["daemon"], report["memfd"]), ("1", "attached", True))
        self.assertNotEqual(int(report["boot_id"], 16), 0)
        self.assertTrue(report["engines"]["numpy"])
        # A scalar CPU or few open files is this machine's problem, and told as one.
        self.assertEqual(result.returncode, 1 if report["problems"] else 0)
        self.assertFalse([p for p in report["problems"] if "skvqd" in p["what"]])

    def test_each_problem_has_its_remedy(self):
        result = doctor("doctor", SKVQD_SOCKET="/nowhere/skvqd.sock")
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        self.assertIn("SKVQ_ENODAEMON", result.stdout)
        self.assertIn("remedy start it: skvqd --socket /nowhere/skvqd.sock", result.stdout)
        result = doctor("doctor", "--json", SKVQ_PLUGIN="/nowhere/plugin.so")
        [first, *_] = json.loads(result.stdout)["problems"]
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nowhere/plugin.so", first["what"])
        self.assertIn("SKVQ_PLUGIN", first["remedy"])

    def test_usage(self):
        self.assertEqual(doctor().returncode, 2)


if __name__ == "__main__":
    unittest.main()
