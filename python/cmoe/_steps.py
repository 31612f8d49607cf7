# SPDX-License-Identifier: MIT
"""The steps of a layer as functions: each fills the options of one C function and calls it."""
import functools
import weakref
from ctypes import byref, c_void_p, sizeof
from typing import NamedTuple, Optional

import numpy as np

from . import _native as n
from ._context import context, integer, isa_levels, scratch_bytes
from ._tensor import Out, inout, optional, view, wrap, wrap_rows

_FORMATS = {"f32": n.F32, "bf16": n.BF16, "int8": n.I8}
_ROW_DTYPES = {"f32": n.F32, "bf16": n.BF16}
_GROUP_MASKS = {"-inf": 0, "zero": 1}


def _choice(name, value, values):
    """The number of a word."""
    if value not in values:
        raise n.error("CMOE_ERR_RANGE", '%s "%s", want one of: %s'
                      % (name, value, " ".join(values)))
    return values[value]


@functools.lru_cache(maxsize=None)
def _words(function):
    """The words of an enum of the library, from its own list of names."""
    words, name_of = {}, getattr(n.lib, function)
    while name_of(len(words)):
        words[name_of(len(words)).decode()] = len(words)
    return words


def _scratch(t, function, *args):
    """Context._run's scratch for a [T, n] tensor; none for another rank, which the call names."""
    if t.view.rank == 2:
        return {"size": (function,) + args}
    return {"memory": np.empty(0, np.uint8)}


# ---- route and align ------------------------------------------------------------------------


def route(logits, top_k, *, scoring="softmax", bias=None, groups=1, topk_groups=None,
          group_mask="-inf", renormalize=True, scale=1.0, hash_table=None, input_ids=None,
          ctx=None):
    """The experts of each token, best first, and their weights.

    logits [T, E] -> weights float32 [T, top_k], ids int32 [T, top_k]

    scoring       "softmax", "sigmoid", "sqrtsoftplus"
    bias          [E], added for the choice only
    groups        E is cut into so many groups; the best topk_groups of them (None: all), by the
                  sum of their best two, may be chosen from
    group_mask    score of experts of dropped groups: "-inf" or "zero"
    renormalize   the weights of a token are divided by their sum; then all times `scale`
    hash_table    int32 or int64 [vocab, top_k]: ids = hash_table[input_ids], nothing is chosen

    Ties go to the lower id.  Columns beyond E hold id -1 and weight 0.
    """
    ctx = context(ctx)
    x = wrap(logits, "logits")
    o = n.options(n.cmoe_route_options, "route_options_default")
    o.topk = integer("top_k", top_k)
    o.scoring = _choice("scoring", scoring, _words("route_scoring_name"))
    o.renormalize = 1 if renormalize else 0
    o.groups = integer("groups", groups)
    if topk_groups is not None:
        o.topk_groups = integer("topk_groups", topk_groups)
        if o.topk_groups == 0:  # in the struct it means all
            raise n.error("CMOE_ERR_RANGE", "topk_groups = 0, want 1 <= topk_groups <= %d (groups)"
                          % o.groups)
    o.group_mask = _choice("group_mask", group_mask, _GROUP_MASKS)
    o.scale = scale
    given = [optional(bias, "bias"), optional(hash_table, "hash_table"),
             optional(input_ids, "input_ids")]
    inputs = n.options(n.cmoe_route_inputs, "route_inputs_default")
    inputs.bias, inputs.hash_table, inputs.input_ids = map(view, given)
    tokens, experts = x.view.dims[0], x.view.dims[1]
    weights = Out(x, "weights", (tokens, o.topk), n.F32)
    ids = Out(x, "ids", (tokens, o.topk), n.I32)
    ctx._run("route", byref(o), x.view, byref(inputs), weights.view, ids.view,
             **_scratch(x, "route_bytes", byref(o), tokens, experts))
    return weights.result(), ids.result()


class Groups(NamedTuple):
    """Rows grouped by expert, inside an expert by token, then slot."""

    first: object   # int64 [E+1], first row of each expert; first[E]: how many rows
    slots: object   # int32, flat slot t*K + k of each row; -1 in padding and behind the last
    row_of: object  # int32 [T, K], row of each slot; -1: dropped


