#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The systemd unit: that systemd understands it and finds it tight, and that the daemon does its
whole work in the same confinement, made by hand where no systemd runs: another user without
capabilities, no network, a private /tmp, everything read-only but its two folders."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BIN = sys.argv.pop()
UNIT = sys.argv.pop()
EXPOSURE_MAX = 15  # of 100, as systemd-analyze counts

# Runs as root in namespaces of its own; $1 has the programs.
CONFINED = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/bin /run/skvqd /run/state
cp "$1"/skvqd "$1"/skvqctl "$1"/skvq-bench-publish /run/bin/
chown 65534:65534 /run/skvqd /run/state
chmod 700 /run/state
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o ro tmpfs /home
mount -o remount,bind,ro /
cd /run
ulimit -l 131072 -c 0 || true
start() {
	setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all \
		--no-new-privs /run/bin/skvqd --socket /run/skvqd/skvqd.sock --socket-mode 0666 \
		--ram-max 8M --store-folder /run/state/store --store-capacity-bytes 1G \
		--store-touch-entries 0 2>>/run/log &
	pid=$!
	for i in $(seq 200); do
		/run/bin/skvqctl --socket /run/skvqd/skvqd.sock status >/dev/null 2>&1 && return
		sleep .05
	done
	cat /run/log >&2
	exit 9
}
stop() {
	kill "$pid"
	status=0
	wait "$pid" || status=$?
}
start
grep -c : /proc/$pid/net/dev >/run/devices
grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/$pid/status | tr '\t' ' ' >/run/is
# Another user than the daemon's, as engines are. More pages than fit: some go to disk.
setpriv --reuid=65533 --regid=65533 --clear-groups /run/bin/skvq-bench-publish \
	--socket /run/skvqd/skvqd.sock --pages 128 --layers 4 --json >/run/published
/run/bin/skvqctl --socket /run/skvqd/skvqd.sock status --json >/run/status
stop
first=$status
start
/run/bin/skvqctl --socket /run/skvqd/skvqd.sock status --json >/run/again
stop
printf '{"ends": [%d, %d], "devices": %d, "is": "%s", "published": %s, "status": %s, "again": %s}\n' \
	"$first" "$status" "$(cat /run/devices)" "$(paste -sd';' /run/is)" "$(cat /run/published)" \
	"$(cat /run/status)" "$(cat /run/again)"
if [ -e /run/skvqd/skvqd.sock ]; then echo "the socket is still there" >&2; exit 8; fi
"""


def unit_text():
    with open(UNIT, encoding="utf-8") as f:
        return f.read()


@unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze here")
class Exporter(unittest.TestCase):
    def test_its_unit_is_understood_and_tight(self):
        if not os.path.exists(os.path.join(BIN, "skvq-exporter")):
            self.skipTest("skvq-exporter was not built")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "skvq-exporter.service")
            source = os.path.join(os.path.dirname(UNIT), "..", "tools", "skvq-exporter", "skvq-exporter.service")
            with open(source, encoding="utf-8") as f, open(path, "w", encoding="utf-8") as to:
                to.write(f.read().replace("/usr/bin/", BIN + "/"))
            for args in (("verify", "--man=no", "--recursive-errors=no"),
                         ("security", "--offline=yes", "--threshold=20", "--no-pager")):
                r = subprocess.run(["systemd-analyze", *args, path], capture_output=True, text=True, timeout=60)
                self.assertEqual(r.returncode, 0, r.stdout + r.stderr)


@unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze here")
class Unit(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "skvqd.service")
        # The program may not be installed, nor its user be there.
        text = unit_text().replace("/usr/bin/", os.path.join(BIN, ""))
        with open(self.path, "w", encoding="utf-8") as f:
            f.write(text)
        self.socket = os.path.join(self.folder.name, "skvqd.socket")
        shutil.copy(UNIT.removesuffix(".service") + ".socket", self.socket)

    def tearDown(self):
        self.folder.cleanup()

    def analyze(self, *args):
        return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True,
                              timeout=60)

    def test_systemd_understands_it(self):
        r = self.analyze("verify", "--man=no", "--recursive-errors=no", self.path, self.socket)
        self.assertEqual(r.returncode, 0, r.stderr)
        ours = [line for line in r.stderr.splitlines() if "skvqd" in line]
        self.assertEqual(ours, [])

    def test_a_wrong_line_would_be_found(self):
        with open(self.path, "a", encoding="utf-8") as f:
            f.write("[Service]\nProtectSystm=strict\n")
        r = self.analyze("verify", "--man=no", "--recursive-errors=no", self.path)
        self.assertIn("ProtectSystm", r.stderr)

    def test_it_is_tight(self):
        r = self.analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", "--no-pager",
                         self.path)
        found = re.search(r"Overall exposure level for skvqd.service: (\S+)", r.stdout)
        self.assertTrue(found, r.stdout + r.stderr)
        print("exposure", found.group(1))
        self.assertEqual(r.returncode, 0, r.stdout)


def may_unshare():
    return shutil.which("unshare") and shutil.which("setpriv") and os.geteuid() == 0 and \
        subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs",
                        "tmpfs", "/run"], capture_output=True).returncode == 0


class Confined(unittest.TestCase):
    def test_the_daemon_does_its_work(self):
        if not may_unshare():
            self.skipTest("namespaces are not ours to make")
        r = subprocess.run(["unshare", "--mount", "--net", "--ipc", "--uts", "bash", "-c",
                            CONFINED, "bash", BIN], capture_output=True, text=True, timeout=120)
        self.assertEqual(r.returncode, 0, r.stderr)
        found = json.loads(r.stdout)
        self.assertEqual(found["ends"], [0, 0])
        self.assertEqual(found["devices"], 1)  # lo, and it is down
        self.assertIn("Uid: 65534", found["is"])
        self.assertIn("CapEff: 0000000000000000", found["is"])
        self.assertIn("NoNewPrivs: 1", found["is"])
        self.assertEqual(found["published"]["pages"], 128)
        counters = found["status"]["counters"]
        self.assertEqual(counters["publishes"], 128)
        # What was not in memory any more, and what was, is on disk for the next one.
        self.assertGreater(found["again"]["disk"]["pages"], 0)
        self.assertEqual(found["again"]["counters"]["store_crc_failures"], 0)


if __name__ == "__main__":
    unittest.main()
