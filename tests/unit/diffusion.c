/* SPDX-License-Identifier: MIT
 *
 * diffusion.c - settings of block diffusion, the choice of positions, and the method as a whole on a
 * model that is a hash: logits of a position follow from the tokens whose keys the cache holds, so a
 * key that is not final shows.
 *
 * The method is compared with a plain loop that knows no cache: it recomputes everything in each pass
 * and goes through the states of blocks as they are described.  The driver disturbs the method: pages
 * are taken away, found again, and the budget is sometimes too small.
 */
#include <float.h>
#include <math.h>

#include "unit.h"

#include "cmoe/engine.h"
#include "core/core.h"
#include "engine/diffusion.h"
#include "engine/sampling.h"

enum { VOCAB = 40, MASK = 37, USABLE = 36, MOST = 512, ROWS = 256, STOP = 35 };

static const cmoe_model_info model = {.size = sizeof model,
                                      .type = "sdar",
                                      .vocab = VOCAB,
                                      .context = 4096,
                                      .mask = 8,
                                      .mask_token = MASK};

/* ---- settings -------------------------------------------------------------------------------- */

static cmoe_diffusion defaults(void)
{
    cmoe_diffusion d;
    cmoe_diffusion_default(&d, sizeof d);
    return d;
}

static void settings_fail(const cmoe_diffusion *d, const cmoe_model_info *m, cmoe_status status,
                          const char *text)
{
    cmoe_diffusion out = {.block = 77};
    UNIT_FAILS(cmoei_diffusion_read(&out, d, m, &err), status, text);
    assert_int_equal(out.block, 77);
}

static void bad_settings(void **state)
{
    (void)state;
    const struct {
        size_t field;
        int64_t value;
        const char *text;
    } counts[] = {
        {offsetof(cmoe_diffusion, block), 12, "diffusion.block = 12, want 4, 8, 16, 32 or 64"},
        {offsetof(cmoe_diffusion, block), -8, "diffusion.block = -8, want 4, 8, 16, 32 or 64"},
        {offsetof(cmoe_diffusion, block), 2, "diffusion.block = 2, want 4"},
        {offsetof(cmoe_diffusion, block), 128, "diffusion.block = 128, want 4"},
        {offsetof(cmoe_diffusion, block), 16,
         "diffusion.block = 16, want 8: with blocks of that length the model was loaded "
         "(mask_block)"},
        {offsetof(cmoe_diffusion, steps), 9, "diffusion.steps = 9, want 1 to 8 (block)"},
        {offsetof(cmoe_diffusion, steps), -1, "diffusion.steps = -1, want 1 to 8 (block)"},
        {offsetof(cmoe_diffusion, buffer), 0, "diffusion.buffer = 0, want 1 to 32"},
        {offsetof(cmoe_diffusion, buffer), 33, "diffusion.buffer = 33, want 1 to 32"},
        {offsetof(cmoe_diffusion, mask_token), 40,
         "diffusion.mask_token = 40, want 0 <= id < 40 (vocab), or -1 for the model's"},
        {offsetof(cmoe_diffusion, mask_token), -2, "diffusion.mask_token = -2"},
        {offsetof(cmoe_diffusion, max_forwards), -1, "diffusion.max_forwards = -1, want 0 to"},
        {offsetof(cmoe_diffusion, max_repeats), -3, "diffusion.max_repeats = -3, want 0 to"},
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        cmoe_diffusion d = defaults();
        memcpy((char *)&d + counts[i].field, &counts[i].value, sizeof counts[i].value);
        settings_fail(&d, &model, CMOE_ERR_RANGE, counts[i].text);
    }
    const struct {
        size_t field;
        const char *name;
    } shares[] = {
        {offsetof(cmoe_diffusion, threshold), "threshold"},
        {offsetof(cmoe_diffusion, add_block), "add_block"},
        {offsetof(cmoe_diffusion, semi_complete), "semi_complete"},
        {offsetof(cmoe_diffusion, accept), "accept"},
    };
    const float bad[] = {-0.25f, 1.25f, NAN};
    for (size_t i = 0; i < 12; i++) {
        char text[96];
        cmoe_diffusion d = defaults();
        memcpy((char *)&d + shares[i / 3].field, &bad[i % 3], sizeof(float));
        snprintf(text, sizeof text, "diffusion.%s = %g, want 0 to 1", shares[i / 3].name,
                 (double)bad[i % 3]);
        settings_fail(&d, &model, CMOE_ERR_RANGE, text);
    }
    cmoe_diffusion d = defaults();
    d.eb = -1;
    settings_fail(&d, &model, CMOE_ERR_RANGE, "diffusion.eb = -1, want a number >= 0");
    d.eb = NAN;
    settings_fail(&d, &model, CMOE_ERR_RANGE, "diffusion.eb = nan");
    d = defaults();
    d.remasking = 4;
    settings_fail(&d, &model, CMOE_ERR_RANGE,
                  "diffusion.remasking = 4, want one of: low_confidence_dynamic (0), "
                  "low_confidence_static (1), sequential (2), entropy_bounded (3)");
    d = defaults();
    d.size = 3;
    settings_fail(&d, &model, CMOE_ERR_ARG, "cmoe_diffusion.size = 3");
}

