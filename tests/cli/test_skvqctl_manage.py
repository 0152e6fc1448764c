#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvqctl show, ls with filters, evict, drain, verify and prefetch, with real daemons and a store."""
import glob
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BIN = sys.argv.pop(1)
SHOW_KEYS = {"ns", "tenant", "slot", "generation", "digest", "parent", "position", "state", "unlisted",
             "safe", "shed", "on_disk", "spilling", "pins", "hits", "age_ms", "idle_ms", "bytes", "crc",
             "header", "children", "holders", "layers", "tokens"}
EVICT_KEYS = {"dry_run", "pages", "bytes", "written", "written_bytes", "held", "refused", "over_budget",
              "records", "record_bytes", "complete"}
VERIFY_KEYS = {"pages", "bytes", "damaged", "records", "record_bytes", "records_damaged", "records_unread",
               "complete"}
DRAIN_KEYS = {"written", "written_bytes", "on_disk", "refused", "over_budget", "complete"}
PREFETCH_KEYS = {"ns", "tokens", "pages", "pages_memory", "pages_coming", "waited_ms"}


def program(name):
    return os.path.join(BIN, name)


class Daemon:
    """skvqd in a folder of its own, with a store unless told otherwise."""

    def __init__(self, *args, store=True, config=None):
        self.folder = tempfile.mkdtemp()
        self.socket = os.path.join(self.folder, "skvqd.sock")
        self.store = os.path.join(self.folder, "store")
        self.args = [program("skvqd"), "--socket", self.socket, "--scrub-rate", "0"]
        if store:
            os.mkdir(self.store, 0o700)
            self.args += ["--store-folder", self.store, "--store-capacity-bytes", "64M",
                          "--store-segment-bytes", "4M", "--store-record-bytes", "1M",
                          "--store-spill-percent", "0", "--store-scrub-rate", "0",
                          "--store-write-bytes-per-day", "0"]
        if config:
            path = os.path.join(self.folder, "skvqd.conf")
            with open(path, "w", encoding="ascii") as f:
                f.write(config)
            self.args += ["--config", path]
        self.args += args
        self.start()

    def start(self):
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.process = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stderr=self.log)
        deadline = time.monotonic() + 60
        while self.ctl("ping").returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.close()
                raise RuntimeError("skvqd did not start")
            time.sleep(0.02)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.status = self.process.wait(timeout=60)
        self.log.close()

    def close(self):
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)

    def ctl(self, *args, stdin="", **kwargs):
        return subprocess.run([program("skvqctl"), "--socket", self.socket, *args], input=stdin,
                              capture_output=True, text=True, timeout=120, check=False, **kwargs)

    def engine(self):
        """A small engine publishes what it made, and goes. Its namespace, as ls has it."""
        plugin = os.path.join(BIN, os.pardir, "lib", "libskvq_plugin.so")
        subprocess.run([program("engine"), plugin, self.socket], check=True, capture_output=True,
                       timeout=120)
        spaces = json.loads(self.ctl("ls", "--json").stdout)["namespaces"]
        return [n for n in spaces if n["model_name"] == "example" and n["profile"] == "k8v8"][0]


def tokens_of(pages):
    return json.dumps([t * 7919 % 49152 for t in range(80 * pages)])


def varint(v):
    out = bytearray()
    while v > 127:
        out.append(v & 127 | 128)
        v >>= 7
    return bytes(out) + bytes([v])


def number(field, value):
    """A field of a protobuf message."""
    return varint(field << 3) + varint(value)


def message(field, *parts):
    body = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(body)) + body


def fields(data):
    """Of a message with numbers, fixed64 and parts: the last of each field."""
    at, ret = 0, {}

    def take():
        nonlocal at
        v, shift = 0, 0
        while True:
            byte, at = data[at], at + 1
            v |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return v
    while at < len(data):
        key = take()
        n = {0: 0, 1: 8, 2: 0}[key & 7]
        v = take() if key & 7 != 1 else 0
        if key & 7 == 2:
            n, v = v, data[at:at + v]
        ret[key >> 3], at = v, at + n
    return ret


