#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The steps of tools/demo, which builds first and then calls this."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
DATA = os.path.join(HERE, "demo-data")
BIN = os.path.join(ROOT, "build", "bin")
MODEL = os.path.join(ROOT, "build", "model.gguf")
OUT = os.path.join(ROOT, "build", "demo.json")
# Engines would make and keep one in the user's data folder; a demo leaves nothing there.
CALIBRATION = os.path.join(ROOT, "build", "model.skvqcal")

# What issue after issue must keep true.
MATCHED_MIN = 0.95     # of the shared document
SHARED_TTFT_MAX = 0.15  # of the cold first token
BYTES_MAX = 1 / 4.5    # of FP16, with the default profile


class Failed(Exception):
    """A sentence for the user."""


def say(text):
    print(text, flush=True)


def read(name):
    with open(os.path.join(DATA, name), encoding="utf-8") as f:
        return f.read().strip()


def run(what, command, timeout=900):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"{what} did not end within {timeout} s") from None
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise Failed(f"{what} failed with status {done.returncode}")
    return done.stdout


class Daemon:
    """skvqd on a socket in a folder of its own; stopped by its pid whatever happens."""

    def __init__(self, folder, options=()):
        self.socket = os.path.join(folder, "skvqd.sock")
        self.log = os.path.join(folder, "skvqd.log")
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", self.socket,
                                             *options],
                                            stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ctl(self, *args):
        return run("skvqctl " + args[0],
                   [os.path.join(BIN, "skvqctl"), "--socket", self.socket, *args], timeout=30)

    def fail(self, text):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            sys.stderr.write(log.read())
        raise Failed(text)

    def wait_ready(self):
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.fail(f"skvqd ended at once with status {self.process.returncode}")
            if os.path.exists(self.socket):
                try:
                    return self.ctl("ping")
                except Failed:
                    pass
            time.sleep(0.05)
        return self.fail("skvqd did not answer within 15 s")

    def stop(self):
        """True if it ended by itself within 5 s of SIGTERM."""
        if self.process.poll() is not None:
            return False
        self.process.terminate()
        try:
            return self.process.wait(timeout=5) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False


