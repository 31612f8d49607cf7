#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the tests of a build folder through ctest and adds up their closing lines.

Every test program ends with "name: N passed, N failed" or "..., N skipped".  A program that dies, is
stopped by its timeout, or forgets that line counts as one failure, whatever it printed before.
The last line printed here is the sum; the exit status is 0 only when nothing failed.
"""
import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

CLOSING = re.compile(r"^\S.*: (\d+) passed, (\d+) failed(?:, (\d+) skipped)?(?: \(.*\))?$")
KEEP = str(64 << 20)  # bytes of output; ctest keeps 1 KiB of a passing test otherwise


def closing(text):
    """(passed, failed, skipped) of the last closing line, or None."""
    for line in reversed(text.splitlines()):
        found = CLOSING.match(line.rstrip())
        if found:
            return [int(n or 0) for n in found.groups()]
    return None


def tally(passed_by_ctest, text):
    """(counts, complaint): what one test program adds to the sum."""
    counts = closing(text)
    if counts is None:
        return [0, 1, 0], "died or was stopped before its closing line"
    if not passed_by_ctest and counts[1] == 0:
        return [counts[0], 1, counts[2]], "ended badly behind a closing line without failures"
    if counts[1]:
        return counts, "%d failed" % counts[1]
    return counts, None


def self_test():
    """A sum that cannot notice a failure is worth nothing."""
    good = "x\nunit_a: 3 passed, 0 failed\n"
    assert tally(True, good) == ([3, 0, 0], None)
    assert tally(True, "api: 3 passed, 0 failed, 2 skipped\n") == ([3, 0, 2], None)
    assert tally(False, good)[0] == [3, 1, 0]
    assert tally(True, "unit_a: 3 passed, 2 failed\n")[0] == [3, 2, 0]
    assert tally(True, "")[0] == [0, 1, 0] and tally(False, "Segmentation fault")[0] == [0, 1, 0]


def ctest(build, args, report):
    command = ["ctest", "--test-dir", build, "--output-junit", report, "--output-on-failure",
               "-j", str(args.jobs), "--test-output-size-passed", KEEP,
               "--test-output-size-failed", KEEP]
    if args.label:
        command += ["-L", "^%s$" % args.label]
    if args.exclude:
        command += ["-LE", "^%s$" % args.exclude]
    # ThreadSanitizer's shadow memory has a fixed place, which address randomisation may occupy.
    if os.path.basename(build) == "tsan" and shutil.which("setarch"):
        command = ["setarch", platform.machine(), "-R"] + command
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build")
    parser.add_argument("--label", help="only tests with this label")
    parser.add_argument("--exclude", help="no tests with this label")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print what the programs print, too")
    args = parser.parse_args()
    self_test()
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "junit.xml")
        ctest(os.path.abspath(args.build), args, report)
        cases = list(xml.parse(report).getroot()) if os.path.exists(report) else []
    total, complaints = [0, 0, 0], []
    for case in cases:
        if case.get("status") == "disabled":
            continue
        text = case.findtext("system-out") or ""
        if args.show and case.get("status") == "run":  # ctest shows those that failed itself
            print("\n" + text.rstrip())
        counts, complaint = tally(case.get("status") == "run", text)
        total = [a + b for a, b in zip(total, counts)]
        if complaint:
            complaints.append("FAILED %s: %s" % (case.get("name"), complaint))
    if not cases:
        total[1] += 1
        complaints.append("FAILED: no test%s in %s" %
                          (" with label " + args.label if args.label else "", args.build))
    print("\n".join([""] + complaints))
    print("%d passed, %d failed" % tuple(total[:2]) + (", %d skipped" % total[2] if total[2] else ""))
    return 1 if total[1] else 0


if __name__ == "__main__":
    sys.exit(main())
