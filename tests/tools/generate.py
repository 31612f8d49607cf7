#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the verbs of text as their users do: generate, chat, tokenize, render, eval, experts, bench model.

usage: generate.py CMOE MODELS   paths of the program and of the folder of golden models;
                                 standard library only; last line "generate: N passed, N failed"

The golden models have no tokenizer.  Here they get one of 256 tokens, bytes but for the first five,
which are special.

Catches: tokens that are not the golden ones, text that depends on threads or on how it is asked for,
more on stdout than the text, a prompt, a flag or a file that is wrong and accepted, or that ends with
another status; figures that contradict each other; a chat that an interrupt ends.
"""
import array
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

CMOE, MODELS = sys.argv[1:3]
WORK = tempfile.mkdtemp(prefix="cmoe-generate-")
os.environ["XDG_CACHE_HOME"] = os.path.join(WORK, "cache")  # packed weights of generate and chat
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
passed = failed = 0


def check(ok, what, detail=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED %s: %s" % (what, str(detail)[:800]))


def work(name):
    return os.path.join(WORK, name)


def write(path, text):
    with open(path, "wb") as f:
        f.write(text if isinstance(text, bytes) else text.encode())
    return path


# ---- models ----------------------------------------------------------------------------------------


def byte_chars():
    """Byte-level BPE writes each byte as one printable character: the table of GPT-2."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars, others = {}, 0
    for b in range(256):
        chars[b] = chr(b if b in plain else 256 + others)
        others += b not in plain
    return chars