def align(ids, num_experts, block=1, *, ctx=None):
    """ids int32 or int64 [T, K] -> Groups.

    The rows of each expert are padded to a multiple of `block`.  Ids outside 0..num_experts-1 are
    skipped.
    """
    ctx = context(ctx)
    t = wrap(ids, "ids")
    o = n.options(n.cmoe_align_options, "align_options_default")
    o.experts, o.block = integer("num_experts", num_experts), integer("block", block)
    groups = n.cmoe_groups()
    wanted = scratch_bytes("align_bytes", byref(o), *t.view.dims[:2]) if t.view.rank == 2 else 0
    memory = np.empty(wanted, np.uint8)
    ctx._run("align", byref(o), t.view, byref(groups), memory=memory)

    def part(address, dtype, *shape):
        offset = address - memory.ctypes.data if address else 0
        array = np.ndarray(shape, dtype, memory, offset)
        return t.kind.from_numpy(array)

    return Groups(part(groups.first, np.int64, groups.experts + 1),
                  part(groups.slots, np.int32, groups.capacity),
                  part(groups.row_of, np.int32, groups.tokens, groups.topk))


# ---- experts --------------------------------------------------------------------------------


class Experts:
    """Packed weights of grouped gated MLPs: out = sum over k of weight * down(act(gate x) * up x).

    w13 [E, 2I, H], w2 [E, H, I] (transposed: [E, H, 2I], [E, I, H]); they are copied, in `dtype`.

    bias13, bias2   [E, 2I], [E, H]
    first_expert    id of the first of these experts; ids of others add nothing
    activation      "silu", "gelu_tanh", "swiglu_oss"; "relu2" for experts without a gate, whose
                    w13 is [E, I, H]
    swiglu_limit    > 0: gate at most this, up inside +- this, before the activation
    alpha           of "swiglu_oss"; None: 1.702
    gate_first      False: up stands before gate
    interleaved     gate and up alternate, row by row
    dtype           "f32", "bf16", "int8" (weights one scale a row, activations one a token); None:
                    that of w13, 16-bit types as "bf16"
    row_dtype       expert rows are rounded to "f32" (None) or "bf16" before they are added up

    May be shared by threads.
    """

    def __init__(self, w13, w2, *, bias13=None, bias2=None, first_expert=0, activation="silu",
                 swiglu_limit=0, alpha=None, gate_first=True, interleaved=False, transposed=False,
                 dtype=None, row_dtype=None, ctx=None):
        self._create(context(ctx), w13, w2, bias13, bias2, 0, first_expert=first_expert,
                     activation=activation, swiglu_limit=swiglu_limit, alpha=alpha,
                     gate_first=gate_first, interleaved=interleaved, transposed=transposed,
                     dtype=dtype, row_dtype=row_dtype)

    def _create(self, ctx, w13, w2, bias13, bias2, borrow, **how):
        o = _experts_options(borrow, **how)
        given = [wrap(w13, "w13"), wrap(w2, "w2"), optional(bias13, "bias13"),
                 optional(bias2, "bias2")]
        handle = c_void_p()
        n.call("experts_create", byref(handle), ctx._handle, byref(o), *map(view, given))
        # The finalizer holds the context, which must outlive what was made from it.
        self._free = weakref.finalize(self, _free_experts, handle, ctx)
        self._free.atexit = False
        self._ctx, self._handle = ctx, handle
        self._borrowed = given if borrow else None
        self._info = n.cmoe_experts_info(size=sizeof(n.cmoe_experts_info))
        n.call("experts_describe", handle, byref(self._info))

    def __call__(self, x, ids, weights):
        """x [T, H], ids int32 or int64 [T, K], weights [T, K] -> [T, H], of the dtype of x."""
        t, i, w = wrap(x, "x"), wrap(ids, "ids"), wrap(weights, "weights")
        out = Out(t, "out", t.shape, t.view.dtype)
        self._ctx._run("experts_run", self._handle, t.view, i.view, w.view, n.cmoe_view(), out.view,
                       **_scratch(i, "experts_bytes", self._handle, *i.view.dims[:2]))
        return out.result()

    @property
    def num_experts(self):
        return self._info.experts

    @property
    def hidden(self):
        return self._info.hidden

    @property
    def inter(self):
        return self._info.inter

    @property
    def first_expert(self):
        return self._info.first_expert

    @property
    def dtype(self):
        return _word(_FORMATS, self._info.format)

    @property
    def row_dtype(self):
        return _word(_ROW_DTYPES, self._info.row_dtype)

    @property
    def weight_bytes(self):
        """Of all packed weights and scales."""
        return self._info.weight_bytes

    @property
    def variant(self):
        """The kernel, as variants() names it."""
        return self._info.variant.decode()


