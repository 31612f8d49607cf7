#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Adapters as several versions of PEFT save them, and the logits they give.

    python3 make_peft.py                 makes the cases of the PEFT and transformers that are imported
    python3 make_peft.py --check         every adapter loaded by the PEFT that is imported, and folded into the
                                         base by the formulas of README.md: how far the logits are off

Which version makes which case stands in CASES; README.md says how they were installed side by side.  The C
tests need none of it.  Random non-zero A and B, float32, eager; seeds are tried until no router choice is
closer than MARGIN, so that float32 cannot choose otherwise.
"""
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
VOCAB, TOKENS, MARGIN = 64, 20, 1e-3

COMMON = dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", vocab_size=VOCAB, hidden_size=32,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_act="silu",
    intermediate_size=24, num_experts_per_tok=2, max_position_embeddings=64, rms_norm_eps=1e-6,
    initializer_range=0.25, attention_dropout=0.0, rope_theta=10000.0, tie_word_embeddings=False,
    norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False, torch_dtype="float32",
    use_cache=False, num_experts=4)
BASES = {
    "wide": dict(COMMON, moe_intermediate_size=24),
    "square": dict(COMMON, moe_intermediate_size=16),  # H == 2 * I: gate_up_proj is square
}

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ALL = dict(target_modules=ATTENTION, target_parameters=EXPERTS + ["mlp.gate.weight"])
LINEAR = ["gate_proj", "up_proj", "down_proj"]  # of every expert, before transformers 5
CASES = {  # the version of PEFT that makes it, and the configuration
    "wide/rank_3": ("0.21", dict(ALL, r=3, lora_alpha=6)),
    "wide/rank_4": ("0.21", dict(ALL, r=4, lora_alpha=4)),  # as many as experts
    "wide/rslora": ("0.21", dict(ALL, r=4, lora_alpha=3, use_rslora=True)),
    "wide/patterns": ("0.21", dict(
        ALL, r=3, lora_alpha=5,
        rank_pattern={"q_proj": 5, "layers.1.self_attn.v_proj": 1, "experts.down_proj": 2, "gate.weight": 4},
        alpha_pattern={"gate_up_proj": 7, r"layers\.0\.self_attn\.(q|k)_proj": 2})),
    "wide/attention": ("0.21", dict(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4)),
    "wide/gate_up": ("0.21", dict(target_modules=[], target_parameters=EXPERTS[:1], r=3, lora_alpha=6)),
    "wide/down": ("0.21", dict(target_modules=[], target_parameters=EXPERTS[1:], r=3, lora_alpha=6)),
    "square/rank_3": ("0.21", dict(ALL, r=3, lora_alpha=6)),
    "square/gate_up": ("0.21", dict(target_modules=[], target_parameters=EXPERTS[:1], r=3, lora_alpha=6)),
    "wide/peft_0191": ("0.19.1", dict(ALL, r=3, lora_alpha=6)),
    "wide/peft_0190": ("0.19.0", dict(ALL, r=3, lora_alpha=6)),
    "wide/peft_0181": ("0.18.1", dict(ALL, r=3, lora_alpha=6)),
    "wide/peft_0181_rank_4": ("0.18.1", dict(ALL, r=4, lora_alpha=4)),
    "square/peft_0181": ("0.18.1", dict(ALL, r=3, lora_alpha=6)),
    "square/peft_0181_gate_up": ("0.18.1", dict(target_modules=[], target_parameters=EXPERTS[:1], r=3, lora_alpha=6)),
    "wide/per_expert": ("0.17.1", dict(target_modules=ATTENTION + LINEAR + ["gate"], r=2, lora_alpha=4)),
    "wide/per_expert_some": ("0.17.1", dict(
        target_modules=["up_proj", "down_proj", "layers.1.mlp.experts.3.gate_proj"], r=3, lora_alpha=3,
        rank_pattern={"experts.2.up_proj": 1}, alpha_pattern={"layers.0.mlp.experts.1.down_proj": 6})),
}


def make_base(name):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BASES[name], indent=1) + "\n")
    torch.manual_seed(6)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.save_pretrained(folder / "new")
    shutil.copy(folder / "new" / "model.safetensors", folder / "model.safetensors")
    shutil.rmtree(folder / "new")
    model, seen = load(name)
    for seed in range(1000):
        ids = np.random.Generator(np.random.PCG64([6, seed])).integers(0, VOCAB, TOKENS).astype(np.int32)
        logits = forward(model, torch.from_numpy(ids), seen)
        if logits is not None:
            save_file({"ids": torch.from_numpy(ids), "logits": logits}, folder / "golden.safetensors")
            return


def load(name):
    """-> the base model, and what its routers' closest choice was."""
    os.chdir(HERE)  # the adapter remembers the folder of its base
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
    for m in model.modules():
        if hasattr(getattr(m, "config", None), "_experts_implementation"):
            m.config._experts_implementation = "eager"
    return model, []


