#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skvq.transformers with real models, beside transformers' own cache. tools/check --engines runs it."""
import gc
import os
import subprocess
import sys
import unittest

import torch
from transformers import (AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForCausalLM,
                          Gemma3ForConditionalGeneration, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel,
                          SiglipVisionConfig)

from skvq.transformers import SkvqCache, numerics_tag, weights_digest
from support import Daemon

TEXT = open(os.environ["SKVQ_TEST_TEXT"]).read()


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def shared(folder, socket, n):
    """In another process: the prompt with the daemon's pages; prints matched tokens and the answer."""
    model, tokenizer = load(folder)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :n]
    with SkvqCache(model, socket=socket, prompt=ids, profile="fp16") as cache:
        matched = cache.get_seq_length()
        out = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
    print(matched, out[0, n:].tolist(), flush=True)


class Model:
    folder = None

    @classmethod
    def setUpClass(cls):
        cls.model, cls.tokenizer = load(cls.folder)
        cls.ids = cls.tokenizer(TEXT, return_tensors="pt").input_ids

    def logits(self, ids, cache=None):
        with torch.no_grad():
            return self.model(ids, past_key_values=cache, use_cache=True).logits

    def test_greedy_is_the_stock_run(self):
        ids = self.ids[:, :self.prompt]
        stock = self.model.generate(ids, max_new_tokens=12, do_sample=False)
        with SkvqCache(self.model, profile="fp16") as cache:
            got = self.model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
            self.assertEqual(cache.get_seq_length(), got.shape[1] - 1)
        self.assertEqual(got.tolist(), stock.tolist())
        self.assertEqual(self.model.config._attn_implementation, "sdpa")

    def test_logits_by_profile(self):
        """KLD from the stock run in nats, mean over 32 tokens behind a paged prompt."""
        n = self.prompt
        want = torch.log_softmax(self.logits(self.ids[:, :n + 32])[0, n:].double(), -1)
        for profile, bound in (("fp16", 1e-4), ("k8v8", 5e-3)):
            with SkvqCache(self.model, profile=profile) as cache:
                self.logits(self.ids[:, :n], cache)
                got = torch.log_softmax(self.logits(self.ids[:, n:n + 32], cache)[0].double(), -1)
            kld = float((want.exp() * (want - got)).sum(-1).mean())
            self.assertLess(kld, bound, profile)


