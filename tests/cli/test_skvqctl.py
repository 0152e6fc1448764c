#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvqctl as people and scripts meet it: exit status, words, JSON keys; with and without skvqd."""
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import threading
import time
import unittest

BIN = sys.argv.pop(1)
VERBS = ["status", "top", "ls", "pins", "errors", "calibration", "why-miss", "events", "trace", "ping", "bench", "doctor",
         "show", "prefetch", "evict", "drain", "verify", "tenants", "quota", "config"]
TOKENS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokens.txt")
ARGUMENTS = {"top": ["--batch"], "calibration": [__file__], "why-miss": ["-n", "1", TOKENS],
             "show": ["1:0.1"], "prefetch": ["-n", "1", TOKENS], "evict": ["-n", "1"],
             "quota": ["set", "x", "ram_max=1M"], "config": ["show"], "trace": ["record", "-"]}

STATUS_KEYS = {"version", "socket", "boot_id", "pid", "uptime_ms", "connections",
               "connections_max", "namespaces", "pages", "bytes_resident", "bytes_kernel",
               "bytes_max", "pins", "disk", "counters", "histograms", "tenants"}
TOP_KEYS = {"boot_id", "seconds", "connections", "pages", "bytes_resident", "bytes_max", "pins",
            "disk_bytes", "hit_share", "per_second", "within"}
NAMESPACE_KEYS = {"ns", "tenant", "identity", "model_name", "profile", "engine_numerics",
                  "n_layer", "n_kv_heads", "head_dim_k", "head_dim_v", "page_bytes",
                  "page_tokens", "pages", "bytes", "pins", "tokens_asked", "tokens_matched",
                  "page_hits", "evictions"}
PAGE_KEYS = {"slot", "generation", "parent_slot", "parent_generation", "position", "state",
             "pins", "children", "bytes", "hits", "age_ms", "idle_ms", "shed", "digest"}
PIN_KEYS = {"connection", "pid", "uid", "gid", "name", "pins", "pages", "bytes", "age_ms"}
ERROR_KEYS = {"ns", "model_name", "profile", "layers", "pages_safe"}
SIDE_KEYS = {"bits", "pages", "mean", "max", "histogram"}
PING_KEYS = {"socket", "daemon_version", "boot_id", "count", "payload_bytes", "rtt_min_us",
             "rtt_p50_us", "rtt_p99_us", "rtt_max_us", "seconds_total"}
WHY_KEYS = {"ns", "tokens", "pages", "pages_memory", "pages_disk", "disk_ms", "end", "position",
            "gone_ms", "same_tokens", "shift", "other_ns", "other_pages", "other_differs"}
BENCH_KEYS = {"pages", "page_bytes", "profile", "ping_p50_us", "ping_p99_us", "publish_gb_s",
              "match_p50_us", "read_gb_s"}
EVENT_KEYS = {"kind", "number", "time_ms", "tenant", "ns", "tier", "why", "slot", "generation", "digest",
              "parent", "position", "tokens", "token_ids", "model_name", "identity", "chain", "chain_cut",
              "pages_memory", "pages_disk", "lost"}
TRACE_KEYS = {"requests", "tokens", "pages", "pages_different", "hit_share", "lost", "cut",
              "pages_published", "page_bytes", "refused", "evictions", "seconds", "match_p50_us", "match_p99_us",
              "publish_p50_us", "publish_p99_us", "late_ms"}
CALIBRATION_KEYS = {"bytes", "stored", "replaced"}


def ctl(*args, env=None):
    environment = {k: v for k, v in os.environ.items() if k != "SKVQD_SOCKET"}
    environment.update(env or {})
    return subprocess.run([os.path.join(BIN, "skvqctl"), *args], capture_output=True, text=True,
                          timeout=30, env=environment)


