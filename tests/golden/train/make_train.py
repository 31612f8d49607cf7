#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tiny models trained for some steps in PyTorch: what a training run has to come to.

    python3 make_train.py [MODEL[/RUN] ...]      needs torch and transformers; the C tests need neither

A step is 8 sequences of 24 tokens, each a unit of its own.  Its loss is the mean cross-entropy over the
8 * 23 next-token targets, and in runs with auxiliary losses

    + BALANCE * sum over layers of the mean over units of E * sum over e of f_e * p_e
    + Z * sum over layers of the mean over units of the mean over tokens of logsumexp(router logits)^2

with f_e the share of the unit's T * K slots that went to e (a constant) and p_e the mean over its T = 24
tokens of softmax(router logits)_e.  A sequence with a router choice closer than MARGIN at its step is left
out and another one drawn, so that float32 cannot choose otherwise.  Every run is made a second time in
float64 (rope tables, norms, softmax and all): the distance of the two is what float32 costs.  See README.md.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
VOCAB, UNITS, TOKENS = 96, 8, 24
MARGIN = 1e-3
BALANCE, Z = 0.01, 0.001

COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, hidden_act="silu", intermediate_size=24, moe_intermediate_size=16, num_experts_per_tok=2,
    max_position_embeddings=64, rms_norm_eps=1e-6, initializer_range=0.25, attention_dropout=0.0,
    rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="float32")