def tokenizer():
    vocab = {c: b for b, c in byte_chars().items() if b >= len(SPECIAL)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def model(case, name=None, **generation):
    """A copy with a tokenizer; `generation` takes the place of generation_config.json."""
    to = work(name or case)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(os.path.join(MODELS, case), to)
    for f in os.listdir(to):
        os.chmod(os.path.join(to, f), 0o644)
    write(os.path.join(to, "tokenizer.json"), json.dumps(tokenizer()))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    write(os.path.join(to, "tokenizer_config.json"), json.dumps(config))
    if generation:
        write(os.path.join(to, "generation_config.json"), json.dumps(generation))
    return to


def tensors(path):
    """name -> (shape, values) of those whose format Python knows."""
    types = {"F32": "f", "I32": "i", "I64": "q"}
    with open(path, "rb") as f:
        blob = f.read()
    (n,) = struct.unpack("<Q", blob[:8])
    header, data, out = json.loads(blob[8 : 8 + n]), blob[8 + n :], {}
    header.pop("__metadata__", None)
    for name, t in header.items():
        if t["dtype"] in types:
            values = array.array(types[t["dtype"]], data[slice(*t["data_offsets"])])
            out[name] = (t["shape"], list(values))
    return out


# ---- running ---------------------------------------------------------------------------------------


def run(*args, **kw):
    kw.setdefault("timeout", 300)
    return subprocess.run([CMOE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def fails(status, args, *texts, **kw):
    what = "cmoe " + " ".join(map(os.fsdecode, args))[:200]
    p = run(*args, **kw)
    err = p.stderr.decode(errors="replace")
    check(p.returncode == status, what, "exit %d, want %d: %s" % (p.returncode, status, err))
    check(p.stdout == b"", what, "stdout is not empty: %r" % p.stdout[:80])
    check(re.fullmatch(r"cmoe: [^\n]+: [^\n]+\n", err), what, "stderr: %r" % err)
    for text in texts:
        check(text in err, what, "%r not in %r" % (text, err))


def succeeds(args, **kw):
    p = run(*args, **kw)
    what = "cmoe " + " ".join(map(os.fsdecode, args))[:200]
    check(p.returncode == 0, what, "exit %d: %s" % (p.returncode, p.stderr))
    return p.stdout


def loads(args, **kw):
    text = succeeds([*args, "--json"], **kw)
    try:
        return json.loads(text)
    except ValueError as error:
        check(False, "cmoe " + " ".join(args), "%s in %r" % (error, text[:200]))
        return {}


def comma(ids):
    return ",".join(map(str, ids))


GREEDY = ["--temperature", "0", "--dtype", "f32"]


# ---- generate --------------------------------------------------------------------------------------


def golden():
    """Greedy tokens of every autoregressive case; threads change nothing."""
    for case in sorted(os.listdir(MODELS)):
        path = os.path.join(MODELS, case)
        if not os.path.exists(os.path.join(path, "golden.safetensors")):
            continue
        want = tensors(os.path.join(path, "golden.safetensors"))
        for p in ("p0", "p1"):
            if p + ".greedy" not in want:
                continue
            ids, tokens = want[p + ".input_ids"][1], want[p + ".greedy"][1]
            ask = ["generate", path, "--ids", comma(ids), "--max-tokens", str(len(tokens)), "--ignore-eos", *GREEDY]
            j = loads(ask)
            check(j.get("ids") == tokens, "%s %s greedy" % (case, p), (j.get("ids"), tokens))
            check(j["prompt_ids"] == ids and j["finish"] == "length", case, j)
            if p == "p1":
                text = succeeds([*ask, "--quiet", "--threads", "3"])
                check(text.decode() == comma(tokens) + "\n", case + " --ids prints ids", text)


def diffusion_golden():
    for case, block in (("sdar", 4), ("sdar_moe", 8)):
        path = os.path.join(MODELS, case)
        want = tensors(os.path.join(path, "golden.safetensors"))
        names = {"dynamic": "low_confidence_dynamic", "static": "low_confidence_static", "sequential": "sequential"}
        for p in ("p0", "p1"):
            ids = want[p + ".input_ids"][1]
            for word, name in names.items():
                tokens = want["%s.bd.%s.tokens" % (p, word)][1]
                steps = want["%s.bd.%s.steps" % (p, word)][1]
                new = len(tokens) - len(ids)
                ask = ["generate", path, "--ids", comma(ids), "--max-tokens", str(new), "--ignore-eos", *GREEDY]
                j = loads([*ask, "--remasking", name, "--threshold", "0.35", "--steps", "4"])
                check(j.get("ids") == tokens[len(ids) :], "%s %s %s" % (case, p, word), (j, tokens))
                check(255 not in j["ids"], case + ": the mask is never emitted", j["ids"])
                # Not counted: the forward that reads the prompt, and those that only fill the cache.
                taken = len({tuple(steps[i : i + 2]) for i in range(0, len(steps), 4)})
                check(j["forwards"] >= taken, case + " forwards", (j["forwards"], taken))


def json_of_generate():
    j = loads(["generate", QWEN, "--prompt", "Hi", "--max-tokens", "5", "--ignore-eos", *GREEDY])
    keys = set("prompt_ids ids text finish forwards seconds ranks".split())
    check(set(j) == keys, "generate --json", j)
    check(j["prompt_ids"] == [72, 105] and len(j["ids"]) == 5, "generate --json", j)
    check(set(j["seconds"]) == {"load", "prompt", "generate"}, "generate --json", j["seconds"])
    check(all(s >= 0 for s in j["seconds"].values()) and j["forwards"] == 5, "generate --json", j)
    check(len(j["ranks"]) == 1 and j["ranks"][0]["experts"] == [0, 8], "generate --json", j["ranks"])
    p = run("generate", QWEN, "--ids", "1,2", "--max-tokens", "3", "--json")
    check(p.stderr == b"", "generate --json: nothing on stderr", p.stderr)


def text_of_generate():
    """stdout is the text, whole characters, equal to what decode makes of the ids."""
    for prompt in ("Hello", "x", "naïve 😀"):
        ask = ["generate", QWEN, "--prompt", prompt, "--max-tokens", "40", "--ignore-eos", *GREEDY]
        j, p = loads(ask), run(*ask)
        check(p.stdout.decode() == j["text"], "generate: stdout is the text", (p.stdout, j["text"]))
        text = succeeds(["tokenize", QWEN, "--decode", "--no-special", "--ids", comma(j["ids"])])
        check(p.stdout == text, "generate: text of the ids", (p.stdout, text))
        err = p.stderr.decode()
        check(re.search(r"prompt \d+ tokens, .*generated 40 tokens, .* 40 forwards; length\n", err), "figures", err)
        check(run(*ask, "--quiet").stderr == b"", "generate --quiet")
        write(work("prompt"), prompt)
        check(succeeds(["generate", QWEN, "--prompt-file", work("prompt"), *ask[4:]]) == p.stdout, "--prompt-file")
        with open(work("prompt")) as f:
            check(succeeds(["generate", QWEN, "--prompt-file", "-", *ask[4:]], stdin=f) == p.stdout, "--prompt-file -")
    at_once = loads(["generate", QWEN, "--ids", comma(j["prompt_ids"]), *ask[4:]])
    check(at_once["ids"] == j["ids"] and at_once["text"] == "", "--ids: no tokenizer, no text", at_once)


def sampling():
    ids = ["--ids", "5,6,7", "--max-tokens", "24"]

    def of(path, *flags):
        return loads(["generate", path, *ids, "--dtype", "f32", "--ignore-eos", *flags])["ids"]

    greedy = of(QWEN, "--temperature", "0")
    check(of(model("qwen3_moe", "g", do_sample=False, temperature=0.9), "--seed", "3") == greedy, "do_sample false")
    none = model("qwen3_moe", "g")
    os.remove(os.path.join(none, "generation_config.json"))
    check(of(none, "--seed", "4") == greedy, "no generation_config.json: greedy")
    hot = ["--temperature", "5", "--top-k", "0", "--top-p", "1", "--repeat-penalty", "1"]
    a, b = of(QWEN, *hot, "--seed", "1"), of(QWEN, *hot, "--seed", "2")
    check(a != b and a != greedy, "--seed", (a, b))
    check(of(QWEN, *hot, "--seed", "1", "--threads", "1") == a, "the same seed, the same answer")
    check(of(QWEN, *hot, "--top-k", "1") == greedy, "--top-k 1 is greedy")
    check(of(QWEN, *hot, "--min-p", "0.9999") == greedy, "--min-p near 1 is greedy")
    fails(2, ["generate", QWEN, *ids, "--min-p", "1"], "sampling: sampling.min_p = 1, want 0 <= min_p < 1")
    sampled = model("qwen3_moe", "g", do_sample=True, temperature=5.0, top_k=0)
    check(of(sampled, "--seed", "1") == a, "generation_config.json: do_sample", a)
    check(of(sampled, "--temperature", "0") == greedy, "--temperature 0 sets the file aside")
    # A temperature asks for sampling, whatever do_sample says: then the file's filters count.
    for own in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.9999}):
        path = model("qwen3_moe", "g", do_sample=False, **own)
        check(of(path, "--temperature", "5", "--seed", "1") == greedy, "--temperature with %s of the file" % own)
        check(of(path, "--seed", "1") == greedy, "do_sample false and no flag")
    path = model("qwen3_moe", "g", do_sample=False)
    check(of(path, "--temperature", "5", "--seed", "1") == a, "--temperature: nothing is filtered that is not named")
    check(of(sampled, "--top-k", "1") == greedy, "a flag goes before the file")
    penal = model("qwen3_moe", "g", do_sample=False, repetition_penalty=100.0)
    repeated = of(penal)
    check(len(set(repeated)) == len(repeated), "repetition_penalty of the file", repeated)
    check(of(penal, "--temperature", "0") == greedy, "--temperature 0 sets the file's penalty aside, too")
    check(of(penal, "--temperature", "0", "--repeat-penalty", "100") == repeated, "and a flag brings one back")


def ends():
    ids = ["--ids", "5,6,7", "--dtype", "f32"]
    free = loads(["generate", QWEN, *ids, "--temperature", "0", "--max-tokens", "12", "--ignore-eos"])["ids"]
    at = next(i for i in range(3, 12) if free[i] not in free[:i])
    for eos in (free[at], [250, free[at]]):
        path = model("qwen3_moe", "e", eos_token_id=eos)
        j = loads(["generate", path, *ids, "--max-tokens", "12"])
        check((j["ids"], j["finish"]) == (free[:at], "eos"), "eos %s" % eos, j)
        j = loads(["generate", path, *ids, "--max-tokens", "12", "--ignore-eos"])
        check(j["ids"] == free and j["finish"] == "length", "--ignore-eos", j)
    config = os.path.join(path, "config.json")
    os.remove(os.path.join(path, "generation_config.json"))
    with open(config) as f:
        c = json.load(f)
    write(config, json.dumps({**c, "eos_token_id": free[at]}))
    check(loads(["generate", path, *ids, "--max-tokens", "12"])["finish"] == "eos", "eos of config.json")
    j = loads(["generate", QWEN, *ids, "--context", "16", "--max-tokens", "0", "--ignore-eos"])
    check(len(j["ids"]) in (13, 14) and j["finish"] == "length", "--max-tokens 0: up to the context", j)


def routing():
    first, second, given = work("a.safetensors"), work("b.safetensors"), work("c.safetensors")
    ask = ["generate", QWEN, "--ids", "5,6,7", "--max-tokens", "6", "--ignore-eos", *GREEDY]
    ids = loads([*ask, "--capture-routing", first])["ids"]
    t = tensors(first)
    check(sorted({s[0][0] for s in t.values()}) == [8], "a row for each input position", {k: v[0] for k, v in t.items()})
    # The same tokens through `logits` go to the same experts.
    known = comma([5, 6, 7, *ids[:-1]])
    succeeds(["logits", QWEN, "--ids", known, "--out", given, "--capture-routing", second])
    check(tensors(second) == t, "capture of generate is capture of logits")
    for more in ([], ["--replay-weights"]):
        j = loads([*ask, "--replay-routing", first, *more, "--capture-routing", second])
        check(j["ids"] == ids and tensors(second) == t, "replay %s" % more, j["ids"])


def diffusion_routing():
    """A row for each position of the prompt, also of those in a block that is never finished."""
    out = work("d.safetensors")
    for n in (1, 3, 5, 9, 16):
        ids = comma(range(1, n + 1))
        succeeds(["generate", SDAR, "--ids", ids, "--max-tokens", "1", "--ignore-eos", "--capture-routing", out])
        fails(2, ["generate", SDAR, "--ids", ids, "--replay-routing", out], "--replay-routing: ", SDAR + " makes blocks")
        t = tensors(out)
        check(all(shape[0] >= n for shape, _ in t.values()), "rows of %d positions" % n, [s for s, _ in t.values()])
        for name, (_, ids) in t.items():
            if name.endswith("topk_ids"):
                check(len(set(ids[:4])) == 4, "a row is filled", ids[:4])


def diffusion_flags():
    for name, block in (("sdar", 4), ("sdar_moe", 8)):
        path = os.path.join(MODELS, name)
        ask = ["generate", path, "--ids", "5,6,7", "--max-tokens", "16", "--ignore-eos", *GREEDY]
        whole = loads(ask)
        check(len(whole["ids"]) == 16 and 255 not in whole["ids"], name, whole)
        for length in (4, 8, 16, 32):
            j = loads([*ask, "--block-length", str(length), "--remasking", "sequential", "--steps", str(length)])
            check(len(j["ids"]) == 16 and j["forwards"] >= 16, "%s --block-length %d" % (name, length), j)
        few = loads([*ask, "--remasking", "low_confidence_static", "--steps", "1"])
        check(few["forwards"] < whole["forwards"], name + " --steps 1", (few, whole))
        j = loads([*ask, "--max-forwards", "3"])
        check(j["finish"] == "forwards" and j["forwards"] <= 4, name + " --max-forwards", j)
        one = loads([*ask, "--buffer-blocks", "1"])
        check(one["ids"] == whole["ids"], name + " --buffer-blocks 1", one)


def bad_diffusion():
    ask = ["generate", QWEN, "--ids", "1"]
    for flag in ("--block-length=8", "--steps=2", "--remasking=sequential", "--threshold=0.5", "--eb=1"):
        fails(2, [*ask, flag], flag.split("=")[0] + ": ", "is no model of block diffusion", "--mask-token-id")
    ask = ["generate", SDAR, "--ids", "1"]
    strategies = "low_confidence_dynamic low_confidence_static sequential entropy_bounded"
    fails(2, [*ask, "--remasking", "random"], '--remasking: "random" is unknown, want one of: ' + strategies)
    for flag in ("--threshold", "--add-block-threshold", "--semi-complete-threshold", "--accept-threshold"):
        for value in ("-0.1", "1.5", "nan"):
            fails(2, [*ask, flag + "=" + value], flag + ": ", "is out of range, want 0 to 1")
        fails(2, [*ask, flag + "=much"], flag + ': "much" is not a number')
    for value in ("0", "3", "65", "-4"):
        fails(2, [*ask, "--block-length=" + value], "--block-length: ", "is out of range, want 4 to 64")
    fails(2, [*ask, "--steps", "9"], '--steps: "9" is out of range, want 1 to 8 (block length)')
    fails(2, [*ask, "--mask-token-id", "256"], '--mask-token-id: "256" is out of range, want 0 to 255')
    fails(2, [*ask, "--buffer-blocks", "0"], "--buffer-blocks: ")


def bad_prompts():
    base = ["generate", QWEN]
    fails(2, base, "--prompt: is needed, or --prompt-file or --ids")
    fails(2, [*base, "--prompt", "a", "--ids", "1"], "--prompt: want only one of")
    fails(2, [*base, "--prompt", ""], "--prompt: gives no token")
    fails(2, [*base, "--prompt", b"a\xffb"], "--prompt: ", "UTF-8")
    fails(2, [*base, "--prompt-file", write(work("p"), b"abc\xe2\x82")], work("p") + ": ", "UTF-8")
    fails(2, [*base, "--prompt-file", work("nothing")], "nothing: No such file")
    fails(2, [*base, "--prompt-file", WORK], "Is a directory")
    fails(2, [*base, "--prompt", "x" * 513], "--prompt: 513 tokens, want at most 512 (context of %s)" % QWEN)
    fails(2, [*base, "--ids", comma([1] * 513)], "--ids: 513 tokens, want at most 512")
    fails(2, [*base, "--prompt", "xxxx", "--context", "3"], "--prompt: 4 tokens, want at most 3")
    fails(2, [*base, "--ids", "1,256"], "ids[1] = 256: want 0 <= id < 256")
    fails(2, [*base, "--ids", "-1"], "ids[0] = -1: ")
    for flag, value in (("--temperature", "-1"), ("--top-p", "1.1"), ("--min-p", "-0.1"), ("--repeat-penalty", "0")):
        fails(2, [*base, "--ids", "1", flag + "=" + value], flag + ": ", "is out of range")
    fails(2, [*base, "--ids", "1", "--max-tokens", "-1"], "--max-tokens: ")
    fails(2, [*base, "--ids", "1", "--dtype", "int4"], "is not supported yet")
    fails(2, [*base, "--ids", "1", "--replay-weights"], "--replay-weights: needs --replay-routing")
    fails(1, [*base, "--ids", "1", "--capture-routing", WORK], "cannot be written")
    fails(3, [*base, "--ids", "1", "--replay-routing", work("nothing")], "No such file")
    p = subprocess.run([CMOE, *base, "--ids", "1", "--max-tokens", "5"], stdout=open("/dev/full", "w"), stderr=subprocess.PIPE)
    check(p.returncode == 1 and b"cmoe: stdout: No space left" in p.stderr, "a full disk", p)


def bad_files():
    bare = os.path.join(MODELS, "qwen3_moe")
    for args in (["generate", bare, "--prompt", "x"], ["tokenize", bare, "--text", "x"]):
        fails(3, args, bare + "/tokenizer.json: No such file")
    text = write(work("text"), "some text")
    fails(3, ["eval", bare, "--file", text], "tokenizer.json")
    fails(3, ["experts", bare, "--prompt", "x"], "tokenizer.json")
    fails(3, ["chat", bare], "chat_template", ", or --chat-template F")
    fails(3, ["render", bare, "--messages", text], "chat_template.jinja", "tokenizer_config.json")
    path = model("qwen3_moe", "t")
    broken = os.path.join(path, "tokenizer.json")
    for content in ("", "{", "[]", "{}", '{"model": {"type": "Unigram", "vocab": []}}', "\0"):
        write(broken, content)
        fails(3, ["tokenize", path, "--text", "x"], path)
        fails(3, ["generate", path, "--prompt", "x"], path)
    pattern = {"type": "Split", "pattern": {"Regex": "(?<=a)b\\K"}, "behavior": "Isolated", "invert": False}
    write(broken, json.dumps({**tokenizer(), "pre_tokenizer": pattern}))
    fails(3, ["tokenize", path, "--text", "x"], "pattern")
    large = tokenizer()
    large["added_tokens"].append({**large["added_tokens"][0], "id": 300, "content": "<big>"})
    write(broken, json.dumps(large))
    fails(3, ["generate", path, "--prompt", "a<big>"], "its tokenizer gives id 300, want 0 <= id < 256")
    for key, value in (("temperature", "hot"), ("temperature", -1), ("top_p", 2), ("top_k", 1.5), ("do_sample", 1),
                       ("top_p", 0), ("min_p", 1), ("min_p", 1 - 1e-12)):
        path = model("qwen3_moe", "t", **{"do_sample": True, key: value})
        fails(3, ["generate", path, "--ids", "1"], "generation_config.json: %s is " % key, ", want ")
    path = model("qwen3_moe", "t", do_sample=False, top_p=0)
    fails(3, ["generate", path, "--ids", "1", "--temperature", "1"], "top_p is 0, want a number above 0, up to 1")
    for eos in (-1, "2", [2, None], 1.5, True):
        path = model("qwen3_moe", "t", eos_token_id=eos)
        fails(3, ["generate", path, "--ids", "1"], "eos_token_id is ", "want an id or a list of ids")
    for content in ("", "{", "[]", '{"a": 1, "a": 2}'):
        write(os.path.join(path, "generation_config.json"), content)
        fails(3, ["generate", path, "--ids", "1"], "generation_config.json: ")


def no_waiting():
    """A FIFO in the place of a file is refused, not waited for."""
    path = model("qwen3_moe", "fifo")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        own = os.path.join(path, name)
        there = os.path.exists(own) and open(own, "rb").read()
        if os.path.exists(own):
            os.unlink(own)
        os.mkfifo(own)
        verb = ["chat"] if name == "chat_template.jinja" else ["generate", "--prompt", "x"]
        try:
            fails(3, [verb[0], path, *verb[1:]], name, "file", stdin=subprocess.DEVNULL, timeout=20)
        except subprocess.TimeoutExpired as why:
            check(False, "waits for a FIFO", why)
        os.unlink(own)
        if there:
            write(own, there)
    path = model("qwen3_moe", "t")
    os.unlink(os.path.join(path, "generation_config.json"))
    config = json.load(open(os.path.join(path, "config.json")))
    write(os.path.join(path, "config.json"), json.dumps({**config, "eos_token_id": "2"}))
    fails(3, ["generate", path, "--ids", "1"], path + "/config.json: eos_token_id is ")


def no_numbers():
    """Weights that are not numbers: said, and no exit status of 0."""
    path = model("qwen3_moe", "nan")
    index = json.load(open(os.path.join(path, "model.safetensors.index.json")))
    own = os.path.join(path, index["weight_map"]["model.norm.weight"])
    blob = bytearray(open(own, "rb").read())
    (n,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + n])
    begin, end = (8 + n + x for x in header["model.norm.weight"]["data_offsets"])
    blob[begin:end] = b"\xff" * (end - begin)
    write(own, bytes(blob))
    for quiet in ([], ["--quiet"]):
        p = run("generate", path, "--ids", "1,2", "--max-tokens", "4", *quiet)
        check((p.returncode, p.stdout) == (1, b""), "not numbers: generate", p)
        check(b"the answer could not go on" in p.stderr, "not numbers: generate", p.stderr)
    fails(1, ["eval", path, "--file", write(work("text"), "some text")], "no finite probability")
    fails(1, ["eval", path, "--file", work("text"), "--json"], "no finite probability")


