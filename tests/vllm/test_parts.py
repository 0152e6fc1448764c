#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The connector's parts that know nothing of vLLM: layout, options, identity, plan, threads; and how the
bench compares distributions."""
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import unittest

try:
    import numpy as np
except ImportError:
    sys.exit(77)

from skvq_vllm import identity, layout, options, plan, threads


def bfloat16(x):
    """Rounds to bfloat16 by cutting; exact for what fits."""
    return (np.asarray(x, np.float32).view(np.uint32) & 0xffff0000).view(np.float32)


def rows(block):
    return bfloat16(block).reshape(-1)


def columns(block):
    return bfloat16(block).T.reshape(-1)


def packed(block):
    """Pairs of tokens side by side, 16 at a time: the kind of order AMX wants."""
    tokens, dim = block.shape
    return bfloat16(block).reshape(tokens // 2, 2, dim // 16, 16).transpose(2, 0, 3, 1).reshape(-1)


class Layout(unittest.TestCase):
    def test_orders_are_learned_and_read_back(self):
        seed = random.randrange(1 << 30)
        rng = np.random.default_rng(seed)
        for store, name in ((rows, "rows"), (columns, "columns"), (packed, "packed")):
            for block_size, dim in ((16, 64), (32, 64), (32, 80), (128, 128), (64, 256)):
                with self.subTest(name=name, block_size=block_size, dim=dim, seed=seed):
                    order = layout.learn(store, block_size, dim)
                    self.assertEqual(layout.name(order), name)
                    block = bfloat16(rng.standard_normal((block_size, dim)))
                    np.testing.assert_array_equal(store(block)[order], block)

    def test_what_is_no_permutation_is_refused(self):
        def scaled(block):
            return rows(block) / 3

        def lossy(block):
            return np.minimum(rows(block), 100)

        def shorter(block):
            return rows(block)[:-1]

        def doubled(block):
            out = rows(block).copy()
            out[1] = out[0]
            return out

        def negative(block):
            return -rows(block)

        for store in (scaled, lossy, shorter, doubled, negative):
            with self.subTest(store=store.__name__), self.assertRaises(ValueError):
                layout.learn(store, 32, 64)

    def test_slots(self):
        np.testing.assert_array_equal(layout.slots([7, 2], 4, 2, 6), [30, 31, 8, 9])
        self.assertEqual(len(layout.slots([7, 2], 4, 3, 3)), 0)
        for first, last in ((0, 9), (-1, 3), (5, 4)):
            with self.assertRaises(ValueError):
                layout.slots([7, 2], 4, first, last)
        self.assertEqual(layout.block_range(32, 31, 33), (0, 2))
        self.assertEqual(layout.block_range(32, 32, 64), (1, 2))


class Options(unittest.TestCase):
    def setUp(self):
        self.kept = os.environ.pop("SKVQD_SOCKET", None)

    def tearDown(self):
        os.environ.pop("SKVQD_SOCKET", None)
        if self.kept is not None:
            os.environ["SKVQD_SOCKET"] = self.kept

    def test_defaults_and_environment(self):
        got = options.parse({"socket": "/s", "save": "prompt"})
        self.assertEqual((got.socket, got.profile, got.window, got.save), ("/s", "k4v2", 128, "prompt"))
        os.environ["SKVQD_SOCKET"] = "/e"
        self.assertEqual(options.parse({}).socket, "/e")
        self.assertEqual(options.parse({"socket": "/s"}).socket, "/s")

    def test_modes(self):
        self.assertEqual(options.parse({"socket": "/s"}).mode, "load")
        got = options.parse({"socket": "/s", "mode": "attend", "save": "none", "tokens_max": 9})
        self.assertEqual((got.mode, got.save, got.tokens_max), ("attend", "none", 9))

    def test_refusals_name_the_option(self):
        for extra, word in (({}, "socket"), ({"socket": "/s", "sokcet": 1}, "sokcet"),
                            ({"socket": 3}, "socket"), ({"socket": "/s", "save": "some"}, "save"),
                            ({"socket": "/s", "mode": "b"}, "'mode' takes load, attend"),
                            ({"socket": "/s", "mode": "attend", "save": "prompt"}, "'save' takes all or none"),
                            ({"socket": "/s", "tokens_max": 5}, "of mode 'attend'"),
                            ({"socket": "/s", "window": -1}, "window"),
                            ({"socket": "/s", "window": True}, "window"),
                            ({"socket": "/s", "timeout_ms": 0}, "timeout_ms"),
                            ({"socket": "/s", "timeout_ms": "9"}, "timeout_ms")):
            with self.subTest(extra=extra), self.assertRaisesRegex(ValueError, word):
                options.parse(extra)


class Identity(unittest.TestCase):
    def folder(self, files):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, data in files.items():
            with open(os.path.join(folder.name, name), "wb") as f:
                f.write(data)
        return folder.name

    def test_every_byte_and_name_counts(self):
        base = {"a.safetensors": b"12", "b.safetensors": b"3", "config.json": b"{}"}
        same = self.folder(base)
        self.assertEqual(identity.digest_weights(self.folder(base)), identity.digest_weights(same))
        self.assertEqual(identity.digest_weights(self.folder({**base, "config.json": b"[]"})),
                         identity.digest_weights(same))
        for other in ({**base, "b.safetensors": b"4"}, {"a.safetensors": b"12"},
                      {"a.safetensors": b"1", "b.safetensors": b"23"},
                      {"c.safetensors": b"12", "b.safetensors": b"3"}):
            self.assertNotEqual(identity.digest_weights(self.folder(other)),
                                identity.digest_weights(same))
        # Which of them are read is the loader's affair.
        for suffix in identity.WEIGHTS:
            self.assertNotEqual(identity.digest_weights(self.folder({**base, "x" + suffix: b"9"})),
                                identity.digest_weights(same))

    def test_folders_without_an_identity(self):
        with self.assertRaisesRegex(ValueError, "weights"):
            identity.digest_weights(self.folder({"config.json": b"{}"}))
        with self.assertRaisesRegex(ValueError, "tokenizer"):
            identity.digest_tokenizer(self.folder({"a.safetensors": b"1"}))

    def test_rope(self):
        self.assertEqual(identity.rope({"rope_theta": 1e4}, 64), (64, 1e4, ""))
        new = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
        self.assertEqual(identity.rope(new, 64), (64, 1e5, ""))
        self.assertEqual(identity.rope({"rope_theta": 1e4, "partial_rotary_factor": .5}, 80)[0], 40)
        linear = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
        other = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}
        self.assertNotEqual(identity.rope(linear, 64)[2], identity.rope(other, 64)[2])
        self.assertEqual(identity.rope({}, 64), (0, 0.0, ""))

    def test_numerics_tell_apart_what_computes_differently(self):
        base = ("0.32.0", "2.13.0", "bfloat16", "vec", "AVX512", "", "auto", "vllm")
        config = {"hidden_size": 64, "_name_or_path": "here"}
        tag = identity.numerics(*base, config)
        self.assertEqual(tag, identity.numerics(*base, {"hidden_size": 64, "_name_or_path": "there"}))
        self.assertNotEqual(tag, identity.numerics(*base, {"hidden_size": 65}))
        for i in range(len(base)):
            changed = list(base)
            changed[i] += "x"
            self.assertNotEqual(tag, identity.numerics(*changed, config))
        json.loads(identity.canonical({"a": object()}))  # whatever a config holds


class Engine:
    """Requests as the saver sees them: how much is computed, and which blocks they have."""

    def __init__(self):
        self.computed = {}

    def __call__(self, req_id):
        return self.computed.get(req_id)

    def run(self, req_id, n):
        self.computed[req_id] = (n, list(range(100, 100 + n)))


def ids(first, last):
    return list(range(first, last))


class Plan(unittest.TestCase):
    def saver(self, per_step=100, held=2, window=128):
        return plan.Saver(per_step, held, window)

    def test_pages(self):
        self.assertEqual([plan.full_pages(n, 128) for n in (0, 128, 207, 208, 288)], [0, 0, 0, 1, 2])

    def test_short_or_known_prompts_are_not_saved(self):
        s = self.saver()
        self.assertFalse(s.want("a", 207, 0, ids))
        self.assertFalse(s.want("a", 300, 160, ids))
        self.assertTrue(s.want("a", 300, 80, ids))

    def test_one_request_at_a_time_within_the_budget(self):
        s, e = self.saver(), Engine()
        s.want("a", 250, 0, ids)
        s.want("b", 400, 160, ids)
        e.run("a", 100)
        e.run("b", 0)
        self.assertFalse(s.step(e))         # nothing is computed as yet
        e.run("a", 250)
        e.run("b", 400)
        seen = []
        for _ in range(10):
            step = s.step(e)
            self.assertLessEqual(sum(x.last - max(x.first, 160 if x.req_id == "b" else 0)
                                     for x in step.saves), 100)
            seen += step.saves
        self.assertEqual([(x.req_id, x.opens, x.closes, x.first, x.last) for x in seen],
                         [("a", True, False, 0, 100), ("a", False, False, 100, 200),
                          ("a", False, True, 200, 250), ("b", True, False, 0, 210),
                          ("b", False, False, 210, 310), ("b", False, True, 310, 400)])
        self.assertEqual(seen[0].tokens, ids(0, 250))  # all of them, to be matched
        self.assertEqual(seen[1].tokens, ids(100, 200))
        self.assertFalse(any(x.release for x in seen))
        self.assertEqual(len(s), 0)

    def test_one_that_is_still_read_does_not_hold_up_others(self):
        s, e = self.saver(1000), Engine()
        s.want("a", 400, 0, ids)
        s.want("b", 400, 0, ids)
        e.run("a", 10)
        e.run("b", 400)
        self.assertEqual([x.req_id for x in s.step(e).saves], ["b"])
        e.run("a", 400)
        self.assertEqual([x.req_id for x in s.step(e).saves], ["a"])

    def test_finished_requests_are_held_and_released(self):
        s, e = self.saver(), Engine()
        s.want("a", 250, 0, ids)
        e.run("a", 260)
        self.assertTrue(s.finished("a", 259, 250, ids))
        steps = [s.step(e) for _ in range(4)]
        saves = [x for step in steps for x in step.saves]
        self.assertEqual([x.release for x in saves], [False, False, True])
        self.assertEqual(saves[-1].last, 259)
        self.assertEqual(s.held(), 0)

    def test_output_is_saved_when_it_fills_a_page(self):
        s, e = self.saver(1000), Engine()
        s.want("a", 250, 0, ids)
        e.run("a", 250)
        s.step(e)
        self.assertFalse(s.finished("a", 287, 250, ids))   # still one page
        self.assertTrue(s.finished("a", 288, 250, ids))
        e.run("a", 288)
        (save,) = s.step(e).saves
        self.assertEqual((save.opens, save.closes, save.release, save.last), (True, True, True, 288))

    def test_held_requests_are_bounded(self):
        s, e = self.saver(100, held=1), Engine()
        for r in "abc":
            s.want(r, 300, 0, ids)
            e.run(r, 300)
        self.assertTrue(s.finished("a", 300, 300, ids))
        self.assertFalse(s.finished("b", 300, 300, ids))
        self.assertEqual(len(s), 2)                        # b is forgotten

    def test_preemption_and_abort(self):
        s, e = self.saver(), Engine()
        s.want("a", 300, 0, ids)
        e.run("a", 300)
        self.assertTrue(s.step(e).saves[0].opens)
        del e.computed["a"]                                # preempted: its blocks are gone
        step = s.step(e)
        self.assertEqual((step.saves, step.abandon), ([], "a"))
        s.want("a", 300, 0, ids)                           # and again
        e.run("a", 300)
        self.assertTrue(s.step(e).saves[0].opens)
        s.drop("a")
        step = s.step(e)
        self.assertEqual((step.saves, step.abandon, len(s)), ([], "a", 0))

    def test_a_failed_load_drops_everything_and_releases(self):
        s, e = self.saver(), Engine()
        for r in "ab":
            s.want(r, 300, 0, ids)
            e.run(r, 300)
        s.step(e)
        s.finished("b", 300, 300, ids)
        s.fail()
        step = s.step(e)
        self.assertEqual((step.saves, step.abandon, step.release, len(s)), ([], "a", ["b"], 0))
        self.assertFalse(s.step(e))

    def test_what_an_invalid_block_spoils(self):
        tables = {"a": [3, 4, 5, 6], "b": [3, 4, 9], "c": [3, 7], "d": []}
        self.assertEqual(plan.spoilt({4, 5}, tables), ({"a": 1, "b": 1}, {4, 5, 6, 9}))
        self.assertEqual(plan.spoilt({8}, tables), ({}, {8}))  # of a request that is gone

    def test_a_step_waits_once(self):
        now = [0.0]
        patience = plan.Patience(2.0, lambda: now[0])

        def wait(seconds, error=None):
            with patience:
                now[0] += seconds
                if error:
                    raise error

        wait(1.5)
        now[0] += 100                                      # computing is no waiting
        self.assertFalse(patience.over)
        with self.assertRaises(OSError):
            wait(0.5, OSError())
        self.assertTrue(patience.over)
        patience.renew()
        self.assertEqual((patience.over, patience.left), (False, 2.0))

    def test_what_a_token_costs(self):
        now = [0.0]
        cost = plan.Cost(lambda: now[0])

        def step(n, seconds, idle=True):
            cost.begins(n, idle)
            now[0] += seconds
            cost.ends()
            cost.ends()                                    # and nothing more until the next begins
            return cost.us()

        self.assertEqual([step(1, 1.0), step(100, 1.0, idle=False)], [0, 0])
        self.assertEqual(step(125, 0.125), 1000)
        self.assertEqual(step(1, 9.0), 1000)
        self.assertEqual(step(125, 0.25), 1250)
        self.assertEqual(step(64, 1e9), plan.Cost.US_MAX)

    def test_random_histories(self):
        """Whatever happens: budgets hold, every held request is released once, ops are in order."""
        seed = random.randrange(1 << 30)
        rng = random.Random(seed)
        for history in range(200):
            s, e = self.saver(rng.choice((16, 100, 1000)), rng.randrange(3)), Engine()
            live, held, open_of, at, number = {}, set(), "", 0, 0
            for _ in range(80):
                what = rng.randrange(8)
                if what == 0:
                    number += 1
                    r, n = f"r{number}", rng.randrange(1, 1500)
                    live[r] = n
                    e.run(r, rng.randrange(n + 1))
                    s.want(r, n, rng.randrange(n) // 80 * 80, ids)
                elif live and what == 1:
                    r = rng.choice(sorted(live))
                    e.run(r, live[r])
                elif live and what == 2:
                    r = rng.choice(sorted(live))
                    n = live.pop(r)
                    if e.computed[r][0] == n and s.finished(r, n, n, ids):
                        held.add(r)
                    else:
                        s.drop(r)
                        del e.computed[r]
                elif live and what == 3:
                    r = rng.choice(sorted(live))
                    del live[r], e.computed[r]             # preempted
                elif what == 4 and not rng.randrange(5):
                    s.fail()
                step = s.step(e)
                if step.abandon and step.abandon == open_of:
                    open_of = ""
                released = list(step.release)
                for x in step.saves:
                    with self.subTest(seed=seed, history=history):
                        self.assertIn(x.req_id, e.computed)
                        self.assertLessEqual(x.last, e.computed[x.req_id][0])
                        if x.opens:
                            self.assertEqual((open_of, x.first), ("", 0))
                        else:
                            self.assertEqual((open_of, x.first), (x.req_id, at))
                        at, open_of = x.last, "" if x.closes else x.req_id
                    if x.release:
                        released.append(x.req_id)
                for r in released:
                    self.assertIn(r, held, f"seed {seed}")
                    held.remove(r)
                    e.computed.pop(r)
            for _ in range(400):
                step = s.step(e)
                for r in step.release + [x.req_id for x in step.saves if x.release]:
                    held.remove(r)
            self.assertFalse(held, f"seed {seed}")


class Attend(unittest.TestCase):
    def test_a_prefix_matches_as_far_as_it_is_wanted(self):
        tokens = ids(0, 1000)
        for window in (0, 128):
            for position in (80, 400, 800):
                prefix = plan.prefix_of(tokens, position, window)
                self.assertEqual(plan.full_pages(len(prefix), window) * plan.PAGE, position)

    def test_admission(self):
        a = plan.Admission(1000)
        self.assertTrue(a.fits("a", 5000))                 # one is always let in
        a.enter("a", 600)
        self.assertEqual([a.fits("b", 400), a.fits("b", 401), a.fits("a", 5000)], [True, False, True])
        a.enter("b", 400)
        self.assertFalse(a.fits("c", 1))
        a.leave("a")
        a.leave("a")
        self.assertEqual((a.tokens, a.fits("c", 600)), (400, True))
        free = plan.Admission(0)
        free.enter("a", 1 << 40)
        self.assertTrue(free.fits("b", 1 << 40))


class Threads(unittest.TestCase):
    def test_each_share_is_done_once(self):
        for team in (threads.Team(), self.without_openmp()):
            for n in (1, 2, 7):
                for _ in range(20):
                    done = []
                    team.run(done.append, n)
                    self.assertEqual(sorted(done), list(range(n)))

    def test_errors_come_after_all_have_ended(self):
        for team in (threads.Team(), self.without_openmp()):
            done = []

            def work(i):
                done.append(i)
                if i == 1:
                    raise OSError("no")

            with self.assertRaisesRegex(OSError, "no"):
                team.run(work, 4)
            self.assertEqual(sorted(done), [0, 1, 2, 3])
            team.run(done.append, 1)                       # and it is forgotten

    def without_openmp(self):
        team = threads.Team()
        team._parallel = None
        return team

    def test_openmp_is_used_where_it_is(self):
        """A process that has loaded it; libgomp comes with the compiler that built this."""
        code = ("import ctypes, sys\n"
                "try:\n    ctypes.CDLL('libgomp.so.1')\nexcept OSError:\n    sys.exit(77)\n"
                "import threading\nfrom skvq_vllm import threads\n"
                "team, barrier, seen = threads.Team(), threading.Barrier(2, timeout=60), set()\n"
                "def work(i):\n    seen.add(threading.get_ident())\n    barrier.wait()\n"
                "team.run(work, 2)\n"
                "sys.exit(not (team.parallel and len(seen) == 2))\n")
        env = dict(os.environ, OMP_NUM_THREADS="2", OMP_DYNAMIC="false")
        status = subprocess.run([sys.executable, "-c", code], env=env, timeout=120).returncode
        self.assertIn(status, (0, 77))


class Bench(unittest.TestCase):
    def test_divergence(self):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "bench", "serve")
        loader = importlib.machinery.SourceFileLoader("serve", path)
        spec = importlib.util.spec_from_loader("serve", loader)
        serve = importlib.util.module_from_spec(spec)
        loader.exec_module(serve)
        p = {"a": math.log(.75), "b": math.log(.25)}
        q = {"a": math.log(.25), "b": math.log(.75)}
        self.assertEqual(serve.divergence([p, p], [p, p]), (0, 1))
        kld, same = serve.divergence([p, p], [q, p])
        self.assertAlmostEqual(kld, .5 * (.75 * math.log(3) - .25 * math.log(3)))
        self.assertEqual(same, .5)
        # A token that the other side does not list counts as its least likely one.
        self.assertGreater(serve.divergence([p], [{"a": math.log(.9), "c": math.log(.01)}])[0], .4)


if __name__ == "__main__":
    unittest.main()