static void bad_models(void **state)
{
    (void)state;
    cmoe_model_info m = model;
    m.mask_token = -1;
    settings_fail(NULL, &m, CMOE_ERR_UNSUPPORTED,
                  "a model of type sdar says no mask token, want one in diffusion.mask_token");
    m = model;
    m.mask = CMOE_MASK_CAUSAL;
    settings_fail(
        NULL, &m, CMOE_ERR_UNSUPPORTED,
        "block diffusion needs a block-causal model, and one of type sdar was loaded causal");
    m.mask = CMOE_MASK_FULL;
    settings_fail(NULL, &m, CMOE_ERR_UNSUPPORTED, "was loaded with a full mask");
    m.mask = 12;
    settings_fail(NULL, &m, CMOE_ERR_RANGE, "diffusion.block = 12, want 4, 8, 16, 32 or 64");
    cmoe_diffusion d;
    UNIT_OK(cmoei_diffusion_read(&d, NULL, &model, &err));
    assert_true(d.block == 8 && d.steps == 8 && d.mask_token == MASK && d.buffer == 1);
    assert_true(d.threshold == 0.85f && d.eb == 0.35f && d.accept == 0.95f);
}

static void names(void **state)
{
    (void)state;
    for (int32_t i = 0; i < 4; i++)
        assert_int_equal(cmoe_remasking_parse(cmoe_remasking_name(i)), i);
    assert_string_equal(cmoe_remasking_name(CMOE_REMASK_ENTROPY_BOUNDED), "entropy_bounded");
    assert_null(cmoe_remasking_name(4));
    assert_null(cmoe_remasking_name(-1));
    assert_int_equal(cmoe_remasking_parse("random"), -1);
    assert_int_equal(cmoe_remasking_parse(NULL), -1);
}

/* ---- choice ---------------------------------------------------------------------------------- */

static void picks(const cmoe_diffusion *d, int64_t pass, const double *confidence, int n,
                  const char *want)
{
    cmoei_candidate c[8];
    char got[9] = {0};
    for (int i = 0; i < n; i++)
        c[i] = (cmoei_candidate){
            .position = i, .confidence = confidence[i], .entropy = confidence[i], .take = true};
    if (pass >= 0)
        cmoei_diffusion_pick(d, pass, c, n);
    else
        cmoei_diffusion_pick_accepted(d, pass == -1, c, n);
    for (int i = 0; i < n; i++)
        got[i] = c[i].take ? 'x' : '.';
    assert_string_equal(got, want);
}

