#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Loads a random checkpoint of 8 GB and says how long it took beside a plain read, and in how much memory.

    python3 load.py PROGRAM [GIGABYTES] [FOLDER]     at most so many, whole layers; default 8.6

PROGRAM is load.c built.  The checkpoint is made in a temporary folder (below FOLDER) and removed again; without
room for it on the disk, or in memory, the test is skipped.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time

import make_checkpoint


def available_memory():
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def main():
    program = sys.argv[1]
    size = int(float(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("CMOE_LARGE_GB", "8.6")) * 1e9)
    where = sys.argv[3] if len(sys.argv) > 3 else None
    disk = shutil.disk_usage(where or tempfile.gettempdir()).free
    if disk < size * 1.1 or available_memory() < size * 1.3:
        print("skipped: %.1f GB need %.1f GB of disk (%.1f free) and %.1f GB of memory (%.1f free)" % (
            size / 1e9, size * 1.1 / 1e9, disk / 1e9, size * 1.3 / 1e9, available_memory() / 1e9))
        print("large_load: 0 passed, 0 failed, 1 skipped")
        return 0
    with tempfile.TemporaryDirectory(dir=where, prefix="cmoe_large_") as folder:
        begin = time.monotonic()
        total = make_checkpoint.make(folder, size)
        print("made %.2f GB in %.1f s" % (total / 1e9, time.monotonic() - begin), flush=True)
        return subprocess.run([program, folder]).returncode


if __name__ == "__main__":
    sys.exit(main())
