/* SPDX-License-Identifier: MIT
 *
 * world.c - random layers, the same weights in other layouts, the same tokens at other addresses.
 */
#include "world.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "core/core.h"

_Noreturn void world_die(const char *what, const cmoe_error *err)
{
    printf("bits: %s: %s\nbits: 0 passed, 1 failed\n", what, err->text);
    exit(1);
}

void *world_memory(int64_t bytes)
{
    void *p = malloc((size_t)(bytes > 0 ? bytes : 1));
    if (!p) {
        printf("bits: out of memory\nbits: 0 passed, 1 failed\n");
        exit(1);
    }
    return p;
}

int64_t world_draw(world *w, int64_t low, int64_t high)
{
    return low + (int64_t)(cmoe_random_u64(w->seed, w->draws++, 1) % (uint64_t)(high - low + 1));
}

static float *normals(world *w, int64_t n, float scale)
{
    float *p = world_memory(n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = cmoe_random_normal(w->seed, w->draws++, 2) * scale;
    return p;
}

/* Mostly small, sometimes up to `high`: odd sizes are where tiles end. */
static int64_t size_up_to(world *w, int64_t high)
{
    static const int64_t caps[] = {5, 20, 70};
    const int64_t which = world_draw(w, 0, 3);
    return world_draw(w, 1, which < 3 && caps[which] < high ? caps[which] : high);
}

static void draw_sizes(world *w)
{
    w->experts = size_up_to(w, 40);
    w->topk = world_draw(w, 1, w->experts < 8 ? w->experts : 8);
    w->hidden = size_up_to(w, 300);
    w->inter = size_up_to(w, 200);
    static const int64_t batches[] = {2, 3, 9, 40, 200, 1024};
    w->tokens = world_draw(w, 2, batches[world_draw(w, 0, 5)]);
    const int64_t most = 40000000 / (w->topk * w->hidden * w->inter) + 2;
    if (w->tokens > most) w->tokens = most;
}

static void draw_options(world *w)
{
    static const int32_t floats[] = {CMOE_F32, CMOE_BF16, CMOE_F16, CMOE_F64};
    w->activation = (int32_t)world_draw(w, 0, 3);
    w->gated = w->activation == CMOE_ACT_SWIGLU_OSS || world_draw(w, 0, 3) > 0;
    w->row_dtype = world_draw(w, 0, 1) ? CMOE_BF16 : CMOE_F32;
    w->weight_at = (int32_t)world_draw(w, 0, 1);
    w->scoring = (int32_t)world_draw(w, 0, 3);
    w->shared = world_draw(w, 0, 2) == 0;
    w->shared_gate = w->shared && world_draw(w, 0, 1);
    w->shared_first = (int32_t)world_draw(w, 0, 1);
    w->bias = world_draw(w, 0, 1);
    w->limit = world_draw(w, 0, 1) ? 0.7f : 0;
    w->x_dtype = floats[world_draw(w, 0, 3)];
    w->out_dtype = floats[world_draw(w, 0, 3)];
    w->lora = world_draw(w, 0, 1);
    w->round_gate_up = world_draw(w, 0, 1);
    w->round_act = world_draw(w, 0, 1);
    w->groups = w->experts % 2 == 0 && w->topk <= w->experts / 2 ? 2 : 1;
    w->combine_scale = world_draw(w, 0, 1) ? 1.7f : 1;
}

world *world_make(uint64_t seed, int32_t format)
{
    world *w = world_memory(sizeof *w);
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->format = format;
    draw_sizes(w);
    draw_options(w);
    const int64_t up = (w->gated ? 2 : 1) * w->inter, E = w->experts, H = w->hidden;
    w->x = normals(w, w->tokens * H, 1);
    for (int64_t i = 0; i < H; i++) /* subnormal numbers, which some callers flush */
        w->x[i] *= 0x1p-130f;
    w->gate = normals(w, E * H, 0.3f);
    w->choice_bias = normals(w, E, 0.1f);
    w->gate_bias = normals(w, E, 0.1f);
    w->scale = normals(w, E, 1);
    w->lora_a = normals(w, 3 * H, 0.3f);
    w->lora_b = normals(w, E * 3, 0.3f);
    w->w13 = normals(w, E * up * H, 0.2f);
    w->w2 = normals(w, E * H * w->inter, 0.2f);
    w->b13 = normals(w, E * up, 0.1f);
    w->b2 = normals(w, E * H, 0.1f);
    w->s13 = normals(w, up * H, 0.2f);
    w->s2 = normals(w, H * w->inter, 0.2f);
    w->sgate = normals(w, H, 0.3f);
    return w;
}

void world_free(world *w)
{
    float *all[] = {w->x,   w->gate, w->choice_bias, w->gate_bias, w->scale, w->lora_a, w->lora_b,
                    w->w13, w->w2,   w->b13,         w->b2,        w->s13,   w->s2,     w->sgate};
    for (int64_t i = 0; i < CMOEI_COUNT(all); i++)
        free(all[i]);
    free(w);
}

void world_title(const world *w, char *text, int64_t size)
{
    snprintf(text, (size_t)size,
             "seed %llu %s T=%lld K=%lld E=%lld H=%lld I=%lld %s gated=%d bias=%d rows=%s "
             "weight_at=%d shared=%d "
             "limit=%g x=%s out=%s scoring=%d",
             (unsigned long long)w->seed, cmoe_dtype_name(w->format), (long long)w->tokens,
             (long long)w->topk, (long long)w->experts, (long long)w->hidden, (long long)w->inter,
             cmoe_activation_name(w->activation), w->gated, w->bias, cmoe_dtype_name(w->row_dtype),
             w->weight_at, w->shared, (double)w->limit, cmoe_dtype_name(w->x_dtype),
             cmoe_dtype_name(w->out_dtype), w->scoring);
}

/* ---- building -------------------------------------------------------------------------------- */

/* [E, N, K] rows, re-laid as `h` asks; gate rows first in `src`. */
static cmoe_view laid_out(built *b, const float *src, int64_t E, int64_t N, int64_t K,
                          const cmoe_experts_options *pairs, how h)
{
    char *p = world_memory(E * N * K * 4 + 8);
    b->memory[b->blocks++] = p;
    p += h.odd;
    for (int64_t e = 0; e < E; e++) {
        for (int64_t n = 0; n < N; n++) {
            const int64_t half = N / 2;
            int64_t to = n; /* gate rows come first in src */
            if (pairs && pairs->up_first) to = n < half ? n + half : n - half;
            if (pairs && pairs->interleaved) to = to % half * 2 + to / half;
            for (int64_t k = 0; k < K; k++) {
                const int64_t at = h.transposed ? (e * K + k) * N + to : (e * N + to) * K + k;
                memcpy(p + 4 * at, &src[(e * N + n) * K + k], 4);
            }
        }
    }
    return h.transposed ? cmoe_view_3d(p, CMOE_F32, E, K, N) : cmoe_view_3d(p, CMOE_F32, E, N, K);
}

static cmoe_experts *experts_of(const world *w, built *b, how h, bool shared)
{
    cmoe_error err = {0};
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = w->format;
    o.activation = w->activation;
    o.ungated = !w->gated;
    o.swiglu_limit = w->limit;
    o.row_dtype = shared ? CMOE_F32 : w->row_dtype;
    o.weight_at = shared ? CMOE_WEIGHT_COMBINE : w->weight_at;
    o.borrow = h.borrow;
    o.transposed = h.transposed;
    o.interleaved = h.interleaved && w->gated;
    o.up_first = h.up_first && w->gated;
    o.round_gate_up = w->round_gate_up;
    o.round_act = w->round_act;
    const cmoe_experts_options *pairs = w->gated ? &o : NULL;
    o.chunk = h.chunk;
    const int64_t E = shared ? 1 : w->experts, up = (w->gated ? 2 : 1) * w->inter;
    const cmoe_view w13 = laid_out(b, shared ? w->s13 : w->w13, E, up, w->hidden, pairs, h);
    const cmoe_view w2 = laid_out(b, shared ? w->s2 : w->w2, E, w->hidden, w->inter, NULL, h);
    cmoe_view b13 = cmoe_view_none(), b2 = cmoe_view_none();
    if (w->bias && !shared) {
        how flat = h;
        flat.transposed = false;
        b13 = laid_out(b, w->b13, E, up, 1, pairs, flat);
        b2 = laid_out(b, w->b2, E, w->hidden, 1, NULL, flat);
        b13.rank = b2.rank = 2;
    }
    cmoe_experts *x = NULL;
    if (cmoe_experts_create(&x, b->ctx, &o, w13, w2, b13, b2, &err) != CMOE_OK)
        world_die("experts", &err);
    return x;
}

built world_build(const world *w, cmoe_ctx *ctx, how h)
{
    cmoe_error err = {0};
    built b = {.ctx = ctx};
    b.experts = experts_of(w, &b, h, false);
    if (w->shared) b.shared = experts_of(w, &b, h, true);
    cmoe_route_options r;
    cmoe_route_options_default(&r, sizeof r);
    r.topk = w->topk;
    r.scoring = w->scoring;
    r.groups = w->groups;
    r.topk_groups = w->groups > 1 ? 1 : 0;
    cmoe_layer_options o;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &r;
    o.chunk = h.chunk;
    o.shared_first = w->shared_first;
    o.combine_scale = w->combine_scale;
    cmoe_layer_weights lw;
    cmoe_layer_weights_default(&lw, sizeof lw);
    lw.gate = cmoe_view_2d(w->gate, CMOE_F32, w->experts, w->hidden);
    if (w->bias) {
        lw.bias = cmoe_view_1d(w->choice_bias, CMOE_F32, w->experts);
        lw.gate_bias = cmoe_view_1d(w->gate_bias, CMOE_F32, w->experts);
        lw.per_expert_scale = cmoe_view_1d(w->scale, CMOE_F32, w->experts);
    }
    if (w->lora) {
        lw.lora_a = cmoe_view_2d(w->lora_a, CMOE_F32, 3, w->hidden);
        lw.lora_b = cmoe_view_2d(w->lora_b, CMOE_F32, w->experts, 3);
        lw.lora_scale = 0.5f;
    }
    lw.experts = b.experts;
    lw.shared = b.shared;
    if (w->shared_gate) lw.shared_gate = cmoe_view_2d(w->sgate, CMOE_F32, 1, w->hidden);
    if (cmoe_layer_create(&b.layer, ctx, &o, &lw, &err) != CMOE_OK) world_die("layer", &err);
    return b;
}

void built_free(built *b)
{
    cmoe_layer_free(b->layer);
    cmoe_experts_free(b->shared);
    cmoe_experts_free(b->experts);
    for (int i = 0; i < b->blocks; i++)
        free(b->memory[i]);
}

/* ---- running --------------------------------------------------------------------------------- */

int64_t world_out_bytes(const world *w)
{
    return w->hidden * cmoe_dtype_bytes(w->out_dtype);
}

/* Room for [n, cols] elements in this layout, and the view over it. */
cmoe_view_mut world_room(int32_t dtype, int64_t n, int64_t cols, layout l, void **memory)
{
    const int64_t bytes = cmoe_dtype_bytes(dtype), row = cols * l.col + l.row_gap;
    char *p = world_memory(n * row * bytes + 8);
    memset(p, 0x7f, (size_t)(n * row * bytes + 8));
    *memory = p;
    cmoe_view_mut v = cmoe_view_mut_2d(p + l.odd, dtype, n, cols);
    v.strides[0] = row;
    v.strides[1] = l.col;
    return v;
}

void world_caller_mode(bool odd)
{
    fesetround(odd ? FE_UPWARD : FE_TONEAREST);
#if defined(__x86_64__)
    enum { FLUSH = 0x8040 }; /* results and operands */
    _mm_setcsr(odd ? _mm_getcsr() | FLUSH : _mm_getcsr() & ~(unsigned)FLUSH);
#endif
}

void world_run(const world *w, const built *b, const int64_t *tokens, int64_t n, layout l,
               int32_t *ids, float *weights, bool replay, void *out)
{
    cmoe_error err = {0};
    void *x_memory, *out_memory;
    const cmoe_view_mut x = world_room(w->x_dtype, n, w->hidden, l, &x_memory);
    const cmoe_view_mut y = world_room(w->out_dtype, n, w->hidden, l, &out_memory);
    for (int64_t i = 0; i < n; i++)
        cmoei_store_f32(cmoei_at_mut(&x, i, 0), w->x_dtype, l.col, w->x + tokens[i] * w->hidden,
                        w->hidden);
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    if (replay) {
        call.replay_ids = cmoe_view_2d(ids, CMOE_I32, n, w->topk);
        if (weights) call.replay_weights = cmoe_view_2d(weights, CMOE_F32, n, w->topk);
    } else if (ids) {
        call.ids = cmoe_view_mut_2d(ids, CMOE_I32, n, w->topk);
        call.weights = cmoe_view_mut_2d(weights, CMOE_F32, n, w->topk);
    }
    int64_t bytes;
    if (cmoe_layer_bytes(b->layer, n, &bytes, NULL, &err) != CMOE_OK)
        world_die("layer bytes", &err);
    void *scratch = world_memory(bytes);
    memset(scratch, 0xff, (size_t)bytes); /* NaN: what is read without being written shows */
    cmoe_arena arena = cmoe_arena_make(scratch, bytes);
    cmoe_stream *s = NULL;
    if (cmoe_stream_create(&s, b->ctx, &err) != CMOE_OK) world_die("stream", &err);
    if (l.mode) world_caller_mode(true);
    const cmoe_status status =
        cmoe_layer_forward(s, b->layer, cmoe_view_of(x), &call, y, &arena, &err);
    if (l.mode) world_caller_mode(false);
    if (status != CMOE_OK) world_die("forward", &err);
    cmoe_stream_free(s);
    const int64_t element = cmoe_dtype_bytes(w->out_dtype);
    for (int64_t i = 0; i < n * w->hidden; i++)
        memcpy((char *)out + i * element, cmoei_at_mut(&y, i / w->hidden, i % w->hidden),
               (size_t)element);
    free(scratch);
    free(x_memory);
    free(out_memory);
}
