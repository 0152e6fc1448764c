#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/test-vectors.json, computed again from the words of docs/test-vectors.md alone.

test_vectors.py VECTORS MAKE_VECTORS: also what the daemon's code writes must be the file, byte for byte.
"""
import hashlib
import json
import struct
import subprocess
import sys
import unittest

VECTORS, MAKE = sys.argv.pop(1), sys.argv.pop(1)
with open(VECTORS, encoding="ascii") as f:
    TEXT = f.read()
ALL = json.loads(TEXT)

# Field number, name, kind: as the table in docs/test-vectors.md.
FIELDS = [
    (1, "weights_digest", "hex"), (2, "tokenizer_digest", "hex"), (3, "lora_digest", "hex"),
    (4, "engine_numerics", "text"), (5, "n_layer", "u32"), (6, "n_q_heads", "u32"),
    (7, "n_kv_heads", "u32"), (8, "head_dim_k", "u32"), (9, "head_dim_v", "u32"),
    (10, "rope_kind", "u32"), (11, "rope_dim", "u32"), (12, "rope_theta", "f64"),
    (13, "rope_scaling", "text"), (14, "profile", "text"), (15, "calibration_digest", "hex"),
    (16, "window", "u32"), (17, "sinks", "u32"), (18, "bit_table", "hex"), (19, "reorder", "hex"),
    (20, "layer_window", "u32s"), (21, "clip", "f32"), (22, "page_version", "u32"),
]
CODE = {
    "hex": bytes.fromhex,
    "text": lambda v: v.encode("ascii"),
    "u32": lambda v: struct.pack("<I", v),
    "u32s": lambda v: struct.pack(f"<{len(v)}I", *v),
    "f64": lambda v: struct.pack("<d", v),
    "f32": lambda v: struct.pack("<f", v),
}


def canonical(fields):
    out = b"skvq-identity/1\0"
    for number, name, kind in FIELDS:
        data = CODE[kind](fields[name])
        out += struct.pack("<HI", number, len(data)) + data
    return out


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Vectors(unittest.TestCase):
    def test_the_daemons_code_writes_this_file(self):
        made = subprocess.run([MAKE], capture_output=True, text=True, check=True, timeout=60)
        self.assertEqual(made.stdout, TEXT)

    def test_there_is_something_of_each_kind(self):
        self.assertEqual(ALL["format"], "skvq-test-vectors/1")
        self.assertGreaterEqual(len(ALL["identities"]), 3)
        self.assertGreaterEqual(len(ALL["namespaces"]), 4)
        self.assertGreaterEqual(len(ALL["pages"]), 7)
        digests = [v["digest"] for kind in ("identities", "namespaces", "pages") for v in ALL[kind]]
        self.assertEqual(len(set(digests)), len(digests))

    def test_identities(self):
        for v in ALL["identities"]:
            with self.subTest(name=v["name"]):
                self.assertEqual(set(v["fields"]), {name for _, name, _ in FIELDS})
                self.assertEqual(canonical(v["fields"]).hex(), v["canonical"])
                self.assertEqual(sha256(canonical(v["fields"])), v["digest"])

    def test_namespaces(self):
        identities = {v["digest"] for v in ALL["identities"]}
        for v in ALL["namespaces"]:
            with self.subTest(tenant=v["tenant"], salt=v["salt"]):
                self.assertIn(v["identity"], identities)
                salt = bytes.fromhex(v["salt"])
                self.assertEqual(sha256(bytes.fromhex(v["identity"]), v["tenant"].encode("ascii"),
                                        b"\0" + salt if salt else b""), v["digest"])

    def test_pages(self):
        last = {}
        for v in ALL["pages"]:
            with self.subTest(chain=v["chain"], position=v["position"]):
                self.assertEqual(len(v["tokens"]), 80)
                self.assertEqual(v["parent"], last.get(v["chain"], "00" * 32))
                self.assertEqual(sha256(bytes.fromhex(v["identity"]), bytes.fromhex(v["parent"]),
                                        struct.pack("<I", v["position"]),
                                        struct.pack("<80i", *v["tokens"])), v["digest"])
                last[v["chain"]] = v["digest"]


if __name__ == "__main__":
    unittest.main()
