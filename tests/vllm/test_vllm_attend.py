#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vLLM itself with mode "attend": attention over skvqd's pages in place of its own.

  test_vllm_attend.py MODEL_FOLDER BUILD_DIR     with the python of tools/engines-vllm

Engines one after the other, each in a process: vLLM as it is, which says what is right; pages of
profile fp16 with a daemon, which must say the same through chunks, drafts, batches, preemption, aborts and
a daemon that dies; pages of k4v2 in bfloat16 and without a daemon, which must be near; and a `vllm serve`,
whose scheduler and worker are two processes. SKVQ_TEST_PARTS="stock serve" runs some of them.
"""
import concurrent.futures
import glob
import json
import math
import os
import signal
import subprocess
import sys
import tempfile

MODEL, BUILD = sys.argv[1], os.path.abspath(sys.argv[2])
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path[:0] = [os.path.join(ROOT, p) for p in ("clients/vllm", "clients/python", "tools/bench")]

BLOCK, CHUNK, WINDOW, PAGE = 32, 256, 128, 80
TEXT = 500                      # tokens whose distributions are compared
TOP = 20
KLD_MAX, SAME_MIN = 0.05, 0.9   # k4v2 and bfloat16 against float32; measured: docs/measurements.md
failures = []


def check(what, ok, detail=""):
    print(f"{'ok  ' if ok else 'FAIL'} {what}{': ' + str(detail) if detail != '' else ''}", flush=True)
    if not ok:
        failures.append(what)


def environment():
    env = dict(os.environ)
    env.update(VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
               HF_HUB_OFFLINE="1", PYTHONHASHSEED="0", VLLM_ENABLE_V1_MULTIPROCESSING="0",
               VLLM_NO_USAGE_STATS="1", VLLM_PLUGINS="",
               SKVQ_PLUGIN=os.path.join(BUILD, "lib", "libskvq_plugin.so"))
    env.setdefault("OMP_NUM_THREADS", "1")  # barriers of a team stand still on a busy machine
    iomp = glob.glob(os.path.join(sys.prefix, "lib", "libiomp5.so"))
    if iomp:
        env.setdefault("LD_PRELOAD", iomp[0])
    return env


def prompts(ids):
    long, other = ids[:600], ids[1500:2040]
    q1, q2 = ids[3000:3015], ids[3020:3050]
    crowd = [ids[a:a + 540] for a in (0, 900, 1800, 2700)]
    return {"one": long + q1, "two": long + q2, "other": other + q1, "short": ids[700:720], "middle": ids[:333],
            **{f"crowd{i}": p for i, p in enumerate(crowd)}}


class Engine:
    def __init__(self, dtype, **more):
        from vllm import LLM

        import skvq_vllm

        skvq_vllm.register()
        self.llm = LLM(model=MODEL, dtype=dtype, enforce_eager=True, max_model_len=2048, block_size=BLOCK,
                       max_num_seqs=4, max_num_batched_tokens=CHUNK, disable_log_stats=False, **more)
        self.core = self.llm.llm_engine
        self.scheduler = self.core.engine_core.engine_core.scheduler
        with open(os.path.join(ROOT, "tools", "demo-data", "document.txt"), encoding="utf-8") as f:
            self.ids = self.llm.get_tokenizer()(f.read())["input_ids"]

    def parameters(self, n):
        from vllm import SamplingParams

        return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logprobs=5)

    def ask(self, asked, n=12, **more):
        """[(token ids, {token: logprob} of each, tokens that were cached)], all prompts in one batch."""
        got = self.llm.generate([{"prompt_token_ids": p, **more} for p in asked], self.parameters(n),
                                use_tqdm=False)
        return [answer(o) for o in got]

    def distributions(self):
        """[{token: logprob}] of the tokens of a text, each after those before it."""
        from vllm import SamplingParams

        (got,) = self.llm.generate([{"prompt_token_ids": self.ids[:TEXT]}],
                                   SamplingParams(max_tokens=1, prompt_logprobs=TOP), use_tqdm=False)
        return [{str(t): p.logprob for t, p in one.items()} for one in got.prompt_logprobs[1:]]


def answer(output):
    o = output.outputs[0]
    return (list(o.token_ids), [{str(t): p.logprob for t, p in one.items()} for one in o.logprobs],
            output.num_cached_tokens, o.text)


def agree(want, got):
    """The same tokens, and logprobs alike; where two tokens were as good as equal, up to there."""
    (a, la, *_), (b, lb, *_) = want, got
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i > 0 and str(y) in la[i] and la[i][str(x)] - la[i][str(y)] < 0.15
        if abs(la[i][str(x)] - lb[i][str(y)]) > 0.2:
            return False
    return len(a) == len(b)


def attend(socket, profile):
    from vllm.config import KVTransferConfig

    return {"kv_transfer_config": KVTransferConfig(
                kv_connector="SkvqdConnector", kv_role="kv_both", kv_load_failure_policy="recompute",
                kv_connector_extra_config={"socket": socket, "profile": profile, "mode": "attend"})}


def drafts():
    return {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3,
                                   "prompt_lookup_min": 2}}


def stock(path):
    e = Engine("float32")
    all_prompts = prompts(e.ids)
    answers = {}
    for name, p in all_prompts.items():
        answers[name] = e.ask([p], n=32 if name.startswith("crowd") or name == "one" else 12, cache_salt=name)[0]
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"answers": answers, "prompts": all_prompts, "text": e.distributions()}, f)


def exact(path, folder):
    from serving import Daemon

    daemon = Daemon(BUILD, folder)
    try:
        with open(path, encoding="utf-8") as f:
            want = json.load(f)["answers"]
        e = Engine("float32", **attend(daemon.socket, "fp16"), **drafts())
        run(e, daemon, want, prompts(e.ids))
    finally:
        daemon.stop(signal.SIGKILL)


def run(e, daemon, want, asked):
    import skvq
    from skvq_vllm import attend as backend

    worker, half = backend.current.worker, e.scheduler.connector._scheduler
    ids = e.ids

    def idle():
        """Ends what the last call has left."""
        while e.scheduler.has_requests():
            e.core.step()

    def left():
        idle()
        return {"worker": len(worker._requests), "unfit": len(worker._unfit), "live": len(half._live),
                "matches": len(half._matches), "admitted": half.admission.tokens, "vllm": len(e.scheduler.requests)}

    def start(name, p, n):
        e.core.add_request(name, {"prompt_token_ids": p}, e.parameters(n))

    def drain(what=None, when=lambda: False):
        """Steps to the end; calls what once, when that is so. {name: answer}"""
        got = {}
        while e.scheduler.has_requests():
            if what is not None and when():
                what, _ = None, what()
            for o in e.core.step():
                if o.finished:
                    got[o.request_id] = answer(o)
        check("what was to happen in between has happened", what is None)
        return got

    def running():
        return len(e.scheduler.running)

    def generated(n):
        return lambda: running() and all(r.num_output_tokens >= n for r in e.scheduler.running)

    def salted(name, n=12):
        return e.ask([asked[name]], n=n, cache_salt="mine")[0]

    # The first of each is read in chunks: from the second chunk on, what came before is in pages.
    for name, cached in (("short", 0), ("middle", 0), ("one", (333 - WINDOW) // PAGE * PAGE)):
        (got,) = e.ask([asked[name]], n=32 if name == "one" else 12)
        check(f"'{name}' says what vLLM says", agree(want[name], got) and got[2] == cached, got[2])
    check("drafts were made and taken",
          sum(m.value for m in e.llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens") > 0)
    (got,) = e.ask([asked["two"]])
    check("a shared prefix is attended where it lies", agree(want["two"], got) and got[2] == 480, got[2])
    hits = salted("two")
    check("a salted request shares nothing", agree(want["two"], hits) and hits[2] == 0, hits[2])
    turn = asked["one"] + e.ask([asked["one"]], n=76)[0][0]
    (got,) = e.ask([turn + ids[3020:3050]])
    check("generated tokens are matched in the next turn", got[2] == (len(turn) - 1 - WINDOW) // PAGE * PAGE > 480, got[2])
    batch = e.ask([asked[n] for n in ("one", "two", "other", "short", "middle")])
    check("a batch of mixed lengths", all(agree((w[0][:12], w[1][:12]), g) for w, g in zip(
        (want[n] for n in ("one", "two", "other", "short", "middle")), batch)), [g[2] for g in batch])

    # What a request holds: one block of vLLM's, of a few bytes a token, and pages.
    config = e.scheduler.kv_cache_config
    (group,) = config.kv_cache_groups
    seen = []
    start("held", asked["one"], 32)
    got = drain(lambda: seen.extend((worker.memory(), e.scheduler.kv_cache_manager.get_block_ids(
        next(iter(e.scheduler.requests))))), generated(8))
    memory, (blocks,) = seen
    check("a request has one block of vLLM's", len(blocks) == 1, f"{group.kv_cache_spec.page_size_bytes} bytes a layer")
    check("and pages that are the daemon's", memory.shared > 0 and memory.plain == 0 and agree(want["one"], got["held"]),
          memory)

    # Preempted by vLLM, which begins them anew: full pages are there already.
    names = [f"crowd{i}" for i in range(4)]

    def crowd(what=None, when=lambda: False):
        for n in names:
            start(n, asked[n], 32)
        return drain(what, when)

    got = crowd(lambda: e.scheduler.reset_prefix_cache(reset_running_requests=True), generated(5))
    check("preempted requests say what they say alone", all(agree(want[n], got[n]) for n in names))
    half.admission.tokens_max, most = 1200, []
    step = e.core.step
    e.core.step = lambda: (most.append(running()), step())[1]
    got = crowd()
    e.core.step, half.admission.tokens_max = step, 0
    check("tokens_max: requests wait for one another", max(most) == 2 and all(agree(want[n], got[n]) for n in names),
          max(most))

    for steps in (1, 4):
        start(f"abort-{steps}", ids[2000 + steps:2600 + steps], 200)
        for _ in range(steps):
            e.core.step()
        e.core.abort_request([f"abort-{steps}"])
    check("nothing is left of requests that are gone", not any(left().values()), left())

    # Sequences that fail in each kind of row: the request is answered by vLLM's own attention.
    def failing(target, name, fail, calls):
        """target.name does fail(...) in the calls of these numbers, and else what it did."""
        count, real = [0], getattr(target, name)

        def instead(*args, **kwargs):
            count[0] += 1
            return fail(*args, **kwargs) if count[0] in calls else real(*args, **kwargs)

        setattr(target, name, instead)
        return lambda: (setattr(target, name, real), count[0])[1]

    def refuse(*_args, **_kwargs):
        raise skvq.CallerError("test", 1, "SKVQ_EINVAL", "made up")

    def refuse_last(batch, layer, k, v):
        return {len(batch.seqs) - 1: skvq.CallerError("append", 1, "SKVQ_EINVAL", "made up")}

    for what, target, name, fail, calls in (
            ("no sequence can be opened", skvq.Model, "sequence", refuse, {2, 3}),
            ("rows in place are refused", skvq.Batch, "append", refuse_last, {900}),
            ("attention in place fails", skvq.Batch, "attend", refuse, {37}),
            ("a piece of a prompt is refused", skvq.Batch, "append", refuse_last, {5, 135}),
            ("pages cannot be read back", skvq.Sequence, "export", refuse, {3}),
            ("a commit fails", skvq.Sequence, "commit", refuse, {2}),
            ("drafts cannot be taken back", skvq.Sequence, "truncate", refuse, {1})):
        undo = failing(target, name, fail, calls)
        for n in ("one", "other"):
            e.core.add_request(n, {"prompt_token_ids": asked[n], "cache_salt": what}, e.parameters(32 if n == "one" else 12))
        got = drain()
        n_calls = undo()
        check(what, n_calls >= max(calls) and agree(want["one"], got["one"]) and agree(want["other"], got["other"]),
              n_calls)
    # What is said first is said once: vLLM computes a block anew only behind tokens that it had before.
    short = ids[3100:3120]
    (said,) = e.ask([short], n=1)
    undo = failing(skvq.Batch, "append", refuse_last, {1})
    (got,) = e.ask([short], n=1)
    n_calls = undo()
    check("a short prompt that pages cannot hold", n_calls >= 1 and got[0] == said[0] and agree(said, got), n_calls)
    from skvq_vllm.store import Failed

    def miss(*_args, **_kwargs):
        raise Failed("made up")

    undo = failing(worker.store, "open", miss, {1})
    (got,) = e.ask([asked["two"]])
    n_calls = undo()
    check("a match that is gone: it is computed, in pages", got[2] == 480 and n_calls == 3 and agree(want["two"], got),
          n_calls)
    check("and nothing is left of them", not any(left().values()), left())

    # The daemon dies: in the middle of answers, and between a match and the step that counts on it.
    got = crowd(lambda: daemon.stop(signal.SIGKILL), generated(5))
    check("skvqd killed under requests: they end as they would", all(agree(want[n], got[n]) for n in names))
    check("and others do, too", agree(want["other"], e.ask([asked["other"]])[0]))

    def again():
        daemon.start()
        for _ in range(60):
            e.ask([asked["one"]], n=1)
            (found,) = e.ask([asked["two"]])
            if found[2]:
                break
        check("a daemon that is started again is used again", found[2] >= 400 and agree(want["two"], found), found[2])

    again()
    match, killed = half.match, []

    def match_and_kill(request, n_local):
        n = match(request, n_local)
        if n:
            killed.append(n)
            daemon.stop(signal.SIGKILL)
        return n

    half.match = match_and_kill
    lost = e.ask([asked["two"], asked["one"]])
    half.match = match
    check("killed before a sequence is opened: no answer is lost", killed and agree(want["two"], lost[0])
          and agree((want["one"][0][:12], want["one"][1][:12]), lost[1]), [g[2] for g in lost])
    again()

    # Weights may have been changed: what was begun is begun anew, and nothing is shared from then on.
    start("reset", asked["one"], 32)
    got = drain(lambda: half.reset(), generated(5))
    check("a reset under a request", agree(want["one"], got["reset"]))
    (got,) = e.ask([asked["two"]])
    check("after a reset nothing is shared", got[2] == 0 and agree(want["two"], got), got[2])
    check("and nothing is left", not any(left().values()), left())


def lossy(path, folder):
    with open(path, encoding="utf-8") as f:
        stock_text = json.load(f)["text"]
    e = Engine("bfloat16", **attend(os.path.join(folder, "no-daemon"), "k4v2"))
    got = e.distributions()
    each, same = [], 0
    for p, q in list(zip(stock_text, got))[TEXT // 2:]:  # those that see coded tokens
        floor = min(q.values())
        each.append(sum(math.exp(x) * (x - q.get(t, floor)) for t, x in p.items()))
        same += max(p, key=p.get) == max(q, key=q.get)
    kld, same = sum(each) / len(each), same / len(each)
    check("without a daemon, k4v2 and bfloat16: near to float32", kld < KLD_MAX and same > SAME_MIN,
          f"KLD {kld:.4f}, same top token {same:.3f}")
    asked = prompts(e.ids)
    one = e.ask([asked["short"]])[0]
    batch = e.ask([asked["short"], asked["middle"]])
    check("a batch says what one says", agree(one, batch[0]))
    from skvq_vllm import attend as backend

    check("pages are this process's own", backend.current.worker._embedded is not None)


def serve(path, folder):
    from serving import Daemon, Failed, Server, installed

    for name in ("VLLM_PLUGINS", "VLLM_ENABLE_V1_MULTIPROCESSING"):  # as a server has it
        os.environ.pop(name)
    with open(path, encoding="utf-8") as f:
        said = json.load(f)
    want, asked = said["answers"], said["prompts"]
    daemon, log, server = Daemon(BUILD, folder), os.path.join(folder, "server.log"), None

    def start(**more):
        return Server(sys.executable, MODEL, BUILD, log, socket_path=daemon.socket, max_len=2048, dtype="float32",
                      extra={"mode": "attend", "profile": "fp16"}, **more)

    def says(name):
        n = len(want[name][0])
        text, usage, _ = server.complete(asked[name], n)
        return text == want[name][3], repr(text)

    try:
        try:
            server = start().wait()
            refused = False
        except Failed:
            with open(log, encoding="utf-8", errors="replace") as f:
                refused = "skvq-vllm must be installed" in f.read()
        check("without the plugin it is refused", refused)
        server = start(path=(installed(folder),)).wait()
        check("vllm serve says what vLLM says", *says("one"))
        check("with a prefix that is shared", *says("two"))
        hits = server.metric("vllm:external_prefix_cache_hits_total")
        check("which it attended where it lay", hits == 480, hits)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(says, name) for name in ("crowd0", "other", "middle")]
            check("and in a batch", all(j.result()[0] for j in jobs), [j.result()[1] for j in jobs])
            job = pool.submit(says, "crowd1")
            daemon.stop(signal.SIGKILL)
            check("and when skvqd is killed", *job.result())
        check("and afterwards", *says("two"))
    finally:
        if server is not None:
            server.stop(signal.SIGKILL)
        daemon.stop(signal.SIGKILL)
        if failures:
            with open(log, encoding="utf-8", errors="replace") as f:
                print("".join(f.readlines()[-40:]))


def main():
    if len(sys.argv) > 3:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        part, path, folder = sys.argv[3:]
        stock(path) if part == "stock" else {"exact": exact, "lossy": lossy, "serve": serve}[part](path, folder)
        return bool(failures)
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in os.environ.get("SKVQ_TEST_PARTS", "stock exact lossy serve").split():
            print(f"-- {part}", flush=True)
            status |= subprocess.run([sys.executable, os.path.abspath(__file__), MODEL, BUILD, part,
                                      os.path.join(folder, "stock.json"), folder], env=environment()).returncode
    print("failures" if status else "0 failures")
    return status


if __name__ == "__main__":
    sys.exit(main())
