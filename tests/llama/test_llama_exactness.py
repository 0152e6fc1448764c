#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far our attention is from llama.cpp's over 1,000 tokens of text, held against llama.cpp itself.

  test_llama_exactness.py BIN_DIR MODEL.gguf TEXT

fp16     no more than twice the distance between llama.cpp's two attention paths
k8v8     no more than 1e-3 above fp16
k2v1.5   (data-free) no more than 1.5 times llama.cpp's own q4_0 cache
"""
import json
import os
import subprocess
import sys

BIN, MODEL, TEXT = sys.argv[1:4]
MODES = ["plain-fa", "q4_0", "skvq:fp16", "skvq:k8v8", "skvq:k2v1.5"]


def main():
    command = [os.path.join(BIN, "skvq-eval"), "--model", MODEL, "--text", TEXT, "--tokens", "1000",
               "--prefill", "640", "--ubatch", "128", "--threads", "1", "--no-calibration",
               "--json"]
    for mode in MODES:
        command += ["--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode != 0:
        sys.exit(f"skvq-eval: status {done.returncode}\n{done.stderr}")
    report = json.loads(done.stdout)
    kld = {mode: report[mode + ".kld_mean"] for mode in MODES}
    for mode in MODES:
        print(f"{mode:12} KLD mean {kld[mode]:.6f}")
    broken = []
    for mode, bound, what in (
        ("skvq:fp16", 2 * kld["plain-fa"], "twice flash attention's on/off"),
        ("skvq:k8v8", kld["skvq:fp16"] + 1e-3, "fp16's + 1e-3"),
        ("skvq:k2v1.5", 1.5 * kld["q4_0"], "1.5 times q4_0's"),
    ):
        if not 0 <= kld[mode] <= bound:
            broken.append(f"{mode}: {kld[mode]:.6f} is above {what}, {bound:.6f}")
    if not kld["q4_0"] > 10 * kld["plain-fa"]:
        broken.append("q4_0 is no further away than the other attention path: nothing was measured")
    if broken:
        sys.exit("\n".join(broken))


main()