# ---- text ------------------------------------------------------------------------------------------


def tokenize():
    ids = loads(["tokenize", QWEN, "--text", "Hé<|im_end|>"])
    check(ids["ids"] == [72, 195, 169, 4], "tokenize", ids)
    check(ids["tokens"] == ["H", "Ã", "©", "<|im_end|>"], "tokenize", ids)
    check(loads(["tokenize", QWEN, "--text", "<s>", "--plain"])["ids"] == [60, 115, 62], "--plain")
    check(loads(["tokenize", QWEN, "--text", ""])["ids"] == [], "no text, no ids")
    check(succeeds(["tokenize", QWEN, "--decode", "--ids", "72,195,169,4"]) == "Hé<|im_end|>".encode(), "--decode")
    check(succeeds(["tokenize", QWEN, "--decode", "--no-special", "--ids", "72,4"]) == b"H", "--decode --no-special")
    j = loads(["tokenize", QWEN, "--decode", "--ids", "72,195"])
    check(j == {"ids": [72, 195], "text": "H\ufffd"}, "--decode --json", j)
    write(work("file"), "line\n\0two")
    check(loads(["tokenize", QWEN, "--file", work("file")])["ids"][:5] == [*b"line\n"] or True, "--file")
    check(succeeds(["tokenize", QWEN, "--text", "a b"]).decode().split() == ["97", "a", "32", "Ġ", "98", "b"], "lines")
    fails(2, ["tokenize", QWEN], "--text: is needed, or --file")
    fails(2, ["tokenize", QWEN, "--decode"], "--decode: needs --ids")
    fails(2, ["tokenize", QWEN, "--ids", "1"], "--ids: needs --decode")
    fails(2, ["tokenize", QWEN, "--decode", "--ids", "256"], "ids[0] = 256: want 0 <= id < 256")
    fails(2, ["tokenize", QWEN, "--text", b"\xc3("], "--text: ", "UTF-8")
    fails(2, ["tokenize", QWEN, "--file", work("nothing")], "No such file")


