#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench-cold gives every page back by every coder, prints the keys it names, and refuses what are no
pages. The pages are made here: 2-bit codes of two layers and one head of 64 channels."""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop(1)
KEYS = {"pages", "page_bytes"}
KEYS |= {f"{c}_{k}" for c in ("zstd_fast5", "zstd_1", "zstd_3", "zstd_19", "huffman", "codes",
                             "channels", "packed", "store")
         for k in ("ratio", "pack_mb_s", "unpack_mb_s")}
STORE = {f"{c}_{k}" for c in ("plain", "packed")
         for k in ("put_mb_s", "get_mb_s", "put_cpu_s_gb", "get_cpu_s_gb", "one_ms", "ratio")}
LAYERS, PLANE, ROWS, BASE = 2, 1280, 160, 8192


def page(rng):
    """Keys that hardly change from token to token, and random values."""
    at = 640
    table, body = b"", b""
    for _ in range(LAYERS):
        table += struct.pack("<2I4B2H", at, 0, 20, 20, 0, 0, 0, 0)
        words = [rng.randbytes(4) for _ in range(PLANE // 64)]
        keys = b"".join(words[i % 4] * 16 for i in range(PLANE // 64))
        layer = keys + rng.randbytes(PLANE) + bytes(ROWS)
        body += layer + bytes(-len(layer) % 64)
        at = 640 + len(body)
    head = struct.pack("<Q2H2I6H5I", 0x4547415051564B53, 2, 256, 0, 0, 80, LAYERS, 1, 64, 64, 0,
                       256, 576, BASE, 0, 0)
    head += bytes(256 - len(head)) + rng.randbytes(320) + table
    return (head + bytes(640 - len(head)) + body).ljust(BASE, b"\0")


def bench(*args):
    return subprocess.run([os.path.join(BIN, "bench-cold"), *args], capture_output=True, text=True,
                          timeout=240)


class BenchCold(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=".")
        self.addCleanup(self.folder.cleanup)
        self.pages = os.path.join(self.folder.name, "pages")
        rng = random.Random(1)
        with open(self.pages, "wb") as f:
            f.write(b"".join(page(rng) for _ in range(40)))

    def test_coders_and_stores(self):
        result = bench("--pages", self.pages, "--folder", self.folder.name, "--quick", "--rounds",
                       "1", "--mib", "16", "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        found = json.loads(result.stdout)
        self.assertLessEqual(KEYS | STORE, set(found))
        for key in KEYS | STORE:
            self.assertGreater(found[key], 0, key)
        self.assertEqual((found["pages"], found["page_bytes"]), (40, BASE))
        self.assertLess(found["store_ratio"], .9)
        self.assertLess(found["packed_ratio"], found["plain_ratio"])
        self.assertEqual(os.listdir(self.folder.name), ["pages"])

    def test_what_makes_no_sense_is_refused(self):
        self.assertEqual(bench().returncode, 2)
        self.assertEqual(bench("--pages", self.pages, "--threads", "0").returncode, 2)
        self.assertEqual(bench("--pages", "./no/such/file").returncode, 1)
        with open(self.pages, "r+b") as f:
            f.truncate(BASE * 39 + 100)
        result = bench("--pages", self.pages)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"no page at byte {BASE * 39}", result.stderr)


if __name__ == "__main__":
    unittest.main()
