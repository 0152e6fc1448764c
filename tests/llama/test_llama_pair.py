#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two real engines, one real daemon, one real model: sharing changes no bit of any logit, and nobody's
death is noticed by anybody else.

  test_llama_pair.py BIN_DIR MODEL.gguf TEXT
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN, MODEL, TEXT = sys.argv[1:4]
LIMIT_S = 240
STEPS = 24


def words(n):
    with open(TEXT, encoding="utf-8") as f:
        return " ".join(f.read().split()[:n])


class Pair(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="skvq-pair.", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.socket = os.path.join(self.folder, "s")
        self.document = words(420)
        self.daemon = None
        self.addCleanup(self.stop_daemon, signal.SIGTERM)
        self.start_daemon()

    def start_daemon(self):
        self.daemon = subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", self.socket],
                                       stderr=subprocess.PIPE, text=True)
        while "event=ready" not in (line := self.daemon.stderr.readline()):
            self.assertTrue(line, "skvqd ended before it was ready")

    def stop_daemon(self, sig):
        if self.daemon:
            self.daemon.send_signal(sig)
            self.daemon.wait(timeout=10)
            self.daemon.stderr.close()
            self.daemon = None

    def command(self, name, question, *args):
        """An engine on the document and a question; its report and logits go to files by name."""
        base = os.path.join(self.folder, name)
        return [os.path.join(BIN, "skvq-llama"), "--threads", "1", "--no-calibration", "--model", MODEL,
                "--prompt", self.document + "\n\n" + question, "-n", str(STEPS),
                "--json", base + ".json", "--logits-out", base + ".logits", *args]

    def report(self, name):
        with open(os.path.join(self.folder, name + ".json"), encoding="utf-8") as f:
            return json.load(f)

    def logits(self, name):
        with open(os.path.join(self.folder, name + ".logits"), "rb") as f:
            data = f.read()
        self.assertGreater(len(data), 100000)
        return data

    def engine(self, name, question, *args):
        done = subprocess.run(self.command(name, question, *args), capture_output=True, text=True,
                              timeout=LIMIT_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.report(name)

    def start_engine(self, name, question, *args):
        """The same in the background, until it has begun to generate."""
        engine = subprocess.Popen(self.command(name, question, "--step-delay-ms", "150", *args),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(engine.stdout.close)
        self.addCleanup(engine.stderr.close)
        self.assertTrue(engine.stdout.read(1), "no text came")
        return engine

    def ctl(self, verb):
        done = subprocess.run([os.path.join(BIN, "skvqctl"), "--socket", self.socket, verb, "--json"],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def wait_no_pins(self):
        for _ in range(100):
            pins = self.ctl("status")["pins"]
            if pins == 0:
                return
            time.sleep(0.05)
        self.fail(f"{pins} pins are left")

    def daemon_fds(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def test_sharing_changes_no_bit(self):
        cold = self.engine("cold", "What is this about?", "--socket", self.socket)
        alone = self.engine("alone", "What is this about?", "--embedded")
        self.assertEqual(cold["matched_tokens"], 0)
        self.assertGreater(cold["kv_bytes_shared"], 0)
        self.assertEqual(alone["kv_bytes_shared"], 0)
        self.assertEqual(self.logits("cold"), self.logits("alone"))

        # Another question over the same document, from the same pages, twice.
        first = self.engine("first", "Name one number.", "--socket", self.socket)
        again = self.engine("again", "Name one number.", "--socket", self.socket)
        whole_pages = (first["prompt_tokens"] - 128) // 80 * 80
        self.assertGreater(first["matched_tokens"], 0)
        self.assertEqual(first["matched_tokens"], whole_pages)
        self.assertEqual(first["matched_tokens"], again["matched_tokens"])
        self.assertEqual(self.logits("first"), self.logits("again"))
        self.wait_no_pins()
        self.assertGreaterEqual(self.ctl("status")["pages"], whole_pages // 80)

    def test_daemon_killed_while_engine_decodes(self):
        self.engine("warm", "What is this about?", "--socket", self.socket)
        calm = self.engine("calm", "Name one number.", "--socket", self.socket)
        for name, sig in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
            engine = self.start_engine(name, "Name one number.", "--socket", self.socket)
            self.stop_daemon(sig)
            self.assertEqual(engine.wait(timeout=LIMIT_S), 0)
            report = self.report(name)
            self.assertEqual(report["daemon"], "lost")
            self.assertEqual(report["matched_tokens"], calm["matched_tokens"])
            self.assertEqual(self.logits(name), self.logits("calm"))
            # The next daemon is empty; a cold engine gives it the pages again.
            self.start_daemon()
            self.engine("warm", "What is this about?", "--socket", self.socket)

    def test_engine_killed_while_it_decodes(self):
        self.engine("warm", "What is this about?", "--socket", self.socket)
        calm = self.engine("calm", "Name one number.", "--socket", self.socket)
        self.wait_no_pins()
        fds, pages = self.daemon_fds(), self.ctl("status")["pages"]
        neighbour = self.start_engine("neighbour", "Name one number.", "--socket", self.socket)
        for i in range(3):
            victim = self.start_engine(f"victim{i}", "Say a word.", "--socket", self.socket)
            self.assertGreater(self.ctl("status")["pins"], 0)
            victim.send_signal(signal.SIGKILL)
            victim.wait(timeout=10)
        self.assertEqual(neighbour.wait(timeout=LIMIT_S), 0)
        self.assertEqual(self.logits("neighbour"), self.logits("calm"))
        self.wait_no_pins()
        # What a client leaves is closed a moment after its end is seen.
        for _ in range(100):
            if self.daemon_fds() <= fds:
                break
            time.sleep(0.05)
        self.assertLessEqual(self.daemon_fds(), fds)
        self.assertGreaterEqual(self.ctl("status")["pages"], pages)
        after = self.engine("after", "Name one number.", "--socket", self.socket)
        self.assertEqual(after["matched_tokens"], calm["matched_tokens"])
        self.assertEqual(self.logits("after"), self.logits("calm"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