static void choice(void **state)
{
    (void)state;
    const double c[] = {0.5, 0.9, 0.2, 0.9, 0.86, 0.1};
    cmoe_diffusion d = defaults();
    d.block = 8;
    d.steps = 3; /* 3, 3, 2 */
    assert_int_equal(cmoei_diffusion_share(&d, 0), 3);
    assert_int_equal(cmoei_diffusion_share(&d, 1), 3);
    assert_int_equal(cmoei_diffusion_share(&d, 2), 2);
    assert_int_equal(cmoei_diffusion_share(&d, 9), 2);
    picks(&d, 0, c, 6, ".x.xx.");
    d.threshold = 0.4f;
    picks(&d, 0, c, 6, "xx.xx."); /* all above, more than three */
    d.threshold = 0.88f;
    picks(&d, 0, c, 6, ".x.xx."); /* two above, so the three best */
    picks(&d, 2, c, 6, ".x.x..");
    d.remasking = CMOE_REMASK_LOW_CONFIDENCE_STATIC;
    d.threshold = 0;
    picks(&d, 0, c, 6, ".x.xx.");
    d.steps = 8;
    picks(&d, 0, c, 6, ".x...."); /* ties go to the lower position */
    d.steps = 1;
    picks(&d, 0, c, 6, "xxxxxx"); /* eight by schedule, six left */
    d.remasking = CMOE_REMASK_SEQUENTIAL;
    d.steps = 4;
    picks(&d, 0, c, 6, "xx....");
    d.remasking = CMOE_REMASK_ENTROPY_BOUNDED;
    d.eb = 0.81f;
    picks(&d, 0, c, 6, "x.x..x"); /* 0.1 + 0.2 + 0.5 < 0.81 */
    d.eb = 0.79f;
    picks(&d, 0, c, 6, "..x..x");
    d.eb = 0;
    picks(&d, 0, c, 6, ".....x"); /* at least one */
    d.accept = 0.86f;
    picks(&d, -1, c, 6, ".x.x..");
    d.accept = 0.95f;
    picks(&d, -1, c, 6, ".x....");
    picks(&d, -2, c, 6, "......");
}

/* ---- a model that is a hash ------------------------------------------------------------------- */

static uint64_t key_of(int64_t position, int32_t token)
{
    return cmoe_random_u64(17, (uint64_t)position, (uint64_t)token + 1);
}

/* Sees keys [0, end): all of the position's block. */
static void hash_logits(const uint64_t *keys, int64_t end, int64_t position, float *out)
{
    uint64_t h = (uint64_t)position + 1;
    for (int64_t i = 0; i < end; i++)
        h = (h ^ keys[i]) * 0x9e3779b97f4a7c15u + (h >> 29);
    const float scale = (float)(1 + h % 4 * 2); /* unsure and sure ones */
    for (int64_t v = 0; v < VOCAB; v++)
        out[v] = scale * cmoe_random_normal(h, (uint64_t)v, 0);
}

/* ---- what runs ------------------------------------------------------------------------------- */

typedef struct setup {
    int64_t block, prompt, limit, context;
    cmoe_diffusion d;
    cmoe_sampling sampling;
    int32_t stop; /* a stop token, or -1 */
    int32_t tokens[MOST];
} setup;

typedef struct result {
    int32_t tokens[MOST];
    int64_t told;
    int32_t finish;
    int64_t forwards, rows;
    int32_t trace[MOST][4]; /* block, pass, position, token */
    double logprob[MOST];   /* of told tokens, by position */
} result;

/* The scheduler's side. */
typedef struct owner {
    result *r;
    int64_t shown;
} owner;

cmoe_status cmoei_sequence_tell(cmoei_sequence *s, int64_t end, const cmoe_logprob *logprobs,
                                cmoe_error *err)
{
    owner *o = s->owner;
    (void)err;
    assert_true(end > s->told && end <= s->limit && end <= s->count);
    for (int64_t i = s->told; i < end; i++) {
        assert_true(s->tokens[i] != MASK && s->tokens[i] >= 0 && s->tokens[i] < USABLE);
        if (s->logprobs == 0) continue;
        const cmoe_logprob *l = logprobs + (i - s->told) * s->logprobs;
        assert_int_equal(l[0].id, s->tokens[i]);
        o->r->logprob[i] = l[0].logprob;
    }
    s->told = end;
    return CMOE_OK;
}

cmoe_status cmoei_sequence_show(cmoei_sequence *s, int64_t begin, int64_t end, cmoe_error *err)
{
    owner *o = s->owner;
    (void)err;
    assert_true(begin >= s->prompt && end <= s->count && end <= s->limit);
    o->shown++;
    return CMOE_OK;
}

