#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the documentation tells people to type works.

Blocks of a page that are marked `sh` are run, one page in one shell, in a folder where build/, tools/ and
tests/ are as in a checkout. `sh llama` is run where skvq-llama was built; `sh build`, `sh install` (packages, a
running systemd) and `sh serve` (an engine that a slow job installs) are not run here. Of every other
command of ours, in blocks and between backticks, verbs and options must exist.
"""
import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest

BIN, SOURCE = sys.argv.pop(1), sys.argv.pop(1)
NOT_RUN = {"build", "install", "serve"}
PAGES = sorted(glob.glob(os.path.join(SOURCE, "**", "*.md"), recursive=True))
PAGES = [p for p in PAGES if not re.search(r"/(build[^/]*|\.[^/]*)/", p[len(SOURCE):])]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.S | re.M)
# Not those of this machine.
FOLDERS = {"/run/skvqd/": "run/", "/etc/skvqd.conf": "etc/skvqd.conf", "/var/lib/skvqd/": "lib/"}
OURS = re.compile(r"(?:^|[\s;&|(])(?:build/bin/|build-\w+/bin/)?"
                  r"(skvqd|skvqctl|skvq-exporter|skvq-llama|skvq-eval|skvq-calibrate|skvq-check|"
                  r"skvq-bench-publish|bench-\w+|tools/build|tools/check|tools/fuzz|tools/package)"
                  r"(?=[\s`]|$)([^;&|`\n]*)")


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def blocks(path):
    return [(info.split(), body) for info, body in BLOCK.findall(read(path))]


def help_of(*command):
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    return result.stdout + result.stderr


class Docs(unittest.TestCase):
    def run_page(self, name):
        script = []
        for info, body in blocks(os.path.join(SOURCE, "docs", name)):
            if info[:1] != ["sh"] or NOT_RUN & set(info):
                continue
            if "llama" in info and not os.path.exists(os.path.join(BIN, "skvq-llama")):
                continue
            script.append(body)
        self.assertTrue(script, f"{name} has nothing to run")
        with tempfile.TemporaryDirectory() as folder:
            text = "set -eum\n" + "\n".join(script)
            for path, instead in FOLDERS.items():
                text = text.replace(path, os.path.join(folder, instead))
            for made in ("run", "etc", "lib"):
                os.mkdir(os.path.join(folder, made), 0o700)
            for seen in ("tools", "tests", "docs", "daemon"):
                os.symlink(os.path.join(SOURCE, seen), os.path.join(folder, seen))
            os.symlink(os.path.dirname(BIN), os.path.join(folder, "build"))
            env = {k: v for k, v in os.environ.items() if k != "SKVQD_SOCKET"}
            env["OMP_WAIT_POLICY"] = "passive"  # other tests have the processors, too
            # A file, not a pipe, which daemons that go on would hold open.
            with open(os.path.join(folder, "output"), "w+", encoding="utf-8") as output:
                shell = subprocess.Popen(["bash", "-c", text], cwd=folder, stdin=subprocess.DEVNULL,
                                         stdout=output, stderr=output, env=env, start_new_session=True)
                try:
                    status = shell.wait(timeout=600)
                except subprocess.TimeoutExpired:
                    status = "not ended after 600 s"
                finally:
                    # Daemons that it left: each job has a group of its own, all are of its session.
                    subprocess.run(["pkill", "-KILL", "-s", str(shell.pid)], check=False)
                    shell.wait()
                output.seek(0)
                out = output.read()
            logs = "".join(read(p) for p in glob.glob(os.path.join(folder, "*.log")))
            self.assertEqual(status, 0, f"{name}:\n{text}\n---\n{out}\n---\n{logs}")
            return out

    def test_quick_start(self):
        out = self.run_page("quick-start.md")
        self.assertIn("GB/s in place", out)
        self.assertIn("no engine has asked for anything yet", " ".join(out.split()))

    def test_troubleshooting(self):
        self.assertIn("Nobody has published token 0", self.run_page("troubleshooting.md"))

    def test_tuning(self):
        self.run_page("tuning.md")

    def test_operations(self):
        self.run_page("operations.md")

    def test_every_block_is_run_or_says_why_not(self):
        for path in PAGES:
            for info, body in blocks(path):
                if info[:1] == ["sh"]:
                    self.assertLessEqual(set(info[1:]), NOT_RUN | {"llama"}, f"{path}: {info}")
                    self.assertTrue(NOT_RUN & set(info) or os.path.basename(path) in
                                    ("quick-start.md", "troubleshooting.md", "tuning.md", "operations.md"),
                                    f"{path} has a block 'sh' that no test runs:\n{body}")

    def program(self, name):
        path = os.path.join(SOURCE, name) if name.startswith("tools/") else os.path.join(BIN, name)
        return path if os.path.exists(path) else None

    def test_verbs_and_options_exist(self):
        helps, seen = {}, 0
        for path in PAGES:
            text = read(path).replace("\\\n", " ")
            inline = "\n".join(re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)))
            for name, rest in OURS.findall("\n".join(b for _, b in blocks(path)).replace("\\\n", " ") +
                                           "\n" + inline):
                program = self.program(name)
                words = rest.split()
                if not program or not words:
                    continue
                verb = []
                if name == "skvqctl":
                    verb = [w for w in words if re.fullmatch(r"[a-z][a-z-]*", w)][:1]
                    if not verb or verb == ["help"]:
                        continue
                key = (program, *verb)
                if key not in helps:
                    helps[key] = help_of(*key)
                self.assertNotIn("there is no verb", helps[key], f"{path}: {name} {rest}")
                for option in re.findall(r"(?<![\w-])(--[a-z][\w-]+)", rest):
                    seen += 1
                    self.assertRegex(helps[key], re.escape(option) + r"(?![\w-])",
                                     f"{path}: {name} {rest}")
        self.assertGreater(seen, 30)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    unittest.main(verbosity=1)
