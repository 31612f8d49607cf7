# SPDX-License-Identifier: MIT
"""The steps of a layer once more, in numpy and float64, with a bound for every number.

Written from the formulas, not from the library: it is what make.py makes golden values with and
what tests/python compares with.  Each function returns what exact arithmetic gives, with rounding
only where the library promises to round, and how far float32 arithmetic may be from that:

    u      2^-24, the unit roundoff of float32
    dot    a sum of n products, in any order and fused or not, is off by at most n * 2u * sum |p|:
           twice the textbook bound, so that it need not be divided by 1 - n u; bf16 dot products
           flush subnormal inputs, hence an absolute term
    exp    ours is good to 1.1 ulp < 2.2 * 2u = 4.4 u; rounded up to 5 u
    round  a value known to +- d, rounded to a narrower type, lies between round(v - d) and
           round(v + d): nothing is added when no rounding edge is near

Bounds follow the values through every step (value, bound), first order with the products of bounds
kept; nothing in here is tuned.
"""
import numpy as np

U = 2.0 ** -24
TINY = 2.0 ** -126
EXP = 5 * U
NEVER = -1e300  # selection score of what may not be chosen


# ---- number formats -------------------------------------------------------------------------


def f32(x):
    """Rounded to float32, as float64."""
    return np.asarray(x, np.float32).astype(np.float64)


def bf16(x):
    """The float32 nearest to x, rounded to bfloat16 half to even, as float64."""
    bits = np.ascontiguousarray(np.asarray(x, np.float32)).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def f16(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float64)


ROUND = {"f32": f32, "bf16": bf16, "f16": f16, "f64": f32}  # float64 outputs hold float32 values


def rounded(value, bound, dtype):
    """(value, bound) after rounding to a type."""
    r = ROUND[dtype]
    v = r(value)
    return v, np.maximum(np.abs(r(value + bound) - v), np.abs(r(value - bound) - v))


def dot(a, b, a_bound=0.0):
    """(a . b^T, bound) for a [M, K] known to +- a_bound, b [N, K] exact."""
    k = a.shape[-1]
    reach = np.abs(a) @ np.abs(b).T
    largest = max(1.0, np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    bound = k * (2 * U * reach + TINY * largest)
    if np.ndim(a_bound):
        bound = bound + a_bound @ np.abs(b).T * (1 + k * 2 * U)
    return a @ b.T, bound


# ---- route ----------------------------------------------------------------------------------


def sanitize(logits):
    x = f32(logits)
    return np.clip(np.where(np.isnan(x), -1e20, x), -f32(1e20), f32(1e20))


def softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    e = np.exp(shifted)
    return e / e.sum(-1, keepdims=True)


def scores(x, scoring):
    """Scores [T, E] of sanitised logits and their relative bound."""
    experts = x.shape[-1]
    if scoring == "softmax":
        # exp of a difference that was rounded, a sum of E such, one division
        spread = np.minimum(x.max(-1, keepdims=True) - x, 104.0)
        return softmax(x), EXP + spread * U + (EXP + 104 * U + experts * U) + U
    if scoring == "sigmoid":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x)), np.full(x.shape, EXP + 2 * U)
    if scoring == "sqrtsoftplus":
        # log1p of exp: condition at most 1, and 10 u for log1p itself; the root halves them
        return np.sqrt(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))), np.full(
            x.shape, (EXP + 12 * U) / 2 + U)
    return x, np.zeros(x.shape)  # the logit itself


