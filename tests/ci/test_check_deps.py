#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/ci/check-deps passes a good tree and names each breach of a bad one."""
import os
import subprocess
import sys
import tempfile
import unittest

CHECK = sys.argv.pop(1)

GOOD = {
    "plugin-abi/include/skvq/plugin.h": '#include <stdint.h>\n#include "error.h"\n',
    "plugin-abi/include/skvq/error.h": "",
    "plugin-abi/src/plugin.c": "#include <skvq/plugin.h>\n#include <skvq/client.h>\n",
    "kernels/include/skvq/kernels.h": "#include <skvq/plugin.h>\n",
    "kernels/ref/ref.h": "",
    "kernels/ref/pack.c": '#include "ref/ref.h"\n',
    "kernels/x86/pack.c": "#include <immintrin.h>\n",
    "kernels/x86/CMakeLists.txt": "target_compile_options(k PRIVATE -mavx2)\n",
    "clients/c/include/skvq/client.h": "",
    "clients/c/conn.c": '#include "skvq_control.pb-c.h"\n#include <skvq/client.h>\n',
    "daemon/base/log.h": "",
    "daemon/mem/arena.h": '#include "base/log.h"\n',
    "daemon/cache/index.h": '#include "mem/arena.h"\n',
    "daemon/spill/store.h": '#include "mem/arena.h"\n',
    "daemon/spill/io_uring.c": "#include <liburing.h>\n",
    "daemon/control/conn.c": '#include "cache/index.h"\n#include "skvq_control.pb-c.h"\n',
    "daemon/server.h": "",
    "daemon/main.c": '#include "server.h"\n',
    "daemon/CMakeLists.txt": "pkg_check_modules(JEMALLOC REQUIRED jemalloc)\n",
    "tools/ctl/main.c": "#include <skvq/client.h>\n#include <jansson.h>\n",
    "tests/unit/test_index.c": '#include "cache/index.h"\n#include "ref/ref.h"\n'
                               "#include <cmocka.h>\n",
}

# (file, text, what the report must name)
BAD = [
    ("daemon/cache/a.c", '#include "spill/store.h"\n', "may not see 'spill'"),
    ("daemon/spill/a.c", '#include "cache/index.h"\n', "may not see 'cache'"),
    ("daemon/base/a.c", '#include "mem/arena.h"\n', "may not see 'mem'"),
    ("daemon/control/a.c", '#include "server.h"\n', "may not see 'server'"),
    ("daemon/control/a.c", "#include <skvq/client.h>\n", "may not see 'client'"),
    ("plugin-abi/src/a.c", '#include "mem/arena.h"\n', "may not see 'mem'"),
    ("plugin-abi/src/a.c", '#include "ref/ref.h"\n', "private"),
    ("tools/ctl/a.c", '# include "../../daemon/server.h"\n', "may not see 'server'"),
    ("kernels/ref/a.c", "#include <skvq/client.h>\n", "may not see 'client'"),
    ("clients/c/a.c", "#include <skvq/kernels.h>\n", "may not see 'kernels'"),
    ("clients/llama.cpp/a.cpp", "#include <skvq/client.h>\n", "may not see 'client'"),
    ("daemon/a.c", '#include "../tests/unit/t.h"\n', "may not see 'tests'"),
    ("plugin-abi/include/skvq/a.h", "#include <stdio.h>\n", "<stdint.h>"),
    ("daemon/control/a.c", "#include <liburing.h>\n", "liburing.h"),
    ("daemon/cache/a.c", '#include "skvq_control.pb-c.h"\n', "pb-c.h"),
    ("daemon/a.c", "#include <jemalloc/jemalloc.h>\n", "jemalloc"),
    ("plugin-abi/src/a.c", "#include <openssl/sha.h>\n", "openssl"),
    ("plugin-abi/src/a.c", "#include <isa-l.h>\n", "isa-l"),
    ("daemon/a.c", "#include <immintrin.h>\n", "immintrin.h"),
    ("daemon/a.c", '__attribute__((target("avx2"))) int f(void);\n', "ISA"),
    ("daemon/x.cmake", "add_compile_options(-march=native)\n", "-march"),
    ("kernels/CMakeLists.txt", "add_compile_options(-mavx2)\n", "-mavx2"),
    ("plugin-abi/CMakeLists.txt", "target_link_libraries(p jemalloc)\n", "jemalloc"),
]


def check(files):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as f:
                f.write(text)
        return subprocess.run([sys.executable, CHECK, "--root", root],
                              capture_output=True, text=True)


class CheckDeps(unittest.TestCase):
    def test_a_good_tree_passes(self):
        result = check(GOOD)
        self.assertEqual((result.returncode, result.stdout), (0, ""))

    def test_each_breach_is_named_with_its_file(self):
        for path, text, names in BAD:
            with self.subTest(path=path, text=text):
                result = check({**GOOD, "tests/unit/t.h": "", path: text})
                self.assertEqual(result.returncode, 1)
                self.assertIn(path + ":1:", result.stdout)
                self.assertIn(names, result.stdout)
                self.assertEqual(len(result.stdout.splitlines()), 1)

    def test_an_empty_tree_is_not_a_pass(self):
        self.assertEqual(check({}).returncode, 1)


if __name__ == "__main__":
    unittest.main()
