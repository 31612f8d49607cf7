#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Golden cases of dense models: qwen3, qwen2 and llama, which the published cases have only as diffusion models.

    python3 make_dense.py                numpy only; writes the folders of CASES beside itself

The forward pass is plain float64 from the descriptions of the architectures, and shares nothing with the
library.  Before anything is written it has to reproduce the published logits of sdar (qwen3 with a block mask).
qwen3 and qwen2_* take the weights of sdar; llama is random.
"""
import json

import numpy as np

import case

# ---- the model -------------------------------------------------------------------------------------


def rms(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def linear(w, name, x):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def frequencies(c, dim):
    s = c.get("rope_scaling") or {}
    inv = c["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    kind = s.get("rope_type", s.get("type", "default"))
    if kind == "linear":
        return inv / s["factor"]
    if kind == "llama3":
        turns = s["original_max_position_embeddings"] * inv / (2 * np.pi)  # over the trained context
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return inv * keep + inv / s["factor"] * (1 - keep)
    assert kind in ("default", "dynamic")  # dynamic: the default up to max_position_embeddings
    return inv


def rotate(x, inv):
    """x [T, heads, d]: dimension j turns with j + d/2."""
    angle = np.arange(len(x))[:, None, None] * inv
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def visible(c, layer, T, block):
    t, s = np.arange(T)[:, None], np.arange(T)
    seen = s // block <= t // block if block else s <= t
    kinds = c.get("layer_types")
    return seen & (s > t - c["sliding_window"]) if kinds and kinds[layer] == "sliding_attention" else seen


def attention(c, w, p, x, seen):
    T, heads, kv = len(x), c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim") or c["hidden_size"] // heads
    q, k, v = (linear(w, p + n + "_proj", x).reshape(T, -1, d) for n in "qkv")
    if p + "q_norm.weight" in w:
        q, k = (rms(y, w[p + n + "_norm.weight"], c["rms_norm_eps"]) for y, n in ((q, "q"), (k, "k")))
    inv = frequencies(c, d)
    q, k = rotate(q, inv), rotate(k, inv)
    out = np.empty_like(q)
    for h in range(heads):
        score = q[:, h] @ k[:, h // (heads // kv)].T / np.sqrt(d)
        e = np.where(seen, np.exp(score - score.max()), 0)
        out[:, h] = e / e.sum(-1, keepdims=True) @ v[:, h // (heads // kv)]
    return linear(w, p + "o_proj", out.reshape(T, -1))


def forward(c, w, ids, block=0):
    h = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % i
        x = rms(h, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
        h = h + attention(c, w, p + "self_attn.", x, visible(c, i, len(ids), block))
        x = rms(h, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate = linear(w, p + "mlp.gate_proj", x)
        h = h + linear(w, p + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(w, p + "mlp.up_proj", x))
    h = rms(h, w["model.norm.weight"], c["rms_norm_eps"])
    return h @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


# ---- the cases -------------------------------------------------------------------------------------


def published(name):
    c = json.loads((case.HERE / name / "config.json").read_text())
    for key in ("block_size", "mask_token_id", "fuse_cross_entropy", "architectures"):
        c.pop(key, None)
    return c, case.read(case.HERE / name)


def qwen3():
    c, w = published("sdar")
    c.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    return c, w


def qwen2(**changes):
    """No norms of q and k, biases on q, k and v instead."""
    c, w = published("sdar")
    c.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2", **changes)
    for key in ("attention_bias", "head_dim"):
        c.pop(key)
    for i in range(c["num_hidden_layers"]):
        p = "model.layers.%d.self_attn." % i
        del w[p + "q_norm.weight"], w[p + "k_norm.weight"]
        for n, heads in (("q", c["num_attention_heads"]), ("k", 2), ("v", 2)):  # head_dim is hidden / heads here
            form, a = w[p + n + "_proj.weight"]
            w[p + n + "_proj.weight"] = form, a[:heads * 16]
            w[p + n + "_proj.bias"] = case.draw(p + n + "_proj.bias", (heads * 16,), 1)
        form, a = w[p + "o_proj.weight"]
        w[p + "o_proj.weight"] = form, a[:, :c["num_attention_heads"] * 16]
    return c, w


def llama(seed, rope, bias=False, tied=True, form="BF16"):
    D, I, V, layers, heads, kv = 64, 96, 256, 3, 4, 2
    c = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=V, hidden_size=D,
             intermediate_size=I, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
             hidden_act="silu", max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
             rope_scaling=rope, attention_bias=bias, mlp_bias=bias, attention_dropout=0.0, pretraining_tp=1,
             initializer_range=0.02, bos_token_id=1, eos_token_id=2, use_cache=True, tie_word_embeddings=tied,
             torch_dtype={"BF16": "bfloat16", "F32": "float32"}[form], transformers_version="4.51.0")
    shapes = {"model.embed_tokens": (V, D), "model.norm": (D,)}
    if not tied:
        shapes["lm_head"] = (V, D)
    for i in range(layers):
        p = "model.layers.%d." % i
        shapes.update({p + "input_layernorm": (D,), p + "post_attention_layernorm": (D,),
                       p + "self_attn.q_proj": (D, D), p + "self_attn.k_proj": (D * kv // heads, D),
                       p + "self_attn.v_proj": (D * kv // heads, D), p + "self_attn.o_proj": (D, D),
                       p + "mlp.gate_proj": (I, D), p + "mlp.up_proj": (I, D), p + "mlp.down_proj": (D, I)})
    w = {}
    for name, shape in shapes.items():
        w[name + ".weight"] = case.draw(name + ".weight", shape, seed, form)
        if bias and name.endswith("_proj"):
            w[name + ".bias"] = case.draw(name + ".bias", shape[:1], seed, form)
    return c, w


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
CASES = {
    "qwen3": qwen3,
    "qwen2": qwen2,
    "qwen2_window": lambda: qwen2(use_sliding_window=True, sliding_window=12, max_window_layers=1,
                                  layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
    "llama": lambda: llama(1, LLAMA3),
    "llama_linear_bias": lambda: llama(2, dict(type="linear", factor=3.0), bias=True, tied=False),
    "llama_dynamic": lambda: llama(3, dict(type="dynamic", factor=4.0), form="F32"),
}


def check_forward():
    """Against logits that transformers gave."""
    c, w = published("sdar")
    w = {k: case.floats(t) for k, t in w.items()}
    import ref_numpy
    gold = {k: ref_numpy.decode(*v) for k, v in ref_numpy.raw_safetensors(case.HERE / "sdar/golden.safetensors").items()}
    for p in ("p0", "p1"):
        worst = np.abs(forward(c, w, gold[p + ".input_ids"], block=4) - gold[p + ".logits"]).max()
        print("sdar %s: %.1e from the published logits" % (p, worst))
        assert worst < 5e-5


def main():
    check_forward()
    for name, make in CASES.items():
        config, tensors = make()
        w = {k: case.floats(t) for k, t in tensors.items()}
        golden = {}
        for p, ids in enumerate(case.prompts(1)):
            golden["p%d.input_ids" % p] = "I64", np.array(ids, np.int64)
            golden["p%d.logits" % p] = "F32", forward(config, w, ids).astype(np.float32)
        case.save(name, config, tensors, golden,
                  dict(case=name, mask="causal", made_by="make_dense.py",
                       logits_std=float(golden["p1.logits"][1].std())))


if __name__ == "__main__":
    main()
