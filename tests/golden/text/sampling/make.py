#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Rows of logits and settings -> logits and probabilities as transformers makes them: cases.json.

Needs torch, numpy and transformers; made with torch 2.15.0 and transformers 5.23.0.  Seeded: the same
file again on the same versions.  What is left out is null in `processed`.
"""
import json
from pathlib import Path

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
    TopKLogitsWarper, TopPLogitsWarper)

GRID = [dict(), dict(temperature=0.6), dict(temperature=0.6, top_k=20, top_p=0.95), dict(top_k=1), dict(top_k=5),
        dict(top_p=0.5), dict(top_p=0.01), dict(min_p=0.1), dict(temperature=1.5, min_p=0.05, top_k=40),
        dict(repetition_penalty=1.05), dict(repetition_penalty=1.3, temperature=0.7, top_p=0.8, top_k=20),
        dict(repetition_penalty=0.8), dict(temperature=0.7, top_k=20, top_p=0.8, min_p=0.0), dict(top_k=100),
        dict(top_p=1.0, top_k=0)]


def processors(settings):
    out = LogitsProcessorList()
    if settings.get("repetition_penalty", 1.0) != 1.0:
        out.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if settings.get("temperature", 1.0) != 1.0:
        out.append(TemperatureLogitsWarper(settings["temperature"]))
    if settings.get("top_k", 0):
        out.append(TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1.0) < 1.0:
        out.append(TopPLogitsWarper(settings["top_p"]))
    if settings.get("min_p") is not None:
        out.append(MinPLogitsWarper(settings["min_p"]))
    return out


def main():
    g = np.random.Generator(np.random.PCG64(5))
    cases = []
    for settings in GRID:
        for ties in (False, True):
            logits = (g.standard_normal(64) * 3).astype(np.float32)
            if ties:
                logits = np.round(logits).astype(np.float32)
            prev = g.integers(0, 64, 12).tolist()
            row = processors(settings)(torch.tensor([prev]), torch.tensor(logits)[None].clone())[0]
            cases.append(dict(params=settings, prev=prev, ties=ties, logits=[float(x) for x in logits],
                              processed=[float(x) if np.isfinite(x) else None for x in row.tolist()],
                              probs=[float(x) for x in torch.softmax(row.double(), -1).tolist()]))
    with open(Path(__file__).parent / "cases.json", "w") as f:
        json.dump(cases, f)


if __name__ == "__main__":
    main()
