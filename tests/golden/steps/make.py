#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes steps.txt: golden values of the steps of a layer, and how far float32 may be from them.

    python3 make.py > steps.txt          needs numpy only, never the library

The file is a list of cases that steps.c reads:

    case KIND NAME
    set OPTION INTEGER-OR-FLOAT          any number of them
    tensor NAME DTYPE RANK DIM... VALUE...
    end

A tensor X that the library has to make is called want.X, its bound bound.X (float64, both).
Inputs are short decimals, so that numpy and C read the same float32.
"""
import sys

import numpy as np

import reference as ref

SCORINGS = ["softmax", "sigmoid", "sqrtsoftplus", "logits", "sparsemixer"]
ACTIVATIONS = ["silu", "gelu_tanh", "swiglu_oss", "relu2"]
FORMATS = {"f32": 1, "bf16": 3, "int8": 6}


# ---- writing --------------------------------------------------------------------------------


def text(v, dtype):
    if dtype in ("i8", "i32", "i64"):
        return str(int(v))
    if not np.isfinite(v):
        return repr(float(v))
    if dtype == "want":
        return "%.10g" % v
    if dtype == "bound":
        return "%.2g" % (v * 1.06)  # never printed as less than it is
    return np.format_float_positional(np.float32(v), unique=True, trim="-")


class Case:
    def __init__(self, kind, name):
        print("case", kind, name)

    def set(self, **options):
        for key, value in options.items():
            if value is not None:
                print("set", key, int(value) if isinstance(value, (bool, np.bool_)) else value)
        return self

    def tensor(self, name, values, dtype="f32"):
        if values is not None:
            values = np.asarray(values)
            print("tensor", name, "f64" if dtype in ("want", "bound") else dtype, values.ndim,
                  *values.shape)
            columns = values.shape[-1]
            for row in values.reshape(values.size // max(columns, 1), columns):
                print("", *[text(v, dtype) for v in row])
        return self

    def want(self, name, value, bound=None):
        self.tensor("want." + name, value, "want")
        return self.tensor("bound." + name, 0 * np.asarray(value) if bound is None else bound,
                           "bound")

    def end(self):
        print("end")


def decimals(rng, *shape, scale=1.0, digits=3):
    """Normal numbers with few decimals, as the float32 nearest to them."""
    return ref.f32(np.round(rng.standard_normal(shape) * scale, digits))


# ---- route ----------------------------------------------------------------------------------


def route_case(name, seed, tokens, experts, topk, logits=None, spread=2.0, **o):
    """Draws logits until no choice is within float32's reach of another."""
    for attempt in range(1000):
        rng = np.random.default_rng([seed, attempt])
        x = decimals(rng, tokens, experts, scale=spread) if logits is None else logits
        weights, bound, ids, unsure = ref.route(x, topk, **o)
        if not unsure.any():
            break
    else:
        raise SystemExit("route %s: no draw without a near tie" % name)
    c = Case("route", name).set(
        topk=topk, scoring=SCORINGS.index(o.get("scoring", "softmax")),
        renormalize=o.get("renormalize", True),
        eps_rule=["none", "add", "max"].index(o.get("eps_rule", "max")), eps=o.get("eps"),
        groups=o.get("groups"), topk_groups=o.get("topk_groups"),
        group_mask=int(o.get("group_mask") == "zero"),
        group_score=int(o.get("group_score") == "max"),
        groups_biased=o.get("groups_biased"), scale=o.get("scale"), jitter=o.get("jitter"),
        shared=o.get("shared"))
    c.tensor("logits", x)
    for key in ("bias", "given_weights", "per_expert_scale", "shared_gate"):
        c.tensor(key, o.get(key))
    for key in ("hash_table", "input_ids", "given_ids"):
        c.tensor(key, o.get(key), "i64" if key == "hash_table" else "i32")
    c.want("weights", weights, bound).tensor("want.ids", ids, "i32").end()


