#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far our attention is from llama.cpp's over some hundred tokens of text, held against llama.cpp
itself.

  test_llama_exactness.py BIN_DIR MODEL.gguf TEXT

fp16     no more than twice the distance between llama.cpp's two attention paths
k8v8     no more than 1e-3 above fp16
k2v1.5   (data-free) no more than twice llama.cpp's own q4_0 cache
"""
import json
import os
import subprocess
import sys

BIN, MODEL, TEXT = sys.argv[1:4]
PROFILES = ["llama-f16", "llama-q4_0", "fp16", "k8v8", "k2v1.5"]


def main():
    command = [os.path.join(BIN, "skvq-eval"), "--model", MODEL, "--text", TEXT, "--ctx", "640",
               "--first", "192", "--threads", "1", "--no-calibration", "--profiles",
               ",".join(PROFILES), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode != 0:
        sys.exit(f"skvq-eval: status {done.returncode}\n{done.stderr}")
    kld = {}
    for report in map(json.loads, done.stdout.splitlines()):
        kld[report["profile"]] = report["kld"]
        print(f"{report['profile']:12} {report['bits']:7.3f} bits, mean KLD {report['kld']:.6f}")
    broken = []
    for profile, bound, what in (
        ("fp16", 2 * kld["llama-f16"], "twice flash attention's on/off"),
        ("k8v8", kld["fp16"] + 1e-3, "fp16's + 1e-3"),
        ("k2v1.5", 2 * kld["llama-q4_0"], "twice q4_0's"),
    ):
        if not 0 <= kld[profile] <= bound:
            broken.append(f"{profile}: {kld[profile]:.6f} is above {what}, {bound:.6f}")
    if not kld["llama-q4_0"] > 4 * kld["llama-f16"]:
        broken.append("q4_0 is no further away than the other attention path: nothing was measured")
    if broken:
        sys.exit("\n".join(broken))


main()