class SmolLM2(Model, unittest.TestCase):
    folder, prompt = os.environ["SKVQ_HF_MODEL"], 300

    def test_beams_and_batch(self):
        batch = torch.stack([self.ids[0, :200], self.ids[0, 200:400]])
        for more in (dict(num_beams=3, do_sample=False), dict(do_sample=False)):
            stock = self.model.generate(batch, max_new_tokens=8, **more)
            with SkvqCache(self.model, profile="fp16") as cache:
                got = self.model.generate(batch, past_key_values=cache, max_new_tokens=8, **more)
            self.assertEqual(got.tolist(), stock.tolist(), more)

    def test_sampling_follows_the_same_seed(self):
        ids = self.ids[:, :64]
        torch.manual_seed(1)
        stock = self.model.generate(ids, max_new_tokens=8, do_sample=True)
        torch.manual_seed(1)
        with SkvqCache(self.model, profile="fp16") as cache:
            got = self.model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=True)
        self.assertEqual(got.tolist(), stock.tolist())

    def test_crop_goes_back(self):
        with SkvqCache(self.model, profile="fp16") as cache:
            self.logits(self.ids[:, :300], cache)
            first = self.logits(self.ids[:, 300:308], cache)
            cache.crop(-8)
            self.assertEqual(cache.get_seq_length(), 300)
            self.assertTrue(torch.equal(first, self.logits(self.ids[:, 300:308], cache)))

    def test_nothing_to_crop_is_nothing(self):
        with SkvqCache(self.model, profile="fp16") as cache:
            self.logits(self.ids[:, :300], cache)
            cache.crop(0)
            self.assertEqual(cache.get_seq_length(), 300)
            cache.reset()
            self.assertEqual((cache.get_seq_length(), len(cache.sequences[0])), (0, 0))

    def test_drafts_change_nothing(self):
        """Prompt lookup crops by what was not accepted, often nothing."""
        ids = torch.cat([self.ids[:, :60]] * 3, 1)
        stock = self.model.generate(ids, max_new_tokens=24, do_sample=False)
        with SkvqCache(self.model, profile="fp16") as cache:
            got = self.model.generate(ids, past_key_values=cache, max_new_tokens=24, do_sample=False,
                                      prompt_lookup_num_tokens=3)
        self.assertEqual(got.tolist(), stock.tolist())

    def test_one_that_is_dropped_lets_go_of_the_model(self):
        cache = SkvqCache(self.model, profile="fp16")
        self.logits(self.ids[:, :8], cache)
        del cache
        gc.collect()
        self.assertEqual(self.model.config._attn_implementation, "sdpa")
        self.logits(self.ids[:, :8])

    def test_a_pass_that_fails_leaves_nothing(self):
        ids = self.ids[:, :32]
        want = self.logits(ids)
        with SkvqCache(self.model, profile="fp16") as cache:
            hook = self.model.model.layers[20].register_forward_pre_hook(lambda *_: 1 / 0)
            with self.assertRaises(ZeroDivisionError):
                self.logits(ids, cache)
            hook.remove()
            with torch.no_grad(), self.assertRaises(RuntimeError):
                self.model.model(ids, past_key_values=cache)
            self.assertEqual(cache.get_seq_length(), 0)
            self.assertLess(float((self.logits(ids, cache) - want).abs().max()), 0.05)

    def test_another_process_reads_the_prefix(self):
        n = 400
        ids = self.ids[:, :n]
        stock = self.model.generate(ids, max_new_tokens=8, do_sample=False)[0, n:].tolist()
        with Daemon() as daemon:
            with SkvqCache(self.model, socket=daemon.socket, profile="fp16", prompt=ids) as cache:
                self.assertEqual(cache.get_seq_length(), 0)
                self.model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
                self.assertTrue(cache.flush(120))
            result = subprocess.run([sys.executable, __file__, "--shared", self.folder, daemon.socket, str(n)],
                                    stdout=subprocess.PIPE, text=True, timeout=600)
            self.assertEqual(result.stdout, f"{(n - 128) // 80 * 80} {stock}\n")
            with SkvqCache(self.model, socket=daemon.socket, profile="fp16", prompt=ids) as cache:
                beams = self.model.generate(ids, past_key_values=cache, max_new_tokens=4, num_beams=2,
                                            do_sample=False)
            self.assertEqual(beams.tolist(), self.model.generate(
                ids, max_new_tokens=4, num_beams=2, do_sample=False).tolist())

    def test_refusals(self):
        ids = self.ids[:, :8]
        with SkvqCache(self.model) as cache:
            mask = torch.ones_like(ids)
            mask[0, 0] = 0
            with torch.no_grad(), self.assertRaisesRegex(ValueError, "padded"):
                self.model(ids, attention_mask=mask, past_key_values=cache)
            with torch.no_grad(), self.assertRaisesRegex(ValueError, "position_ids"):
                self.model(ids, position_ids=torch.arange(8)[None] * 2, past_key_values=cache)
            with torch.no_grad(), self.assertRaisesRegex(ValueError, "position_ids"):
                self.model(ids, None, torch.arange(8)[None] + 1, past_key_values=cache)
            with self.assertRaisesRegex(ValueError, "no_grad"):
                self.model(ids, past_key_values=cache)
            with torch.no_grad(), self.assertRaisesRegex(RuntimeError, "SkvqCache"):
                self.model(ids)
            self.assertEqual(self.logits(ids, cache).shape[1], 8)
        with self.assertRaisesRegex(ValueError, "gpt2"):
            SkvqCache(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=1, vocab_size=64, bos_token_id=0,
                                              eos_token_id=0)))

    def test_a_changed_weight_is_another_identity(self):
        before = weights_digest(self.model)
        weight = self.model.model.norm.weight
        with torch.no_grad():
            weight[0] += 1
            self.assertNotEqual(weights_digest(self.model), before)
            weight[0] -= 1
            weight.data.add_(1)  # as adapters are merged: no version tells
            self.assertNotEqual(weights_digest(self.model), before)
            weight.data.sub_(1)

    def test_weights_loaded_in_inference_mode(self):
        with torch.inference_mode():  # its tensors have no versions
            model, _ = load(self.folder)
        self.assertEqual(weights_digest(model), weights_digest(self.model))

    def test_what_ids_do_not_tell_is_refused(self):
        config = Gemma3TextConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=64, vocab_size=64,
                                  num_attention_heads=1, num_key_value_heads=1, head_dim=64,
                                  use_bidirectional_attention=True)
        with self.assertRaisesRegex(ValueError, "not causal"):
            SkvqCache(Gemma3ForCausalLM(config).eval())
        config.use_bidirectional_attention = False
        vision = SiglipVisionConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=64,
                                    num_attention_heads=1, image_size=28, patch_size=14)
        both = Gemma3Config(text_config=config, vision_config=vision, mm_tokens_per_image=4)
        with self.assertRaisesRegex(ValueError, "parts besides text"):
            SkvqCache(Gemma3ForConditionalGeneration(both).eval())

    def test_another_configuration_is_another_identity(self):
        before = numerics_tag(self.model)
        config = self.model.config
        config.rms_norm_eps, eps = 1e-3, config.rms_norm_eps
        try:
            self.assertNotEqual(numerics_tag(self.model), before)
        finally:
            config.rms_norm_eps = eps
        self.assertEqual(numerics_tag(self.model), before)
        with SkvqCache(self.model):  # its own attention is not part of it
            self.assertEqual(numerics_tag(self.model), before)


@unittest.skipUnless(os.environ.get("SKVQ_HF_GEMMA"), "tools/engines --gemma")
class Gemma3(Model, unittest.TestCase):
    """Sliding windows of 512 in most layers: the prompt is longer."""
    folder, prompt = os.environ.get("SKVQ_HF_GEMMA"), 700


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shared"]:
        shared(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        unittest.main()
