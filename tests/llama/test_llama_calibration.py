#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calibration as a user meets it: skvq-calibrate makes a file, codes with it are closer to llama.cpp
than without, engines make and keep one by themselves, and agree on one through the daemon.

  test_llama_calibration.py BIN_DIR MODEL.gguf CALIBRATION_TEXT EVALUATION_TEXT
"""
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest

BIN, MODEL, TEXT, EVAL_TEXT = sys.argv[1:5]
LIMIT_S = 900


def path_of(name):
    return os.path.join(BIN, name)


class Calibration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.holder = tempfile.TemporaryDirectory(prefix="skvq-calibration.", dir="/tmp")
        cls.folder = cls.holder.name
        cls.file = os.path.join(cls.folder, "document.skvqcal")
        cls.made = json.loads(cls.calibrate("--text", TEXT, "--tokens", "2048", "--no-sensitivity",
                                            "--output", cls.file, "--json").stdout)

    @classmethod
    def tearDownClass(cls):
        cls.holder.cleanup()

    @classmethod
    def environment(cls, data):
        return {**os.environ, "XDG_DATA_HOME": os.path.join(cls.folder, data)}

    @classmethod
    def run_tool(cls, name, *args, code=0, data="unused"):
        done = subprocess.run([path_of(name), "--threads", "1", "--model", MODEL, *args],
                              capture_output=True, text=True, timeout=LIMIT_S,
                              env=cls.environment(data))
        if done.returncode != code:
            raise AssertionError(f"{name} {args}: status {done.returncode}\n{done.stderr}")
        return done

    @classmethod
    def calibrate(cls, *args, code=0):
        return cls.run_tool("skvq-calibrate", *args, code=code)

    def generate(self, *args, data, code=0):
        prompt = [] if "--prompt-file" in args else ["--prompt", "The lighthouse keeper"]
        done = self.run_tool("skvq-llama", *prompt, "-n", "2", "--json", "-", *args, data=data,
                             code=code)
        return (json.loads(done.stdout) if not code else {}), done.stderr

    def test_what_was_made(self):
        self.assertEqual(self.made["text"], os.path.basename(TEXT))
        self.assertGreater(self.made["tokens"], 1900)
        self.assertEqual(self.made["groups"], [32, 64, 128])
        for which in "kv":
            errors = self.made["error_2bit_" + which]
            self.assertEqual(len(errors), 30)
            self.assertTrue(all(0.05 < e < 0.2 for e in errors), errors)

    def test_codes_are_closer(self):
        command = [path_of("skvq-eval"), "--threads", "1", "--model", MODEL, "--text", EVAL_TEXT,
                   "--ctx", "640", "--first", "256", "--profiles", "k2v2:free,k2v2,k8v8",
                   "--calibration", self.file, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        kld = {report["profile"]: report["kld"] for report in reports}
        free, own, exact = "k2v2:free", "k2v2", "k8v8"
        print(", ".join(f"{mode} {value:.5f}" for mode, value in kld.items()))
        self.assertLess(kld[own], 0.9 * kld[free])
        self.assertLess(kld[exact], 0.25 * kld[own])  # mostly llama.cpp's own rounding

    def test_first_use_makes_one_and_the_next_finds_it(self):
        got, said = self.generate(data="first")
        self.assertEqual(got["calibration"], "made now")
        self.assertIn("first time", said)
        files = glob.glob(os.path.join(self.folder, "first/skvqd/calibration/*"))
        self.assertEqual(len(files), 1, files)
        self.assertTrue(files[0].endswith(".skvqcal"))
        got, said = self.generate(data="first")
        self.assertEqual(got["calibration"], files[0])
        self.assertNotIn("calibrat", said)
        got, said = self.generate("--no-calibration", data="first")
        self.assertEqual(got["calibration"], "none")
        self.assertIn("without calibration", said)
        got, said = self.generate("--profile", "fp16", data="first")
        self.assertEqual(got["calibration"], "not used")
        self.assertNotIn("calibrat", said)
        # Damaged: said, not used.
        with open(files[0], "r+b") as f:
            f.seek(200000)
            f.write(b"damage")
        _, said = self.generate(data="first", code=1)
        self.assertIn("digest at offset 72", said)

    def test_tables_are_asked_for(self):
        _, said = self.generate("--profile", "auto-2.4", "--calibration", self.file, data="none",
                                code=1)
        self.assertIn("skvq-calibrate", said)
        self.assertIn("none of that name", said)

    def test_engines_agree_through_the_daemon(self):
        socket = os.path.join(self.folder, "skvqd.sock")
        daemon = subprocess.Popen([path_of("skvqd"), "--socket", socket], stderr=subprocess.PIPE,
                                  text=True)
        try:
            while "event=ready" not in (line := daemon.stderr.readline()):
                self.assertTrue(line, "skvqd ended before it was ready")
            kept = os.path.join(self.folder, "second/skvqd/calibration")
            os.makedirs(kept)
            with open(self.file, "rb") as f:
                data = f.read()
            with open(os.path.join(kept, data[40:72].hex() + ".skvqcal"), "wb") as f:
                f.write(data)
            got, _ = self.generate("--socket", socket, data="second")
            self.assertTrue(got["calibration"].startswith(kept), got["calibration"])
            # This one has no file and need not make one.
            got, said = self.generate("--socket", socket, data="third")
            self.assertEqual(got["calibration"], "daemon")
            self.assertNotIn("calibrat", said)
            self.replace(socket)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=20)
            daemon.stderr.close()

    def replace(self, socket):
        """By a person, on purpose: newcomers get the new one, and pages of the two never meet."""
        def matched():
            got, said = self.generate("--prompt-file", prompt, "--socket", socket, data="third")
            self.assertEqual(got["calibration"], "daemon", said)
            return got["matched_tokens"]

        def put(*args, code=0):
            done = subprocess.run([path_of("skvqctl"), "--socket", socket, "--json", "calibration",
                                   *args], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, code, done.stderr)
            return json.loads(done.stdout), done.stderr

        prompt = os.path.join(self.folder, "prompt.txt")
        with open(TEXT, encoding="utf-8") as text, open(prompt, "w", encoding="utf-8") as f:
            f.write(text.read()[:3000])
        other = os.path.join(self.folder, "other.skvqcal")
        self.calibrate("--text", EVAL_TEXT, "--tokens", "1024", "--no-sensitivity", "--output", other)
        self.assertEqual(matched(), 0)
        before = matched()
        self.assertGreater(before, 400)
        got, said = put(other, code=1)
        self.assertEqual((got["stored"], got["replaced"]), (False, False))
        self.assertIn("--replace", said)
        self.assertEqual(matched(), before)
        got, said = put("--replace", other)
        self.assertEqual(got, {"bytes": os.path.getsize(other), "stored": True, "replaced": True})
        self.assertEqual(matched(), 0)
        self.assertEqual(matched(), before)
        put("--replace", self.file)
        self.assertEqual(matched(), before)  # pages of the first one are still its own

    def test_refusals(self):
        for code, sentence, args in (
            (2, "--bits needs", ["--no-sensitivity", "--bits", "2.6"]),
            (2, "from 512", ["--tokens", "3"]),
            (2, "not with --f16-weights", ["--inject-outliers", "--f16-weights"]),
            (2, "what is", ["stray"]),
            (1, "cannot read text", ["--text", "/nonexistent"]),
        ):
            done = self.calibrate(*args, "--output", os.path.join(self.folder, "x"), code=code)
            self.assertIn(sentence, done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
