# SPDX-License-Identifier: MIT
"""Files of a golden case: safetensors read as they are stored, written again, random tensors by name.

A tensor here is (format, array): arrays of F32, I64, I32 as numpy has them, of F16 as float16, of BF16 as
the uint16 of its bits.  `floats` makes float64 of any of them.
"""
import json
import struct
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


def read(folder):
    """Every tensor of a folder, whatever shard it lies in: name -> (format, array)."""
    tensors = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:start]).items():
            if name != "__metadata__":
                first, end = t["data_offsets"]
                values = np.frombuffer(data[start + first:start + end], STORED[t["dtype"]])
                tensors[name] = t["dtype"], values.reshape(t["shape"])
    return tensors


def write(path, tensors):
    head, at = {}, 0
    for name, (form, a) in sorted(tensors.items()):
        head[name] = {"dtype": form, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(np.ascontiguousarray(tensors[name][1], STORED[tensors[name][0]]).tobytes())


def store(a, form):
    """Numbers -> a tensor of this format, rounded half to even."""
    a = np.asarray(a, np.float32)
    if form == "BF16":
        bits = a.view(np.uint32)
        return form, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return form, a.astype(STORED[form])


def floats(tensor):
    form, a = tensor
    if form == "BF16":
        a = (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float64)


def draw(name, shape, seed, form="BF16"):
    """A random tensor that depends on its name and the seed: norms about 1, matrices that keep sizes."""
    g = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    n = g.standard_normal(shape)
    if name.endswith("bias"):
        n *= 0.1
    elif len(shape) == 1:
        n = 1 + 0.2 * n
    else:
        n *= 0.5 if "embed_tokens" in name else 1 / np.sqrt(shape[-1])
    return store(n, form)


def prompts(seed, vocab=256):
    """Two of them: 7 and 90 tokens, the second one longer than a page of the cache."""
    g = np.random.Generator(np.random.PCG64([seed, 5]))
    return [g.integers(3, vocab - 6, n).tolist() for n in (7, 90)]


def save(name, config, tensors, golden, meta):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    write(folder / "model.safetensors", tensors)
    write(folder / "golden.safetensors", golden)
    print("%-24s logits std %.2f  %s" % (name, meta["logits_std"], meta.get("margins", "")))