def groups_kept(choice, plain, o):
    """[T, G] which groups of experts stay, and the smallest distance at that decision."""
    tokens, experts = choice.shape
    of = (choice if o.get("groups_biased", True) else plain).reshape(
        tokens, o["groups"], experts // o["groups"])
    best = np.sort(of, -1)[..., ::-1]
    score = best[..., 0] if o.get("group_score", "top2") == "max" else best[..., :2].sum(-1)
    keep = o.get("topk_groups") or o["groups"]
    order = np.argsort(-score, -1, kind="stable")
    kept = np.zeros((tokens, o["groups"]), bool)
    np.put_along_axis(kept, order[:, :keep], True, -1)
    ranked = np.take_along_axis(score, order, -1)
    gap = ranked[:, keep - 1] - ranked[:, keep] if keep < o["groups"] else np.full(tokens, np.inf)
    return kept, gap


def choose(choice, bound, x, topk):
    """Ids of the topk best, ties to the lower id, and which tokens float32 could see otherwise."""
    order = np.argsort(-choice, -1, kind="stable")
    ids = order[:, :topk]
    ranked = np.take_along_axis(choice, order, -1)[:, :topk + 1]
    slack = np.take_along_axis(np.broadcast_to(bound, choice.shape), order, -1)[:, :topk + 1]
    same = np.diff(np.take_along_axis(x, order, -1)[:, :topk + 1], axis=-1) == 0
    unsure = (ranked[:, :-1] - ranked[:, 1:] <= slack[:, :-1] + slack[:, 1:]) & ~same
    return ids, unsure.any(-1)


def sparsemixer(x, jitter):
    """phimoe: two rounds of argmax, each a softmax over what is close enough to the best.

    -> ids, weights, their relative bound
    """
    tokens = np.arange(len(x))
    ids, weights, left = [], [], x.copy()
    for _ in range(2):
        best = left.max(-1, keepdims=True)
        far = (best - x) / np.maximum(np.abs(x), best) > 2 * jitter
        chosen = left.argmax(-1)
        kept = np.where(far | (left == -np.inf), -np.inf, left)
        ids.append(chosen)
        weights.append(softmax(kept)[tokens, chosen])
        left[tokens, chosen] = -np.inf
    relative = 2 * EXP + (2 * 104 + x.shape[-1] + 1) * U  # as in scores
    return np.stack(ids, -1), np.stack(weights, -1), np.full((len(x), 2), relative)


def normalise(weights, relative, o):
    """Divided by their sum, times the scale: (weights, bound)."""
    rel = relative
    if o.get("renormalize", True):
        total = weights.sum(-1, keepdims=True)
        eps = f32(o.get("eps", 1e-20))
        rule = o.get("eps_rule", "max")
        total = total + eps if rule == "add" else np.maximum(total, eps) if rule == "max" else total
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
        rel = rel + relative.max(-1, keepdims=True, initial=0) + (weights.shape[-1] + 2) * U
    weights = weights * f32(o.get("scale", 1.0))
    return weights, np.abs(weights) * (rel + U) + TINY


def route(logits, topk, **o):
    """-> weights [T, K + shared], their bounds, ids, unsure [T].

    Options as in cmoe_route_options and cmoe_route_inputs, words for the enums.
    """
    o.setdefault("groups", 1)
    scoring = o.get("scoring", "softmax")
    x = sanitize(logits)
    tokens, experts = x.shape
    k = min(topk, experts)
    unsure = np.zeros(tokens, bool)
    if scoring == "sparsemixer":
        ids, weights, relative = sparsemixer(x, f32(o.get("jitter", 0.01)))
        weights, bound = normalise(weights, relative, o)
    else:
        score, relative = scores(x, scoring)
        given = o.get("given_ids")
        if o.get("hash_table") is not None:
            given = np.asarray(o["hash_table"])[np.asarray(o["input_ids"])]
        if given is not None:
            ids = np.asarray(given)
        else:
            bias = f32(o["bias"]) if o.get("bias") is not None else np.zeros(experts)
            choice = score + bias
            slack = np.abs(score) * relative + U * np.abs(choice)
            if o["groups"] > 1:
                kept, gap = groups_kept(choice, score, o)
                unsure |= gap <= 5 * slack.max(-1)
                mask = np.repeat(kept, experts // o["groups"], -1)
                choice = np.where(mask, choice, 0.0 if o.get("group_mask") == "zero" else NEVER)
                slack = np.where(mask, slack, 0.0)
            ids, doubt = choose(choice, slack, x if o.get("bias") is None else choice, k)
            unsure |= doubt
        at = np.maximum(ids, 0)
        taken = np.take_along_axis(score, at, -1)
        rel = np.take_along_axis(relative, at, -1)
        if scoring == "logits":
            spread = taken.max(-1, keepdims=True, initial=0) - taken
            taken = softmax(taken)
            rel = 2 * EXP + (np.minimum(spread, 104.0) + 104 + k) * U
            weights, bound = normalise(taken, rel, dict(o, renormalize=False))
        else:
            taken = np.where(ids < 0, 0.0, taken)
            weights, bound = normalise(taken, np.where(ids < 0, 0.0, rel), o)
        if o.get("given_weights") is not None:
            weights, bound = f32(o["given_weights"]), np.zeros(ids.shape)
    if o.get("per_expert_scale") is not None:
        factor = f32(o["per_expert_scale"])[np.maximum(ids, 0)]
        weights, bound = weights * factor, bound * np.abs(factor) + U * np.abs(weights * factor)
    if topk > ids.shape[1]:
        extra = ((0, 0), (0, topk - ids.shape[1]))
        weights, bound = np.pad(weights, extra), np.pad(bound, extra)
        ids = np.pad(ids, extra, constant_values=-1)
    if o.get("shared"):
        n = o["shared"]
        gate = np.ones((tokens, n))
        if o.get("shared_gate") is not None:
            gate = 1 / (1 + np.exp(-np.broadcast_to(f32(o["shared_gate"]), (tokens, n))))
        weights = np.concatenate([weights, gate], -1)
        bound = np.concatenate([bound, gate * (EXP + 2 * U)], -1)
        last = np.broadcast_to(experts + np.arange(n), (tokens, n))
        ids = np.concatenate([ids, last], -1)
    return weights, bound, ids, unsure


# ---- align and combine ----------------------------------------------------------------------


def align(ids, experts, first_expert=0, block=1):
    """-> first [E+1], slots [first[E]] (-1 in padding), row_of [T, K]."""
    flat = np.asarray(ids, np.int64).reshape(-1) - first_expert
    row_of = np.full(flat.size, -1, np.int64)
    first, slots = [0], []
    for e in range(experts):
        for slot in np.flatnonzero(flat == e):
            row_of[slot] = len(slots)
            slots.append(slot)
        slots += [-1] * (-len(slots) % block)
        first.append(len(slots))
    return np.array(first), np.array(slots, np.int64), row_of.reshape(np.shape(ids))


def combine(rows, row_bound, weights, row_of, shared=None, scale=1.0, shared_first=False,
            dtype="f32"):
    """out[t] = sum over k of weights[t, k] * rows[row_of[t, k]] (+ shared): (out, bound)."""
    tokens, topk = row_of.shape
    hidden = rows.shape[1]
    out, bound, reach = (np.zeros((tokens, hidden)) for _ in range(3))
    for t in range(tokens):
        for k in range(topk):
            if row_of[t, k] >= 0:
                p = weights[t, k] * rows[row_of[t, k]]
                out[t] += p
                reach[t] += np.abs(p)
                bound[t] += np.abs(weights[t, k]) * row_bound[row_of[t, k]]
    scale = f32(scale)
    terms = topk
    if scale != 1:
        out, bound, reach = out * scale, bound * np.abs(scale), reach * np.abs(scale)
        terms += 1
    if shared is not None:
        out, reach, terms = out + shared, reach + np.abs(shared), terms + 1
    bound = bound * (1 + terms * 2 * U) + terms * (2 * U * reach + TINY)
    return rounded(out, bound, dtype)


# ---- experts --------------------------------------------------------------------------------


def quantize(rows):
    """Rule B5 exactly, in float32: (q, scale)."""
    x = np.asarray(rows, np.float32)
    amax = np.maximum(np.abs(x).max(-1, initial=0), np.float32(1e-4))
    inverse = (np.float32(127) / amax).astype(np.float32)
    q = np.rint(x * inverse[..., None]).astype(np.float64)
    return q, (np.float32(1) / inverse).astype(np.float64)


def quantize_range(h, bound):
    """Rule B5 for rows known to +- bound: (q, how far q may be off, scale, its bound)."""
    q, scale = quantize(h)
    amax = np.maximum(np.abs(h).max(-1, initial=0), 1e-4)
    relative = np.where(amax > 1e-4, bound.max(-1, initial=0) / amax, 0.0) + 3 * U
    t = h * (127 / amax)[..., None]
    slack = bound * (127 / amax)[..., None] + np.abs(t) * relative[..., None]
    off = np.maximum(np.abs(np.rint(t + slack) - q), np.abs(np.rint(t - slack) - q))
    return q, off, scale, scale * relative


def activation(gate, up, d_gate, d_up, o):
    """h = act(gate) * up: (h, bound)."""
    kind, limit = o.get("activation", "silu"), f32(o.get("swiglu_limit", 0))
    if limit > 0:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if kind == "relu2":
        act = np.maximum(gate, 0) ** 2
        d_act = 2 * np.abs(gate) * d_gate + d_gate ** 2 + U * act
    elif kind == "gelu_tanh":
        inner = 0.7978845608028654 * (gate + 0.044715 * gate ** 3)
        act = gate / 2 * (1 + np.tanh(inner))
        # gelu' <= 1.13; as x * sigmoid(2 inner), whose exp argument is off by 4 u relative
        d_act = 1.13 * d_gate + np.abs(act) * (EXP + 3 * U + 4 * U * np.abs(2 * inner)) + TINY
    else:
        alpha = f32(o.get("alpha") or 1.702) if kind == "swiglu_oss" else 1.0
        with np.errstate(over="ignore"):
            act = gate / (1 + np.exp(-alpha * gate))
        d_act = 1.1 * d_gate + np.abs(act) * (EXP + 3 * U + U * np.abs(alpha * gate)) + TINY
    if o.get("round_act"):
        act, d_act = rounded(act, d_act, "bf16")
    if o.get("ungated") or kind == "relu2":
        return act, d_act
    if kind == "swiglu_oss":
        up, d_up = up + 1, d_up + U * np.abs(up + 1)
    h = act * up
    return h, np.abs(act) * d_up + np.abs(up) * d_act + d_act * d_up + U * np.abs(h) + TINY


def halves(y, d, o):
    """Gate and up of rows [M, 2I] in the layout that the options say."""
    if o.get("ungated") or o.get("activation") == "relu2":
        return y, d, np.zeros_like(y), np.zeros_like(d)
    inter = y.shape[1] // 2
    if o.get("interleaved"):
        a, b, da, db = y[:, 0::2], y[:, 1::2], d[:, 0::2], d[:, 1::2]
    else:
        a, b, da, db = y[:, :inter], y[:, inter:], d[:, :inter], d[:, inter:]
    return (b, db, a, da) if o.get("up_first") else (a, da, b, db)


def product(x, d_x, w, w_scale, fmt):
    """x [M, K] (+- d_x) . w[N, K] in a format: (y, bound)."""
    if fmt == "f32":
        return dot(f32(x), f32(w), d_x)
    if fmt == "bf16":
        x, d_x = rounded(x, d_x, "bf16")
        return dot(x, bf16(w), d_x)
    q, off, scale, d_scale = quantize_range(x, d_x * np.ones_like(x))
    qw, sw = (np.asarray(w, np.float64), f32(w_scale)) if w_scale is not None else quantize(w)
    exact = q @ qw.T
    y = exact * scale[:, None] * sw
    # the integer sum is exact; its conversion and three products round once each
    bound = np.abs(y) * 4 * U + (np.abs(exact) * d_scale[:, None]
                                 + off @ np.abs(qw).T * (scale + d_scale)[:, None]) * sw
    return y, bound + TINY


def add_bias(y, d, bias):
    if bias is None:
        return y, d
    y = y + f32(bias)
    return y, d + U * np.abs(y)


def expert_rows(x, w13, w2, o, bias13=None, bias2=None, scale13=None, scale2=None):
    """One expert on rows x [M, H]: w13 [2I, H], w2 [H, I] -> (y, bound), before row_dtype."""
    fmt = o.get("dtype", "f32")
    y, d = product(f32(x), np.zeros(x.shape), w13, scale13, fmt)
    y, d = add_bias(y, d, bias13)
    if o.get("round_gate_up"):
        y, d = rounded(y, d, "bf16")
    gate, d_gate, up, d_up = halves(y, d, o)
    h, d_h = activation(gate, up, d_gate, d_up, o)
    y, d = product(h, d_h, w2, scale2, fmt)
    return add_bias(y, d, bias2)


def experts(x, w13, w2, ids, weights, bias13=None, bias2=None, scale13=None, scale2=None,
            shared=None, out_dtype="f32", **o):
    """All of it: (out [T, H], bound).  w13, w2 in the layout that o["transposed"] says."""
    if o.get("transposed"):
        w13, w2 = np.swapaxes(w13, 1, 2), np.swapaxes(w2, 1, 2)
    ids, weights = np.asarray(ids, np.int64), f32(weights)
    x = f32(x)
    n_experts, hidden = w2.shape[:2]
    _, slots, row_of = align(ids, n_experts, o.get("first_expert", 0))
    rows, bound = np.zeros((len(slots), hidden)), np.zeros((len(slots), hidden))
    topk = max(ids.shape[1], 1)
    pick = (lambda a, e: None if a is None else a[e])
    for e in range(n_experts):
        mine = np.array([r for r, s in enumerate(slots)
                         if ids.reshape(-1)[s] - o.get("first_expert", 0) == e], np.int64)
        if len(mine):
            rows[mine], bound[mine] = expert_rows(
                x[slots[mine] // topk], w13[e], w2[e], o, pick(bias13, e), pick(bias2, e),
                pick(scale13, e), pick(scale2, e))
    if o.get("weight_at") == "row":
        factor = weights.reshape(-1)[slots][:, None]
        rows = rows * factor
        bound = bound * np.abs(factor) + U * np.abs(rows)
        weights = np.ones_like(weights)
    rows, bound = rounded(rows, bound, o.get("row_dtype") or "f32")
    return combine(rows, bound, weights, row_of, None if shared is None else f32(shared),
                   dtype=out_dtype)


# ---- small operations -----------------------------------------------------------------------


def rms_norm(x, weight, eps, residual=None, dtype="f32", order="cast_then_weight",
             weight_offset=0.0, round_sum=False):
    """-> (out, bound), (s, bound); s is what was normalised, rounded to dtype."""
    x = f32(x)
    hidden = x.shape[-1]
    s, d = (x, 0 * x) if residual is None else (x + f32(residual), 0 * x)
    if residual is not None:
        d = U * np.abs(s)
    total = rounded(s, d, dtype)
    if round_sum:
        s, d = total
    mean = (s * s).mean(-1, keepdims=True) + f32(eps)
    r = 1 / np.sqrt(mean)
    # positive terms: H roundings of the sum, halved by the root; division, root, product after it
    relative = (hidden * U + 2 * U) / 2 + 4 * U
    y = s * r
    # an error of s moves the mean too, so its relative part counts twice
    bound = np.abs(y) * relative + r * d + np.abs(y) * (d / np.maximum(np.abs(s), TINY)).max(
        -1, keepdims=True, initial=0)
    w = np.ones(hidden) if weight is None else f32(weight)
    if weight_offset:
        w = f32(w + weight_offset)
    if order == "cast_then_weight":
        y, bound = rounded(y, bound + TINY, dtype)
    y = y * w
    return rounded(y, bound * np.abs(w) + 2 * U * np.abs(y) + TINY, dtype), total


def sigmoid(x):
    x = f32(x)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-x))
    return s, s * (EXP + 2 * U)


def sigmoid_mul(x, gate, dtype="f32"):
    s, d = sigmoid(gate)
    y = f32(x) * s
    return rounded(y, np.abs(f32(x)) * d + U * np.abs(y) + TINY, dtype)


def add_shared_expert(x, shared, gate=None, dtype="f32"):
    x, shared = f32(x), f32(shared)
    s, d = (np.ones((len(x), 1)), 0.0) if gate is None else sigmoid(gate)
    p = shared * s
    y = x + p
    return rounded(y, np.abs(shared) * d + U * np.abs(p) + 2 * U * np.abs(y) + TINY, dtype)
