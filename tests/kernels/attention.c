/* SPDX-License-Identifier: MIT
 *
 * attention.c - every attention kernel against the double oracle, the oracle against the formula,
 * and all kernels bit by bit against each other and against rows taken one at a time.
 *
 * Whatever no row sees is NaN in the cache, keys and values.
 */
#include "planes.h"

#include "ops/attention_kernel.h"

void cmoei_attention_part_f64(const cmoei_attention_args *a);
void cmoei_attention_merge_f64(const cmoei_attention_parts *p);

enum { PARTS = 3, MOST_ROWS = 9 };

typedef struct shape {
    int64_t key_dim, value_dim, rows;
    int64_t lo, hi; /* of row 0; each row sees `next` keys on */
    int64_t next;
    float scale, sink; /* sink 0: none */
} shape;

static char *element(const cmoei_attention_args *a, int64_t key, bool value, int64_t d)
{
    char *page = (char *)(uintptr_t)cmoei_attention_page(a, key / CMOE_KV_PAGE);
    const int64_t j = key % CMOE_KV_PAGE;
    const int64_t i = value ? j * a->value_dim + d : d * CMOE_KV_PAGE + j;
    return page + (value ? a->values : a->keys) + i * cmoe_dtype_bytes(a->format);
}

static double at(const cmoei_attention_args *a, int64_t key, bool value, int64_t d)
{
    float x;
    cmoei_load_f32(&x, element(a, key, value, d), a->format, 1, 1);
    return x;
}

static void fill(kc *c, const cmoei_attention_args *a, int64_t keys, int64_t lo, int64_t hi)
{
    for (int64_t key = 0; key < keys; key++) {
        for (int value = 0; value < 2; value++) {
            for (int64_t d = 0; d < (value ? a->value_dim : a->key_dim); d++) {
                const float x = key < lo || key >= hi ? NAN : kc_normal(c);
                cmoei_store_f32(element(a, key, value, d), a->format, 1, &x, 1);
            }
        }
    }
}

typedef struct results {
    void *m, *l, *acc; /* [PARTS, rows], [PARTS, rows], [PARTS, rows, value_dim] */
    void *out;         /* [rows, value_dim] */
    int64_t bytes;     /* of an element */
} results;

static results make(kc *c, const shape *s, int64_t bytes)
{
    return (results){.m = kc_out(c, PARTS * s->rows * bytes),
                     .l = kc_out(c, PARTS * s->rows * bytes),
                     .acc = kc_out(c, PARTS * s->rows * s->value_dim * bytes),
                     .out = kc_out(c, s->rows * s->value_dim * bytes),
                     .bytes = bytes};
}

static char *plus(void *p, int64_t n, int64_t bytes)
{
    return (char *)p + n * bytes;
}

typedef void (*part_fn)(const cmoei_attention_args *a);
typedef void (*merge_fn)(const cmoei_attention_parts *p);

/* `step` rows a call. */
static void run(cmoei_attention_args a, const shape *s, part_fn part, merge_fn merge, results to,
                int64_t step)
{
    const int64_t *lo = a.lo, *hi = a.hi;
    const float *q = a.q;
    for (int64_t i = 0; i < PARTS; i++) {
        for (int64_t r = 0; r < s->rows; r += step) {
            const int64_t slot = i * s->rows + r;
            a.rows = CMOEI_MIN(step, s->rows - r);
            a.q = q + r * s->key_dim;
            a.lo = lo + r;
            a.hi = hi + r;
            a.m = plus(to.m, slot, to.bytes);
            a.l = plus(to.l, slot, to.bytes);
            a.acc = plus(to.acc, slot * s->value_dim, to.bytes);
            a.key = i * CMOE_KV_PART;
            a.key_end = CMOEI_MIN(a.key + CMOE_KV_PART, hi[s->rows - 1]);
            part(&a);
        }
    }
    for (int64_t r = 0; r < s->rows; r++) {
        const int64_t first = lo[r] / CMOE_KV_PART, slot = first * s->rows + r;
        const cmoei_attention_parts p = {.m = plus(to.m, slot, to.bytes),
                                         .l = plus(to.l, slot, to.bytes),
                                         .acc = plus(to.acc, slot * s->value_dim, to.bytes),
                                         .parts = cmoei_ceil_div(hi[r], CMOE_KV_PART) - first,
                                         .step = s->rows,
                                         .value_dim = s->value_dim,
                                         .sink = s->sink != 0 ? &s->sink : NULL,
                                         .out = plus(to.out, r * s->value_dim, to.bytes)};
        merge(&p);
    }
}

