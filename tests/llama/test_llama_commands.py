#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvq-llama and skvq-eval as a user meets them: what they refuse and how, what they report, and that
our attention in llama.cpp is as close to llama.cpp as its own two attentions are to each other.

  test_llama_commands.py BIN_DIR MODEL.gguf
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv[1]
MODEL = sys.argv[2]
LLAMA = os.path.join(BIN, "skvq-llama")
EVAL = os.path.join(BIN, "skvq-eval")
# One thread: ggml's threads spin, and the tests may share the machine.
THREADS = ["--threads", "1"]
TEXT = ("The lighthouse keeper wrote the height of the sea into a book every morning. "
        "On the third day of the storm the book fell into the water, and he began a new one. "
        "Years later a diver found the old book between two stones, and most of it could be read. ")


def run(*command, code=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode != code:
        raise AssertionError(f"{command}: status {done.returncode}, not {code}\n{done.stderr}")
    return done


def llama(*args, code=0):
    return run(LLAMA, *THREADS, "--no-calibration", "--model", MODEL, *args, code=code)


def evaluate(text, profiles, *args):
    """What skvq-eval says of each profile."""
    done = run(EVAL, *THREADS, "--model", MODEL, "--text", text, "--profiles", profiles,
               "--no-calibration", "--json", *args)
    return {report["profile"]: report for report in map(json.loads, done.stdout.splitlines())}


class Refusals(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="skvq-llama.", dir="/tmp")
        self.addCleanup(self.folder.cleanup)

    def file(self, name, data=b""):
        path = os.path.join(self.folder.name, name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def refuse(self, code, sentence, *args):
        done = run(LLAMA, *args, code=code)
        lines = done.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertTrue(lines[0].startswith("skvq-llama: "), lines[0])
        self.assertIn(sentence, lines[0])
        self.assertEqual(done.stdout, "")

    def test_usage(self):
        hello = ["--model", MODEL, "--prompt", "hello"]
        for sentence, args in (
            ("--model is missing", ["--prompt", "x"]),
            ("exactly one of --prompt", ["--model", MODEL]),
            ("exactly one of --prompt", [*hello, "--prompt-file", "x"]),
            ("exclude each other", [*hello, "--plain", "--socket", "s"]),
            ("--fallback needs --socket", [*hello, "--fallback"]),
            ("'--frobnicate'", [*hello, "--frobnicate"]),
            ("'--ubatch'", [*hello, "--ubatch"]),
            ("from 1 to 4096, not '0'", [*hello, "--ubatch", "0"]),
            ("not '-3'", [*hello, "-n", "-3"]),
            ("not '5x'", [*hello, "--window", "5x"]),
            ("not 'warm'", [*hello, "--temp", "warm"]),
            ("what is 'stray'", [*hello, "stray"]),
            ("exclude each other", [*hello, "--no-calibration", "--calibration", "x"]),
        ):
            self.refuse(2, sentence, *args)

    def test_models(self):
        text = self.file("text.gguf", b"this is not a model at all")
        with open(MODEL, "rb") as f:
            head = self.file("head.gguf", f.read(4096))
        for sentence, model in (
            ("cannot open model '/nonexistent'", "/nonexistent"),
            (f"'{text}' is not a GGUF file", text),
            (f"the GGUF header of '{head}' cannot be read", head),
        ):
            self.refuse(1, sentence, "--model", model, "--prompt", "hello")

    def test_prompts(self):
        empty = self.file("empty")
        long = self.file("long", (TEXT * 400).encode())
        for sentence, args in (
            ("the prompt is empty", ["--prompt", ""]),
            (f"prompt file '{empty}' is empty", ["--prompt-file", empty]),
            ("cannot read prompt file '/nonexistent'", ["--prompt-file", "/nonexistent"]),
            ("cannot read prompt file '/tmp'", ["--prompt-file", "/tmp"]),
            ("tokens of context", ["--prompt-file", long]),
        ):
            self.refuse(1, sentence, "--model", MODEL, *args)

    def test_plugin_and_daemon(self):
        hello = ["--model", MODEL, "--prompt", "hello"]
        nobody = os.path.join(self.folder.name, "nobody")
        self.refuse(1, "'k9v9'", *hello, "--profile", "k9v9")
        self.refuse(1, "/nonexistent.so", *hello, "--plugin", "/nonexistent.so")
        self.refuse(1, f"no skvqd can be reached at '{nobody}'", *hello, "--socket", nobody)
        self.refuse(1, "there is no calibration file '/nonexistent'", *hello, "--calibration",
                    "/nonexistent")
        self.refuse(1, "is not a calibration file", *hello, "--calibration", "/tmp")
        self.refuse(1, "calibration: magic at offset 0", *hello, "--calibration", MODEL)
        self.refuse(1, "is not an skvq plugin", *hello, "--plugin", "libm.so.6")

    def test_fallback_says_so(self):
        nobody = os.path.join(self.folder.name, "nobody")
        done = llama("--prompt", "hello", "-n", "1", "--socket", nobody, "--fallback", "--json", "-")
        self.assertIn(f"no skvqd at '{nobody}': going on embedded", done.stderr)
        self.assertEqual(json.loads(done.stdout)["mode"], "embedded")


class Generation(unittest.TestCase):
    def test_report(self):
        done = llama("--prompt", TEXT * 10, "-n", "6", "--compare-plain", "--profile", "fp16",
                     "--json", "-")
        got = json.loads(done.stdout)
        self.assertEqual(got["mode"], "embedded")
        self.assertEqual(got["daemon"], "none")
        self.assertEqual(got["profile"], "fp16")
        self.assertEqual(got["matched_tokens"], 0)
        self.assertEqual(got["tokens_generated"], len(got["token_ids"]))
        self.assertGreater(got["prompt_tokens"], 500)
        self.assertGreater(got["ttft_s"], 0)
        self.assertGreater(got["paged_tokens"], 300)
        self.assertLess(got["kld_mean"], 0.02)
        self.assertEqual(got["kld_positions"], got["tokens_generated"] + got["ended"])
        self.assertTrue(got["plain_text"])

    def test_ids_of_a_prompt(self):
        got = json.loads(llama("--prompt", TEXT, "-n", "1", "--json", "-").stdout)
        ids = json.loads(llama("--prompt", TEXT, "--ids").stdout)
        self.assertEqual(len(ids), got["prompt_tokens"])
        with tempfile.NamedTemporaryFile("w") as prompt:
            prompt.write(TEXT)
            prompt.flush()
            self.assertEqual(json.loads(llama("--prompt-file", prompt.name, "--ids").stdout), ids)
            nobody = prompt.name + ".sock"
            tokenizer = f"{LLAMA} --model {MODEL} --ids --prompt-file"
            # Read before a daemon is looked for, so this far it goes without one.
            done = run(os.path.join(BIN, "skvqctl"), "-s", nobody, "why-miss", "-n", "1", "--prompt",
                       prompt.name, "--tokenizer", tokenizer, code=3)
            self.assertIn(nobody, done.stderr)
        self.assertNotEqual(json.loads(llama("--prompt", TEXT, "--chat", "--ids").stdout), ids)

    def test_text_is_the_same_however_reported(self):
        args = ["--prompt", "Once upon a time", "-n", "5"]
        printed = llama(*args).stdout
        self.assertEqual(printed.rstrip("\n"),
                         json.loads(llama(*args, "--json", "-").stdout)["text"].rstrip("\n"))

    def test_same_bits_every_time(self):
        with tempfile.TemporaryDirectory(prefix="skvq-llama.", dir="/tmp") as folder:
            logits = []
            for name in "ab":
                path = os.path.join(folder, name)
                llama("--prompt", TEXT * 4, "-n", "4", "--logits-out", path)
                with open(path, "rb") as f:
                    logits.append(f.read())
            self.assertGreater(len(logits[0]), 0)
            self.assertEqual(logits[0], logits[1])

    def test_plain(self):
        got = json.loads(llama("--prompt", "hello", "-n", "2", "--plain", "--json", "-").stdout)
        self.assertEqual((got["mode"], got["daemon"], got["kv_bytes_shared"]), ("plain", "none", 0))


class Exactness(unittest.TestCase):
    def test_attention_over_exact_pages(self):
        """A window of 16 leaves nearly all tokens to pages. Two ways to round one attention in
        llama.cpp set the scale."""
        with tempfile.NamedTemporaryFile("w", dir="/tmp", suffix=".txt") as f:
            f.write(TEXT * 10)
            f.flush()
            got = evaluate(f.name, "llama-f16,fp16:window=16:sinks=0,fp16,k8v8", "--ctx", "400",
                           "--first", "64")
        self.assertEqual(list(got), ["llama-f16", "fp16:window=16:sinks=0", "fp16", "k8v8"])
        between = got["llama-f16"]["kld"]
        self.assertGreater(between, 0)
        self.assertLess(got["fp16:window=16:sinks=0"]["kld"], 2 * between)
        self.assertLess(got["fp16"]["kld"], 2 * between)
        self.assertLess(got["k8v8"]["kld"], got["fp16"]["kld"] + 1e-3)
        self.assertEqual([got[name]["bits"] for name in ("llama-f16", "fp16", "k8v8")], [16, 16, 8.125])
        self.assertEqual({report["tokens"] for report in got.values()}, {400 - 64 - 1})
        self.assertEqual((got["fp16:window=16:sinks=0"]["window"], got["fp16"]["window"]), (16, 128))

    def test_eval_table(self):
        with tempfile.NamedTemporaryFile("w", dir="/tmp", suffix=".txt") as f:
            f.write(TEXT * 6)
            f.flush()
            done = run(EVAL, *THREADS, "--no-calibration", "--model", MODEL, "--text", f.name, "--profiles",
                       "llama-q4_0-norot", "--ctx", "48", "--first", "16", "--chunks", "2")
        for word in ("llama-f16-nofa", "llama-q4_0-norot", "fp16", "floor: KLD"):
            self.assertIn(word, done.stdout)
        self.assertEqual(done.stderr, "")

    def test_eval_refusals(self):
        with tempfile.NamedTemporaryFile("w", dir="/tmp", suffix=".txt") as f:
            f.write(TEXT)
            f.flush()
            base = [EVAL, "--no-calibration", "--model", MODEL, "--text", f.name]
            short = ["--ctx", "40", "--first", "0"]
            for code, sentence, args in (
                (2, "'llama-q5_5' is none of llama-f16,", ["--profiles", "llama-q5_5"]),
                (2, "names no profile", ["--profiles", "fp16,"]),
                (2, "window takes a whole number", ["--profiles", "fp16:window=many"]),
                (2, "'cheap' is none of free, whole, window=N, sinks=N", ["--profiles", "fp16:cheap"]),
                (2, "--profiles are needed", []),
                (2, "leaves no position", ["--profiles", "fp16", "--first", "1023"]),
                (1, "tokens, and --chunks 1 of --ctx 1024 need", ["--profiles", "llama-f16"]),
                (1, "of context", ["--profiles", "llama-f16", "--ctx", "100000"]),
                (1, "'k9v9'", [*short, "--profiles", "k9v9"]),
            ):
                done = run(*base, *args, code=code)
                self.assertIn(sentence, done.stderr)
            done = run(EVAL, *base[2:], *short, "--profiles", "k4v4", "--calibration", "x", code=1)
            self.assertIn("there is no calibration file 'x'", done.stderr)
            for sentence, command, args in (
                ("what is 'noodle'", "noodle", []),
                ("shared needs --socket", "shared", ["--profiles", "fp16"]),
                ("'llama-q4_0' shares nothing", "shared", ["--profiles", "llama-q4_0", "--socket", "s"]),
                ("nothing else does", "measure", ["--profiles", "fp16", "--socket", "s"]),
                ("leaves no prompt", "agree", ["--profiles", "fp16", "--predict", "1024"]),
                ("from 1 to 24", "needle", ["--profiles", "fp16", "--keys", "25"]),
                ("not with --f16-weights", "measure",
                 ["--profiles", "fp16", "--inject-outliers", "--f16-weights"]),
            ):
                done = run(EVAL, command, *base[1:], *args, code=2)
                self.assertIn(sentence, done.stderr)
            done = run(EVAL, "needle", *base[1:], "--profiles", "fp16", "--ctx", "64", code=1)
            self.assertIn("--ctx 64 is too short for 8 keys", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
