# SPDX-License-Identifier: MIT
"""The binding itself: structs against the headers, tensors as they are, threads, lifetimes."""
import ctypes
import gc
import os
import re
import subprocess
import sys
import threading
import unittest
import weakref

import numpy as np

import cmoe
from cmoe import _native, _tensor
from common import BF16, TestCase

INCLUDE = os.path.join(os.path.dirname(__file__), "..", "..", "include", "cmoe")


def header_structs():
    """name -> [(field, C type)] of every struct of the public headers; "pointer" for pointers."""
    structs = {}
    for name in sorted(os.listdir(INCLUDE)):
        with open(os.path.join(INCLUDE, name), encoding="utf-8") as f:
            text = re.sub(r"/\*.*?\*/", " ", f.read(), flags=re.S)
        for body, struct in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, re.S):
            fields = []
            for line in filter(None, (" ".join(part.split()) for part in body.split(";"))):
                function = re.match(r".*\(\*(\w+)\)\(", line)
                if function:
                    fields.append((function.group(1), "pointer"))
                    continue
                kind, names = re.match(r"((?:const )?\w+) (.*)$", line).groups()
                for field in names.split(","):
                    field = field.strip()
                    count = re.search(r"\[(\d+)\]", field)
                    word = "pointer" if field.startswith("*") else kind.replace("const ", "")
                    if count:
                        word += " x %s" % count.group(1)
                    fields.append((re.search(r"\w+", field).group(0), word))
            structs[struct] = fields
    return structs


def ctypes_word(kind):
    """How header_structs calls a ctypes type."""
    if hasattr(kind, "_length_"):
        return "%s x %d" % (ctypes_word(kind._type_), kind._length_)
    words = {ctypes.c_int32: "int32_t", ctypes.c_uint32: "uint32_t", ctypes.c_int64: "int64_t",
             ctypes.c_size_t: "size_t", ctypes.c_float: "float", ctypes.c_char: "char",
             ctypes.c_void_p: "pointer", ctypes.c_char_p: "pointer"}
    return words.get(kind, kind.__name__)


# Types of the headers that are pointers or integers in disguise.
ALIASES = {"cmoe_log_fn": "pointer", "cmoe_parallel": "pointer", "cmoe_status": "int32_t"}


class Structs(TestCase):
    def test_fields_are_those_of_the_headers(self):
        headers = header_structs()
        checked = 0
        for name, kind in vars(_native).items():
            if name.startswith("cmoe_") and issubclass(kind, ctypes.Structure):
                want = [(f, ALIASES.get(word, word)) for f, word in headers[name]]
                self.assertEqual([(f, ctypes_word(t)) for f, t in kind._fields_], want, name)
                checked += 1
        self.assertGreater(checked, 10)

    def test_every_function_is_there(self):
        for name in _native._PROTOTYPES:
            getattr(_native.lib, name[len("cmoe_"):])