void cmoei_sequence_finish(cmoei_sequence *s, int32_t finish)
{
    assert_int_equal(s->finish, CMOE_FINISH_NONE);
    s->finish = finish;
}

bool cmoei_sequence_stops_at(const cmoei_sequence *s, int32_t id)
{
    return s->stops > 0 && s->stop_tokens[0] == id;
}

/* ---- the plain loop --------------------------------------------------------------------------- */

enum { CLOSED, ACTIVE, TO_CACHE, IN_CACHE };

typedef struct plain {
    const setup *u;
    result *r;
    int64_t end, blocks, state[MOST], pass[MOST];
} plain;

static int64_t block_end(const plain *p, int64_t b)
{
    const int64_t end = (b + 1) * p->u->block;
    return end < p->end ? end : p->end;
}

static double filled(const plain *p, int64_t b)
{
    const int64_t begin = b * p->u->block, end = block_end(p, b);
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++)
        n += i < p->u->prompt || p->r->tokens[i] != MASK;
    return (double)n / (double)(end - begin);
}

/* The token, its confidence and the entropy at a position, from the canvas alone. */
static cmoei_candidate predict(const plain *p, int64_t position, int64_t pass)
{
    uint64_t keys[MOST];
    float x[VOCAB], y[VOCAB];
    const int64_t end = block_end(p, position / p->u->block);
    int32_t previous[MOST];
    int64_t n = 0;
    for (int64_t i = 0; i < end; i++)
        keys[i] = key_of(i, p->r->tokens[i]);
    hash_logits(keys, end, position, x);
    for (int64_t i = 0; i < p->end; i++) {
        if (i < p->u->prompt || p->r->tokens[i] != MASK) previous[n++] = p->r->tokens[i];
    }
    memcpy(y, x, sizeof y);
    y[MASK] = -INFINITY;
    for (int i = USABLE; i < VOCAB; i++)
        y[i] = -INFINITY;
    UNIT_OK(cmoe_sampling_process(NULL, &p->u->sampling, y, VOCAB, previous, n, n - p->u->prompt,
                                  &err));
    cmoei_candidate c = {.position = position};
    c.token = (int32_t)cmoei_sampling_pick(&p->u->sampling, y, VOCAB, position, pass);
    double sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += exp(x[i]);
    c.confidence = exp(x[c.token]) / sum;
    for (int i = 0; i < VOCAB; i++)
        c.entropy -= exp(x[i]) / sum * log(exp(x[i]) / sum);
    return c;
}

static int by_confidence(const void *a, const void *b)
{
    const cmoei_candidate *p = a, *q = b;
    if (p->confidence != q->confidence) return p->confidence > q->confidence ? -1 : 1;
    return p->position < q->position ? -1 : 1;
}

static int by_entropy(const void *a, const void *b)
{
    const cmoei_candidate *p = a, *q = b;
    if (p->entropy != q->entropy) return p->entropy < q->entropy ? -1 : 1;
    return p->position < q->position ? -1 : 1;
}

/* Sorts what is taken to the front of c [n]; how many. */
static int64_t choose(const plain *p, int64_t b, double before, cmoei_candidate *c, int64_t n)
{
    const cmoe_diffusion *d = &p->u->d;
    const int64_t B = p->u->block, S = d->steps ? d->steps : B;
    const int64_t step = p->pass[b] < S ? p->pass[b] : S - 1;
    int64_t need = B / S + (step < B % S), above = 0;
    need = need < n ? need : n;
    if (d->buffer == 1 && d->remasking == CMOE_REMASK_SEQUENTIAL) return need;
    if (d->buffer == 1 && d->remasking == CMOE_REMASK_ENTROPY_BOUNDED) {
        double sum = 0;
        qsort(c, (size_t)n, sizeof *c, by_entropy);
        for (above = 0; above < n; above++) {
            sum += c[above].entropy;
            if (sum >= d->eb) break;
        }
        return above ? above : 1;
    }
    qsort(c, (size_t)n, sizeof *c, by_confidence);
    const float threshold = d->buffer > 1 ? d->accept : d->threshold;
    while (above < n && c[above].confidence > threshold)
        above++;
    if (d->buffer > 1) return above || before < d->semi_complete ? above : 1;
    return d->remasking == CMOE_REMASK_LOW_CONFIDENCE_DYNAMIC && above >= need ? above : need;
}

