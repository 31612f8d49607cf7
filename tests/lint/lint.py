#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a compiler does not check: who includes whom, what src/ must not call, licence, format.

Each rule carries samples that it must flag and samples that it must let pass; they are tried first,
so a rule that has gone blind is a failure too.  Last line: "lint: N passed, N failed".
"""
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CODE = ("include", "src", "tools", "tests", "examples", "bench", "python", "scripts", "cmake", ".ci")
CLANG_FORMAT = 14  # other versions format a few constructs differently


# ---- C without comments and strings: same length, same lines --------------------------------------

TOKENS = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)


def blank(match):
    return re.sub(r"[^\n]", " ", match.group())


def bare(text):
    """Keeps #include "..." lines readable; everything else in quotes or comments is blanked."""
    lines = text.split("\n")
    stripped = TOKENS.sub(blank, text).split("\n")
    return "\n".join(a if a.startswith("#include") else b for a, b in zip(lines, stripped))


# ---- words that src/ must not use ------------------------------------------------------------------

# name, pattern on bare(text), {file: why it may}, samples that must be flagged, samples that pass
WORDS = [
    ("getenv: the environment is the caller's", r"\b(?:secure_)?getenv\s*\(|\benviron\b", {},
     ['x = getenv("A");'], ["cmoe_getenv_free(x);", "/* getenv( */"]),
    ("printing: errors are returned, the log hook speaks",
     r"(?<![.>\w])(?:v?f?printf|v?dprintf|puts|fputs|putchar|fputc|putc|fwrite|perror|write)\s*\(|\bstd(?:out|err)\b", {},
     ['printf("x");', "fprintf(f, y);", 'perror("x");', "write(1, x, n);"],
     ["snprintf(b, n, f);", "vsnprintf(b, n, f, a);", "cmoei_options_write(a);", '"printf(x)"',
      "__attribute__((format(printf, f, a)))"]),
    ("stopping: every failure ends in a status",
     r"\b(?:exit|_exit|_Exit|quick_exit|abort|raise|kill|__builtin_trap|longjmp)\s*\(", {},
     ["exit(1);", "abort ();", "_exit(0);"], ["on_exit_x(1);", "/* abort() */"]),
    ("assert: CMOE_ASSERT, which release compiles out", r"(?<![A-Za-z_])assert\s*\(",
     {"src/core/core.h": "defines CMOE_ASSERT"}, ["assert(x);"],
     ["CMOE_ASSERT(x);", "_Static_assert(1, x);", "static_assert(1);"]),
    ("allocation: cmoei_alloc, at create only; scratch comes from the arena",
     r"(?<![.>\w])(?:malloc|calloc|realloc|reallocarray|free|aligned_alloc|posix_memalign|memalign|strdup|strndup|asprintf"
     r"|alloca|mmap|munmap)\s*\(",
     {"src/core/ctx.c": "the default allocator", "src/weights/file.c": "maps files",
      "src/models/tape.c": "maps packed weights"},
     ["p = malloc(n);", "free(p);", "p = strdup(s);"],
     ["cmoei_alloc(c, n, w, p, e);", "cmoei_free(c, p, n);", "a.free(a.user, p, n);", "o->allocator.alloc(u);"]),
    ("global state: tables are const, the rest hangs on the context",
     r"(?m)^[ \t]+static (?!inline|const )[^;(\n]*(?:=|;|\[)"                  # static local
     r"|^static (?!inline|const |_Noreturn)(?:[^;(){}\n]*(?:=|;|\[)|(?:struct|union)[^;(){}\n]*\{)"
     r"|^(?:static )?const (?!struct \{)[^;(){}\n=]*\*\s*(?!const)\w+\s*\["     # array of pointers, not const
     r"|^(?:unsigned |signed )?(?:int|long|char|float|double|bool|size_t|u?int\d+_t|_Atomic[^;(]*|volatile[^;(]*)"
     r"\s+\**\w+(?:\[[^]]*\])?\s*(?:=|;)"
     r"|\b(?:_Thread_local|__thread|thread_local|pthread_once|call_once)\b"
     r"|__attribute__\s*\(\(\s*(?:constructor|destructor)", {},
     ["static int counter;", "static float t[4] = {1};", "static struct {\n int a;\n} x;", "    static int n = 0;",
      "int state = 1;", "static const char *names[] = {0};", "static _Thread_local int e;", "_Atomic int n;",
      "__attribute__((constructor)) static void f(void)\n{\n}"],
     ["static const int t[] = {1};", "static const struct {\n int a;\n} x[] = {{1}};",
      "static const char *const names[] = {0};", "static int f(int a)\n{\n}", "static inline int f(void)\n{\n}",
      "typedef struct x {\n    _Atomic int n;\n} x;", "int f(void);", "    int n = 0;",
      "const cmoei_combine_kernel rows[] = {", "static void f(cmoe_ctx *c, int64_t n,\n              int m)\n{\n}",
      "static cmoe_status f(const x *a)\n{\n}", "struct x {\n    int a;\n};", "    static const int t[2] = {0, 1};"]),
    ("fast maths: results would depend on the compiler",
     r"#\s*pragma\s+(?:STDC\s+FP_CONTRACT\s+ON|GCC\s+optimize|clang\s+fp)|__attribute__\s*\(\(\s*optimize", {},
     ["#pragma STDC FP_CONTRACT ON", "__attribute__((optimize(1))) f();"], ["#pragma GCC unroll 4"]),
]

UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def files(suffixes, folders=CODE):
    for folder in folders:
        for where, below, names in os.walk(os.path.join(ROOT, folder)):
            below[:] = sorted(d for d in below if d not in ("build", "__pycache__", ".git", "node_modules"))
            for name in sorted(names):
                if name.endswith(suffixes):
                    yield os.path.relpath(os.path.join(where, name), ROOT)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def hits(pattern, text):
    """Line numbers where the pattern matches code."""
    code = bare(text)
    return [code.count("\n", 0, m.end()) + 1 for m in re.finditer(pattern, code)]


def check_words(name, pattern, allowed):
    for path in files((".c", ".h"), ("src",)):
        if path not in allowed:
            for line in hits(pattern, read(path)):
                yield "%s:%d: %s" % (path, line, name)


# ---- who includes whom -----------------------------------------------------------------------------


def parse_layers(text):
    """{folder: set of folders}; ValueError when a line names a folder that does not stand above it."""
    layers = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        folder, _, uses = line.partition(":")
        uses = set(uses.split())
        for below in sorted(uses - set(layers)):
            raise ValueError("layers.txt:%d: %s uses %s, which does not stand above it" % (number, folder, below))
        layers[folder.strip()] = uses | {"core"} & set(layers)
    return layers


# Public headers that are not named after their folder.
HEADER_FOLDERS = {"base": "core", "attention": "ops", "trainable": "matmul", "model": "models", "engine": "engine"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def owner(path, layers):
    """The folder that a file of src/ or include/cmoe belongs to; None for the header of all."""
    parts = path.split("/")
    if parts[0] == "src":
        return parts[1]
    name = parts[-1][:-2]
    if name in HEADER_FOLDERS:
        return HEADER_FOLDERS[name]
    return name if name in layers else None


def bad_includes(path, text, layers, exists):
    folder = owner(path, layers)
    for match in INCLUDE.finditer(text):
        target = match.group(1)
        where = "%s:%d" % (path, text.count("\n", 0, match.start(1)) + 1)
        if ".." in target.split("/"):
            yield "%s: includes \"%s\", want a path from src/" % (where, target)
            continue
        if target.startswith("cmoe/"):
            used = owner("include/" + target, layers)
            if not exists("include/" + target) or used is None:
                yield "%s: includes \"%s\", want the header of one subject" % (where, target)
                continue
        elif "/" in target:
            used = target.split("/")[0]
            if not exists("src/" + target):
                yield "%s: includes \"%s\", which is not in src/" % (where, target)
                continue
        else:
            if not exists(os.path.join(os.path.dirname(path), target)):
                yield "%s: includes \"%s\", which does not lie beside it" % (where, target)
            continue
        if used != folder and used not in layers[folder]:
            yield "%s: %s may not use %s (tests/lint/layers.txt)" % (where, folder, used)


def check_includes():
    layers = parse_layers(read("tests/lint/layers.txt"))
    exists = lambda path: os.path.isfile(os.path.join(ROOT, path))
    for path in list(files((".c", ".h"), ("src",))) + list(files((".h",), ("include",))):
        if path == "include/cmoe/cmoe.h":
            continue
        if owner(path, layers) not in layers:
            yield "%s: its folder is not in tests/lint/layers.txt" % path
            continue
        yield from bad_includes(path, read(path), layers, exists)


def bad_public(path, text, exists):
    """Programs and examples see what a user sees: installed headers, and what lies beside them."""
    for match in INCLUDE.finditer(text):
        target = match.group(1)
        if target.startswith("cmoe/") and exists("include/" + target):
            continue
        beside = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if beside.split("/")[0] == path.split("/")[0] and exists(beside):
            continue
        yield "%s:%d: includes \"%s\", want a public header" % (
            path, text.count("\n", 0, match.start(1)) + 1, target)


def check_public():
    exists = lambda path: os.path.isfile(os.path.join(ROOT, path))
    for path in files((".c", ".h"), ("tools", "examples")):
        yield from bad_public(path, read(path), exists)


# ---- licence, unfinished work, format --------------------------------------------------------------


def check_spdx():
    for path in ["Makefile", "CMakeLists.txt"] + list(files((".c", ".h", ".py", ".sh", ".cmake", "CMakeLists.txt"))):
        if "SPDX-License-Identifier: MIT" not in "\n".join(read(path).split("\n")[:3]):
            yield "%s:1: no SPDX-License-Identifier line" % path


def check_unfinished():
    for path in ["Makefile", "CMakeLists.txt"] + list(files((".c", ".h", ".py", ".sh", ".cmake", "CMakeLists.txt"))):
        text = read(path)
        for match in UNFINISHED.finditer(text):
            yield "%s:%d: %s belongs in an issue" % (path, text.count("\n", 0, match.start()) + 1, match.group())


def check_whitespace():
    for path in files((".c", ".h", ".py", ".sh", ".txt", ".md", ".cmake", ".in"), CODE + ("docs",)):
        text = read(path)
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip() or "\t" in line:
                yield "%s:%d: tab or trailing blank" % (path, number)
        if text and not text.endswith("\n"):
            yield "%s: no newline at its end" % path


def clang_format():
    """The program, or why there is none."""
    for name in ("clang-format-%d" % CLANG_FORMAT, "clang-format"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], stdout=subprocess.PIPE).stdout.decode()
            version = re.search(r"version (\d+)", said)
            if version and int(version.group(1)) == CLANG_FORMAT:
                return name, None
            return None, "format check needs clang-format %d, here is: %s" % (CLANG_FORMAT, said.strip())
    return None, "format check needs clang-format %d, which is not installed" % CLANG_FORMAT


