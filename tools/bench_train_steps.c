/* SPDX-License-Identifier: MIT
 *
 * bench_train_steps.c - whole steps of a trainer: forward, backward, optimizer, packing.
 *
 * Weights and tokens are random: what they are changes nothing about the time.  The first step is not
 * counted; its loss must be finite and its gradient must be there.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "bench_train.h"
#include "cmoe/train.h"
#include "crew.h"
#include "model.h"
#include "report.h"
#include "training.h"

typedef struct steps {
    const bench_train_flags *f;
    char path[4200];
    tool_session session;
    cmoe_trainer *trainer;
    cmoe_dataset *data;
    cmoe_trainer_info info;
    cmoe_train_report report;
    int64_t budget, taken; /* bytes; budget 0: any */
    bool refused;
    double *ms; /* [repeat] */
} steps;

/* What would not fit ends in an error instead of a killed process. */
static void *take_memory(void *user, size_t bytes, size_t align)
{
    steps *s = user;
    void *memory = NULL;
    const int64_t all = __atomic_add_fetch(&s->taken, (int64_t)bytes, __ATOMIC_RELAXED);
    s->refused = s->budget > 0 && all > s->budget;
    if (s->refused) return NULL; /* it ends here: nobody counts any more */
    if (align < sizeof(void *)) align = sizeof(void *);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void give_memory(void *user, void *memory, size_t bytes)
{
    steps *s = user;
    if (memory) __atomic_sub_fetch(&s->taken, (int64_t)bytes, __ATOMIC_RELAXED);
    free(memory);
}

/* CONFIG as a file; a directory stands for the one that it holds. */
static int find_config(steps *s)
{
    const char *given = s->f->config;
    struct stat st;
    if (strlen(given) > 4000) return report_fail(EXIT_USAGE, "CONFIG", "is too long a path");
    const bool folder = stat(given, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(s->path, sizeof s->path, "%.4000s%s", given, folder ? "/config.json" : "");
    if (access(s->path, R_OK) == 0) return 0;
    return report_fail(EXIT_FILE, s->path, "%s, want a config.json", strerror(errno));
}

static int create(steps *s)
{
    const bench_train_flags *f = s->f;
    cmoe_error err = {.size = sizeof err};
    cmoe_train_options o;
    cmoe_train_options_default(&o, sizeof o);
    o.format = model_format(f->dtype);
    while (strcmp(training_optimizers[o.optimizer], f->optimizer) != 0)
        o.optimizer++;
    o.steps = f->repeat + 1;
    o.units = f->units ? f->units : 8;
    o.sequences = f->sequences;
    o.length = f->length;
    o.seed = (uint64_t)f->seed;
    report_progress(f->common.quiet, "making weights");
    cmoe_status status = cmoe_trainer_create(&s->trainer, s->session.ctx, s->path, &o, &err);
    if (status == CMOE_ERR_MEMORY && s->refused)
        return report_fail(EXIT_MEMORY, s->path, "training it needs more than %s, which are free",
                           size_of(s->budget).s);
    if (status == CMOE_OK) status = cmoe_trainer_describe(s->trainer, &s->info, &err);
    return model_fail(status, s->path, &err);
}

static int make_data(steps *s)
{
    enum { LEAST = 65536 };
    cmoe_error err = {.size = sizeof err};
    const int64_t step = s->info.tokens + s->f->length + 1, n = step > LEAST ? step : LEAST;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    if (!ids) return report_fail(EXIT_MEMORY, "data", "no memory for %lld ids", (long long)n);
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(cmoe_random_u64((uint64_t)s->f->seed, (uint64_t)i, 0) %
                           (uint64_t)s->info.vocab);
    const cmoe_status status =
        cmoe_dataset_make(&s->data, s->session.ctx, cmoe_view_1d(ids, CMOE_I32, n),
                          cmoe_view_none(), cmoe_view_none(), &err);
    free(ids);
    return report_status(status, "data", &err);
}

/* Step r; r < 0: not counted, but looked at. */
static int one_step(steps *s, int64_t r)
{
    cmoe_error err = {.size = sizeof err};
    const double start = crew_now();
    const cmoe_status status = cmoe_trainer_step(s->trainer, s->data, &s->report, &err);
    const double ms = (crew_now() - start) * 1e3;
    if (status != CMOE_OK) return report_status(status, "training", &err);
    if (report_cancelled()) return report_fail(EXIT_CANCELLED, "bench train", "cancelled");
    if (r >= 0) s->ms[r] = ms;
    const cmoe_train_report *p = &s->report;
    if (r >= 0 ||
        (isfinite(p->loss) && isfinite(p->gradient_norm) && p->gradient_norm > 0 && p->targets > 0))
        return 0;
    return report_fail(EXIT_ERROR, "wrong result",
                       "loss %g over %lld tokens, gradient %g, want finite ones above 0", p->loss,
                       (long long)p->targets, p->gradient_norm);
}

static void summarise(steps *s, train_steps *out)
{
    const int64_t n = s->f->repeat;
    snprintf(out->type, sizeof out->type, "%s", s->info.type);
    out->parameters = s->info.parameters;
    out->active = s->info.active;
    out->tokens = s->info.tokens;
    out->ms_median = bench_median(s->ms, n); /* sorts */
    out->ms_min = s->ms[0];
    out->spread = (s->ms[n - 1 - n / 4] - s->ms[n / 4]) / out->ms_median;
    out->tokens_per_second = (double)out->tokens / out->ms_median * 1e3;
    out->loss = s->report.loss;
}

static int work(steps *s, limits *limit, train_steps *out)
{
    const int64_t n = s->f->repeat;
    int status = create(s);
    if (status == 0) status = make_data(s);
    for (int64_t r = -1; r < n && status == 0; r++) {
        report_progress(s->f->common.quiet, "step %lld of %lld", (long long)r + 1, (long long)n);
        limits_peak(limit, LIMIT_F32);
        status = one_step(s, r);
    }
    if (status == 0) summarise(s, out);
    return status;
}

int train_steps_measure(const bench_train_flags *f, const machine *m, limits *limit,
                        train_steps *out)
{
    steps s = {.f = f, .info.size = sizeof s.info, .report.size = sizeof s.report};
    const cmoe_allocator memory = {.user = &s, .alloc = take_memory, .free = give_memory};
    int status = find_config(&s);
    if (status) return status;
    /* Some is left for what is not the trainer's. */
    s.budget = m->available_bytes > 0 ? m->available_bytes - m->available_bytes / 32 : 0;
    status = session_open_with(&s.session, &f->common, &memory);
    if (status) return status;
    s.ms = malloc((size_t)f->repeat * sizeof *s.ms);
    status = s.ms ? work(&s, limit, out) : report_fail(EXIT_MEMORY, "memory", "none left");
    free(s.ms);
    cmoe_trainer_free(s.trainer); /* it looks at the data until then */
    cmoe_dataset_free(s.data);
    session_close(&s.session);
    return status;
}
