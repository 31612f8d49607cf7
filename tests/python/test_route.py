# SPDX-License-Identifier: MIT
"""route and align against the reference in float64."""
import numpy as np

import cmoe
import reference as ref
from common import NUMPY, TestCase, contexts, strided


class Route(TestCase):
    def check(self, logits, topk, rng, isa, ctx, **o):
        """Returns how many tokens had a choice too close for float32."""
        what = "route %s k=%d %s %s" % (logits.shape, topk, isa, sorted(o.items(), key=str))
        call = {k: v for k, v in o.items()}
        if call.get("bias") is not None:
            call["bias"] = strided(rng, call["bias"])
        weights, ids = cmoe.route(strided(rng, logits), topk, ctx=ctx, **call)
        want, bound, want_ids, unsure = ref.route(logits.astype(np.float64), topk, **o)
        self.assertEqual((weights.dtype, ids.dtype), (np.float32, np.int32))
        self.assertEqual((weights.shape, ids.shape), ((len(logits), topk),) * 2)
        sure = ~unsure
        self.assertTrue((ids[sure] == want_ids[sure]).all(), "%s: ids %s, want %s" % (
            what, ids[sure], want_ids[sure]))
        self.near(weights[sure], want[sure], bound[sure], what)
        self.assertTrue(np.isfinite(weights).all(), what)
        return int(unsure.sum())

    def test_random(self):
        rng = np.random.default_rng(1)
        tokens = unsure = 0
        for draw in range(120):
            experts = int(rng.choice([1, 2, 5, 8, 16, 24, 64, 129]))
            t, topk = int(rng.integers(0, 9)), int(rng.integers(1, min(experts, 10) + 3))
            dtype = NUMPY[rng.choice(["f32", "f16", "f64"])]
            logits = (rng.standard_normal((t, experts)) * 2).astype(dtype)
            o = {"scoring": str(rng.choice(["softmax", "sigmoid", "sqrtsoftplus"])),
                 "renormalize": bool(rng.integers(2)), "scale": float(rng.choice([1.0, 2.5]))}
            if rng.integers(2):
                o["bias"] = rng.standard_normal(experts).astype(np.float32)
            divisors = [g for g in (2, 4, 8) if experts % g == 0 and experts // g >= 2]
            if divisors and rng.integers(2):
                o["groups"] = int(rng.choice(divisors))
                o["topk_groups"] = int(rng.integers(1, o["groups"] + 1))
                o["group_mask"] = str(rng.choice(["-inf", "zero"]))
                topk = min(topk, experts // o["groups"] * o["topk_groups"])
                if o["group_mask"] == "zero" and o.get("bias") is None:
                    topk = min(topk, experts // o["groups"])
            for isa, ctx in contexts():
                unsure += self.check(logits, topk, rng, isa, ctx, **o)
                tokens += t
        self.assertLess(unsure, tokens / 50)

    def test_hash(self):
        rng = np.random.default_rng(2)
        for table_type, id_type in ((np.int32, np.int64), (np.int64, np.int32)):
            table = rng.integers(0, 8, (10, 3)).astype(table_type)
            input_ids = rng.integers(0, 10, 6).astype(id_type)
            logits = rng.standard_normal((6, 8)).astype(np.float32)
            for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
                self.check(logits, 3, rng, None, None, scoring=scoring, hash_table=table,
                           input_ids=input_ids)

    def test_negative_bias_under_both_masks(self):
        rng = np.random.default_rng(3)
        bias = -2 - rng.random(16).astype(np.float32)
        logits = rng.standard_normal((5, 16)).astype(np.float32)
        chosen = []
        for mask in ("-inf", "zero"):
            o = dict(scoring="sigmoid", bias=bias, groups=4, topk_groups=2, group_mask=mask)
            self.check(logits, 4, rng, None, None, **o)
            chosen.append(cmoe.route(logits, 4, **o)[1])
        self.assertFalse((chosen[0] == chosen[1]).all())

    def test_ties_go_to_the_lower_id(self):
        for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
            _, ids = cmoe.route(np.zeros((2, 7), np.float32), 4, scoring=scoring)
            self.assertEqual(ids.tolist(), [[0, 1, 2, 3]] * 2)

    def test_more_than_experts(self):
        weights, ids = cmoe.route(np.ones((2, 3), np.float32), 5)
        self.assertEqual(ids[:, 3:].tolist(), [[-1, -1]] * 2)
        self.assertEqual(weights[:, 3:].tolist(), [[0, 0]] * 2)

    def test_empty(self):
        weights, ids = cmoe.route(np.zeros((0, 8), np.float32), 2)
        self.assertEqual((weights.shape, ids.shape), ((0, 2), (0, 2)))

    def test_nan_and_infinity(self):
        odd = np.array([[np.nan, np.inf, -np.inf, 1]] * 2, np.float32)
        for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
            weights, ids = cmoe.route(odd, 2, scoring=scoring)
            self.assertEqual(ids[:, 0].tolist(), [1, 1])
            self.assertTrue(np.isfinite(weights).all())

    def test_errors(self):
        x = np.zeros((2, 8), np.float32)
        bad = "CMOE_ERR_RANGE"
        self.fails(ValueError, bad, "topk", cmoe.route, x, 0)
        self.fails(ValueError, bad, "topk", cmoe.route, x, -3)
        self.fails(ValueError, bad, "top_k", cmoe.route, x, 1 << 70)
        self.fails(ValueError, "CMOE_ERR_ARG", "top_k = 2.5", cmoe.route, x, 2.5)
        self.fails(ValueError, bad, "softmax sigmoid sqrtsoftplus", cmoe.route, x, 2,
                   scoring="tanh")
        self.fails(ValueError, bad, "-inf zero", cmoe.route, x, 2, group_mask="one")
        self.fails(ValueError, bad, "topk_groups", cmoe.route, x, 2, groups=4, topk_groups=0)
        self.fails(ValueError, bad, "topk_groups", cmoe.route, x, 2, groups=4, topk_groups=5)
        self.fails(ValueError, bad, "groups", cmoe.route, x, 2, groups=3)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "logits", cmoe.route, x[0], 2)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "bias", cmoe.route, x, 2, bias=x[0, :7])
        self.fails(TypeError, "CMOE_ERR_DTYPE", "logits", cmoe.route, x.astype(np.int32), 2)
        self.fails(ValueError, bad, "hash_table", cmoe.route, x, 1,
                   hash_table=np.full((2, 1), 8), input_ids=np.zeros(2, np.int32))
        self.fails(ValueError, bad, "input_ids", cmoe.route, x, 1,
                   hash_table=np.zeros((2, 1), np.int64), input_ids=np.full(2, 2))


class Align(TestCase):
    def check(self, ids, experts, block, ctx=None):
        g = cmoe.align(ids, experts, block, ctx=ctx)
        first, slots, row_of = ref.align(ids, experts, 0, block)
        self.assertEqual((g.first.dtype, g.slots.dtype, g.row_of.dtype),
                         (np.int64, np.int32, np.int32))
        self.assertEqual(g.first.tolist(), first.tolist())
        self.assertEqual(g.slots[:first[-1]].tolist(), slots.tolist())
        self.assertTrue((g.slots[first[-1]:] == -1).all())
        self.assertEqual(g.row_of.tolist(), row_of.tolist())

    def test_random(self):
        rng = np.random.default_rng(4)
        for draw in range(60):
            experts, block = int(rng.integers(1, 40)), int(rng.choice([1, 1, 2, 4, 16]))
            ids = rng.integers(-2, experts + 2, (rng.integers(0, 50), rng.integers(0, 6)))
            ids = ids.astype(rng.choice([np.int32, np.int64]))
            self.check(strided(rng, ids), experts, block)

    def test_many_tokens(self):
        rng = np.random.default_rng(5)
        ids = rng.integers(0, 5, (3000, 3)).astype(np.int32)
        for threads in (1, 2, 3, 8):
            self.check(ids, 5, 4, cmoe.Context(threads=threads))

    def test_named(self):
        self.check(np.full((9, 2), 3, np.int32), 5, 1)
        self.check(np.full((9, 2), -1, np.int32), 5, 4)
        self.check(np.array([[1, 1, 1], [4, 1, 4]]), 5, 4)

    def test_results_outlive_the_groups(self):
        first = cmoe.align(np.array([[1, 0]]), 2).first
        np.zeros(1000).sum()
        self.assertEqual(first.tolist(), [0, 1, 2])

    def test_errors(self):
        ids = np.zeros((2, 2), np.int32)
        self.fails(ValueError, "CMOE_ERR_SHAPE", "ids", cmoe.align, ids[0], 4)
        self.fails(TypeError, "CMOE_ERR_DTYPE", "ids", cmoe.align, ids.astype(np.float32), 4)
        self.fails(ValueError, "CMOE_ERR_RANGE", "block", cmoe.align, ids, 4, 0)
        self.fails(ValueError, "CMOE_ERR_RANGE", "experts", cmoe.align, ids, -1)
