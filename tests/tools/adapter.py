#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs --adapter and `cmoe merge` as their users do.

usage: adapter.py CMOE PEFT      paths of the program and of the folder of golden adapters;
                                 standard library only; last line "adapter: N passed, N failed"

Catches: logits that are not PEFT's, a merged model that is not the adapted one, a broken adapter or flag
that is accepted or ends with another status, output on stdout or files left behind on failure.
"""
import array
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

CMOE, PEFT = sys.argv[1:3]
WIDE, SQUARE = [os.path.join(PEFT, base) for base in ("wide", "square")]
WORK = tempfile.mkdtemp(prefix="cmoe-adapter-")
passed = failed = 0


def check(ok, what, detail=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED %s: %s" % (what, str(detail)[:600]))


def work(name):
    return os.path.join(WORK, name)


def run(*args):
    p = subprocess.run([CMOE, *args], capture_output=True, text=True, timeout=100)
    return p.returncode, p.stdout, p.stderr


def succeeds(*args):
    code, out, err = run(*args)
    check(code == 0, args, (code, err))
    return out


def refuses(status, text, *args):
    before = sorted(os.listdir(WORK))
    code, out, err = run(*args)
    check(code == status and out == "" and err.startswith("cmoe: ") and text in err, args, (code, out, err))
    check(sorted(os.listdir(WORK)) == before, "left behind by %s" % (args,), os.listdir(WORK))


def tensors(path):
    with open(path, "rb") as f:
        blob = f.read()
    (n,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + n])
    out = {}
    for name, x in header.items():
        if name == "__metadata__":
            continue
        begin, end = x["data_offsets"]
        out[name] = (x["dtype"], x["shape"], blob[8 + n + begin : 8 + n + end])
    return out


def floats(data):
    return array.array("f", data)


def ids_of(base):
    return ",".join(map(str, array.array("i", tensors(os.path.join(base, "golden.safetensors"))["ids"][2])))


def logits(model, *flags):
    out = work("logits.safetensors")
    succeeds("logits", model, "--ids", ids_of(WIDE), "--out", out, *flags)
    data = tensors(out)["logits"][2]
    os.unlink(out)
    return data


def near(got, want, what, bound=2e-4):
    off = max(abs(a - b) for a, b in zip(floats(got), floats(want)))
    check(off <= bound, what, off)


def case(base, name):
    return os.path.join(base, name)


def adapters():
    for name in ("rank_3", "peft_0181", "per_expert"):
        want = tensors(case(WIDE, name) + "/golden.safetensors")["logits"][2]
        near(logits(WIDE, "--adapter", case(WIDE, name)), want, name)
    half = case(WIDE, "rank_3") + ":0.5"
    want = tensors(case(WIDE, "rank_3") + "/golden.safetensors")["logits"][2]
    near(logits(WIDE, "--adapter", half, "--adapter=" + half), want, "two halves")
    base = logits(WIDE)
    check(logits(WIDE, "--adapter", case(WIDE, "rank_3") + ":0") == base, "a scale of 0")
    check(logits(WIDE, "--adapter", case(WIDE, "rank_3")) != base, "an adapter")
    kept = work("kept")
    os.mkdir(kept)
    first = logits(WIDE, "--adapter", half, "--cache-dir", kept)
    check(logits(WIDE, "--adapter", half, "--cache-dir", kept) == first, "kept")
    check(logits(WIDE, "--cache-dir", kept) == base, "kept without")
    shutil.rmtree(kept)
    colon = work("with:2")
    shutil.copytree(case(WIDE, "rank_3"), colon)
    near(logits(WIDE, "--adapter", colon), want, "a colon in the name")
    check(logits(WIDE, "--adapter", colon + ":0") == base, "a colon in the name and a scale")
    shutil.rmtree(colon)


def merge():
    out, adapter = work("out"), case(WIDE, "rank_3")
    report = json.loads(succeeds("merge", WIDE, adapter, out, "--json"))
    check(report["off"] == 0 and report["bound"] == 0 and report["checked"] is True, "merge --json", report)
    check(sorted(os.listdir(out)) == ["config.json", "model.safetensors"], "files", os.listdir(out))
    check(logits(out) == logits(WIDE, "--adapter", adapter), "merged is adapted")
    before, after = tensors(WIDE + "/model.safetensors"), tensors(out + "/model.safetensors")
    check(before.keys() == after.keys(), "names")
    for name in before:
        check(before[name][:2] == after[name][:2], name)
        changed = ("_proj" in name or "mlp.gate." in name) and "norm" not in name
        check((before[name][2] != after[name][2]) == changed, "%s is%s changed" % (name, "" if changed else " not"))
    refuses(3, "is there already", "merge", WIDE, adapter, out)
    shutil.rmtree(out)
    os.mkdir(out)
    text = succeeds("merge", WIDE, adapter + ":0.5", out, "--dtype", "bf16", "--adapter", case(WIDE, "down"))
    check("with 2 adapters" in text and "checked: logits of 16 tokens" in text, "merge", text)
    check(all(x[0] == "BF16" for x in tensors(out + "/model.safetensors").values()), "bf16")
    shutil.rmtree(out)
    text = succeeds("merge", WIDE, adapter, out + "/", "--no-check")
    check("checked" not in text, "--no-check", text)
    shutil.rmtree(out)


def spoiled(change, files=None):
    """A copy of an adapter whose config is changed."""
    path = work("spoiled")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(case(WIDE, "rank_3"), path)
    config = json.load(open(path + "/adapter_config.json"))
    config.update(change)
    with open(path + "/adapter_config.json", "w") as f:
        json.dump(config, f)
    for name in files or []:
        os.unlink(os.path.join(path, name))
    return path


def bad():
    out, good = work("out"), case(WIDE, "rank_3")
    for change, files, text in (
        ({"use_dora": True}, [], "DoRA is not supported"),
        ({"r": 5}, [], "says rank 5"),
        ({"target_parameters": []}, [], "target_parameters"),
        ({}, ["adapter_model.safetensors"], "adapter_model.safetensors"),
        ({}, ["adapter_config.json"], "adapter_config.json"),
    ):
        path = spoiled(change, files)
        refuses(3, text, "logits", WIDE, "--ids", "1", "--out", work("x.safetensors"), "--adapter", path)
        refuses(3, text, "merge", WIDE, path, out)
        shutil.rmtree(path)
    for verb in (["merge", SQUARE, good, out], ["plan", SQUARE, "--adapter", good], ["generate", SQUARE, "--ids", "1", "--adapter", good]):
        code, stdout, err = run(*verb)
        check(code in (2, 3) and stdout == "", verb, (code, err))
    refuses(3, "an adapter for another model", "merge", SQUARE, good, out)
    refuses(3, "adapter_config.json", "merge", WIDE, WIDE, out)
    refuses(2, "is not a number", "merge", WIDE, good + ":x", out)
    refuses(2, "ADAPTER", "merge", WIDE)
    refuses(2, "OUT", "merge", WIDE, good)
    refuses(3, "cannot be made", "merge", WIDE, good, work("no/such/folder"))
    many = sum((["--adapter", good] for _ in range(17)), [])
    refuses(2, "more than 16", "logits", WIDE, "--ids", "1", "--out", work("x.safetensors"), *many)


def main():
    try:
        for part in (adapters, merge, bad):
            part()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("adapter: %d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


sys.exit(main())
