#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the tests of this folder; the last line is `python: N passed, N failed, N skipped`.

    run.py [--library build/libcmoe.so] [pattern]

With --library the package is staged beside that shared object, as a wheel would have it; else it
is imported from the source tree.
"""
import argparse
import os
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "..", "..", "python")


def stage(folder, library):
    """python/cmoe and libcmoe.so in one folder, by links."""
    package = os.path.join(folder, "cmoe")
    os.mkdir(package)
    for name in os.listdir(os.path.join(SOURCE, "cmoe")):
        if name.endswith(".py"):
            os.symlink(os.path.abspath(os.path.join(SOURCE, "cmoe", name)),
                       os.path.join(package, name))
    os.symlink(os.path.abspath(library), os.path.join(package, "libcmoe.so"))
    return folder


class Result(unittest.TextTestResult):
    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library")
    parser.add_argument("pattern", nargs="?")
    args = parser.parse_args()
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        sys.path[:0] = [stage(folder, args.library) if args.library else SOURCE, HERE,
                        os.path.join(HERE, "..", "golden", "steps")]
        loader = unittest.TestLoader()
        if args.pattern:
            loader.testNamePatterns = ["*%s*" % args.pattern]
        suite = loader.discover(HERE, top_level_dir=HERE)
        result = unittest.TextTestRunner(sys.stdout, resultclass=Result).run(suite)
    for test, reason in result.skipped:
        print("skipped %s: %s" % (test, reason))
    failed = len(result.failures) + len(result.errors)
    print("python: %d passed, %d failed, %d skipped" % (result.passed, failed,
                                                        len(result.skipped)))
    return 1 if failed or not result.passed else 0


if __name__ == "__main__":
    sys.exit(main())
