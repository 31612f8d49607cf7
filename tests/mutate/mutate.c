/* SPDX-License-Identifier: MIT
 *
 * mutate.c - `mutate [SECONDS [SEED]]`: valid calls of every computing function with one to three fields
 * corrupted.
 *
 * Whatever is put in, a call returns; one that fails has filled the error in and written nothing, and
 * one that succeeds has written nothing but its outputs.  The sanitizers see the rest.
 *
 * The library cannot know how large the caller's memory is, so a view that it may accept has to stay
 * inside its buffer: fits().  One that leaves it is only tried where it must be refused: because nothing
 * like it can exist, or, if it is the only thing corrupted, because another argument says how large the
 * dim is.
 */
#define _POSIX_C_SOURCE 200809L /* alarm, clock_gettime */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "mutate.h"

enum { MAX_ELEMENTS = 1 << 16, HANG_SECONDS = 20, REPORTS = 20 };

static uint64_t seed, position, draws;
static char story[512]; /* what was corrupted */
static const char *running;

static uint64_t draw(uint64_t n)
{
    return cmoe_random_u64(seed, position, draws++) % n;
}

static void tell(const char *what, int which, int64_t value)
{
    const size_t used = strlen(story);
    snprintf(story + used, sizeof story - used, "%s %d := %" PRId64 "; ", what, which, value);
}

static void hang(int signal)
{
    (void)signal;
    printf("%s: does not return; seed %" PRIu64 " position %" PRIu64 ": %s\n", running, seed,
           position, story);
    fflush(stdout);
    _exit(1);
}

/* ---- values ---------------------------------------------------------------------------------- */

static int64_t any_size(int64_t n)
{
    const int64_t low = n > INT64_MIN ? n - 1 : n, high = n < INT64_MAX ? n + 1 : n;
    const int64_t values[] = {-1,        0,         1,         low,       high,
                              INT64_MAX, INT64_MIN, 1LL << 31, 1LL << 62, (int64_t)draw(40)};
    return values[draw(10)];
}

static int32_t any_int(int32_t n)
{
    const int32_t values[] = {-1,
                              0,
                              1,
                              (int32_t)((uint32_t)n - 1u),
                              (int32_t)((uint32_t)n + 1u),
                              INT32_MAX,
                              INT32_MIN,
                              99,
                              (int32_t)draw(9),
                              1 << 24};
    return values[draw(10)];
}

static uint32_t any_float(void)
{
    const float values[] = {NAN, INFINITY, -INFINITY, -1, 0, 1e38f, -1e38f, 1e-45f};
    uint32_t bits;
    memcpy(&bits, &values[draw(8)], sizeof bits);
    return bits;
}

static uint32_t any_word(uint32_t old)
{
    return draw(3) ? (uint32_t)any_int((int32_t)old) : any_float();
}

/* ---- corrupting one thing -------------------------------------------------------------------- */

static void corrupt_view(args *a, memory *m, int i)
{
    cmoe_view *v = &a->view[i].in;
    const int d = (int)draw(v->rank > 0 && v->rank <= 6 ? (uint64_t)v->rank : 6);
    switch (draw(10)) {
    case 0:
    case 1:
        v->dims[d] = any_size(v->dims[d]);
        tell("dim of view", i * 10 + d, v->dims[d]);
        break;
    case 2:
    case 3:
        v->strides[d] = any_size(v->strides[d]);
        tell("stride of view", i * 10 + d, v->strides[d]);
        break;
    case 4: {
        const int32_t ranks[] = {-1, 0, 1, v->rank + 1, 7, 1 << 24};
        v->rank = ranks[draw(6)];
        tell("rank of view", i, v->rank);
        break;
    }
    case 5: {
        const int32_t dtypes[] = {0, 99, -1, INT32_MAX, INT32_MIN};
        v->dtype = draw(2) ? 1 + (int32_t)draw(12) : dtypes[draw(5)];
        tell("dtype of view", i, v->dtype);
        break;
    }
    case 6:
        if (draw(2))
            v->device = any_int(v->device);
        else
            v->reserved = any_int(v->reserved);
        tell("device, reserved of view", i, v->device);
        break;
    case 7: {
        const int other = (int)draw((uint64_t)a->views);
        v->data = draw(2) ? NULL : draw(8) ? a->view[other].in.data : m->arena + 512;
        tell("data of view", i, v->data ? other : -1);
        break;
    }
    case 8:
        v->name = draw(2) ? "some name" : "";
        tell("name of view", i, 0);
        break;
    default: { /* values: ids out of range, floats that are not numbers */
        if (!v->data) break;
        char *at = m->buffer[i] + MIDDLE + 4 * draw(24);
        uint32_t word;
        memcpy(&word, at, sizeof word);
        word = any_word(word);
        memcpy(at, &word, sizeof word);
        tell("value of view", i, (int32_t)word);
    }
    }
}

