#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a user of the library meets.

headers   each public header compiles alone, as C11 and as C++17, without a warning
symbols   libcmoe.so exports cmoe_* only and needs libc, libm and the loader only; every global of
          libcmoe.a begins with cmoe_ or cmoei_; there is no writable global and no static initialiser
package   an example builds against the installed library through pkg-config, through
          find_package(cmoe) and statically, and prints what its README says
examples  every example of the build folder prints what its README says
readme    the C function of README.md compiles and links, its Python lines run

Last line: "api: N passed, N failed[, N skipped]".
"""
import argparse
import difflib
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
LIBRARIES = re.compile(r"^(libc\.so|libm\.so|libpthread\.so|ld-linux)")


class Failure(Exception):
    pass


def run(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          **more)
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise Failure("%s\nends with status %d:\n%s" % (" ".join(command), done.returncode, text))
    return text


# ---- headers ----------------------------------------------------------------------------------------


def header(compiler, language, standard, name, include):
    """Twice, so that the include guard is tried too."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "alone.c")
        with open(source, "w") as f:
            f.write('#include "%s"\n#include "%s"\ntypedef int not_empty;\n' % (name, name))
        run([compiler, "-x", language, "-std=" + standard, "-fsyntax-only", "-I", include] + WARNINGS + [source])


# ---- symbols ----------------------------------------------------------------------------------------


def exported(library):
    names = [line.split()[-1].split("@")[0] for line in run(["nm", "-D", "--defined-only", library]).splitlines()]
    names = [n for n in names if not re.fullmatch(r"CMOE_(\d+|PRIVATE)", n)]  # version nodes
    wrong = [n for n in names if not n.startswith("cmoe_")]
    if wrong or "cmoe_version" not in names:
        raise Failure("%s exports %s, want cmoe_* only" % (library, wrong or "no cmoe_version"))


def exported_by_engine(library):
    names = [line.split()[-1].split("@")[0] for line in run(["nm", "-D", "--defined-only", library]).splitlines()]
    wrong = [n for n in names if n != "CMOE_0" and (not n.startswith("cmoe_") or n.startswith("cmoe_priv_"))]
    if wrong:
        raise Failure("%s exports %s, want public cmoe_* only" % (library, wrong))


def declared(libraries, include):
    """Every function that a header declares is there to be linked."""
    names = {line.split()[-1].split("@")[0] for library in libraries for line in
             run(["nm", "-D", "--defined-only", library]).splitlines()}
    missing = []
    for path in sorted(glob.glob(os.path.join(include, "cmoe", "*.h"))):
        with open(path, encoding="utf-8") as f:
            text = re.sub(r"/\*.*?\*/", " ", f.read(), flags=re.S)
        for name in re.findall(r"CMOE_API[^;(]*?\b(cmoe_\w+)\s*\(", text):
            if name not in names:
                missing.append("%s of cmoe/%s" % (name, os.path.basename(path)))
    if missing:
        raise Failure("declared, but not in %s:\n  %s" % (" or ".join(libraries), "\n  ".join(missing)))


def needed(library):
    names = re.findall(r"\(NEEDED\).*\[(.*)\]", run(["readelf", "-d", library]))
    wrong = [n for n in names if not LIBRARIES.match(n)]
    if wrong:
        raise Failure("%s needs %s, want libc, libm, pthreads and nothing else" % (library, " ".join(wrong)))


def globals_named(archive, sanitized):
    names = [line.split()[-1] for line in run(["nm", "-g", "--defined-only", archive]).splitlines() if
             len(line.split()) == 3]
    if sanitized:
        names = [n for n in names if not n.startswith("__odr_asan.")]
    wrong = sorted({n for n in names if not n.startswith(("cmoe_", "cmoei_"))})
    if wrong or not names:
        raise Failure("%s defines %s, want cmoe_* and cmoei_* only" % (archive, " ".join(wrong) or "nothing"))


def no_state(archive):
    wrong = []
    for line in run(["objdump", "-t", archive]).splitlines():
        found = re.match(r"[0-9a-f]+ .{7} (\*COM\*|\S+)\t([0-9a-f]+) (.*)$", line)
        if not found or found.group(1) == found.group(3).strip():  # the section's own symbol
            continue
        section = found.group(1)
        if section == "*COM*" or re.match(r"\.(t?data|t?bss|init_array|fini_array|ctors)(?!\.rel\.ro)", section):
            wrong.append("%s in %s" % (found.group(3).strip(), section))
    if wrong:
        raise Failure("%s holds state of its own: %s" % (archive, ", ".join(wrong)))


# ---- examples and the installed package --------------------------------------------------------------


def expected(readme):
    """The block of a README that begins with ```text."""
    with open(readme, encoding="utf-8") as f:
        found = re.search(r"^```text\n(.*?)^```$", f.read(), re.S | re.M)
    if not found:
        raise Failure("%s has no ```text block with the expected output" % readme)
    return found.group(1)


