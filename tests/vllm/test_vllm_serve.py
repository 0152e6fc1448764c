#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two `vllm serve` on one machine with one skvqd, over their OpenAI API.

  test_vllm_serve.py PYTHON MODEL_FOLDER BUILD_DIR

What one server has read the other does not read again, nor the first after a restart; skvqd killed
under a serving server costs no request; requests with a cache_salt share nothing.
"""
import concurrent.futures
import os
import signal
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "bench"))
from serving import ROOT, Daemon, Failed, Server  # noqa: E402

HITS = "vllm:external_prefix_cache_hits_total"
# BF16 without the instructions for it takes eight times as long.
DTYPE = os.environ.get("SKVQ_VLLM_DTYPE", "float32")
failures = []


def check(what, ok, detail=""):
    print(f"{'ok  ' if ok else 'FAIL'} {what}{': ' + str(detail) if detail != '' else ''}", flush=True)
    if not ok:
        failures.append(what)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with all that was started
    python, model, build = sys.argv[1], sys.argv[2], os.path.abspath(sys.argv[3])
    with open(os.path.join(ROOT, "tools", "demo-data", "document.txt"), encoding="utf-8") as f:
        words = f.read().split(" ")
    system = " ".join(words[:800])
    chat = {"messages": [{"role": "system", "content": system},
                         {"role": "user", "content": "What is this about?"}]}
    questions = ["\n\nQ: What is this about?\nA:", "\n\nQ: Who wrote it, and when?\nA:"]
    with tempfile.TemporaryDirectory() as folder:
        servers, daemon = [], Daemon(build, folder)

        def serve(number):
            server = Server(python, model, build, os.path.join(folder, f"server-{number}.log"),
                            socket_path=daemon.socket, extra={"profile": "fp16"}, max_len=2048,
                            dtype=DTYPE)
            servers.append(server)
            return server

        try:
            one, two = serve(1), serve(2)
            one.wait()
            two.wait()
            # Of what a request has brought, the daemon has everything once the next one is answered.
            cold, usage, _ = one.complete(system + questions[0], 24)
            one.complete("settle", 1)
            n = usage["prompt_tokens"]
            check("the first server computes", one.metric(HITS) == 0)
            salted, _, _ = two.complete(system + questions[0], 24, cache_salt="mine alone")
            check("a request with cache_salt shares nothing", two.metric(HITS) == 0)
            check("and both servers compute the same", salted == cold, (cold, salted))
            text, _, _ = two.complete(system + questions[0], 24)
            hits = two.metric(HITS)
            check("the second server loads what the first has read", hits >= n - 128 - 80 - 32, f"{hits} of {n}")
            check("and answers the same", text == cold, text)

            one.stop(signal.SIGKILL)
            three = serve(3).wait()
            text, _, _ = three.complete(system + questions[0], 24)
            hits = three.metric(HITS)
            check("a server that was killed and started again loads it", hits >= n - 128 - 80 - 32, hits)
            check("and answers the same", text == cold, text)

            # The chat API, and answers in one batch.
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                jobs = [pool.submit(two.complete, system[:cut] + q, 12) for cut, q in
                        ((len(system), questions[1]), (2000, questions[0]), (100, questions[1]))]
                jobs.append(pool.submit(two._request, "POST", "/v1/chat/completions",
                                        {"model": two.name, "max_tokens": 12, "temperature": 0, **chat}))
                check("a batch of mixed lengths is answered", all(j.result() for j in jobs))

            # Killed while the servers have connections to it, and with a prompt that is new.
            fresh = " ".join(words[900:1500])
            want, _, _ = three.complete(fresh + questions[1], 24, cache_salt="mine alone")
            daemon.stop(signal.SIGKILL)
            text, _, _ = two.complete(fresh + questions[1], 24)
            check("skvqd killed: the answer is right", text == want, text)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                long = pool.submit(three.complete, fresh + questions[0], 200)
                text, _, _ = two.complete(" ".join(words[1500:1900]) + questions[0], 8)
                check("and requests end", bool(text) and len(long.result()[0]) > 0)

            daemon.start()
            for attempt in range(20):  # sessions are opened anew when they are next used
                fresh = f"{attempt} " + " ".join(words[:600])
                two.complete(fresh + questions[0], 1)
                two.complete("settle", 1)
                before = three.metric(HITS)
                three.complete(fresh + questions[0], 1)
                if three.metric(HITS) > before:
                    break
            check("skvqd started again: it is used again", three.metric(HITS) > before, f"{attempt} misses")
        except Failed as e:
            check("no server fails", False, e)
        finally:
            for server in servers:
                server.stop(signal.SIGKILL)
            daemon.stop(signal.SIGKILL)
            if failures:
                for number in (1, 2, 3):
                    path = os.path.join(folder, f"server-{number}.log")
                    if os.path.exists(path):
                        with open(path, encoding="utf-8", errors="replace") as f:
                            print(f"--- {path}\n" + "".join(f.readlines()[-30:]))
    print(f"{len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
