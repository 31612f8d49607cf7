#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Ten steps of every optimizer from given gradients, element by element, as PyTorch makes them.

    python3 make_optim.py      needs torch; writes optim.safetensors and optim.json; the C tests need neither

Parameters: wide [24, 40], tall [37, 5] and vector [17].  Gradients of every step are given; some are zero,
magnitudes are 1e-8 to 4, so that eps matters, and about half of the steps are over the clipping norm.
Weight decay on matrices only.  Runs are made again in float64: the distance is what float32 costs.
"""
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
SHAPES = {"wide": (24, 40), "tall": (37, 5), "vector": (17,)}
STEPS = 10
RUNS = {
    "sgd": dict(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0),
    "adamw": dict(optimizer="adamw", lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1),
    "adamw_clip": dict(optimizer="adamw", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-5, weight_decay=0.1, clip=1.0),
    "muon": dict(optimizer="muon", lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.1, eps=1e-7, ns_steps=5,
                 ns_coefficients=[3.4445, -4.7750, 2.0315], adjust="original: sqrt(max(1, rows / columns))"),
}
LR_FACTOR = [0.25, 0.5, 0.75, 1, 1, 0.9, 0.7, 0.45, 0.2, 0.1]  # of the lr, step by step


def given():
    g = np.random.Generator(np.random.PCG64([6, 1]))
    start = {k: torch.from_numpy(g.standard_normal(s).astype(np.float32)) for k, s in SHAPES.items()}
    grads = {}
    for k, s in SHAPES.items():
        size = 10 ** g.uniform(-6, 0, s) * 10 ** g.uniform(-2, 0.3, (STEPS,) + (1,) * len(s))
        grads[k] = torch.from_numpy((g.standard_normal((STEPS, *s)) * size).astype(np.float32))
    grads["vector"][4] = 0
    grads["wide"][:, 3, :7] = 0  # elements that never have one
    return start, grads


def newton_schulz(grad, coefficients, steps, eps):
    """torch/optim/_muon.py does the same in bfloat16."""
    a, b, c = coefficients
    x = grad.T if grad.shape[0] > grad.shape[1] else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.shape[0] > grad.shape[1] else x


def make_optimizer(run, params):
    matrices = [p for p in params.values() if p.dim() > 1]
    others = [p for p in params.values() if p.dim() == 1]
    if run["optimizer"] == "muon":
        return torch.optim.Muon(matrices, lr=run["lr"], weight_decay=run["weight_decay"], momentum=run["momentum"],
                                nesterov=run["nesterov"], ns_coefficients=tuple(run["ns_coefficients"]),
                                eps=run["eps"], ns_steps=run["ns_steps"], adjust_lr_fn="original")
    groups = [dict(params=matrices, weight_decay=run["weight_decay"]), dict(params=others, weight_decay=0.0)]
    if run["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=run["lr"], momentum=run["momentum"])
    return torch.optim.AdamW(groups, lr=run["lr"], betas=(run["beta1"], run["beta2"]), eps=run["eps"])


def make(run, start, grads, dtype):
    """-> parameters after every step, {name: [STEPS, ...]}, and the norms before clipping."""
    params = {k: torch.nn.Parameter(v.to(dtype, copy=True)) for k, v in start.items()
              if run["optimizer"] != "muon" or v.dim() == 2}
    optimizer = make_optimizer(run, params)
    after, norms = {k: [] for k in params}, []
    for i in range(STEPS):
        for k, p in params.items():
            p.grad = grads[k][i].to(dtype, copy=True)
        if "clip" in run:
            norms.append(torch.nn.utils.clip_grad_norm_(list(params.values()), run["clip"]).double())
        for group in optimizer.param_groups:
            group["lr"] = run["lr"] * LR_FACTOR[i]
        optimizer.step()
        for k, p in params.items():
            after[k].append(p.detach().clone())
    return {k: torch.stack(v) for k, v in after.items()}, norms


def main():
    torch.set_num_threads(1)
    start, grads = given()
    tensors = {"start." + k: v for k, v in start.items()}
    tensors.update({"grad." + k: v for k, v in grads.items()})
    info = dict(torch=torch.__version__, steps=STEPS, lr_factor=LR_FACTOR, runs=RUNS, float32_costs={})
    bf16 = torch.optim._muon._zeropower_via_newtonschulz
    for name, run in RUNS.items():
        torch.optim._muon._zeropower_via_newtonschulz = newton_schulz
        after, norms = make(run, start, grads, torch.float32)
        wide, _ = make(run, start, grads, torch.float64)
        info["float32_costs"][name] = max(float((after[k].double() - wide[k]).abs().max()) for k in after)
        tensors.update({"%s.%s" % (name, k): v for k, v in after.items()})
        if norms:
            tensors[name + ".norm"] = torch.stack(norms)
        if name == "muon":
            torch.optim._muon._zeropower_via_newtonschulz = bf16
            theirs, _ = make(run, start, grads, torch.float32)
            info["bfloat16_muon_differs"] = max(float((after[k] - theirs[k]).abs().max()) for k in after)
    save_file(tensors, HERE / "optim.safetensors")
    (HERE / "optim.json").write_text(json.dumps(info, indent=1) + "\n")
    print(json.dumps(info["float32_costs"]), tensors["adamw_clip.norm"].tolist(), info["bfloat16_muon_differs"])


if __name__ == "__main__":
    main()