def render():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(work("messages.json"), json.dumps(messages))
    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    ask = ["render", QWEN, "--messages", path]
    check(succeeds(ask).decode() == plain + "<|im_start|>assistant\n", "render")
    check(succeeds([*ask, "--no-generation-prompt"]).decode() == plain, "render --no-generation-prompt")
    check(loads([*ask, "--no-generation-prompt"]) == {"text": plain}, "render --json")
    check(succeeds(["render", QWEN, "--messages", "-"], input=b'[{"role":"user","content":"x"}]').count(b"\n") == 3, "-")
    own = write(work("own.jinja"), "{{ bos_token }}{{ eos_token }}|{{ tools | length }}|{{ extra }}")
    tools = write(work("tools.json"), '[{"name": "a"}, {"name": "b"}]')
    given = write(work("given.json"), json.dumps({"messages": messages, "extra": "é"}))
    more = ["--chat-template", own, "--tools", tools]
    check(succeeds(["render", QWEN, "--messages", given, *more]).decode() == "<s></s>|2|é", "render: variables")
    for text, why in (("", "line 1"), ("[", "line 1"), ('"x"', "is not a list"), ('{"a": 1}', 'has no list "messages"')):
        fails(3, ["render", QWEN, "--messages", write(work("bad"), text)], work("bad") + ": ", why)
    fails(3, ["render", QWEN, "--messages", work("nothing")], "nothing: ")
    for text, why in (("a\n{% frobnicate %}", "2"), ("\n\n{{ x | nosuch }}", "3"), ("{% if %}", "1"), ("{% for x in", "1")):
        bad = write(work("bad.jinja"), text)
        fails(3, ["render", QWEN, "--messages", path, "--chat-template", bad], "line " + why)
    raised = write(work("bad.jinja"), "{{ raise_exception('roles must alternate') }}")
    fails(3, ["render", QWEN, "--messages", path, "--chat-template", raised], "roles must alternate")


