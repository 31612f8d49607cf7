# SPDX-License-Identifier: MIT
"""rms_norm, sigmoid_mul, add_shared_expert and quantize_rows against the reference."""
import numpy as np

import cmoe
import reference as ref
from common import BF16, NUMPY, TestCase, contexts, strided

TYPES = ("f32", "f16", "f64") + (("bf16",) if BF16 else ())


class Ops(TestCase):
    def draws(self, seed, count=12):
        """(isa, context, name of a type, random array of it, its float64 values)"""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            name = str(rng.choice(TYPES))

            def array(*shape):
                values = rng.standard_normal(shape) * 2
                made = strided(rng, values.astype(NUMPY[name]))
                return made, made.astype(np.float64)

            shape = [int(d) for d in rng.integers(0, 5, 1)] + [int(rng.integers(1, 300))]
            for isa, ctx in contexts():
                yield isa, ctx, name, array, shape

    def test_rms_norm(self):
        for isa, ctx, name, array, shape in self.draws(30):
            (x, x64), (r, r64), (w, w64) = array(*shape), array(*shape), array(shape[1])
            what = "rms_norm %s %s %s" % (isa, name, shape)
            (want, bound), _ = ref.rms_norm(x64, w64, 1e-5, None, name)
            got = cmoe.rms_norm(x, w, 1e-5, ctx=ctx)
            self.assertEqual(got.dtype, x.dtype)
            self.near(got, want, bound, what)
            (want, bound), (total, total_bound) = ref.rms_norm(x64, None, 1e-5, r64, name)
            out, added = cmoe.rms_norm(x, None, 1e-5, r, ctx=ctx)
            self.near(out, want, bound, what + " add")
            self.near(added, total, total_bound, what + " residual")

    def test_sigmoid_mul(self):
        for isa, ctx, name, array, shape in self.draws(31):
            for columns in (1, shape[1]):
                (x, x64), (g, g64) = array(*shape), array(shape[0], columns)
                self.near(cmoe.sigmoid_mul(x, g, ctx=ctx), *ref.sigmoid_mul(x64, g64, name),
                          "sigmoid_mul %s %s %s" % (isa, name, shape))

    def test_add_shared_expert(self):
        for isa, ctx, name, array, shape in self.draws(32):
            for columns in (0, 1, shape[1]):
                (x, x64), (s, s64) = array(*shape), array(*shape)
                g, g64 = array(shape[0], columns) if columns else (None, None)
                self.near(cmoe.add_shared_expert(x, s, g, ctx=ctx),
                          *ref.add_shared_expert(x64, s64, g64, name),
                          "add_shared_expert %s %s %s" % (isa, name, shape))

    def test_quantize_rows(self):
        for isa, ctx, name, array, shape in self.draws(33):
            x, x64 = array(*shape)
            q, scale = cmoe.quantize_rows(x, ctx=ctx)
            want_q, want_scale = ref.quantize(x64)
            self.assertEqual((q.dtype, scale.dtype), (np.int8, np.float32))
            self.same(q, want_q.astype(np.int8), "q %s %s" % (isa, name))
            self.same(scale, want_scale.astype(np.float32), "scale %s %s" % (isa, name))

    def test_any_rank(self):
        rng = np.random.default_rng(34)
        x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
        flat = x.reshape(-1, 5)
        g = rng.standard_normal((2, 3, 4, 1)).astype(np.float32)
        self.same(cmoe.rms_norm(x, None, 1e-6), cmoe.rms_norm(flat, None, 1e-6).reshape(x.shape))
        self.same(cmoe.rms_norm(x[0, 0, 0], None, 1e-6), cmoe.rms_norm(flat[:1], None, 1e-6)[0])
        self.same(cmoe.sigmoid_mul(x, g),
                  cmoe.sigmoid_mul(flat, g.reshape(-1, 1)).reshape(x.shape))
        turned = x.transpose(2, 0, 1, 3)
        self.same(cmoe.rms_norm(turned, None, 1e-6),
                  cmoe.rms_norm(x, None, 1e-6).transpose(2, 0, 1, 3))
        q, scale = cmoe.quantize_rows(x)
        self.assertEqual((q.shape, scale.shape), (x.shape, x.shape[:-1]))
        self.assertEqual(cmoe.quantize_rows(x[:0])[1].shape, (0, 3, 4))

    def test_errors(self):
        x = np.zeros((2, 5), np.float32)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "weight", cmoe.rms_norm, x, x[0, :4], 1e-6)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "residual", cmoe.rms_norm, x, None, 1e-6, x[:1])
        self.fails(ValueError, "CMOE_ERR_SHAPE", "gate", cmoe.sigmoid_mul, x, x[:, :2])
        self.fails(ValueError, "CMOE_ERR_SHAPE", "shared", cmoe.add_shared_expert, x, x[:1], None)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "x", cmoe.quantize_rows, x.astype(np.int64))