class Foreign:
    """Speaks DLPack and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.device


class Namespaced(Foreign):
    """Also has an array API namespace, so results can come back as its own."""

    def __array_namespace__(self):
        class Namespace:
            @staticmethod
            def from_dlpack(x):
                return Namespaced(np.from_dlpack(x))

        return Namespace


class Tensors(TestCase):
    def test_views_are_the_memory_itself(self):
        base = np.arange(60, dtype=np.float32).reshape(5, 12)
        for a in (base, base[::-1, ::3], base.T, base[1:2], base[:, None, 3], base[:0]):
            t = _tensor.wrap(a, "a")
            self.assertEqual(t.view.data, a.__array_interface__["data"][0])
            self.assertEqual(list(t.view.dims[:a.ndim]), list(a.shape))
            self.assertEqual([s * 4 for s in t.view.strides[:a.ndim]], list(a.strides))

    def test_only_what_a_view_cannot_say_is_copied(self):
        want = cmoe.rms_norm(np.arange(12, dtype=np.float32).reshape(3, 4), None, 1e-6)
        swapped = np.arange(12, dtype=">f4").reshape(3, 4)
        self.same(cmoe.rms_norm(swapped, None, 1e-6), want)
        packed = np.zeros((3, 4), np.dtype([("a", "i1"), ("x", "f4")]))
        packed["x"] = np.arange(12).reshape(3, 4)
        self.same(cmoe.rms_norm(packed["x"], None, 1e-6), want)

    def test_inputs_stay(self):
        x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
        before = x.copy()
        x.setflags(write=False)
        cmoe.rms_norm(x, None, 1e-6, x)
        self.same(x, before)

    def test_dlpack(self):
        x = np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32)
        weights, ids = cmoe.route(x[::2], 2)
        got = cmoe.route(Foreign(x[::2]), 2)
        self.assertIsInstance(got[0], np.ndarray)
        self.same(got[0], weights)
        own = cmoe.route(Namespaced(x[::2]), 2)
        self.assertIsInstance(own[1], Namespaced)
        self.same(own[1].array, ids)
        groups = cmoe.align(Namespaced(ids), 8)
        self.assertIsInstance(groups.first, Namespaced)
        self.fails(cmoe.Error, "CMOE_ERR_DEVICE", "logits: on device 2:0", cmoe.route,
                   Foreign(x, (2, 0)), 2)

    @unittest.skipIf(BF16 is None, "ml_dtypes is not installed")
    def test_bfloat16(self):
        x = np.random.default_rng(3).standard_normal((3, 8)).astype(BF16)
        self.assertEqual(cmoe.rms_norm(x, None, 1e-6).dtype, BF16)
        for got, want in zip(cmoe.route(x, 3), cmoe.route(x.astype(np.float32), 3)):
            self.same(got, want)

    def test_what_is_no_tensor(self):
        for x in ([[1.0, 2.0]], None, 3.0, "x"):
            self.fails(TypeError, "CMOE_ERR_DTYPE", "logits", cmoe.route, x, 1)
        for dtype in (bool, np.complex64, np.uint32, "U3", object):
            self.fails(TypeError, "CMOE_ERR_DTYPE", "logits", cmoe.route,
                       np.zeros((2, 2), dtype), 1)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "rank 7", cmoe.route, np.zeros((1,) * 7), 1)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "logits", cmoe.route, np.zeros(()), 1)


class Contexts(TestCase):
    def test_properties(self):
        for isa in cmoe.isas():
            ctx = cmoe.Context(threads=3, isa=isa)
            self.assertEqual((ctx.threads, ctx.isa, ctx.device), (3, isa, "cpu"))
        self.assertEqual(cmoe.isas()[0], "ref")
        self.assertIn(cmoe.Context().isa, cmoe.isas())

    def test_errors(self):
        self.fails(ValueError, "CMOE_ERR_RANGE", "ref avx2", cmoe.Context, isa="sse")
        self.fails(ValueError, "CMOE_ERR_RANGE", "threads", cmoe.Context, threads=-1)
        self.fails(ValueError, "CMOE_ERR_RANGE", "threads", cmoe.Context, threads=1 << 40)
        self.fails(NotImplementedError, "CMOE_ERR_UNSUPPORTED", "cuda:0", cmoe.Context,
                   device="cuda:0")
        self.fails(ValueError, "CMOE_ERR_ARG", "ctx", cmoe.route, np.zeros((1, 2), np.float32), 1,
                   ctx=1)

    def test_version_and_variants(self):
        self.assertEqual(cmoe.version(), cmoe.__version__)
        rows = cmoe.variants()
        ops = {row.op for row in rows}
        self.assertIn("route", ops)
        for op in ops:
            last = [row for row in rows if row.op == op][-1]
            self.assertEqual((last.isa, last.available), ("ref", True), op)
        for row in rows:
            self.assertEqual(row.available, row.isa in cmoe.isas(), row)

    def test_threads_share_everything(self):
        rng = np.random.default_rng(4)
        x = rng.standard_normal((40, 16)).astype(np.float32)
        w13 = rng.standard_normal((4, 24, 16)).astype(np.float32)
        w2 = rng.standard_normal((4, 16, 12)).astype(np.float32)
        weights, ids = cmoe.route(x[:, :4], 2)
        layer = cmoe.Experts(w13, w2, ctx=cmoe.Context(threads=2))
        want = layer(x, ids, weights)
        wrong = []

        def work():
            for _ in range(20):
                if layer(x, ids, weights).tobytes() != want.tobytes():
                    wrong.append("experts")
                if cmoe.route(x[:, :4], 2)[1].tobytes() != ids.tobytes():
                    wrong.append("route")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(wrong, [])

    def test_experts_keep_their_context(self):
        ctx = cmoe.Context(threads=1)
        gone = weakref.ref(ctx)
        layer = cmoe.Experts(np.ones((1, 4, 3), np.float32), np.ones((1, 3, 2), np.float32),
                             ctx=ctx)
        del ctx
        gc.collect()
        self.assertIsNotNone(gone())
        layer(np.ones((1, 3), np.float32), np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
        del layer
        gc.collect()
        self.assertIsNone(gone())

    @unittest.skipUnless(hasattr(os, "fork"), "no fork here")
    def test_a_fork_computes(self):
        """In a fresh process, because this one has threads."""
        code = ("import os, sys, numpy as np, cmoe\n"
                "x = np.random.default_rng(5).standard_normal((2000, 64)).astype(np.float32)\n"
                "want = cmoe.route(x, 4)[1]\n"
                "child = os.fork()\n"
                "same = (cmoe.route(x, 4)[1] == want).all()\n"
                "if child == 0: os._exit(0 if same else 1)\n"
                "sys.exit(os.waitpid(child, 0)[1])\n")
        path = os.path.dirname(os.path.dirname(os.path.abspath(cmoe.__file__)))
        done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=path),
                              timeout=60, check=False)
        self.assertEqual(done.returncode, 0)

    def test_errors_can_be_caught_as_what_they_are(self):
        for status, kind in (("CMOE_ERR_SHAPE", ValueError), ("CMOE_ERR_DTYPE", TypeError),
                             ("CMOE_ERR_MEMORY", MemoryError), ("CMOE_ERR_IO", RuntimeError)):
            e = _native.error(status, "text")
            self.assertIsInstance(e, kind)
            self.assertIsInstance(e, cmoe.Error)
            self.assertEqual((e.status, str(e)), (status, "text"))
