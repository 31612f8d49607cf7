#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the cmoe program as its users do and checks what design and --help promise.

usage: tools.py CMOE SPOIL       paths of the program and of the preloaded library that falsifies results;
                                 standard library only; last line "tools: N passed, N failed"

Catches: a wrong exit status, output on stdout although something failed, errors that do not name
the flag, the bad value and what is accepted, help wider than 80 columns or out of step with the
parser, JSON that does not parse or lacks a field, figures that contradict each other, a self check
that does not notice a wrong number.
"""
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time

CMOE, SPOIL = sys.argv[1:3]
TINY = "--hidden 64 --inter 32 --experts 8 --topk 2".split()
FAST = "--budget 0.01".split()
BYTES = {"f32": 4, "bf16": 2, "int8": 1}
RESULT = set(
    "hidden inter experts topk tokens dtype threads device variant us_median us_min gflops gbps of_limit "
    "experts_hit bytes ops read_gbps_before read_gbps_after spread cached".split()
)
TRAINED = set(
    "hidden inter experts topk tokens dtype units threads repeat us_forward us_backward us_median us_min gflops "
    "of_limit spread peak_rss_mb".split()
)
STEPS = set(
    "config type parameters active units sequences length tokens dtype optimizer threads repeat ms_median ms_min "
    "spread tokens_per_second loss peak_rss_mb".split()
)
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
passed = failed = 0


def check(ok, what, detail=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED %s: %s" % (what, detail))


def run(*args, **kw):
    kw.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([CMOE, *args], stderr=subprocess.PIPE, text=True, timeout=300, **kw)


def fails(status, args, *texts):
    """The program ends with the status, says one line on stderr that holds the texts, prints nothing."""
    what = "cmoe " + " ".join(args)
    p = run(*args)
    check(p.returncode == status, what, "exit %d, want %d: %s" % (p.returncode, status, p.stderr))
    check(p.stdout == "", what, "stdout is not empty: %r" % p.stdout[:80])
    check(re.fullmatch(r"cmoe: [^\n]+: [^\n]+\n", p.stderr), what, "stderr: %r" % p.stderr)
    for text in texts:
        check(text in p.stderr, what, "%r not in %r" % (text, p.stderr))


def succeeds(args, **kw):
    p = run(*args, **kw)
    check(p.returncode == 0, "cmoe " + " ".join(args), "exit %d: %s" % (p.returncode, p.stderr))
    check(p.stderr == "", "cmoe " + " ".join(args), "stderr without a terminal: %r" % p.stderr)
    return p.stdout


def loads(args):
    text = succeeds(args)
    try:
        return json.loads(text)
    except ValueError as error:
        check(False, "cmoe " + " ".join(args), "%s in %r" % (error, text[:200]))
        return {}


def help_texts():
    verbs = ["inspect", "plan", "logits", "bench layer", "doctor", "demo", "generate", "chat", "tokenize", "render"]
    verbs += ["eval", "experts", "bench model", "bench train"]
    top = succeeds(["--help"])
    check(top == succeeds(["help"]), "help", "`cmoe help` is not `cmoe --help`")
    texts = {"": top}
    for verb in verbs:
        check("  " + verb + " " in top, "help", verb + " is not listed")
        texts[verb] = succeeds([*verb.split(), "--help"])
        check(texts[verb] == succeeds(["help", *verb.split()]), "help " + verb, "two texts")
        check(texts[verb] == succeeds([*verb.split(), "-h"]), "-h of " + verb, "two texts")
        flags = re.findall(r"^  --([a-z-]+)", texts[verb], re.M)
        common = {"threads", "isa", "device", "json", "quiet", "help"}
        check(common <= set(flags), "help " + verb, "flags: %s" % flags)
        check(len(flags) == len(set(flags)), "help " + verb, "a flag stands twice")
        check(texts[verb].index("Examples:") < texts[verb].index("Usage:") < texts[verb].index("Every verb:"), "help " + verb, "order")
        bare = re.findall(r"^  --([a-z-]+)(?:$|  )", texts[verb], re.M)
        for flag in set(flags) - set(bare):
            # Every flag in the text is known to the parser, which misses its value here.
            fails(2, [*verb.split(), "--" + flag], "--%s: has no value, want " % flag)
    for verb, text in texts.items():
        wide = [line for line in text.splitlines() if len(line) > 80]
        check(not wide, "help %s fits 80 columns" % verb, wide)
    pages(texts)
    version = succeeds(["--version"])
    check(re.fullmatch(r"cmoe \d+\.\d+\.\d+\n", version), "--version", version)


def pages(texts):
    """Man page and completions know every verb and flag that --help knows."""
    man = succeeds(["--man"])
    check(man.startswith(".\\\" SPDX") and ".TH CMOE 1" in man, "--man", man[:80])
    for head in "NAME SYNOPSIS DESCRIPTION OPTIONS VERBS FILES ENVIRONMENT".split() + ["EXIT STATUS"]:
        check(man.count("\n.SH %s\n" % head) == 1, "--man has " + head)
    plain = man.replace("\\-", "-")
    for word in ("--version", "--man", "--completion", "XDG_CACHE_HOME", "NO_COLOR", "tokenizer.json", "/.cache/cmoe"):
        check(word in plain.split(".SH VERBS")[0] + plain.split(".SH FILES")[-1], "--man tells of " + word)
    sections = dict(zip(*[iter(re.split(r"^\.SS cmoe (.*)\n", man, flags=re.M)[1:])] * 2))
    shells = {shell: succeeds(["--completion", shell]) for shell in ("bash", "zsh", "fish")}
    for verb, text in texts.items():
        flags = set(re.findall(r"^  --([a-z-]+)", text, re.M))
        if not verb:
            for shell, script in shells.items():
                words = set(re.findall(r"[\w-]+", script))
                missing = {"--" + flag for flag in flags} - words
                check(not missing, "--completion " + shell, missing)
            continue
        section = sections.get(verb, "")
        there = set(re.findall(r"^\.TP\n\\fB\\-\\-([a-z\\-]+)\\fR", section, re.M))
        there = {flag.replace("\\-", "-").replace("\\fR", "") for flag in there}
        check(there == flags, "--man " + verb, there ^ flags)
        for shell in ("bash", "zsh"):
            rest = shells[shell].split('    "%s"' % verb)
            part = rest[1].split(";;\n        esac")[0] if len(rest) > 1 else ""
            there = set(re.findall(r"--([a-z-]+) ", part))
            check(there == flags, "--completion %s %s" % (shell, verb), there ^ flags)
        name = verb.replace(" ", "_")
        there = set(re.findall(r"__cmoe_verb %s' -l ([a-z-]+)" % name, shells["fish"]))
        check(there == flags, "--completion fish " + verb, there ^ flags)
        for word in verb.split():
            check(all(re.search(r"\b%s\b" % word, script) for script in shells.values()), "completion: " + word)
    # The scripts run, and complete.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "script")
        with open(path, "w") as f:
            f.write(shells["bash"])
        for words, want in (
            (["cmoe", "gen"], "generate"),
            (["cmoe", "bench", "m"], "model"),
            (["cmoe", "bench", "t"], "train"),
            (["cmoe", "bench", "model", "--prompt-t"], "--prompt-tokens"),
            (["cmoe", "generate", "M", "--remasking", "seq"], "sequential"),
        ):
            line = "source %s; COMP_WORDS=(%s); COMP_CWORD=%d; _cmoe; echo ${COMPREPLY[@]}" % (
                path, " ".join(words), len(words) - 1)
            p = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            check(p.stdout == want + "\n", "bash completes %s" % words, p.stdout)
    fails(2, ["--completion", "tcsh"], '--completion: "tcsh" is unknown, want one of: bash zsh fish')
    fails(2, ["--completion"], "--completion: ")


def bad_flags():
    bench = ["bench", "layer"]
    full = [*bench, *TINY]
    p = run()
    check(p.returncode == 2 and p.stdout == "" and "Text from a model:" in p.stderr, "cmoe", p.stderr)
    fails(2, ["bnech", "layer"], "bnech layer: unknown verb, did you mean `cmoe bench layer`?")
    fails(2, ["bench"], "bench: unknown verb, want one of: `cmoe bench layer`, `cmoe bench model`")
    fails(2, ["bench", "x"], "bench x: unknown verb, want one of: `cmoe bench layer`")
    fails(2, ["docter"], "did you mean `cmoe doctor`?")
    fails(2, ["xyzzy"], "xyzzy: unknown verb, see `cmoe help`")
    fails(2, ["help", "xyzzy"], "unknown verb")
    fails(2, ["--versoin"], "unknown verb")
    fails(2, [*full, "--tokens", "1", "--hiden", "64"], "--hiden: unknown flag", "did you mean --hidden?")
    fails(2, [*full, "--tok", "1"], "--tok: unknown flag", "did you mean --tokens?")
    fails(2, [*full, "--xyzzyxyzzy=3"], "--xyzzyxyzzy: unknown flag", "see cmoe bench layer --help")
    fails(2, [*full, "--tokens", "1", "stray"], "stray: `cmoe bench layer` takes flags only")
    fails(2, ["doctor", "-x"], "-x: flags begin with two dashes")
    fails(2, ["demo", "-x"], "-x: `cmoe demo` takes flags only")
    fails(2, ["inspect"], "MODEL: is needed, want a directory")
    fails(2, ["inspect", "a", "b"], "b: `cmoe inspect` takes one MODEL only")
    fails(2, ["logitz", "a"], "did you mean `cmoe logits`?")
    fails(2, [*full], "--tokens: is needed, want 1 to 65536, separated by commas")
    fails(2, bench, "--hidden: is needed, want 1 to 65536")
    fails(2, [*full, "--tokens"], "--tokens: has no value, want 1 to")
    fails(2, [*full, "--tokens", "--json"], "--tokens: has no value")
    fails(2, [*full, "--tokens", "0"], '--tokens: "0" is out of range, want 1 to 65536')
    fails(2, [*full, "--tokens", "1,,2"], '--tokens: "1,,2" is not a list of whole numbers')
    fails(2, [*full, "--tokens", "1,x"], '--tokens: "1,x" is not a list')
    fails(2, [*full, "--tokens", ","], "is not a list")
    fails(2, [*full, "--tokens", ",".join(["1"] * 65)], "has more than 64 numbers")
    fails(2, [*full, "--tokens", "1", "--hidden", "12x"], '--hidden: "12x" is not a whole number, want 1 to')
    fails(2, [*full, "--tokens", "1", "--hidden", ""], '--hidden: "" is not a whole number')
    fails(2, [*full, "--tokens", "1", "--hidden", "-5"], '--hidden: "-5" is out of range')
    fails(2, [*full, "--tokens", "1", "--hidden", "9" * 30], "is not a whole number")
    fails(2, [*full, "--tokens", "1", "--topk", "9"], '--topk: "9" is out of range, want 1 to 8 (--experts)')
    fails(2, [*full, "--tokens", "1", "--dtype", "fp4"], '--dtype: "fp4" is unknown, want one of: f32 bf16 int8')
    fails(2, [*full, "--tokens", "1", "--dtype", "f16"], '"f16" is not supported yet by this version, want one of: f32')
    fails(2, [*full, "--tokens", "1", "--budget", "nan"], '--budget: "nan" is out of range')
    fails(2, [*full, "--tokens", "1", "--budget", "soon"], '--budget: "soon" is not a number')
    fails(2, [*full, "--tokens", "1", "--json=yes"], '--json: "yes" was given, want no value')
    fails(2, ["doctor", "--threads", "5000"], '--threads: "5000" is out of range, want 0 to 4096')
    fails(2, ["doctor", "--isa", "sse9"], '--isa: "sse9" is unknown, want one of: ref avx2')
    fails(2, ["doctor", "--device", "cuda:0"], '--device: "cuda:0" is unknown, want one of: cpu')
    huge = "--hidden 65536 --inter 65536 --experts 4096 --topk 2 --tokens 1".split()
    fails(4, [*bench, *huge], "memory: ", "GB are free")


def bench_figures(result, args, limits):
    """What one result says fits its other figures."""
    r, what = result, "bench " + " ".join(args)
    check(set(r) == RESULT, what, "fields %s" % sorted(set(r) ^ RESULT))
    near = lambda a, b, by=1e-3: abs(a - b) <= by * abs(b)
    weight = 3 * r["hidden"] * r["inter"] * BYTES[r["dtype"]]
    read = (r["read_gbps_before"] + r["read_gbps_after"]) / 2
    of_limit = max(r["gbps"] / read, r["gflops"] / limits["gflops"][r["dtype"]])
    check(r["ops"] == 6 * r["hidden"] * r["inter"] * r["topk"] * r["tokens"], what, "ops")
    check(near(r["bytes"], r["experts_hit"] * weight), what, "bytes %s" % r)
    check(near(r["gflops"], r["ops"] / r["us_median"] / 1e3), what, "gflops %s" % r)
    check(near(r["gbps"], r["bytes"] / r["us_median"] / 1e3), what, "gbps %s" % r)
    # A later probe may have found a higher peak than this point was held against.
    check(near(r["of_limit"], of_limit, 0.3), what, "of_limit %s, want about %g" % (r, of_limit))
    check(0 < r["us_min"] <= r["us_median"] and r["spread"] >= 0, what, "times %s" % r)
    least, most = r["topk"], min(r["experts"], r["topk"] * r["tokens"])
    check(least <= r["experts_hit"] <= most, what, "experts_hit %s" % r)
    check(r["cached"] is True, what, "256 copies of a tiny layer do not fill a cache 4 times")
    check(r["device"] == "cpu", what, "device")


def bench(levels):
    for dtype in BYTES:
        args = ["bench", "layer", *TINY, *FAST, "--tokens", "1,5", "--dtype", dtype, "--json"]
        j = loads(args)
        check(set(j) == {"machine", "limits", "results"}, " ".join(args), sorted(j))
        check({"cpu", "cores", "threads", "isa", "llc_bytes", "cmoe"} <= set(j["machine"]), "machine", j["machine"])
        check(set(j["limits"]) == {"read_gbps", "gflops"}, "limits", j["limits"])
        check(set(j["limits"]["gflops"]) == set(BYTES), "limits", j["limits"])
        check(all(v > 0 for v in [j["limits"]["read_gbps"], *j["limits"]["gflops"].values()]), "limits", j["limits"])
        check([r["tokens"] for r in j["results"]] == [1, 5], " ".join(args), "points")
        for r in j["results"]:
            bench_figures(r, args, j["limits"])
    # --flag=value, one thread, the plainest kernels, an exact number of repetitions, E == K.
    args = "bench layer --hidden=33 --inter=17 --experts=3 --topk=3 --tokens=2 --repeat=3 --seed=5".split()
    j = loads([*args, "--threads=1", "--isa=ref", "--json"])
    check(j["results"][0]["threads"] == 1 and j["results"][0]["variant"] == "ref", "bench ref", j["results"])
    check(j["machine"]["isa"] == "ref", "bench ref", j["machine"])
    best = loads(["bench", "layer", *TINY, *FAST, "--tokens", "1", "--json"])
    check(best["machine"]["isa"] == levels[-1], "best level", "%s %s" % (best["machine"], levels))
    table = succeeds(["bench", "layer", *TINY, *FAST, "--tokens", "1,3"]).splitlines()
    check(re.match(r"tokens +variant +median us", table[-3]), "table", table)
    check([line.split()[0] for line in table[-2:]] == ["1", "3"], "table", table)
    check(all(len(line) <= 80 for line in table), "table fits 80 columns", table)


def bench_train():
    verb = ["bench", "train"]
    for dtype in ("f32", "bf16"):
        args = [*verb, *TINY, "--tokens", "1,40", "--units", "4", "--repeat", "5", "--dtype", dtype, "--json"]
        j = loads(args)
        what = " ".join(args)
        check(set(j) == {"machine", "limits", "results"}, what, sorted(j))
        check([r["tokens"] for r in j["results"]] == [1, 40], what, "points")
        for r in j["results"]:
            check(set(r) == TRAINED, what, sorted(set(r) ^ TRAINED))
            gflops = 18 * r["hidden"] * r["inter"] * r["topk"] * r["tokens"] / r["us_median"] / 1e3
            check(abs(r["gflops"] - gflops) <= 1e-3 * gflops, what, r)
            check(abs(r["of_limit"] * j["limits"]["gflops"]["f32"] - gflops) <= 1e-3 * gflops, what, r)
            check(0 < r["us_min"] <= r["us_median"] and r["us_forward"] > 0 and r["us_backward"] > 0, what, r)
            check(1 < r["peak_rss_mb"] < 4096 and r["spread"] >= 0, what, r)
    # The check before the clock knows odd sizes, one expert a token, and all of them.
    odd = "--hidden 33 --inter 17 --experts 3 --tokens 2,7 --repeat 5 --seed 5 --topk".split()
    for topk in "13":
        table = succeeds([*verb, *odd, topk]).splitlines()
        check(re.match(r" tokens +forward us +backward us", table[-3]), "bench train: table", table)
        check(all(len(line) <= 80 for line in table), "bench train fits 80 columns", table)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w") as f:
            json.dump(CONFIG, f)
        steps = ["--units", "2", "--length", "16", "--repeat", "5"]
        for config, more in ((path, []), (folder, ["--dtype", "bf16", "--optimizer", "muon"])):
            j = loads([*verb, config, *steps, *more, "--json"])
            r = j["results"][0]
            check(set(r) == STEPS, "bench train CONFIG", sorted(set(r) ^ STEPS))
            check((r["tokens"], r["type"], r["repeat"]) == (32, "qwen3_moe", 5), "bench train CONFIG", r)
            check(0 < r["ms_min"] <= r["ms_median"] and 0 < r["active"] < r["parameters"], "bench train CONFIG", r)
            speed = r["tokens"] / r["ms_median"] * 1e3
            check(abs(r["tokens_per_second"] - speed) <= 1e-3 * speed, "bench train CONFIG", r)
        check("tokens/s" in succeeds([*verb, path, *steps]), "bench train CONFIG: table")
        fails(2, [*verb, path, "--tokens", "4"], "--tokens: means nothing with CONFIG")
        fails(2, [*verb, path, "--length", "99"], "length = 99, want at most 64")
        with open(path, "w") as f:
            f.write("{")
        fails(3, [*verb, path, *steps], path)
        fails(3, [*verb, path + "x"], "want a config.json")
    fails(2, verb, "--hidden: is needed without CONFIG, want 1 to 65536")
    fails(2, [*verb, *TINY, "--tokens", "4", "--topk", "9"], '--topk: "9" is out of range, want 1 to 8 (--experts)')
    fails(2, [*verb, *TINY, "--tokens", "4", "--units", "3"], '--units: "3" is not a power of two, or 0')
    fails(2, [*verb, *TINY, "--tokens", "4", "--repeat", "4"], '--repeat: "4" is out of range, want 5 to')
    fails(2, [*verb, *TINY, "--tokens", "4", "--length", "8"], "--length: means nothing without CONFIG")
    huge = "--hidden 65536 --inter 65536 --experts 4096 --topk 2 --tokens 1".split()
    fails(4, [*verb, *huge], "memory: ", "GB are free")


def doctor():
    j = loads(["doctor", "--json"])
    check(set(j) == {"machine", "limits", "variants", "libraries", "checks", "ok"}, "doctor", sorted(j))
    check(j["ok"] is True and all(c["right"] for c in j["checks"]), "doctor", j["checks"])
    levels = list(dict.fromkeys(c["isa"] for c in j["checks"]))
    check(levels[0] == "ref", "doctor levels", levels)
    check(len(j["checks"]) == 3 * len(levels), "doctor checks every format on every level", j["checks"])
    chosen = [(v["op"], v["dtype"]) for v in j["variants"]]
    check(chosen and len(chosen) == len(set(chosen)), "doctor: one variant each", chosen)
    check(all(l["found"] == bool(l["path"]) for l in j["libraries"]) and j["libraries"], "libraries", j["libraries"])
    check(all((l["path"] is not None) == l["found"] for l in j["libraries"]), "paths", j["libraries"])
    text = succeeds(["doctor", "--isa", "ref", "--threads", "1"])
    for part in ("Machine", "Limits", "Variants chosen", "Optional libraries", "Self check", "All is well."):
        check(part in text, "doctor", "%r is missing" % part)
    check("used        none" in text or len(levels) == 1, "doctor --isa ref", text)
    return levels


def demo():
    text = succeeds(["demo", "--quick"])
    check(len(re.findall(r"^  token +\d+ \|.{32}\|", text, re.M)) == 16, "demo: picture", text)
    check(text.count("  same ") == 2 and text.count("  right ") == 1, "demo: proofs", text)
    check(len(re.findall(r"^  (build/cmoe|make) ", text, re.M)) == 3, "demo: what next", text)
    plain = succeeds(["demo", "--quick"], env={**os.environ, "LC_ALL": "C"})
    check(plain.isascii(), "demo in the C locale", plain)
    j = loads(["demo", "--quick", "--json", "--seed", "3"])
    check(j["same_alone"] == 16 and j["same_threads"] == 4 and len(j["topk_ids"]) == 16, "demo --json", j)


def on_terminal(env):
    """stdout and stderr of `demo --quick` on a terminal."""
    me, other = pty.openpty()
    p = subprocess.Popen([CMOE, "demo", "--quick"], stdout=other, stderr=other, env={**os.environ, **env})
    os.close(other)
    text = b""
    while True:
        try:
            part = os.read(me, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        text += part
    os.close(me)
    check(p.wait() == 0, "demo on a terminal", text)
    return text


def terminal():
    check(b"\033[1m" in on_terminal({"TERM": "xterm", "NO_COLOR": ""}), "colours on a terminal")
    check(b"\033[1m" not in on_terminal({"TERM": "xterm", "NO_COLOR": "1"}), "NO_COLOR")
    check(b"\033[1m" not in on_terminal({"TERM": "dumb", "NO_COLOR": ""}), "TERM=dumb")


def outside_trouble():
    with open("/dev/full", "w") as full:
        for args in (["--help"], ["--version"], ["demo", "--quick", "--json"]):
            p = run(*args, stdout=full)
            check(p.returncode == 1 and p.stderr.startswith("cmoe: stdout: "), "full disk", p)
    args = [CMOE, "bench", "layer", *TINY, "--tokens", "256", "--budget", "120"]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=100)
    check(p.returncode == 130, "cancelled", "exit %d: %s" % (p.returncode, err))
    check(out == "" and err == "cmoe: bench layer: cancelled\n", "cancelled", (out, err))


def wrong_numbers():
    """With one wrong element in every layer's output nothing is timed, reported or shown as right."""
    # A preloaded library comes before AddressSanitizer's, which is harmless here.
    asan = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
    env = {**os.environ, "LD_PRELOAD": SPOIL, "ASAN_OPTIONS": asan}
    cases = [(["bench", "layer", *TINY, *FAST, "--tokens", "3", "--dtype", d], "wrong result") for d in BYTES]
    train = ["bench", "train", *TINY, "--tokens", "3", "--dtype"]
    cases += [([*train, d], "wrong result") for d in ("f32", "bf16")]
    for args, what in [*cases, (["doctor"], "doctor"), (["doctor", "--json"], "doctor"), (["demo", "--quick"], "demo")]:
        p = run(*args, env=env)
        name = "spoiled: cmoe " + " ".join(args)
        check(p.returncode == 1 and p.stdout == "", name, "exit %d, %r, %r" % (p.returncode, p.stdout, p.stderr))
        last = p.stderr.strip().split("\n")[-1]
        check(last.startswith("cmoe: %s: " % what), name, p.stderr)
        if "--json" in args:
            report = json.loads(p.stderr[: p.stderr.rindex("}") + 1])
            wrong = [c for c in report["checks"] if not c["right"] and "token 36: element 74 is" in c["why"]]
            check(report["ok"] is False and len(wrong) == len(report["checks"]), name, report["checks"])


def main():
    help_texts()
    bad_flags()
    levels = doctor()
    bench(levels)
    bench_train()
    demo()
    terminal()
    outside_trouble()
    wrong_numbers()
    print("tools: %d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


sys.exit(main())
