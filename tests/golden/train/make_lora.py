#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Adapters trained by PEFT on qwen3_moe, its weights frozen: attention, both expert matrices, router.

    python3 make_lora.py      needs torch, transformers and peft; the C tests need none of them

Steps, losses and data as in make_train.py.
"""
import shutil

import peft
import torch
import transformers
from safetensors.torch import load_file

import make_train as base
from peft import LoraConfig, PeftModel, get_peft_model

RUNS = {
    "lora_sgd_aux": dict(steps=20, aux=True, **base.SGD),
    "lora_adamw": dict(steps=20, aux=False, **dict(base.ADAMW, weight_decay=0.0)),
}
FOLDER = base.HERE / "qwen3_moe"
CONFIG = dict(
    r=3, lora_alpha=6, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"])


def saved(model, folder):
    """An adapter's files, without what names the machine."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = "qwen3_moe"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return load_file(folder / "adapter_model.safetensors")


def make_start():
    torch.manual_seed(7)
    model = get_peft_model(base.load(FOLDER, torch.float32), LoraConfig(**CONFIG))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if ".lora_" in key:
                p.normal_(0, p.shape[1] ** -0.5 if ".lora_A." in key else 0.1)
    return saved(model, FOLDER / "lora_start")


def run_in(dtype, run, ids, seed, end):
    model = PeftModel.from_pretrained(base.load(FOLDER, dtype), FOLDER / "lora_start", is_trainable=True)
    values, grads, refused = base.train(model.to(dtype).train(), run, ids, seed)
    return values, {k.replace(".default", ""): v for k, v in grads.items()}, saved(model, end), refused


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    start = make_start()
    for seed, (name, run) in enumerate(RUNS.items()):
        values, grads, final, refused = run_in(torch.float32, run, None, 100 + seed, FOLDER / "end")
        wide, grads64, final64, _ = run_in(torch.float64, run, values["ids"], 0, FOLDER / "end")
        shutil.rmtree(FOLDER / "end")
        assert final.keys() == grads.keys()
        tensors = {"final." + k: v for k, v in final.items()}
        base.save_run(FOLDER / name, run, values, wide, tensors, sequences_refused=refused,
                      moved=base.distance(start, final), peft=peft.__version__,
                      noise=dict(final=base.distance(final, final64), grad_first=base.distance(grads, grads64)))


if __name__ == "__main__":
    main()