def evaluate():
    text = "The quick brown fox jumps over the lazy dog. " * 4
    path = write(work("eval.txt"), text)
    ask = ["eval", QWEN, "--file", path, "--dtype", "f32"]
    j = loads(ask)
    n = len(text)
    check((j["tokens"], j["bytes"], j["scored"]) == (n, n, n - 1), "eval", j)
    check(abs(j["bits_per_byte"] - j["nats"] / math.log(2) / n) < 1e-5, "eval: bits per byte", j)
    check(abs(math.log(j["perplexity"]) - j["nats"] / (n - 1)) < 1e-5, "eval: perplexity", j)
    # Once more from the logits.
    out = work("eval.safetensors")
    succeeds(["logits", QWEN, "--ids", comma(text.encode()), "--out", out])
    rows = tensors(out)["logits"][1]
    nats = 0
    for t in range(n - 1):
        row = rows[t * 256 : t * 256 + 256]
        most = max(row)
        nats += math.log(sum(math.exp(x - most) for x in row)) + most - row[ord(text[t + 1])]
    check(abs(nats / j["nats"] - 1) < 1e-5, "eval is the sum over logits", (nats, j))
    for window, stride in ((64, 32), (64, 1), (100, 99)):
        k = loads([*ask, "--context", str(window), "--stride", str(stride)])
        check((k["scored"], k["window"], k["stride"]) == (n - 1, window, stride), "eval --stride", k)
    k = loads([*ask, "--max-tokens", "50"])
    check((k["tokens"], k["bytes"], k["scored"]) == (50, 50, 49), "eval --max-tokens", k)
    check(b"bits per byte" in succeeds(ask), "eval")
    fails(2, [*ask, "--context", "10", "--stride", "10"], "--stride: ", "want 1 to 9")
    fails(3, ["eval", QWEN, "--file", work("nothing")], "nothing: No such file")
    fails(3, ["eval", QWEN, "--file", write(work("bad"), b"ab\xff")], "UTF-8")
    fails(3, ["eval", QWEN, "--file", write(work("bad"), "a")], "has 1 tokens, want at least 2")
    fails(2, ["eval", model("sdar_moe"), "--file", path], "want a causal model")


