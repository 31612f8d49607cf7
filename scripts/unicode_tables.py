#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes src/text/unicode_ranges.c: general categories of Unicode 16, and what is newer than Unicode 9.

  python3 scripts/unicode_tables.py --old PYTHON36 > src/text/unicode_ranges.c

The interpreter that runs this needs unicodedata of version 16 (its own, or the package unicodedata2
16.0.0 of PyPI); PYTHON36 is a Python 3.6, whose unicodedata is Unicode 9.  The build does not run it.
"""
import argparse
import subprocess
import sys

try:
    import unicodedata2 as ud
except ImportError:
    import unicodedata as ud

OLD = """import unicodedata as u
assert u.unidata_version.startswith("9.")
print(*[c for c in range(0x110000) if u.category(chr(c)) == "Cn"])"""
CATS = "Cn Cc Cf Co Cs Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()


def runs(values):
    out = []
    for c, v in enumerate(values):
        if not out or out[-1][1] != v:
            out.append((c, v))
    return out


def table(rows, per_line=10):
    for i in range(0, len(rows), per_line):
        print("    " + ", ".join(rows[i : i + per_line]) + ",")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--old", required=True, help="a Python 3.6")
    a = ap.parse_args()
    if not ud.unidata_version.startswith("16."):
        sys.exit(f"unicodedata is of version {ud.unidata_version}, want 16")
    unassigned = set(map(int, subprocess.run([a.old, "-c", OLD], check=True, stdout=subprocess.PIPE).stdout.split()))
    category = runs([CATS.index(ud.category(chr(c))) for c in range(0x110000)])
    parts = set()
    for c in unassigned:  # the parts of every pair that composes now and did not then
        if ud.decomposition(chr(c)):
            parts.update(map(ord, ud.normalize("NFD", chr(c))))
    newer = [c in unassigned and bool(ud.combining(chr(c)) or ud.decomposition(chr(c)) or c in parts) for c in range(0x110000)]
    newer = runs(newer)
    print("""/* SPDX-License-Identifier: MIT
 *
 * unicode_ranges.c - made by scripts/unicode_tables.py; do not edit.  Unicode %s and 9.0.0.
 *
 * Neighbours in cmoei_unicode_runs are first << 8 | category: all code points from `first` up to the
 * next entry's have that category (the order of CMOEI_CAT_ in unicode.h).
 */
#include "unicode.h"

/* clang-format off */
const uint32_t cmoei_unicode_runs[] = {""" % ud.unidata_version)
    table([f"0x{c << 8 | v:08x}" for c, v in category])
    print("""};
const int64_t cmoei_unicode_run_count = sizeof cmoei_unicode_runs / sizeof cmoei_unicode_runs[0];

/* Code points that Unicode 9 did not know and that decompose, compose or have a combining class now:
 * first, and one behind the last. */
const uint32_t cmoei_unicode_newer[] = {""")
    table([f"0x{c:05x}" for c, _ in newer[1:]])
    print("""};
const int64_t cmoei_unicode_newer_count = sizeof cmoei_unicode_newer / sizeof cmoei_unicode_newer[0];
/* clang-format on */""")


if __name__ == "__main__":
    main()