static int by_position(const void *a, const void *b)
{
    const int32_t *p = a, *q = b;
    return p[2] - q[2];
}

static void plain_pass(plain *p)
{
    result *r = p->r;
    int32_t fresh[MOST][4];
    int64_t count = 0;
    for (int64_t b = 0; b < p->blocks; b++) {
        cmoei_candidate c[64];
        int64_t n = 0;
        if (p->state[b] != ACTIVE) continue;
        for (int64_t i = b * p->u->block; i < block_end(p, b); i++) {
            if (i >= p->u->prompt && r->tokens[i] == MASK) c[n++] = predict(p, i, p->pass[b]);
        }
        if (n == 0) continue;
        const double before = b == 0 || p->state[b - 1] == IN_CACHE ? 1 : filled(p, b - 1);
        const int64_t taken = choose(p, b, before, c, n);
        for (int64_t i = 0; i < taken; i++) {
            int32_t *row = fresh[count++];
            row[0] = (int32_t)b, row[1] = (int32_t)p->pass[b];
            row[2] = (int32_t)c[i].position, row[3] = c[i].token;
            r->logprob[c[i].position] = log(c[i].confidence);
        }
        p->pass[b]++;
    }
    qsort(fresh, (size_t)count, sizeof fresh[0], by_position);
    for (int64_t i = 0; i < count; i++) {
        r->tokens[fresh[i][2]] = fresh[i][3];
        memcpy(r->trace[r->rows++], fresh[i], sizeof fresh[i]);
    }
}

static void plain_states(plain *p)
{
    int64_t first = 0;
    for (int64_t b = 0; b < p->blocks; b++) {
        if (p->state[b] == TO_CACHE) p->state[b] = IN_CACHE;
        const bool after = b == 0 || p->state[b - 1] == TO_CACHE || p->state[b - 1] == IN_CACHE;
        if (p->state[b] == ACTIVE && after && filled(p, b) == 1) p->state[b] = TO_CACHE;
    }
    while (first < p->blocks && p->state[first] == IN_CACHE)
        first++;
    for (int64_t b = 1; b < p->blocks; b++) {
        if (p->state[b] == CLOSED && p->state[b - 1] != CLOSED && b - first < p->u->d.buffer &&
            filled(p, b - 1) >= p->u->d.add_block)
            p->state[b] = ACTIVE;
    }
}

static void plain_finish(plain *p)
{
    const setup *u = p->u;
    result *r = p->r;
    const int64_t limit = u->limit < p->end ? u->limit : p->end;
    int64_t run = 0;
    for (r->told = u->prompt; r->told < limit && r->tokens[r->told] != MASK; r->told++) {
        const int32_t id = r->tokens[r->told];
        if (id == u->stop) {
            r->finish = CMOE_FINISH_EOS;
            return;
        }
        run = r->told > u->prompt && r->tokens[r->told - 1] == id ? run + 1 : 1;
        if (u->d.max_repeats > 0 && run >= u->d.max_repeats) {
            r->finish = CMOE_FINISH_REPEATS;
            r->told++;
            return;
        }
    }
    if (r->told == limit)
        r->finish = CMOE_FINISH_LENGTH;
    else if (u->d.max_forwards > 0 && r->forwards >= u->d.max_forwards)
        r->finish = CMOE_FINISH_FORWARDS;
}

