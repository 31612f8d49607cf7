/* SPDX-License-Identifier: MIT
 *
 * embedding_backward.c - every kernel of embedding's gradient against the double oracle, and all of
 * them bit by bit against each other: units without tokens, ids without tokens, sums that are -0.
 */
#include "backward.h"

#include "ops/embedding_backward.h"

void cmoei_embedding_backward_f64(const cmoei_embedding_backward_args *a, int64_t id,
                                  int64_t id_end);

/* Tokens by id, ascending; id of token t is random in [0, used). */
static void place(kc *c, int64_t tokens, int64_t vocab, int64_t used, int64_t *order,
                  int64_t *first)
{
    int64_t *ids = kc_out(c, tokens * (int64_t)sizeof *ids), n = 0;
    for (int64_t t = 0; t < tokens; t++)
        ids[t] = kc_int(c, 0, used - 1);
    for (int64_t id = 0; id < vocab; id++) {
        first[id] = n;
        for (int64_t t = 0; t < tokens; t++) {
            if (ids[t] == id) order[n++] = t;
        }
    }
    first[vocab] = n;
}

/* A sum of n products in any order is off by n * 2^-23 * sum |product|; the result may be as small as
 * a sum of n subnormals. */
static double bound(const cmoei_embedding_backward_args *a, int64_t id, int64_t h)
{
    double n = 0, sum = 0;
    for (int64_t i = a->first[id]; i < a->first[id + 1]; i++, n++)
        sum += fabs(kc_get(&a->dout, a->order[i], h) * (double)a->scale);
    return 2 * KC_U * n * sum + n * FLT_MIN;
}

static void check(kc *c, int64_t tokens, int64_t vocab, int64_t used, int64_t hidden, int64_t units,
                  float size, int odd)
{
    kc_begin(c, "embedding_backward T=%d V=%d of %d H=%d units=%d size=%g odd=%d", (int)tokens,
             (int)vocab, (int)used, (int)hidden, (int)units, (double)size, odd);
    int64_t cuts[CMOE_UNITS_MOST + 1];
    int64_t *order = kc_out(c, tokens * (int64_t)sizeof *order);
    int64_t *first = kc_out(c, (vocab + 1) * (int64_t)sizeof *first);
    place(c, tokens, vocab, used, order, first);
    const cmoei_plane want = kc_plane_out(c, vocab, hidden, kc_f64);
    const cmoei_plane same = kc_plane_out(c, vocab, hidden, kc_f32(odd));
    cmoei_embedding_backward_args a = {.order = order,
                                       .first = first,
                                       .dout = kc_plane(c, tokens, hidden, kc_f32(odd), size),
                                       .dtable = want,
                                       .units = kc_units(c, tokens, units, cuts),
                                       .hidden = hidden,
                                       .scale = size < 1 ? size : .7f};
    cmoei_embedding_backward_f64(&a, 0, vocab);
    for (int64_t v = cmoei_embedding_backward_table.count - 1; v >= 0; v--) {
        const cmoei_embedding_backward_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_embedding_backward_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_embedding_backward_table.count - 1;
        a.dtable = ref ? same : kc_plane_out(c, vocab, hidden, kc_f32(odd));
        kn->run(&a, 0, vocab / 3);
        kn->run(&a, vocab / 3, vocab);
        kc_equal(c, kn->variant.name, a.dtable.data, same.data, kc_bytes(&same, vocab));
        for (int64_t i = 0; i < vocab * hidden; i++)
            kc_near(c, kn->variant.name, i, kc_get(&a.dtable, i / hidden, i % hidden),
                    kc_get(&want, i / hidden, i % hidden), bound(&a, i / hidden, i % hidden));
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][4] = {{0, 3, 1, 5},    {1, 4, 4, 33},     {20, 9, 1, 7},
                                 {64, 5, 5, 600}, {100, 40, 40, 16}, {300, 7, 3, 64}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t units = 1; units <= CMOE_UNITS_MOST; units *= 2) {
            for (int odd = 0; odd < 2; odd++) {
                const int64_t *n = shapes[s];
                check(&c, n[0], n[1], n[2], n[3], units, odd ? 1e-30f : 1, odd);
            }
        }
    }
    return kc_report(&c, "kernels_embedding_backward");
}