class WithoutDaemon(unittest.TestCase):
    def test_each_verb_says_which_socket_and_what_to_do(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "nobody.sock")
            for verb in VERBS:
                if verb == "doctor":  # for which that is a finding
                    continue
                with self.subTest(verb=verb):
                    result = ctl("--socket", path, verb, *ARGUMENTS.get(verb, []))
                    self.assertEqual((result.returncode, result.stdout), (3, ""))
                    self.assertEqual(len(result.stderr.splitlines()), 1)
                    self.assertIn(path, result.stderr)
                    self.assertIn("skvqd --socket", result.stderr)

    def test_a_socket_file_nobody_listens_on_is_no_daemon(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "dead.sock")
            dead = socket.socket(socket.AF_UNIX)
            dead.bind(path)
            dead.close()
            result = ctl("ping", "--socket", path)
            self.assertEqual(result.returncode, 3)
            self.assertIn(path, result.stderr)

    def test_the_socket_comes_from_the_environment_unless_named(self):
        self.assertIn("/nowhere/a", ctl("ping", env={"SKVQD_SOCKET": "/nowhere/a"}).stderr)
        result = ctl("ping", "-s", "/nowhere/b", env={"SKVQD_SOCKET": "/nowhere/a"})
        self.assertIn("/nowhere/b", result.stderr)
        self.assertIn("/run/skvqd/skvqd.sock", ctl("ping", env={"SKVQD_SOCKET": ""}).stderr)

    def test_a_path_too_long_for_a_socket_is_told(self):
        result = ctl("ping", "--socket", "/tmp/" + "x" * 200)
        self.assertEqual(result.returncode, 1)
        self.assertIn("205", result.stderr)

    def test_wrong_usage_is_status_2(self):
        for args in ([], ["frobnicate"], ["ls", "--pages"], ["ls", "--pages", "-1"],
                     ["ls", "--pages", "4294967296"], ["ping", "-c", "0"], ["ping", "-c", "1x"],
                     ["ping", "--size", "65537"], ["status", "extra"], ["top"], ["top", "-b", "-o", "nonsense"], ["top", "-b", "-v", "x"], ["top", "-i", "99"], ["bench", "-p", "0"], ["doctor", "x"], ["help", "nothing"], ["config"], ["config", "check"], ["config", "nonsense"], ["config", "show", "x"],
                     ["config", "reload", "a", "b"], ["quota"], ["quota", "set", "a"], ["quota", "get", "a", "ram_max=1"],
                     ["quota", "set", "a", "ram_max"], ["quota", "set", "a", "ram_max="], ["quota", "set", "a", "uid=1"],
                     ["tenants", "x"], ["help", "man", "x"], ["pins", "--nonsense"], ["errors", "-n", "x"],
                     ["errors", "1"], ["calibration"], ["calibration", "--replace"],
                     ["calibration", "a", "b"],
                     ["why-miss"], ["why-miss", TOKENS], ["why-miss", "-n", "1", TOKENS, "b"]):
            with self.subTest(args=args):
                result = ctl(*args)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertTrue(result.stderr.startswith("skvqctl"), result.stderr)

    @unittest.skipUnless(os.getuid() == 0, "only root can be somebody else")
    def test_a_socket_one_may_not_use_is_status_4(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
            os.chmod(folder, 0o755)
            path = os.path.join(folder, "closed.sock")
            listening.bind(path)
            os.chmod(path, 0o600)
            listening.listen()
            binary = shutil.copy(os.path.join(BIN, "skvqctl"), folder)
            result = subprocess.run([binary, "-s", path, "ping"], capture_output=True, text=True,
                                    timeout=30, user=65534, group=65534, extra_groups=[])
            self.assertEqual((result.returncode, result.stdout), (4, ""))
            self.assertIn(path, result.stderr)
            self.assertIn("user 65534", result.stderr)

    def other_daemon(self, body, *args):
        """What skvqctl says to one whose hello is `body` and who answers nothing else."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
            path = os.path.join(folder, "other.sock")
            listening.bind(path)
            listening.listen()

            def answer():
                peer, _ = listening.accept()
                with peer:
                    peer.recv(4096)
                    reply = b"\x08\x01\x21" + bytes(7) + b"\x01\x52" + bytes([len(body)]) + body
                    peer.sendall(struct.pack("<IHH", len(reply), 0, 0x4b53) + reply)
                    peer.recv(1)
            thread = threading.Thread(target=answer)
            thread.start()
            result = ctl("-s", path, *args)
            thread.join()
            self.assertEqual((result.returncode, result.stdout), (5, ""), result.stderr)
            self.assertEqual(len(result.stderr.splitlines()), 1)
            return result.stderr

    def test_a_daemon_of_another_version_is_status_5(self):
        self.assertIn("protocol 2", self.other_daemon(b"\x08\x02", "ping"))
        bounds = b"\x20\x80\x80\x01\x28\x40\x30\x40"
        self.assertIn("one version", self.other_daemon(b"\x08\x01\x18\x01" + bounds, "why-miss", "-n",
                                                      "1", TOKENS))

    def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "nobody.sock")
            result = ctl("-s", path, "doctor", "--json", "--store", folder)
            self.assertEqual((result.returncode, result.stderr), (6, ""))
            d = json.loads(result.stdout)
            self.assertEqual(set(d), {"bad", "checks"})
            checks = {c["check"]: c for c in d["checks"]}
            for c in d["checks"]:
                self.assertEqual(set(c), {"check", "state", "found", "mend"})
            self.assertEqual(checks["daemon"]["state"], "bad")
            self.assertIn(path, checks["daemon"]["found"])
            self.assertIn("skvqd --socket", checks["daemon"]["mend"])
            self.assertEqual((checks["memfd"]["state"], checks["store"]["state"]), ("ok", "ok"))
            self.assertIn(checks["store_write"]["state"], ("ok", "note"))
            self.assertEqual(os.listdir(folder), [])  # nothing stays behind
            os.chmod(folder, 0o755)
            text = ctl("-s", path, "doctor", "--store", folder).stdout
            self.assertRegex(text, r"note +store .*\n? *.*0755")
            self.assertIn("-> chmod 700", text)
            result = ctl("-s", path, "doctor", "--json", "--store", folder + "/none",
                         env={"SKVQ_CPU": "abacus"})
            checks = {c["check"]: c for c in json.loads(result.stdout)["checks"]}
            self.assertEqual((checks["store"]["state"], checks["processor"]["state"]), ("bad", "bad"))

    @unittest.skipUnless(os.getuid() == 0, "only root can be somebody else")
    def test_doctor_of_a_user_who_may_not(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            store = os.path.join(folder, "store")
            os.mkdir(store, 0o755)
            binary = shutil.copy(os.path.join(BIN, "skvqctl"), folder)
            result = subprocess.run([binary, "doctor", "-j", "--store", store], capture_output=True,
                                    text=True, timeout=30, user=65534, group=65534, extra_groups=[])
            checks = {c["check"]: c for c in json.loads(result.stdout)["checks"]}
            self.assertEqual((result.returncode, checks["store_write"]["state"]), (6, "bad"))
            self.assertIn("user 65534", checks["store_write"]["found"])

    def test_what_stdout_does_not_take_is_told(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            result = subprocess.run([os.path.join(BIN, "skvqctl"), "help", "man"], stdout=full,
                                    stderr=subprocess.PIPE, text=True, timeout=30, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("No space left", result.stderr)

    def options(self, verb):
        """Of its help: (letter or "", long name)."""
        return re.findall(r"^  (?:-(\w), |    )--([\w-]+)", ctl(verb, "--help").stdout, re.M)

    def test_the_manual_has_each_verb_and_option(self):
        page = ctl("help", "man").stdout
        for verb in VERBS:
            self.assertIn(f'.SS "skvqctl {verb}'.replace("-", "\\-"), page)
            for _, name in self.options(verb):
                self.assertIn("\\-\\-" + name.replace("-", "\\-"), page)
        if shutil.which("man"):
            shown = subprocess.run(["man", "--warnings", "-l", "-"], input=page, text=True,
                                   capture_output=True, timeout=60, check=True,
                                   env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
            self.assertEqual(shown.stderr, "")
            self.assertIn("why-miss", shown.stdout)

    def complete(self, *words):
        script = ctl("help", "bash").stdout + textwrap.dedent("""
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            _skvqctl
            printf '%s\n' "${COMPREPLY[@]}"
            """)
        path = f"{BIN}:{os.environ['PATH']}"
        result = subprocess.run(["bash", "-euc", script, "bash", "skvqctl", *words], text=True, timeout=30,
                                capture_output=True, env={**os.environ, "PATH": path}, check=True)
        self.assertEqual(result.stderr, "")
        return result.stdout.split()

    def test_completion(self):
        self.assertEqual(self.complete("why"), ["why-miss"])
        self.assertLessEqual({"help", *VERBS}, set(self.complete("")))
        self.assertIn("fish", self.complete("help", ""))
        for verb in VERBS:
            words = {f"--{name}" for _, name in self.options(verb)}
            words |= {f"-{letter}" for letter, _ in self.options(verb) if letter}
            self.assertEqual(set(self.complete(verb, "-")), words)
            self.assertEqual(set(self.complete("-s", "/x", verb, "-")), words)
        self.assertIn(TOKENS, self.complete("why-miss", TOKENS[:-3]))
        self.assertIn(TOKENS, self.complete("ping", "--socket", TOKENS[:-3]))
        self.assertEqual(self.complete("ping", "-c", ""), [])
        for shell in ("zsh", "fish"):
            script = ctl("help", shell).stdout
            for verb in VERBS:
                self.assertIn(verb, script)
                for _, name in self.options(verb):
                    self.assertIn(name, script)
            if shutil.which(shell):
                subprocess.run([shell, "-n"], input=script, text=True, timeout=30, check=True)

    def test_help_is_on_stdout_and_names_the_json_keys(self):
        keys = {"status": STATUS_KEYS, "top": TOP_KEYS, "ls": NAMESPACE_KEYS | PAGE_KEYS, "pins": PIN_KEYS,
                "errors": ERROR_KEYS | SIDE_KEYS | {"bucket_from", "namespaces", "layer", "k", "v"},
                "calibration": CALIBRATION_KEYS, "why-miss": WHY_KEYS, "events": EVENT_KEYS, "trace": TRACE_KEYS, "ping": PING_KEYS, "bench": BENCH_KEYS,
                "show": {"ns", "digest", "holders", "layers", "tokens", "crc"},
                "prefetch": {"pages_memory", "pages_coming", "waited_ms"},
                "evict": {"dry_run", "written", "held", "over_budget", "records", "complete"},
                "drain": {"written", "on_disk", "refused", "complete"},
                "verify": {"damaged", "records_damaged", "records_unread", "complete"},
                "tenants": {"tenants", "tokens_asked", "tokens_matched", "refusals"},
                "quota": {"done", "changes", "key", "from", "to", "restart"},
                "config": {"text", "keys", "key", "live", "done", "changes", "from", "to", "restart", "error"},
                "doctor": {"bad", "checks", "check", "state", "found", "mend"}}
        self.assertEqual(ctl("--help").returncode, 0)
        for verb in VERBS:
            result = ctl(verb, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertIn(verb, ctl("--help").stdout)
            for key in keys[verb]:
                self.assertRegex(result.stdout, rf"\b{key}\b", f"{verb}: {key}")


class WithDaemon(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.socket = os.path.join(cls.folder.name, "skvqd.sock")
        cls.daemon = subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", cls.socket],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while ctl("ping", "--socket", cls.socket).returncode != 0:
            if cls.daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("skvqd did not start")
            time.sleep(0.02)

    @classmethod
    def tearDownClass(cls):
        cls.daemon.terminate()
        cls.daemon.wait(timeout=10)
        cls.folder.cleanup()

    def json(self, *args):
        result = ctl("--socket", self.socket, *args, "--json")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return json.loads(result.stdout)

    def text(self, *args):
        result = ctl("--socket", self.socket, *args)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def publish(self, pages):
        subprocess.run([os.path.join(BIN, "skvq-bench-publish"), "--socket", self.socket,
                        "--pages", str(pages), "--layers", "1", "--kv-heads", "1",
                        "--chains", "1"], check=True, capture_output=True, timeout=60)

    def test_ping(self):
        p = self.json("ping", "-c", "100", "--size", "64")
        self.assertEqual(set(p), PING_KEYS)
        self.assertEqual((p["count"], p["payload_bytes"]), (100, 64))
        self.assertLessEqual(p["rtt_min_us"], p["rtt_p50_us"])
        self.assertLessEqual(p["rtt_p50_us"], p["rtt_p99_us"])
        self.assertLessEqual(p["rtt_p99_us"], p["rtt_max_us"])
        self.assertIn("p99", self.text("ping", "-c", "10"))
        self.text("ping", "--size", "65536")

    def test_status(self):
        s = self.json("status")
        self.assertEqual(set(s), STATUS_KEYS)
        self.assertEqual((s["pid"], s["socket"]), (self.daemon.pid, self.socket))
        self.assertEqual(s["boot_id"], self.json("ping")["boot_id"])
        self.assertIn(f"pid {self.daemon.pid}", self.text("status"))

    def test_bench(self):
        b = self.json("bench", "--pages", "40")
        self.assertEqual(set(b), BENCH_KEYS)
        self.assertEqual(b["pages"], 40)
        for key in BENCH_KEYS - {"pages", "page_bytes", "profile"}:
            self.assertGreater(b[key], 0, key)
        self.assertIn("prefix of 33 pages, 2640 tokens", self.text("bench", "-p", "33"))
        result = ctl("-s", self.socket, "bench", "-p", "65536")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("more than half of ram_max", result.stderr)

    def test_bench_where_others_would_have_to_go(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "s")
            daemon = subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", path, "--ram-max", "32M"],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                deadline = time.monotonic() + 20
                while ctl("ping", "-s", path).returncode and time.monotonic() < deadline:
                    time.sleep(.02)
                self.assertEqual(ctl("-s", path, "bench", "-p", "32").returncode, 0)
                for _ in range(2):
                    ctl("-s", path, "bench", "-p", "32", "--yes")
                result = ctl("-s", path, "bench", "-p", "32")
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertIn("say --yes", result.stderr)
                self.assertEqual(ctl("-s", path, "bench", "-p", "32", "--yes").returncode, 0)
            finally:
                daemon.terminate()
                daemon.wait(timeout=20)

    def test_doctor_of_a_daemon_that_is_well(self):
        checks = {c["check"]: c for c in json.loads(ctl("-s", self.socket, "doctor", "-j").stdout)["checks"]}
        self.assertEqual({checks[name]["state"] for name in ("daemon", "arenas", "counters")}, {"ok"})
        self.assertIn("hits", checks)

    def test_top_in_batches(self):
        self.publish(3)
        result = ctl("-s", self.socket, "top", "-n", "2", "-i", "100", "--json")
        first, second = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual((set(first), set(second)), (TOP_KEYS, TOP_KEYS))
        self.assertGreater(first["per_second"]["publishes"], 0)
        self.assertGreater(first["within"]["publish_us"]["count"], 0)
        self.assertEqual((second["per_second"]["publishes"], second["within"]["publish_us"]["count"]), (0, 0))
        self.assertGreaterEqual(second["seconds"], .1)
        self.assertIn("made-up", self.text("top", "-b", "-n", "1"))
        self.assertIn("skvqctl", self.text("top", "-b", "-n", "1", "-v", "clients", "-o", "age"))
        self.assertIn("default", self.text("top", "-b", "-n", "1", "--view", "tenants"))

    def terminal(self, *args):
        """A terminal of 30 lines with skvqctl on it: (process, what was drawn until a text came)."""
        try:
            master, slave = pty.openpty()
        except OSError as e:
            self.skipTest(f"no terminal can be made here: {e}")
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        process = subprocess.Popen([os.path.join(BIN, "skvqctl"), "-s", self.socket, *args], stdin=slave,
                                   stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
        os.close(slave)
        self.addCleanup(os.close, master)
        self.addCleanup(process.kill)

        def until(text):
            drawn, deadline = b"", time.monotonic() + 20
            while text not in drawn:
                self.assertLess(time.monotonic(), deadline, (text, drawn))
                if select.select([master], [], [], .1)[0]:
                    drawn += os.read(master, 65536)
        return process, master, until

    def test_top_on_a_terminal(self):
        self.publish(3)
        process, master, until = self.terminal("top", "--interval", "100")
        until(b"made-up")
        os.write(master, b"2")
        until(b"CONNECTION")
        os.write(master, b"h")
        until(b"namespaces, clients, tenants")
        os.write(master, b"3")
        until(b"REFUSED/S")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 4, 20, 0, 0))
        os.kill(process.pid, signal.SIGWINCH)
        os.write(master, b"<>sr+-  \t1q")
        until(b"\x1b[?1049l")  # the screen of before is back
        self.assertEqual(process.wait(timeout=20), 0)

    def test_namespaces_and_their_pages(self):
        before = {n["ns"] for n in self.json("ls")["namespaces"]}
        self.publish(1500)  # more than one answer holds
        namespaces = self.json("ls")["namespaces"]
        new = [n for n in namespaces if n["ns"] not in before]
        self.assertEqual(len(new), 1)
        self.assertEqual(set(new[0]), NAMESPACE_KEYS)
        self.assertEqual((new[0]["pages"], new[0]["model_name"]), (1500, "made-up"))
        ns = str(new[0]["ns"])
        pages = self.json("ls", "--pages", ns)["pages"]
        self.assertEqual(len(pages), 1500)
        self.assertEqual(set(pages[0]), PAGE_KEYS)
        self.assertEqual(len({p["slot"] for p in pages}), 1500)
        self.assertEqual(sum(p["parent_generation"] == 0 for p in pages), 1)
        self.assertEqual(sum(p["bytes"] for p in pages), new[0]["bytes"])
        self.assertIn("made-up", self.text("ls"))
        self.assertEqual(len(self.text("ls", "-p", ns).splitlines()), 1501)

    def test_a_namespace_that_is_not_there(self):
        result = ctl("--socket", self.socket, "ls", "--pages", "4000000000")
        self.assertEqual((result.returncode, result.stdout.strip()), (1, ""))
        self.assertIn("4000000000", result.stderr)

    def test_errors_of_pages_that_an_engine_measured(self):
        plugin = os.path.join(BIN, os.pardir, "lib", "libskvq_plugin.so")
        subprocess.run([os.path.join(BIN, "engine"), plugin, self.socket], check=True,
                       capture_output=True, timeout=60)
        ns = [n for n in self.json("ls")["namespaces"] if n["model_name"] == "example"][0]
        e = self.json("errors", "--namespace", str(ns["ns"]))
        self.assertEqual(set(e), {"bucket_from", "namespaces"})
        self.assertEqual([e["bucket_from"][i] for i in (0, 4, 12)], [0, 2**-9, 2**-3])
        self.assertEqual([n["ns"] for n in e["namespaces"]], [ns["ns"]])
        self.assertEqual(set(e["namespaces"][0]), ERROR_KEYS)
        self.assertEqual(e["namespaces"][0]["pages_safe"], 0)
        layers = e["namespaces"][0]["layers"]
        self.assertEqual([layer["layer"] for layer in layers], list(range(ns["n_layer"])))
        for layer in layers:
            self.assertEqual(set(layer), {"layer", "k", "v"})
            for side in (layer["k"], layer["v"]):
                self.assertEqual(set(side), SIDE_KEYS)
                self.assertEqual((side["bits"], side["pages"]), (8, ns["pages"]))
                self.assertTrue(0 < side["mean"] <= side["max"] < 1e-4, side)
                self.assertEqual(side["histogram"], [ns["pages"]] + [0] * 15)
        worst = self.json("errors", "-w", "-n", str(ns["ns"]))["namespaces"][0]["layers"]
        self.assertCountEqual([layer["layer"] for layer in worst], range(ns["n_layer"]))
        means = [max(layer["k"]["mean"], layer["v"]["mean"]) for layer in worst]
        self.assertEqual(means, sorted(means, reverse=True))
        text = self.text("errors", "-n", str(ns["ns"])).splitlines()
        self.assertIn("example, k8v8", text[0])
        self.assertEqual(len(text), 2 + ns["n_layer"])
        self.assertEqual(text[2].count("9..............."), 2)

    def test_errors_that_nobody_measured(self):
        self.publish(2)
        ns = [n["ns"] for n in self.json("ls")["namespaces"] if n["model_name"] == "made-up"][0]
        layer = self.json("errors", "-n", str(ns))["namespaces"][0]["layers"][0]
        self.assertEqual((layer["k"]["pages"], layer["v"]["mean"]), (0, None))
        self.assertIn("nothing is known", self.text("errors", "-n", str(ns)))
        self.assertIn("made-up", self.text("errors"))
        result = ctl("--socket", self.socket, "errors", "-n", "4000000000")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("4000000000", result.stderr)

    def why(self, ns, tokens, *args):
        result = subprocess.run([os.path.join(BIN, "skvqctl"), "--socket", self.socket, "why-miss",
                                 "-n", str(ns), *args], input=json.dumps(tokens),
                                capture_output=True, text=True, timeout=30)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def test_why_a_match_ends(self):
        plugin = os.path.join(BIN, os.pardir, "lib", "libskvq_plugin.so")
        subprocess.run([os.path.join(BIN, "engine"), plugin, self.socket], check=True,
                       capture_output=True, timeout=60)
        info = [n for n in self.json("ls")["namespaces"]
                if (n["model_name"], n["profile"]) == ("example", "k8v8")][0]
        ns, pages = info["ns"], info["pages"]
        tokens = [t * 7919 % 49152 for t in range(80 * pages + 5)]
        w = json.loads(self.why(ns, tokens, "--json"))
        self.assertEqual(set(w), WHY_KEYS)
        self.assertEqual((w["ns"], w["tokens"], w["pages"]), (ns, len(tokens), pages))
        self.assertEqual((w["pages_memory"], w["pages_disk"], w["end"], w["position"]),
                         (pages, 0, "all", None))
        self.assertIn("Nothing is missing. The last 5 tokens", self.why(ns, tokens))
        tokens[100] += 1
        w = json.loads(self.why(ns, tokens, "-j"))
        self.assertEqual((w["pages_memory"], w["end"], w["position"], w["same_tokens"]),
                         (1, "differs", 100, 20))
        self.assertIn(f"Token 100 differs: it is {tokens[100]} here", self.why(ns, tokens))
        self.assertIn("at the beginning of a text", self.why(ns, tokens[1:]))
        self.assertIn("Nobody has published token 0", self.why(ns, [1, 2, 3] * 60))
        result = ctl("--socket", self.socket, "why-miss", "-n", "4000000000", TOKENS)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("4000000000", result.stderr)

    def test_tokens_that_are_none(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "tokens")
            for text, sentence in (("1 2\n3 x", "line 2: token ids in decimal"), ("", "no tokens"),
                                   ("-1", "token ids"), ("2147483648", "less than 2^31"),
                                   ("1 " * (2**20 + 1), "more than 1048576")):
                with open(path, "w", encoding="ascii") as f:
                    f.write(text)
                result = ctl("--socket", self.socket, "why-miss", "-n", "1", path)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertIn(path + ", line", result.stderr)
                self.assertIn(sentence, result.stderr)
        result = ctl("--socket", self.socket, "why-miss", "-n", "1", "/nonexistent")
        self.assertEqual(result.returncode, 1)

    def test_calibration_that_is_none(self):
        """One that is: tests/llama/test_llama_calibration.py."""
        for args, sentence in ((["/nonexistent"], "No such file"), (["/tmp"], "not a calibration file"),
                               (["/dev/null"], "not a calibration file"),
                               (["--replace", __file__], "magic at offset 0")):
            result = ctl("--socket", self.socket, "calibration", *args)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn(sentence, result.stderr)

    def test_nothing_moves_the_cursor(self):
        """C0 and C1, the latter as one byte and as UTF-8. Other languages stay."""
        word = b"\x1b[2J\xc2\x9b2J\x9b2J\xe2\x82 \xc3\xa9\xe2\x82\xac"
        result = subprocess.run([os.path.join(BIN, "skvqctl"), "-s", self.socket, "show", word],
                                capture_output=True, timeout=60)
        self.assertEqual(result.returncode, 2)
        self.assertIn(b"'?[2J??2J?2J?? \xc3\xa9\xe2\x82\xac'", result.stderr)

    def test_pins_and_a_hostile_name(self):
        name = b"bad\x1b[31m\nname"
        hello = b"\x08\x01\x22" + bytes([len(name)]) + name
        request = b"\x08\x01\x52" + bytes([len(hello)]) + hello
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.socket)
            s.sendall(struct.pack("<IHH", len(request), 0, 0x4b53) + request)
            s.recv(1)
            pins = self.json("pins")["pins"]
            text = self.text("pins")
        self.assertNotIn("\x1b", text)
        mine = [p for p in pins if p["pid"] == os.getpid()]
        self.assertEqual(len(mine), 1)
        self.assertEqual(set(mine[0]), PIN_KEYS)
        self.assertEqual((mine[0]["pins"], mine[0]["uid"]), (0, os.getuid()))


if __name__ == "__main__":
    unittest.main(verbosity=1)
