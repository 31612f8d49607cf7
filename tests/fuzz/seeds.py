#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the first inputs of the targets safetensors and index: corpus/<name>/.

Good files of every format, one file for each thing that is refused, and good files with bytes
changed.  The same files on every run; inputs of other names in the folders are left alone.
"""
import json
import os
import random
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
random.seed(1)


def put(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    assert len(data) < 4096, name
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


def raw(text, data=0):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text + bytes(random.randrange(256) for _ in range(data))


def table(tensors, metadata=None):
    """(header, bytes of data) of [(name, dtype, shape)] side by side."""
    header, at = {"__metadata__": metadata} if metadata is not None else {}, 0
    for name, dtype, shape in tensors:
        values = 1
        for d in shape:
            values *= d
        end = at + values * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return header, at


def good(tensors, metadata=None, **how):
    header, size = table(tensors, metadata)
    return raw(json.dumps(header, **how), size)


def one(dtype='"U8"', shape="[4]", offsets="[0,4]", data=4):
    return raw('{"x":{"dtype":%s,"shape":%s,"data_offsets":%s}}' % (dtype, shape, offsets), data)


def pair(first, second, data):
    text = ",".join('"%s":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}' % (n, e - b, b, e)
                    for n, b, e in (first, second))
    return raw("{" + text + "}", data)


def safetensors():
    files = {"good-" + d.lower(): good([("w", d, [4, 8])]) for d in BITS}
    files.update({
        "good-empty": raw("{}"), "good-blanks": raw("{}      "),
        "good-metadata": good([("a.b", "F32", [2, 2])], {"format": "pt", "x": "\u00e9\n"}),
        "good-spaces": good([("a", "F16", [3]), ("b", "BF16", [2, 2])], {}, indent=2),
        "good-scales": good([("w", "F8_E4M3", [4, 8]), ("w_scale_inv", "F32", [2, 2])]),
        "good-mxfp4": good([("s", "F8_E8M0", [2, 2]), ("w", "U8", [2, 16])]),
        "good-ranks": good([("r%d" % r, "U8", [1] * r) for r in range(7)]),
        "good-zero": good([("a", "F32", [0, 5]), ("b", "F32", [1]), ("c", "I64", [3, 0])]),
        "good-names": good([("\u00e9\U0001f600", "U8", [1]), ("", "U8", [1]), ('"\\', "U8", [1])]),
        "good-many": good([("model.layers.%d.w" % i, "U8", [i % 3]) for i in range(30)]),
        "good-order": pair(("b", 4, 6), ("a", 0, 4), 6),
        "bad-short": b"\x02\0\0", "bad-length": struct.pack("<Q", 1 << 63) + b"{}",
        "bad-length-cap": struct.pack("<Q", 100000001) + b"{}", "bad-length-file": struct.pack("<Q", 9) + b"{}",
        "bad-lfs": b"version https://git-lfs.github.com/spec/v1\n", "bad-first": raw(" {}"), "bad-list": raw("[]"),
        "bad-behind": raw("{}\n"), "bad-cut": raw('{"x":{"dtype":"U8"'), "bad-utf8": raw(b'{"\xff\xfe":1}'),
        "bad-overlong": raw(b'{"\xc0\x80":1}'), "bad-nul": raw(b'{"a\0":1}'), "bad-escape": raw('{"\\x":1}'),
        "bad-surrogate": raw('{"\\ud800\\u0041":1}'), "bad-nul-escape": raw('{"\\u0000":1}'),
        "bad-control": raw('{"\\u001b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
        "bad-metadata": raw('{"__metadata__":{"a":1}}'), "bad-metadata-null": raw('{"__metadata__":null}'),
        "bad-metadata-twice": raw('{"__metadata__":{},"__metadata__":{}}'),
        "bad-metadata-key-twice": raw('{"__metadata__":{"a":"","a":""}}'),
        "bad-key": raw('{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"y":1}}', 1),
        "bad-key-twice": raw('{"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
        "bad-key-missing": raw('{"x":{"dtype":"U8","shape":[1]}}', 1), "bad-dtype": one('"U7"'),
        "bad-dtype-kind": one("8"), "bad-shape-kind": one(shape='"4"'), "bad-shape-negative": one(shape="[-4]"),
        "bad-shape-minus-zero": one(shape="[-0]", offsets="[0,0]", data=0), "bad-shape-real": one(shape="[4.0]"),
        "bad-shape-exponent": one(shape="[4e0]"), "bad-shape-octal": one(shape="[04]"),
        "bad-shape-huge": one(shape="[9223372036854775808]"), "bad-rank": one(shape="[4,1,1,1,1,1,1]"),
        "bad-product": one(shape="[4294967296,4294967296]"), "bad-product-bits": one('"I64"', "[1152921504606846976]"),
        "bad-product-zero": one(shape="[0,4294967296,4294967296]", offsets="[0,0]", data=0),
        "bad-nibbles": one('"F4"', "[3]", "[0,2]", 2), "bad-size": one(shape="[5]"), "bad-offsets-one": one(offsets="[0]"),
        "bad-offsets-three": one(offsets="[0,4,4]"), "bad-offsets-order": one(offsets="[4,0]"),
        "bad-offsets-beyond": one(data=3), "bad-offsets-negative": one(offsets="[-4,0]"),
        "bad-trailing": one(data=5), "bad-hole": pair(("a", 0, 2), ("b", 3, 4), 4),
        "bad-hole-first": pair(("a", 1, 2), ("b", 2, 4), 4), "bad-overlap": pair(("a", 0, 3), ("b", 2, 4), 4),
        "bad-same-place": pair(("a", 0, 4), ("b", 0, 4), 4), "bad-twice": pair(("a", 0, 2), ("a", 2, 4), 4),
        "bad-twice-escaped": pair(("a", 0, 2), ("\\u0061", 2, 4), 4), "bad-depth": raw("{" + '"x":[' * 200),
        "bad-nul-behind-number": one(offsets="[0\0,4]"),
        "bad-comma": raw('{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}', 1),
    })
    for name, data in files.items():
        put("safetensors", name, data)
    for i in range(24):
        data = bytearray(files[random.choice(sorted(n for n in files if n.startswith("good")))])
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        put("safetensors", "changed-%02d" % i, bytes(data))


def index():
    def of(shards, **more):
        return json.dumps({"metadata": {"total_size": 8}, "weight_map": shards, **more})

    files = {
        "good-empty": '{"weight_map":{}}', "good-one": of({"a": "model.safetensors"}),
        "good-two": of({"b": "1.safetensors", "a": "2.safetensors", "c": "1.safetensors"}),
        "good-more": of({"a": "x"}, other=[None, True, False, -1.5e-3, 0, "\u00e9", {"k": []}]),
        "good-escapes": '{"weight_map":{"\\u00e9\\ud83d\\ude00\\n"' ":\"x\\/y\"}}", "good-many":
        of({"model.layers.%d.mlp.experts.%d.w" % (i // 4, i % 4): "m-%d.safetensors" % (i // 8) for i in range(32)}),
        "bad-empty": "", "bad-list": "[]", "bad-none": "{}", "bad-kind": '{"weight_map":[]}',
        "bad-twice": '{"weight_map":{},"weight_map":{}}', "bad-name-twice": '{"weight_map":{"a":"x","a":"y"}}',
        "bad-shard-kind": '{"weight_map":{"a":1}}', "bad-shard-path": '{"weight_map":{"a":"../x"}}',
        "bad-shard-root": '{"weight_map":{"a":"/x"}}', "bad-shard-empty": '{"weight_map":{"a":""}}',
        "bad-behind": '{"weight_map":{}}x', "bad-depth": '{"a":' + "[" * 70, "bad-number": '{"a":01}', "bad-word": '{"a":nul}',
    }
    for name, text in files.items():
        put("index", name, text.encode())


safetensors()
index()