def routes():
    rng = np.random.default_rng(1)
    bias = decimals(rng, 16)
    for i, scoring in enumerate(("softmax", "sigmoid", "sqrtsoftplus")):
        route_case(scoring, 10 + i, 4, 11, 3, scoring=scoring)
        route_case(scoring + "_plain", 20 + i, 4, 11, 3, scoring=scoring, renormalize=False,
                   scale=2.5)
        route_case(scoring + "_bias", 30 + i, 4, 16, 4, scoring=scoring, bias=bias)
        route_case(scoring + "_hash", 40 + i, 4, 8, 2, scoring=scoring,
                   hash_table=rng.integers(0, 8, (6, 2)), input_ids=np.array([5, 0, 3, 3]))
        for mask in ("-inf", "zero"):
            route_case("%s_groups_%s" % (scoring, mask.strip("-")), 50 + i, 4, 16, 3,
                       scoring=scoring, bias=bias, groups=4, topk_groups=2, group_mask=mask,
                       scale=1.5)
    # Every bias is negative: a dropped expert whose score is set to 0 beats the survivors.
    low = -2 - np.abs(bias)
    for mask in ("-inf", "zero"):
        route_case("negative_bias_" + mask.strip("-"), 60, 3, 16, 4, scoring="sigmoid", bias=low,
                   groups=4, topk_groups=2, group_mask=mask)
    route_case("groups_max", 61, 4, 16, 3, groups=4, topk_groups=2, group_score="max",
               group_mask="zero", renormalize=False, scale=16.0)
    route_case("groups_unbiased", 62, 4, 16, 3, scoring="sigmoid", bias=bias, groups=4,
               topk_groups=2, groups_biased=False)
    route_case("more_than_experts", 63, 3, 3, 5)
    route_case("one_expert", 64, 2, 1, 1, scoring="sigmoid")
    route_case("eps_add", 65, 3, 8, 2, scoring="sigmoid", eps_rule="add", eps=0.5)
    route_case("eps_max", 66, 3, 8, 2, scoring="softmax", eps_rule="max", eps=0.75)
    route_case("logits_gpt_oss", 67, 4, 8, 3, scoring="logits")
    route_case("sparsemixer", 68, 5, 8, 2, scoring="sparsemixer", jitter=0.25, renormalize=False)
    route_case("per_expert_scale", 69, 3, 8, 2, per_expert_scale=decimals(rng, 8))
    route_case("shared_gated", 70, 3, 8, 2, shared=2, shared_gate=decimals(rng, 3, 2))
    route_case("shared_one_gate", 71, 3, 8, 2, shared=2, shared_gate=decimals(rng, 3, 1))
    route_case("shared_plain", 72, 3, 8, 2, shared=1)
    route_case("given_ids", 73, 3, 8, 3, given_ids=np.array([[7, 7, 0], [1, -1, 2], [-1, -1, -1]]))
    route_case("bypass", 74, 2, 8, 2, given_ids=np.array([[3, -1], [0, 0]]),
               given_weights=decimals(rng, 2, 2))
    ties = np.array([[1.0, 2, 2, 1, 2], [0, 0, 0, 0, 0], [-1, -1, 3, -1, 3]])
    for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
        route_case("ties_" + scoring, 75, 3, 5, 3, logits=ties, scoring=scoring)
    odd = np.array([[np.nan, 1, -np.inf, 0.5], [np.inf, -1, np.nan, 2],
                    [np.nan, np.nan, np.nan, np.nan], [-np.inf, 3, 3, -np.inf]])
    route_case("nan_and_infinity", 76, 4, 4, 1, logits=odd)
    route_case("wide_sqrtsoftplus", 77, 2, 8, 8, scoring="sqrtsoftplus",
               logits=np.array([[-100.0, -50, -17, -1, 1, 17, 50, 100],
                                [-99, -98, -97, -96, -95, -94, -93, -80]]))


# ---- align and combine ----------------------------------------------------------------------


def aligns():
    rng = np.random.default_rng(2)
    cases = {
        "five_experts_block_4": (rng.integers(0, 5, (9, 3)), 5, 0, 4),
        "one_expert_owns_all": (np.full((7, 2), 2), 4, 0, 1),
        "one_expert_owns_all_padded": (np.full((7, 2), 3), 4, 0, 16),
        "empty_experts": (rng.choice([1, 6], (6, 4)), 8, 0, 1),
        "another_rank": (rng.integers(-1, 12, (8, 3)), 4, 4, 1),
        "another_rank_padded": (rng.integers(-1, 12, (8, 3)), 4, 8, 8),
        "out_of_range": (rng.integers(-5, 40, (10, 2)), 6, 0, 1),
        "repeated_in_a_token": (rng.integers(0, 2, (5, 4)), 3, 0, 2),
        "no_tokens": (np.zeros((0, 2)), 3, 0, 4),
        "no_slots": (np.zeros((4, 0)), 3, 0, 1),
        "nobody": (np.full((3, 2), -1), 3, 0, 4),
    }
    for name, (ids, experts, first_expert, block) in cases.items():
        first, slots, row_of = ref.align(ids, experts, first_expert, block)
        for dtype in ("i32", "i64"):
            c = Case("align", "%s_%s" % (name, dtype)).set(
                experts=experts, first_expert=first_expert, block=block)
            c.tensor("ids", ids, dtype)
            c.tensor("want.first", first, "i64").tensor("want.slots", slots, "i32")
            c.tensor("want.row_of", row_of, "i32").end()