/* Every dim of one size at once, so that the views still fit each other. */
static void corrupt_size(args *a, const cmoe_view *v)
{
    if (v->rank < 1 || v->rank > CMOE_MAX_RANK) return;
    const int64_t old = v->dims[draw((uint64_t)v->rank)], size = draw(2) ? 0 : any_size(old);
    for (int i = 0; i < a->views; i++) {
        for (int32_t d = 0; d < a->view[i].in.rank && d < CMOE_MAX_RANK; d++) {
            if (a->view[i].in.dims[d] == old) a->view[i].in.dims[d] = size;
        }
    }
    tell("size", (int)old, size);
}

static void corrupt_block(args *a, int i)
{
    block *b = &a->block[i];
    if (draw(5) == 0) {
        const size_t sizes[] = {0,     1,       7, 8, b->size - 8, b->size + 8, b->size + 1024,
                                65537, SIZE_MAX};
        const size_t size = sizes[draw(9)];
        memcpy(b->bytes, &size, sizeof size);
        if (draw(2)) b->bytes[b->size + 3] = 1;
        tell("size of options", i, (int64_t)size);
        return;
    }
    const size_t w = draw(b->size / 4);
    if (b->closed[w]) return;
    if (w % 2 == 0 && !b->closed[w + 1] && draw(2)) {
        int64_t value;
        memcpy(&value, b->bytes + 4 * w, sizeof value);
        value = any_size(value);
        memcpy(b->bytes + 4 * w, &value, sizeof value);
        tell("8 bytes of options", i * 1000 + (int)w, value);
        return;
    }
    uint32_t word;
    memcpy(&word, b->bytes + 4 * w, sizeof word);
    word = any_word(word);
    memcpy(b->bytes + 4 * w, &word, sizeof word);
    tell("word of options", i * 1000 + (int)w, (int32_t)word);
}

static void corrupt_number(args *a, int i)
{
    if (a->words[i].bytes == 4) {
        uint32_t word;
        memcpy(&word, a->words[i].at, sizeof word);
        word = any_word(word);
        memcpy(a->words[i].at, &word, sizeof word);
        tell("number", i, (int32_t)word);
        return;
    }
    int64_t value;
    memcpy(&value, a->words[i].at, sizeof value);
    value = any_size(value);
    memcpy(a->words[i].at, &value, sizeof value);
    tell("number", i, value);
}

/* Smaller, used up, nonsensical; never more than there is. */
static void corrupt_arena(args *a, const memory *m)
{
    cmoe_arena *r = &a->arena;
    const int64_t used[] = {-1, ARENA, ARENA + 1, INT64_MIN, INT64_MAX, (int64_t)draw(ARENA)};
    switch (draw(5)) {
    case 0:
        r->bytes = (int64_t)draw(4096);
        break;
    case 1:
        r->bytes = draw(2) ? -1 : INT64_MIN;
        break;
    case 2:
        r->used = used[draw(6)];
        break;
    case 3:
        r->base = NULL;
        break;
    default:
        r->base = m->arena + 1 + draw(63);
        r->bytes = ARENA - 64;
    }
    tell("arena: bytes", 0, r->bytes);
    tell("arena: used", 0, r->used);
}

