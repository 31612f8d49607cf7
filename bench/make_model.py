#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a random qwen3_moe checkpoint in bf16 of the shapes asked for, to be timed by `cmoe bench model`.

As it stands: 1.5 billion parameters, most of them in experts.  Nothing but the standard library.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "large"))
import make_checkpoint  # noqa: E402

SHAPES = (("layers", 14, "decoder layers"), ("hidden", 1024, "width of the residual stream"),
          ("experts", 64, "experts of a layer"), ("topk", 8, "experts of a token"),
          ("inter", 512, "width of an expert"), ("heads", 16, "query heads"), ("kv-heads", 4, "key and value heads"),
          ("head-dim", 64, "width of a head"), ("vocab", 32768, "tokens; embedding and output head are not tied"))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to; made when it is not there")
    for name, initial, text in SHAPES:
        parser.add_argument("--" + name, type=int, default=initial, metavar="N", help="%s (%d)" % (text, initial))
    a = parser.parse_args()
    for name, _, _ in SHAPES:
        if getattr(a, name.replace("-", "_")) < 1:
            parser.error("--%s: want at least 1" % name)
    if a.topk > a.experts:
        parser.error("--topk: want at most --experts, %d" % a.experts)
    if a.heads % a.kv_heads:
        parser.error("--heads: want a multiple of --kv-heads, %d" % a.kv_heads)
    if a.head_dim % 2:
        parser.error("--head-dim: want an even number")
    return a


def main():
    a = parse()
    config, tensors = make_checkpoint.plan_shapes(
        dict(hidden_size=a.hidden, moe_intermediate_size=a.inter, intermediate_size=a.inter * a.topk,
             num_experts=a.experts, num_experts_per_tok=a.topk, num_attention_heads=a.heads,
             num_key_value_heads=a.kv_heads, head_dim=a.head_dim, vocab_size=a.vocab), a.layers)
    written = make_checkpoint.write(a.folder, config, tensors)
    print("%s: %.2f billion parameters, %.2f GB" % (a.folder, written / 2e9, written / 1e9))


if __name__ == "__main__":
    main()
