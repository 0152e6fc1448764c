#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The ctypes structs are those of the headers, as the C compiler sees them."""
import ctypes
import os
import re
import subprocess
import tempfile
import unittest

from skvq import _abi, errors

INCLUDE = os.environ["SKVQ_TEST_INCLUDE"]
CONSTANTS = [n for n in vars(_abi) if re.match(r"(F32|F16|BF16|ROPE_|PAIRS_|SEQ_[A-Z]|LOG_[A-Z]|ABI_MAJOR|"
                                               r"DEFAULT|E[A-Z]+$)", n) and isinstance(getattr(_abi, n), int)]


def compiled(lines):
    """What printf("%s %lld\n", name, expression) of each (name, expression) prints."""
    body = "\n".join(f'printf("%s %lld\\n", "{name}", (long long)({expression}));'
                     for name, expression in lines)
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "l.c"), os.path.join(folder, "l")
        with open(source, "w") as f:
            f.write("#include <stddef.h>\n#include <stdio.h>\n#include <skvq/plugin.h>\n"
                    f"int main(void) {{\n{body}\nreturn 0; }}\n")
        subprocess.run([os.environ["SKVQ_TEST_CC"], "-I", INCLUDE, "-o", program, source], check=True)
        out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def fields_of(header, struct):
    """Names of a struct's fields, from the header's text."""
    body = re.search(rf"typedef struct {struct} \{{(.*?)\n\}} {struct};", header, re.S).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    names = []
    for declaration in body.split(";"):
        pointer = re.search(r"\(\*(\w+)\)", declaration)
        name = pointer or re.search(r"(\w+)\s*$", declaration)
        if name:
            names.append(name.group(1))
    return names


class Layout(unittest.TestCase):
    def test_every_field_has_the_compilers_offset_and_size(self):
        ask = []
        for name, struct in _abi.STRUCTS.items():
            ask.append((name, f"sizeof({name})"))
            for field, _ in struct._fields_:
                ask.append((f"{name}.{field}", f"offsetof({name}, {field})"))
                ask.append((f"{name}.{field}:size", f"sizeof((({name} *)0)->{field})"))
        got = compiled(ask)
        for name, struct in _abi.STRUCTS.items():
            self.assertEqual(got[name], ctypes.sizeof(struct), name)
            for field, _ in struct._fields_:
                mine = getattr(struct, field)
                self.assertEqual(got[f"{name}.{field}"], mine.offset, f"{name}.{field}")
                self.assertEqual(got[f"{name}.{field}:size"], mine.size, f"{name}.{field}")

    def test_no_struct_or_field_of_the_header_is_missing(self):
        with open(os.path.join(INCLUDE, "skvq", "plugin.h")) as f:
            header = f.read()
        self.assertEqual(set(re.findall(r"typedef struct (\w+) \{", header)), set(_abi.STRUCTS))
        for name, struct in _abi.STRUCTS.items():
            self.assertEqual(fields_of(header, name), [f for f, _ in struct._fields_], name)

    def test_constants(self):
        got = compiled([(n, f"SKVQ_{n}") for n in CONSTANTS])
        self.assertGreater(len(CONSTANTS), 20)
        self.assertEqual(got, {n: getattr(_abi, n) for n in CONSTANTS})

    def test_ranges_of_errors(self):
        for code, kind in ((1, errors.CallerError), (10, errors.ForkedError), (11, errors.CallerError),
                           (32, errors.PeerError), (34, errors.NoDaemonError), (43, errors.PeerError),
                           (64, errors.TryAgainError), (80, errors.BoundError), (95, errors.BoundError),
                           (96, errors.SkvqError)):
            self.assertIs(errors.error_class(code), kind)


if __name__ == "__main__":
    unittest.main()
