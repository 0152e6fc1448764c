# SPDX-License-Identifier: Apache-2.0
"""The load test of tools/bench/serve: two engines asked at the same time, three ways of keeping prefixes.

Who asks: a few clients for each engine, each with its next question as soon as the last is answered
(closed loop). What is asked: questions behind one of a few documents, the same documents at both
engines, in an order made by seed. So each engine meets each document several times, and the other
engine has met it, too.
"""
import dataclasses
import json
import os
import queue
import random
import subprocess
import threading
import time

from serving import ROOT, Daemon, Failed, Server

# How each way is told to an engine.
WAYS = {"none": "no prefix is kept", "own": "each engine keeps its own", "skvqd": "skvqd, shared"}


@dataclasses.dataclass
class Plan:
    documents: list      # of token ids (vLLM) or texts (llama)
    requests: list       # of each engine: a list of (document, question)
    answer: int          # tokens
    clients: int         # of each engine


def plan_of(documents, questions, per_engine, answer, clients, seed):
    """The same for each way. Each engine asks as often for each document as it can be divided."""
    rng, requests = random.Random(seed), []
    for engine in range(2):
        mine = [(i % len(documents), questions[(i + engine) % len(questions)]) for i in range(per_engine)]
        rng.shuffle(mine)
        requests.append(mine)
    return Plan(documents, requests, answer, clients)


def run(plan, ask):
    """ask(engine, document, question) -> (seconds to the first token, seconds in all). Returns figures."""
    jobs = [queue.SimpleQueue() for _ in plan.requests]
    for q, requests in zip(jobs, plan.requests):
        for request in requests:
            q.put(request)
    results, failed, lock = [], [], threading.Lock()

    def client(engine):
        while not failed:
            try:
                document, question = jobs[engine].get_nowait()
            except queue.Empty:
                return
            try:
                got = ask(engine, plan.documents[document], question)
            except (Failed, OSError, subprocess.SubprocessError) as e:
                failed.append(e)
                return
            with lock:
                results.append(got)
    threads = [threading.Thread(target=client, args=(e,)) for e in range(len(jobs))
               for _ in range(plan.clients)]
    start = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seconds = time.monotonic() - start
    if failed:
        raise Failed(f"a request failed: {failed[0]}")
    first = sorted(f for f, _ in results)
    return {"ttft_p50_s": first[len(first) // 2], "ttft_max_s": first[-1], "seconds": seconds,
            "requests": len(results), "tokens_per_s": len(results) * plan.answer / seconds}


def vllm_way(way, plan, args, python, model, folder):
    """Two servers, started for this way alone."""
    daemon = Daemon(args.build, folder) if way == "skvqd" else None
    servers = []
    try:
        for i in range(2):
            servers.append(Server(
                python, model, args.build, os.path.join(folder, f"load-{way}-{i}.log"), dtype=args.dtype,
                threads=max(1, args.threads // 2), socket_path=daemon.socket if daemon else None,
                extra={"profile": args.profile}, options=["--no-enable-prefix-caching"] if way == "none" else []))
        for s in servers:
            s.wait()
        for s in servers:
            s.complete("Hello", 4)

        def ask(engine, document, question):
            first, total, _ = servers[engine].first_token(document + question, plan.answer)
            return first, total
        got = run(plan, ask)
        got["memory_bytes"] = sum(s.memory() for s in servers)
        got["daemon_bytes"] = daemon.status()["bytes_kernel"] if daemon else 0
        return got
    finally:
        for s in servers:
            s.stop()
        if daemon:
            daemon.stop()


def llama_way(way, plan, args, folder):
    """Each engine is a process for each question, so "own" is nothing that it could keep."""
    daemon = Daemon(args.build, folder) if way == "skvqd" else None
    number, lock = [0], threading.Lock()

    def ask(engine, document, question):
        with lock:
            number[0] += 1
            name = os.path.join(folder, f"load-{number[0]}")
        with open(name + ".txt", "w", encoding="utf-8") as f:
            f.write(document + question)
        options = ("--socket", daemon.socket, "--profile", args.profile, "--no-calibration") if daemon else \
            ("--plain",)
        start = time.monotonic()
        subprocess.run([os.path.join(args.build, "bin", "skvq-llama"), "--model",
                        os.path.join(args.build, "model.gguf"), "--prompt-file", name + ".txt", "-n",
                        str(plan.answer), "--threads", str(max(1, args.threads // 2)), "--json",
                        name + ".json", *options], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=1800)
        with open(name + ".json", encoding="utf-8") as f:
            return json.load(f)["ttft_s"], time.monotonic() - start
    try:
        got = run(plan, ask)
        got["daemon_bytes"] = daemon.status()["bytes_kernel"] if daemon else 0
        return got
    finally:
        if daemon:
            daemon.stop()


def texts(n, tokens):
    """So many documents of about so many tokens, different from the first word on."""
    with open(os.path.join(ROOT, "tools", "demo-data", "document.txt"), encoding="utf-8") as f:
        words = f.read().split(" ")
    count = int(tokens / 1.25)
    return [f"Volume {i}. " + " ".join((words[97 * i:] + words * 3)[:count]) for i in range(n)]


def report(name, ways, args):
    print(f"{name}, load: two engines, {args.clients} clients each, {args.requests} questions each behind "
          f"{args.documents} documents of {args.load_tokens} tokens, answers of {args.load_answer}")
    for way, g in ways.items():
        memory = f", engines {g['memory_bytes'] / 2**20:.0f} MiB" if "memory_bytes" in g else ""
        daemon = f", skvqd {g['daemon_bytes'] / 2**20:.0f} MiB" if g["daemon_bytes"] else ""
        print(f"  {WAYS[way]:28s} first token p50 {g['ttft_p50_s']:6.2f} s, worst {g['ttft_max_s']:6.2f} s; "
              f"{g['tokens_per_s']:6.1f} tokens/s{memory}{daemon}")
