#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds the libFuzzer targets and runs each; last line "fuzz: N passed, N failed".

    run.py [--runs N] [TARGET...]

Without --runs: 200000 runs a target, at most 60 seconds; with it there is no other limit.  New inputs
are kept in build/fuzz/corpus/<name>, findings in build/fuzz/findings.  Without a clang that has
libFuzzer everything is skipped: `make test` has then replayed the corpus at least.
"""
import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, "build", "fuzz")
# Freed memory is held back until 16 MB have come together, not 256: every run frees all it took, and
# memory that is still in the processor's cache makes runs cheaper by a third.
ASAN = "quarantine_size_mb=16"
# The largest seeds fit.  Longer inputs take longer and mostly say the same again.
MAX_LEN = {"template": 1024, "tokenizer_json": 1536, "tokenizer_text": 2048}


def have_libfuzzer():
    if not shutil.which("clang"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "x.c")
        with open(source, "w") as f:
            f.write("int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return p && n > 9; }\n")
        return subprocess.run(["clang", "-fsanitize=fuzzer,address,undefined", source, "-o", source + ".out"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def build():
    if not os.path.exists(os.path.join(BUILD, "CTestTestfile.cmake")):
        subprocess.run(["cmake", "--preset", "fuzz"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", BUILD, "-j", str(os.cpu_count() or 2), "--target", "fuzz_targets"],
                   check=True, stdout=subprocess.DEVNULL)


def target(name, *args):
    """What the target says, and whether it ended well."""
    env = dict(os.environ, ASAN_OPTIONS=":".join([ASAN] + os.environ.get("ASAN_OPTIONS", "").split(":")).strip(":"))
    done = subprocess.run([os.path.join(BUILD, "tests", "fuzz", "fuzz_" + name), *args], env=env,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace"), done.returncode == 0


def stood_still(name, text):
    """libFuzzer looks at the clock: when the whole machine was stopped for a while, every target that
    runs has a timeout.  True when the input ends within the time after all."""
    found = re.search(r"Test unit written to (\S*/timeout-\S+)", text)
    if not found or not target(name, "-timeout=10", found.group(1))[1]:
        return False
    os.remove(found.group(1))
    return True


def fuzz(name, runs):
    """True when the target ran without a finding."""
    kept = os.path.join(BUILD, "corpus", name)
    findings = os.path.join(BUILD, "findings", name)
    os.makedirs(kept, exist_ok=True)
    os.makedirs(findings, exist_ok=True)
    dictionary = os.path.join(HERE, name + ".dict")
    options = ["-max_len=%d" % MAX_LEN.get(name, 4096), "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1",
               "-verbosity=0", "-artifact_prefix=" + findings + "/"]
    if os.path.exists(dictionary):
        options.append("-dict=" + dictionary)
    if not runs:
        options.append("-max_total_time=60")
    begin, count, good = time.monotonic(), 0, True
    while good and count < (runs or 1):
        text, good = target(name, "-runs=%d" % ((runs or 200000) - count), *options, kept,
                            os.path.join(HERE, "corpus", name))
        ran = re.search(r"number_of_executed_units:\s*(\d+)", text)
        count += int(ran.group(1)) if ran else 0
        if not good and stood_still(name, text):
            print("fuzz_%s: a timeout after %d runs whose input takes no time: going on" % (name, count))
            good = True
        elif not good or not ran:
            good = False
            print(text[-6000:])
    print("fuzz_%s: %d runs in %.0f s, %s" % (name, count, time.monotonic() - begin,
                                              "no finding" if good else "FAILED (input in %s)" % findings))
    sys.stdout.flush()
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int)
    parser.add_argument("targets", nargs="*")
    args = parser.parse_args()
    names = sorted(os.path.basename(p)[:-2] for p in glob.glob(os.path.join(HERE, "*.c")))
    names = args.targets or [n for n in names if n != "replay"]
    if not have_libfuzzer():
        print("fuzz: 0 passed, 0 failed, %d skipped (no clang with libFuzzer)" % len(names))
        return 0
    build()
    failed = sum(not fuzz(name, args.runs) for name in names)
    print("fuzz: %d passed, %d failed" % (len(names) - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