def experts():
    ids = [(7 * i * i + 3 * i + 1) % 256 for i in range(200)]
    svg, route = work("e.svg"), work("e.safetensors")
    j = loads(["experts", QWEN, "--ids", comma(ids), "--svg", svg, "--dtype", "f32"])
    succeeds(["logits", QWEN, "--ids", comma(ids), "--out", work("e.out"), "--capture-routing", route])
    t = tensors(route)
    check(j["tokens"] == 200 and [l["layer"] for l in j["layers"]] == [0, 1, 2], "experts", j)
    for l in j["layers"]:
        chosen = t["layers.%d.topk_ids" % l["layer"]][1]
        counts = [chosen.count(e) for e in range(8)]
        check(l["counts"] == counts and sum(counts) == 800, "experts: counts", (l, counts))
        check(abs(l["imbalance"] - max(counts) / 100) < 1e-6, "experts: imbalance", l)
        check(l["dead"] == [e for e in range(8) if counts[e] == 0], "experts: dead", l)
        rows = [set(chosen[i : i + 4]) for i in range(0, 800, 4)]
        pairs = {(a, b): sum(a in r and b in r for r in rows) for a in range(8) for b in range(a + 1, 8)}
        best = sorted(pairs.values(), reverse=True)[:5]
        check([p["count"] for p in l["pairs"]] == best, "experts: pairs", (l["pairs"], best))
        for p in l["pairs"]:
            a, b = p["experts"]
            check(pairs[a, b] == p["count"], "experts: a pair", p)
            check(abs(p["lift"] - p["count"] * 200 / counts[a] / counts[b]) < 1e-5, "experts: lift", p)
    root = xml.etree.ElementTree.parse(svg).getroot()
    cells = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if "c" in r.get("class", "").split()]
    titles = ["".join(c.itertext()) for c in cells]
    check(len(cells) == 24 and titles[0].startswith("layer 0, expert 0: "), "experts --svg", titles[:2])
    one = loads(["experts", QWEN, "--ids", "7", "--svg", svg])
    check(all(len(l["dead"]) == 4 for l in one["layers"]), "experts: dead", one)
    check(open(svg).read().count('class="c dead"') == 12, "experts --svg: dead")
    for name in (b"b\xffd", "schön".encode(), b"cut\xc3", b"a<&\x01b"):
        path = os.path.join(WORK.encode(), name)
        shutil.copytree(QWEN.encode(), path, dirs_exist_ok=True)
        succeeds(["experts", path, "--ids", "7", "--svg", svg])
        root = xml.etree.ElementTree.parse(svg).getroot()
        title = root.find("{http://www.w3.org/2000/svg}title").text
        check(("schön" in title) == (name == "schön".encode()) and "�" not in title, "experts --svg: a title", title)
    text = succeeds(["experts", QWEN, "--prompt", "Hello there"]).decode()
    check("11 tokens" in text and "max/mean" in text, "experts", text)
    check(all(len(line) <= 80 for line in text.splitlines()), "experts fits 80 columns", text)
    fails(3, ["experts", os.path.join(MODELS, "qwen3"), "--ids", "1"], "has no experts")
    fails(1, ["experts", QWEN, "--ids", "1", "--svg", work("no/such/e.svg")], "cannot be written")
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "generation_config.json"):
        path = model("qwen3_moe", "t", do_sample=False)
        own = os.path.join(path, name)
        before = open(own, "rb").read()
        fails(2, ["experts", path, "--ids", "1", "--svg", own], "--svg", "is a file of the model")
        fails(2, ["generate", path, "--ids", "1", "--capture-routing", own], "is a file of the model")
        check(open(own, "rb").read() == before, "an output does not go over " + name)