/* How many fields it was. */
static int corrupt(args *a, memory *m)
{
    const int view = a->views ? 8 : 0, options = a->blocks ? 4 : 0, arena = a->arena_at ? 1 : 0;
    const int numbers = a->n_words ? 2 : 0;
    int64_t pick = (int64_t)draw((uint64_t)(view + options + arena + numbers + 1));
    if ((pick -= view) < 0) {
        const int i = (int)draw((uint64_t)a->views);
        if (draw(8) == 0) {
            corrupt_size(a, &a->view[i].in);
            return MAX_VIEWS;
        }
        corrupt_view(a, m, i);
    } else if ((pick -= options) < 0) {
        corrupt_block(a, (int)draw((uint64_t)a->blocks));
    } else if ((pick -= arena) < 0) {
        corrupt_arena(a, m);
    } else if ((pick -= numbers) < 0) {
        corrupt_number(a, (int)draw((uint64_t)a->n_words));
    } else {
        const int i = (int)draw((uint64_t)a->n_pointers);
        memset(a->pointers[i], 0, sizeof(void *));
        tell("pointer", i, 0);
    }
    return 1;
}

/* ---- may it be tried? ------------------------------------------------------------------------ */

__extension__ typedef __int128 wide;
typedef enum { INSIDE, IMPOSSIBLE, OUTSIDE } reach;

/* Where the elements of a view lie: in its buffer, nowhere, or in memory that is not ours. */
static reach reach_of(const cmoe_view *v, const memory *m)
{
    wide low = 0, high = 0, elements = 1, bytes = cmoe_dtype_bytes(v->dtype);
    if (v->rank < 0 || v->rank > CMOE_MAX_RANK || bytes == 0 || !v->data) return IMPOSSIBLE;
    if (v->device != CMOE_HOST || v->reserved) return IMPOSSIBLE;
    for (int32_t i = 0; i < v->rank; i++) {
        if (v->dims[i] < 0) return IMPOSSIBLE;
        if (v->dims[i] == 0) elements = 0;
    }
    if (elements == 0) return INSIDE;
    for (int32_t i = 0; i < v->rank; i++) {
        const wide far = (wide)v->strides[i] * (v->dims[i] - 1);
        if (far < 0)
            low += far;
        else
            high += far;
        if (elements > INT64_MAX / v->dims[i]) return IMPOSSIBLE;
        elements *= v->dims[i];
    }
    if (high > INT64_MAX || low < -INT64_MAX) return IMPOSSIBLE;
    low *= bytes;
    high = (high + 1) * bytes;
    if (high > INT64_MAX || low < -INT64_MAX) return IMPOSSIBLE;
    if (elements > MAX_ELEMENTS) return OUTSIDE;
    const char *at = v->data;
    for (int i = 0; i <= MAX_VIEWS; i++) {
        const char *from = i < MAX_VIEWS ? m->buffer[i] : m->arena;
        const int64_t size = i < MAX_VIEWS ? BUFFER : ARENA;
        if (at < from || at >= from + size) continue;
        return at - from + low >= 0 && at - from + high <= size ? INSIDE : OUTSIDE;
    }
    return OUTSIDE;
}

/* A single dim that is too large where others say how large it is. */
static bool only_a_wrong_dim(const args *a, const any_view *valid, int i, const memory *m)
{
    cmoe_view v = a->view[i].in;
    int changed = 0;
    for (int d = 0; d < CMOE_MAX_RANK; d++) {
        if (v.dims[d] == valid[i].in.dims[d]) continue;
        if (a->free_dims[i] >> d & 1) return false;
        v.dims[d] = valid[i].in.dims[d];
        changed++;
    }
    return changed == 1 && valid[i].in.dtype != 0 && reach_of(&v, m) == INSIDE;
}

