#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A socket that a service manager holds: the daemon answers on it, leaves it, and refuses what it does
not know. The manager is played by this test; what it passes is what systemd passes."""
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BIN = sys.argv.pop(1)
SKVQD, SKVQCTL = os.path.join(BIN, "skvqd"), os.path.join(BIN, "skvqctl")
FEATURES = json.loads(subprocess.run([SKVQD, "--print-capabilities"], capture_output=True, text=True,
                                     check=True, timeout=60).stdout)["features"]


@unittest.skipUnless("handover" in FEATURES, "built without libsystemd")
class Activation(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "s")
        self.daemons = []
        self.addCleanup(self.end)

    def end(self):
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.communicate()

    def listening(self, path, family=socket.AF_UNIX):
        s = socket.socket(family)
        self.addCleanup(s.close)
        s.bind(path)
        s.listen(8)
        return s

    def start(self, sockets, *options):
        """skvqd with these sockets as descriptors 3 and on, and with their number told to it."""
        moves = "".join(f"exec {20 + i}<&{s.fileno()};" for i, s in enumerate(sockets))
        moves += "".join(f"exec {3 + i}<&{20 + i} {20 + i}<&-;" for i in range(len(sockets)))
        script = f"{moves} LISTEN_PID=$$ LISTEN_FDS={len(sockets)} exec \"$@\""
        daemon = subprocess.Popen(["bash", "-c", script, "bash", SKVQD, *options], stderr=subprocess.PIPE,
                                  text=True, pass_fds=[s.fileno() for s in sockets])
        self.daemons.append(daemon)
        return daemon

    def ping(self, path):
        return subprocess.run([SKVQCTL, "--socket", path, "ping"], capture_output=True, text=True, timeout=30,
                              check=False)

    def test_clients_wait_for_a_daemon_that_comes_later_and_again(self):
        s = self.listening(self.path)
        for _ in range(2):
            early = subprocess.Popen([SKVQCTL, "--socket", self.path, "ping"], stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True)
            daemon = self.start([s], "--socket", self.path)
            out, err = early.communicate(timeout=30)
            self.assertEqual((early.returncode, err), (0, ""))
            self.assertIn("answered", out)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(self.path)
                pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self.assertEqual(pid, daemon.pid)  # clients watch the daemon's end, not the manager's
            daemon.terminate()
            self.assertEqual(daemon.wait(timeout=30), 0)
            self.assertTrue(os.path.exists(self.path))  # the manager's

    def test_a_tenants_socket_too(self):
        other = os.path.join(self.folder.name, "t")
        config = os.path.join(self.folder.name, "c")
        with open(config, "w", encoding="ascii") as f:
            f.write(f"[socket]\npath = {self.path}\n[tenant one]\nsocket = {other}\n")
        # The shared one is passed second, a tenant's first: paths tell which is which.
        daemon = self.start([self.listening(other), self.listening(self.path)], "--config", config)
        end = time.monotonic() + 30
        while self.ping(other).returncode and time.monotonic() < end and daemon.poll() is None:
            time.sleep(.02)
        self.assertEqual((self.ping(self.path).returncode, self.ping(other).returncode), (0, 0))
        status = subprocess.run([SKVQCTL, "--socket", other, "status", "--json"], capture_output=True,
                                text=True, timeout=30, check=True).stdout
        self.assertEqual([t["name"] for t in json.loads(status)["tenants"]], ["one"])

    def refused(self, sockets):
        daemon = self.start(sockets, "--socket", self.path)
        _, err = daemon.communicate(timeout=30)
        self.assertEqual(daemon.returncode, 1, err)
        self.assertIn("event=failed", err)
        return err

    def test_a_socket_that_the_configuration_does_not_know(self):
        other = os.path.join(self.folder.name, "other")
        self.assertIn(other, self.refused([self.listening(other)]))
        self.assertFalse(os.path.exists(self.path))  # what it had made itself is gone again

    def test_a_socket_of_another_kind(self):
        self.assertIn("which is no path of [socket]",
                      self.refused([self.listening(("127.0.0.1", 0), socket.AF_INET)]))

    def test_without_any_all_is_as_ever(self):
        daemon = self.start([], "--socket", self.path)
        end = time.monotonic() + 30
        while self.ping(self.path).returncode and time.monotonic() < end and daemon.poll() is None:
            time.sleep(.02)
        daemon.terminate()
        self.assertEqual(daemon.wait(timeout=30), 0)
        self.assertFalse(os.path.exists(self.path))


if __name__ == "__main__":
    unittest.main(verbosity=1)
