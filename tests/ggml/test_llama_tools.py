#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own programs, unmodified, with libggml-skvq.so: llama-server, llama-cli, llama-bench.

  test_llama_tools.py LLAMA_TOOLS BACKEND.so MODEL.gguf     (LLAMA_TOOLS: of tools/build --llama-tools)

Exit status 77 where they were not built.
"""
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest

TOOLS, BACKEND, MODEL = sys.argv[1:4]
del sys.argv[1:4]
# These have the CPU backend linked in, and such builds look for other backends only where an option calls
# for it: an override of no tensor is one.
LOAD = ["-ot", "^$=CPU"]
PAGES = re.compile(r"(\d+) of (\d+) attention nodes were computed over pages")
PROMPT = "The harbour was quiet that morning, and the boats lay still. " * 40


def environment(ours, **more):
    env = {k: v for k, v in os.environ.items() if k != "GGML_BACKEND_PATH"}
    if ours:
        env["GGML_BACKEND_PATH"] = BACKEND
    return {**env, **more}


def program(name):
    return os.path.join(TOOLS, "bin", name)


class Server:
    def __init__(self, folder, ours, *options, **env):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = os.path.join(folder, f"server-{self.port}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program("llama-server"), "-m", MODEL, *LOAD, "-fa", "on", "--parallel", "1", "-c", "2048", "-t", "1",
                 "--host", "127.0.0.1", "--port", str(self.port), "--no-webui", "-v", *options], stdout=log,
                stderr=log, stdin=subprocess.DEVNULL, env=environment(ours, **env))
        end = time.monotonic() + 120
        while self.get("/health") != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError("llama-server does not start:\n" + self.logged()[-4000:])
            time.sleep(.1)

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def complete(self, prompt, n, **more):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/completion", json.dumps(
                {"prompt": prompt, "n_predict": n, "temperature": 0, "return_tokens": True, "ignore_eos": True,
                 **more}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {data[:500]}")
            return json.loads(data)["tokens"]
        finally:
            connection.close()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def logged(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()


def same(a, b):
    """Tokens before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Programs(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def served(self, ours, *options, **env):
        """Answers to a prompt, to the same again (its own prefix cache), and to an edited one."""
        server = Server(self.folder.name, ours, *options, **env)
        try:
            answers = [server.complete(PROMPT, 24), server.complete(PROMPT, 24),
                       server.complete(PROMPT[:1200] + " Then a bell rang.", 24)]
        finally:
            server.stop()
        return answers, server.logged()

    def test_llama_server(self):
        want, log = self.served(False)
        self.assertIsNone(PAGES.search(log))
        got, log = self.served(True, SKVQ_GGML_PROFILE="k8v8")
        found = PAGES.search(log)
        self.assertTrue(found, log[-4000:])
        # 24 tokens three times, in 30 layers, but for the first of each, which the prompt's batch gives.
        self.assertGreaterEqual(int(found.group(1)), 3 * 20 * 30)
        for a, b in zip(want, got):
            self.assertEqual(len(b), 24)
            self.assertGreaterEqual(same(a, b), 12, (a, b))

    def test_llama_server_with_several_slots_is_left_to_ggml(self):
        server = Server(self.folder.name, True, "--parallel", "2")
        try:
            self.assertEqual(len(server.complete(PROMPT, 8)), 8)
        finally:
            server.stop()

    def test_llama_cli(self):
        done = subprocess.run([program("llama-cli"), "-m", MODEL, *LOAD, "-fa", "on", "-c", "2048", "-t", "1", "-n", "16",
                               "-p", PROMPT, "--temp", "0", "-v", "--single-turn"], capture_output=True,
                              text=True, timeout=300, stdin=subprocess.DEVNULL, check=False, errors="replace",
                              env=environment(True))
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        found = PAGES.search(done.stderr + done.stdout)
        self.assertTrue(found, done.stderr[-4000:])
        self.assertGreater(int(found.group(1)), 0)

    def test_llama_bench(self):
        for ours in (False, True):
            done = subprocess.run([program("llama-bench"), "-m", MODEL, "-fa", "1", "-t", "1", "-p", "0", "-n", "8",
                                   "-d", "512", "-r", "1", "-o", "json", "-v"], capture_output=True, text=True,
                                  timeout=300, check=False, env=environment(ours))
            self.assertEqual(done.returncode, 0, done.stderr[-4000:])
            self.assertEqual(bool(PAGES.search(done.stderr)), ours, done.stderr[-4000:])
            self.assertGreater(json.loads(done.stdout)[0]["avg_ts"], 0)


if __name__ == "__main__":
    if not os.path.exists(program("llama-server")):
        print("llama-server was not built: tools/build --llama-tools")
        sys.exit(77)
    unittest.main(verbosity=1)