def combines():
    rng = np.random.default_rng(3)
    ids = np.array([[0, 2, 1], [2, -1, 2], [-1, -1, -1], [1, 1, 0]])
    _, slots, row_of = ref.align(ids, 3)
    rows, weights, shared = decimals(rng, len(slots), 7), decimals(rng, 4, 3), decimals(rng, 4, 7)
    for name, given, o in (("plain", None, {}), ("shared", shared, {}),
                           ("shared_first", shared, {"shared_first": True}),
                           ("scaled", shared, {"scale": 0.3}),
                           ("bf16", shared, {"dtype": "bf16"})):
        out, bound = ref.combine(rows, np.zeros_like(rows), weights, row_of, given, **o)
        c = Case("combine", name).set(experts=3, out_dtype=3 if o.get("dtype") else 1,
                                      shared_first=o.get("shared_first"), scale=o.get("scale"))
        c.tensor("ids", ids, "i32").tensor("rows", rows).tensor("weights", weights)
        c.tensor("shared", given).want("out", out, bound).end()


# ---- experts --------------------------------------------------------------------------------


def expert_case(name, seed, tokens=4, topk=2, experts=3, hidden=11, inter=7, bias=False,
                shared=False, int8_weights=False, out_dtype="f32", **o):
    rng = np.random.default_rng([3, seed])
    columns = inter if o.get("activation") == "relu2" else 2 * inter
    w13 = decimals(rng, experts, columns, hidden, scale=hidden ** -0.5, digits=2)
    w2 = decimals(rng, experts, hidden, inter, scale=inter ** -0.5, digits=2)
    scale13 = scale2 = None
    if int8_weights:
        w13 = rng.integers(-128, 128, w13.shape).astype(np.float64)
        w2 = rng.integers(-128, 128, w2.shape).astype(np.float64)
        w13[0], w2[1] = -128, -128
        scale13 = np.abs(decimals(rng, experts, columns, scale=0.02)) + 0.001
        scale2 = np.abs(decimals(rng, experts, hidden, scale=0.02)) + 0.001
    bias13, bias2 = (decimals(rng, experts, columns), decimals(rng, experts, hidden)) if bias else (
        None, None)
    if o.get("transposed"):
        w13, w2 = w13.swapaxes(1, 2), w2.swapaxes(1, 2)
    x = decimals(rng, tokens, hidden, scale=2)
    first = o.get("first_expert", 0)
    ids = rng.integers(first, first + experts, (tokens, topk))
    ids[0, -1] = ids[0, 0]  # an expert twice in a token
    ids[1, 0], ids[1, -1] = -1, first + experts  # nobody's, another rank's
    weights = np.abs(decimals(rng, tokens, topk))
    add = decimals(rng, tokens, hidden) if shared else None
    out, bound = ref.experts(x, w13, w2, ids, weights, bias13, bias2, scale13, scale2, add,
                             out_dtype, **o)
    kind = o.get("activation", "silu")
    c = Case("experts", name).set(
        format=FORMATS[o.get("dtype", "f32")], row_dtype=FORMATS[o.get("row_dtype", "f32")],
        activation=ACTIVATIONS.index(kind), ungated=kind == "relu2",
        swiglu_limit=o.get("swiglu_limit"), alpha=o.get("alpha"), up_first=o.get("up_first"),
        interleaved=o.get("interleaved"), transposed=o.get("transposed"),
        round_gate_up=o.get("round_gate_up"), round_act=o.get("round_act"),
        weight_at=int(o.get("weight_at") == "row"), first_expert=first,
        out_dtype={"f32": 1, "bf16": 3}[out_dtype])
    c.tensor("x", x).tensor("ids", ids, "i32").tensor("weights", weights)
    c.tensor("w13", w13, "i8" if int8_weights else "f32")
    c.tensor("w2", w2, "i8" if int8_weights else "f32")
    c.tensor("bias13", bias13).tensor("bias2", bias2)
    c.tensor("scale13", scale13).tensor("scale2", scale2).tensor("shared", add)
    c.want("out", out, bound).end()


