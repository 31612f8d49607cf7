/* SPDX-License-Identifier: MIT
 *
 * trainer.c - a training: created, stepped, evaluated.
 *
 * A step fills a batch, runs its units in passes, adds the gradients of passes as the tree that the units
 * inside a pass are already part of, clips, moves the weights and packs them again.
 */
#include "trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "options.h"
#include "source.h"
#include "targets.h"

/* ---- create ------------------------------------------------------------------------------------ */

static cmoe_status take(cmoe_trainer *t, int64_t n, int64_t size, const char *what, void *out,
                        cmoe_error *err)
{
    void *memory;
    int64_t bytes;
    if (!cmoei_mul(n, size, &bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: %" PRId64 " are too many", what, n);
    CMOEI_TRY(cmoei_alloc(t->ctx, bytes, what, &memory, err));
    memset(memory, 0, (size_t)bytes);
    memcpy(out, &memory, sizeof memory);
    return CMOE_OK;
}

static cmoe_status count_trained(void *user, const char *name, float *value, int64_t rows,
                                 int64_t cols, bool decay, bool hidden)
{
    cmoe_trainer *t = user;
    (void)name, (void)value, (void)rows, (void)cols, (void)decay, (void)hidden;
    t->trained_count++;
    return CMOE_OK;
}

static cmoe_status add_trained(void *user, const char *name, float *value, int64_t rows,
                               int64_t cols, bool decay, bool hidden)
{
    cmoe_trainer *t = user;
    const bool orthogonal = t->o.optimizer == CMOE_OPTIMIZER_MUON && hidden;
    const int32_t states = cmoei_optimizer_states(&t->o, orthogonal);
    char *copy = t->names[t->trained_count];
    snprintf(copy, sizeof t->names[0], "%s", name);
    t->trained[t->trained_count++] = (cmoei_trained){
        .name = copy,
        .value = value,
        .gradient = cmoei_params_in(&t->params, t->gradient[0], value),
        .m = states > 0 ? cmoei_params_in(&t->params, t->m, value) : NULL,
        .v = states > 1 ? cmoei_params_in(&t->params, t->v, value) : NULL,
        .rows = rows,
        .cols = cols,
        .decay = decay,
        .orthogonal = orthogonal,
    };
    return CMOE_OK;
}

static cmoe_status list_trained(cmoe_trainer *t, cmoe_error *err)
{
    const bool apart = t->o.optimizer == CMOE_OPTIMIZER_MUON;
    CMOEI_TRY(cmoei_params_each(&t->params, apart, count_trained, t));
    CMOEI_TRY(take(t, t->trained_count, sizeof *t->trained, "trained tensors", &t->trained, err));
    CMOEI_TRY(take(t, t->trained_count, sizeof *t->names, "trained tensors", &t->names, err));
    t->trained_bytes = t->trained_count * (int64_t)sizeof *t->trained;
    t->names_bytes = t->trained_count * (int64_t)sizeof *t->names;
    t->trained_count = 0;
    CMOEI_TRY(cmoei_params_each(&t->params, apart, add_trained, t));
    return cmoei_optimizer_create(&t->optimizer, t->ctx, &t->o, t->trained, t->trained_count, err);
}

static int64_t pass_sequences(const cmoe_trainer *t)
{
    return t->o.pass * t->o.sequences;
}

static cmoe_status take_step_memory(cmoe_trainer *t, cmoe_error *err)
{
    const int64_t floats = t->params.count, f = sizeof(float);
    t->passes = t->o.units / t->o.pass;
    for (t->sums = 1; (int64_t)1 << (t->sums - 1) < t->passes; t->sums++)
        ;
    for (int64_t i = 0; i < t->sums; i++)
        CMOEI_TRY(take(t, floats + t->params.extra, f, "gradients", &t->gradient[i], err));
    const int32_t states =
        CMOEI_MAX(cmoei_optimizer_states(&t->o, false), cmoei_optimizer_states(&t->o, true));
    if (states > 0) CMOEI_TRY(take(t, floats, f, "state of the optimizer", &t->m, err));
    if (states > 1) CMOEI_TRY(take(t, floats, f, "state of the optimizer", &t->v, err));
    CMOEI_TRY(list_trained(t, err));
    const cmoei_batch_shape shape = {.objective = t->o.objective,
                                     .length = t->o.length,
                                     .sequences = cmoei_step_sequences(t),
                                     .block = t->o.block,
                                     .mask_token = t->d.mask_token,
                                     .seed = t->o.seed};
    CMOEI_TRY(cmoei_batch_open(&t->batch, t->ctx, &shape, err));
    CMOEI_TRY(take(t, cmoei_step_sequences(t), sizeof *t->at, "windows", &t->at, err));
    CMOEI_TRY(
        take(t, cmoei_step_sequences(t) * t->batch.rows, sizeof *t->loss, "losses", &t->loss, err));
    for (int64_t i = 0; i < t->d.layers; i++) {
        t->moe_layers += t->d.layer[i].experts > 0;
        t->most_experts = CMOEI_MAX(t->most_experts, t->d.layer[i].experts);
    }
    CMOEI_TRY(take(t, CMOEI_MAX(t->moe_layers * t->most_experts, 1), sizeof *t->load, "load",
                   &t->load, err));
    return cmoei_net_create(&t->net, &t->params, pass_sequences(t) * t->batch.rows, t->o.pass, err);
}

static cmoe_status create(cmoe_trainer *t, const char *path, const cmoe_train_options *o,
                          cmoe_error *err)
{
    cmoei_training_source source = {0};
    CMOEI_TRY(cmoei_train_options_read(t, o, err));
    CMOEI_TRY(cmoe_stream_create(&t->stream, t->ctx, err));
    CMOEI_TRY(cmoei_training_source_open(&source, t, path, err));
    cmoe_status status = cmoei_train_options_fit(t, err);
    if (status == CMOE_OK) status = cmoei_params_create(&t->params, t->ctx, &t->d, &t->o, err);
    if (status == CMOE_OK)
        status = source.checkpoint ? cmoei_params_read(&t->params, &source.tensors, err)
                                   : cmoei_params_random(&t->params, err);
    cmoei_training_source_close(&source, t);
    CMOEI_TRY(status);
    if (t->o.start) CMOEI_TRY(cmoei_targets_start(&t->params, err));
    t->o.start = t->params.o.start = NULL; /* the caller's, not needed any more */
    CMOEI_TRY(cmoei_params_fill(&t->params, t->stream, true, err));
    return take_step_memory(t, err);
}

cmoe_status cmoe_trainer_create(cmoe_trainer **out, cmoe_ctx *ctx, const char *path,
                                const cmoe_train_options *o, cmoe_error *err)
{
    cmoe_trainer *t;
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "trainer: %s is NULL",
                          !out   ? "out"
                          : !ctx ? "ctx"
                                 : "path");
    CMOEI_TRY(cmoei_alloc(ctx, sizeof *t, "trainer", (void **)&t, err));
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
    const cmoe_status status = create(t, path, o, err);
    if (status != CMOE_OK) {
        cmoe_trainer_free(t);
        return status;
    }
    *out = t;
    return CMOE_OK;
}

void cmoe_trainer_free(cmoe_trainer *t)
{
    if (!t) return;
    cmoe_ctx *ctx = t->ctx;
    const int64_t f = sizeof(float), floats = t->params.count;
    cmoei_net_free(t->net);
    cmoei_optimizer_free(t->optimizer);
    cmoei_windows_close(&t->windows);
    for (int64_t i = 0; i < CMOEI_GRADIENTS; i++)
        cmoei_free(ctx, t->gradient[i], (floats + t->params.extra) * f);
    cmoei_free(ctx, t->m, floats * f);
    cmoei_free(ctx, t->v, floats * f);
    cmoei_free(ctx, t->trained, t->trained_bytes);
    cmoei_free(ctx, t->names, t->names_bytes);
    cmoei_free(ctx, t->at, cmoei_step_sequences(t) * (int64_t)sizeof *t->at);
    cmoei_free(ctx, t->loss, cmoei_step_sequences(t) * t->batch.rows * (int64_t)sizeof *t->loss);
    cmoei_free(ctx, t->load,
               CMOEI_MAX(t->moe_layers * t->most_experts, 1) * (int64_t)sizeof *t->load);
    cmoei_batch_close(&t->batch, ctx);
    cmoei_params_free(&t->params);
    cmoei_decoder_close(&t->d, ctx);
    cmoei_free(ctx, t->config, t->config_bytes);
    cmoei_free(ctx, t->targets, t->targets ? (int64_t)strlen(t->targets) + 1 : 0);
    cmoe_stream_free(t->stream);
    cmoei_free(ctx, t, sizeof *t);
}

/* ---- passes ------------------------------------------------------------------------------------ */

/* Sequences [first, first + count) of the batch, in units of `unit` sequences. */
static cmoe_status run_pass(cmoe_trainer *t, int64_t first, int64_t count, int64_t unit,
                            int64_t rows, float *gradient, cmoei_net_result *r, cmoe_error *err)
{
    int64_t edges[CMOE_UNITS_MOST + 1];
    const int64_t at = first * rows, units = count / unit;
    /* The table of who sees whom counts from the beginning of the step. */
    int32_t *see = t->batch.see + 4 * at;
    for (int64_t i = 0; i < 4 * count * rows; i++)
        see[i] -= (int32_t)at;
    for (int64_t u = 0; u <= units; u++)
        edges[u] = u * unit * rows;
    const cmoei_net_call call = {.tokens = count * rows,
                                 .ids = t->batch.ids + at,
                                 .positions = t->batch.positions + at,
                                 .see = see,
                                 .targets = t->batch.targets + at,
                                 .scale = t->batch.scale + at,
                                 .units = {units, edges},
                                 .router_scale = 1.0f / (float)t->o.units,
                                 .first = at,
                                 .step = t->step + 1,
                                 .gradient = gradient};
    r->loss = t->loss + at;
    return cmoei_net_run(t->net, t->stream, &call, r, err);
}

static cmoe_status add(cmoe_trainer *t, float *left, const float *right, cmoe_error *err)
{
    const int64_t n = t->params.count + t->params.extra;
    const cmoe_view_mut sum = cmoe_view_mut_2d(left, CMOE_F32, n / 16, 16);
    return cmoe_scaled_add(t->stream, cmoe_view_of(sum), cmoe_view_2d(right, CMOE_F32, n / 16, 16),
                           1, sum, err);
}

/* Gradients of a whole step into gradient[0]. */
static cmoe_status run_passes(cmoe_trainer *t, cmoei_net_result *total, cmoe_error *err)
{
    int64_t held = 0;
    double balance = 0, z = 0;
    for (int64_t i = 0; i < t->passes; i++) {
        CMOEI_TRY(run_pass(t, i * pass_sequences(t), pass_sequences(t), t->o.sequences,
                           t->batch.rows, t->gradient[held], total, err));
        balance += total->balance_loss;
        z += total->z_loss;
        held++;
        /* As in counting: a finished pair becomes one sum, pairs of pairs become one, ... */
        for (int64_t k = i; k & 1; k >>= 1) {
            CMOEI_TRY(add(t, t->gradient[held - 2], t->gradient[held - 1], err));
            held--;
        }
    }
    total->balance_loss = balance;
    total->z_loss = z;
    return cmoei_params_close(&t->params, t->stream, t->gradient[0], err);
}

/* Sum of weighted losses, sequence by sequence. */
static double total_loss(const cmoe_trainer *t, int64_t sequences, int64_t rows)
{
    double sum = 0;
    for (int64_t i = 0; i < sequences; i++) {
        double own = 0;
        for (int64_t j = i * rows; j < (i + 1) * rows; j++)
            own += (double)t->loss[j] * t->batch.scale[j];
        sum += own;
    }
    return sum;
}

/* ---- a step ------------------------------------------------------------------------------------ */

static cmoe_status use_dataset(cmoe_trainer *t, const cmoe_dataset *d, cmoe_error *err)
{
    if (!d) return cmoei_fail(err, CMOE_ERR_ARG, "dataset is NULL");
    /* Another one may lie where one that was freed did; windows only know how long it was. */
    if (t->dataset == d && t->windows.tokens == d->tokens) return CMOE_OK;
    for (int64_t i = 0; i < d->tokens; i++)
        if (d->ids[i] < 0 || d->ids[i] >= t->d.vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "dataset: token %" PRId64 " is %d, want 0 <= id < %" PRId64
                              " (vocab_size of the model): was it made with another tokenizer?",
                              i, d->ids[i], t->d.vocab);
    cmoei_windows next;
    CMOEI_TRY(cmoei_windows_open(&next, t->ctx, d, t->o.seed, t->o.length, err));
    cmoei_windows_close(&t->windows);
    t->windows = next;
    t->dataset = d;
    return CMOE_OK;
}

static void draw(cmoe_trainer *t)
{
    const int64_t n = cmoei_step_sequences(t), first = t->step * n;
    for (int64_t i = 0; i < n; i++)
        t->at[i] = cmoei_windows_at(&t->windows, first + i);
    cmoei_batch_fill(&t->batch, t->dataset, t->at, n, t->o.length, (uint64_t)first);
}

static cmoe_status move(cmoe_trainer *t, double loss, cmoe_train_report *r, cmoe_error *err)
{
    CMOEI_TRY(cmoei_gradient_norm(t->stream, t->trained, t->trained_count, &r->gradient_norm, err));
    if (!isfinite(loss) || !isfinite(r->gradient_norm))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "step %" PRId64 ": the loss is %g and the norm of its gradient %g; the "
                          "weights are those of step %" PRId64,
                          t->step + 1, loss, r->gradient_norm, t->step);
    const double scale = t->o.clip > 0 ? fmin(1, t->o.clip / (r->gradient_norm + 1e-6)) : 1;
    r->lr = cmoei_learning_rate(&t->o, t->step + 1);
    CMOEI_TRY(cmoei_optimizer_step(t->optimizer, t->stream, t->trained, t->trained_count,
                                   t->step + 1, scale, err));
    for (int64_t i = 0, moe = 0; i < t->d.layers; i++) {
        const int64_t experts = t->d.layer[i].experts;
        if (experts == 0) continue;
        const int64_t *load = t->load + moe++ * t->most_experts;
        float *bias = t->params.layer[i].choice_bias;
        if (bias && !t->params.lora && t->o.bias_rate > 0)
            CMOEI_TRY(cmoe_route_bias_update(t->stream, cmoe_view_1d(load, CMOE_I64, experts),
                                             t->o.bias_rate,
                                             cmoe_view_mut_1d(bias, CMOE_F32, experts), err));
    }
    return cmoei_params_fill(&t->params, t->stream, false, err);
}