class Raw:
    """A client that asks what skvqctl never would."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(path)
        self.ask(message(10, number(1, 1), number(3, 1024)))

    def get(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            assert more, "the daemon has hung up"
            data += more
        return data

    def ask(self, body):
        """The reply's payload."""
        payload = number(1, 1) + body
        self.sock.sendall(struct.pack("<IHH", len(payload), 0, 0x4b53) + payload)
        return self.get(struct.unpack("<IHH", self.get(8))[0])

    def evict(self, *parts):
        return self.ask(message(33, *parts, number(12, 2000)))


class Manage(unittest.TestCase):
    def daemon(self, *args, **kwargs):
        d = Daemon(*args, **kwargs)
        self.addCleanup(d.close)
        return d

    def json(self, d, *args, status=0, **kwargs):
        result = d.ctl(*args, "--json", **kwargs)
        self.assertEqual((result.returncode, result.stderr), (status, ""), result.stdout)
        return json.loads(result.stdout)

    def refused(self, d, status, sentence, *args, **kwargs):
        result = d.ctl(*args, **kwargs)
        self.assertEqual((result.returncode, result.stdout), (status, ""), result.stderr)
        self.assertIn(sentence, result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1)

    def pages(self, d, ns, *args):
        return self.json(d, "ls", "--pages", str(ns), *args)["pages"]

    def test_show(self):
        d = self.daemon()
        info = d.engine()
        ns, n = info["ns"], info["pages"]
        first, second = sorted(self.pages(d, ns), key=lambda p: p["position"])[:2]
        name = f"{ns}:{first['slot']}.{first['generation']}"
        p = self.json(d, "show", name)
        self.assertEqual(set(p), SHOW_KEYS)
        self.assertEqual((p["ns"], p["tenant"], p["slot"], p["digest"], p["parent"], p["tokens"]),
                         (ns, "default", first["slot"], first["digest"], None, None))
        self.assertEqual((p["state"], p["on_disk"], p["pins"], p["holders"], p["crc"]),
                         ("resident", False, 0, [], "good"))
        self.assertEqual(p["children"], [{"slot": second["slot"], "generation": second["generation"]}])
        self.assertEqual(len(p["layers"]), info["n_layer"])
        self.assertEqual((p["layers"][0]["k_bits"], p["layers"][0]["v_bits"]), (8, 8))
        self.assertTrue(0 < p["layers"][0]["k_error"] < 1e-4)
        self.assertEqual(p["header"]["base_bytes"], info["page_bytes"])
        q = self.json(d, "show", second["digest"][:9], "--tokens")
        self.assertEqual(q["parent"], {"slot": first["slot"], "generation": first["generation"]})
        self.assertEqual(q["tokens"], json.loads(tokens_of(2))[80:])
        text = d.ctl("show", f"{first['slot']}.{first['generation']}", "-n", str(ns), "-t").stdout
        for part in (first["digest"], "checksums    good", "memory", "LAYER", "tokens\n0 7919"):
            self.assertIn(part, text)
        self.refused(d, 1, "more than one page" if n > 16 else "begins so", "show", "f" * 64)
        self.refused(d, 1, f"no page {first['slot']}.99", "show", f"{ns}:{first['slot']}.99")
        self.refused(d, 1, "4000000", "show", f"4000000:{first['slot']}.1")
        for text in ("x", "1:2", "1:2.0", "1:2.3.4", "a" * 65, "1.2", "-1:0.1", "1:2.99999999999"):
            self.refused(d, 2, "is no page", "show", "--", text)

    def test_show_of_damage(self):
        """The daemon's memory cannot be written from outside: what is shown is of the store."""
        d = self.daemon()
        ns = d.engine()["ns"]
        self.json(d, "evict", "-n", str(ns), "--yes")
        page = self.pages(d, ns, "--disk")[0]
        shown = self.json(d, "show", page["digest"])
        self.assertEqual((shown["state"], shown["on_disk"], shown["position"]),
                         ("stored", True, page["position"]))
        self.assertIn("disk alone", d.ctl("show", page["digest"]).stdout)

    def test_ls_filters(self):
        d = self.daemon()
        info = d.engine()
        ns = info["ns"]
        for args, n in ((["--tenant", "default"], True), (["--tenant", "other"], False),
                        (["--model", "xamp"], True), (["--model", "llama"], False),
                        (["--profile", "k8v8"], True), (["--profile", "k8"], False)):
            found = self.json(d, "ls", *args)["namespaces"]
            self.assertEqual(ns in [f["ns"] for f in found], n, args)
        self.assertIn("no namespace is of that kind", d.ctl("ls", "--model", "llama").stdout)
        every = self.pages(d, ns)
        self.assertEqual(len(self.pages(d, ns, "--state", "resident")), len(every))
        self.assertEqual(self.pages(d, ns, "--pinned"), [])
        self.assertEqual(self.pages(d, ns, "--idle-over", "3600"), [])
        self.assertEqual(self.pages(d, ns, "--min-hits", "1000000"), [])
        by_position = self.pages(d, ns, "--sort", "position", "--limit", "2")
        self.assertEqual([p["position"] for p in by_position], [0, 80])
        sizes = [p["bytes"] for p in self.pages(d, ns, "--sort", "bytes")]
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.json(d, "drain")
        self.assertEqual(len(self.pages(d, ns, "--state", "resident+stored")), len(every))
        self.assertEqual(len(self.pages(d, ns, "--disk")), len(every))  # none is on disk alone
        self.json(d, "evict", "-n", str(ns), "-y")
        self.assertEqual(self.pages(d, ns), [])
        alone = self.pages(d, ns, "--state", "stored", "--sort", "position")
        self.assertEqual([p["digest"] for p in alone],
                         [p["digest"] for p in sorted(every, key=lambda p: p["position"])])
        for args in (["--pinned"], ["--pages", "1", "--model", "x"], ["--pages", "1", "--sort", "x"],
                     ["--pages", "1", "--state", "x"], ["--pages", "1", "--limit", "0"]):
            self.assertEqual(d.ctl("ls", *args).returncode, 2, args)

    def test_evict_and_back(self):
        d = self.daemon()
        info = d.engine()
        ns, n = info["ns"], info["pages"]
        dry = self.json(d, "evict", "--namespace", str(ns), "--dry-run")
        self.assertEqual(set(dry), EVICT_KEYS)
        self.assertEqual((dry["dry_run"], dry["pages"], dry["written"], dry["held"]), (True, n, n, 0))
        self.assertIn(f"takes {n} pages", d.ctl("evict", "-n", str(ns), "--dry-run").stdout)
        self.refused(d, 2, f"takes {n} pages", "evict", "-n", str(ns))
        self.assertEqual(len(self.pages(d, ns)), n)
        e = self.json(d, "evict", "-n", str(ns), "--yes", "--to-disk")
        self.assertEqual((e["dry_run"], e["pages"], e["written"], e["refused"], e["complete"]),
                         (False, n, n, 0, True))
        self.assertEqual(self.pages(d, ns), [])
        f = self.json(d, "prefetch", "-n", str(ns), stdin=tokens_of(n))
        self.assertEqual(set(f), PREFETCH_KEYS)
        self.assertEqual((f["pages"], f["pages_memory"] + f["pages_coming"]), (n, n))
        f = self.json(d, "prefetch", "-n", str(ns), "--wait", stdin=tokens_of(n))
        self.assertEqual((f["pages_memory"], f["pages_coming"]), (n, 0))
        self.assertEqual(len(self.pages(d, ns, "--state", "resident+stored")), n)
        # One page and what is behind it; then the idle ones; then for good.
        last = max(self.pages(d, ns), key=lambda p: p["position"])
        e = self.json(d, "evict", "-p", f"{ns}:{last['slot']}.{last['generation']}", "-y")
        self.assertEqual((e["pages"], e["written"]), (1, 0))
        e = self.json(d, "evict", "--idle-over", "3600", "-y")
        self.assertEqual(e["pages"], 0)
        e = self.json(d, "evict", "--tenant", "default", "--drop", "-y")
        self.assertEqual((e["pages"], e["records"]), (n - 1, 1))
        self.assertEqual(self.pages(d, ns, "--disk"), [])
        f = self.json(d, "prefetch", "-n", str(ns), stdin=tokens_of(n))
        self.assertEqual((f["pages_memory"], f["pages_coming"]), (0, 0))
        self.assertIn("gone       0 pages", d.ctl("evict", "-n", str(ns), "-y").stdout)

    def test_evict_without_a_store(self):
        d = self.daemon(store=False)
        info = d.engine()
        ns = str(info["ns"])
        self.refused(d, 5, "has no store", "evict", "-n", ns, "--to-disk", "-y")
        self.refused(d, 2, "there is no disk below", "evict", "-n", ns)
        self.refused(d, 5, "has no store", "drain")
        self.refused(d, 5, "has no store", "verify", "--disk")
        self.assertEqual(self.json(d, "evict", "-n", ns, "-y")["pages"], info["pages"])
        for args in ([], ["-n", ns, "-t", "default"], ["-n", "0"], ["-p", "7.1"], ["-i", "0"],
                     ["-n", ns, "--drop", "--to-disk"]):
            self.assertEqual(d.ctl("evict", *args).returncode, 2, args)
        self.refused(d, 1, "no such tenant", "evict", "-t", "nobody", "-y")
        self.refused(d, 1, "no namespace 4000000", "evict", "-n", "4000000", "-y")
        self.refused(d, 1, "no page 9.9", "evict", "-p", f"{ns}:9.9", "-y")

    def test_verify_finds_a_flipped_byte_on_disk(self):
        d = self.daemon()
        info = d.engine()
        n = info["pages"]
        self.json(d, "drain")
        v = self.json(d, "verify", "--disk")
        self.assertEqual(set(v), VERIFY_KEYS)
        self.assertEqual((v["pages"], v["damaged"], v["records"], v["records_damaged"], v["complete"]),
                         (n, 0, n, 0, True))
        self.assertEqual(self.json(d, "scrub", "-n", str(info["ns"]), "-d")["records"], n)
        self.assertIn("0 damaged", d.ctl("verify").stdout)
        for path in glob.glob(os.path.join(d.store, "*")):
            with open(path, "r+b") as f:
                f.seek(4096)
                if f.read(4) == b"SKVQ"[:4] or os.path.getsize(path) > 8192:
                    f.seek(4096 + 4096 + 300)
                    byte = f.read(1)
                    if byte:
                        f.seek(4096 + 4096 + 300)
                        f.write(bytes([byte[0] ^ 0x40]))
        v = self.json(d, "verify", "--disk", status=6)
        self.assertEqual((v["damaged"], v["records"], v["records_damaged"]), (0, n, 1))
        result = d.ctl("verify", "-d", "-t", "default")
        self.assertEqual(result.returncode, 0)
        self.assertIn(f"{n - 1} records", result.stdout)
        self.refused(d, 1, "no such tenant", "verify", "-t", "nobody")
        self.refused(d, 1, "no namespace 4000000", "verify", "-n", "4000000")
        self.refused(d, 2, "one too many", "verify", "-n", "1", "-t", "x")

    def test_drain_before_a_restart(self):
        d = self.daemon()
        info = d.engine()
        n = info["pages"]
        r = self.json(d, "drain", "--tenant", "default", "--wait", "30")
        self.assertEqual(set(r), DRAIN_KEYS)
        self.assertEqual((r["written"], r["on_disk"], r["refused"], r["complete"]), (n, n, 0, True))
        self.assertIn("written       0 pages", d.ctl("drain").stdout)
        time.sleep(1.5)  # store.sync_ms
        d.stop(signal.SIGKILL)
        d.start()
        d.engine()  # finds them; and its namespace is open again
        why = self.json(d, "why-miss", "-n", str(info["ns"]), stdin=tokens_of(n))
        self.assertEqual(why["pages_memory"] + why["pages_disk"], n)

    def test_drain_over_budget(self):
        d = self.daemon("--store-write-bytes-per-day", "1M")
        n = d.engine()["pages"]
        r = self.json(d, "drain", status=1)
        self.assertEqual((r["written"] + r["refused"], r["over_budget"]), (n, r["refused"]))
        self.assertTrue(r["refused"])
        self.assertIn("write budget", d.ctl("drain").stdout)

    def test_a_tokenizer_is_run(self):
        d = self.daemon()
        info = d.engine()
        ns, n = str(info["ns"]), info["pages"]
        with tempfile.TemporaryDirectory() as folder:
            prompt = os.path.join(folder, "it's $HOME a prompt")
            with open(prompt, "w", encoding="ascii") as f:
                f.write(tokens_of(n))
            for verb in ("prefetch", "why-miss"):
                r = self.json(d, verb, "-n", ns, "--prompt", prompt, "--tokenizer", "cat --")
                self.assertEqual((r["tokens"], r["pages_memory"]), (80 * n, n))
                for command, status, sentence in (
                        ("false", 1, "'false' ended with status 1"),
                        ("kill -9 $$;", 1, "ended by signal 9"),
                        ("no-such-command 2>/dev/null", 1, "ended with status 127"),
                        ("echo no ids in", 2, "token ids in decimal"),
                        ("true", 2, "no tokens"),
                        ("yes 1 #", 2, "more than 1048576 tokens")):
                    self.refused(d, status, sentence, verb, "-n", ns, "--prompt", prompt,
                                 "--tokenizer", command)
                self.refused(d, 2, "go together", verb, "-n", ns, "--prompt", prompt)
                self.refused(d, 2, "or of --prompt", verb, "-n", ns, "--prompt", prompt,
                             "--tokenizer", "cat", prompt)
                self.refused(d, 1, "No such file", verb, "-n", ns, "--prompt", prompt + "x",
                             "--tokenizer", "cat")
        self.refused(d, 2, "which namespace", "prefetch")
        self.refused(d, 1, "no namespace 4000000", "prefetch", "-n", "4000000", stdin="1 2 3")

    def test_a_client_that_goes_in_the_middle(self):
        d = self.daemon("--store-write-bytes-per-day", "0")
        subprocess.run([program("skvq-bench-publish"), "--socket", d.socket, "--pages", "600",
                        "--layers", "4", "--kv-heads", "2"], check=True, capture_output=True,
                       timeout=120)
        for verb in (["evict", "-t", "default", "-y"], ["verify", "--disk"], ["drain"]) * 4:
            client = subprocess.Popen([program("skvqctl"), "-s", d.socket, *verb],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.02)
            client.kill()
            client.wait()
        deadline = time.monotonic() + 60  # the last one's round ends by itself
        while d.ctl("drain").returncode:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        self.assertEqual(d.ctl("verify", "-d").returncode, 0)
        self.assertEqual(d.ctl("evict", "-t", "default", "-y", "--drop").returncode, 0)
        status = self.json(d, "status")
        self.assertEqual((status["pages"], status["bytes_resident"]), (0, 0))
        d.stop()
        self.assertEqual(d.status, 0)

    def test_the_log_names_who_asked(self):
        d = self.daemon(store=False)
        ns = d.engine()["ns"]

        def asked():
            with open(d.log.name, encoding="ascii") as f:
                return [line.split("event=")[1].strip() for line in f if "_asked" in line]
        client = Raw(d.socket)
        self.addCleanup(client.sock.close)
        client.evict(number(6, 1))
        client.evict(message(1, b"no\xc2\x9bne"))
        self.assertEqual(asked(), [])  # counted, and refused
        # From a place that nobody was told: a round of its own, though it does not begin at the start.
        client.evict(number(2, ns), number(9, 0xffffffff))
        self.assertEqual(len(asked()), 1)
        self.assertIn("evict_asked", asked()[0])
        self.assertIn(f"uid={os.getuid()} tenant=default ns={ns} drop=0 disk=0", asked()[0])
        self.assertEqual(self.json(d, "ls")["namespaces"][0]["pages"], 0)
        subprocess.run([program("skvq-bench-publish"), "--socket", d.socket, "--pages", "600",
                        "--layers", "4", "--kv-heads", "2"], check=True, capture_output=True,
                       timeout=120)
        # Many requests that go on where the one before ended are one round.
        place, n, done = b"", 0, False
        while not done:
            reply = fields(fields(client.ask(message(34, place, number(12, 1))))[34])
            place = number(9, reply.get(2, 0)) + number(10, reply.get(3, 0))
            n, done = n + 1, reply.get(1, 0)
        self.assertGreater(n, 1)
        self.assertEqual(len(asked()), 2)

    @unittest.skipUnless(os.getuid() == 0, "only root can be somebody else")
    def test_who_may(self):
        config = """
[socket]
socket_mode = 0666
admin = 65533
[tenant one]
uid = 0
[tenant two]
uid = 65534
"""
        d = self.daemon(config=config)
        os.chmod(d.folder, 0o755)
        binary = shutil.copy(program("skvqctl"), d.folder)
        info = d.engine()
        ns = str(info["ns"])

        def other(uid, *args):
            result = subprocess.run([binary, "-s", d.socket, *args], capture_output=True, text=True,
                                    timeout=60, check=False, user=uid, group=uid, extra_groups=[])
            return result.returncode, result.stdout + result.stderr
        page = self.pages(d, ns)[0]
        name = f"{ns}:{page['slot']}.{page['generation']}"
        # One of another tenant sees nothing of it.
        for args in (["show", name], ["evict", "-n", ns, "-y"], ["evict", "-t", "one", "-y"],
                     ["verify", "-n", ns], ["drain", "-t", "one"]):
            status, text = other(65534, *args)
            self.assertEqual(status, 1, text)
            self.assertIn("there is no", text)
        # Its own it may treat as it likes.
        for args in (["evict", "-i", "1", "-y"], ["verify", "-d"], ["drain"]):
            self.assertEqual(other(65534, *args)[0], 0, args)
        # An admin looks, and touches nothing.
        self.assertEqual(other(65533, "show", name)[0], 0)
        for what in (name, page["digest"]):  # not at what somebody has said to an engine
            status, text = other(65533, "show", what, "-t")
            self.assertEqual(status, 4, text)
            self.assertIn("not read their tokens", text)
        heard = subprocess.Popen([binary, "-s", d.socket, "events", "--json", "--tokens", "--count", "2"],
                                 stdout=subprocess.PIPE, text=True, user=65533, group=65533, extra_groups=[])
        self.addCleanup(heard.kill)
        deadline = time.monotonic() + 60
        while not self.json(d, "status")["counters"]["listeners"]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)
        subprocess.run([program("skvq-bench-publish"), "--socket", d.socket, "--pages", "1", "--chains", "1"],
                       check=True, capture_output=True, timeout=60)
        events = [json.loads(line) for line in heard.communicate(timeout=60)[0].splitlines()]
        self.assertEqual([e["kind"] for e in events], ["namespace_opened", "stored"])
        self.assertNotIn("token_ids", events[1])
        self.assertEqual(other(65533, "ls", "-p", ns, "--disk")[0], 0)
        for args in (["evict", "-n", ns, "-y"], ["evict", "-i", "1", "-y"], ["verify"], ["drain"]):
            status, text = other(65533, *args)
            self.assertEqual(status, 4, text)
            self.assertIn("not touch", text)
        # Root does what it likes to all.
        self.assertEqual(self.json(d, "evict", "-t", "two", "-y")["pages"], 0)
        self.assertEqual(self.json(d, "verify", "--disk")["pages"], info["pages"] + 1)


if __name__ == "__main__":
    unittest.main(verbosity=1)