def expert_cases():
    oss = dict(activation="swiglu_oss", swiglu_limit=1.5, alpha=1.702, interleaved=True,
               transposed=True, bias=True)
    for i, fmt in enumerate(("f32", "bf16", "int8")):
        for j, act in enumerate(ACTIVATIONS):
            expert_case("%s_%s" % (fmt, act), 10 * i + j, dtype=fmt, activation=act)
        expert_case(fmt + "_gpt_oss", 10 * i + 5, dtype=fmt, **oss)
        expert_case(fmt + "_bias_up_first", 10 * i + 6, dtype=fmt, bias=True, up_first=True,
                    swiglu_limit=1.0)
        expert_case(fmt + "_shared_row_bf16", 10 * i + 7, dtype=fmt, shared=True,
                    row_dtype="bf16", first_expert=5)
        expert_case(fmt + "_wide", 10 * i + 8, tokens=3, experts=1, hidden=37, inter=18, dtype=fmt)
    expert_case("f32_interleaved_up_first", 40, interleaved=True, up_first=True)
    expert_case("f32_transposed", 41, transposed=True)
    expert_case("bf16_rounding_points", 42, dtype="bf16", round_gate_up=True, round_act=True,
                row_dtype="bf16", out_dtype="bf16")
    expert_case("int8_weight_at_row", 43, dtype="int8", weight_at="row", row_dtype="bf16",
                swiglu_limit=1.0)
    expert_case("int8_given", 44, dtype="int8", int8_weights=True)
    expert_case("int8_given_bias", 45, dtype="int8", int8_weights=True, bias=True, transposed=True)


# ---- small operations -----------------------------------------------------------------------


def ops():
    rng = np.random.default_rng(4)
    x, residual, weight = decimals(rng, 3, 21), decimals(rng, 3, 21), decimals(rng, 21)
    x[1] *= 1e-3
    x[2], residual[2] = 0, 0
    orders = ["cast_then_weight", "weight_then_cast"]
    for dtype in ("f32", "bf16"):
        for order in orders:
            for add, offset in ((None, 0.0), (residual, 1.0)):
                a, b = ref.ROUND[dtype](x), None if add is None else ref.ROUND[dtype](add)
                w = ref.ROUND[dtype](weight)
                (out, bound), (total, total_bound) = ref.rms_norm(a, w, 1e-6, b, dtype, order,
                                                                  offset)
                c = Case("rms_norm", "%s_%s%s" % (dtype, order, "" if add is None else "_add"))
                c.set(eps=1e-6, order=orders.index(order), weight_offset=offset)
                c.tensor("x", a, dtype).tensor("residual", b, dtype).tensor("weight", w, dtype)
                c.want("out", out, bound).want("residual_out", total, total_bound).end()
    for dtype in ("f32", "bf16"):
        a, b = ref.ROUND[dtype](x), ref.ROUND[dtype](residual)
        for columns in (1, 21):
            gate = ref.ROUND[dtype](decimals(rng, 3, columns, scale=3))
            c = Case("sigmoid_mul", "%s_%d" % (dtype, columns)).tensor("x", a, dtype)
            c.tensor("gate", gate, dtype).want("out", *ref.sigmoid_mul(a, gate, dtype)).end()
            c = Case("add_shared_expert", "%s_%d" % (dtype, columns)).tensor("x", a, dtype)
            c.tensor("shared", b, dtype).tensor("gate", gate, dtype)
            c.want("out", *ref.add_shared_expert(a, b, gate, dtype)).end()
        c = Case("add_shared_expert", dtype + "_plain").tensor("x", a, dtype)
        c.tensor("shared", b, dtype).want("out", *ref.add_shared_expert(a, b, None, dtype)).end()
    rows = decimals(rng, 6, 19, scale=3)
    rows[1], rows[2] = 0, 1e-5  # below the floor of 1e-4
    rows[3, :2], rows[4] = [1000, 500.5], rows[4].clip(-127, 127)
    rows[5] = np.concatenate([[127], np.arange(-9, 9) + 0.5])  # halves go to even
    q, scale = ref.quantize(rows)
    c = Case("quantize_rows", "rule_b5").tensor("x", rows).tensor("want.q", q, "i8")
    c.want("scale", scale).end()


def main():
    print("# Made by make.py from the formulas, in float64; see there for the format.")
    routes()
    aligns()
    combines()
    expert_cases()
    ops()


if __name__ == "__main__":
    sys.exit(main())
