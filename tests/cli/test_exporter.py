#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvq-exporter as Prometheus and a browser meet it: with and without skvqd, and asked wrongly."""
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

BIN = sys.argv.pop(1)
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir)
EXPORTER = os.path.join(BIN, "skvq-exporter")
SAMPLE = re.compile(r'^([a-z0-9_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def run(*args):
    return subprocess.run([EXPORTER, *args], capture_output=True, text=True, timeout=30)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class Exporter:
    """One that runs until the test ends."""

    def __init__(self, test, *args):
        self.process = subprocess.Popen([EXPORTER, "--listen", "127.0.0.1:0", *args], text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        test.addCleanup(self.stop)
        self.where = self.process.stdout.readline().split()[1]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def connection(self):
        if self.where.startswith("unix:"):
            return UnixConnection(self.where[5:])
        return http.client.HTTPConnection(self.where.removeprefix("http://"), timeout=30)

    def ask(self, path, method="GET", headers=None, body=None):
        c = self.connection()
        c.request(method, path, headers=headers or {}, body=body)
        answer = c.getresponse()
        text = answer.read().decode()
        c.close()
        return answer, text

    def metrics(self):
        """name -> {labels as a sorted tuple: value}; what breaks the format is an error."""
        answer, text = self.ask("/metrics")
        assert answer.status == 200, answer.status
        found, told = {}, {}
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, name, rest = line.split(" ", 3)
                assert (kind, name) not in told, line
                told[kind, name] = rest
                continue
            m = SAMPLE.match(line)
            assert m, line
            family = re.sub(r"_(bucket|sum|count)$", "", m[1])
            if told.get(("TYPE", family)) != "histogram":
                family = m[1]
            assert ("TYPE", family) in told and ("HELP", family) in told, line
            labels = tuple(sorted(LABEL.findall(m[2] or "")))
            assert labels not in found.setdefault(m[1], {}), line
            found[m[1]][labels] = float(m[3])
        return found


class WithoutDaemon(unittest.TestCase):
    def test_wrong_usage(self):
        for args in (["--listen", "0.0.0.0:9469"], ["--listen", "192.0.2.1:80"], ["--listen", "9469"],
                     ["--listen", "127.0.0.1:"], ["--listen", "127.0.0.1:65536"],
                     ["--listen", "127.0.0.1:1x"], ["--listen", "::1:1"], ["--listen", "[::]:1"],
                     ["extra"], ["--nonsense"], ["--listen"]):
            with self.subTest(args=args):
                result = run(*args)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertIn("--help", result.stderr)
        self.assertEqual(run("--help").returncode, 0)

    def test_where_it_cannot_listen(self):
        with socket.socket() as taken, tempfile.TemporaryDirectory() as folder:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            result = run("--listen", "127.0.0.1:%d" % taken.getsockname()[1])
            self.assertEqual(result.returncode, 1)
            self.assertIn("in use", result.stderr)
            plain = os.path.join(folder, "plain")
            open(plain, "w", encoding="ascii").close()
            result = run("--listen", plain)
            self.assertEqual(result.returncode, 1)
            self.assertIn(plain, result.stderr)
            self.assertTrue(os.path.exists(plain))
            result = run("--listen", os.path.join(folder, "x" * 200))
            self.assertEqual(result.returncode, 2)

    def test_a_daemon_that_is_not_there(self):
        m = Exporter(self, "--socket", "/nonexistent/skvqd.sock").metrics()
        self.assertEqual(m["skvqd_up"], {(): 0})
        self.assertEqual(set(m), {"skvqd_up", "skvqd_scrape_duration_seconds"})


class WithDaemon(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.socket = os.path.join(self.folder, "skvqd.sock")

    def start(self, *flags):
        daemon = subprocess.Popen([os.path.join(BIN, "skvqd"), "--socket", self.socket, *flags],
                                  stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.end, daemon)
        ctl = [os.path.join(BIN, "skvqctl"), "--socket", self.socket, "ping"]
        deadline = time.monotonic() + 60
        while subprocess.run(ctl, capture_output=True, timeout=30).returncode:
            self.assertIsNone(daemon.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(.02)
        return daemon

    @staticmethod
    def end(daemon):
        if daemon.poll() is None:
            daemon.terminate()
        daemon.wait(timeout=60)

    def fill(self):
        """Pages of an engine that measured what its codes lose, and matches of them."""
        plugin = os.path.join(BIN, os.pardir, "lib", "libskvq_plugin.so")
        for _ in range(2):
            subprocess.run([os.path.join(BIN, "engine"), plugin, self.socket], check=True,
                           capture_output=True, timeout=120)

    def become(self, exporter, name, value):
        """A scrape may be a moment old, and a daemon may be on its way."""
        deadline = time.monotonic() + 60
        while exporter.metrics()[name][()] != value:
            self.assertLess(time.monotonic(), deadline, name)
            time.sleep(.1)

    def test_numbers_are_the_daemons(self):
        self.start()
        self.fill()
        m = Exporter(self, "--socket", self.socket).metrics()
        self.assertEqual(m["skvqd_up"], {(): 1})
        (info,) = m["skvqd_namespace_info"]
        info = dict(info)
        self.assertEqual((info["model"], info["profile"]), ("example", "k8v8"))
        ns = (("ns", info["ns"]),)
        pages = m["skvqd_pages"][()]
        self.assertGreater(pages, 0)
        self.assertEqual(m["skvqd_namespace_pages"], {ns: pages})
        self.assertEqual(m["skvqd_namespace_bytes"][ns],
                         m["skvqd_tier_bytes"][("state", "memory_only"), ("tier", "memory")])
        self.assertEqual(m["skvqd_namespace_hit_tokens_total"][ns], m["skvqd_tokens_matched_total"][()])
        self.assertGreater(m["skvqd_tokens_matched_total"][()], 0)
        self.assertEqual(m["skvqd_hit_tokens_total"][("tier", "memory"),],
                         m["skvqd_tokens_matched_total"][()])
        self.assertEqual(m["skvqd_match_seconds_count"][()], m["skvqd_matches_total"][()])
        self.assertEqual(m["skvqd_match_seconds_bucket"][("le", "+Inf"),], m["skvqd_matches_total"][()])
        buckets = [v for k, v in m["skvqd_match_seconds_bucket"].items()]
        self.assertEqual(buckets, sorted(buckets))
        self.assertIn((("code", "epins"),), m["skvqd_refusals_total"])
        self.assertIn((("tenant", "default"),), m["skvqd_tenant_memory_bytes"])
        self.assertEqual({v for k, v in m["skvqd_pins"].items()}, {0})
        errors = m["skvqd_quantization_error_ratio"]
        self.assertTrue(all(0 < v < 1e-4 for v in errors.values()))
        self.assertEqual({dict(k)["of"] for k in errors}, {"k", "v"})

    def test_promtool_has_nothing_to_say(self):
        promtool = shutil.which("promtool")
        if not promtool:
            self.skipTest("promtool is not installed")
        self.start()
        self.fill()
        _, text = Exporter(self, "--socket", self.socket).ask("/metrics")
        result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True,
                                text=True, timeout=60)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_what_is_watched_for_is_there(self):
        """Every metric that docs/monitoring names, of a daemon that has a store too."""
        store = os.path.join(self.folder, "store")
        os.mkdir(store, 0o700)
        self.start("--store-folder", store, "--store-capacity-bytes", "32M", "--store-segment-bytes", "4M",
                   "--store-record-bytes", "1M")
        self.fill()
        known = Exporter(self, "--socket", self.socket).metrics()
        for name in ("alerts.yml", "grafana.json"):
            with open(os.path.join(ROOT, "docs", "monitoring", name), encoding="utf-8") as f:
                named = set(re.findall(r"\bskvqd_[a-z_]+", f.read()))
            self.assertGreater(len(named), 8)
            self.assertEqual(named - set(known), set())
        with open(os.path.join(ROOT, "docs", "monitoring", "grafana.json"), encoding="utf-8") as f:
            self.assertEqual(json.load(f)["uid"], "skvqd")
        if shutil.which("promtool"):
            rules = os.path.join(ROOT, "docs", "monitoring", "alerts.yml")
            result = subprocess.run(["promtool", "check", "rules", rules], capture_output=True,
                                    text=True, timeout=60)
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_small_frames_hold_numbers(self):
        self.start("--frame-max", "4K")
        answer, text = Exporter(self, "--socket", self.socket).ask("/metrics")
        self.assertIn("\nskvqd_up 1\n", text)
        self.assertIn("\nskvqd_matches_total 0\n", text)
        self.assertIn("# HELP skvqd_matches_total a counter of the daemon\n", text)

    def test_daemons_come_and_go(self):
        exporter = Exporter(self, "--socket", self.socket)
        self.become(exporter, "skvqd_up", 0)
        daemon = self.start()
        self.become(exporter, "skvqd_up", 1)
        daemon.kill()
        daemon.wait(timeout=60)
        self.become(exporter, "skvqd_up", 0)
        self.start()
        self.become(exporter, "skvqd_up", 1)

    def test_a_socket_in_the_file_system(self):
        self.start()
        path = os.path.join(self.folder, "exporter.sock")
        exporter = Exporter(self, "--socket", self.socket, "--listen", path)
        self.assertEqual(exporter.where, "unix:" + path)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        for mode in ("", "8", "-1", "1000", "0600x", "99999999999999999999999"):
            self.assertEqual(run("--listen", path, "--socket-mode", mode).returncode, 2)
        self.assertEqual(exporter.metrics()["skvqd_up"], {(): 1})
        self.assertEqual(run("--listen", path).returncode, 1)  # somebody listens there
        exporter.stop()
        self.assertFalse(os.path.exists(path))
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(path)
        stale.close()
        again = Exporter(self, "--socket", self.socket, "--listen", path, "--socket-mode", "0666")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o666)
        self.assertEqual(again.metrics()["skvqd_up"], {(): 1})

    def test_what_is_asked_wrongly(self):
        exporter = Exporter(self, "--socket", "/nonexistent/skvqd.sock")
        self.assertEqual(exporter.ask("/etc/passwd")[0].status, 404)
        self.assertEqual(exporter.ask("/../metrics")[0].status, 404)
        answer, _ = exporter.ask("/metrics", method="POST", body="x" * 100000)
        self.assertEqual((answer.status, answer.headers["Allow"]), (405, "GET, HEAD"))
        answer, text = exporter.ask("/metrics", method="HEAD")
        self.assertEqual((answer.status, text), (200, ""))
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"):
            self.assertEqual(exporter.ask("/metrics", headers={"Host": host})[0].status, 403, host)
        for host in ("localhost:1", "127.0.0.1", "LOCALHOST"):
            self.assertEqual(exporter.ask("/metrics", headers={"Host": host})[0].status, 200, host)

    def test_connections_are_bounded(self):
        exporter = Exporter(self, "--socket", "/nonexistent/skvqd.sock")
        port = int(exporter.where.rsplit(":", 1)[1])
        idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(60)]
        # Those beyond the bound are turned away or wait; none of them ends the server.
        for s in idle:
            s.close()
        deadline = time.monotonic() + 60
        while True:  # until it has seen that they are gone it turns others away
            try:
                self.assertEqual(exporter.metrics()["skvqd_up"], {(): 0})
                break
            except (ConnectionError, http.client.HTTPException):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(.05)
        fds = len(os.listdir(f"/proc/{exporter.process.pid}/fd"))
        self.assertLess(fds, 45)

    def test_the_page_is_there_if_wanted(self):
        plain = Exporter(self, "--socket", "/nonexistent/skvqd.sock")
        answer, text = plain.ask("/")
        self.assertNotIn("<html", text)
        shown = Exporter(self, "--socket", "/nonexistent/skvqd.sock", "--dashboard")
        answer, text = shown.ask("/")
        self.assertTrue(answer.headers["Content-Type"].startswith("text/html"))
        self.assertIn("default-src 'none'", answer.headers["Content-Security-Policy"])
        self.assertNotRegex(text.replace("http://www.w3.org/2000/svg", ""), r"https?://")

    def browse(self, url, *args):
        browser = shutil.which("chromium") or shutil.which("chromium-browser")
        if not browser:
            self.skipTest("chromium is not installed")
        return subprocess.run(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--user-data-dir=" + os.path.join(self.folder, "browser"), "--window-size=1280,1250",
             "--virtual-time-budget=9000", *args, url], capture_output=True, text=True, timeout=120)

    def test_a_browser_shows_it(self):
        self.start()
        self.fill()
        exporter = Exporter(self, "--socket", self.socket, "--dashboard")
        dom = self.browse(exporter.where, "--dump-dom").stdout
        self.assertRegex(dom, r'data-ready="[1-9]')
        self.assertRegex(dom, r'id="namespaces">.*<td class="text">example</td>')
        self.assertRegex(dom, r'id="profiles".*>k8v8</text>')
        self.assertRegex(dom, r'id="trouble" role="status"></span>')
        picture = os.environ.get("SKVQ_SCREENSHOT") or os.path.join(self.folder, "page.png")
        self.browse(exporter.where, "--screenshot=" + picture)
        self.assertGreater(os.path.getsize(picture), 10000)


if __name__ == "__main__":
    unittest.main(verbosity=1)