def forward(model, ids, seen):
    """Logits [TOKENS, VOCAB]; None when a router choice is close."""
    seen.clear()

    def hook(gate, inputs, output):
        best = (output[0] if isinstance(output, tuple) else output).view(TOKENS, -1).softmax(-1).topk(3).values
        seen.append(float((best[:, 1] - best[:, 2]).min()))

    hooks = [m.register_forward_hook(hook) for k, m in model.named_modules() if k.endswith("mlp.gate")]
    with torch.no_grad():
        logits = model(input_ids=ids[None].long(), use_cache=False).logits[0]
    for h in hooks:
        h.remove()
    assert len(seen) == 2
    return logits.contiguous() if min(seen) > MARGIN else None


def draw(model, seed):
    """A that keeps sizes, B of a quarter: the change is about as large as the weights."""
    g = np.random.Generator(np.random.PCG64([7, seed]))
    for key, p in model.named_parameters():
        if ".lora_" in key:
            size = p.shape[1] ** -0.5 if ".lora_A." in key else 0.25
            p.data.copy_(torch.from_numpy((g.standard_normal(tuple(p.shape)) * size).astype(np.float32)))


def make_case(name, options):
    base, folder = name.split("/")[0], HERE / name
    known = load_file(HERE / base / "golden.safetensors")
    ids = known["ids"]
    model, seen = load(base)
    plain = model(input_ids=ids[None].long()).logits[0]
    assert (plain - known["logits"]).abs().max() < 1e-5  # every version of transformers computes the same
    model = get_peft_model(model, LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **options)).eval()
    seed = 0
    while True:
        draw(model, seed)
        logits = forward(model, ids, seen)
        if logits is not None:
            break
        seed += 1
    margin = min(seen)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "golden.safetensors").unlink(missing_ok=True)
    merged = forward(model.merge_and_unload(), ids, seen)
    save_file({"logits": logits, "merged": merged}, folder / "golden.safetensors")
    meta = dict(margin=margin, seed=seed, changed=float((logits - plain).abs().max().detach()),
                merged_differs=float((merged - logits).abs().max()), peft=peft.__version__,
                transformers=transformers.__version__, torch=torch.__version__)
    (folder / "golden.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(name, json.dumps(meta), flush=True)


def pattern(patterns, key, otherwise):
    """What a pattern says about a module or parameter; the first that matches counts."""
    for p, value in patterns.items():
        if re.match(r"(.*\.)?(%s)$" % p, key):
            return value
    return otherwise


def fold(weights, folder):
    """Adds the deltas of an adapter to the tensors of its base, files only: the formulas of README.md."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    version = [int(v) for v in config.get("peft_version", "0.17.1").split(".")]
    targets = config.get("target_parameters") or []
    for key in [k for k in tensors if ".lora_A." in k]:
        a, b = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        stacked = name.endswith(("mlp.experts", "mlp.experts.base_layer"))
        if stacked:  # gate_up_proj is inside when both are there
            inside = name.endswith("base_layer") or not any(t.endswith("down_proj") for t in targets)
            name = name.removesuffix(".base_layer") + (".gate_up_proj" if inside else ".down_proj")
        matched = name + ".weight" if any(t.endswith("gate.weight") for t in targets) and "mlp.gate" in name else name
        rank = pattern(config["rank_pattern"], matched, config["r"])
        scale = pattern(config["alpha_pattern"], matched, config["lora_alpha"]) / (
            rank ** 0.5 if config["use_rslora"] else rank)
        if not stacked:
            weights[name + ".weight"] += scale * b @ a
            continue
        experts = a.shape[0] // rank
        for e in range(experts):
            delta = scale * b[:, e::experts] @ a[e * rank:(e + 1) * rank]  # columns rho * E + e
            delta = delta if version >= [0, 19, 1] else delta.T
            one = name.rsplit(".", 1)[0] + ".%d." % e
            if inside:
                half = delta.shape[0] // 2
                weights[one + "gate_proj.weight"] += delta[:half]
                weights[one + "up_proj.weight"] += delta[half:]
            else:
                weights[one + "down_proj.weight"] += delta


def check():
    for name in CASES:
        base, folder = name.split("/")[0], HERE / name
        ids = load_file(HERE / base / "golden.safetensors")["ids"]
        golden = load_file(folder / "golden.safetensors")["logits"]
        weights = {k: v.double() for k, v in load_file(HERE / base / "model.safetensors").items()}
        fold(weights, folder)
        with tempfile.TemporaryDirectory() as at:
            shutil.copy(HERE / base / "config.json", at)
            save_file({k: v.float().contiguous() for k, v in weights.items()}, Path(at) / "model.safetensors",
                      {"format": "pt"})
            folded = forward(*load(at)[:1], ids, [])
        text = "%-26s folded: %.1e" % (name, float((folded - golden).abs().max()))
        try:
            logits = forward(PeftModel.from_pretrained(load(base)[0], folder).eval(), ids, [])
            text += "  loaded: %.1e" % float((logits - golden).abs().max()) if logits is not None else "  other routing"
        except (ValueError, RuntimeError, KeyError) as e:
            text += "  refused: " + str(e).strip().split("\n")[0][:100]
        print(text, flush=True)


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if sys.argv[1:] == ["--check"]:
        check()
        return
    if peft.__version__.startswith("0.21"):
        for name in BASES:
            make_base(name)
    for name, (version, options) in CASES.items():
        if peft.__version__.startswith(version):
            make_case(name, options)


if __name__ == "__main__":
    main()
