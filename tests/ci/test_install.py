#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What cmake --install puts down: nothing is forgotten, programs run from there, an engine and a tool
in C are built against it by pkg-config and by CMake, and a package of it holds the same."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

BUILD, SOURCE = sys.argv.pop(1), sys.argv.pop(1)
TOOL = r"""
#include <stdio.h>
#include <skvq/client.h>
int main(int argc, char **argv)
{
	char why[SKVQ_CLIENT_WHY_BYTES];
	struct skvq_client *c;
	if (argc != 2 || skvq_client_connect(argv[1], "tool", 10000, &c, why) < 0)
		return 1;
	puts(skvq_client_hello(c)->version);
	skvq_client_free(c);
	return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(consumer C)
find_package(skvq REQUIRED)
find_package(PkgConfig REQUIRED)
add_executable(engine engine.c)
target_link_libraries(engine PRIVATE skvq::abi m)
add_executable(tool tool.c)
target_link_libraries(tool PRIVATE skvq::client)
file(WRITE ${CMAKE_BINARY_DIR}/plugin "${skvq_PLUGIN}")
"""


def run(*args, **options):
    result = subprocess.run(args, capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
    return result.stdout.strip()


def files_below(root):
    return sorted(os.path.relpath(os.path.join(d, f), root) for d, _, fs in os.walk(root) for f in fs)


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = os.path.join(cls.folder.name, "root")
        run("cmake", "--install", BUILD, "--prefix", "/usr", env={**os.environ, "DESTDIR": cls.root})
        cls.usr = os.path.join(cls.root, "usr")
        cls.work = os.path.join(cls.folder.name, "work")
        os.mkdir(cls.work)
        shutil.copy(os.path.join(SOURCE, "plugin-abi", "examples", "engine.c"), cls.work)
        with open(os.path.join(cls.work, "tool.c"), "w", encoding="ascii") as f:
            f.write(TOOL)
        cls.socket = os.path.join(cls.work, "s")
        cls.daemon = subprocess.Popen([os.path.join(cls.usr, "bin", "skvqd"), "--socket", cls.socket],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        ctl = [os.path.join(cls.usr, "bin", "skvqctl"), "--socket", cls.socket, "status", "--json"]
        while True:
            result = subprocess.run(ctl, capture_output=True, text=True, timeout=60)
            if result.returncode == 0:
                break
            if cls.daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the installed skvqd does not start: " + result.stderr)
            time.sleep(.05)
        cls.status = json.loads(result.stdout)

    @classmethod
    def tearDownClass(cls):
        cls.daemon.terminate()
        cls.daemon.wait(timeout=60)
        cls.folder.cleanup()

    def find(self, name):
        found = [f for f in files_below(self.root) if os.path.basename(f) == name]
        self.assertEqual(len(found), 1, f"{name}: {found}")
        return os.path.join(self.root, found[0])

    def check_consumers(self, plugin, engine, tool):
        out = run(engine, plugin, self.socket)
        self.assertIn("tokens", out)
        self.assertEqual(run(tool, self.socket), self.status["version"])

    def test_the_daemon_is_the_installed_one(self):
        self.assertEqual(os.readlink(f"/proc/{self.daemon.pid}/exe"), os.path.join(self.usr, "bin", "skvqd"))

    def test_an_engine_and_a_tool_by_pkg_config(self):
        path = os.path.dirname(self.find("skvq-plugin.pc"))
        default = run("pkg-config", "--variable", "pc_path", "pkg-config")
        # The files name the prefix of the build, which is not where this installation is.
        def pkg_config(*args):
            return run("pkg-config", "--define-variable=prefix=" + self.usr, *args,
                       env={**os.environ, "PKG_CONFIG_PATH": path + ":" + default})
        plugin = pkg_config("--variable=plugin", "skvq-plugin")
        self.assertTrue(os.path.exists(plugin), plugin)
        engine, tool = os.path.join(self.work, "engine-pc"), os.path.join(self.work, "tool-pc")
        run("cc", "-o", engine, os.path.join(self.work, "engine.c"),
            *pkg_config("--cflags", "skvq-plugin").split(), "-lm")
        run("cc", "-o", tool, os.path.join(self.work, "tool.c"),
            *pkg_config("--cflags", "--libs", "skvq-client").split())
        self.check_consumers(plugin, engine, tool)

    def test_an_engine_and_a_tool_by_cmake(self):
        with open(os.path.join(self.work, "CMakeLists.txt"), "w", encoding="ascii") as f:
            f.write(CMAKE)
        build = os.path.join(self.work, "build")
        run("cmake", "-S", self.work, "-B", build, "-DCMAKE_PREFIX_PATH=" + self.usr)
        run("cmake", "--build", build)
        with open(os.path.join(build, "plugin"), encoding="utf-8") as f:
            plugin = f.read()
        self.check_consumers(plugin, os.path.join(build, "engine"), os.path.join(build, "tool"))

    def test_nothing_stays_behind(self):
        """The manifest that CMake writes is all there is."""
        again = os.path.join(self.folder.name, "again")
        run("cmake", "--install", BUILD, "--prefix", "/usr", env={**os.environ, "DESTDIR": again})
        with open(os.path.join(BUILD, "install_manifest.txt"), encoding="utf-8") as f:
            manifest = f.read().split("\n")
        for path in filter(None, manifest):
            os.remove(again + path)
        self.assertEqual(files_below(again), [])

    def test_manual_pages_and_completion(self):
        pages = ["skvqctl.1"]
        if shutil.which("help2man"):
            pages += ["skvqd.8", "skvqd.conf.5", "skvq-exporter.1"]
        for name in pages:
            folder = os.path.basename(os.path.dirname(self.find(name)))
            self.assertEqual(folder, "man" + name[-1])
        if shutil.which("help2man"):
            with open(self.find("skvqd.8"), encoding="utf-8") as f:
                page = f.read()
            self.assertIn("\nram_max = 4G\n", page)
            self.assertIn("\n\\&[memory]\n", page)
            self.assertIn("\\-\\-print\\-config", page)
        self.assertIn("bash-completion/completions/skvqctl", files_below(os.path.join(self.usr, "share")))
        self.assertIn("zsh/vendor-completions/_skvqctl", files_below(os.path.join(self.usr, "share")))
        self.find("skvqctl.fish")

    def test_the_service_and_its_configuration(self):
        with open(self.find("skvqd.service"), encoding="utf-8") as f:
            unit = f.read()
        start = re.search(r"ExecStart=(/\S+/bin)/skvqd --config (/\S*etc/skvqd\.conf)\n", unit)
        self.assertTrue(start, unit)
        self.assertIn(f"ExecReload={start.group(1)}/skvqctl config reload {start.group(2)}\n", unit)
        for name, folder in (("skvqd.socket", "systemd/system"), ("skvqd.service", "systemd/system"),
                             ("skvq-exporter.service", "systemd/system")):
            if name.startswith("skvq-exp") and not os.path.exists(os.path.join(self.usr, "bin", "skvq-exporter")):
                continue
            self.assertTrue(os.path.dirname(self.find(name)).endswith(folder))
        self.assertIn("usr/lib/tmpfiles.d/skvqd.conf", files_below(self.root))
        self.assertIn("usr/lib/sysusers.d/skvqd.conf", files_below(self.root))
        config = [f for f in files_below(self.root) if f.endswith("etc/skvqd.conf")]
        self.assertEqual(len(config), 1)
        run(os.path.join(self.usr, "bin", "skvqd"), "--config", os.path.join(self.root, config[0]),
            "--check-config")
        if shutil.which("systemd-sysusers"):
            found = [f for f in files_below(self.root) if f.endswith("sysusers.d/skvqd.conf")]
            self.assertEqual(len(found), 1)
            users = os.path.join(self.folder.name, "users")
            os.makedirs(os.path.join(users, "etc"), exist_ok=True)
            run("systemd-sysusers", "--root=" + users, os.path.join(self.root, found[0]))
            with open(os.path.join(users, "etc", "passwd"), encoding="utf-8") as f:
                self.assertIn("skvqd:", f.read())


class Package(unittest.TestCase):
    """Of cpack, from the same build: dpkg's own view of it. Installing it for real wants a machine to
    spare; tools/package makes the one that is meant for that."""

    def test_it_holds_what_is_installed(self):
        for tool in ("dpkg-deb", "dpkg-shlibdeps", "file"):
            if not shutil.which(tool):
                self.skipTest(f"no {tool} here")
        with tempfile.TemporaryDirectory() as folder:
            run("cpack", "--config", os.path.join(BUILD, "CPackConfig.cmake"), "-B", folder)
            packages = [f for f in os.listdir(folder) if f.endswith(".deb")]
            self.assertEqual(len(packages), 1)
            package, root = os.path.join(folder, packages[0]), os.path.join(folder, "root")
            run("dpkg-deb", "-x", package, root)
            control = os.path.join(folder, "control")
            run("dpkg-deb", "-e", package, control)
            with open(os.path.join(BUILD, "install_manifest.txt"), encoding="utf-8") as f:
                manifest = sorted(os.path.basename(p) for p in f.read().split())
            self.assertEqual(sorted(os.path.basename(p) for p in files_below(root)), manifest)
            for script in ("postinst", "prerm", "postrm"):
                path = os.path.join(control, script)
                self.assertTrue(os.access(path, os.X_OK), script)
                run("sh", "-n", path)
            with open(os.path.join(control, "control"), encoding="utf-8") as f:
                text = f.read()
            for library in ("libc6", "libprotobuf-c1", "libssl3", "liburing2"):
                self.assertIn(library, text)


if __name__ == "__main__":
    unittest.main(verbosity=1)
