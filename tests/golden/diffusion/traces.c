/* SPDX-License-Identifier: MIT
 *
 * traces.c - block diffusion of whole models: the published traces of sdar and sdar_moe token for
 * token and forward for forward, and, for every length of blocks, the plain algorithm that recomputes
 * the whole canvas in each pass.
 *
 *     golden_diffusion FOLDER
 *
 * Confidences of a trace agree to 1e-4: a probability moves by at most half of what its logit does.
 */
#include <math.h>
#include <stdbool.h>

#include "cmoe/weights.h"
#include "drive.h"

static const char *folder;

/* ---- traces ---------------------------------------------------------------------------------- */

typedef struct trace {
    int64_t prompt, end, rows;
    int32_t tokens[DRIVE_MOST];
    drive_row row[DRIVE_MOST];
} trace;

static const void *tensor(const cmoe_checkpoint *c, const char *name, int32_t dtype, int64_t *n)
{
    cmoe_tensor t = {.size = sizeof t};
    const int64_t i = cmoe_checkpoint_find(c, name);
    if (i < 0) fail_msg("%s is missing", name);
    UNIT_OK(cmoe_checkpoint_tensor(c, i, &t, &err));
    assert_int_equal(t.dtype, dtype);
    *n = t.dims[0];
    assert_in_range(*n, 1, DRIVE_MOST);
    return t.data;
}

static int by_pass(const void *a, const void *b)
{
    const drive_row *p = a, *q = b;
    if (p->block != q->block) return p->block < q->block ? -1 : 1;
    if (p->pass != q->pass) return p->pass < q->pass ? -1 : 1;
    return p->position < q->position ? -1 : 1;
}

/* Data of a mapping may lie at any address. */
static void read_trace(const cmoe_checkpoint *c, int p, const char *strategy, trace *t)
{
    char name[64];
    int64_t id, n;
    snprintf(name, sizeof name, "p%d.input_ids", p);
    (void)tensor(c, name, CMOE_I64, &t->prompt);
    snprintf(name, sizeof name, "p%d.bd.%s.tokens", p, strategy);
    const char *tokens = tensor(c, name, CMOE_I64, &t->end);
    for (int64_t i = 0; i < t->end; i++) {
        memcpy(&id, tokens + 8 * i, 8);
        t->tokens[i] = (int32_t)id;
    }
    snprintf(name, sizeof name, "p%d.bd.%s.steps", p, strategy);
    const char *steps = tensor(c, name, CMOE_I32, &t->rows);
    snprintf(name, sizeof name, "p%d.bd.%s.conf", p, strategy);
    const char *confidence = tensor(c, name, CMOE_F32, &n);
    assert_int_equal(n, t->rows);
    for (int64_t i = 0; i < t->rows; i++) {
        int32_t row[4];
        float f;
        memcpy(row, steps + 16 * i, sizeof row);
        memcpy(&f, confidence + 4 * i, sizeof f);
        t->row[i] = (drive_row){row[0], row[1], row[2], row[3], f};
    }
    qsort(t->row, (size_t)t->rows, sizeof t->row[0], by_pass);
}

/* One pass for each (block, step) of the trace; each block but the last costs one more. */
static int64_t forwards_of(const trace *t)
{
    int64_t n = 0;
    for (int64_t i = 0; i < t->rows; i++) {
        const bool block = i > 0 && t->row[i].block == t->row[i - 1].block;
        n += !block + !(block && t->row[i].pass == t->row[i - 1].pass);
    }
    return n - 1;
}

static void compare(const char *what, const trace *t, const drive_result *r)
{
    if (r->told != t->end || r->rows != t->rows || r->forwards != forwards_of(t))
        fail_msg("%s: %d tokens, want %d; %d rows, want %d; %d forwards, want %d", what,
                 (int)r->told, (int)t->end, (int)r->rows, (int)t->rows, (int)r->forwards,
                 (int)forwards_of(t));
    assert_memory_equal(r->tokens, t->tokens, (size_t)t->end * sizeof t->tokens[0]);
    for (int64_t i = 0; i < t->rows; i++) {
        const drive_row *a = &r->row[i], *b = &t->row[i];
        if (a->block != b->block || a->pass != b->pass || a->position != b->position ||
            a->token != b->token || !(fabs(a->confidence - b->confidence) <= 1e-4))
            fail_msg(
                "%s: row %d: block %d pass %d position %d token %d confidence %.6f, want %d %d "
                "%d %d %.6f",
                what, (int)i, (int)a->block, (int)a->pass, (int)a->position, a->token,
                a->confidence, (int)b->block, (int)b->pass, (int)b->position, b->token,
                b->confidence);
    }
}

/* As meta.json says, which is JSON of Python's kind: it has an Infinity, and jansson refuses it. */
static cmoe_diffusion settings_of(int64_t block, const cmoe_model_info *info)
{
    cmoe_diffusion d;
    cmoe_diffusion_default(&d, sizeof d);
    d.steps = 4;
    d.threshold = 0.35f;
    assert_int_equal(info->mask, block);
    assert_int_equal(info->mask_token, 255);
    return d;
}

