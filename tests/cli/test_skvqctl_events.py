#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvqctl events and trace over a whole daemon with a disk: what is told of pages that come and go, and
of what engines ask for."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = sys.argv.pop(1)
WAIT = 60


def ctl(*args):
    return subprocess.run([os.path.join(BIN, "skvqctl"), *args], capture_output=True, text=True,
                          timeout=WAIT)


class Daemon(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self.folder.name, "s")
        self.listeners = []
        self.daemon = subprocess.Popen(
            [os.path.join(BIN, "skvqd"), "--socket", self.socket, "--ram-max", "4M", "--store-folder",
             os.path.join(self.folder.name, "store"), "--store-capacity-bytes", "1G",
             "--store-touch-entries", "0", "--store-spill-percent", "100"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT
        while ctl("ping", "-s", self.socket).returncode:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)

    def tearDown(self):
        for process in self.listeners:
            process.kill()
            process.communicate()
        self.daemon.terminate()
        self.daemon.wait(timeout=WAIT)
        self.folder.cleanup()

    def n_listeners(self):
        return json.loads(ctl("-s", self.socket, "status", "--json").stdout)["counters"]["listeners"]

    def listen(self, *args, verb=("events",)):
        """Runs, and has asked for events."""
        before = self.n_listeners()
        process = subprocess.Popen([os.path.join(BIN, "skvqctl"), "-s", self.socket, *verb, *args],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.listeners.append(process)
        deadline = time.monotonic() + WAIT
        while self.n_listeners() == before:
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)
        return process

    def publish(self, pages, layers=8):
        subprocess.run([os.path.join(BIN, "skvq-bench-publish"), "--socket", self.socket, "--pages",
                        str(pages), "--layers", str(layers), "--chains", "1", "--json"], check=True,
                       capture_output=True, timeout=WAIT)

    def end(self, process):
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()  # not communicate(): that leaves out what readline() has taken in
        self.assertEqual((process.wait(timeout=WAIT), process.stderr.read()), (0, ""))
        process.stdout.close()
        process.stderr.close()
        self.listeners.remove(process)
        return out


class Events(Daemon):
    def test_json_of_pages_that_come_and_go(self):
        process = self.listen("--json", "--tokens")
        ctl("-s", self.socket, "bench", "-p", "4", "--yes")
        events = []
        # Three times what fits: all goes to disk, and most from memory.
        for _ in range(6):
            self.publish(30)
        while sum(e["kind"] == "removed" for e in events) < 20 or \
                sum(e.get("tier") == "disk" for e in events) < 20:
            events.append(json.loads(process.stdout.readline()))
        rest = self.end(process)
        events += [json.loads(line) for line in rest.splitlines()]
        self.assertEqual([e["number"] for e in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[0]["kind"], "namespace_opened")
        self.assertLessEqual({"tenant", "ns", "model_name", "identity"}, set(events[0]))
        memory, stored = set(), set()
        for e in events:
            if "digest" not in e:
                continue
            self.assertRegex(e["digest"], "^[0-9a-f]{64}$")
            self.assertEqual(e["tokens"], 80)
            if e["kind"] == "stored" and e["tier"] == "memory":
                self.assertEqual(len(e["token_ids"]), 80)
                self.assertEqual(e["why"], "published")
                self.assertTrue(e["position"] == 0 or e["parent"] in stored)
                memory.add(e["digest"])
                stored.add(e["digest"])
            elif e["kind"] == "removed" and e["tier"] == "memory":
                self.assertEqual(e["why"], "evicted")
                memory.remove(e["digest"])  # each once, and none that had not come
            elif e["kind"] == "stored":
                self.assertEqual(e["tier"], "disk")
                self.assertIn(e["digest"], stored)
        status = json.loads(ctl("-s", self.socket, "status", "--json").stdout)
        self.assertEqual(len(memory), status["pages"])

    def test_text_is_a_line_an_event(self):
        process = self.listen("--matches", "--count", "7")
        ctl("-s", self.socket, "bench", "-p", "4", "--yes")
        out, err = process.communicate(timeout=WAIT)
        self.assertEqual((process.returncode, err), (0, ""))
        lines = out.splitlines()
        self.assertEqual(len(lines), 7)
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [a-z_]+( [a-z_]+=\S+)+$")
        self.assertIn("namespace_opened tenant=default ns=1", lines[0])
        # While it is published, it can be on its way to disk.
        self.assertTrue(any(re.search("stored .*tier=memory page=0/1 position=0 digest=", x) for x in lines))

    def test_what_somebody_had_evicted(self):
        process = self.listen("--json", "--count", "17")
        self.publish(4)
        on_disk = 0
        while on_disk < 4:
            e = json.loads(process.stdout.readline())
            on_disk += e["kind"] == "stored" and e["tier"] == "disk"
        r = ctl("-s", self.socket, "evict", "--namespace", "1", "--drop", "--yes")
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        events = [json.loads(line) for line in process.stdout.read().splitlines()]
        self.assertEqual(process.wait(timeout=WAIT), 0)
        self.assertEqual({e["kind"] for e in events}, {"removed"})
        self.assertEqual(sorted((e["tier"], e["why"]) for e in events),
                         [("disk", "dropped")] * 4 + [("memory", "asked")] * 4)

    def test_the_time_may_be_over(self):
        r = ctl("-s", self.socket, "events", "--for", "1")
        self.assertEqual((r.returncode, r.stdout, r.stderr), (0, "", ""))

    def test_a_daemon_that_ends_is_told(self):
        process = self.listen("--json")
        self.daemon.terminate()
        out, err = process.communicate(timeout=WAIT)
        self.assertEqual(process.returncode, 3)
        self.assertEqual(json.loads(out)["why"], "daemon_ends")
        self.assertIn("closed the connection", err)

    def test_too_many_listeners(self):
        for _ in range(4):
            self.listen()
        r = ctl("-s", self.socket, "events")
        self.assertEqual((r.returncode, r.stdout), (1, ""))
        self.assertIn("SKVQ_ELIMIT", r.stderr)
        self.assertEqual(len(r.stderr.splitlines()), 1)

    def test_wrong_usage(self):
        for args in (["x"], ["--count", "0"], ["--for", "x"]):
            r = ctl("-s", self.socket, "events", *args)
            self.assertEqual((r.returncode, r.stdout), (2, ""))


class Record(Daemon):
    def test_the_file_is_what_was_asked(self):
        path = os.path.join(self.folder.name, "trace.jsonl")
        process = self.listen("--count", "120", "--json", verb=("trace", "record", path))
        for _ in range(3):  # 50 matches of 4 pages each, each time of another namespace
            self.assertEqual(ctl("-s", self.socket, "bench", "-p", "4", "--yes").returncode, 0)
        out, err = process.communicate(timeout=WAIT)
        self.assertEqual((process.returncode, err), (0, ""))
        told = json.loads(out)
        self.assertEqual((told["requests"], told["tokens"], told["pages"], told["pages_different"]),
                         (120, 120 * 320, 120 * 4, 12))
        self.assertEqual((told["hit_share"], told["lost"], told["cut"]), (1.0, 0, 0))
        with open(path, encoding="ascii") as f:
            lines = [json.loads(line) for line in f]
        self.assertEqual(len(lines), 120)
        self.assertEqual(lines[0]["timestamp"], 0)
        for i, line in enumerate(lines):
            self.assertEqual(list(line), ["timestamp", "input_length", "output_length", "hash_ids"])
            first = i // 50 * 4
            self.assertEqual(line["hash_ids"], list(range(first, first + 4)))
            self.assertEqual((line["input_length"], line["output_length"]), (320, 0))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        # What reads traces reads it: 3 prompts of 4 pages, all but the first time found.
        r = subprocess.run([os.path.join(BIN, "bench-evict"), "--trace", path, "--block-tokens", "80",
                            "--sizes", "100", "--policy", "lru", "--json"], capture_output=True, text=True,
                           timeout=WAIT, check=True)
        trace, = json.loads(r.stdout)["traces"]
        self.assertEqual((trace["requests"], trace["pages"], trace["footprint_pages"]), (120, 480, 12))
        self.assertAlmostEqual(trace["hit_percent"]["lru"][0], 97.5)
        # It writes over nothing.
        r = ctl("-s", self.socket, "trace", "record", path)
        self.assertEqual((r.returncode, r.stdout), (1, ""))
        self.assertIn("exists", r.stderr)

    def test_to_stdout_and_the_end_by_a_signal(self):
        process = self.listen(verb=("trace", "record", "-"))
        ctl("-s", self.socket, "bench", "-p", "2", "--yes")
        line = json.loads(process.stdout.readline())
        self.assertEqual(line["hash_ids"], [0, 1])
        for line in self.end(process).splitlines():
            self.assertEqual(json.loads(line)["hash_ids"], [0, 1])

    def test_no_file_stays_behind_of_nothing(self):
        path = os.path.join(self.folder.name, "trace.jsonl")
        r = ctl("-s", self.socket, "trace", "record", path, "--for", "1")
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        self.assertFalse(os.path.exists(path))
        self.assertEqual(ctl("-s", self.socket, "trace", "play", path).returncode, 2)


class Replay(Daemon):
    def trace(self, requests):
        path = os.path.join(self.folder.name, "t.jsonl")
        with open(path, "w", encoding="ascii") as f:
            for at, length, ids in requests:
                f.write(json.dumps({"timestamp": at, "input_length": length, "output_length": 0,
                                    "hash_ids": ids}) + "\n")
        return path

    def replay(self, path, *args):
        r = ctl("-s", self.socket, "trace", "replay", path, "--json", *args)
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        return json.loads(r.stdout)

    def test_counted_by_hand(self):
        # Of 3 + 4 + 4 + 2 pages, 0 + 2 + 4 + 0 are there: the last ones follow another page.
        path = self.trace([(0, 240, [0, 1, 2]), (10, 350, [0, 1, 3, 4]), (20, 320, [0, 1, 3, 4]),
                           (30, 160, [9, 1])])
        found = self.replay(path)
        self.assertEqual((found["requests"], found["tokens"], found["pages_published"],
                          found["pages_different"]), (4, 13 * 80, 7, 7))
        self.assertAlmostEqual(found["hit_share"], 6 / 13)
        self.assertEqual((found["refused"], found["evictions"], found["cut"]), (0, 0, 0))
        self.assertGreaterEqual(found["page_bytes"], 32768)
        self.assertGreaterEqual(found["seconds"], .03)
        for key in ("match_p50_us", "match_p99_us", "publish_p50_us", "publish_p99_us"):
            self.assertGreater(found[key], 0)
        # Again it is another model: nothing is found of the first time.
        again = self.replay(path, "--speed", "max", "--count", "1", "--page-bytes", "4096")
        self.assertEqual((again["requests"], again["hit_share"]), (1, 0))
        self.assertLess(again["page_bytes"], 32768)
        status = json.loads(ctl("-s", self.socket, "status", "--json").stdout)
        self.assertEqual((status["pages"], status["pins"]), (10, 0))

    def test_what_was_recorded_is_replayed(self):
        path = os.path.join(self.folder.name, "r.jsonl")
        process = self.listen("--count", "60", verb=("trace", "record", path))
        for _ in range(2):
            ctl("-s", self.socket, "bench", "-p", "4", "--yes")
        process.communicate(timeout=WAIT)
        found = self.replay(path, "--yes")
        # Found but for the first time of each.
        self.assertEqual((found["requests"], found["pages_published"]), (60, 8))
        self.assertAlmostEqual(found["hit_share"], 58 / 60)

    def test_more_than_there_is_room_for(self):
        ids = list(range(200))
        path = self.trace([(0, 80 * 200, ids), (0, 80 * 60, [300 + i for i in range(60)]),
                           (0, 80 * 60, [300 + i for i in range(60)])])
        r = ctl("-s", self.socket, "trace", "replay", path)
        self.assertEqual((r.returncode, r.stdout), (2, ""))
        self.assertIn("--yes", r.stderr)
        self.assertEqual(len(r.stderr.splitlines()), 1)
        found = self.replay(path, "--yes", "--speed", "max")
        self.assertEqual(found["requests"], 3)
        self.assertGreaterEqual(found["refused"], 1)  # the first one alone is more than ram_max
        self.assertGreater(found["evictions"], 0)
        self.assertAlmostEqual(found["hit_share"], 60 / 320)

    def test_wrong_usage(self):
        path = self.trace([(0, 80, [1])])
        for args in (["--speed", "0"], ["--speed", "x"], ["--page-bytes", "1"], ["--block-tokens", "0"]):
            r = ctl("-s", self.socket, "trace", "replay", path, *args)
            self.assertEqual((r.returncode, r.stdout), (2, ""))
        for text in ("", "{}\n", "nonsense\n"):
            with open(path, "w", encoding="ascii") as f:
                f.write(text)
            r = ctl("-s", self.socket, "trace", "replay", path)
            self.assertEqual((r.returncode, r.stdout), (1, ""))
            self.assertEqual(len(r.stderr.splitlines()), 1)


if __name__ == "__main__":
    unittest.main()
