#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gguf_to_hf.py MODEL.gguf FOLDER: a GGUF file as a folder that transformers and vLLM load.

Weights are decoded to bfloat16. Needs torch, transformers, gguf, accelerate.
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, target = sys.argv[1:]
    folder, name = os.path.split(os.path.abspath(source))
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    # save_pretrained refuses a model that came from GGUF: copied, it is one that did not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)


if __name__ == "__main__":
    main()