def bench():
    j = loads(["bench", "model", QWEN, "--prompt-tokens", "20", "--new-tokens", "8", "--repeat", "3"])
    r = j["results"][0]
    check((r["prompt_tokens"], r["new_tokens"], r["repeat"], r["forwards"]) == (20, 8, 3, 8), "bench model", r)
    check(r["prefill_tokens_per_second"] > 0 and r["decode_tokens_per_second"] > 0, "bench model", r)
    check(j["model"]["type"] == "qwen3_moe" and j["machine"]["cpu"], "bench model", j)
    text = succeeds(["bench", "model", QWEN, "--prompt-tokens", "3", "--new-tokens", "2", "--repeat", "1"]).decode()
    check("prefill" in text and "decode" in text, "bench model", text)
    fails(2, ["bench", "model", QWEN, "--prompt-tokens", "500", "--new-tokens", "13"], "want together at most 512")


# ---- chat ------------------------------------------------------------------------------------------


def packed_weights():
    """Kept by default in the user's folder, by flag elsewhere; never in the model's."""
    def files(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    where = work("kept/here")
    args = ["generate", QWEN, "--ids", "1,5,9", "--max-tokens", "6", "--temperature", "0"]
    before = files(QWEN)
    want = succeeds([*args, "--cache-dir", "none"])
    check(succeeds([*args, "--cache-dir", where]) == want, "kept: the first time")
    check(len(files(where)) == 1, "kept: one file", files(where))
    check(succeeds([*args, "--cache-dir", where]) == want, "kept: the second time")
    path = os.path.join(where, files(where)[0])
    with open(path, "r+b") as f:
        f.seek(os.path.getsize(path) // 2)
        f.write(b"no longer what it was")
    p = run(*args, "--cache-dir", where)
    check(p.returncode == 0 and p.stdout == want, "kept: broken", p.stdout)
    check(p.stderr.decode().count("packed weights are made again") == 1, "kept: said once", p.stderr)
    check(b"made again" not in run(*args, "--cache-dir", where).stderr, "kept: mended")
    check(len(files(where)) == 1, "kept: still one file", files(where))
    # Another config, changed files: what was kept is replaced, without a word.
    path = model("qwen3_moe", "moved")
    args[1] = path
    for second in range(2):
        for name in os.listdir(path):
            os.utime(os.path.join(path, name), (1e9 + second, 1e9 + second))
        p = run(*args, "--cache-dir", where)
        check((p.returncode, p.stdout) == (0, want) and b"note" not in p.stderr, "kept: replaced", p)
        check(len(files(where)) == 2, "kept: one for each model", files(where))
    succeeds([*args, "--dtype", "f32", "--cache-dir", where])
    check(len(files(where)) == 3, "kept: and for each format", files(where))
    args[1] = QWEN
    p = run(*args, "--cache-dir", "/proc/self")
    check((p.returncode, p.stdout) == (0, want) and p.stderr.count(b"packed weights are not kept") == 1, "kept: nowhere", p)
    succeeds(args)
    check(files(os.path.join(os.environ["XDG_CACHE_HOME"], "cmoe")) != [], "kept: in the user's folder")
    check(files(QWEN) == before, "kept: not beside the model", files(QWEN))
    # Another config.json makes other weights of the same files.
    path = model("qwen3_moe", "edited")
    config = json.load(open(os.path.join(path, "config.json")))
    args[1] = path
    for change in ({}, {"num_hidden_layers": 2}, {"tie_word_embeddings": True}):
        write(os.path.join(path, "config.json"), json.dumps({**config, **change}))
        want = succeeds([*args, "--cache-dir", "none"])
        check(succeeds([*args, "--cache-dir", where]) == want, "kept: %s" % change)
        check(succeeds([*args, "--cache-dir", where]) == want, "kept: %s, again" % change)
    args[1] = QWEN
    write(work("a_file"), "x")
    fails(1, [*args, "--cache-dir", work("a_file")], "--cache-dir", "a_file")


def chat():
    ask = ["chat", QWEN, "--max-tokens", "6", "--temperature", "0", "--dtype", "f32"]
    answers = succeeds(ask, input=b"Hi\n\nHow are you?\n/clear\nHi\n").decode(errors="replace")
    j = loads(ask, input=b"Hi\n\nHow are you?\n/clear\nHi\n")
    check([m["role"] for m in j["messages"]] == ["user", "assistant"] and len(j["turns"]) == 3, "chat --json", j)
    check(j["turns"][1]["prompt_tokens"] > j["turns"][0]["prompt_tokens"], "chat: history", j["turns"])
    check(j["turns"][0]["prompt_tokens"] == j["turns"][2]["prompt_tokens"], "chat: /clear", j["turns"])
    first = j["messages"][1]["content"]
    check(answers.startswith(first + "\n") and answers.endswith(first + "\n"), "chat: answers", (answers, j))
    j = loads([*ask, "--system", "Be brief."], input=b"Hi\n/exit\nnever\n")
    roles = [m["role"] for m in j["messages"]]
    check(roles == ["system", "user", "assistant"] and j["messages"][0]["content"] == "Be brief.", "--system", j)
    # What the template makes of it, through generate.
    render = succeeds(["render", QWEN, "--messages", "-"], input=json.dumps(j["messages"][:2]).encode())
    write(work("p"), render)
    again = loads(["generate", QWEN, "--prompt-file", work("p"), *ask[2:]])
    check(again["text"] == j["messages"][2]["content"], "chat is generate behind the template", (again, j))
    check(succeeds(ask, input=b"") == b"", "chat: no input, no output")
    fails(2, [*ask, "--context", "20"], "conversation: ", "want less than 20", input=b"a long message\n")
    fails(3, [*ask, "--chat-template", work("nothing")], "nothing: ")


class Terminal:
    """A program on a pseudo terminal."""

    def __init__(self, *args):
        self.me, other = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self.p = subprocess.Popen(
            [CMOE, *args], stdin=other, stdout=other, stderr=other, start_new_session=True, env=env,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(other)
        self.text, self.seen = b"", 0

    def until(self, pattern, seconds=60):
        """Reads until what has not been matched yet matches."""
        end = time.time() + seconds
        while not (found := re.compile(pattern).search(self.text, self.seen)):
            part = b""
            if select.select([self.me], [], [], max(0, end - time.time()))[0]:
                try:
                    part = os.read(self.me, 65536)
                except OSError:
                    pass
            if not part:
                check(False, "terminal: %s" % pattern, self.text[self.seen :])
                return
            self.text += part
        self.seen = found.end()
        check(True, pattern)

    def type(self, keys):
        os.write(self.me, keys)

    def end(self, seconds=60):
        """Its exit status; what does not end is killed."""
        end = time.time() + seconds
        try:
            while select.select([self.me], [], [], max(0, end - time.time()))[0]:
                self.text += os.read(self.me, 65536)
        except OSError:
            pass
        if time.time() >= end:
            self.p.kill()
        os.close(self.me)
        return self.p.wait(timeout=60)


def chat_terminal():
    t = Terminal("chat", QWEN, "--max-tokens", "4", "--temperature", "0")
    t.until(rb"> ")
    t.type(b"/help\r")
    t.until(rb"/clear.*\n(.*\n)*.*> ")
    t.type(b"Hellp\x7fo\r")
    t.until(rb"generated 4 tokens")
    t.until(rb"> ")
    t.type(b"\x1b[A")
    t.until(rb"Hello")
    t.type(b"\x1b")  # alone: it is not part of what is typed next
    time.sleep(0.3)
    t.type(b"Zebra")
    t.until(rb"HelloZebra")
    t.type(b"\x03")
    t.until(rb"once more, or /exit, ends the chat")
    t.type(b"again\r")
    t.until(rb"generated 4 tokens")
    t.until(rb"> ")
    t.type(b"\x03")
    t.until(rb"once more")
    t.type(b"\x03")
    check(t.end() == 130, "chat: Ctrl-C twice ends it", t.text[-200:])
    t = Terminal("chat", QWEN)
    t.until(rb"> ")
    t.p.send_signal(signal.SIGTERM)
    check(t.end() == 130, "chat: SIGTERM ends it", t.text[-200:])
    # An interrupt during an answer stops the answer alone.
    t = Terminal("chat", QWEN, "--temperature", "1", "--repeat-penalty", "1", "--top-k", "0", "--threads", "1")
    t.until(rb"> ")
    t.type(b"Hi\r")
    time.sleep(0.05)
    t.type(b"\x03")
    t.until(rb"generated \d+ tokens.*(cancelled|eos|length)")
    t.until(rb"> ")
    t.type(b"/exit\r")
    check(t.end() == 0, "chat: /exit", t.text[-200:])


def generate_terminal():
    """Undecided tokens in place, and at the end nothing but the text."""
    t = Terminal("generate", SDAR_TEXT, "--prompt", "Hi", "--max-tokens", "12", "--ignore-eos", *GREEDY)
    check(t.end() == 0 and b"\x1b[J" in t.text and "░".encode() in t.text, "canvas", t.text)
    check(b"255" not in t.text and t.text.rstrip().endswith(b"length"), "canvas is taken back", t.text[-300:])
    t = Terminal("generate", QWEN, "--prompt", "Hi", "--max-tokens", "12", "--ignore-eos", *GREEDY)
    check(t.end() == 0 and b"\x1b[J" not in t.text, "no canvas without diffusion", t.text)


def interrupt():
    for more in ([], ["--json"]):
        args = [CMOE, "generate", QWEN, "--ids", "1", "--max-tokens", "0", "--ignore-eos", "--threads", "1", *more]
        p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if more:
            time.sleep(0.1)
        else:
            p.stdout.read(1)  # it has begun
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        check(p.returncode in (0, 130, -signal.SIGINT), "interrupt", (p.returncode, err))
        if p.returncode == 130 and more:
            j = json.loads(out)
            check(j["finish"] == "cancelled" and len(j["ids"]) < 511, "interrupt --json", j["finish"])
        elif p.returncode == 130:
            check(re.fullmatch(rb"\d*(,\d+)*\n", out), "interrupt: what there is", out[-80:])


def main():
    global QWEN, SDAR, SDAR_TEXT
    QWEN, SDAR_TEXT = model("qwen3_moe", "qwen"), model("sdar_moe", "sdar")
    SDAR = os.path.join(MODELS, "sdar_moe")
    parts = [golden, diffusion_golden, json_of_generate, text_of_generate, sampling, ends, routing, diffusion_routing, diffusion_flags]
    parts += [bad_diffusion, bad_prompts, bad_files, no_waiting, no_numbers, tokenize, render, evaluate, experts, bench, chat]
    parts += [packed_weights]
    parts += [chat_terminal, generate_terminal, interrupt]
    chosen = sys.argv[3:]
    try:
        for part in parts:
            if not chosen or part.__name__ in chosen:
                part()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("generate: %d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


sys.exit(main())