static void report_load(const cmoe_trainer *t, cmoe_train_report *r)
{
    double sum = 0;
    r->dead = 0;
    r->load = t->load;
    for (int64_t i = 0, moe = 0; i < t->d.layers; i++) {
        const int64_t experts = t->d.layer[i].experts, *load = t->load + moe * t->most_experts;
        int64_t most = 0, all = 0;
        if (experts == 0) continue;
        for (int64_t e = 0; e < experts; e++) {
            most = CMOEI_MAX(most, load[e]);
            all += load[e];
            r->dead += load[e] == 0;
        }
        if (all > 0) sum += (double)most * (double)experts / (double)all;
        moe++;
    }
    r->imbalance = t->moe_layers > 0 ? sum / (double)t->moe_layers : 0;
}

/* A step on what the batch holds. */
static cmoe_status step(cmoe_trainer *t, cmoe_train_report *report, cmoe_error *err)
{
    cmoe_train_report r = {.size = sizeof r};
    cmoei_net_result result = {.load = t->load};
    memset(t->load, 0, (size_t)(t->moe_layers * t->most_experts) * sizeof *t->load);
    CMOEI_TRY(run_passes(t, &result, err));
    r.loss = total_loss(t, cmoei_step_sequences(t), t->batch.rows);
    CMOEI_TRY(move(t, r.loss, &r, err));
    const double losses = (double)(t->o.units * CMOEI_MAX(t->moe_layers, 1));
    r.step = ++t->step;
    r.targets = t->batch.learned;
    r.balance_loss = result.balance_loss / losses;
    r.z_loss = result.z_loss / losses;
    report_load(t, &r);
    if (report) cmoei_options_write(report, report->size, &r, sizeof r);
    return CMOE_OK;
}

