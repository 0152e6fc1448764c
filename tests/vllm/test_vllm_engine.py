#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vLLM itself, in this process, with the connector, a real daemon and a real model.

  test_vllm_engine.py MODEL_FOLDER BUILD_DIR     with the python of tools/engines-vllm

One engine with few blocks, chunked prefill and n-gram drafts, so that requests are preempted, cut
into chunks and rolled back; the daemon is killed between a match and its load. What the engine says
with pages (profile fp16) is compared with what it says without.
"""
import glob
import os
import signal
import sys
import tempfile
import time
import types

MODEL, BUILD = sys.argv[1], os.path.abspath(sys.argv[2])
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
os.environ.update(VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
                  HF_HUB_OFFLINE="1", PYTHONHASHSEED="0", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                  VLLM_NO_USAGE_STATS="1", VLLM_PLUGINS="",
                  SKVQ_PLUGIN=os.path.join(BUILD, "lib", "libskvq_plugin.so"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # barriers of a team stand still on a busy machine
# With drafts vLLM wants Intel's OpenMP; without, each step waits for threads that sleep.
iomp = glob.glob(os.path.join(sys.prefix, "lib", "libiomp5.so"))
if iomp and "LD_PRELOAD" not in os.environ:
    os.environ["LD_PRELOAD"] = iomp[0]
    os.execv(sys.executable, [sys.executable, *sys.argv])
sys.path[:0] = [os.path.join(ROOT, p) for p in ("clients/vllm", "clients/python", "tools/bench")]

from serving import Daemon  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import KVTransferConfig  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402

BLOCK, BLOCKS, CHUNK = 32, 72, 256
# BF16 without the instructions for it takes eight times as long.
DTYPE = os.environ.get("SKVQ_VLLM_DTYPE", "float32")
failures = []


def check(what, ok, detail=""):
    print(f"{'ok  ' if ok else 'FAIL'} {what}{': ' + str(detail) if detail != '' else ''}", flush=True)
    if not ok:
        failures.append(what)


def transfer(socket, **changed):
    fields = dict(kv_connector="SkvqdConnector", kv_connector_module_path="skvq_vllm.connector",
                  kv_role="kv_both", kv_load_failure_policy="recompute",
                  kv_connector_extra_config={"socket": socket, "profile": "fp16",
                                             "save_tokens_per_step": 200})
    fields.update(changed)
    return KVTransferConfig(**fields)


def engine_args(socket, **changed):
    fields = dict(model=MODEL, dtype=DTYPE, enforce_eager=True, max_model_len=2048,
                  block_size=BLOCK, num_gpu_blocks_override=BLOCKS, max_num_seqs=4,
                  max_num_batched_tokens=CHUNK, enable_chunked_prefill=True, disable_log_stats=False,
                  speculative_config={"method": "ngram", "num_speculative_tokens": 3,
                                      "prompt_lookup_max": 3, "prompt_lookup_min": 2},
                  kv_transfer_config=transfer(socket))
    fields.update(changed)
    return fields


def refusals(socket):
    """The check of a server's configuration, with vLLM's own objects and no model."""
    import torch
    from vllm.v1.kv_cache_interface import (FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec,
                                            SlidingWindowSpec)

    from skvq_vllm.connector import model_folder, refusal

    def cache(spec, n=30):
        names = [f"model.layers.{i}.self_attn.attn" for i in range(n)]
        return KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[],
                             kv_cache_groups=[KVCacheGroupSpec(names, spec)])

    shape = dict(block_size=BLOCK, num_kv_heads=3, head_size=64, dtype=getattr(torch, DTYPE))
    full = cache(FullAttentionSpec(**shape))
    config = EngineArgs(**engine_args(socket)).create_engine_config()
    check("a supported configuration is taken", refusal(config, full) == "", refusal(config, full))

    def refused(what, word, kv=full, **changed):
        why = refusal(EngineArgs(**engine_args(socket, **changed)).create_engine_config(), kv)
        check(f"{what} is refused", word in why, why)

    refused("the policy 'fail'", "recompute",
            kv_transfer_config=transfer(socket, kv_load_failure_policy="fail"))
    refused("a consumer", "kv_both", kv_transfer_config=transfer(socket, kv_role="kv_consumer"))
    refused("tensor parallelism", "tensor parallelism of 3", tensor_parallel_size=3)
    refused("a made-up model", "dummy", load_format="dummy")
    refused("a loader that reads other files", "tensorizer", load_format="tensorizer")
    for model, word in ((os.path.join(MODEL, "config.json"), "is a file"), ("s3://bucket/model", "is remote"),
                        ("nobody/no-model", "no files are found"), ("a name: none", "no files are found")):
        try:
            why = model_folder(types.SimpleNamespace(model=model, model_weights="", revision=None),
                               None)
        except ValueError as e:
            why = str(e)
        check(f"the model '{os.path.basename(model)}' is refused", "does not support" in why and word in why, why)
    refused("a sliding window", "SlidingWindowSpec", cache(SlidingWindowSpec(**shape, sliding_window=512)))
    refused("a layer without a cache", "29 layers", cache(FullAttentionSpec(**shape), 29))
    refused("a cache of another type", "float16",
            cache(FullAttentionSpec(**{**shape, "dtype": torch.float16})))


class Engine:
    def __init__(self, socket):
        self.llm = LLM(**engine_args(socket))
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.connector = self.scheduler.connector
        self.half = self.connector._scheduler

    def metric(self, name):
        return sum(m.value for m in self.llm.get_metrics() if m.name == name)

    def ask(self, prompts, n=12, salt=None):
        """[(token ids, logprobs of each, tokens that were cached)], all prompts in one batch."""
        got = self.llm.generate([{"prompt_token_ids": p, **({"cache_salt": salt} if salt else {})}
                                 for p in prompts],
                                SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logprobs=5),
                                use_tqdm=False)
        return [(o.outputs[0].token_ids, o.outputs[0].logprobs, o.num_cached_tokens) for o in got]

    def forget(self):
        """vLLM's own prefix cache; what is saved is settled before."""
        while self.scheduler.has_requests():
            self.llm.llm_engine.step()
        assert self.llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache()

    def idle(self):
        while self.scheduler.has_requests():
            self.llm.llm_engine.step()
        h = self.half
        return {"matches": len(h._matches), "pins": len(h._pins) + len(h._old_pins),
                "requests": len(h._requests), "live": len(h._live), "saved": len(h._saved), "jobs": len(h.saver),
                "vllm": len(self.scheduler.requests)}


