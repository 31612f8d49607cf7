# SPDX-License-Identifier: MIT
"""experts and Experts against the reference in float64, packed and not."""
import numpy as np

import cmoe
import reference as ref
from common import BF16, NUMPY, TestCase, contexts, misaligned, strided


def draw(rng, tokens=5, topk=2, experts=4, hidden=24, inter=13, transposed=False, bias=False,
         activation="silu", dtype=np.float32):
    """(x, w13, w2, ids, weights), {biases}"""
    columns = inter if activation == "relu2" else 2 * inter
    w13 = (rng.standard_normal((experts, columns, hidden)) * hidden ** -0.5).astype(dtype)
    w2 = (rng.standard_normal((experts, hidden, inter)) * inter ** -0.5).astype(dtype)
    if transposed:
        w13, w2 = (np.ascontiguousarray(w.swapaxes(1, 2)) for w in (w13, w2))
    x = (rng.standard_normal((tokens, hidden)) * 2).astype(dtype)
    ids = rng.integers(-1, experts + 1, (tokens, topk)).astype(rng.choice([np.int32, np.int64]))
    weights = rng.random((tokens, topk)).astype(np.float32)
    biases = {}
    if bias:
        biases = {"bias13": rng.standard_normal((experts, columns)).astype(np.float32),
                  "bias2": rng.standard_normal((experts, hidden)).astype(np.float32)}
    return [x, w13, w2, ids, weights], biases


def name_of(dtype):
    return next(name for name, d in NUMPY.items() if d == dtype)