cmoe_status cmoe_trainer_step(cmoe_trainer *t, const cmoe_dataset *d, cmoe_train_report *report,
                              cmoe_error *err)
{
    if (!t) return cmoei_fail(err, CMOE_ERR_ARG, "trainer is NULL");
    CMOEI_TRY(use_dataset(t, d, err));
    draw(t);
    return step(t, report, err);
}

static cmoe_status check_ids(const cmoe_trainer *t, const cmoe_view *v, const char *name,
                             int64_t least, cmoe_error *err)
{
    const cmoei_want want = {name,
                             CMOEI_INDEX,
                             2,
                             {cmoei_step_sequences(t), t->o.length},
                             {"units * sequences", "length"}};
    CMOEI_TRY(cmoei_check_in(v, &want, err));
    for (int64_t i = 0; i < v->dims[0]; i++)
        for (int64_t j = 0; j < v->dims[1]; j++) {
            const int64_t id = cmoei_load_index(cmoei_at(v, i, j), v->dtype);
            if (id < least || id >= t->d.vocab)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "%s[%" PRId64 ", %" PRId64 "] = %" PRId64
                                  ", want less than %" PRId64 " (vocab)%s",
                                  cmoei_name(v->name, name), i, j, id, t->d.vocab,
                                  least == 0 ? " and not negative" : "");
        }
    return CMOE_OK;
}

