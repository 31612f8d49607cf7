/* SPDX-License-Identifier: MIT
 *
 * drive.c - see drive.h.
 */
#include "drive.h"

#include <math.h>

#include "engine/diffusion.h"

/* ---- model ----------------------------------------------------------------------------------- */

void drive_open(drive *d, const char *folder, int32_t block)
{
    *d = (drive){.env = unit_open(2), .info = {.size = sizeof d->info}};
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = CMOE_F32;
    o.mask_block = block;
    UNIT_OK(cmoe_model_load(&d->model, d->env.ctx, folder, &o, &err));
    UNIT_OK(cmoe_model_describe(d->model, &d->info, &err));
    assert_true(d->info.context >= DRIVE_MOST);
    cmoe_cache_options c;
    cmoe_cache_options_default(&c, sizeof c);
    c.pages = DRIVE_MOST / CMOE_KV_PAGE;
    c.format = CMOE_F32;
    UNIT_OK(cmoe_cache_create(&d->cache, d->model, &c, &err));
    for (int32_t i = 0; i < c.pages; i++)
        d->pages[i] = (int32_t)c.pages - 1 - i;
    d->logits = calloc((size_t)(DRIVE_MOST * d->info.vocab), sizeof *d->logits);
}

void drive_close(drive *d)
{
    free(d->logits);
    cmoe_cache_free(d->cache);
    cmoe_model_free(d->model);
    unit_close(&d->env);
}

void drive_forward(drive *d, const int32_t *tokens, int64_t begin, int64_t end, const int64_t *rows,
                   int64_t n)
{
    const int64_t first[] = {0, end - begin};
    int64_t of_call[DRIVE_MOST], host = 0, device = 0;
    for (int64_t i = 0; i < n; i++)
        of_call[i] = rows[i] - begin;
    cmoe_model_call c;
    cmoe_model_call_default(&c, sizeof c);
    const cmoe_batch batch = {sizeof batch, 1, first, &begin, d->pages, DRIVE_MOST / CMOE_KV_PAGE};
    c.batch = &batch;
    c.ids = cmoe_view_1d(tokens + begin, CMOE_I32, end - begin);
    c.cache = d->cache;
    c.rows = cmoe_view_1d(of_call, CMOE_I64, n);
    UNIT_OK(cmoe_model_forward_bytes(d->model, end - begin, 1, n, &host, &device, &err));
    cmoe_arena arena = unit_arena(host);
    UNIT_OK(cmoe_model_forward(d->env.stream, d->model, &c,
                               cmoe_view_mut_2d(d->logits, CMOE_F32, n, d->info.vocab), &arena,
                               &err));
    free(arena.base);
}

/* ---- the scheduler's side -------------------------------------------------------------------- */

typedef struct owner {
    double logprob[DRIVE_MOST];
} owner;

cmoe_status cmoei_sequence_tell(cmoei_sequence *s, int64_t end, const cmoe_logprob *logprobs,
                                cmoe_error *err)
{
    owner *o = s->owner;
    (void)err;
    for (int64_t i = s->told; i < end; i++, logprobs++) {
        assert_int_equal(logprobs->id, s->tokens[i]);
        o->logprob[i] = logprobs->logprob;
    }
    s->told = end;
    return CMOE_OK;
}

cmoe_status cmoei_sequence_show(cmoei_sequence *s, int64_t begin, int64_t end, cmoe_error *err)
{
    (void)err;
    assert_true(begin >= s->prompt && end <= s->limit);
    return CMOE_OK;
}

void cmoei_sequence_finish(cmoei_sequence *s, int32_t finish)
{
    s->finish = finish;
}

bool cmoei_sequence_stops_at(const cmoei_sequence *s, int32_t id)
{
    (void)s;
    (void)id;
    return false; /* the traces go on behind a stop token */
}

/* ---- a sequence ------------------------------------------------------------------------------ */

/* What a pass has written: the canvas before and after. */
static void follow(const cmoei_sequence *s, const cmoei_work *w, const int32_t *before,
                   int64_t *pass, drive_result *r)
{
    const int64_t B = s->info.mask;
    for (int64_t i = 0; i < w->rows; i++) {
        const int64_t at = w->row[i];
        if (s->tokens[at] == before[at]) continue;
        r->row[r->rows++] = (drive_row){at / B, pass[at / B], at, s->tokens[at], 0};
    }
    for (int64_t i = 0; i < w->rows; i++) {
        if (i == 0 || w->row[i - 1] / B != w->row[i] / B) pass[w->row[i] / B]++;
    }
}

static int by_pass(const void *a, const void *b)
{
    const drive_row *p = a, *q = b;
    if (p->block != q->block) return p->block < q->block ? -1 : 1;
    if (p->pass != q->pass) return p->pass < q->pass ? -1 : 1;
    return p->position < q->position ? -1 : 1;
}

void drive_run(drive *d, const int32_t *tokens, int64_t prompt, int64_t limit,
               const cmoe_diffusion *settings, const cmoe_sampling *sampling, drive_result *r)
{
    int32_t before[DRIVE_MOST];
    int64_t row[DRIVE_MOST], pass[DRIVE_MOST] = {0};
    owner o = {{0}};
    *r = (drive_result){0};
    cmoei_sequence s = {.ctx = d->env.ctx,
                        .model = d->model,
                        .info = d->info,
                        .usable = d->info.vocab,
                        .method = &cmoei_diffusion,
                        .tokens = r->tokens,
                        .capacity = DRIVE_MOST,
                        .count = prompt,
                        .prompt = prompt,
                        .told = prompt,
                        .limit = limit,
                        .sampling = *sampling,
                        .logprobs = 1,
                        .owner = &o};
    memcpy(r->tokens, tokens, (size_t)prompt * sizeof *tokens);
    const cmoe_request request = {.size = sizeof request, .diffusion = settings};
    UNIT_OK(s.method->open(&s, &request, &err));
    const int64_t budget = cmoei_diffusion.need(&s);
    while (s.finish == CMOE_FINISH_NONE) {
        cmoei_work w = {.row = row, .room = budget};
        s.method->plan(&s, budget, &w);
        assert_true(w.end > w.begin && w.begin == s.cached);
        drive_forward(d, s.tokens, w.begin, w.end, w.row, w.rows);
        s.cached = w.final;
        memcpy(before, r->tokens, sizeof before);
        UNIT_OK(s.method->accept(&s, &w, d->logits, &err));
        follow(&s, &w, before, pass, r);
    }
    s.method->close(&s);
    r->told = s.told;
    r->finish = s.finish;
    r->forwards = s.forwards;
    for (int64_t i = 0; i < r->rows; i++)
        r->row[i].confidence = exp(o.logprob[r->row[i].position]);
    qsort(r->row, (size_t)r->rows, sizeof r->row[0], by_pass);
}
