#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The daemon's log in each of its forms, from a whole daemon in its sandbox. The journal is a socket
of this test's, in a mount namespace where libsystemd looks for it."""
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop(1)
SKVQD = os.path.join(BIN, "skvqd")

# In a mount namespace of its own: a journal's socket, and a daemon that is told it writes to it. $1:
# skvqd, $2: a folder for its socket and stderr, $3: its --log-format.
FAKE_JOURNAL = r"""
import json, os, signal, socket, subprocess, sys, time
skvqd, folder, form, stream = sys.argv[1:5]
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
journal.settimeout(20)
log = open(os.path.join(folder, "stderr"), "wb")
st = os.fstat(log.fileno())
env = dict(os.environ, JOURNAL_STREAM=f"{st.st_dev}:{st.st_ino + (stream == 'other')}")
path = os.path.join(folder, "d.sock")
daemon = subprocess.Popen([skvqd, "--socket", path, "--ram-max", "8M", "--log-format", form,
                           "--log-level", "debug"], stderr=log, env=env)
messages = []
try:
    if form == "journal" or stream == "mine":
        def until(event):
            while not messages or ("SKVQD_EVENT=" + event).encode() not in messages[-1]:
                messages.append(journal.recv(65536))
        until("ready")
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)  # from here on within the sandbox
        client.sendall(b"not a frame at all")
        until("protocol_error")
        until("connection_closed")
        daemon.send_signal(signal.SIGTERM)
        until("stopping")
    else:
        for _ in range(400):
            if b"event=ready" in open(log.name, "rb").read():
                break
            time.sleep(.05)
        daemon.send_signal(signal.SIGTERM)
    status = daemon.wait(20)
finally:
    daemon.kill()
    daemon.wait()
print(json.dumps({"status": status, "messages": [m.decode("latin-1") for m in messages],
                  "stderr": open(log.name).read()}))
"""


def may_unshare():
    return shutil.which("unshare") and subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True).returncode == 0


class Daemon:
    """Its log up to its end, with a client in between that breaks the protocol."""

    def __init__(self, *flags, env=None):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "d.sock")
        self.process = subprocess.Popen(
            [SKVQD, "--socket", path, "--ram-max", "8M", *flags], stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})})
        self.lines = []
        self.until(b"ready")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(struct.pack("<IHH", 16, 0, 0x4b53) + b"\xff\xfe\x00\"\\\x1b[2J{}}xx\xc3\x28")
            client.settimeout(20)
            while client.recv(4096):
                pass
        self.until(b"protocol_error")
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=20)
        self.lines += rest.splitlines()
        self.folder.cleanup()

    def until(self, event):
        while not self.lines or event not in self.lines[-1]:
            line = self.process.stderr.readline()
            if not line:
                raise AssertionError(f"no {event} in {self.lines}")
            self.lines.append(line.rstrip(b"\n"))


class Logs(unittest.TestCase):
    def test_logfmt_is_what_there_is_without_a_journal(self):
        for flags in ((), ("--log-format", "logfmt")):
            d = Daemon(*flags, env={"JOURNAL_STREAM": "1:1"})
            self.assertEqual(d.process.returncode, 0)
            for line in d.lines:
                self.assertRegex(line, rb"^time=\S+Z level=[a-z]+ event=[a-z_]+( |$)")

    def test_json_is_an_object_a_line(self):
        d = Daemon("--log-format", "json", "--log-level", "debug")
        self.assertEqual(d.process.returncode, 0)
        events = [json.loads(line) for line in d.lines]
        for e in events:
            self.assertEqual(list(e)[:3], ["time", "level", "event"])
        names = [e["event"] for e in events]
        self.assertIn("ready", names)
        self.assertIn("stopping", names)
        ready = events[names.index("ready")]
        self.assertEqual(ready["ram_max"], 8 << 20)
        self.assertEqual(ready["pid"], d.process.pid)
        self.assertIn("16 bytes", events[names.index("protocol_error")]["detail"])

    def test_an_unknown_format_is_named(self):
        r = subprocess.run([SKVQD, "--socket", "/x", "--log-format", "xml", "--check-config"],
                           capture_output=True, text=True, timeout=20)
        self.assertEqual(r.returncode, 2)
        self.assertIn("log.format = \"xml\"", r.stderr)
        self.assertEqual(len(r.stderr.splitlines()), 1)


def has_journal():
    r = subprocess.run([SKVQD, "--socket", "/x", "--log-format", "journal", "--check-config"],
                       capture_output=True, text=True, timeout=20)
    return r.returncode == 0


class WithoutLibsystemd(unittest.TestCase):
    @unittest.skipIf(has_journal(), "this build has libsystemd")
    def test_journal_is_refused(self):
        r = subprocess.run([SKVQD, "--socket", "/x", "--log-format", "journal", "--check-config"],
                           capture_output=True, text=True, timeout=20)
        self.assertEqual((r.returncode, len(r.stderr.splitlines())), (2, 1))
        self.assertIn("built without libsystemd", r.stderr)


@unittest.skipUnless(has_journal(), "built without libsystemd")
class Journal(unittest.TestCase):
    def run_with(self, form, stream):
        if not may_unshare():
            self.skipTest("namespaces are not ours to make")
        with tempfile.TemporaryDirectory() as folder:
            r = subprocess.run(["unshare", "-rm", "sh", "-c",
                                'mount -t tmpfs tmpfs /run && exec "$@"', "sh", sys.executable, "-c",
                                FAKE_JOURNAL, SKVQD, folder, form, stream],
                               capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, 0, r.stderr)
        return json.loads(r.stdout)

    def test_fields_come_from_within_the_sandbox(self):
        for form, stream in (("auto", "mine"), ("journal", "other")):
            found = self.run_with(form, stream)
            self.assertEqual((found["status"], found["stderr"]), (0, ""))
            for m in found["messages"]:
                fields = dict(line.split("=", 1) for line in m.splitlines() if "=" in line)
                self.assertEqual(fields["SYSLOG_IDENTIFIER"], "skvqd")
                self.assertTrue(fields["MESSAGE"].startswith("level="), m)
                self.assertIn(fields["PRIORITY"], "34567")
                self.assertIn("event=" + fields["SKVQD_EVENT"], fields["MESSAGE"])
            self.assertTrue(any("SKVQD_RAM_MAX=8388608" in m for m in found["messages"]))

    def test_auto_is_logfmt_where_stderr_goes_elsewhere(self):
        found = self.run_with("auto", "other")
        self.assertEqual((found["status"], found["messages"]), (0, []))
        self.assertIn("event=ready", found["stderr"])

    def test_without_a_journal_lines_go_to_stderr(self):
        if os.path.exists("/run/systemd/journal/socket"):
            self.skipTest("there is a journal")
        d = Daemon("--log-format", "journal")
        self.assertEqual(d.process.returncode, 0)
        self.assertIn(b"event=no_journal", d.lines[0])
        for line in d.lines:
            self.assertRegex(line, rb"^time=\S+Z level=[a-z]+ event=[a-z_]+( |$)")


if __name__ == "__main__":
    unittest.main()
