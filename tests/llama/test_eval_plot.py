#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The picture of skvq-eval's reports: drawn from lines of JSON, the same each time, or said why not.

  test_eval_plot.py PLOT
"""
import json
import subprocess
import sys
import tempfile

PLOT = sys.argv[1]
REPORTS = [
    {"profile": "k2v2", "bits": 2.125, "kld": 0.1, "ours": True, "data_free": True},
    {"profile": "k4v4", "bits": 4.125, "kld": 0.01, "ours": True, "data_free": True},
    {"profile": "llama-q4_0", "bits": 4.5, "kld": 0.03, "ours": False},
    {"profile": "fp16", "bits": 16, "kld": 0.0, "ours": True, "data_free": False},
]


def plot(output, reports):
    text = "".join(json.dumps({"model": "m", "weights": "as-is", **report}) + "\n" for report in reports)
    return subprocess.run([sys.executable, PLOT, "-o", output], input=text, capture_output=True, text=True)


def main():
    with tempfile.TemporaryDirectory(prefix="skvq-plot.", dir="/tmp") as folder:
        pictures = []
        for name in ("a.svg", "b.svg"):
            done = plot(f"{folder}/{name}", REPORTS)
            if done.returncode == 77:
                sys.exit(77)
            assert done.returncode == 0, done.stderr
            with open(f"{folder}/{name}", encoding="utf-8") as f:
                pictures.append(f.read())
        assert pictures[0] == pictures[1] and "<svg" in pictures[0]
        done = plot(f"{folder}/c.svg", REPORTS[3:])
        assert done.returncode == 1 and "nothing to draw" in done.stderr, done.stderr


main()
