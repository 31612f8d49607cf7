#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Hashes of what Hugging Face tokenizers makes of random strings: tokenizers/random.txt.

  python3 tests/golden/text/random_ids.py [--strings N,N,...] [--show FAMILY]

Needs the package tokenizers (made with 0.23.3).  Per family and N one line: family, N, FNV-1a 64 over the
strings 0..N-1, each of which adds its ids (with what the post-processor adds) as 32-bit integers, -1, the
bytes of what they decode to as 32-bit integers, and -1.  The strings are those of tokenizers.c; --show
prints the ids of one family in the way SHOW_IDS=1 does there, for finding a difference.
"""
import argparse
import struct
import sys
from pathlib import Path

from tokenizers import Tokenizer

M = (1 << 64) - 1
BLOCKS = [
    (0x61, 26), (0x41, 26), (0x20, 1), (0x30, 10), (0x21, 15), (0x3a, 38), (0x0, 32), (0x7f, 34), (0xa0, 96),
    (0x100, 384), (0x300, 112), (0x370, 144), (0x400, 256), (0x590, 112), (0x600, 256), (0x900, 384), (0xe00, 128),
    (0x1100, 256), (0x1780, 128), (0x1d00, 256), (0x1e00, 256), (0x2000, 112), (0x2070, 304), (0x2460, 160),
    (0x3000, 64), (0x3040, 192), (0x4e00, 2000), (0xac00, 2000), (0xf900, 512), (0xfb00, 80), (0xff00, 240),
    (0x10400, 80), (0x11000, 2048), (0x1d400, 1024), (0x1f000, 2816), (0x20000, 1000), (0xe000, 100), (0x0, 0x11000),
    (0x10000, 0x100000), (0x9, 5)]
WORDS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<mask_l>", "<rs>", "sw", "<|im_", "  ",
    "\n\n", "\r\n", "'s", "'LL", "'\u017f", " the", "HTTPServer", "hello", "<s>", "</s>", "<unk>", "<0x41>", "\u2581",
    "123456", "e\u0301", "\U0001f468\u200d\U0001f469", "\t", "    ", "3.14", "quick brown"]


def random_string(seed):
    state = (seed * 0x9E3779B97F4A7C15 + 1) & M

    def nxt(below):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & M
        return (state >> 32) % below

    def character(block):
        c = BLOCKS[block][0] + nxt(BLOCKS[block][1])
        return "\ufffd" if 0xD800 <= c < 0xE000 else chr(c)

    out = []
    nxt(2)
    for _ in range(nxt(24)):
        kind = nxt(8)
        if kind < 2:
            out.append(WORDS[nxt(len(WORDS))])
        elif kind == 2:
            c = character(nxt(len(BLOCKS)))
            out.append(c * (nxt(200) if nxt(10) == 0 else nxt(6)))
        else:
            block = nxt(6) if kind < 5 else nxt(len(BLOCKS))
            out.append("".join(character(block) for _ in range(nxt(9))))
    return "".join(out)


def fnv(h, data):
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & M
    return h


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--strings", default="3000,100000")
    ap.add_argument("--show")
    a = ap.parse_args()
    counts = sorted(int(n) for n in a.strings.split(","))
    folder = Path(__file__).resolve().parent / "tokenizers"
    families = sorted(p.parent.name for p in folder.glob("*/tokenizer.json"))
    texts = [random_string(i) for i in range(counts[-1])]
    if a.show:
        t = Tokenizer.from_file(str(folder / a.show / "tokenizer.json"))
        for i, x in enumerate(texts):
            print(f"{i}:" + "".join(f" {k}" for k in t.encode(x).ids))
        return
    lines = []
    for family in families:
        t = Tokenizer.from_file(str(folder / family / "tokenizer.json"))
        h = 0xCBF29CE484222325
        for i, x in enumerate(texts):
            ids = t.encode(x).ids
            back = t.decode(ids, skip_special_tokens=False).encode()
            h = fnv(h, struct.pack(f"<{len(ids) + 1}i", *ids, -1) + struct.pack(f"<{len(back) + 1}i", *back, -1))
            if i + 1 in counts:
                lines.append(f"{family} {i + 1} {h:016x}\n")
        print(family, file=sys.stderr, flush=True)
    (folder / "random.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