def check_format(program):
    sources = list(files((".c", ".h"), ("include", "src", "tools", "tests", "examples", "bench")))
    done = subprocess.run([program, "--dry-run", "-Werror", "--style=file"] + sources, cwd=ROOT,
                          stderr=subprocess.PIPE)
    for line in done.stderr.decode().splitlines():
        if "error:" in line:
            yield line
    if done.returncode and b"error:" not in done.stderr:
        yield "clang-format failed: " + done.stderr.decode()


# ---- the rules against their own samples -----------------------------------------------------------


def check_self():
    for name, pattern, _, bad, good in WORDS:
        for sample in bad:
            if not hits(pattern, sample):
                yield "blind: \"%s\" does not flag %r" % (name, sample)
        for sample in good:
            if hits(pattern, sample):
                yield "over-eager: \"%s\" flags %r" % (name, sample)
    layers = parse_layers("core:\nalign:\nmatmul: align\nroute: matmul\n")
    known = {"src/align/align.h", "src/route/route.h", "src/core/core.h", "src/matmul/m.h", "include/cmoe/align.h",
             "include/cmoe/base.h", "include/cmoe/cmoe.h", "tools/cli.h", "src/align/own.h"}.__contains__
    for path, target, fine in [
            ("src/matmul/a.c", "align/align.h", True), ("src/align/a.c", "core/core.h", True),
            ("src/align/a.c", "own.h", True), ("src/align/a.c", "cmoe/base.h", True),
            ("src/align/a.c", "matmul/m.h", False),                                  # up
            ("src/route/a.c", "align/align.h", False),                               # sideways
            ("src/core/a.c", "align/align.h", False), ("src/core/a.c", "cmoe/align.h", False),
            ("include/cmoe/align.h", "matmul/m.h", False), ("src/align/a.c", "../core/core.h", False),
            ("src/align/a.c", "route.h", False), ("src/align/a.c", "cmoe/cmoe.h", False)]:
        found = list(bad_includes(path, '#include "%s"\n' % target, layers, known))
        if bool(found) == fine:
            yield "includes: %s -> %s is %s" % (path, target, found or "let pass")
    for path, target, fine in [("tools/a.c", "cmoe/align.h", True), ("tools/a.c", "cli.h", True),
                               ("tools/a.c", "core/core.h", False), ("examples/x/a.c", "../../src/core/core.h", False)]:
        if bool(list(bad_public(path, '#include "%s"\n' % target, known))) == fine:
            yield "public headers: %s -> %s is judged wrongly" % (path, target)
    for text in ("a: b\nb:\n", "a: a\n"):
        try:
            parse_layers(text)
            yield "layers: %r is accepted" % text
        except ValueError:
            pass
    if UNFINISHED.search("to do") or not UNFINISHED.search("/* TO" + "DO: x */"):
        yield "unfinished work: judged wrongly"


def main():
    rules = [("the rules flag what they must", check_self())]
    rules += [(name, check_words(name, pattern, allowed)) for name, pattern, allowed, _, _ in WORDS]
    rules += [("includes point down", check_includes()),
              ("tools and examples use public headers", check_public()),
              ("SPDX line", check_spdx()), ("no unfinished work", check_unfinished()),
              ("no tabs, no trailing blanks", check_whitespace())]
    program, why_not = clang_format()
    if program:
        rules.append(("format", check_format(program)))
    failed = 0
    for name, complaints in rules:
        try:
            found = list(complaints)
        except (ValueError, UnicodeDecodeError) as e:
            found = [str(e)]
        failed += bool(found)
        for text in found[:50]:
            print(text)
        if found:
            print("FAILED: %s (%d)" % (name, len(found)))
    if why_not:
        print("skipped: " + why_not)
    print("lint: %d passed, %d failed%s" % (len(rules) - failed, failed, ", 1 skipped" if why_not else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
