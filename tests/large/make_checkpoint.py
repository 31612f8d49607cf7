#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a random qwen3_moe checkpoint in bf16, several shards with an index, of about so many bytes.

    python3 make_checkpoint.py FOLDER [GIGABYTES]        default 8

Nothing but the standard library.  All tensors are cut from one random block at places of their own, so that every
expert is another, and the disk sets the pace.  Files are synced: what is not on the disk yet cannot be dropped from
the page cache, and loading would look faster than it is.
"""
import json
import os
import random
import struct
import sys

BLOCK = 96 << 20

LARGE = dict(hidden_size=2048, moe_intermediate_size=768, intermediate_size=6144, num_experts=128,
             num_experts_per_tok=8, num_attention_heads=32, num_key_value_heads=4, head_dim=128, vocab_size=151936)
SMALL = dict(hidden_size=512, moe_intermediate_size=256, intermediate_size=1024, num_experts=32,
             num_experts_per_tok=4, num_attention_heads=8, num_key_value_heads=2, head_dim=64, vocab_size=8192)


def random_block(high=0x3B):
    """bf16 of both signs, sizes from 2^-9 to 2^-5: what weights look like, and never NaN.  high: of the exponent."""
    block = bytearray(random.Random(1).randbytes(BLOCK))
    high = bytes((i & 0x80) | (high + (i & 1)) for i in range(256))
    block[1::2] = block[1::2].translate(high)
    return memoryview(block)


def layer_tensors(c, i):
    D, I, d = c["hidden_size"], c["moe_intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    p = "model.layers.%d." % i
    yield from ((p + "input_layernorm", (D,)), (p + "post_attention_layernorm", (D,)),
                (p + "self_attn.q_norm", (d,)), (p + "self_attn.k_norm", (d,)),
                (p + "self_attn.q_proj", (q, D)), (p + "self_attn.k_proj", (kv, D)),
                (p + "self_attn.v_proj", (kv, D)), (p + "self_attn.o_proj", (D, q)),
                (p + "mlp.gate", (c["num_experts"], D)))
    for e in range(c["num_experts"]):
        x = p + "mlp.experts.%d." % e
        yield from ((x + "gate_proj", (I, D)), (x + "up_proj", (I, D)), (x + "down_proj", (D, I)))


def bytes_of(shape):
    n = 2
    for dim in shape:
        n *= dim
    return n


def plan_shapes(shapes, layers):
    """(config, tensors) of the shapes, which have the keys of LARGE."""
    c = dict(shapes)
    c.update(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_hidden_layers=layers, hidden_act="silu",
             max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, attention_bias=False,
             norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], sliding_window=None,
             use_sliding_window=False, tie_word_embeddings=False, torch_dtype="bfloat16", bos_token_id=1,
             eos_token_id=2)
    ends = [("model.embed_tokens", (c["vocab_size"], c["hidden_size"])), ("model.norm", (c["hidden_size"],)),
            ("lm_head", (c["vocab_size"], c["hidden_size"]))]
    tensors = ends[:1] + [t for i in range(layers) for t in layer_tensors(c, i)] + ends[1:]
    return c, [(name + ".weight", shape) for name, shape in tensors]


def plan(size):
    """(config, tensors): as many layers as the size has room for."""
    shapes = LARGE if size >= 4 << 30 else SMALL
    layer = sum(bytes_of(s) for _, s in layer_tensors(shapes, 0))
    ends = sum(bytes_of(s) for _, s in plan_shapes(shapes, 0)[1])
    return plan_shapes(shapes, max(1, round((size - ends) / layer)))


def shards_of(tensors, most):
    shards, room = [[]], most
    for name, shape in tensors:
        if shards[-1] and bytes_of(shape) > room:
            shards.append([])
            room = most
        shards[-1].append((name, shape))
        room -= bytes_of(shape)
    return shards


def fill(f, n, block, place):
    while n:
        first = place.randrange(BLOCK // 4) * 2
        n -= f.write(block[first:first + min(n, BLOCK // 2)])


def write_shard(path, tensors, blocks, place):
    """Norms are ones and embeddings 64 times as large as weights: answers go from token to token, by other experts
    each.  With smaller ones every answer is one token again and again."""
    head, at = {}, 0
    for name, shape in tensors:
        n = bytes_of(shape)
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(head).encode()
    with open(path, "wb", buffering=0) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            if len(shape) == 1:
                f.write(b"\x80\x3f" * shape[0])
            else:
                fill(f, bytes_of(shape), blocks["embed" in name], place)
        os.fsync(f.fileno())
    return at


def make(folder, size):
    """Bytes of all shards together."""
    return write(folder, *plan(size))


def write(folder, config, tensors):
    os.makedirs(folder, exist_ok=True)
    blocks, place, files = (random_block(), random_block(0x3E)), random.Random(2), {}
    shards = shards_of(tensors, max(sum(bytes_of(s) for _, s in tensors) // 4, 64 << 20))
    total = 0
    for i, shard in enumerate(shards):
        name = "model-%05d-of-%05d.safetensors" % (i + 1, len(shards))
        total += write_shard(os.path.join(folder, name), shard, blocks, place)
        files.update((tensor, name) for tensor, _ in shard)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": files}, f, indent=1)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    return total


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    gigabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 8
    print("%.2f GB" % (make(sys.argv[1], int(gigabytes * 1e9)) / 1e9))
