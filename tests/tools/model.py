#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the verbs that take a MODEL as their users do: logits, inspect, plan, doctor MODEL.

usage: model.py CMOE MODELS      paths of the program and of the folder of golden models;
                                 standard library only; last line "model: N passed, N failed"

Catches: logits that are not those of the golden files, bits that depend on --chunk, --threads or on
a replayed routing, JSON that does not parse or contradicts the files, a broken model or a wrong flag
that is accepted or ends with another status, output on stdout or files left behind on failure.
"""
import array
import json
import math
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

CMOE, MODELS = sys.argv[1:3]
CASES = ["qwen3_moe", "gpt_oss", "sdar_moe"]
QWEN, GPT, SDAR = [os.path.join(MODELS, case) for case in CASES]
WORK = tempfile.mkdtemp(prefix="cmoe-model-")
TYPES = {"F32": "f", "I32": "i", "I64": "q"}
TOLERANCE = 2e-4  # of the golden logits
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


# ---- safetensors -----------------------------------------------------------------------------------


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def split(path):
    """Header (without metadata) and data of a safetensors file."""
    blob = read_file(path)
    (n,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + n])
    header.pop("__metadata__", None)
    return header, blob[8 + n :]


def join(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def tensors(path):
    """name -> (dtype, shape, values) of those whose format Python knows."""
    header, data = split(path)
    out = {}
    for name, t in header.items():
        if t["dtype"] in TYPES:
            values = array.array(TYPES[t["dtype"]], data[slice(*t["data_offsets"])])
            out[name] = (t["dtype"], t["shape"], values)
    return out


def write_tensors(path, named):
    header, data = {}, b""
    for name, (dtype, shape, values) in named.items():
        blob = values.tobytes()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    join(path, header, data)


# ---- running ---------------------------------------------------------------------------------------


def run(*args, **kw):
    return subprocess.run(
        [CMOE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300, **kw
    )


def fails(status, args, *texts, lines=1, **kw):
    what = "cmoe " + " ".join(args)[:200]
    p = run(*args, **kw)
    check(p.returncode == status, what, "exit %d, want %d: %s" % (p.returncode, status, p.stderr))
    check(p.stdout == "", what, "stdout is not empty: %r" % p.stdout[:80])
    check(re.fullmatch(r"(cmoe: [^\n]+: [^\n]+\n){%d}" % lines, p.stderr), what, "stderr: %r" % p.stderr)
    for text in texts:
        check(text in p.stderr, what, "%r not in %r" % (text, p.stderr))
    return p.stderr


def succeeds(args, **kw):
    what = "cmoe " + " ".join(args)[:200]
    p = run(*args, **kw)
    check(p.returncode == 0, what, "exit %d: %s" % (p.returncode, p.stderr))
    check(p.stderr == "", what, "stderr without a terminal: %r" % p.stderr)
    return p.stdout


def loads(args):
    text = succeeds(args)
    try:
        return json.loads(text)
    except ValueError as error:
        check(False, "cmoe " + " ".join(args), "%s in %r" % (error, text[:200]))
        return {}


def logits(model, ids, *flags, **kw):
    """The bytes of the file that `cmoe logits` writes."""
    out = work("logits.safetensors")
    if os.path.exists(out):
        os.remove(out)
    succeeds(["logits", model, "--ids", ",".join(map(str, ids)), "--out", out, *flags], **kw)
    return read_file(out) if os.path.exists(out) else b""


def prompt(n):
    return [(7 * i * i + 3 * i + 1) % 256 for i in range(n)]


# ---- what must be right ----------------------------------------------------------------------------


def golden(case):
    model = os.path.join(MODELS, case)
    want = tensors(os.path.join(model, "golden.safetensors"))
    for p in ("p0", "p1"):
        ids = list(want[p + ".input_ids"][2])
        route = work("route.safetensors")
        blob = logits(model, ids, "--capture-routing", route)
        if not blob:
            continue
        name, (dtype, shape, values) = next(iter(tensors(work("logits.safetensors")).items()))
        check((name, dtype, shape) == ("logits", "F32", [len(ids), 256]), case, (name, dtype, shape))
        worst = max(abs(a - b) for a, b in zip(values, want[p + ".logits"][2]))
        check(worst <= TOLERANCE, "%s %s logits" % (case, p), worst)
        captured = tensors(route)
        routers = [k for k in want if re.match(p + r"\.layer\d+\.router_ids", k)]
        check(2 * len(routers) == len(captured), case + " captured layers", sorted(captured))
        for router in routers:
            layer = re.search(r"layer(\d+)", router).group(1)
            K = want[router][1][1]
            got = captured.get("layers.%s.topk_ids" % layer), captured.get("layers.%s.topk_weights" % layer)
            check(None not in got and got[0][:2] == ("I32", [len(ids), K]), case + " " + router, got)
            check(None not in got and got[1][:2] == ("F32", [len(ids), K]), case + " " + router, got)
            weights = want[router.replace("_ids", "_weights")][2]
            for t in range(len(ids)):
                row = slice(t * K, (t + 1) * K)
                a = sorted(zip(got[0][2][row], got[1][2][row]))
                b = sorted(zip(want[router][2][row], weights[row]))
                same = all(x[0] == y[0] and abs(x[1] - y[1]) <= 1e-5 for x, y in zip(a, b))
                if not same:
                    check(False, "%s %s token %d" % (case, router, t), (a, b))
                    break
            else:
                check(True, router)


def scaled_by_length():
    """longrope: one set of factors up to 64 positions, another beyond; the prompt decides."""
    mine = work("longrope")
    shutil.copytree(QWEN, mine)
    with open(os.path.join(mine, "config.json")) as f:
        config = json.load(f)
    half = config["head_dim"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [3.0] * half}
    config["rope_scaling"] = {"type": "longrope", "original_max_position_embeddings": 64, **factors}
    with open(os.path.join(mine, "config.json"), "w") as f:
        json.dump(config, f)
    short, long = prompt(20), prompt(65)
    check(logits(mine, short) == logits(mine, short, "--context", "64"), "longrope: short for a short prompt")
    check(logits(mine, short) != logits(mine, short, "--context", "65"), "longrope: long for a long context")
    check(logits(mine, long) == logits(mine, long, "--context", "512"), "longrope: long for a long prompt")


def same_bits(model):
    ids = prompt(150)
    whole = logits(model, ids)
    for flags in (
        ["--chunk", "1"],
        ["--chunk", "7"],
        ["--chunk", "64", "--threads", "3"],
        ["--chunk", "100000", "--threads", "1"],
        ["--threads", "2", "--context", "150"],
    ):
        check(logits(model, ids, *flags) == whole, "%s %s: same bits" % (model, flags))
    for dtype in ("bf16", "int8", "auto"):
        coarse = logits(model, ids, "--dtype", dtype)
        check(coarse != whole, "--dtype %s is another one" % dtype)
        check(logits(model, ids, "--dtype", dtype, "--chunk", "7") == coarse, "%s --dtype %s" % (model, dtype))
    with open(work("ids"), "w") as f:
        f.write("\n" + ", ".join(map(str, ids[:70])) + ",\n" + "\n".join(map(str, ids[70:])) + "\n")
    succeeds(["logits", model, "--ids", "@" + work("ids"), "--out", work("file.safetensors")])
    check(read_file(work("file.safetensors")) == whole, "--ids @FILE")
    with open(work("ids")) as f:
        succeeds(["logits", model, "--ids", "@-", "--out", work("stdin.safetensors")], stdin=f)
    check(read_file(work("stdin.safetensors")) == whole, "--ids @-")


def replay(model):
    ids = prompt(75)
    route, again, other = work("route.st"), work("again.safetensors"), work("other.safetensors")
    blob = logits(model, ids, "--capture-routing", route)
    weights = ["--replay-routing", route, "--replay-weights"]
    check(logits(model, ids, "--replay-routing", route) == blob, "%s: replay of ids" % model)
    check(logits(model, ids, *weights, "--capture-routing", again) == blob, "%s: replay of all" % model)
    check(read_file(again) == read_file(route), "%s: capture of a replay" % model)
    check(logits(model, ids, *weights, "--chunk", "16") == blob, "%s: replay in chunks" % model)

    named = tensors(route)
    ids0 = named["layers.0.topk_ids"][2]
    for i, id in enumerate(ids0):
        ids0[i] = 7 - id
    write_tensors(other, named)
    forced = logits(model, ids, "--replay-routing", other, "--capture-routing", again)
    check(forced != blob, "%s: replay of other ids" % model)
    check(tensors(again)["layers.0.topk_ids"][2] == ids0, "%s: forced ids" % model)
    named = tensors(route)
    values = named["layers.1.topk_weights"][2]
    for i in range(len(values)):
        values[i] *= 0.5
    write_tensors(other, named)
    check(logits(model, ids, "--replay-routing", other) == blob, "%s: weights are live" % model)
    check(logits(model, ids, "--replay-routing", other, "--replay-weights") != blob, "%s: weights given" % model)


def block_causal():
    """Of a block only what is given is seen, so a changed token changes its own block and later ones."""
    ids = prompt(24)
    changed = ids[:19] + [ids[19] ^ 1] + ids[20:]
    for flags, first in ((["--block-length", "8"], 16), (["--block-length", "4"], 16), (["--block-length", "1"], 19)):
        a, b = (logits(SDAR, x, *flags)[-24 * 256 * 4 :] for x in (ids, changed))
        rows = [t for t in range(24) if a[t * 1024 : (t + 1) * 1024] != b[t * 1024 : (t + 1) * 1024]]
        check(rows and rows[0] == first, "mask %s" % flags, rows)
    succeeds(["logits", SDAR, "--ids", "1", "--mask-token-id", "255", "--out", work("m.safetensors")])


def json_of_logits():
    for model, dtype in ((QWEN, "f32"), (GPT, "int8")):
        out = work("j.safetensors")
        j = loads(["logits", model, "--ids", "1,2,3", "--out", out, "--json", "--dtype", dtype])
        check(set(j) == set("tokens vocab out dtype architecture seconds ranks".split()), "logits --json", j)
        check((j["tokens"], j["vocab"], j["out"], j["dtype"]) == (3, 256, out, dtype), "logits --json", j)
        check(j["architecture"] == os.path.basename(model), "logits --json", j)
        check(set(j["seconds"]) == {"load", "forward"}, "logits --json", j)
        rank = j["ranks"][0]
        check(len(j["ranks"]) == 1 and rank["rank"] == 0 and rank["experts"] == [0, 8], "logits --json", j)
        check(rank["weight_bytes"] > 0, "logits --json", j)
    out = work("no\udcffutf8")
    j = loads(["logits", QWEN, "--ids", "1", "--out", out, "--json"])
    check(j["out"].endswith("no?utf8") and os.path.exists(out), "logits --json", j)
    text = succeeds(["logits", QWEN, "--ids", "1,2,3", "--out", work("j.safetensors"), "--quiet"])
    check(text.count("\n") == 1 and "float32 [3, 256]" in text, "logits", text)


def inspect():
    for model in (QWEN, GPT, SDAR):
        with open(os.path.join(model, "config.json")) as f:
            config = json.load(f)
        shards = [f for f in os.listdir(model) if f.startswith("model") and f.endswith(".safetensors")]
        headers = [split(os.path.join(model, shard))[0] for shard in shards]
        stored = {name: t for h in headers for name, t in h.items()}
        j = loads(["inspect", model, "--json", "--tensors"])
        check(j["type"] == config["model_type"] and j["architecture"] == config["architectures"][0], "inspect", j)
        for key, there in (("layers", "num_hidden_layers"), ("hidden", "hidden_size"), ("vocab", "vocab_size")):
            check(j[key] == config[there], "inspect " + key, j)
        check(j["moe_layers"] == config["num_hidden_layers"] and j["experts"] == 8, "inspect", j)
        check(j["tied"] is False and j["dtype"] == "bf16", "inspect", j)
        check(sum(f["tensors"] for f in j["formats"].values()) == len(stored), "inspect formats", j["formats"])
        check(j["tensors_used"] + j["tensors_ignored"] == len(stored), "inspect tensors", j)
        sizes = [os.path.getsize(os.path.join(model, shard)) for shard in shards]
        check(j["file_bytes"] == sum(sizes), "inspect file_bytes", j)
        values = sum(math.prod(t["shape"]) for t in stored.values())
        check(j["parameters"] == values and 0 < j["active_parameters"] < values, "inspect parameters", (values, j))
        b = j["bytes"]
        kinds = "experts shared dense attention router embedding head small".split()
        check(b["total"] == sum(b[k] for k in kinds), "inspect bytes", b)
        check(sorted(t["name"] for t in j["tensors"]) == sorted(stored), "inspect --tensors", len(j["tensors"]))
        for t in j["tensors"]:
            s = stored[t["name"]]
            if (t["dtype"], t["shape"]) != (s["dtype"], s["shape"]) or t["file"] not in shards:
                check(False, "inspect --tensors", (t, s))
        text = succeeds(["inspect", model])
        for part in ("Model", "Files", "In memory as bf16", config["model_type"], "of its own"):
            check(part in text, "inspect", "%r is missing in %s" % (part, text))
        check(all(len(line) <= 80 for line in text.splitlines()), "inspect fits 80 columns", text)
        check(len(succeeds(["inspect", model, "--tensors"]).splitlines()) > len(stored), "inspect --tensors")
    text = succeeds(["inspect", GPT])
    check("8 positions, in 2 of 4 layers" in text, "inspect: window", text)
    with open(os.path.join(MODELS, "ernie4_5_moe", "config.json")) as f:
        config = json.load(f)
    config["sliding_window"] = 4096  # without effect in this architecture
    config.pop("tie_word_embeddings", None)  # which is tied unless it says otherwise
    mine = work("ernie")
    shutil.copytree(os.path.join(MODELS, "ernie4_5_moe"), mine)
    with open(os.path.join(mine, "config.json"), "w") as f:
        json.dump(config, f)
    header, data = split(os.path.join(mine, "model.safetensors"))
    if "lm_head.weight" not in header:
        old = header["model.embed_tokens.weight"]
        begin, end = old["data_offsets"]
        header["lm_head.weight"] = {**old, "data_offsets": [len(data), len(data) + end - begin]}
        join(os.path.join(mine, "model.safetensors"), header, data + data[begin:end])
    j = loads(["inspect", mine, "--json"])
    check(j.get("tied") is True and j.get("window") == 0, "inspect says what the model does", j)
    check("layer types  sliding_attention, full_attention; 2 times" in text, "inspect: pattern", text)
    # Layers as they are built, not as config.json words them: this one has no layer_types.
    text = succeeds(["inspect", os.path.join(MODELS, "mixtral_window")])
    check("layer types  sliding_attention x3" in text and "tied to" in text, "inspect: layers", text)
    check("block-causal" in succeeds(["inspect", SDAR]), "inspect: mask")
    f32, int8 = (loads(["inspect", QWEN, "--json", "--dtype", d])["bytes"] for d in ("f32", "int8"))
    check(int8["experts"] < f32["experts"], "inspect --dtype", (f32, int8))


def plan():
    j = loads(["plan", QWEN, "--json", "--context", "100"])
    check(j["type"] == "qwen3_moe" and j["context"] == 100 and j["device"] == "cpu", "plan", j)
    check(j["fits"] is True and j["try"] is None and j["available_bytes"] > j["needed_bytes"], "plan", j)
    check(j["needed_bytes"] == j["weight_bytes"] + j["cache_bytes"] + j["work_bytes"], "plan", j)
    check(j["cache_bytes"] == 128 * j["bytes"]["cache_per_token"], "plan: whole pages", j)
    check(j["weight_bytes"] == j["bytes"]["total"] == j["ranks"][0]["weight_bytes"], "plan", j)
    check(sorted(f["dtype"] for f in j["formats"]) == ["bf16", "f32", "int8"], "plan formats", j["formats"])
    check(j["read_gbps"] > 0 and j["tokens_per_second"] > 0, "plan speed", j)
    speed = j["read_gbps"] * 1e9 / (j["bytes"]["per_token"] + j["cache_bytes"] / 2)
    check(abs(j["tokens_per_second"] / speed - 1) < 1e-6, "plan speed", (speed, j))
    full = loads(["logits", QWEN, "--ids", "1", "--out", work("p.safetensors"), "--dtype", "bf16", "--json"])
    check(full["ranks"] == j["ranks"], "plan places what logits loads", (full["ranks"], j["ranks"]))
    text = succeeds(["plan", GPT, "--dtype", "int8"])
    check("It fits." in text and "gpt_oss" in text and "as int8" in text and "cache" in text, "plan", text)
    check(all(len(line) <= 100 for line in text.splitlines()), "plan is wide, but not too wide", text)


def doctor():
    j = loads(["doctor", GPT, "--json"])
    check(j["ok"] is True and j["model"]["type"] == "gpt_oss" and j["model"]["tensors"] > 0, "doctor MODEL", j["model"])
    check((j["model"]["tokenizer"], j["model"]["chat_template"]) == (None, False), "doctor --json: no text", j["model"])
    text = succeeds(["doctor", QWEN])
    check("\nModel\nqwen3_moe: 102 tensors used" in text, "doctor MODEL", text)
    for part in ("All is well for --ids; text needs a tokenizer.", "no tokenizer.json: chat,", "--chat-template F\n"):
        check(part in text, "doctor MODEL without a tokenizer", text)
    path = copy(QWEN, "texts")
    template = os.path.join(path, "chat_template.jinja")
    with open(template, "w") as f:
        f.write("{{ messages[0].content }}")
    text = succeeds(["doctor", path])
    check("chat template: right" in text, "doctor MODEL with a template", text)
    with open(template, "w") as f:
        f.write("{% if %}")
    fails(3, ["doctor", path], "chat_template.jinja", "line 1")
    os.remove(template)
    with open(os.path.join(path, "tokenizer.json"), "w") as f:
        f.write("{}")
    fails(3, ["doctor", path], "tokenizer.json")


# ---- what must be refused --------------------------------------------------------------------------


def copy(model, name):
    to = work(name)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to)
    for f in os.listdir(to):
        os.chmod(os.path.join(to, f), 0o644)
    return to


def with_config(model, name, **changes):
    to = copy(model, name)
    path = os.path.join(to, "config.json")
    with open(path) as f:
        config = json.load(f)
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    with open(path, "w") as f:
        json.dump(config, f)
    return to


def refused(model, *texts):
    """Every verb refuses it, with status 3 and a text that names the model or a file in it."""
    out = work("refused.safetensors")
    for args in (["logits", model, "--ids", "1,2", "--out", out], ["inspect", model], ["plan", model, "--json"]):
        fails(3, args, *texts)
    check(not os.path.exists(out), "nothing is written", model)
    lines = run("doctor", model).stderr.count("\n")
    fails(3, ["doctor", model], *texts, lines=max(lines, 1))


def bad_files():
    first = "model-00001-of-00003.safetensors"
    broken = copy(QWEN, "truncated")
    os.truncate(os.path.join(broken, first), 150000)
    refused(broken, first)
    broken = copy(QWEN, "trailing")
    with open(os.path.join(broken, first), "ab") as f:
        f.write(b"more")
    refused(broken, first)
    broken = copy(QWEN, "missing_shard")
    os.remove(os.path.join(broken, first))
    refused(broken, first)
    broken = copy(GPT, "missing_tensor")
    path = os.path.join(broken, "model.safetensors")
    header, data = split(path)
    last = max(header, key=lambda name: header[name]["data_offsets"])
    begin, end = header.pop(last)["data_offsets"]
    join(path, header, data[:begin])
    refused(broken, last)
    header[last] = {"dtype": "BF16", "shape": [(end - begin) // 2, 1, 1], "data_offsets": [begin, end]}
    join(path, header, data)
    refused(broken, last)
    header[last] = {"dtype": "BF16", "shape": [2**40, 2**40], "data_offsets": [begin, end]}
    join(path, header, data)
    refused(broken, last)
    header[last]["data_offsets"] = [begin - 2, end]
    join(path, header, data)
    refused(broken)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", 1 << 60) + b"{}")
    refused(broken, "model.safetensors")
    open(path, "wb").close()
    refused(broken, "model.safetensors")
    os.remove(path)
    refused(broken, "missing_tensor")

    broken = copy(QWEN, "config")
    path = os.path.join(broken, "config.json")
    for text in ("", "[]", "{", '{"a": 1, "a": 2}', "\0", "[" * 100000):
        with open(path, "w") as f:
            f.write(text)
        refused(broken, "config.json")
    os.remove(path)
    refused(broken, "config.json", "want a directory with config.json and *.safetensors")


def bad_paths():
    want = "want a directory with config.json and *.safetensors"
    os.makedirs(work("empty"), exist_ok=True)
    refused(work("nothing"), "nothing: No such file or directory", want)
    refused(os.path.join(QWEN, "config.json"), "is not a directory", want)
    refused(work("empty"), "config.json: No such file or directory", want)
    refused("", "MODEL: No such file or directory", want)
    refused("x" * 5000, "File name too long")


def bad_configs():
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_experts", "num_experts_per_tok", "head_dim"):
        for value in (-1, 0, 2**62, 1e300, "64", [64], True):
            refused(with_config(QWEN, "bad", **{key: value}), key)
    refused(with_config(QWEN, "bad", num_experts_per_tok=9), "num_experts_per_tok")
    refused(with_config(QWEN, "bad", num_experts=9))
    refused(with_config(QWEN, "bad", num_attention_heads=3))
    refused(with_config(QWEN, "bad", model_type="qwen9_moe"), "qwen9_moe", "qwen3_moe", "gpt_oss")
    refused(with_config(QWEN, "bad", model_type=None), "model_type")
    refused(with_config(QWEN, "bad", hidden_act="tanhshrink"), "tanhshrink")
    refused(with_config(QWEN, "bad", rope_scaling={"rope_type": "spiral", "factor": 2.0}), "spiral")
    refused(with_config(QWEN, "bad", quantization_config={"quant_method": "awq", "bits": 4}), "awq")
    esc = fails(3, ["inspect", with_config(QWEN, "bad", model_type="a\x1b[2Jb\nc")], "model_type")
    check("\x1b" not in esc, "escape sequences of a file stay off the terminal", esc)


def bad_flags():
    out = work("flags.safetensors")
    base = ["logits", QWEN, "--out", out]
    fails(2, ["logits"], "MODEL: is needed, want a directory")
    fails(2, ["logits", QWEN, "--out", out], "--ids: is needed, want whole numbers separated by commas")
    fails(2, ["logits", QWEN, "--ids", "1"], "--out: is needed")
    fails(2, [*base, "--ids", "1", "more"], "more: `cmoe logits` takes one MODEL only")
    fails(2, [*base, "--ids", "1", "-o"], "-o: flags begin with two dashes")
    fails(2, [*base, "--ids", ""], '--ids: "" has no numbers')
    for ids in ("1,", ",1", "1,,2", "1 2", "1,x", "1;2", "1.5", "99999999999999999999"):
        fails(2, [*base, "--ids", ids], '--ids: "%s" is not a list of whole numbers' % ids)
    fails(2, [*base, "--ids", "@" + work("nothing")], "No such file or directory")
    fails(2, [*base, "--ids", "@" + WORK], "Is a directory")
    for text in ("", " \n", "1,x", "1,,2", "1 2\0"):
        with open(work("ids"), "w") as f:
            f.write(text)
        fails(2, [*base, "--ids", "@" + work("ids")], "--ids: ")
    vocab = "want 0 <= id < 256 (vocab of %s)" % QWEN
    fails(2, [*base, "--ids", "0,1,2,999"], "ids[3] = 999: " + vocab)
    fails(2, [*base, "--ids", "256"], "ids[0] = 256: " + vocab)
    fails(2, [*base, "--ids", "1,-1"], "ids[1] = -1: " + vocab)
    fails(2, [*base, "--ids", "1,9223372036854775807"], "ids[1] = 9223372036854775807: " + vocab)
    long = ",".join(["1"] * 513)
    fails(2, [*base, "--ids", long], "--ids: 513 tokens, want at most 512 (context of %s)" % QWEN)
    fails(2, [*base, "--ids", "1,2,3", "--context", "2"], "--ids: 3 tokens, want at most 2 (context of")
    fails(2, [*base, "--ids", "1", "--context", "513"], '--context: "513" is out of range, want 1 to 512')
    fails(2, [*base, "--ids", "1", "--mask-token-id", "256"], '--mask-token-id: "256" is out of range, want 0 to 255')
    fails(2, [*base, "--ids", "1", "--chunk", "0"], '--chunk: "0" is out of range')
    fails(2, [*base, "--ids", "1", "--block-length", "-1"], "--block-length: ")
    for verb in (["logits", QWEN, "--ids", "1", "--out", out], ["inspect", QWEN], ["plan", QWEN]):
        fails(2, [*verb, "--dtype", "fp4"], '--dtype: "fp4" is unknown, want one of: auto f32 bf16 int8')
        for later in ("f16", "f8", "int4", "int8g128", "int4g32", "mxfp4"):
            fails(2, [*verb, "--dtype", later], '"%s" is not supported yet by this version, want one of:' % later)
    fails(2, [*base, "--ids", "1", "--replay-weights"], "--replay-weights: needs --replay-routing")
    fails(2, [*base, "--ids", "1", "--capture-routing", out], "--capture-routing: ", "is --out, too")
    other = os.path.join(WORK, ".", os.path.basename(out))  # the same file by another path
    fails(2, [*base, "--ids", "1", "--capture-routing", other], "--capture-routing: ", "is --out, too")
    mine = work("own-model")
    shutil.copytree(QWEN, mine)
    for name in sorted(os.listdir(mine)):
        if name == "config.json" or name.startswith("model"):
            path = os.path.join(mine, name)
            before = read_file(path)
            fails(2, ["logits", mine, "--ids", "1", "--out", path], "--out: ", "is a file of the model")
            fails(2, ["logits", mine, "--ids", "1", "--out", out, "--capture-routing", path], "is a file of the model")
            check(read_file(path) == before, path + " stays as it was")
    succeeds(["logits", mine, "--ids", "1", "--out", os.path.join(mine, "logits.safetensors")])
    fails(2, ["logits", mine, "--ids", "1", "--out", os.path.join(mine, "model.safetensors")], "is a file of the model")
    limited = work("limited.safetensors")
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    fails(1, ["logits", QWEN, "--ids", "1,2,3", "--out", limited], "File too large", preexec_fn=small)
    check(not [f for f in os.listdir(WORK) if f.startswith("limited")], "nothing is left of a file that is too large")
    fails(2, ["logits", QWEN, "--ids", "1", "--out", ""], '--out: "" is no file name')
    missing, folder, device = (work("no/such/f"), "No such file"), (WORK, "not a file"), ("/dev/full", "not a file")
    for path, why in (missing, folder, device, (__file__ + "/f", "Not a directory")):
        fails(1, ["logits", QWEN, "--ids", "1", "--out", path], path + ": cannot be written: ", why)
        fails(1, [*base, "--ids", "1", "--capture-routing", path], path + ": cannot be written: ", why)
    check(not os.path.exists(out), "a wrong flag writes nothing")


def bad_replay():
    out, route, bad = work("r.safetensors"), work("route.safetensors"), work("bad.safetensors")
    ids = prompt(5)
    args = ["logits", QWEN, "--ids", ",".join(map(str, ids)), "--out", out, "--replay-routing"]
    logits(QWEN, ids, "--capture-routing", route)

    def spoiled(change, *texts, flags=()):
        named = tensors(route)
        change(named)
        write_tensors(bad, named)
        fails(3, [*args, bad, *flags], "cmoe: " + bad + ": ", *texts)

    fails(3, [*args, work("nothing.safetensors")], "nothing.safetensors: No such file")
    fails(3, [*args, QWEN], QWEN + ": is a directory, want a file of captured routing")
    fails(3, [*args, os.path.join(QWEN, "config.json")], "config.json")
    logits(GPT, ids, "--capture-routing", bad)
    fails(3, [*args, bad], "layers.0.topk_ids is I32 [5, 3], want I32 [5, 4]")
    logits(QWEN, prompt(6), "--capture-routing", bad)
    fails(3, [*args, bad], "layers.0.topk_ids is I32 [6, 4], want I32 [5, 4]")
    spoiled(lambda t: t.pop("layers.1.topk_ids"), "layers.1.topk_ids is not there, want I32 [5, 4]")
    spoiled(lambda t: t.update({"layers.7.topk_ids": t["layers.1.topk_ids"]}), "layers.7.topk_ids is there")
    spoiled(lambda t: t.update({"extra": t["layers.1.topk_ids"]}), "extra is there")
    for id in (-1, 8, 2**31 - 1):
        spoiled(lambda t: t["layers.2.topk_ids"][2].__setitem__(6, id), "topk_ids[1, 2] = %d, want 0 <= id < 8" % id)
    wide = ("I64", [5, 4], array.array("q", [0] * 20))
    spoiled(lambda t: t.update({"layers.0.topk_ids": wide}), "layers.0.topk_ids is I64 [5, 4], want I32 [5, 4]")
    needs = ["--replay-weights"]
    spoiled(lambda t: t.pop("layers.1.topk_weights"), "layers.1.topk_weights is not there", flags=needs)
    nan = lambda t: t["layers.0.topk_weights"][2].__setitem__(3, math.nan)
    spoiled(nan, "layers.0.topk_weights[0, 3] = nan, want a finite number", flags=needs)
    check(not os.path.exists(out), "a wrong routing writes nothing")


def too_large():
    """Files that exist and are right, but hold far more than any machine has (sparse files)."""
    E, I, H = 1024, 2**20, 64
    shapes = {
        "mlp.router.weight": [E, H],
        "mlp.router.bias": [E],
        "mlp.experts.gate_up_proj": [E, H, 2 * I],
        "mlp.experts.gate_up_proj_bias": [E, 2 * I],
        "mlp.experts.down_proj": [E, I, H],
        "mlp.experts.down_proj_bias": [E, H],
    }
    big = with_config(GPT, "big", num_local_experts=E, intermediate_size=I)
    path = os.path.join(big, "model.safetensors")
    header, data = split(path)
    at, kept, places, large = 0, b"", {}, []
    for name, t in header.items():
        if re.sub(r"model\.layers\.\d+\.", "", name) in shapes:
            large.append(name)
            continue
        blob = data[slice(*t["data_offsets"])]
        places[name] = {**t, "data_offsets": [at, at + len(blob)]}
        kept += blob
        at += len(blob)
    for name in large:
        shape = shapes[re.sub(r"model\.layers\.\d+\.", "", name)]
        end = at + 2 * math.prod(shape)
        places[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    join(path, places, kept)
    try:
        os.truncate(path, os.path.getsize(path) - len(kept) + at)
    except OSError as error:
        print("model: too large: skipped, no room for a sparse file (%s)" % error)
        return
    out = work("big.safetensors")
    text = fails(4, ["logits", big, "--ids", "1", "--out", out], "cmoe: " + big + ": needs ", "are there: try ")
    check(re.search(r"needs 3\.\d TiB as f32 .* [\d.]+ [GT]iB are there", text), "too large", text)
    for verb in (["generate"], ["experts"]):
        fails(4, [*verb, big, "--ids", "1"], "cmoe: " + big + ": needs ", "are there: try ")
    fails(4, ["bench", "model", big], "cmoe: " + big + ": needs ")
    j = loads(["plan", big, "--json"])
    check(j["fits"] is False and "more memory" in j["try"], "plan: does not fit", j)
    check("It does not fit." in succeeds(["plan", big]), "plan: does not fit")
    os.remove(path)


def terminal():
    """A loading bar on a terminal, not with --quiet; an interrupt ends with 130 and leaves no file."""
    for flags, shown in (([], True), (["--quiet"], False)):
        me, other = pty.openpty()
        args = [CMOE, "logits", QWEN, "--ids", "1,2", "--out", work("t.safetensors"), *flags]
        p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=other)
        p.communicate(timeout=100)
        os.close(other)
        text = b""
        try:
            while part := os.read(me, 65536):
                text += part
        except OSError:
            pass
        os.close(me)
        check((b"\r\033[K" in text) == shown, "progress %s" % flags, text)
    args = [CMOE, "logits", QWEN, "--ids", "@-", "--out", work("c.safetensors"), "--chunk", "1"]
    p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(",".join(["1"] * 400), timeout=100)
    # Before the handler is there the signal itself ends it.
    check(p.returncode in (130, -signal.SIGINT) and out == "", "cancelled", (p.returncode, err))
    check(not os.path.exists(work("c.safetensors")), "cancelled: no file")


def main():
    try:
        for case in CASES:
            golden(case)
        for model in (QWEN, GPT, SDAR):
            same_bits(model)
            replay(model)
        for part in (scaled_by_length, block_causal, json_of_logits, inspect, plan, doctor, bad_files, bad_paths, bad_configs):
            part()
        for part in (bad_flags, bad_replay, too_large, terminal):
            part()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("model: %d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


sys.exit(main())
