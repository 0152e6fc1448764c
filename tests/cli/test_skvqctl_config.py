#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvqctl config, tenants and quota, on a daemon with two tenants; and the page that says what they do."""
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
import unittest

DOCS = sys.argv.pop()
BIN = sys.argv.pop()
CHANGE = {"key", "from", "to", "restart"}
TENANT = {"name", "connections", "connections_max", "namespaces", "namespaces_max", "pages", "bytes",
          "bytes_held", "bytes_min", "bytes_max", "pins", "pins_max", "disk_bytes", "disk_bytes_max",
          "calibration_bytes", "calibration_bytes_max", "evictions", "refusals", "tokens_asked",
          "tokens_matched"}


class Steering(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path, self.conf = (os.path.join(self.folder.name, name) for name in ("s", "skvqd.conf"))
        self.text = (f"[socket]\npath = {self.path}\n[memory]\nram_max = 64M\n"
                     f"[tenant chat]\nsocket = {self.path}.chat\nram_min = 8M\n"
                     f"[tenant batch]\nsocket = {self.path}.batch\nram_max = 32M\n")
        self.write(self.text)
        self.daemon = subprocess.Popen([os.path.join(BIN, "skvqd"), "--config", self.conf],
                                       stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.stop)
        deadline = time.monotonic() + 20
        while self.ctl("ping").returncode:
            self.assertIsNone(self.daemon.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait(timeout=20)

    def write(self, text):
        with open(self.conf, "w", encoding="ascii") as f:
            f.write(text)

    def ctl(self, *args, socket=None):
        return subprocess.run([os.path.join(BIN, "skvqctl"), "-s", socket or self.path, *args], check=False,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)

    def good(self, *args):
        result = self.ctl(*args)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def json(self, *args):
        return json.loads(self.good(*args, "--json"))

    def tenants(self):
        return {t["name"]: t for t in self.json("tenants")["tenants"]}

    def test_show_prints_a_file_that_is_the_same(self):
        self.write(self.good("config", "show"))
        self.assertEqual(self.good("config", "check", self.conf), "nothing differs from what runs\n")
        subprocess.run([os.path.join(BIN, "skvqd"), "--config", self.conf, "--check-config"], check=True)
        shown = self.json("config", "show")
        self.assertEqual(set(shown), {"text", "keys"})
        self.assertIn("[tenant chat]", shown["text"])
        live = {k["key"]: k["live"] for k in shown["keys"]}
        self.assertIsNone(live["workers.threads"])
        self.assertIn("background", live["memory.ram_max"])

    def test_check_changes_nothing_and_reload_does(self):
        self.write(self.text + "pins_max = 9\n[workers]\nthreads = 3\n[memory]\nram_max = 96M\n")
        told = ("memory.ram_max: 64M -> 96M\ntenant batch.pins_max: 0 -> 9\n"
                "workers.threads: 2 -> 3; not while it runs: restart the daemon for it\n")
        self.assertEqual(self.good("config", "check", self.conf), told)
        self.assertEqual(self.tenants()["chat"]["bytes_max"], 64 << 20)
        self.assertEqual(self.good("config", "reload", self.conf), told)
        self.assertEqual(self.tenants()["chat"]["bytes_max"], 96 << 20)
        self.assertEqual(self.tenants()["batch"]["pins_max"], 9)
        again = self.json("config", "reload", self.conf)
        self.assertEqual(again, {"done": True, "changes": [
            {"key": "workers.threads", "from": "2", "to": "3", "restart": True}]})

    def test_a_wrong_file_is_found_and_refused(self):
        self.write(self.text + "pins_max = 9\nnonsense = 1\n")
        result = self.ctl("config", "check", self.conf)
        self.assertEqual((result.returncode, result.stderr), (6, ""))
        self.assertIn(f"{self.conf}:12: there is no key", result.stdout)
        result = self.ctl("config", "check", self.conf, "--json")
        self.assertEqual((result.returncode, result.stderr), (6, ""))
        self.assertIn(":12:", json.loads(result.stdout)["error"])
        result = self.ctl("config", "reload", self.conf)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertEqual(len(result.stderr.splitlines()), 1)
        self.assertIn(":12:", result.stderr)
        self.assertEqual(self.tenants()["batch"]["pins_max"], 0)
        for file in (self.conf + "-none", self.folder.name):
            result = self.ctl("config", "check", file)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn(file, result.stderr)
        result = self.ctl("config", "check", self.conf, socket=self.path + "-none")
        self.assertEqual(result.returncode, 3)
        self.assertIn(f"skvqd --config '{self.conf}' --check-config", result.stderr)

    def test_more_than_a_file_may_have(self):
        self.write("; \n" * (1 << 19))
        result = self.ctl("config", "reload", self.conf)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("more than 1 MiB", result.stderr)

    def test_quota(self):
        told = self.good("quota", "set", "chat", "ram_min=16M", "pins_max=100", "--yes")
        self.assertIn("tenant chat.ram_min: 8M -> 16M\n", told)
        self.assertIn("tenant chat.pins_max: 0 -> 100\n", told)
        self.assertIn("until the daemon is restarted or reloaded", told)
        # Less wants --yes; more does not.
        for setting in ("pins_max=50", "ram_max=16M", "ram_min=1M"):
            result = self.ctl("quota", "set", "chat", setting)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn("lowers tenant chat." + setting.split("=", maxsplit=1)[0], result.stderr)
            self.assertIn("--yes", result.stderr)
        self.assertEqual(self.tenants()["chat"]["pins_max"], 100)
        self.good("quota", "set", "chat", "pins_max=0", "connections_max=32", "ram_max=64M")
        changed = self.json("quota", "set", "chat", "ram_max=32M", "--yes")
        self.assertTrue(changed["done"])
        self.assertEqual([set(c) for c in changed["changes"]], [CHANGE])
        chat = self.tenants()["chat"]
        self.assertEqual((chat["bytes_min"], chat["bytes_max"], chat["pins_max"]), (16 << 20, 32 << 20, 0))
        self.good("config", "reload", self.conf)
        chat = self.tenants()["chat"]
        self.assertEqual((chat["bytes_min"], chat["bytes_max"]), (8 << 20, 64 << 20))
        for args, says in ((["nobody", "ram_max=1M"], "no tenant"), (["chat", "ram_min=1G"], "ram_min"),
                           (["chat", "ram_max=1Q"], "expected")):
            result = self.ctl("quota", "set", *args, "--yes")
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn(says, result.stderr)

    def test_quota_asks_on_a_terminal(self):
        for answer, status in ((b"n\n", 1), (b"y\n", 0)):
            here, there = pty.openpty()
            with subprocess.Popen([os.path.join(BIN, "skvqctl"), "-s", self.path, "quota", "set", "batch",
                                   "ram_max=16M"], stdin=there, stderr=there,
                                  stdout=subprocess.DEVNULL) as process:
                os.close(there)
                os.write(here, answer)
                self.assertEqual(process.wait(timeout=30), status)
            os.close(here)
            self.assertEqual(self.tenants()["batch"]["bytes_max"], (32 if status else 16) << 20)

    def test_tenants(self):
        subprocess.run([os.path.join(BIN, "skvq-bench-publish"), "--socket", self.path + ".chat", "--pages",
                        "16", "--layers", "1", "--kv-heads", "1", "--chains", "1"], check=True,
                       capture_output=True, timeout=60)
        rows = self.tenants()
        self.assertEqual({name: set(row) for name, row in rows.items()}, {"chat": TENANT, "batch": TENANT})
        self.assertGreater(rows["chat"]["pages"], 0)
        lines = self.good("tenants").splitlines()
        self.assertEqual(len(lines), 3)
        self.assertRegex(lines[0], "^TENANT +CONNECTIONS .* GUARANTEED +MAX .* REFUSED$")
        self.assertRegex(lines[1], r"^chat +0/32 +1/32 .* 8\.0 MiB +64\.0 MiB ")
        # A tenant sees itself.
        result = self.ctl("tenants", "--json", socket=self.path + ".batch")
        self.assertEqual([t["name"] for t in json.loads(result.stdout)["tenants"]], ["batch"])

    def test_the_page_lists_what_can_change(self):
        with open(os.path.join(DOCS, "operations.md"), encoding="utf-8") as f:
            page = f.read()
        section = page.split("## Changing the configuration of a running daemon", 1)[1].split("\n## ", 1)[0]
        said = {}
        for keys, then in re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.M):
            for key in re.findall(r"`([a-z_.]+)`", keys):
                self.assertNotIn(key, said)
                said[key] = then
        live = {k["key"]: k["live"] for k in self.json("config", "show")["keys"] if k["live"]}
        self.assertEqual(said, live)


if __name__ == "__main__":
    unittest.main()