class Engine:
    """One skvq-llama process: reads the document, answers the question, and beside it lets plain
    llama.cpp answer the same, for the comparison."""

    def __init__(self, name, daemon, folder, question, args):
        self.name = name
        prompt = os.path.join(folder, f"prompt-{name}.txt")
        with open(prompt, "w", encoding="utf-8") as f:
            f.write(read("document.txt") + "\n\n" + question + "\n")
        self.json = os.path.join(folder, f"engine-{name}.json")
        self.log = open(os.path.join(folder, f"engine-{name}.log"), "w+", encoding="utf-8",
                        errors="replace")
        self.process = subprocess.Popen(
            [os.path.join(BIN, "skvq-llama"), "--model", MODEL, "--socket", daemon.socket,
             "--profile", args.profile, "--calibration", CALIBRATION, "--prompt-file", prompt, "--chat", "-n", str(args.n),
             "--compare-plain", "--json", self.json],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def finish(self, meanwhile, timeout=900):
        """Calls meanwhile() while the engine runs; its results as a dict."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.stop()
                raise Failed(f"engine {self.name} did not end within {timeout} s")
            meanwhile()
            time.sleep(0.1)
        if self.process.returncode:
            self.log.seek(0)
            sys.stderr.write(self.log.read())
            raise Failed(f"engine {self.name} (skvq-llama) ended with status "
                         f"{self.process.returncode}")
        with open(self.json, encoding="utf-8") as f:
            return json.load(f)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                             for i, (c, w) in enumerate(zip(row, widths))))


def answers(question, ours, theirs):
    say(f"\n  Question: {question}")
    for label, text in (("skvqd", ours), ("plain llama.cpp", theirs)):
        text = " ".join(text.split())
        say(textwrap.fill(f"{label}: {text}", 96, initial_indent="    ",
                          subsequent_indent="      "))


def demo(args, folder, processes):
    for name in ("skvqd", "skvqctl", "skvq-llama", "skvq-calibrate"):
        if not os.path.exists(os.path.join(BIN, name)):
            raise Failed(f"build/bin/{name} is not there; did tools/build run?")
    if not os.path.exists(MODEL):
        raise Failed("build/model.gguf is not there; did tools/build run with llama.cpp?")

    if os.path.exists(CALIBRATION):
        say("== the model is calibrated already: build/model.skvqcal")
    else:
        say("== the model is calibrated, once, on text that it generates itself")
        start = time.monotonic()
        run("skvq-calibrate", [os.path.join(BIN, "skvq-calibrate"), "--model", MODEL, "--tokens",
                               "2048", "--no-sensitivity", "--quiet", "--output", CALIBRATION])
        say(f"  {time.monotonic() - start:.1f} s")
    say("== skvqd starts")
    daemon = Daemon(folder)
    processes.append(daemon)
    say("  " + daemon.wait_ready().strip())
    ping = json.loads(daemon.ctl("ping", "-c", "2000", "--json"))

    questions = [read("question-1.txt"), read("question-2.txt")]
    say("== engine A reads the document and answers a question; nothing is cached yet")
    engine = Engine("A", daemon, folder, questions[0], args)
    processes.append(engine)
    a = engine.finish(lambda: None)
    if a["matched_tokens"]:
        raise Failed(f"engine A matched {a['matched_tokens']} tokens in an empty daemon")

    say("== engine B, another process: the same document, another question")
    seen = {"pages": 0, "text": ""}

    def look():
        pins = json.loads(daemon.ctl("pins", "--json"))["pins"]
        pages = sum(p["pages"] for p in pins)
        if pages > seen["pages"]:
            seen.update(pages=pages, text=daemon.ctl("pins"))

    engine = Engine("B", daemon, folder, questions[1], args)
    processes.append(engine)
    b = engine.finish(look)

    status = json.loads(daemon.ctl("status", "--json"))
    namespaces = json.loads(daemon.ctl("ls", "--json"))["namespaces"]
    say("\n== skvqctl pins, while B was running")
    say(textwrap.indent(seen["text"].rstrip() or "(B held no page when we looked)", "  "))
    say("== skvqctl ls")
    say(textwrap.indent(daemon.ctl("ls").rstrip(), "  "))
    say("== skvqctl status")
    say(textwrap.indent(daemon.ctl("status").rstrip(), "  "))
    say("\n== answers")
    answers(questions[0], a["text"], a["plain_text"])
    answers(questions[1], b["text"], b["plain_text"])

    # The document and the chat template in front of it end before the question does.
    shared_tokens = min(a["prompt_tokens"], b["prompt_tokens"])
    result = {
        "profile": args.profile,
        "calibration": a["calibration"],
        "prompt_tokens": b["prompt_tokens"],
        "prompt_tokens_cold": a["prompt_tokens"],
        "matched_tokens": b["matched_tokens"],
        "matched_share": b["matched_tokens"] / shared_tokens,
        "ttft_cold_s": a["ttft_s"],
        "ttft_shared_s": b["ttft_s"],
        "ttft_plain_s": b["ttft_plain_s"],
        "ttft_plain_cold_s": a["ttft_plain_s"],
        "shared_of_cold": b["ttft_s"] / a["ttft_s"],
        "tokens_per_s_cold": a["tokens_per_s"],
        "tokens_per_s_shared": b["tokens_per_s"],
        "kv_bytes_fp16": b["kv_bytes_fp16"],
        "kv_bytes_local": b["kv_bytes_local"],
        "kv_bytes_shared": b["kv_bytes_shared"],
        "bytes_per_token": b["bytes_per_token"],
        "bytes_per_token_fp16": b["bytes_per_token_fp16"],
        "bytes_share": b["bytes_per_token"] / b["bytes_per_token_fp16"],
        "kld_mean": (a["kld_mean"] + b["kld_mean"]) / 2,
        "kld_mean_cold": a["kld_mean"],
        "kld_mean_shared": b["kld_mean"],
        "ping_p50_us": ping["rtt_p50_us"],
        "ping_p99_us": ping["rtt_p99_us"],
        "daemon_pages": status["pages"],
        "daemon_bytes": status["bytes_resident"],
        "daemon_namespaces": len(namespaces),
        "pages_held_by_b": seen["pages"],
        "text_cold": a["text"],
        "text_shared": b["text"],
        "plain_text_cold": a["plain_text"],
        "plain_text_shared": b["plain_text"],
    }
    if not daemon.stop():
        daemon.fail("skvqd did not end cleanly on SIGTERM")

    say("\n== figures")
    table([
        ("time to first token", "seconds", "of cold"),
        ("  cold: engine A, nothing cached", f"{a['ttft_s']:.3f}", "100 %"),
        ("  shared: engine B, A's pages", f"{b['ttft_s']:.3f}",
         f"{100 * result['shared_of_cold']:.1f} %"),
        ("  plain llama.cpp, B's prompt", f"{b['ttft_plain_s']:.3f}",
         f"{100 * b['ttft_plain_s'] / a['ttft_s']:.1f} %"),
    ])
    say(f"  profile {args.profile}, calibration: {os.path.basename(a['calibration'])}")
    say(f"  prompt {b['prompt_tokens']} tokens, {b['matched_tokens']} of them matched "
        f"({100 * result['matched_share']:.1f} % of what the two prompts share)")
    say(f"  K/V of a token older than the window: {b['bytes_per_token']:.0f} bytes, in FP16 "
        f"{b['bytes_per_token_fp16']:.0f}: 1/{1 / result['bytes_share']:.1f}")
    say(f"  mean KLD of the next token against plain llama.cpp over the answer: A "
        f"{a['kld_mean']:.4f}, B {b['kld_mean']:.4f}")
    say(f"  round trip to skvqd: p50 {ping['rtt_p50_us']:.0f} us, p99 {ping['rtt_p99_us']:.0f} us")
    return result


def check(result, profile):
    if result["matched_share"] < MATCHED_MIN:
        raise Failed(f"engine B matched {100 * result['matched_share']:.1f} % of the shared "
                     f"document, less than {100 * MATCHED_MIN:.0f} %")
    if result["shared_of_cold"] > SHARED_TTFT_MAX:
        raise Failed(f"the shared first token took {100 * result['shared_of_cold']:.1f} % of the "
                     f"cold one, more than {100 * SHARED_TTFT_MAX:.0f} %")
    if profile == "k4v2" and result["bytes_share"] > BYTES_MAX:
        raise Failed(f"a token takes {result['bytes_per_token']:.0f} bytes, more than a sixth of "
                     f"FP16's {result['bytes_per_token_fp16']:.0f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="k4v2")
    parser.add_argument("-n", type=int, default=48)
    parser.add_argument("--started", type=float, default=time.time())
    args = parser.parse_args()

    # A kill must still stop the daemon.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = tempfile.mkdtemp(prefix="skvq-demo.", dir="/tmp")
    processes = []
    try:
        result = demo(args, folder, processes)
        result["seconds_total"] = time.time() - args.started
        with open(OUT, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=2)
            f.write("\n")
        say(f"  all of it, build included: {result['seconds_total']:.0f} s; figures are in "
            f"build/demo.json")
        check(result, args.profile)
        return 0
    except Failed as e:
        print(f"tools/demo: {e}", file=sys.stderr)
        return 1
    except KeyError as e:
        print(f"tools/demo: a result lacks the key {e}", file=sys.stderr)
        return 1
    finally:
        for process in reversed(processes):
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