/* The formula in double: out[d], and sum of weight * |v[d]|. */
typedef struct truth {
    double score[PARTS * CMOE_KV_PART], top, sum, error;
} truth;

/* u = 2^-24.  A score passes key_dim fused adds and two roundings (scale, and scale itself against
 * the double it stands for is exact): key_dim + 2 units of scale * sum |q k|.  Its weight passes
 * s - m and the differences of maxima, which telescope to what m rose by: at most 2 (max - min of
 * scores) units, relative; exp (2.2 units) for itself and for each of `steps` rescalings, each with
 * a product: 3.2 units.  Twice it to cover second order. */
static void scores(const cmoei_attention_args *a, int64_t r, float sink, truth *t)
{
    double worst = 0, low = INFINITY;
    t->top = sink != 0 ? (double)sink : -INFINITY;
    for (int64_t key = a->lo[r]; key < a->hi[r]; key++) {
        double s = 0, magnitude = 0;
        for (int64_t d = 0; d < a->key_dim; d++) {
            const double p = (double)a->q[r * a->key_dim + d] * at(a, key, false, d);
            s += p;
            magnitude += fabs(p);
        }
        t->score[key - a->lo[r]] = s * a->scale;
        t->top = fmax(t->top, s * a->scale);
        low = fmin(low, s * a->scale);
        worst = fmax(worst, ((double)a->key_dim + 2) * fabs(a->scale) * magnitude);
    }
    const double keys = (double)(a->hi[r] - a->lo[r]), steps = keys / CMOE_KV_PAGE + 2 + PARTS + 2;
    t->error = 2 * 0x1p-24 * (worst + 2 * (t->top - low) + 3.2 * steps + 2.2);
    t->sum = sink != 0 ? exp((double)sink - t->top) : 0;
    for (int64_t i = 0; i < a->hi[r] - a->lo[r]; i++)
        t->sum += exp(t->score[i] - t->top);
}

/* Numerator and denominator each carry the weights' error; the numerator is a chain of fused adds
 * over all keys, the denominator passes 4 + 4 adds a block; one division. */
static double element_of(const cmoei_attention_args *a, int64_t r, int64_t d, const truth *t,
                         double *bound)
{
    double y = 0, magnitude = 0;
    const double keys = (double)(a->hi[r] - a->lo[r]);
    for (int64_t i = 0; i < a->hi[r] - a->lo[r]; i++) {
        const double w = exp(t->score[i] - t->top) / t->sum, v = at(a, a->lo[r] + i, true, d);
        y += w * v;
        magnitude += w * fabs(v);
    }
    *bound = (2 * t->error + 2 * 0x1p-24 * (keys + 8 + keys / CMOE_KV_PAGE + PARTS)) * magnitude +
             keys * 16 * FLT_MIN;
    return y;
}

static void compare(kc *c, const char *name, const cmoei_attention_args *a, const shape *s,
                    const double *want, const float *got)
{
    static truth t;
    for (int64_t r = 0; r < s->rows; r++) {
        scores(a, r, s->sink, &t);
        for (int64_t d = 0; d < s->value_dim; d++) {
            double bound;
            const int64_t i = r * s->value_dim + d;
            const double y = element_of(a, r, d, &t, &bound);
            if (!got)
                kc_near(c, name, i, want[i], y, bound * 0x1p-24);
            else
                kc_near(c, name, i, got[i], want[i], bound);
        }
    }
}

