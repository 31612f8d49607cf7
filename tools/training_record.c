/* SPDX-License-Identifier: MIT
 *
 * training_record.c - training.jsonl, and what is drawn of it.
 *
 * A run that goes on reads the record of the one before: lines behind its checkpoint go, for their
 * steps are done again, and the others become the beginning of its curves.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/model.h"
#include "files.h"
#include "heatmap.h"
#include "report.h"
#include "training.h"

/* ---- the record ------------------------------------------------------------------------------ */

/* A line of an earlier run: what it says goes into the curves.  false: it is not to be kept. */
static bool keep_line(training *t, const char *line, size_t length)
{
    json_t *j = json_loadb(line, length, 0, NULL);
    const json_t *step = json_object_get(j, "step"), *loss = json_object_get(j, "loss");
    const json_t *eval = json_object_get(j, "eval_loss");
    const json_t *bits = json_object_get(j, "eval_bits_per_byte");
    const bool keep = json_is_integer(step) && json_integer_value(step) <= t->began;
    const double at = (double)json_integer_value(step);
    if (keep && json_is_number(loss)) (void)plot_add(&t->losses, at, json_number_value(loss));
    if (keep && json_is_number(eval)) {
        const training_eval e = {json_number_value(eval),
                                 json_is_number(bits) ? json_number_value(bits) : NAN,
                                 (int64_t)json_integer_value(step)};
        (void)plot_add(&t->evals, at, e.loss);
        t->last = e;
        if (t->best.step == 0 || e.loss < t->best.loss) t->best = e;
    }
    json_decref(j);
    return keep;
}

int training_open_record(training *t)
{
    char path[TRAINING_LONGER];
    size_t bytes = 0, kept = 0;
    training_inside(path, t->out, "training.jsonl");
    char *text = t->began > 0 ? files_read(path, &bytes) : NULL;
    for (size_t at = 0; text && at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        if (!end) break; /* half a line */
        const size_t length = (size_t)(end - text) - at + 1;
        if (keep_line(t, text + at, length)) {
            memmove(text + kept, text + at, length);
            kept += length;
        }
        at += length;
    }
    const int status = files_write(path, text ? text : "", kept);
    free(text);
    if (status) return status;
    t->record = fopen(path, "a");
    return t->record ? 0 : report_fail(EXIT_ERROR, path, "cannot be written: %s", strerror(errno));
}

static int write_line(training *t, json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(j);
    if (!text) return report_fail(EXIT_MEMORY, "training.jsonl", "no memory");
    const bool done = fprintf(t->record, "%s\n", text) > 0 && fflush(t->record) == 0;
    free(text);
    if (done) return 0;
    return report_fail(EXIT_ERROR, t->out, "training.jsonl cannot be written: %s", strerror(errno));
}

int training_record_step(training *t, double tokens_per_second)
{
    const cmoe_train_report *r = &t->report;
    if (!plot_add(&t->losses, (double)r->step, r->loss))
        return report_fail(EXIT_MEMORY, "training", "no memory");
    return write_line(t,
                      json_pack("{sI sf sf sf sf sf sf sI sf}", "step", (json_int_t)r->step, "loss",
                                r->loss, "lr", r->lr, "norm", r->gradient_norm, "balance",
                                r->balance_loss, "z", r->z_loss, "imbalance", r->imbalance, "dead",
                                (json_int_t)r->dead, "tokens_per_second", tokens_per_second));
}

int training_record_eval(training *t)
{
    const training_eval *e = &t->last;
    if (!plot_add(&t->evals, (double)e->step, e->loss))
        return report_fail(EXIT_MEMORY, "training", "no memory");
    json_t *j = json_pack("{sI sf}", "step", (json_int_t)e->step, "eval_loss", e->loss);
    if (!isnan(e->bits_per_byte))
        json_object_set_new(j, "eval_bits_per_byte", json_real(e->bits_per_byte));
    return write_line(t, j);
}

/* ---- pictures -------------------------------------------------------------------------------- */

static int write_picture(const training *t, const char *name, char *text, size_t bytes)
{
    char path[TRAINING_LONGER];
    training_inside(path, t->out, name);
    const int status = text ? files_write(path, text, bytes)
                            : report_fail(EXIT_MEMORY, name, "no memory for the picture");
    free(text);
    return status;
}

static int write_loss(const training *t)
{
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (!to) return report_fail(EXIT_MEMORY, "loss.svg", "no memory for the picture");
    plot_loss(to, t->out, &t->losses, &t->evals);
    fclose(to);
    return write_picture(t, "loss.svg", text, bytes);
}

/* The number in the model of each layer with experts. */
static void number_layers(const training *t, heatmap_row *rows)
{
    cmoe_model *outline = NULL;
    cmoe_model_options o;
    const char *path = t->o.what == CMOE_TRAIN_LORA ? t->source : t->out;
    cmoe_model_options_default(&o, sizeof o);
    o.describe_only = 1;
    for (int64_t i = 0; i < t->info.moe_layers; i++)
        rows[i] = (heatmap_row){.layer = i, .experts = t->info.experts};
    if (cmoe_model_load(&outline, t->session.ctx, path, &o, NULL) != CMOE_OK) return;
    for (int64_t i = 0, moe = 0; i < t->info.layers && moe < t->info.moe_layers; i++) {
        cmoe_model_layer layer = {.size = sizeof layer};
        if (cmoe_model_layer_describe(outline, i, &layer, NULL) != CMOE_OK) break;
        if (layer.experts == 0) continue;
        rows[moe].layer = i;
        rows[moe++].experts = layer.experts;
    }
    cmoe_model_free(outline);
}

static int write_load(const training *t)
{
    const int64_t n = t->info.moe_layers;
    char *text = NULL;
    size_t bytes;
    heatmap_row *rows = calloc((size_t)n, sizeof *rows);
    FILE *to = rows ? open_memstream(&text, &bytes) : NULL;
    if (!to) {
        free(rows);
        return report_fail(EXIT_MEMORY, "load.svg", "no memory for the picture");
    }
    number_layers(t, rows);
    const int64_t all = n * t->info.experts;
    int64_t *load = calloc((size_t)all, sizeof *load);
    for (int64_t i = 0; i < all && load; i++)
        load[i] = t->load[i] + t->load[all + i];
    for (int64_t i = 0; i < n && load; i++) {
        int64_t sum = 0, most = 0;
        rows[i].counts = load + i * t->info.experts;
        for (int64_t e = 0; e < rows[i].experts; e++) {
            sum += rows[i].counts[e];
            most = rows[i].counts[e] > most ? rows[i].counts[e] : most;
        }
        rows[i].mean = (double)sum / (double)rows[i].experts;
        rows[i].imbalance = sum > 0 ? (double)most / rows[i].mean : 0;
    }
    const int64_t steps = t->load_steps + t->load_before;
    if (load) heatmap_svg(to, t->out, steps * t->info.tokens, rows, n);
    fclose(to);
    free(rows);
    free(load);
    return write_picture(t, "load.svg", text, bytes);
}

int training_write_pictures(training *t)
{
    int status = t->losses.count > 0 ? write_loss(t) : 0;
    if (status == 0 && t->info.moe_layers > 0 && t->load_steps > 0) status = write_load(t);
    return status;
}