static void published(void **state)
{
    static const char *const cases[] = {"sdar", "sdar_moe"};
    static const int64_t blocks[] = {4, 8};
    static const char *const strategies[] = {"dynamic", "static", "sequential"};
    static trace t;
    static drive_result r;
    (void)state;
    for (int c = 0; c < 2; c++) {
        char path[4096];
        drive d;
        cmoe_checkpoint *golden;
        cmoe_sampling greedy;
        cmoe_sampling_default(&greedy, sizeof greedy);
        snprintf(path, sizeof path, "%s/%s", folder, cases[c]);
        drive_open(&d, path, 0);
        snprintf(path, sizeof path, "%s/%s/golden.safetensors", folder, cases[c]);
        UNIT_OK(cmoe_checkpoint_open(&golden, d.env.ctx, path, &err));
        cmoe_diffusion settings = settings_of(blocks[c], &d.info);
        for (int32_t s = 0; s < 3; s++) {
            settings.remasking = s; /* named in the order of CMOE_REMASK_ */
            for (int p = 0; p < 2; p++) {
                char what[64];
                snprintf(what, sizeof what, "%s p%d %s", cases[c], p, strategies[s]);
                read_trace(golden, p, strategies[s], &t);
                drive_run(&d, t.tokens, t.prompt, t.end, &settings, &greedy, &r);
                compare(what, &t, &r);
            }
        }
        cmoe_checkpoint_free(golden);
        drive_close(&d);
    }
}

/* ---- the plain algorithm ---------------------------------------------------------------------- */

/* The token of a row and its probability; the mask is never chosen. */
static int32_t best_of(const float *x, int64_t vocab, int64_t mask, double *confidence)
{
    double sum = 0;
    int64_t best = mask == 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (x[i] > x[best] && i != mask) best = i;
    }
    for (int64_t i = 0; i < vocab; i++)
        sum += exp((double)x[i] - x[best]);
    *confidence = 1 / sum;
    return (int32_t)best;
}

/* Fills the block [lo, hi) of x, the two best of it in each pass; no cache is used. */
static void plain_block(drive *d, int32_t *x, int64_t lo, int64_t hi)
{
    const int64_t mask = d->info.mask_token, vocab = d->info.vocab;
    for (;;) {
        int64_t rows[64], n = 0;
        int32_t token[64];
        double confidence[64];
        for (int64_t i = lo; i < hi; i++) {
            if (x[i] == mask) rows[n++] = i;
        }
        if (n == 0) return;
        drive_forward(d, x, 0, hi, rows, n);
        for (int64_t i = 0; i < n; i++)
            token[i] = best_of(d->logits + i * vocab, vocab, mask, &confidence[i]);
        for (int64_t k = 0; k < 2 && k < n; k++) {
            int64_t at = 0;
            for (int64_t i = 1; i < n; i++) {
                if (confidence[i] > confidence[at]) at = i;
            }
            x[rows[at]] = token[at];
            confidence[at] = -1;
        }
    }
}

static void block_lengths(void **state)
{
    static drive_result r;
    (void)state;
    for (int32_t block = 4; block <= 64; block *= 2) {
        char path[4096];
        drive d;
        cmoe_sampling greedy;
        cmoe_diffusion settings;
        cmoe_sampling_default(&greedy, sizeof greedy);
        cmoe_diffusion_default(&settings, sizeof settings);
        settings.remasking = CMOE_REMASK_LOW_CONFIDENCE_STATIC;
        settings.steps = block / 2;
        settings.block = block;
        snprintf(path, sizeof path, "%s/sdar_moe", folder);
        drive_open(&d, path, block);
        for (int64_t prompt = 5; prompt < 80; prompt += 66) {
            int32_t x[DRIVE_MOST];
            const int64_t end = (prompt / block + 2) * block;
            for (int64_t i = 0; i < end; i++)
                x[i] = i < prompt ? (int32_t)(i * 37 % 200) : (int32_t)d.info.mask_token;
            drive_run(&d, x, prompt, end, &settings, &greedy, &r);
            for (int64_t lo = prompt / block * block; lo < end; lo += block)
                plain_block(&d, x, lo, lo + block);
            assert_int_equal(r.told, end);
            assert_memory_equal(r.tokens, x, (size_t)end * sizeof x[0]);
        }
        drive_close(&d);
    }
}

/* Several blocks at once: all is written, and fewer forwards are needed than one after the other. */
static void several_blocks(void **state)
{
    static drive_result one, four, entropy;
    (void)state;
    char path[4096];
    drive d;
    int32_t x[3] = {3, 1, 4};
    cmoe_sampling greedy;
    cmoe_diffusion settings;
    cmoe_sampling_default(&greedy, sizeof greedy);
    cmoe_diffusion_default(&settings, sizeof settings);
    snprintf(path, sizeof path, "%s/sdar", folder);
    drive_open(&d, path, 0);
    settings.accept = settings.threshold = 0.3f;
    drive_run(&d, x, 3, 120, &settings, &greedy, &one);
    settings.buffer = 4;
    drive_run(&d, x, 3, 120, &settings, &greedy, &four);
    assert_true(one.told == 120 && four.told == 120 && four.finish == CMOE_FINISH_LENGTH);
    assert_true(four.forwards < one.forwards);
    settings.buffer = 1;
    settings.remasking = CMOE_REMASK_ENTROPY_BOUNDED;
    settings.eb = 2;
    drive_run(&d, x, 3, 120, &settings, &greedy, &entropy);
    assert_int_equal(entropy.told, 120);
    drive_close(&d);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published),
        cmocka_unit_test(block_lengths),
        cmocka_unit_test(several_blocks),
    };
    if (argc != 2) {
        printf("usage: golden_diffusion FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("golden_diffusion", tests);
}