def same_output(command, readme, **more):
    want, got = expected(readme), run(command, **more)
    if want != got:
        raise Failure("".join(difflib.unified_diff(want.splitlines(True), got.splitlines(True), readme,
                                                   " ".join(command))))


def arguments(readme):
    """What the README gives the program, which is run where the README lies: ./NAME ARGUMENTS."""
    with open(readme, encoding="utf-8") as f:
        found = re.search(r"^\./\w+(.*)$", f.read(), re.M)
    return shlex.split(found.group(1)) if found else []


def find_pc(prefix):
    found = glob.glob(os.path.join(prefix, "**", "cmoe.pc"), recursive=True)
    if len(found) != 1:
        raise Failure("want one cmoe.pc under %s, found %s" % (prefix, found))
    return os.path.dirname(found[0])


def by_pkg_config(a, prefix, folder, static):
    """The prefix given at install is another than at configure: the file must find its own place."""
    env = dict(os.environ, PKG_CONFIG_PATH=find_pc(prefix))
    flags = shlex.split(run(["pkg-config", "--cflags", "--libs"] + (["--static"] if static else []) + ["cmoe"],
                            env=env))
    if static:
        flags = ["-l:libcmoe.a" if f == "-lcmoe" else f for f in flags]
    program = os.path.join(folder, "static" if static else "shared")
    example = os.path.join(a.source, "examples", "01_layer")
    run([a.cc, "-std=c11"] + WARNINGS + [os.path.join(example, "main.c"), "-o", program] + flags)
    libdir = shlex.split(run(["pkg-config", "--variable=libdir", "cmoe"], env=env))[0]
    same_output([program], os.path.join(example, "README.md"),
                env={"PATH": os.environ["PATH"]} if static else dict(os.environ, LD_LIBRARY_PATH=libdir))


ENGINE_USER = """
#include <cmoe/engine.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_ctx *ctx = NULL;
    cmoe_model_info info = {.size = sizeof info};
    if (argc != 2 || cmoe_ctx_create(&ctx, NULL, &err) || cmoe_model_plan(ctx, argv[1], NULL, &info, &err)) {
        puts(err.text);
        return 1;
    }
    printf("%s\\n", info.type);
    cmoe_ctx_free(ctx);
    return 0;
}
"""


def engine_by_pkg_config(a, prefix, folder):
    env = dict(os.environ, PKG_CONFIG_PATH=find_pc(prefix))
    flags = shlex.split(run(["pkg-config", "--cflags", "--libs", "cmoe_engine"], env=env))
    source, program = os.path.join(folder, "engine.c"), os.path.join(folder, "engine")
    with open(source, "w") as f:
        f.write(ENGINE_USER)
    run([a.cc, "-std=c11"] + WARNINGS + [source, "-o", program] + flags)
    libdir = shlex.split(run(["pkg-config", "--variable=libdir", "cmoe"], env=env))[0]
    got = run([program, os.path.join(a.source, "tests", "golden", "models", "qwen3_moe")],
              env=dict(os.environ, LD_LIBRARY_PATH=libdir))
    if got != "qwen3_moe\n":
        raise Failure("the engine says %r, want qwen3_moe" % got)


def by_cmake(a, prefix, folder):
    example = os.path.join(a.source, "examples", "01_layer")
    build = os.path.join(folder, "consumer")
    run(["cmake", "-S", os.path.join(a.source, "tests", "api", "consumer"), "-B", build,
         "-DCMAKE_PREFIX_PATH=" + prefix, "-DCMAKE_C_COMPILER=" + a.cc, "-DEXAMPLE=" + example + "/main.c"])
    run(["cmake", "--build", build])
    for program in ("shared", "static"):
        same_output([os.path.join(build, program)], os.path.join(example, "README.md"))


def by_source(a, folder):
    """The tree inside another build: only the library, and nothing of ours installed."""
    example = os.path.join(a.source, "examples", "01_layer")
    build = os.path.join(folder, "inside")
    run(["cmake", "-S", os.path.join(a.source, "tests", "api", "consumer"), "-B", build,
         "-DCMOE_SOURCE=" + a.source, "-DCMAKE_C_COMPILER=" + a.cc, "-DEXAMPLE=" + example + "/main.c"])
    run(["cmake", "--build", build, "-j", "2"])
    for program in ("shared", "static"):
        same_output([os.path.join(build, program)], os.path.join(example, "README.md"))
    if os.path.exists(os.path.join(build, "cmoe", "tests")):
        raise Failure("the tests were built inside another project")


def one_install(a, folder):
    prefix = os.path.join(folder, "a prefix")  # with a blank, which a sloppy script trips over
    run(["cmake", "--install", a.build, "--prefix", prefix])
    for name in os.listdir(os.path.join(a.source, "include", "cmoe")):
        if not os.path.isfile(os.path.join(prefix, "include", "cmoe", name)):
            raise Failure("include/cmoe/%s is not installed" % name)
    return prefix