static void run_plain(const setup *u, result *r)
{
    static plain p;
    p = (plain){.u = u, .r = r};
    *r = (result){.told = u->prompt};
    p.end = (u->limit + u->block - 1) / u->block * u->block;
    if (p.end > u->context) p.end = u->context;
    p.blocks = (p.end + u->block - 1) / u->block;
    for (int64_t i = 0; i < MOST; i++)
        r->tokens[i] = i < u->prompt ? u->tokens[i] : MASK;
    for (int64_t b = 0; b < u->prompt / u->block; b++)
        p.state[b] = IN_CACHE;
    p.state[u->prompt / u->block] = ACTIVE;
    /* The blocks that the first one lets open at once. */
    if (u->d.buffer > 1) plain_states(&p);
    while (r->finish == CMOE_FINISH_NONE) {
        plain_pass(&p);
        r->forwards++;
        plain_states(&p);
        plain_finish(&p);
    }
}

/* ---- the method, disturbed --------------------------------------------------------------------- */

typedef struct cache {
    uint64_t keys[MOST];
} cache;

/* Another sequence's pages are found, or all pages are lost. */
static void disturb(cmoei_sequence *s, cache *c, int64_t block, uint64_t chance)
{
    if (chance % 8 == 0) {
        s->cached = 0;
        memset(c->keys, 0xee, sizeof c->keys);
    } else if (chance % 8 < 4 && s->cached + block <= s->told) {
        for (int64_t i = 0; i < block; i++)
            c->keys[s->cached + i] = key_of(s->cached + i, s->tokens[s->cached + i]);
        s->cached += block;
    }
}

static void compute(const cmoei_sequence *s, const cmoei_work *w, int64_t block, cache *c,
                    float *logits)
{
    for (int64_t i = w->begin; i < w->end; i++)
        c->keys[i] = key_of(i, s->tokens[i]);
    for (int64_t i = 0; i < w->rows; i++) {
        int64_t end = (w->row[i] / block + 1) * block;
        end = end < w->end ? end : w->end;
        hash_logits(c->keys, end, w->row[i], logits + i * VOCAB);
    }
}

/* What changed on the canvas; a block's passes are those that asked for its logits. */
static void follow(const cmoei_sequence *s, const cmoei_work *w, int64_t block, int64_t *pass,
                   const int32_t *before, result *r)
{
    for (int64_t i = 0; i < w->rows; i++) {
        const int64_t at = w->row[i], b = at / block;
        assert_int_equal(before[at], MASK);
        if (s->tokens[at] == MASK) continue;
        int32_t *row = r->trace[r->rows++];
        row[0] = (int32_t)b, row[1] = (int32_t)pass[b], row[2] = (int32_t)at;
        row[3] = s->tokens[at];
    }
    for (int64_t i = 0; i < w->rows; i++) {
        const int64_t b = w->row[i] / block;
        if (i == 0 || w->row[i - 1] / block != b) pass[b]++;
    }
}

static cmoei_sequence sequence(const unit_env *e, const setup *u, int32_t *tokens, owner *o)
{
    cmoei_sequence s = {.ctx = e->ctx, .info = model, .usable = USABLE, .method = &cmoei_diffusion};
    s.info.mask = (int32_t)u->block;
    s.info.context = u->context;
    memcpy(tokens, u->tokens, (size_t)u->prompt * sizeof *tokens);
    s.tokens = tokens;
    s.capacity = u->limit + 64;
    s.count = s.prompt = s.told = u->prompt;
    s.limit = u->limit;
    s.sampling = u->sampling;
    s.owner = o;
    return s;
}

