#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvq-eval on dequantized weights, where its floor is low enough to hold it to its word, and its
other commands, in short forms.

  test_llama_eval.py BIN_DIR MODEL.gguf TEXT CALIBRATION_TEXT
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

BIN, MODEL, TEXT, CALIBRATION_TEXT = sys.argv[1:5]
F32 = ["--f32-weights"]


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="skvq-eval.", dir="/tmp")
        cls.environment = dict(os.environ, SKVQ_CACHE_DIR=cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def evaluate(self, *args):
        command = [os.path.join(BIN, "skvq-eval"), *args, "--model", MODEL, "--text", TEXT,
                   "--threads", "1", "--no-calibration", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280,
                              env=self.environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {report["profile"]: report for report in map(json.loads, done.stdout.splitlines())}

    def test_floor_and_outliers(self):
        profiles = "fp16:window=16,k4v4:window=16,k4v4-bare:window=16"
        short = ["--profiles", profiles, "--ctx", "112", "--first", "48"]
        plain = self.evaluate(*F32, *short)
        harder = self.evaluate("--inject-outliers", *short)
        self.assertLess(plain["fp16:window=16"]["kld"], 1e-4)
        self.assertLess(harder["fp16:window=16"]["kld"], 1e-4)
        before, after = (run["k4v4-bare:window=16"] for run in (plain, harder))
        self.assertAlmostEqual(after["ppl_reference"] / before["ppl_reference"], 1, places=3)
        self.assertGreater(after["kld"], 2 * before["kld"])
        # Pages of the model as it is are the profile's; those with outliers keep keys in 8 bits.
        self.assertEqual(plain["k4v4:window=16"]["kld"], before["kld"])
        self.assertEqual([run["k4v4:window=16"]["bits"] for run in (plain, harder)], [4.125, 6.125])
        self.assertLess(harder["k4v4:window=16"]["kld"], before["kld"])
        self.assertEqual((before["weights"], after["weights"]), ("f32", "f32+outliers"))
        self.assertEqual(len(os.listdir(os.path.join(self.folder.name, "weights"))), 2)

    def test_outliers_with_their_own_calibration(self):
        """Where engines look for it, by the digest of the copy: skvq-eval finds it by itself."""
        data = os.path.join(self.folder.name, "data")
        environment = dict(self.environment, XDG_DATA_HOME=data)
        done = subprocess.run([os.path.join(BIN, "skvq-calibrate"), "--model", MODEL, "--text", CALIBRATION_TEXT,
                               "--tokens", "1024", "--no-sensitivity", "--threads", "1",
                               "--inject-outliers", "--json"], capture_output=True, text=True,
                              timeout=280, env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        made = json.loads(done.stdout)["output"]
        self.assertEqual(os.path.dirname(made), os.path.join(data, "skvqd/calibration"))
        done = subprocess.run([os.path.join(BIN, "skvq-eval"), "--model", MODEL, "--text", TEXT,
                               "--inject-outliers", "--profiles", "k4v4-bare:free,k4v4", "--ctx", "400", "--first",
                               "200", "--threads", "1", "--json"], capture_output=True, text=True,
                              timeout=280, env=environment)
        self.assertEqual((done.returncode, done.stderr.count("calibrat")), (0, 1), done.stderr)
        free, own = (json.loads(line)["kld"] for line in done.stdout.splitlines())
        print(f"k4v4 with outliers: {free:.4f} data-free, {own:.4f} calibrated")
        self.assertLess(own, 0.25 * free)
        self.assertEqual(os.listdir(os.path.dirname(made)), [os.path.basename(made)])

    def test_needle(self):
        got = self.evaluate("needle", "--profiles", "fp16:window=16", "--ctx", "256", "--keys", "3",
                            "--chunks", "2", *F32)["fp16:window=16"]
        self.assertEqual((got["keys"], got["same"], len(got["found_at_depth"])), (6, 1, 3))
        self.assertEqual(got["recall"], got["recall_reference"])
        self.assertEqual(sum(got["found_at_depth"]), round(6 * got["recall"]))

    def test_agree(self):
        got = self.evaluate("agree", "--profiles", "fp16:window=16,k1.5v1.5:window=0:sinks=0",
                            "--ctx", "96", "--predict", "12", "--chunks", "2", *F32)
        exact, coarse = got.values()
        self.assertEqual((exact["agreed"], exact["whole"], exact["prompts"]), (exact["possible"], 1, 2))
        self.assertLess(coarse["agreed"], coarse["possible"])

    def with_daemon(self, *args, options=()):
        socket = os.path.join(self.folder.name, "s")
        with subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", socket, *options],
                              stderr=subprocess.PIPE, text=True) as daemon:
            try:
                while "event=ready" not in (line := daemon.stderr.readline()):
                    self.assertTrue(line, "skvqd ended before it was ready")
                return self.evaluate("shared", "--socket", socket, "--window", "32", "--ctx", "200",
                                     *args, *F32)
            finally:
                daemon.terminate()

    def test_shared(self):
        got = self.with_daemon("--profiles", "fp16,k4v4")
        for report in got.values():
            self.assertEqual((report["prompt_tokens"], report["matched_tokens"]), (200, 160))
            self.assertEqual((report["kept_tokens"], report["published_tokens"]), (160, 160))
        self.assertLess(got["fp16"]["kld_max"], 1e-5)
        self.assertGreater(got["k4v4"]["kld_refilling"], got["k4v4"]["kld"])
        self.assertGreater(got["k4v4"]["kld_to_fp16"], got["fp16"]["kld_to_fp16"])

    def test_shared_under_pressure(self):
        """Six pages and their sinks take 2.6 MB: refinements go, not a page does."""
        got = self.with_daemon("--profiles", "e2.1", "--pressure", "2",
                               options=("--ram-max", "2100K"))["e2.1"]
        self.assertEqual((got["matched_tokens"], got["kept_tokens"], got["published_tokens"]),
                         (160, 480, 480))
        self.assertEqual((got["paged_tokens"], got["refined_tokens"]), (160, 0))
        self.assertGreater(got["kld"], 0.001)  # the same computed cold has its refinements


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
