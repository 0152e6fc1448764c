#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare.py FROZEN TODAY: what the frozen header promised still holds.

Both arguments are programs built from layout.c. A field keeps its offset and size, a value its
number, a struct may only grow.
"""
import subprocess
import sys


def read(program):
    out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    table = {}
    for line in out.splitlines():
        kind, name, *numbers = line.split()
        table[kind, name] = [int(n) for n in numbers]
    return table


def main():
    frozen, today = read(sys.argv[1]), read(sys.argv[2])
    if len(frozen) < 100:
        sys.exit(f"compare: the frozen table has only {len(frozen)} lines")
    broken = []
    for key, numbers in frozen.items():
        now = today.get(key)
        if now is None or (now[0] < numbers[0] if key[0] == "size" else now != numbers):
            broken.append(f"{key[0]} {key[1]}: was {numbers}, is {now}")
    if broken:
        sys.exit("the ABI broke:\n  " + "\n  ".join(broken))
    print(f"{len(frozen)} promises hold")


main()
