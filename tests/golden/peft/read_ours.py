#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""PEFT reads what we write: no key missing, none left over, and the logits that we compute.

usage: read_ours.py KEEP MODELS      after `golden_peft FOLDER MODELS KEEP`; needs torch, transformers 5, peft

Models packed in 8 or 4 bits are skipped: transformers reads them on other devices only.
"""
import os
import sys

import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

KEEP, MODELS = sys.argv[1:3]
IDS = [1, 5, 3, 2, 7, 11, 4, 9]
BOUND = 2e-4  # of the golden logits of these models
failed = 0

for kind in sorted(os.listdir(KEEP)):
    if kind.endswith(("_fp8", "_mxfp4")):
        continue
    adapter = os.path.join(KEEP, kind)
    ours = load_file(os.path.join(adapter, "ours.safetensors"))["logits"]
    base = AutoModelForCausalLM.from_pretrained(
        os.path.join(MODELS, kind), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model = PeftModel.from_pretrained(base, adapter).eval()
    keys = set_peft_model_state_dict(model, load_file(os.path.join(adapter, "adapter_model.safetensors")))
    missing = [k for k in keys.missing_keys if "lora_" in k]
    with torch.no_grad():
        theirs = model(torch.tensor([IDS])).logits[0]
    off = (theirs - ours).abs().max().item()
    good = off <= BOUND and not missing and not keys.unexpected_keys
    failed += not good
    print("%-12s %s: off by %.2g; missing %s, unexpected %s" % (kind, "ok" if good else "FAILED", off, missing, keys.unexpected_keys))

sys.exit(failed != 0)
