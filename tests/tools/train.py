# SPDX-License-Identifier: MIT
"""`cmoe train` and `cmoe finetune`, from outside: train.py CMOE MODELS [KILLS]

Models of a few thousand weights learn a few kilobytes of text.  Checked are the files that come out,
that a training is the same to the bit however it was interrupted and by however many threads it was
run, and that everything that can be wrong ends with its status and says so.  KILLS: how often a
training is killed at a random moment (3 when it is not given).

Mistakes that this catches: state that a checkpoint forgets, a batch that depends on where a run began,
a sum that depends on threads, a record with lines twice, a model that is half written, a directory
of somebody else's that is written over, a flag that is taken and not used, output on failure.
"""
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.dom.minidom

CMOE, MODELS = sys.argv[1:3]
KILLS = int(sys.argv[3]) if len(sys.argv) > 3 else 3
WORK = tempfile.mkdtemp(prefix="cmoe-train-")
passed = failed = 0

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
    "initializer_range": 0.02,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
SMALL = ["--steps", "8", "--length", "16", "--units", "4", "--lr", "3e-3"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def check(ok, what, detail=""):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED %s: %s" % (what, str(detail)[:600]))
    return ok


def work(name):
    return os.path.join(WORK, name)


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def write_file(name, data):
    path = work(name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path


def config(name, **changes):
    merged = {k: v for k, v in {**CONFIG, **changes}.items() if v is not None}
    return write_file(name, json.dumps(merged))


def text(words, seed):
    """Sentences of a few words that follow each other by chance."""
    draw = random.Random(seed)
    names = "the a sea ship wind storm night king queen sword song light dark saw heard sailed fell".split()
    out = []
    while len(out) < words:
        n = draw.randint(4, 9)
        out += [" ".join(draw.choice(names) for _ in range(n)).capitalize() + "."]
        words -= n - 1
    return "\n".join(out) + "\n"


def run(*args, **kw):
    return subprocess.run(
        [CMOE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300, **kw
    )


def fails(status, args, *texts, **kw):
    """Status, an empty stdout, and a last line of stderr that says why."""
    what = "cmoe " + " ".join(args).replace(WORK, "")[:160]
    p = run(*args, **kw)
    check(p.returncode == status, what, "exit %d, want %d: %s" % (p.returncode, status, p.stderr))
    check(p.stdout == "", what, "stdout is not empty: %r" % p.stdout[:80])
    lines = [line for line in p.stderr.split("\n") if line.startswith("cmoe: ")]
    check(len(lines) >= 1, what, "no error line: %r" % p.stderr)
    for t in texts:
        check(t in p.stderr, what, "%r not in %r" % (t, p.stderr))
    return p.stderr


def loads(args, **kw):
    """The object that a run prints with --json."""
    what = "cmoe " + " ".join(args).replace(WORK, "")[:160]
    p = run(*args, "--json", **kw)
    check(p.returncode == 0, what, "exit %d: %s" % (p.returncode, p.stderr))
    try:
        return json.loads(p.stdout)
    except ValueError as error:
        check(False, what, "%s in %r" % (error, p.stdout[:200]))
        return {}


def train(out, *flags, verb="train", source=None, data=None):
    return loads(
        [verb, source or work("config.json"), "--data", data or work("book.txt"), "--out", work(out), "--quiet"]
        + SMALL
        + list(flags)
    )


def model(out, name="model.safetensors"):
    path = os.path.join(work(out), name)
    return read_file(path) if os.path.exists(path) else b""


def record(out, speed=False):
    lines = [json.loads(line) for line in read_file(os.path.join(work(out), "training.jsonl")).splitlines()]
    for line in lines:
        if not speed:
            line.pop("tokens_per_second", None)
    return lines


# ---- what comes out --------------------------------------------------------------------------------


def comes_out():
    got = train("plain", "--eval-every", "4", "--save-every", "3", "--export-dtype", "f32")
    files = sorted(os.listdir(work("plain")))
    want = "checkpoints config.json generation_config.json load.svg loss.svg model.safetensors tokenizer.json"
    check(files == (want + " tokenizer_config.json training.jsonl").split(), "files of a training", files)
    names = "steps tokens loss eval_loss bits_per_byte seconds tokens_per_second parameters active trained bytes"
    for name in (names + " peak_rss").split():
        check(isinstance(got.get(name), (int, float)), "--json " + name, got.get(name))
    check(got.get("steps") == 8 and got.get("tokens") == 8 * 4 * 16, "steps, tokens", got)
    check(got["trained"] == got["parameters"] == sum(got["trained_by_kind"].values()), "trained", got)
    check(got["active"] < got["parameters"], "active", got)
    lines = record("plain", speed=True)
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "eval_loss" in line]
    check([line["step"] for line in steps] == list(range(1, 9)), "a line a step", steps)
    check([line["step"] for line in evals] == [4, 8], "a line an evaluation", evals)
    keys = {"step", "loss", "lr", "norm", "balance", "z", "imbalance", "dead", "tokens_per_second"}
    check(all(set(line) == keys for line in steps), "keys of a step", steps[0])
    check(steps[-1]["loss"] < steps[0]["loss"], "it learns", (steps[0], steps[-1]))
    check(steps[-1]["loss"] == float("%.9g" % got["loss"]) or abs(steps[-1]["loss"] - got["loss"]) < 1e-6, "loss")
    check(abs(evals[-1]["eval_bits_per_byte"] - got["bits_per_byte"]) < 1e-6, "bits per byte", got)
    for name in ("loss.svg", "load.svg"):
        xml.dom.minidom.parse(os.path.join(work("plain"), name))
        check(b"prefers-color-scheme: dark" in model("plain", name), name + " in the dark")
    kept = sorted(os.listdir(work("plain/checkpoints")))
    check(kept == ["step-00000006", "step-00000008"], "checkpoints that stay", kept)
    check(json.loads(model("plain", "config.json")) == CONFIG, "config.json")
    eos = json.loads(model("plain", "generation_config.json"))["eos_token_id"]
    check(eos == CONFIG["vocab_size"] - 1, "the end is the tokenizer's", eos)


def same_as_eval():
    """The text that was kept, scored by `cmoe eval` in the same windows; only the token that ends the
    document is not in it, which counts the more the shorter the text."""
    got = train("by-file", "--eval-file", work("other.txt"), "--export-dtype", "f32")
    flags = ["--context", "17", "--stride", "16", "--dtype", "f32"]
    want = loads(["eval", work("by-file"), "--file", work("other.txt")] + flags)
    end = 3 * math.log2(300) / len(read_file(work("other.txt")))
    near = abs(got["bits_per_byte"] - want["bits_per_byte"]) <= end
    check(near, "bits per byte as cmoe eval", (got["bits_per_byte"], want["bits_per_byte"], end))
    wide = loads(["eval", work("by-file"), "--file", work("other.txt"), "--dtype", "f32"])
    check(wide["bits_per_byte"] > 0, "cmoe eval with its own windows", wide)
    p = run("generate", work("by-file"), "--prompt", "The sea", "--max-tokens", "5")
    check(p.returncode == 0, "the model writes", p.stderr)


def shown():
    """Without a terminal: lines, and a summary with what to do next."""
    args = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("shown")] + SMALL
    p = run(*args)
    check(p.returncode == 0 and "step 8 of 8  loss " in p.stderr, "lines", p.stderr)
    check("held-out" in p.stderr and "\x1b" not in p.stderr, "lines, held out", p.stderr)
    check("cmoe generate %s --prompt" % work("shown") in p.stdout, "next commands", p.stdout)
    q = run(*args, "--quiet")
    check(q.returncode == 0 and q.stderr == "", "--quiet", q.stderr)


def best():
    """With a learning rate that ruins the model at the end, what is kept is not the end."""
    flags = ["--eval-every", "2", "--schedule", "constant", "--lr", "0.05", "--clip", "0", "--steps", "20"]
    got = train("best", "--keep-best", *flags)
    evals = [line for line in record("best") if "eval_loss" in line]
    least = min(evals, key=lambda line: line["eval_loss"])
    check(got["best_step"] == least["step"], "--keep-best", (got, evals))
    check(abs(got["eval_loss"] - least["eval_loss"]) < 1e-6, "--keep-best: its loss", got)
    train("last", *flags)
    same = model("best") == model("last")
    check(same == (least["step"] == 20), "--keep-best: the model", least)


# ---- the same bits ---------------------------------------------------------------------------------


def same_bits():
    train("one", "--threads", "1", "--save-every", "0")
    want = model("one")
    for flags in (
        ["--threads", "2"],
        ["--threads", "3", "--save-every", "1", "--eval-every", "3", "--eval-tokens", "20"],
        ["--pass", "1"],
        ["--pass", "2", "--recompute"],
    ):
        out = "same" + "".join(flags)
        train(out, *flags)
        check(model(out) == want, "same bits with " + " ".join(flags))
    for flags in (
        ["--seed", "1"],
        ["--optimizer", "sgd", "--momentum", "0.9"],
        ["--optimizer", "muon"],
        ["--schedule", "wsd", "--cooldown", "3"],
        ["--warmup", "3"],
        ["--dtype", "bf16"],
        ["--dropout", "0.1"],
        ["--balance", "0.5"],
        ["--weight-decay", "1"],
        ["--sequences", "2"],
    ):
        out = "other" + "".join(flags)
        train(out, *flags)
        check(model(out) not in (want, b""), "another model with " + " ".join(flags))


LONG = ["--steps", "40", "--save-every", "4", "--eval-every", "8", "--keep-best"]


def command(out, *flags, verb="train", source=None):
    return [CMOE, verb, source or work("config.json"), "--data", work("book.txt"), "--out", work(out), "--quiet"] + (
        SMALL + LONG + list(flags)
    )


def interrupt(args, after, how):
    """Runs for so many seconds, or to the end."""
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        p.wait(after)
    except subprocess.TimeoutExpired:
        p.send_signal(how)
    out, err = p.communicate(timeout=300)
    return p.returncode, err


def same_training(out, want, what, weights="model.safetensors"):
    args = command(out) if weights[0] == "m" else lora_command(out)
    p = subprocess.run(args, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL, timeout=300)
    check(p.returncode == 0, what + ": goes on", p.stderr)
    check(model(out, weights) == model(want, weights), what + ": same weights")
    check(record(out) == record(want), what + ": same record")
    for name in os.listdir(work(out)) + os.listdir(work(out + "/checkpoints")):
        check(not name.startswith(".") and not name.endswith(".part"), what + ": left behind", name)


def lora_command(out):
    return command(out, "--rank", "3", "--dropout", "0.1", verb="finetune", source=work("plain"))


def resumes():
    start = time.time()
    subprocess.run(command("whole"), stdout=subprocess.DEVNULL, timeout=300)
    took = time.time() - start
    subprocess.run(lora_command("whole-lora"), stdout=subprocess.DEVNULL, timeout=300)
    for how, name in ((signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")):
        out = "stopped-" + name
        for part in range(20):  # until one comes in the middle
            shutil.rmtree(work(out), ignore_errors=True)
            status, err = interrupt(command(out), took * (0.3 + 0.03 * part), how)
            if status == 130 and "after step" in err:
                break
        check(status == 130 and "the same command goes on" in err, name, (status, err))
        check(os.path.exists(work(out + "/checkpoints")), name + ": a checkpoint")
        same_training(out, "whole", name)
    draw = random.Random(os.getpid())
    for i in range(KILLS):
        out = "killed-%d" % i
        weights = "model.safetensors" if i % 3 else "adapter_model.safetensors"
        args = command(out) if i % 3 else lora_command(out)
        moments = [draw.uniform(0, took) for _ in range(draw.randint(1, 3))]
        for moment in moments:
            interrupt(args, moment, signal.SIGKILL)
        same_training(out, "whole" if i % 3 else "whole-lora", "kill -9 after %s s" % moments, weights)
        shutil.rmtree(work(out))
    again = subprocess.run(command("whole"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    check(again.returncode == 0 and "step 40" in again.stdout, "a finished training", again.stderr)


# ---- what it learns from ---------------------------------------------------------------------------


def chats():
    lines = []
    for i in range(40):
        a, b = text(6, i).strip(), text(9, 100 + i).strip()
        message = {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        lines.append(json.dumps([message, {"text": a + " " + b}, {"prompt": a, "completion": b}][i % 3]))
    data = write_file("chats.jsonl", "\n".join(lines) + "\n")
    template = write_file("template.jinja", TEMPLATE)
    flags = ["--chat-template", template]
    got = train("chats", *flags, "--tokenizer", work("plain"), data=data)
    check(got.get("bits_per_byte") is None and got.get("eval_loss", 0) > 0, "chats have no bits per byte", got)
    check(model("chats", "chat_template.jinja") == TEMPLATE.encode(), "the template goes with the model")
    train("turns", *flags, "--tokenizer", work("plain"), "--all-turns", data=data)
    check(model("turns") not in (model("chats"), b""), "--all-turns")
    args = ["train", work("config.json"), "--data", data, "--out", work("no"), "--tokenizer", work("plain")]
    fails(3, args + SMALL, "chats.jsonl", "template")
    bad = write_file("bad.jsonl", lines[1] + "\n{broken\n")
    fails(3, ["finetune", work("plain"), "--data", bad, "--out", work("no")] + SMALL, "bad.jsonl", "line 2")


def diffusion():
    source = config("sdar.json", model_type="sdar_moe", architectures=["SDARMoeForCausalLM"], block_size=4,
                    mask_token_id=299)
    got = train("sdar", "--objective", "block-diffusion", "--steps", "12", source=source)
    check(got.get("loss", 99) < 6, "block diffusion", got)
    tokenizer = json.loads(model("sdar", "tokenizer.json"))
    added = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    check(added.get(299) == "<|MASK|>", "a token for the mask", added)
    p = run("generate", work("sdar"), "--prompt", "The sea", "--max-tokens", "8")
    check(p.returncode == 0, "what it became writes", p.stderr)
    train("sdar8", "--objective", "block-diffusion", "--block-length", "8", "--steps", "12", source=source)
    check(model("sdar8") not in (model("sdar"), b""), "--block-length")
    args = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("no")] + SMALL
    fails(2, args + ["--objective", "block-diffusion"], "mask")


def finetunes():
    got = train("lora", "--rank", "3", "--frozen", "int8", verb="finetune", source=work("plain"))
    kinds = got.get("trained_by_kind", {})
    check(set(kinds) == {"experts", "router", "attention"}, "what LoRA trains", kinds)
    check(sum(kinds.values()) == got["trained"] < got["parameters"], "how much", got)
    files = sorted(os.listdir(work("lora")))
    want = "adapter_config.json adapter_model.safetensors checkpoints load.svg loss.svg training.jsonl".split()
    check(files == want, "files of an adapter", files)
    more = train("more", "--adapter", work("lora"), verb="finetune", source=work("plain"))
    check(more.get("trained") == got["trained"], "--adapter goes on", more)
    check(record("more")[0]["loss"] < record("lora")[0]["loss"], "from where it was", record("more")[0])
    whole = train("full", "--full", verb="finetune", source=work("plain"))
    check(whole["trained"] == whole["parameters"], "--full", whole)
    check(record("full")[0]["loss"] < record("plain")[0]["loss"] - 0.1, "--full begins with the model")
    check(model("full", "tokenizer.json") == model("plain", "tokenizer.json"), "--full: its tokenizer")
    part = train("part", "--targets", "q_proj,router", verb="finetune", source=work("plain"))
    check(set(part["trained_by_kind"]) == {"router", "attention"}, "--targets", part)


def merges():
    """What was trained is what the model becomes."""
    ids = ["--ids", "1,2,3,40,50,60,7"]
    for name, flags in (("base", []), ("with", ["--adapter", work("lora")])):
        p = run("logits", work("plain"), *ids, "--out", work(name + ".st"), *flags)
        check(p.returncode == 0, "logits " + name, p.stderr)
    check(read_file(work("base.st")) != read_file(work("with.st")), "an adapter changes logits")
    p = run("merge", work("plain"), work("lora"), work("merged"))
    check(p.returncode == 0, "merge", p.stderr)
    p = run("logits", work("merged"), *ids, "--out", work("merged.st"))
    check(p.returncode == 0, "logits of the merged", p.stderr)
    check(read_file(work("merged.st")) == read_file(work("with.st")), "merged is unmerged")


# ---- what is wrong ---------------------------------------------------------------------------------


def wrong_flags():
    base = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("no")]
    tune = ["finetune", work("plain"), "--data", work("book.txt"), "--out", work("no")]
    fails(2, ["train", work("config.json"), "--out", work("no")], "--data", "is needed")
    fails(2, ["train", "--data", work("book.txt"), "--out", work("no")], "CONFIG")
    for flags, why in (
        (["--units", "3"], "power of two"),
        (["--pass", "3"], "power of two"),
        (["--pass", "16"], "--units 8"),
        (["--steps", "0"], "--steps"),
        (["--lr", "nan"], "--lr"),
        (["--optimizer", "adam"], "adamw"),
        (["--hold-out", "0.99"], "--hold-out"),
        (["--hold-out", "0.1", "--eval-file", work("other.txt")], "--eval-file"),
        (["--cooldown", "3"], "--schedule wsd"),
        (["--schedule", "wsd", "--cooldown", "2000"], "--cooldown"),
        (["--warmup", "2000"], "--warmup"),
        (["--block-length", "4"], "--objective block-diffusion"),
        (["--momentum", "0.5"], "--optimizer"),
        (["--optimizer", "sgd", "--eps", "1e-5"], "--eps: means nothing without --optimizer adamw or muon"),
        (["--final-lr", "0", "--schedule", "constant"], "--final-lr"),
        (["--hold-out", "0", "--keep-best"], "--keep-best"),
        (["--length", "1000"], "max_position_embeddings"),
    ):
        fails(2, base + flags, why)
    for flags, why in (
        (["--full", "--rank", "3"], "--rank"),
        (["--full", "--frozen", "int8"], "--frozen"),
        (["--targets", "nothing_proj"], "nothing_proj"),
        (["--optimizer", "muon"], "muon"),
    ):
        fails(2, tune + ["--length", "16"] + flags, why)
    fails(2, ["finetune", work("plain"), "--data", work("book.txt"), "--out", work("plain") + "/."], "--out")
    check(not os.path.exists(work("no")), "nothing is left of what was refused", os.listdir(WORK))


def wrong_files():
    base = ["train", work("config.json"), "--out", work("no"), "--length", "16"]
    book = ["--data", work("book.txt")]
    fails(3, base + ["--data", work("none.txt")], "none.txt", "No such file")
    fails(3, base + ["--data", WORK], WORK)
    short = write_file("short.txt", "The sea.\n")
    fails(3, base + ["--data", short, "--hold-out", "0", "--tokenizer", work("plain")], "short.txt", "a window has 17")
    fails(3, base + ["--data", write_file("latin.txt", b"caf\xe9 au lait\n" * 50)], "latin.txt")
    fails(3, base + book + ["--eval-file", write_file("empty.txt", "")], "empty.txt")
    fails(3, ["train", work("none.json"), "--out", work("no")] + book, "none.json")
    fails(3, ["train", write_file("broken.json", "{"), "--out", work("no"), "--tokenizer", work("plain")] + book)
    heads = config("heads.json", num_attention_heads=3, num_key_value_heads=2)
    fails(3, ["train", heads, "--out", work("no")] + book, "heads.json")
    topk = config("topk.json", num_experts_per_tok=9)
    fails(3, ["train", topk, "--out", work("no")] + book, "topk.json")
    tight = config("tight.json", vocab_size=100)
    fails(3, ["train", tight, "--out", work("no")] + book, "tight.json")
    fails(3, ["train", tight, "--out", work("no"), "--tokenizer", work("plain"), "--length", "16"] + book, "vocab_size")
    fails(3, ["finetune", MODELS + "/qwen3_moe", "--out", work("no")] + book, "tokenizer.json")
    fails(3, ["finetune", work("plain"), "--adapter", work("plain"), "--out", work("no")] + book, "adapter")
    check(not os.path.exists(work("no")), "nothing is left of what was refused")


def other_training():
    """A directory that holds something else is left alone."""
    train("held", "--save-every", "4")
    before = model("held"), record("held")
    args = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("held")] + SMALL
    fails(2, args + ["--lr", "1e-3"], "--lr: 0.001", "0.003", "--restart")
    fails(2, args + ["--steps", "9"], "--steps", "--restart")
    fails(2, args + ["--seed", "5"], "--seed", "--restart")
    fails(3, args + ["--data", work("other.txt")], "--data", "--restart")
    fails(3, ["train", config("config2.json", rope_theta=1000.0), *args[2:]], "CONFIG", "--restart")
    check((model("held"), record("held")) == before, "what was there is there")
    shutil.copytree(work("held"), work("torn"))
    for name in os.listdir(work("torn/checkpoints")):
        with open(work("torn/checkpoints/%s/values.safetensors" % name), "r+b") as file:
            file.truncate(100)
    torn = args[:-len(SMALL) - 1] + [work("torn")] + SMALL
    fails(3, torn, "passed over", "none of its checkpoints is whole", "--restart")
    check((model("torn"), record("torn")) == before, "what came out before its checkpoints broke stays")
    shutil.copytree(work("held"), work("bare"))
    shutil.rmtree(work("bare/checkpoints"))
    os.remove(work("bare/training.jsonl"))
    bare = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("bare")] + SMALL
    fails(2, bare, "--out", "--restart")
    left = work("held/model.safetensors.1234-0.tmp"), work("held/model.safetensors.old.tmp")
    for path in left:
        open(path, "w").close()
    train("held", "--lr", "1e-3", "--restart")
    check(not os.path.exists(left[0]), "what a killed run was writing goes")
    check(os.path.exists(left[1]), "what it never wrote stays")
    check(model("held") != before[0] and len(record("held")) == 9, "--restart", len(record("held")))
    train("fresh", "--lr", "1e-3")
    check(model("held") == model("fresh"), "--restart is like the first time")
    fails(1, ["train", work("config.json"), "--data", work("book.txt"), "--out", work("book.txt") + "/x"], "book.txt")
    fails(2, ["train", work("config.json"), "--data", work("book.txt"), "--out", work("book.txt")], "directory")


def too_large():
    """Memory is known to be too little before anything is learned."""
    huge = config("huge.json", hidden_size=16384, moe_intermediate_size=16384, num_experts=512, num_hidden_layers=64)
    args = ["train", huge, "--data", work("book.txt"), "--out", work("no"), "--length", "16"]
    fails(4, args, "huge.json", "are there")
    check(not os.path.exists(work("no")), "nothing is left of what is too large")


def full_disk():
    """A file may not grow beyond what the first checkpoint has: what was saved stays."""
    args = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("disk"), "--quiet"]
    args += SMALL + ["--save-every", "2", "--steps", "200"]

    def limit(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    fails(1, args, preexec_fn=limit(3000))
    check(not os.path.exists(work("disk/checkpoints/step-00000002")), "no half checkpoint")
    p = run(*args, preexec_fn=limit(max(os.path.getsize(work("plain/checkpoints/step-00000008/state.safetensors")) + 10,
                                        20000)))
    check(p.returncode == 0 or "training.jsonl" in p.stderr, "as large as allowed", p.stderr)
    p = run(*args)
    check(p.returncode == 0, "with room it goes on", p.stderr)


def blows_up():
    args = ["train", work("config.json"), "--data", work("book.txt"), "--out", work("nan"), "--quiet"]
    args += ["--steps", "60", "--length", "16", "--units", "2", "--save-every", "1", "--clip", "0", "--schedule"]
    text = fails(1, args + ["constant", "--lr", "1000", "--optimizer", "sgd", "--dropout", "0"], "step ")
    if "no checkpoint" not in text:
        kept = re.search(r"the checkpoint of step (\d+)", text)
        check(kept and os.path.isdir(work("nan/checkpoints/step-%08d" % int(kept.group(1)))), "the last good one", text)


def main():
    write_file("book.txt", text(1500, 1))
    write_file("other.txt", text(400, 2))
    config("config.json")
    comes_out()
    same_as_eval()
    shown()
    best()
    same_bits()
    chats()
    diffusion()
    finetunes()
    merges()
    resumes()
    wrong_flags()
    wrong_files()
    other_training()
    too_large()
    full_disk()
    blows_up()
    print("tools_train: %d passed, %d failed" % (passed, failed))
    shutil.rmtree(WORK, ignore_errors=True)
    return 1 if failed else 0


sys.exit(main())