def _free_experts(handle, ctx):
    n.lib.experts_free(handle)
    del ctx


def _word(words, number):
    return next(word for word, value in words.items() if value == number)


def _experts_options(borrow, first_expert, activation, swiglu_limit, alpha, gate_first, interleaved,
                     transposed, dtype, row_dtype):
    o = n.options(n.cmoe_experts_options, "experts_options_default")
    o.format = _choice("dtype", dtype, _FORMATS) if dtype is not None else 0
    o.row_dtype = _choice("row_dtype", row_dtype, _ROW_DTYPES) if row_dtype is not None else 0
    o.activation = _choice("activation", activation, _words("activation_name"))
    o.ungated = 1 if activation == "relu2" else 0
    o.swiglu_limit, o.alpha = swiglu_limit, 0 if alpha is None else alpha
    o.up_first, o.interleaved = 0 if gate_first else 1, 1 if interleaved else 0
    o.transposed, o.borrow = 1 if transposed else 0, borrow
    o.first_expert = integer("first_expert", first_expert)
    return o


def experts(x, w13, w2, ids, weights, *, bias13=None, bias2=None, first_expert=0,
            activation="silu", swiglu_limit=0, alpha=None, gate_first=True, interleaved=False,
            transposed=False, dtype=None, row_dtype=None, ctx=None):
    """Experts(w13, w2, ...)(x, ids, weights), the weights used where they lie: nothing is kept.

    For one call; who calls again packs once with Experts, which is faster from the second on.
    """
    once = Experts.__new__(Experts)
    once._create(context(ctx), w13, w2, bias13, bias2, 1, first_expert=first_expert,
                 activation=activation, swiglu_limit=swiglu_limit, alpha=alpha,
                 gate_first=gate_first, interleaved=interleaved, transposed=transposed, dtype=dtype,
                 row_dtype=row_dtype)
    try:
        return once(x, ids, weights)
    finally:
        once._free()


# ---- small operations -----------------------------------------------------------------------


def rms_norm(x, weight, eps, residual=None, *, ctx=None):
    """x * rsqrt(mean(x^2) + eps) * weight over the last dimension; weight [H] or None.

    With a residual, s = x + residual is normalised, and the result is (out, s).
    """
    ctx = context(ctx)
    t, r = wrap_rows(x, "x"), optional(residual, "residual", wrap_rows)
    w = optional(weight, "weight")
    o = n.options(n.cmoe_rms_norm_options, "rms_norm_options_default")
    o.eps = eps
    shape = t.view.dims[:2]
    out = Out(t, "out", shape, t.view.dtype)
    total = None if r is None else Out(t, "residual_out", shape, t.view.dtype)
    ctx._run("rms_norm", byref(o), t.view, view(r), view(w), out.view,
             n.cmoe_view_mut() if total is None else total.view)
    result = out.result(t.shape)
    return result if total is None else (result, total.result(t.shape))


def sigmoid_mul(x, gate, *, ctx=None):
    """x * sigmoid(gate); gate [..., 1] or like x."""
    t, g = wrap_rows(x, "x"), wrap_rows(gate, "gate")
    out = Out(t, "out", t.view.dims[:2], t.view.dtype)
    context(ctx)._run("sigmoid_mul", t.view, g.view, 0, out.view)
    return out.result(t.shape)


def add_shared_expert(x, shared, gate, *, ctx=None):
    """x + shared * sigmoid(gate); gate [..., 1], like x, or None for x + shared."""
    t, s = wrap_rows(x, "x"), wrap_rows(shared, "shared")
    g = optional(gate, "gate", wrap_rows)
    out = Out(t, "out", t.view.dims[:2], t.view.dtype)
    context(ctx)._run("add_shared_expert", t.view, s.view, view(g), 0, out.view)
    return out.result(t.shape)