/* Lists have no length but what is said here: one lie is found out, two may support each other. */
static bool lists_end(const cmoe_groups *g)
{
    enum { MOST = 64 };
    return g->tokens <= MOST && g->topk <= MOST && g->capacity <= MOST && g->experts <= MOST;
}

static bool may_try(const args *a, const any_view *valid, int corrupted, const memory *m)
{
    if (corrupted > 1 && !lists_end(&a->groups)) return false;
    if (a->may && !a->may(a, corrupted)) return false;
    for (int i = 0; i < a->views; i++) {
        if (reach_of(&a->view[i].in, m) != OUTSIDE) continue;
        if (corrupted > 1 || !only_a_wrong_dim(a, valid, i, m)) return false;
    }
    return true;
}

/* ---- one call -------------------------------------------------------------------------------- */

/* The buffer i may have been written: an output begins in it. */
static bool is_written(const args *a, const memory *m, int i)
{
    if (a->written >> i & 1) return true;
    for (int j = 0; j < a->views; j++) {
        const char *at = a->view[j].out.data;
        if (a->is_out[j] && at >= m->buffer[i] && at < m->buffer[i] + BUFFER) return true;
    }
    return false;
}

/* What a caller sees besides tensors. */
typedef struct rest {
    cmoe_arena arena;
    char results[RESULTS];
    block block[MAX_BLOCKS];
} rest;

static const char *judge(const call *c, const args *a, const memory *m, const rest *before,
                         cmoe_status status, const cmoe_error *err)
{
    const bool ok = status == CMOE_OK;
    const cmoe_arena *arena = &before->arena;
    for (int i = 0; i < a->views; i++) {
        if (!(ok && is_written(a, m, i)) && memcmp(m->buffer[i], m->before[i], BUFFER))
            return ok ? "wrote to an input" : "failed, and wrote";
    }
    if (!(ok && c->keeps) && a->arena.used != arena->used) return "arena->used has changed";
    if (a->arena.base != arena->base || a->arena.bytes != arena->bytes)
        return "the arena has changed";
    for (int i = 0; i < a->blocks; i++) {
        if (!(ok && a->filled[i]) && memcmp(a->block[i].bytes, before->block[i].bytes, BLOCK))
            return ok ? "wrote to options" : "failed, and wrote to a struct";
    }
    if (ok) return NULL;
    if (err->status != status) return "err.status is not what was returned";
    if (!memchr(err->text, 0, sizeof err->text)) return "err.text has no end";
    if (!err->text[0]) return "err.text is empty";
    if (a->made) return "failed, and made an object";
    if (memcmp(m->results, before->results, RESULTS)) return "failed, and wrote a result";
    return NULL;
}

/* Runs it with everything in place; NULL when all is well. */
static const char *run(const call *c, args *a, memory *m, cmoe_status *status, cmoe_error *err)
{
    static rest before;
    memset(err, 0, sizeof *err);
    memset(err->text, 'x', sizeof err->text);
    err->size = sizeof *err;
    memset(m->results, 0x5a, RESULTS);
    memcpy(before.results, m->results, RESULTS);
    for (int i = 0; i < a->n_embeds; i++)
        memcpy(a->block[a->embeds[i].block].bytes + a->embeds[i].offset,
               &a->view[a->embeds[i].view], sizeof(cmoe_view));
    for (int i = 0; i < a->views; i++)
        memcpy(m->before[i], m->buffer[i], BUFFER);
    before.arena = a->arena;
    memcpy(before.block, a->block, sizeof before.block);
    alarm(HANG_SECONDS);
    *status = c->run(a, err);
    alarm(0);
    const char *wrong = judge(c, a, m, &before, *status, err);
    if (a->made) c->done(a->made);
    return wrong;
}

static void set_up(const call *c, args *a, const fixture *f, memory *m)
{
    memset(a, 0, sizeof *a);
    a->fix = f;
    a->ctx = f->ctx;
    a->stream = f->stream;
    a->result[0] = m->results;
    a->result[1] = m->results + 128;
    story[0] = '\0';
    running = c->name;
    c->set(a, m);
    /* Functions without a stream have a context. */
    a->pointers[a->n_pointers++] = &a->stream;
}