cmoe_status cmoe_trainer_step_on(cmoe_trainer *t, cmoe_view ids, cmoe_view targets,
                                 cmoe_train_report *report, cmoe_error *err)
{
    if (!t) return cmoei_fail(err, CMOE_ERR_ARG, "trainer is NULL");
    if (t->o.objective != CMOE_OBJECTIVE_NEXT)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "sequences of the caller's are for the objective of the next token");
    CMOEI_TRY(check_ids(t, &ids, "ids", 0, err));
    if (cmoei_given(&targets)) CMOEI_TRY(check_ids(t, &targets, "targets", INT64_MIN, err));
    cmoei_batch_take(&t->batch, &ids, &targets, cmoei_step_sequences(t));
    return step(t, report, err);
}

/* ---- evaluation -------------------------------------------------------------------------------- */

cmoe_status cmoe_trainer_evaluate(cmoe_trainer *t, const cmoe_dataset *d, int64_t tokens,
                                  double *loss, int64_t *targets, cmoe_error *err)
{
    double sum = 0;
    int64_t learned = 0, at = 0;
    if (!t || !d || !loss || !targets)
        return cmoei_fail(err, CMOE_ERR_ARG, "evaluate: %s is NULL",
                          !t      ? "trainer"
                          : !d    ? "dataset"
                          : !loss ? "loss"
                                  : "targets");
    const int64_t L = t->o.length, all = d->tokens - 1, rows_of_token = t->batch.rows / L;
    const int64_t end = tokens > 0 ? CMOEI_MIN(tokens, all) : all;
    while (at < end) {
        /* Whole windows together; what is left at the end is a window of its own. */
        int64_t n = 0;
        const int64_t length = CMOEI_MIN(L, end - at), first = at;
        for (; n < pass_sequences(t) && at + length <= end && (n == 0 || length == L); n++) {
            t->at[n] = at;
            at += length;
        }
        /* Windows are numbered, so that the noise of each is the same in passes of any size. */
        cmoei_batch_fill(&t->batch, d, t->at, n, length, (uint64_t)(first / L));
        if (t->batch.learned == 0) continue;
        cmoei_net_result result = {0};
        CMOEI_TRY(run_pass(t, 0, n, n, length * rows_of_token, NULL, &result, err));
        sum += total_loss(t, n, length * rows_of_token) * (double)t->batch.learned;
        learned += t->batch.learned;
    }
    *loss = learned > 0 ? sum / (double)learned : 0;
    *targets = learned;
    return CMOE_OK;
}

