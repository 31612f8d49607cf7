/* SPDX-License-Identifier: MIT
 *
 * steps.c - the public C functions against golden values that numpy computed in float64.
 *
 * Every case runs on every instruction set of this CPU; bounds are in the file, derived in
 * reference.py.  Integers (ids, groups, int8) must be equal.
 */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

/* One case on one instruction set. */
typedef struct run {
    steps_case *c;
    cmoe_ctx *ctx;
    cmoe_stream *s;
    const char *isa;
    int bad;
} run;

static void wrong(run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void wrong(run *r, const char *format, ...)
{
    if (r->bad++ >= 3) return;
    va_list args;
    va_start(args, format);
    printf("FAIL %s %s on %s: ", r->c->kind, r->c->name, r->isa);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

static bool ok(run *r, const char *call, cmoe_status status, const cmoe_error *err)
{
    if (status) wrong(r, "%s: %s \"%s\"", call, cmoe_status_name(status), err->text);
    return status == CMOE_OK;
}

#define OK(call) ok(r, #call, (call), &err)

static int64_t option(const run *r, const char *name, int64_t fallback)
{
    return (int64_t)steps_option(r->c, name, (double)fallback);
}

static cmoe_view in(run *r, const char *name)
{
    return steps_view(r->s, r->c, name);
}

/* ---- results --------------------------------------------------------------------------------- */

/* A result of the shape of want.<name>, between guard bytes. */
enum { GUARD = 32 };
typedef struct result {
    unsigned char *block;
    int64_t bytes;
    cmoe_view_mut v;
} result;

static result result_new(run *r, const char *name, int32_t dtype)
{
    char want[STEPS_WORD];
    snprintf(want, sizeof want, "want.%s", name);
    const steps_tensor *t = steps_find(r->c, want);
    if (!t) {
        printf("steps.txt: case %s %s has no %s\n", r->c->kind, r->c->name, want);
        exit(2);
    }
    result out = {.bytes = t->n * cmoe_dtype_bytes(dtype)};
    out.block = malloc((size_t)out.bytes + 2 * GUARD);
    if (!out.block) exit(2);
    memset(out.block, 0xa5, (size_t)out.bytes + 2 * GUARD);
    out.v = cmoe_view_mut_make(out.block + GUARD, dtype, t->rank, t->dims);
    return out;
}

/* Compares with want.<name> within bound.<name>, or exactly without one; frees. */
static void result_check(run *r, const char *name, result *out)
{
    char want[STEPS_WORD], bound[STEPS_WORD];
    snprintf(want, sizeof want, "want.%s", name);
    snprintf(bound, sizeof bound, "bound.%s", name);
    const steps_tensor *w = steps_find(r->c, want), *b = steps_find(r->c, bound);
    double *got = malloc((size_t)w->n * sizeof *got + 1);
    cmoe_error err = {0};
    for (int g = 0; g < GUARD; g++) {
        if (out->block[g] != 0xa5 || out->block[GUARD + out->bytes + g] != 0xa5)
            wrong(r, "%s: written outside its memory", name);
    }
    const cmoe_view_mut wide = cmoe_view_mut_make(got, CMOE_F64, w->rank, w->dims);
    if (OK(cmoe_convert(r->s, cmoe_view_of(out->v), wide, &err))) {
        for (int64_t i = 0; i < w->n; i++) {
            /* The file has ten digits. */
            const double near = b ? b->values[i] + 1e-9 * fabs(w->values[i]) : 0;
            if (!(fabs(got[i] - w->values[i]) <= near))
                wrong(r, "%s[%lld] = %.9g, want %.9g within %.2g", name, (long long)i, got[i],
                      w->values[i], near);
        }
    }
    free(got);
    free(out->block);
}

static cmoe_arena arena_new(int64_t bytes)
{
    void *base = malloc((size_t)bytes + 1);
    if (!base) exit(2);
    return cmoe_arena_make(base, bytes);
}

/* ---- one function for each kind of case ------------------------------------------------------ */

static void route_case(run *r)
{
    cmoe_route_options o;
    cmoe_route_inputs inputs;
    cmoe_error err = {0};
    cmoe_route_options_default(&o, sizeof o);
    cmoe_route_inputs_default(&inputs, sizeof inputs);
    o.topk = option(r, "topk", 0);
    o.scoring = (int32_t)option(r, "scoring", o.scoring);
    o.renormalize = (int32_t)option(r, "renormalize", o.renormalize);
    o.eps_rule = (int32_t)option(r, "eps_rule", o.eps_rule);
    o.eps = (float)steps_option(r->c, "eps", (double)o.eps);
    o.groups = option(r, "groups", o.groups);
    o.topk_groups = option(r, "topk_groups", o.topk_groups);
    o.group_mask = (int32_t)option(r, "group_mask", o.group_mask);
    o.group_score = (int32_t)option(r, "group_score", o.group_score);
    o.groups_biased = (int32_t)option(r, "groups_biased", o.groups_biased);
    o.scale = (float)steps_option(r->c, "scale", (double)o.scale);
    o.jitter = (float)steps_option(r->c, "jitter", (double)o.jitter);
    o.shared = option(r, "shared", o.shared);
    o.validate = 1;
    inputs.bias = in(r, "bias");
    inputs.hash_table = in(r, "hash_table");
    inputs.input_ids = in(r, "input_ids");
    inputs.given_ids = in(r, "given_ids");
    inputs.given_weights = in(r, "given_weights");
    inputs.per_expert_scale = in(r, "per_expert_scale");
    inputs.shared_gate = in(r, "shared_gate");
    const cmoe_view logits = in(r, "logits");
    result weights = result_new(r, "weights", CMOE_F32), ids = result_new(r, "ids", CMOE_I32);
    int64_t host = 0, device = 0;
    if (OK(cmoe_route_bytes(&o, logits.dims[0], logits.dims[1], &host, &device, &err))) {
        cmoe_arena scratch = arena_new(host);
        OK(cmoe_route(r->s, &o, logits, &inputs, weights.v, ids.v, &scratch, &err));
        free(scratch.base);
    }
    result_check(r, "ids", &ids);
    result_check(r, "weights", &weights);
}

/* The groups of "ids", in memory that the caller frees; NULL after an error. */
static void *align(run *r, cmoe_groups *groups)
{
    cmoe_align_options o;
    cmoe_error err = {0};
    cmoe_align_options_default(&o, sizeof o);
    o.experts = option(r, "experts", 0);
    o.first_expert = option(r, "first_expert", o.first_expert);
    o.block = option(r, "block", o.block);
    const cmoe_view ids = in(r, "ids");
    int64_t host = 0, device = 0;
    if (!OK(cmoe_align_bytes(&o, ids.dims[0], ids.dims[1], &host, &device, &err))) return NULL;
    cmoe_arena arena = arena_new(host);
    if (OK(cmoe_align(r->s, &o, ids, groups, &arena, &err))) return arena.base;
    free(arena.base);
    return NULL;
}

static void same_i32(run *r, const char *name, const int32_t *got)
{
    result out = result_new(r, name, CMOE_I32);
    if (out.bytes) memcpy(out.v.data, got, (size_t)out.bytes);
    result_check(r, name, &out);
}

static void align_case(run *r)
{
    cmoe_groups g;
    void *memory = align(r, &g);
    if (!memory) return;
    result first = result_new(r, "first", CMOE_I64);
    memcpy(first.v.data, g.first, (size_t)first.bytes);
    result_check(r, "first", &first);
    const steps_tensor *slots = steps_find(r->c, "want.slots");
    if (g.capacity < slots->n || g.first[g.experts] != slots->n)
        wrong(r, "%lld rows of %lld, want %lld", (long long)g.first[g.experts],
              (long long)g.capacity, (long long)slots->n);
    else
        same_i32(r, "slots", g.slots);
    for (int64_t i = slots->n; i < g.capacity; i++) {
        if (g.slots[i] != -1) wrong(r, "slots[%lld] behind the last is not -1", (long long)i);
    }
    same_i32(r, "row_of", g.row_of);
    free(memory);
}

static void combine_case(run *r)
{
    cmoe_combine_options o;
    cmoe_groups g;
    cmoe_error err = {0};
    cmoe_combine_options_default(&o, sizeof o);
    o.scale = (float)steps_option(r->c, "scale", (double)o.scale);
    o.shared_first = (int32_t)option(r, "shared_first", o.shared_first);
    void *memory = align(r, &g);
    if (!memory) return;
    result out = result_new(r, "out", (int32_t)option(r, "out_dtype", CMOE_F32));
    OK(cmoe_combine(r->s, &o, in(r, "rows"), in(r, "weights"), &g, in(r, "shared"), out.v, NULL,
                    &err));
    result_check(r, "out", &out);
    free(memory);
}

static void experts_run(run *r, const cmoe_experts_options *o)
{
    cmoe_experts *experts = NULL;
    cmoe_error err = {0};
    if (!OK(cmoe_experts_create(&experts, r->ctx, o, in(r, "w13"), in(r, "w2"), in(r, "bias13"),
                                in(r, "bias2"), &err)))
        return;
    const cmoe_view ids = in(r, "ids");
    result out = result_new(r, "out", (int32_t)option(r, "out_dtype", CMOE_F32));
    int64_t host = 0, device = 0;
    if (OK(cmoe_experts_bytes(experts, ids.dims[0], ids.dims[1], &host, &device, &err))) {
        cmoe_arena scratch = arena_new(host);
        OK(cmoe_experts_run(r->s, experts, in(r, "x"), ids, in(r, "weights"), in(r, "shared"),
                            out.v, &scratch, &err));
        free(scratch.base);
    }
    result_check(r, "out", &out);
    cmoe_experts_free(experts);
}

static void experts_case(run *r)
{
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = (int32_t)option(r, "format", o.format);
    o.row_dtype = (int32_t)option(r, "row_dtype", o.row_dtype);
    o.activation = (int32_t)option(r, "activation", o.activation);
    o.ungated = (int32_t)option(r, "ungated", o.ungated);
    o.swiglu_limit = (float)steps_option(r->c, "swiglu_limit", 0);
    o.alpha = (float)steps_option(r->c, "alpha", 0);
    o.up_first = (int32_t)option(r, "up_first", o.up_first);
    o.interleaved = (int32_t)option(r, "interleaved", o.interleaved);
    o.transposed = (int32_t)option(r, "transposed", o.transposed);
    o.round_gate_up = (int32_t)option(r, "round_gate_up", o.round_gate_up);
    o.round_act = (int32_t)option(r, "round_act", o.round_act);
    o.weight_at = (int32_t)option(r, "weight_at", o.weight_at);
    o.first_expert = option(r, "first_expert", o.first_expert);
    o.scale13 = in(r, "scale13");
    o.scale2 = in(r, "scale2");
    for (o.borrow = 0; o.borrow <= 1; o.borrow++)
        experts_run(r, &o);
}

static void rms_norm_case(run *r)
{
    cmoe_rms_norm_options o;
    cmoe_error err = {0};
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = (float)steps_option(r->c, "eps", (double)o.eps);
    o.order = (int32_t)option(r, "order", o.order);
    o.weight_offset = (float)steps_option(r->c, "weight_offset", 0);
    const cmoe_view x = in(r, "x");
    result out = result_new(r, "out", x.dtype), total = result_new(r, "residual_out", x.dtype);
    OK(cmoe_rms_norm(r->s, &o, x, in(r, "residual"), in(r, "weight"), out.v, total.v, &err));
    result_check(r, "out", &out);
    result_check(r, "residual_out", &total);
}

static void sigmoid_mul_case(run *r)
{
    cmoe_error err = {0};
    const cmoe_view x = in(r, "x");
    result out = result_new(r, "out", x.dtype);
    OK(cmoe_sigmoid_mul(r->s, x, in(r, "gate"), 0, out.v, &err));
    result_check(r, "out", &out);
}

static void add_shared_expert_case(run *r)
{
    cmoe_error err = {0};
    const cmoe_view x = in(r, "x");
    result out = result_new(r, "out", x.dtype);
    OK(cmoe_add_shared_expert(r->s, x, in(r, "shared"), in(r, "gate"), 0, out.v, &err));
    result_check(r, "out", &out);
}

static void quantize_rows_case(run *r)
{
    cmoe_error err = {0};
    result q = result_new(r, "q", CMOE_I8), scale = result_new(r, "scale", CMOE_F32);
    OK(cmoe_quantize_rows(r->s, in(r, "x"), q.v, scale.v, &err));
    result_check(r, "q", &q);
    result_check(r, "scale", &scale);
}

static const struct {
    const char *name;
    void (*run)(run *r);
} kinds[] = {
    {"route", route_case},
    {"align", align_case},
    {"combine", combine_case},
    {"experts", experts_case},
    {"rms_norm", rms_norm_case},
    {"sigmoid_mul", sigmoid_mul_case},
    {"add_shared_expert", add_shared_expert_case},
    {"quantize_rows", quantize_rows_case},
};

/* ---- all cases on all instruction sets ------------------------------------------------------- */

static void run_case(run *r)
{
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        if (!strcmp(kinds[k].name, r->c->kind)) {
            kinds[k].run(r);
            return;
        }
    }
    wrong(r, "no such kind of case");
}

/* Opens a context of one level; false when this CPU does not have it. */
static bool open_isa(run *r, int32_t level)
{
    cmoe_ctx_options o;
    cmoe_error err = {0};
    cmoe_ctx_options_default(&o, sizeof o);
    r->isa = cmoe_isa_level_name(level);
    if (cmoe_isa_mask(r->isa, &o.isa_mask, &err) || (o.isa_mask & ~cmoe_cpu_features()))
        return false;
    o.threads = 2;
    if (cmoe_ctx_create(&r->ctx, &o, &err) || cmoe_stream_create(&r->s, r->ctx, &err)) {
        printf("%s: %s\n", r->isa, err.text);
        exit(2);
    }
    return true;
}

int main(int argc, char **argv)
{
    static steps_case c;
    int passed = 0, failed = 0;
    FILE *f = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (!f) {
        printf("usage: golden_steps steps.txt\n");
        return 2;
    }
    for (int32_t level = 0; level < cmoe_isa_levels(); level++) {
        run r = {.c = &c};
        if (!open_isa(&r, level)) continue;
        rewind(f);
        while (steps_read(f, &c)) {
            r.bad = 0;
            run_case(&r);
            steps_free(&c);
            *(r.bad ? &failed : &passed) += 1;
        }
        cmoe_stream_free(r.s);
        cmoe_ctx_free(r.ctx);
    }
    fclose(f);
    printf("golden_steps: %d passed, %d failed\n", passed, failed);
    return failed || !passed;
}