static bool try_one(const call *c, const fixture *f, memory *m, int64_t count[2])
{
    static args a;
    any_view valid[MAX_VIEWS];
    cmoe_error err;
    cmoe_status status;
    set_up(c, &a, f, m);
    memcpy(valid, a.view, sizeof valid);
    int corrupted = 0;
    for (int i = (int)draw(3); i >= 0; i--)
        corrupted += corrupt(&a, m);
    if (!may_try(&a, valid, corrupted, m)) return true;
    const char *wrong = run(c, &a, m, &status, &err);
    count[status == CMOE_OK]++;
    if (!wrong) return true;
    static int reports;
    if (reports++ < REPORTS)
        printf("%s: %s (%s: %.100s); seed %" PRIu64 " position %" PRIu64 ": %s\n", c->name, wrong,
               cmoe_status_name(status), err.text, seed, position, story);
    return false;
}

/* What is to be corrupted must be good. */
static bool valid_as_it_is(const call *c, const fixture *f, memory *m)
{
    static args a;
    cmoe_error err;
    cmoe_status status;
    set_up(c, &a, f, m);
    const char *wrong = run(c, &a, m, &status, &err);
    if (status == CMOE_OK && !wrong) return true;
    printf("%s: uncorrupted: %s: %.200s\n", c->name, wrong ? wrong : "refused", err.text);
    return false;
}

/* ---- all ------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { MAX_CALLS = 128 };
static const call *calls[MAX_CALLS];
static int n_calls;

static void add_calls(const call *list, int n)
{
    for (int i = 0; i < n && n_calls < MAX_CALLS; i++)
        calls[n_calls++] = &list[i];
}

static void *need(size_t bytes)
{
    const size_t all = (bytes + 63) / 64 * 64;
    void *p = aligned_alloc(64, all); /* as a cache wants it */
    if (!p) exit(2);
    return memset(p, 0, all);
}

int main(int argc, char **argv)
{
    const double end = now() + (argc > 1 ? atof(argv[1]) : 4);
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    memory m;
    for (int i = 0; i < MAX_VIEWS; i++) {
        m.buffer[i] = need(BUFFER);
        m.before[i] = need(BUFFER);
    }
    m.arena = need(ARENA);
    m.results = need(RESULTS);
    fixture f = fixture_open(&m);
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was said is not lost with the program */
    signal(SIGALRM, hang);
    signal(SIGABRT, hang); /* an assertion */
    add_calls(layer_calls, n_layer_calls);
    add_calls(ops_calls, n_ops_calls);
    add_calls(attention_calls, n_attention_calls);
    add_calls(bytes_calls, n_bytes_calls);
#ifdef MUTATE_MODEL
    add_calls(model_calls, n_model_calls);
#endif
    bool *good = need((size_t)n_calls * sizeof *good);
    int64_t count[2] = {0, 0};
    for (int i = 0; i < n_calls; i++)
        good[i] = valid_as_it_is(calls[i], &f, &m);
    for (position = 0; position < 100 * (uint64_t)n_calls || now() < end; position++) {
        const int i = (int)(position % (uint64_t)n_calls);
        draws = 0;
        if (!try_one(calls[i], &f, &m, count)) good[i] = false;
    }
    int failed = 0;
    for (int i = 0; i < n_calls; i++)
        failed += !good[i];
    /* A corrupter that everything accepts, or nothing, tries nothing. */
    if (count[0] < count[1] / 8 || count[1] == 0) failed++;
    printf("%" PRId64 " corrupted calls were refused, %" PRId64 " accepted\n", count[0], count[1]);
    printf("mutate: %d passed, %d failed\n", n_calls - failed, failed);
    fixture_close(&f);
    for (int i = 0; i < MAX_VIEWS; i++) {
        free(m.buffer[i]);
        free(m.before[i]);
    }
    free(m.arena);
    free(m.results);
    free(good);
    return failed != 0;
}