cmoe_status cmoe_trainer_describe(const cmoe_trainer *t, cmoe_trainer_info *info, cmoe_error *err)
{
    if (!t || !info)
        return cmoei_fail(err, CMOE_ERR_ARG, "trainer_describe: %s is NULL",
                          t ? "info" : "trainer");
    cmoe_trainer_info x = {.size = sizeof x,
                           .type = t->d.arch->type,
                           .parameters = t->params.parameters,
                           .active = t->params.active,
                           .tokens = cmoei_step_sequences(t) * t->o.length,
                           .step = t->step,
                           .layers = t->d.layers,
                           .moe_layers = t->moe_layers,
                           .experts = t->most_experts,
                           .vocab = t->d.vocab,
                           .context = t->d.context};
    for (int64_t i = 0; i < t->d.layers; i++)
        x.topk = CMOEI_MAX(x.topk, t->d.layer[i].topk);
    for (int64_t i = 0; i < t->trained_count; i++)
        x.trained += t->trained[i].rows * t->trained[i].cols;
    const int64_t f = sizeof(float), states = (t->m != NULL) + (t->v != NULL);
    x.bytes = cmoei_params_bytes(&t->params) + states * t->params.count * f +
              t->sums * (t->params.count + t->params.extra) * f + cmoei_net_bytes(t->net) +
              cmoei_optimizer_bytes(t->optimizer) + t->batch.memory_bytes;
    cmoei_options_write(info, info->size, &x, sizeof x);
    return CMOE_OK;
}