def agree(want, got):
    """The same tokens, and logprobs alike; where two tokens were as good as equal, up to there."""
    (a, la, _), (b, lb, _) = want, got
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            others = {t: p.logprob for t, p in la[i].items()}
            return i > 0 and y in others and others[x] - others[y] < 0.15
        if abs(la[i][x].logprob - lb[i][y].logprob) > 0.2:
            return False
    return len(a) == len(b)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the daemon
    with open(os.path.join(ROOT, "tools", "demo-data", "document.txt"), encoding="utf-8") as f:
        text = f.read()
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(BUILD, folder)
        try:
            refusals(daemon.socket)
            run(Engine(daemon.socket), daemon, text)
        finally:
            daemon.stop(signal.SIGKILL)
    print(f"{len(failures)} failures")
    sys.exit(bool(failures))


def run(e, daemon, text):
    ids = e.llm.get_tokenizer()(text)["input_ids"]
    long, other = ids[:600], ids[1500:2040]
    q1, q2 = ids[3000:3015], ids[3020:3050]

    # Cold: everything is computed, as if there were no connector.
    prompts = [long + q1, long + q2, other + q1, ids[700:720], ids[:333]]
    cold = []
    for p in prompts:
        e.forget()
        hits = e.metric("vllm:external_prefix_cache_hits")
        cold += e.ask([p], salt=f"cold {len(cold)}")
        check("a salted request is not loaded", e.metric("vllm:external_prefix_cache_hits") == hits)
    e.forget()
    check("nor saved", e.ask([prompts[0]])[0][2] == 0)
    e.forget()
    (salted,) = e.ask([prompts[0]], salt="late")
    check("a salted request is not loaded where there is something to load",
          salted[2] == 0 and e.metric("vllm:external_prefix_cache_hits") == hits)
    e.forget()

    (warm,) = e.ask([prompts[1]])
    check("a shared prefix is loaded", warm[2] == 480, warm[2])
    check("and says what computing says", agree(cold[1], warm))
    # Output is saved too: the next turn of a conversation finds it.
    e.forget()
    (turn,) = e.ask([prompts[0]], n=76)
    e.forget()
    (more,) = e.ask([prompts[0] + list(turn[0]) + q2])
    check("generated tokens are loaded", more[2] == (len(prompts[0]) + 75 - 128) // 80 * 80 // BLOCK * BLOCK,
          more[2])

    e.forget()
    batch = e.ask(prompts)
    check("a batch of mixed lengths", all(agree(a, b) for a, b in zip(cold, batch)),
          [g[2] for g in batch])

    # Prompts take 17 blocks each and all but 3 of those there are; then each wants one more.
    e.forget()
    crowd = [ids[a:a + 540] for a in (0, 900, 1800, 2700)]
    alone = []
    for p in crowd:
        alone += e.ask([p], n=32, salt=f"alone {len(alone)}")
        e.forget()
    before = e.metric("vllm:num_preemptions")
    together = e.ask(crowd, n=32)
    check("requests were preempted", e.metric("vllm:num_preemptions") > before)
    check("and say what they say alone", all(agree(a, b) for a, b in zip(alone, together)))
    check("drafts were made and taken", e.metric("vllm:spec_decode_num_accepted_tokens") > 0)
    e.forget()
    loaded = e.ask(crowd, n=32)
    check("and loaded, too", all(agree(a, b) for a, b in zip(alone, loaded)), [g[2] for g in loaded])

    # Abort in the middle of reading, and in the middle of answering.
    core = e.llm.llm_engine
    for steps in (1, 4):
        e.forget()
        p = {"prompt_token_ids": ids[2000 + steps:2600 + steps]}
        core.add_request(f"abort-{steps}", p, SamplingParams(max_tokens=200, ignore_eos=True))
        for _ in range(steps):
            core.step()
        core.abort_request([f"abort-{steps}"])
    check("nothing is left of aborted requests", not any(e.idle().values()), e.idle())

    # The daemon dies after it has matched and before pages are read.
    match = e.half.match

    def match_and_kill(request, n_local):
        n = match(request, n_local)
        if n:
            daemon.stop(signal.SIGKILL)
        return n

    def again():
        daemon.start()
        end = time.monotonic() + 120
        found = (None, None, 0)
        while not found[2] and time.monotonic() < end:
            e.forget()
            (found,) = e.ask([prompts[1]])
        check("a daemon that is started again is used again",
              found[2] == 480 and agree(cold[1], found), found[2])
        e.forget()

    e.forget()
    e.half.match = match_and_kill
    lost = e.ask([prompts[1], prompts[0]])  # the second shares the blocks of the first
    e.half.match = match
    check("a daemon killed before a load costs no answer", daemon.process.poll() is not None
          and agree(cold[1], lost[0]) and agree(cold[0], lost[1]), [g[2] for g in lost])
    e.forget()
    check("and the engine goes on without it", agree(cold[0], e.ask([prompts[0]])[0]))
    again()

    # What was not loaded stays in no prefix cache, if the request ends before it is computed.
    e.half.match = match_and_kill
    core.add_request("lost", {"prompt_token_ids": prompts[1]}, SamplingParams(max_tokens=5))
    core.step()
    e.half.match = match
    (request,) = e.scheduler.requests.values()
    failed = request.num_computed_tokens == 0
    core.abort_request(["lost"])
    (after,) = e.ask([prompts[1]])
    check("blocks of a failed load are forgotten", failed and daemon.process.poll() is not None
          and after[2] == 0 and agree(cold[1], after), after[2])
    again()
    check("nothing is kept for requests that are gone", not any(e.idle().values()), e.idle())

    # Weights may have been changed: what was saved under the identity of the files is not theirs.
    core.add_request("held", {"prompt_token_ids": ids[100:700]}, SamplingParams(max_tokens=1))
    while core.has_unfinished_requests():
        core.step()
    held = e.half.saver.held()
    check("a reset while blocks are held", held == 1 and not e.scheduler.reset_prefix_cache(reset_connector=True),
          held)
    check("gives them back", not any(e.idle().values()) and e.scheduler.reset_prefix_cache(reset_connector=True),
          e.idle())
    hits = e.metric("vllm:external_prefix_cache_hits")
    (reset,) = e.ask([prompts[1]], n=76)
    check("after a reset nothing is loaded", reset[2] == 0 and agree(cold[1], (reset[0][:12], reset[1][:12], 0))
          and e.metric("vllm:external_prefix_cache_hits") == hits)
    check("or saved", not len(e.half.saver) and not any(e.idle().values()), e.idle())


if __name__ == "__main__":
    main()
