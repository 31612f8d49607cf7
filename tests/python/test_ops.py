# SPDX-License-Identifier: MIT
"""rms_norm, sigmoid_mul, add_shared_expert, quantize_rows and gdn_decode_pack against numpy."""
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

    def gdn_case(self, rng, batch, heads, width, slack, grouped, bias, silu):
        """What gdn_decode_pack is given, as float32, and what it must give, in float64."""
        key_heads, key_dim, value_heads, value_dim = heads
        q, v, share = key_heads * key_dim, value_heads * value_dim, value_heads // key_heads
        normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        qkvz, ba = normal(batch, 2 * q + 2 * v), normal(batch, 2 * value_heads)
        weight, state = normal(2 * q + v, width), normal(6, 2 * q + v, width - 1 + slack)
        extra = normal(2 * q + v) if bias else None
        index = rng.permutation(6)[:batch]
        index[rng.random(batch) < .3] = -1
        parts = [qkvz[:, :q], qkvz[:, q:2 * q], qkvz[:, 2 * q:2 * q + v], qkvz[:, 2 * q + v:]]
        gates = [ba[:, :value_heads], ba[:, value_heads:]]
        if grouped:
            cuts = np.cumsum([key_dim, key_dim, share * value_dim])
            parts = np.split(qkvz.reshape(batch, key_heads, -1), cuts, -1)
            gates = np.split(ba.reshape(batch, key_heads, -1), 2, -1)
        parts = [p.reshape(batch, -1).astype(np.float64) for p in parts]
        x = np.concatenate(parts[:3], 1)
        moved, y = state.copy(), np.zeros_like(x)
        bound = np.zeros_like(x)
        for row in np.nonzero(index >= 0)[0]:
            window = np.concatenate([state[index[row], :, :width - 1], x[row][:, None]], 1)
            terms = window.astype(np.float64) * weight
            terms = np.concatenate([terms, (extra if bias else np.zeros(2 * q + v))[:, None]], 1)
            y[row] = terms.sum(1)
            # A chain of width fused multiply-adds; SiLU's slope is below 1.1, its error 4.2 units.
            bound[row] = np.abs(terms).sum(1) * (width * 1.1 + 5) * 2.0 ** -23
            moved[index[row], :, :width - 1] = window[:, 1:]
        y = y / (1 + np.exp(-y)) if silu else y
        alive = (index >= 0)[:, None]
        want = [y[:, :q], y[:, q:2 * q], y[:, 2 * q:], parts[3] * alive]
        want += [g.reshape(batch, -1) * alive for g in gates]
        bounds = [bound[:, :q], bound[:, q:2 * q], bound[:, 2 * q:], 0, 0, 0]
        return (qkvz, ba, weight, state, index, extra), want, bounds, moved

    def test_gdn_decode_pack(self):
        rng = np.random.default_rng(35)
        for draw in range(16):
            heads = (2, 5, 4, 3) if draw % 3 else (1, 16, 2, 33)
            flags = dict(grouped=bool(draw & 1), silu=bool(draw & 2))
            (qkvz, ba, weight, state, index, bias), want, bounds, moved = self.gdn_case(
                rng, 4, heads, 2 + draw % 4, draw % 2, bias=bool(draw & 4), **flags)
            index = index.astype(np.int64 if draw & 8 else np.int32)
            for isa, ctx in contexts():
                what = "gdn_decode_pack %s %d" % (isa, draw)
                memory = strided(rng, state.copy())
                while min(memory.strides) < 0:  # an output has none
                    memory = strided(rng, state.copy())
                got = cmoe.gdn_decode_pack(
                    strided(rng, qkvz), strided(rng, ba), strided(rng, weight), memory, index,
                    key_heads=heads[0], key_dim=heads[1], value_heads=heads[2],
                    value_dim=heads[3], bias=bias, ctx=ctx, **flags)
                self.assertEqual([g.shape[1:] for g in got],
                                 [heads[:2]] * 2 + [heads[2:]] * 2 + [heads[2:3]] * 2)
                for name, result, right, bound in zip(got._fields, got, want, bounds):
                    self.near(result.reshape(4, -1), right, bound, what + " " + name)
                self.same(memory, moved, what + " state")

    def test_gdn_decode_pack_errors(self):
        sizes = dict(key_heads=1, key_dim=2, value_heads=1, value_dim=2)
        x, ba = np.zeros((2, 8), np.float32), np.zeros((2, 2), np.float32)
        w, state, index = x[:, :3].repeat(3, 0), np.zeros((3, 6, 2), np.float32), np.arange(2)
        pack = cmoe.gdn_decode_pack
        self.fails(ValueError, "CMOE_ERR_RANGE", "index[0] and index[1] are both 2", pack, x, ba, w,
                   state, np.full(2, 2), **sizes)
        self.fails(ValueError, "CMOE_ERR_RANGE", "index[1] = 3", pack, x, ba, w, state,
                   np.array([0, 3]), **sizes)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "qkvz", pack, x[:, :7], ba, w, state, index,
                   **sizes)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "state", pack, x, ba, w, state.astype(np.int32),
                   index, **sizes)
        self.fails(ValueError, "CMOE_ERR_RANGE", "key_dim = 0", pack, x, ba, w, state, index,
                   **dict(sizes, key_dim=0))
        fixed = state.copy()
        fixed.flags.writeable = False
        self.fails(ValueError, "CMOE_ERR_ARG", "state: read-only", pack, x, ba, w, fixed, index,
                   **sizes)
        self.fails(ValueError, "CMOE_ERR_ARG", "state: foreign byte order", pack, x, ba, w,
                   state.astype(state.dtype.newbyteorder()), index, **sizes)

    def test_errors(self):
        x = np.zeros((2, 5), np.float32)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "weight", cmoe.rms_norm, x, x[0, :4], 1e-6)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "residual", cmoe.rms_norm, x, None, 1e-6, x[:1])
        self.fails(ValueError, "CMOE_ERR_SHAPE", "gate", cmoe.sigmoid_mul, x, x[:, :2])
        self.fails(ValueError, "CMOE_ERR_SHAPE", "shared", cmoe.add_shared_expert, x, x[:1], None)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "x", cmoe.quantize_rows, x.astype(np.int64))