static void run_method(const unit_env *e, const setup *u, uint64_t disturbance, int32_t logprobs,
                       result *r)
{
    static cache c;
    static float logits[ROWS * VOCAB];
    int32_t tokens[MOST], before[MOST], stop = u->stop;
    int64_t row[ROWS], pass[MOST] = {0};
    owner o = {.r = r};
    *r = (result){0};
    cmoei_sequence s = sequence(e, u, tokens, &o);
    s.stop_tokens = &stop;
    s.stops = u->stop >= 0;
    s.logprobs = logprobs;
    cmoe_request request = {.size = sizeof request, .diffusion = &u->d};
    UNIT_OK(s.method->open(&s, &request, &err));
    const int64_t need = cmoei_diffusion.need(&s);
    assert_int_equal(s.method->step(&s), u->block);
    for (uint64_t turn = 1; s.finish == CMOE_FINISH_NONE; turn++) {
        assert_true(turn < 20000);
        const uint64_t chance = disturbance ? cmoe_random_u64(disturbance, turn, 0) : 7;
        if (disturbance) disturb(&s, &c, u->block, chance);
        int64_t budget = need;
        if (disturbance) budget = chance >> 8 & 1 ? (int64_t)(chance >> 16) % need + 1 : need + 5;
        cmoei_work w = {.row = row, .room = budget};
        s.method->plan(&s, budget, &w);
        assert_true(w.begin == s.cached && w.end - w.begin <= budget && w.final <= w.end);
        assert_true(w.final >= w.begin && w.final % u->block == 0);
        if (w.end == w.begin) {
            assert_true(budget < need);
            continue;
        }
        compute(&s, &w, u->block, &c, logits);
        s.cached = w.final;
        memcpy(before, tokens, sizeof before);
        UNIT_OK(s.method->accept(&s, &w, logits, &err));
        follow(&s, &w, u->block, pass, before, r);
    }
    s.method->close(&s);
    assert_null(s.state);
    assert_true(o.shown > 0);
    memcpy(r->tokens, tokens, sizeof tokens);
    r->told = s.told;
    r->finish = s.finish;
    r->forwards = s.forwards;
}

/* ---- comparisons ------------------------------------------------------------------------------- */

static void same(const setup *u, const result *a, const result *b)
{
    if (a->told != b->told || a->finish != b->finish || a->rows != b->rows ||
        memcmp(a->tokens, b->tokens, (size_t)a->told * sizeof a->tokens[0]) ||
        memcmp(a->trace, b->trace, (size_t)a->rows * sizeof a->trace[0]))
        fail_msg(
            "block %d prompt %d limit %d buffer %d remasking %d: told %d and %d, finish %d and "
            "%d, rows %d and %d",
            (int)u->block, (int)u->prompt, (int)u->limit, (int)u->d.buffer, u->d.remasking,
            (int)a->told, (int)b->told, a->finish, b->finish, (int)a->rows, (int)b->rows);
}

static setup draw_setup(uint64_t seed)
{
    uint64_t n = 0;
#define DRAW(most) ((int64_t)(cmoe_random_u64(seed, n++, 3) % (uint64_t)(most)))
    setup u = {.block = 4 << DRAW(4), .prompt = 1 + DRAW(90), .context = 4096, .stop = -1};
    u.limit = u.prompt + 1 + DRAW(100);
    if (DRAW(4) == 0) u.context = u.limit + DRAW(3);
    u.d = defaults();
    u.d.steps = DRAW(3) == 0 ? 0 : 1 + DRAW(u.block);
    u.d.remasking = (int32_t)DRAW(4);
    u.d.threshold = 0.2f * (float)(1 + DRAW(4));
    u.d.eb = 0.5f * (float)DRAW(4);
    u.d.buffer = DRAW(2) ? 1 : 1 + DRAW(4);
    u.d.accept = 0.3f + 0.2f * (float)DRAW(4);
    u.d.add_block = 0.25f * (float)DRAW(5);
    u.d.semi_complete = 0.25f * (float)DRAW(5);
    if (DRAW(3) == 0) u.d.max_forwards = 1 + DRAW(40);
    if (DRAW(3) == 0) u.d.max_repeats = 2 + DRAW(2);
    if (DRAW(2)) u.stop = STOP;
    cmoe_sampling_default(&u.sampling, sizeof u.sampling);
    u.sampling.seed = seed;
    if (DRAW(3) == 0) {
        u.sampling.temperature = 0.8f;
        u.sampling.top_k = (int32_t)DRAW(10);
    }
    if (DRAW(4) == 0) u.sampling.repetition_penalty = 1.3f;
    if (DRAW(4) == 0) u.sampling.frequency_penalty = 0.5f;
    for (int64_t i = 0; i < u.prompt; i++)
        u.tokens[i] = DRAW(20) ? (int32_t)DRAW(USABLE) : MASK; /* a token like any other there */
#undef DRAW
    return u;
}

