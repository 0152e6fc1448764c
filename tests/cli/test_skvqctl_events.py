#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvqctl events over a whole daemon with a disk: what is told of pages that come, go and come back."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = sys.argv.pop(1)
WAIT = 60


def ctl(*args):
    return subprocess.run([os.path.join(BIN, "skvqctl"), *args], capture_output=True, text=True,
                          timeout=WAIT)


class Daemon(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self.folder.name, "s")
        self.listeners = []
        self.daemon = subprocess.Popen(
            [os.path.join(BIN, "skvqd"), "--socket", self.socket, "--ram-max", "4M", "--store-folder",
             os.path.join(self.folder.name, "store"), "--store-capacity-bytes", "1G",
             "--store-touch-entries", "0", "--store-spill-percent", "100"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT
        while ctl("ping", "-s", self.socket).returncode:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)

    def tearDown(self):
        for process in self.listeners:
            process.kill()
            process.communicate()
        self.daemon.terminate()
        self.daemon.wait(timeout=WAIT)
        self.folder.cleanup()

    def listen(self, *args):
        """Runs until it has said so, for which something is made to happen."""
        process = subprocess.Popen([os.path.join(BIN, "skvqctl"), "-s", self.socket, "events", *args],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.listeners.append(process)
        deadline = time.monotonic() + WAIT
        while True:
            pins = json.loads(ctl("-s", self.socket, "pins", "--json").stdout)["pins"]
            if any(p["pid"] == process.pid for p in pins):
                return process
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)

    def publish(self, pages, layers=8):
        subprocess.run([os.path.join(BIN, "skvq-bench-publish"), "--socket", self.socket, "--pages",
                        str(pages), "--layers", str(layers), "--chains", "1", "--json"], check=True,
                       capture_output=True, timeout=WAIT)

    def end(self, process):
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()  # not communicate(): that leaves out what readline() has taken in
        self.assertEqual((process.wait(timeout=WAIT), process.stderr.read()), (0, ""))
        process.stdout.close()
        process.stderr.close()
        self.listeners.remove(process)
        return out


class Events(Daemon):
    def test_json_of_pages_that_come_and_go(self):
        process = self.listen("--json", "--tokens")
        ctl("-s", self.socket, "bench", "-p", "4", "--yes")
        events = []
        # Three times what fits: all goes to disk, and most from memory.
        for _ in range(6):
            self.publish(30)
        while sum(e["kind"] == "removed" for e in events) < 20 or \
                sum(e.get("tier") == "disk" for e in events) < 20:
            events.append(json.loads(process.stdout.readline()))
        rest = self.end(process)
        events += [json.loads(line) for line in rest.splitlines()]
        self.assertEqual([e["number"] for e in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[0]["kind"], "namespace_opened")
        self.assertLessEqual({"tenant", "ns", "model_name", "identity"}, set(events[0]))
        memory, stored = set(), set()
        for e in events:
            if "digest" not in e:
                continue
            self.assertRegex(e["digest"], "^[0-9a-f]{64}$")
            self.assertEqual(e["tokens"], 80)
            if e["kind"] == "stored" and e["tier"] == "memory":
                self.assertEqual(len(e["token_ids"]), 80)
                self.assertEqual(e["why"], "published")
                self.assertTrue(e["position"] == 0 or e["parent"] in stored)
                memory.add(e["digest"])
                stored.add(e["digest"])
            elif e["kind"] == "removed" and e["tier"] == "memory":
                self.assertEqual(e["why"], "evicted")
                memory.remove(e["digest"])  # each once, and none that had not come
            elif e["kind"] == "stored":
                self.assertEqual(e["tier"], "disk")
                self.assertIn(e["digest"], stored)
        status = json.loads(ctl("-s", self.socket, "status", "--json").stdout)
        self.assertEqual(len(memory), status["pages"])

    def test_text_is_a_line_an_event(self):
        process = self.listen("--matches", "--count", "7")
        ctl("-s", self.socket, "bench", "-p", "4", "--yes")
        out, err = process.communicate(timeout=WAIT)
        self.assertEqual((process.returncode, err), (0, ""))
        lines = out.splitlines()
        self.assertEqual(len(lines), 7)
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [a-z_]+( [a-z_]+=\S+)+$")
        self.assertIn("namespace_opened tenant=default ns=1", lines[0])
        # While it is published, it can be on its way to disk.
        self.assertTrue(any(re.search("stored .*tier=memory page=0/1 position=0 digest=", x) for x in lines))

    def test_the_time_may_be_over(self):
        r = ctl("-s", self.socket, "events", "--for", "1")
        self.assertEqual((r.returncode, r.stdout, r.stderr), (0, "", ""))

    def test_a_daemon_that_ends_is_told(self):
        process = self.listen("--json")
        self.daemon.terminate()
        out, err = process.communicate(timeout=WAIT)
        self.assertEqual(process.returncode, 3)
        self.assertEqual(json.loads(out)["why"], "daemon_ends")
        self.assertIn("closed the connection", err)

    def test_too_many_listeners(self):
        for _ in range(4):
            self.listen()
        r = ctl("-s", self.socket, "events")
        self.assertEqual((r.returncode, r.stdout), (1, ""))
        self.assertIn("SKVQ_ELIMIT", r.stderr)
        self.assertEqual(len(r.stderr.splitlines()), 1)

    def test_wrong_usage(self):
        for args in (["x"], ["--count", "0"], ["--for", "x"]):
            r = ctl("-s", self.socket, "events", *args)
            self.assertEqual((r.returncode, r.stdout), (2, ""))


if __name__ == "__main__":
    unittest.main()
