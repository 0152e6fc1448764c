#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""chaos, one round of each theme: nothing wrong, nothing left, and every kind of fault was there."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

RSS_MIB = sys.argv.pop()
BIN = sys.argv.pop()
SEED = os.environ.get("SKVQ_SEED", "1")
NEEDS_MOUNTS = "fault_disk_full"


def run(program, *args, **env):
    return subprocess.run([os.path.join(BIN, program), *args], capture_output=True, text=True,
                          timeout=280, env={**os.environ, **env})


class Chaos(unittest.TestCase):
    def test_a_round_of_each_theme(self):
        with tempfile.TemporaryDirectory() as folder:
            r = run("chaos", "--seed", SEED, "--themes", "1", "--round", "5", "--json", "--rss-mib",
                    RSS_MIB, "--folder", folder)
            self.assertEqual(os.listdir(folder), [])
        print(r.stderr, file=sys.stderr)
        self.assertEqual(r.returncode, 0)
        found = json.loads(r.stdout)
        for key in ("wrong_bytes", "leaks", "hangs", "daemon_failures", "client_failures",
                    "bad_answers"):
            self.assertEqual(found[key], 0, key)
        for key in ("operations", "pages_published", "pages_matched", "daemon_restores",
                    "daemon_spills", "daemon_evictions", "daemon_store_crc_failures"):
            self.assertGreater(found[key], 0, key)
        for key, value in found.items():
            if key.startswith("fault") and not (key == NEEDS_MOUNTS and "no mounts" in r.stderr):
                self.assertGreater(value, 0, key)

    def test_a_page_that_is_not_what_it_was_is_found(self):
        """Clients of two kinds that publish different bytes for the same tokens see each other."""
        with tempfile.TemporaryDirectory() as folder:
            r = run("chaos", "--theme", "calm", "--seconds", "2", "--round", "2", "--json", "--folder",
                    folder, "--rss-mib", RSS_MIB, "--lie")
        self.assertEqual(r.returncode, 1)
        self.assertGreater(json.loads(r.stdout)["wrong_bytes"], 0)

    def test_what_makes_no_sense_is_refused(self):
        self.assertEqual(run("chaos", "--seconds", "0").returncode, 2)
        self.assertEqual(run("chaos", "--theme", "none-such").returncode, 2)
        self.assertEqual(run("chaos", "--help").returncode, 0)

    def test_faults_are_in_their_own_daemon_alone(self):
        with open(os.path.join(BIN, "skvqd"), "rb") as f:
            self.assertNotIn(b"SKVQD_FAULTS", f.read())
        with tempfile.TemporaryDirectory() as folder:
            for text in ("eio=x", "nonsense=1", "crash=nowhere", "eio"):
                r = run("skvqd-faults", "--socket", folder + "/s", "--store-folder", folder + "/d",
                        SKVQD_FAULTS=text)
                self.assertEqual(r.returncode, 1, text)
                self.assertIn("SKVQD_FAULTS", r.stderr)


if __name__ == "__main__":
    unittest.main()