def quantize_rows(x, *, ctx=None):
    """x [..., H] -> q int8 [..., H], scale float32 [...], x = q * scale.

    a = max(max |x|, 1e-4) of the row, q = x * (127 / a) rounded half to even, scale = a / 127.
    """
    t = wrap_rows(x, "x")
    rows, hidden = t.view.dims[:2]
    q, scale = Out(t, "q", (rows, hidden), n.I8), Out(t, "scale", (rows,), n.F32)
    context(ctx)._run("quantize_rows", t.view, q.view, scale.view)
    return q.result(t.shape), scale.result(t.shape[:-1])


class GdnInputs(NamedTuple):
    """What one decode step of a gated delta net is given."""

    q: object  # [B, key_heads, key_dim]
    k: object  # [B, key_heads, key_dim]
    v: object  # [B, value_heads, value_dim]
    z: object  # [B, value_heads, value_dim]
    b: object  # [B, value_heads]
    a: object  # [B, value_heads]


def gdn_decode_pack(qkvz, ba, weight, state, index, *, key_heads, key_dim, value_heads, value_dim,
                    bias=None, silu=True, grouped=False, ctx=None):
    """One token of B sequences -> GdnInputs: splits, convolves q | k | v, moves the state.

    qkvz [B, C + value_heads*value_dim], ba [B, 2*value_heads], C channels of q | k | v
    weight [C, W], bias [C], W >= 2; silu: behind the convolution

    state    [n, C, >= W-1], changed in place: moves left by one and takes the new token
    index    int32 or int64 [B], the state of each row, all different; -1: none, zeros come out
    grouped  False: qkvz is q | k | v | z and ba b | a; True: so for each key head (Qwen3-Next)
    """
    x, gates, w = wrap(qkvz, "qkvz"), wrap(ba, "ba"), wrap(weight, "weight")
    extra, rows, memory = optional(bias, "bias"), wrap(index, "index"), inout(state, "state")
    o = n.options(n.cmoe_gdn_pack_options, "gdn_pack_options_default")
    o.key_heads, o.key_dim = integer("key_heads", key_heads), integer("key_dim", key_dim)
    o.value_heads, o.value_dim = (integer("value_heads", value_heads),
                                  integer("value_dim", value_dim))
    o.silu, o.grouped = 1 if silu else 0, 1 if grouped else 0
    batch = x.view.dims[0]
    keys, values = (batch, o.key_heads, o.key_dim), (batch, o.value_heads, o.value_dim)
    shapes = {"q": keys, "k": keys, "v": values, "z": values, "b": values[:2], "a": values[:2]}
    results = {name: Out(x, name, shape, x.view.dtype) for name, shape in shapes.items()}
    out = n.cmoe_gdn_pack_out(size=sizeof(n.cmoe_gdn_pack_out))
    for name, result in results.items():
        setattr(out, name, result.view)
    context(ctx)._run("gdn_pack", byref(o), x.view, gates.view, w.view, view(extra), memory.view,
                      rows.view, byref(out))
    return GdnInputs(*(result.result() for result in results.values()))


# ---- what this is ---------------------------------------------------------------------------


def version():
    """Of the library, "0.1.0"."""
    return n.lib.version().decode()


def isas():
    """Instruction sets that this CPU has and Context(isa=...) takes, lowest first."""
    features = n.lib.cpu_features()
    return [name for name, mask in isa_levels() if not mask & ~features]


class Variant(NamedTuple):
    """A kernel: a row of one operation's table."""

    op: str                # "combine"
    name: str              # "avx512"
    dtype: Optional[str]   # the format it computes in; None: any
    isa: str               # the lowest level that has what it needs
    available: bool        # on this CPU


def variants():
    """Every kernel of the library, by operation, best first."""
    count = n.lib.variants(None, 0)
    rows = (n.cmoe_variant * count)()
    n.lib.variants(rows, count)
    levels, features = isa_levels(), n.lib.cpu_features()
    result = []
    for row in rows:
        isa = next((name for name, mask in levels if not row.needs & ~mask), "unknown")
        dtype = n.lib.dtype_name(row.dtype).decode() if row.dtype else None
        result.append(Variant(row.op.decode(), row.name.decode(), dtype, isa,
                              not row.needs & ~features))
    return result