# ---- README --------------------------------------------------------------------------------------------


def block(a, language):
    with open(os.path.join(a.source, "README.md"), encoding="utf-8") as f:
        found = re.search(r"^```%s\n(.*?)^```$" % language, f.read(), re.S | re.M)
    if not found:
        raise Failure("README.md has no ```%s block" % language)
    return found.group(1)


def readme_c(a):
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "moe.c")
        with open(source, "w") as f:
            f.write(block(a, "c"))
        run([a.cc, "-std=c11", "-shared", "-fPIC", "-I", os.path.join(a.source, "include")] + WARNINGS +
            [source, "-o", os.path.join(folder, "moe.so"), "-L", a.build, "-lcmoe", "-Wl,--no-undefined"])


def readme_python(a, python):
    env = dict(os.environ, PYTHONPATH=os.path.join(a.source, "python"))
    run([python, "-c", block(a, "python")], env=env)


def check_readme(t, a):
    if a.sanitized == "yes":
        t.skip("README", "a sanitized library is not for others to link", 2)
        return
    t.check("README, C", readme_c, a)
    for python in (sys.executable, "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import numpy"], stderr=subprocess.DEVNULL).returncode == 0:
            t.check("README, Python", readme_python, a, python)
            return
    t.skip("README, Python", "no numpy")


# ---- all of it ---------------------------------------------------------------------------------------


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, title, function, *args, **more):
        try:
            result = function(*args, **more)
        except Failure as e:
            self.failed += 1
            print("FAIL %s: %s" % (title, e))
            return None
        self.passed += 1
        return result if result is not None else True

    def skip(self, title, why, n=1):
        self.skipped += n
        print("skipped: %s (%s)" % (title, why))


def check_headers(t, a, include):
    for path in sorted(glob.glob(os.path.join(include, "cmoe", "*.h"))):
        name = "cmoe/" + os.path.basename(path)
        t.check(name + " as C11", header, a.cc, "c", "c11", name, include)
        if shutil.which(a.cxx):
            t.check(name + " as C++17", header, a.cxx, "c++", "c++17", name, include)
        else:
            t.skip(name + " as C++17", "no " + a.cxx)


def check_symbols(t, a, include):
    shared, archive = os.path.join(a.build, "libcmoe.so"), os.path.join(a.build, "libcmoe.a")
    engine = os.path.join(a.build, "libcmoe_engine.so")
    t.check("globals of libcmoe.a", globals_named, archive, a.sanitized == "yes")
    if a.sanitized == "yes":
        t.skip("exported symbols, libraries, state", "a sanitizer adds its own", 7)
        return
    t.check("exported symbols", exported, shared)
    t.check("exported symbols of the engine", exported_by_engine, engine)
    t.check("declared and defined", declared, [shared, engine], include)
    t.check("needed libraries", needed, shared)
    t.check("no global state", no_state, archive)
    engine_archive = os.path.join(a.build, "libcmoe_engine.a")
    t.check("globals of libcmoe_engine.a", globals_named, engine_archive, False)
    t.check("no global state in the engine", no_state, engine_archive)


def check_package(t, a):
    if a.sanitized == "yes":
        t.skip("installed package", "a sanitized library is not for installing", 6)
        return
    with tempfile.TemporaryDirectory() as folder:
        prefix = t.check("install", one_install, a, folder)
        if not prefix:
            return
        t.check("example by pkg-config", by_pkg_config, a, prefix, folder, False)
        t.check("example by pkg-config, static", by_pkg_config, a, prefix, folder, True)
        t.check("engine by pkg-config", engine_by_pkg_config, a, prefix, folder)
        t.check("example by find_package", by_cmake, a, prefix, folder)
        t.check("example by add_subdirectory", by_source, a, folder)


def check_examples(t, a):
    for readme in sorted(glob.glob(os.path.join(a.source, "examples", "*", "README.md"))):
        name = os.path.basename(os.path.dirname(readme))
        program = os.path.join(a.build, "examples", name)
        if os.path.exists(program):
            t.check("examples/" + name, same_output, [program] + arguments(readme), readme,
                    cwd=os.path.dirname(readme))
        else:
            t.skip("examples/" + name, "not built: what it needs was not found")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("--source", "--build", "--cc"):
        parser.add_argument(option, required=True)
    parser.add_argument("--cxx", default="g++")
    parser.add_argument("--sanitized", default="no")
    a = parser.parse_args()
    a.source, a.build = os.path.abspath(a.source), os.path.abspath(a.build)
    include = os.path.join(a.source, "include")
    t = Tally()
    check_headers(t, a, include)
    check_symbols(t, a, include)
    check_package(t, a)
    check_examples(t, a)
    check_readme(t, a)
    print("api: %d passed, %d failed%s" % (t.passed, t.failed, ", %d skipped" % t.skipped if t.skipped else ""))
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