class Experts(TestCase):
    def check(self, args, o, biases, ctx, what, rng=None):
        options = dict(o, up_first=not o.get("gate_first", True))
        wide = [a.astype(np.float64) if a.dtype.kind not in "iu" else a for a in args]
        want, bound = ref.experts(*wide, out_dtype=name_of(args[0].dtype), **biases, **options)
        given = args if rng is None else [strided(rng, a) for a in args]
        once = cmoe.experts(*given, ctx=ctx, **biases, **o)
        x, w13, w2, ids, weights = given
        packed = cmoe.Experts(w13, w2, ctx=ctx, **biases, **o)
        self.assertEqual(once.dtype, args[0].dtype)
        self.near(once, want, bound, what)
        self.same(packed(x, ids, weights), once, what + ": packed and not")
        return packed

    def test_options(self):
        rng = np.random.default_rng(10)
        for number in range(40):
            activation = str(rng.choice(["silu", "gelu_tanh", "swiglu_oss", "relu2"]))
            o = {"activation": activation, "dtype": str(rng.choice(["f32", "bf16", "int8"]))}
            transposed = bool(rng.integers(2))
            if transposed:
                o["transposed"] = True
            if activation != "relu2":
                o.update(gate_first=bool(rng.integers(2)), interleaved=bool(rng.integers(2)),
                         swiglu_limit=float(rng.choice([0, 1.25])))
            if activation == "swiglu_oss":
                o["alpha"] = [None, 1.5][rng.integers(2)]
            o["row_dtype"] = [None, "f32", "bf16"][rng.integers(3)]
            args, biases = draw(rng, int(rng.integers(0, 9)), int(rng.integers(0, 4)),
                                int(rng.integers(1, 6)), int(rng.integers(1, 70)),
                                int(rng.integers(1, 40)), transposed, bool(rng.integers(2)),
                                activation)
            for isa, ctx in contexts():
                self.check(args, o, biases, ctx, "experts %s %s" % (isa, o), rng)

    def test_input_types(self):
        rng = np.random.default_rng(11)
        for name in ("f32", "f16", "f64") + (("bf16",) if BF16 else ()):
            args, biases = draw(rng, dtype=NUMPY[name])
            for fmt in ("f32", "bf16", "int8"):
                self.check(args, {"dtype": fmt}, biases, None, "experts %s as %s" % (name, fmt))

    def test_default_format(self):
        rng = np.random.default_rng(12)
        want = {"f32": "f32", "f16": "bf16"}
        if BF16:
            want["bf16"] = "bf16"
        for name, fmt in want.items():
            args, _ = draw(rng, dtype=NUMPY[name])
            self.assertEqual(cmoe.Experts(args[1], args[2]).dtype, fmt)

    def test_first_expert(self):
        rng = np.random.default_rng(13)
        args, biases = draw(rng, experts=4)
        args[3] = rng.integers(0, 12, args[3].shape)
        self.check(args, {"first_expert": 4}, biases, None, "experts 4..7 of 12")

    def test_ranks_add_up_exactly(self):
        """Two halves of the experts see disjoint slots: one slot a token, so the sum is exact."""
        rng = np.random.default_rng(14)
        (x, w13, w2, ids, weights), _ = draw(rng, topk=1, experts=6)
        ids = np.abs(ids) % 6
        whole = cmoe.experts(x, w13, w2, ids, weights)
        parts = [cmoe.experts(x, w13[f:f + 3], w2[f:f + 3], ids, weights, first_expert=f)
                 for f in (0, 3)]
        self.same(parts[0] + parts[1], whole)

    def test_int8_is_equal_everywhere(self):
        rng = np.random.default_rng(15)
        args, biases = draw(rng, 7, 3, 5, 67, 33, bias=True)
        results = [cmoe.experts(*args, dtype="int8", ctx=ctx, **biases)
                   for _, ctx in contexts()]
        for other in results[1:]:
            self.same(other, results[0])

    def test_a_token_alone(self):
        rng = np.random.default_rng(16)
        (x, w13, w2, ids, weights), _ = draw(rng, 33, 3)
        for fmt in ("f32", "bf16", "int8"):
            layer = cmoe.Experts(w13, w2, dtype=fmt)
            together = layer(x, ids, weights)
            for t in range(len(x)):
                alone = layer(x[t:t + 1], ids[t:t + 1], weights[t:t + 1])
                self.same(alone, together[t:t + 1], "token %d alone, %s" % (t, fmt))

    def test_any_address_and_strides(self):
        rng = np.random.default_rng(17)
        args, _ = draw(rng)
        want = cmoe.experts(*args)
        self.same(cmoe.experts(*[misaligned(a) for a in args]), want, "odd addresses")
        for _ in range(6):
            self.same(cmoe.experts(*[strided(rng, a) for a in args]), want, "strides")

    def test_empty(self):
        rng = np.random.default_rng(18)
        for tokens, topk in ((0, 2), (3, 0), (0, 0)):
            args, _ = draw(rng, tokens, topk)
            out = cmoe.experts(*args)
            self.assertEqual((out.shape, out.dtype), ((tokens, 24), np.float32))
            self.assertFalse(out.any())

    def test_packed_weights_are_a_copy(self):
        rng = np.random.default_rng(19)
        (x, w13, w2, ids, weights), _ = draw(rng)
        layer = cmoe.Experts(w13, w2)
        want = layer(x, ids, weights)
        w13[:], w2[:] = 0, 0
        self.same(layer(x, ids, weights), want)

    def test_properties(self):
        args, _ = draw(np.random.default_rng(20))
        layer = cmoe.Experts(args[1], args[2], dtype="int8", row_dtype="bf16", first_expert=8)
        self.assertEqual((layer.num_experts, layer.hidden, layer.inter, layer.first_expert),
                         (4, 24, 13, 8))
        self.assertEqual((layer.dtype, layer.row_dtype), ("int8", "bf16"))
        self.assertGreaterEqual(layer.weight_bytes, args[1].size + args[2].size)
        self.assertTrue(layer.variant)

    def test_errors(self):
        (x, w13, w2, ids, weights), _ = draw(np.random.default_rng(21))
        shape, range_ = "CMOE_ERR_SHAPE", "CMOE_ERR_RANGE"
        self.fails(ValueError, range_, "silu", cmoe.Experts, w13, w2, activation="gelu")
        self.fails(ValueError, range_, "f32 bf16 int8", cmoe.Experts, w13, w2, dtype="f8")
        self.fails(ValueError, range_, "f32 bf16", cmoe.Experts, w13, w2, row_dtype="int8")
        self.fails(ValueError, shape, "w13", cmoe.Experts, w13[:, 1:], w2)
        self.fails(ValueError, shape, "w13", cmoe.Experts, w13[0], w2)
        self.fails(ValueError, shape, "w2", cmoe.Experts, w13, w2[:3])
        self.fails(ValueError, shape, "bias13", cmoe.Experts, w13, w2,
                   bias13=np.zeros((4, 25), np.float32))
        self.fails(ValueError, shape, "x", cmoe.experts, x[:, 1:], w13, w2, ids, weights)
        self.fails(ValueError, shape, "ids", cmoe.experts, x, w13, w2, ids[1:], weights)
        self.fails(ValueError, shape, "ids", cmoe.experts, x, w13, w2, ids[0], weights)
        self.fails(ValueError, shape, "weights", cmoe.experts, x, w13, w2, ids, weights[:, :1])
        self.fails(TypeError, "CMOE_ERR_DTYPE", "ids", cmoe.experts, x, w13, w2, weights, weights)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "w13", cmoe.experts, x, w13.astype(np.int32), w2,
                   ids, weights)