static void check(kc *c, shape s, int32_t format)
{
    kc_begin(c, "attention %s dims=%dx%d rows=%d keys=[%d, %d) +%d sink=%g",
             cmoe_dtype_name(format), (int)s.key_dim, (int)s.value_dim, (int)s.rows, (int)s.lo,
             (int)s.hi, (int)s.next, s.sink);
    const int64_t bytes = cmoe_dtype_bytes(format), pages = PARTS * CMOE_KV_PART / CMOE_KV_PAGE;
    int64_t lo[MOST_ROWS], hi[MOST_ROWS];
    for (int64_t r = 0; r < s.rows; r++) {
        lo[r] = s.lo + r * s.next;
        hi[r] = s.hi + r * s.next;
    }
    int32_t *page = kc_out(c, pages * 4);
    for (int64_t i = 0; i < pages; i++)
        page[i] = (int32_t)(pages - 1 - i);
    cmoei_attention_args a = {.q = kc_f32s(c, s.rows * s.key_dim),
                              .lo = lo,
                              .hi = hi,
                              .pages = page,
                              .page_stride = CMOE_KV_PAGE * (s.key_dim + s.value_dim) * bytes,
                              .values = CMOE_KV_PAGE * s.key_dim * bytes,
                              .rows = s.rows,
                              .key_dim = s.key_dim,
                              .value_dim = s.value_dim,
                              .format = format,
                              .scale = s.scale};
    a.base = kc_out(c, pages * a.page_stride);
    fill(c, &a, pages * CMOE_KV_PAGE, lo[0], hi[s.rows - 1]);
    const results want = make(c, &s, sizeof(double)), first = make(c, &s, sizeof(float));
    run(a, &s, cmoei_attention_part_f64, cmoei_attention_merge_f64, want, s.rows);
    compare(c, "oracle", &a, &s, want.out, NULL);
    for (int64_t v = cmoei_attention_table.count - 1; v >= 0; v--) {
        const cmoei_attention_kernel *kn = (const void *)cmoei_table_row(&cmoei_attention_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_attention_table.count - 1;
        const results got = ref ? first : make(c, &s, sizeof(float));
        run(a, &s, kn->part, kn->merge, got, s.rows);
        if (ref) compare(c, kn->variant.name, &a, &s, want.out, got.out);
        kc_equal(c, kn->variant.name, got.out, first.out, s.rows * s.value_dim * 4);
        kc_equal(c, "l", got.l, first.l, PARTS * s.rows * 4);
        run(a, &s, kn->part, kn->merge, got, 1);
        kc_equal(c, "rows one by one", got.out, first.out, s.rows * s.value_dim * 4);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const shape shapes[] = {
        {1, 1, 1, 0, 1, 0, 1, 0},                /* a token that sees itself */
        {16, 16, 5, 0, 1, 1, .25f, 0},           /* causal from the first token */
        {64, 64, 8, 0, 200, 0, .125f, 0},        /* query heads of one token */
        {80, 112, 9, 0, 60, 1, .11f, 0},         /* over the edge of a page */
        {128, 128, 4, 0, 1023, 1, .088f, 0},     /* over the edge of a part */
        {128, 64, 3, 0, 2500, 1, .5f, 0},        /* sharp scores, three parts */
        {64, 17, 7, 900, 1028, 1, .125f, -1.5f}, /* window and sink, odd values */
        {20, 100, 6, 1000, 1010, 50, .2f, 30},   /* rows without a common key; the sink wins */
        {33, 9, 9, 1000, 1064, 8, .2f, 1},       /* and with few */
        {4, 40, 1, 2047, 2049, 0, 20, 0},        /* weights that underflow */
    };
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        check(&c, shapes[s], CMOE_F32);
        check(&c, shapes[s], CMOE_BF16);
    }
    return kc_report(&c, "kernels_attention");
}
