#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Golden cases for the switches that the published ones leave alone: their weights, another config.json.

    python3 make_variants.py             numpy only; writes the folders of CASES beside itself

Logits and routing come from ref_numpy.py, run in float64.  Before a variant is written, the case it stands on has
to be reproduced from its published values.  Prompts are random, but a token with which a router's choice would be
closer than 1e-4 is drawn again.
"""
import json

import numpy as np

import case
import ref_numpy

MARGIN = 1e-4
margins = []


def recording_topk(s, k):
    """What ref_numpy's routers choose with; keeps the distance between the last chosen and the first not chosen."""
    order = np.sort(s, -1)[..., ::-1]
    margins.append(order[..., k - 1] - order[..., k])
    return np.argsort(-s, axis=-1, kind="stable")[..., :k]


def run(config, tensors, ids):
    """(logits, routing by layer, each token's smallest margin) in float64."""
    w = ref_numpy.Weights({k: case.floats(t) for k, t in tensors.items()})
    routing, ref_numpy.f32, ref_numpy.topk = {}, np.float64, recording_topk
    margins.clear()
    logits = ref_numpy.forward(config, w, ids, "causal", routing)
    return logits, routing, np.min(margins, 0)


def published(name):
    config = json.loads((case.HERE / name / "config.json").read_text())
    ref_numpy.f32 = np.float32
    gold = {k: ref_numpy.decode(*v) for k, v in
            ref_numpy.raw_safetensors(case.HERE / name / "golden.safetensors").items()}
    tensors = {k: t for k, t in case.read(case.HERE / name).items() if "inv_freq" not in k and "mtp" not in k}
    for p in ("p0", "p1"):
        worst = np.abs(run(config, tensors, gold[p + ".input_ids"])[0] - gold[p + ".logits"]).max()
        assert worst < 5e-5, (name, worst)
    return config, tensors


def tie(config, tensors):
    config["tie_word_embeddings"] = True
    tensors.pop("lm_head.weight", None)


def biases(tensors, names, seed):
    for name in [n[:-len(".weight")] for n in tensors if any(n.endswith(x + ".weight") for x in names)]:
        tensors.setdefault(name + ".bias", case.draw(name + ".bias", tensors[name + ".weight"][1].shape[:1], seed))


def dense(config, tensors, layer, seed):
    """The layer's experts give way to one MLP."""
    p = "model.layers.%d.mlp." % layer
    for name in [n for n in tensors if n.startswith(p)]:
        del tensors[name]
    D, I = config["hidden_size"], config["intermediate_size"]
    for name, shape in (("gate", (I, D)), ("up", (I, D)), ("down", (D, I))):
        name = p + name + "_proj.weight"
        tensors[name] = case.draw(name, shape, seed)


def qwen3_moe_yarn():
    c, w = published("qwen3_moe")
    c.update(mlp_only_layers=[1], attention_bias=True, norm_topk_prob=False,
             rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128))
    dense(c, w, 1, 1)
    biases(w, ["q_proj", "k_proj", "v_proj", "o_proj"], 1)
    tie(c, w)
    return c, w


def mixtral_window():
    c, w = published("mixtral")
    c.update(sliding_window=8, num_experts_per_tok=3)
    tie(c, w)
    return c, w


def olmoe_clip():
    c, w = published("olmoe")
    c.update(clip_qkv=0.75, norm_topk_prob=True)
    return c, w


def qwen2_moe_f16():
    c, w = published("qwen2_moe")
    c.update(decoder_sparse_step=2, norm_topk_prob=True, torch_dtype="float16")
    for layer in (0, 2):  # (layer + 1) % 2 != 0
        dense(c, w, layer, 1)
    tie(c, w)
    return c, {k: case.store(case.floats(t), "F16") for k, t in w.items()}


def ernie4_5_moe_bias():
    """Experts in layer 1 only, shared ones of another width than theirs, a bias on every linear."""
    c, w = published("ernie4_5_moe")
    c.update(use_bias=True, moe_layer_interval=2, moe_layer_start_index=0)
    dense(c, w, 2, 1)
    biases(w, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 1)
    return c, w


def glm4_moe_groups():
    """2 of 4 groups of 2 experts; no norm of q and k, the whole head turns, no renormalised weights."""
    c, w = published("glm4_moe")
    c.update(n_group=4, topk_group=2, norm_topk_prob=False, use_qk_norm=False, partial_rotary_factor=1.0,
             attention_bias=False)
    for name in [n for n in w if "_norm.weight" in n and "self_attn" in n or n.endswith("_proj.bias")]:
        del w[name]
    tie(c, w)
    return c, {k: t for k, t in w.items() if not k.startswith("model.layers.3.")}


CASES = [qwen3_moe_yarn, mixtral_window, olmoe_clip, qwen2_moe_f16, ernie4_5_moe_bias, glm4_moe_groups]


def golden_of(config, tensors):
    golden, least = {}, np.inf
    for p, ids in enumerate(case.prompts(1)):
        draw = np.random.Generator(np.random.PCG64(p))
        while True:
            logits, routing, margin = run(config, tensors, ids)
            close = np.flatnonzero(margin < MARGIN)
            if len(close) == 0:
                break
            ids[close[0]] = int(draw.integers(3, config["vocab_size"] - 6))  # causal: earlier ones stay as they are
        golden["p%d.input_ids" % p] = "I64", np.array(ids, np.int64)
        golden["p%d.logits" % p] = "F32", logits.astype(np.float32)
        for layer, (chosen, weights) in routing.items():
            golden["p%d.layer%d.router_ids" % (p, layer)] = "I32", chosen.astype(np.int32)
            golden["p%d.layer%d.router_weights" % (p, layer)] = "F32", weights.astype(np.float32)
        least = min(least, float(margin.min()))
    return golden, least


def main():
    for make in CASES:
        config, tensors = make()
        golden, margin = golden_of(config, tensors)
        case.save(make.__name__, config, tensors, golden,
                  dict(case=make.__name__, mask="causal", made_by="make_variants.py", margins={"router": margin},
                       logits_std=float(golden["p1.logits"][1].std())))


if __name__ == "__main__":
    main()
