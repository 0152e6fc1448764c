#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sliding windows, a head of 256 channels, half-split RoPE and a scaled query, against llama.cpp on
Gemma 3: positions beyond the sliding window are compared, where a wrong one would show.

  test_llama_gemma.py BIN_DIR MODEL.gguf TEXT

fp16     no more than twice the distance between llama.cpp's two attention paths, a short FP16 window
         and no sinks too
groups   of layers change no digit, and keep less
"""
import json
import os
import subprocess
import sys

BIN, MODEL, TEXT = sys.argv[1:4]
PROFILES = ["llama-f16", "fp16:window=32:sinks=0", "fp16:window=32:sinks=0:whole"]


def main():
    if not os.path.exists(MODEL):
        print("no Gemma here: tools/build --gemma fetches it")
        sys.exit(77)
    command = [os.path.join(BIN, "skvq-eval"), "--no-calibration", "--model", MODEL, "--text", TEXT, "--ctx", "720",
               "--first", "624", "--threads", "1", "--profiles", ",".join(PROFILES), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode != 0:
        sys.exit(f"skvq-eval: status {done.returncode}\n{done.stderr}")
    kld, held = {}, {}
    for report in map(json.loads, done.stdout.splitlines()):
        kld[report["profile"]] = [report[key] for key in ("kld", "kld_max", "ppl", "top1")]
        held[report["profile"]] = report["bytes_per_token"]
        print(f"{report['profile']:24} mean KLD {report['kld']:.6f}, top-1 {report['top1']:.3f}")
    if kld[PROFILES[1]] != kld[PROFILES[2]]:
        sys.exit(f"layer groups make another model: {kld[PROFILES[1]]}, {kld[PROFILES[2]]}")
    if not held[PROFILES[1]] < held[PROFILES[2]]:
        sys.exit(f"layer groups keep as much: {held}")
    kld = {profile: figures[0] for profile, figures in kld.items()}
    if not 0 < kld[PROFILES[0]] < 0.02:
        sys.exit("llama.cpp's own two paths are too far apart, or not at all")
    if not 0 <= kld[PROFILES[1]] <= 2 * kld[PROFILES[0]]:
        sys.exit("fp16 is further from llama.cpp than twice flash attention's on/off")


main()