MODELS = {
    "qwen3_moe": dict(
        architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", **COMMON, num_experts=4,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False),
    # shared expert behind a sigmoid gate, routing weights not renormalised, biases in attention
    "qwen2_moe": dict(
        architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe",
        **{k: v for k, v in COMMON.items() if k != "head_dim"}, num_experts=4,
        shared_expert_intermediate_size=20, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[]),
    # sigmoid scores, correction bias (not trained), groups, shared expert, a dense layer first, half rope
    "glm4_moe": dict(
        architectures=["Glm4MoeForCausalLM"], model_type="glm4_moe", **dict(COMMON, moe_intermediate_size=8),
        n_routed_experts=8,
        n_shared_experts=1, n_group=2, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5,
        first_k_dense_replace=1, attention_bias=True, use_qk_norm=True, partial_rotary_factor=0.5),
}
SGD = dict(optimizer="sgd", lr=0.05, momentum=0.0)
ADAMW = dict(optimizer="adamw", lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1)
RUNS = {
    "qwen3_moe/sgd": dict(steps=50, aux=False, **SGD),
    "qwen3_moe/sgd_aux": dict(steps=50, aux=True, **SGD),
    "qwen3_moe/adamw": dict(steps=50, aux=False, **ADAMW),
    "qwen2_moe/sgd": dict(steps=20, aux=False, **SGD),
    "glm4_moe/sgd": dict(steps=20, aux=False, **SGD),
}


# ---- models -----------------------------------------------------------------------------------------


class Wide:
    """torch as a modeling file sees it, with float64 where it says float32."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def rope64(rotary):
    """The tables of a rotary embedding in float64, whatever .float() says."""
    config = rotary.config
    dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)) \
        if getattr(config, "head_dim", None) else config.hidden_size // config.num_attention_heads
    inverse = config.rope_parameters["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    assert torch.allclose(inverse, rotary.inv_freq.double(), rtol=1e-6)

    def forward(x, position_ids):
        angles = position_ids[..., None].double() * inverse
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    return forward


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    for m in model.modules():
        if hasattr(getattr(m, "config", None), "_experts_implementation"):
            m.config._experts_implementation = "eager"
    module = sys.modules[type(model).__module__]
    module.torch = Wide() if dtype == torch.float64 else torch
    if dtype == torch.float64:
        model.double()
        model.model.rotary_emb.forward = rope64(model.model.rotary_emb)
    return model.train()


def make_model(name):
    """Weights as transformers draws them; biases, which it makes zero, and the norms drawn too."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name], indent=1) + "\n")
    torch.manual_seed(6)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for key, p in list(model.named_parameters()) + list(model.named_buffers()):
            if key.endswith("bias"):
                p.normal_(0, 0.1)
            elif p.dim() == 1 and "inv_freq" not in key:
                p.add_(torch.randn_like(p) * 0.1)
    save_file(hub_tensors(model), folder / "model.safetensors", {"format": "pt"})


def hub_tensors(model):
    """Tensors under the names of files on the hub: every expert on its own."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {k: v.float().contiguous() for k, v in load_file(Path(folder) / "model.safetensors").items()}


def hub_gradients(model, grads):
    """Gradients of all parameters, named as the tensors they belong to; the model is lost."""
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(grads[k])
    return {k: v for k, v in hub_tensors(model).items() if "correction_bias" not in k}


# ---- data -------------------------------------------------------------------------------------------


class Sequences:
    """Three times of four the successor of a token, else any."""

    def __init__(self, seed):
        self.g = np.random.Generator(np.random.PCG64([6, seed]))
        self.successor = self.g.permutation(VOCAB)
        self.refused = 0

    def draw(self, n):
        ids = self.g.integers(0, VOCAB, (n, TOKENS))
        follow = self.g.random(ids.shape) < 0.75
        for t in range(1, TOKENS):
            ids[:, t] = np.where(follow[:, t], self.successor[ids[:, t - 1]], ids[:, t])
        return torch.from_numpy(ids)

    def batch(self, model, seen):
        """[UNITS, TOKENS], none of them with a close choice."""
        kept = []
        while len(kept) < UNITS:
            some = self.draw(UNITS)
            seen.clear()
            with torch.no_grad():
                model(input_ids=some, use_cache=False)
            good = torch.stack([m for _, _, m in seen]).amin(0) > MARGIN
            self.refused += int((~good).sum())
            kept += list(some[good])
        return torch.stack(kept[:UNITS])


# ---- routers ----------------------------------------------------------------------------------------


def watch(model):
    """[(logits [units * tokens, E], ids [.., K], margins [units])] of the routers of the last forward pass."""
    seen = []

    def hook(gate, inputs, output):
        logits, _, ids = output
        seen.append((logits, ids, margin(gate, logits.detach())))

    for m in model.modules():
        if type(m).__name__.lower().endswith("topkrouter"):
            m.register_forward_hook(hook)
    return seen


def margin(gate, logits):
    """[units]: how far the closest choice is from another one: between experts, and between groups."""
    bias = getattr(gate, "e_score_correction_bias", None)
    if bias is None:
        best = logits.softmax(-1).topk(gate.top_k + 1).values
        return (best[:, -2] - best[:, -1]).view(-1, TOKENS).amin(1)
    scores = (logits.sigmoid() + bias).view(len(logits), gate.num_group, -1)
    groups = scores.topk(2).values.sum(-1).topk(gate.topk_group + 1)
    close = groups.values[:, -2] - groups.values[:, -1]
    kept = groups.indices[:, :-1, None].expand(-1, -1, scores.shape[-1])
    best = scores.gather(1, kept).flatten(1).topk(gate.top_k + 1).values
    return torch.minimum(close, best[:, -2] - best[:, -1]).view(-1, TOKENS).amin(1)


def auxiliary(logits, ids):
    """Balance and z-loss of a layer: means over units, each of them one sequence."""
    experts = logits.shape[-1]
    logits, ids = logits.view(UNITS, TOKENS, experts), ids.view(UNITS, -1)
    counts = torch.zeros(UNITS, experts, dtype=logits.dtype)
    counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=logits.dtype))
    share = counts / ids.shape[1]
    balance = experts * (share * logits.softmax(-1).mean(1)).sum(-1)
    return balance.mean(), logits.logsumexp(-1).square().mean(), counts.sum(0)


# ---- a run ------------------------------------------------------------------------------------------


def optimizer(model, run):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() == 1]
    if run["optimizer"] == "sgd":
        return torch.optim.SGD(matrices + others, lr=run["lr"], momentum=run["momentum"])
    return torch.optim.AdamW(
        [dict(params=matrices, weight_decay=run["weight_decay"]), dict(params=others, weight_decay=0.0)],
        lr=run["lr"], betas=(run["beta1"], run["beta2"]), eps=run["eps"])


def losses(model, seen, batch, run):
    """-> loss, and the values of a step by name."""
    seen.clear()
    logits = model(input_ids=batch, use_cache=False).logits
    ce = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), batch[:, 1:].reshape(-1))
    balance, z_loss, load = zip(*[auxiliary(l, i) for l, i, _ in seen])
    loss = ce + BALANCE * sum(balance) + Z * sum(z_loss) if run["aux"] else ce
    return loss, dict(loss=loss, ce=ce, balance=balance, z_loss=z_loss, load=load,
                      margin=min(m.min() for _, _, m in seen))


def train(model, run, ids=None, seed=0):
    """-> values by step, gradients of the first; draws the ids when there are none."""
    seen, step = watch(model), optimizer(model, run)
    sequences, out, first = Sequences(seed), {}, None
    for i in range(run["steps"]):
        batch = sequences.batch(model, seen) if ids is None else ids[i].long()
        loss, values = losses(model, seen, batch, run)
        step.zero_grad()
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        for p in trained:  # an expert without rows has the gradient zero, not none
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        first = first or {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        values["grad_norm"] = sum(p.grad.double().square().sum() for p in trained).sqrt()
        values["ids"] = batch
        for key, v in values.items():
            out.setdefault(key, []).append(plain(v))
        step.step()
    result = {k: torch.stack(v) for k, v in out.items()}
    for key in ("ids", "load"):
        result[key] = result[key].to(torch.int32)
    return result, first, sequences.refused


def plain(v):
    if isinstance(v, tuple):
        return torch.stack([plain(x) for x in v])
    return v.detach().double()


def distance(a, b):
    """The largest relative distance (norms) of the tensors of two runs."""
    return max((float((a[k].double() - b[k].double()).norm() / b[k].double().norm()), k) for k in b)


def save_run(path, run, values, wide, tensors, **more):
    """The values of a run in float32 and what is known of it; `wide`: in float64."""
    assert torch.equal(values["load"], wide["load"])
    save_file(dict(values, loss64=wide["loss"], **tensors), str(path) + ".safetensors")
    meta = dict(
        run, balance_coefficient=BALANCE if run["aux"] else 0, z_coefficient=Z if run["aux"] else 0, units=UNITS,
        tokens=TOKENS, margin=float(values["margin"].min()), margin64=float(wide["margin"].min()),
        loss_first=float(values["loss"][0]), loss_last=float(values["loss"][-1]), **more,
        torch=torch.__version__, transformers=transformers.__version__)
    meta["noise"]["loss"] = float((values["loss"] - wide["loss"]).abs().max())
    Path(str(path) + ".json").write_text(json.dumps(meta, indent=1) + "\n")
    print(path.parent.name, path.name, json.dumps(meta), flush=True)


def make_run(name):
    folder, kind = HERE / name.split("/")[0], name.split("/")[1]
    run, seed = RUNS[name], list(RUNS).index(name)
    start = load_file(folder / "model.safetensors")
    model = load(folder, torch.float32)
    values, grads, refused = train(model, run, None, seed)
    final = hub_tensors(model)
    grads = hub_gradients(model, grads)
    model64 = load(folder, torch.float64)
    wide, grads64, _ = train(model64, run, values["ids"])
    final64 = hub_tensors(model64)
    grads64 = hub_gradients(model64, grads64)
    tensors = {"final." + k: v for k, v in final.items()}
    if kind == "sgd":
        tensors.update({"grad." + k: v for k, v in grads.items()})
    save_run(folder / kind, run, values, wide, tensors, sequences_refused=refused, moved=distance(start, final),
             noise=dict(final=distance(final, final64), grad_first=distance(grads, grads64)))


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    wanted = sys.argv[1:] or list(MODELS)
    for model in MODELS:
        if any(w.split("/")[0] == model for w in wanted):
            make_model(model)
    for name in RUNS:
        if any(w in (name, name.split("/")[0]) for w in wanted):
            make_run(name)


if __name__ == "__main__":
    main()