/* Settings drawn at random; the ways to end all come up. */
static void as_the_plain_loop(void **state)
{
    (void)state;
    static setup u;
    static result want, got, disturbed;
    int64_t ends[8] = {0};
    unit_env e = unit_open(2);
    for (uint64_t seed = 0; seed < 300; seed++) {
        u = draw_setup(seed);
        run_plain(&u, &want);
        run_method(&e, &u, 0, 0, &got);
        same(&u, &want, &got);
        run_method(&e, &u, seed + 1, 3, &disturbed);
        same(&u, &want, &disturbed);
        for (int64_t i = u.prompt; i < want.told; i++)
            assert_true(fabs(disturbed.logprob[i] - want.logprob[i]) < 1e-4);
        /* The last block's keys are nobody's. */
        assert_true(got.forwards == want.forwards || got.forwards == want.forwards - 1);
        assert_int_equal(disturbed.forwards, got.forwards);
        ends[want.finish]++;
    }
    assert_true(ends[CMOE_FINISH_LENGTH] > 20 && ends[CMOE_FINISH_EOS] > 20);
    assert_true(ends[CMOE_FINISH_FORWARDS] > 20 && ends[CMOE_FINISH_REPEATS] > 5);
    unit_close(&e);
}

/* The sampled text is the seed's, and temperature does something. */
static void seeds(void **state)
{
    (void)state;
    static setup u;
    static result a, b, c;
    unit_env e = unit_open(1), three = unit_open(3);
    u = draw_setup(5);
    u.d = defaults();
    u.stop = -1;
    u.prompt = 9;
    u.limit = 100;
    u.context = 4096;
    u.sampling.temperature = 1;
    u.sampling.top_k = 0;
    run_method(&e, &u, 0, 0, &a);
    run_method(&three, &u, 0, 0, &b);
    same(&u, &a, &b);
    u.sampling.seed++;
    run_method(&e, &u, 0, 0, &c);
    assert_memory_not_equal(a.tokens + 9, c.tokens + 9, 91 * sizeof a.tokens[0]);
    unit_close(&e);
    unit_close(&three);
}

/* ---- errors of a sequence ---------------------------------------------------------------------- */

static void bad_sequences(void **state)
{
    (void)state;
    static setup u;
    int32_t tokens[MOST];
    owner o = {0};
    unit_env e = unit_open(1);
    u = (setup){.block = 8, .prompt = 3, .limit = 20, .context = 4096, .tokens = {1, MASK, 2}};
    cmoe_sampling_default(&u.sampling, sizeof u.sampling);
    cmoe_request r = {.size = sizeof r};
    cmoei_sequence s = sequence(&e, &u, tokens, &o);
    s.limit = 3;
    UNIT_FAILS(s.method->open(&s, &r, &err), CMOE_ERR_RANGE,
               "a prompt of 3 tokens leaves no position for an answer");
    assert_null(s.state);
    s.limit = 20;
    UNIT_OK(s.method->open(&s, &r, &err));
    int64_t row[8];
    cmoei_work w = {.row = row, .room = 8};
    s.method->plan(&s, 8, &w);
    assert_true(w.begin == 0 && w.end == 8 && w.rows == 5 && w.final == 0 && row[0] == 3);
    float logits[5 * VOCAB] = {0};
    logits[2 * VOCAB + 9] = NAN;
    UNIT_FAILS(s.method->accept(&s, &w, logits, &err), CMOE_ERR_RANGE, "logits[9] = nan");
    for (int i = 0; i < 5 * VOCAB; i++)
        logits[i] = -INFINITY;
    for (int i = 0; i < 5; i++)
        logits[i * VOCAB + MASK] = 1; /* the mask alone is not enough */
    s.usable = 0;
    UNIT_FAILS(s.method->accept(&s, &w, logits, &err), CMOE_ERR_RANGE,
               "position 3: every id below 0 but the mask token is forbidden");
    s.method->close(&s);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_settings),
        cmocka_unit_test(bad_models),
        cmocka_unit_test(names),
        cmocka_unit_test(choice),
        cmocka_unit_test(as_the_plain_loop),
        cmocka_unit_test(seeds),
        cmocka_unit_test(bad_sequences),
    };
    return UNIT_RUN("unit_diffusion", tests);
}
