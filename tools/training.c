/* SPDX-License-Identifier: MIT
 *
 * training.c - from the flags to a finished directory.
 *
 * Everything that can be wrong is looked at before the first step: flags, the directory, the texts,
 * memory (the trainer takes all of it when it is made, through an allocator that stops at what the
 * machine has), and one trial of what will be written at the end.
 *
 * A step is recorded, then evaluated, then what comes out is exported, then the checkpoint is saved.
 * So whatever a checkpoint has behind it is in the record, and what came later is done again, to the
 * same bits.
 */
#include "training.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crew.h"
#include "model.h"
#include "report.h"

/* ---- memory ---------------------------------------------------------------------------------- */

static void *take_memory(void *user, size_t bytes, size_t align)
{
    training *t = user;
    void *memory = NULL;
    const int64_t all = __atomic_add_fetch(&t->taken, (int64_t)bytes, __ATOMIC_RELAXED);
    const bool room = t->budget == 0 || all <= t->budget;
    if (room &&
        posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes) == 0)
        return memory;
    t->refused = all;
    __atomic_sub_fetch(&t->taken, (int64_t)bytes, __ATOMIC_RELAXED);
    return NULL;
}

static void give_memory(void *user, void *memory, size_t bytes)
{
    training *t = user;
    if (memory) __atomic_sub_fetch(&t->taken, (int64_t)bytes, __ATOMIC_RELAXED);
    free(memory);
}

static int open_session(training *t)
{
    const cmoe_allocator memory = {.user = t, .alloc = take_memory, .free = give_memory};
    return session_open_with(&t->session, &t->f->common, &memory);
}

/* ---- before the first step ------------------------------------------------------------------- */

/* CONFIG as a file; a directory stands for what it holds.  MODEL as it is. */
static int find_source(training *t)
{
    const char *given = t->f->source;
    struct stat st;
    const bool there = stat(given, &st) == 0;
    if (strlen(given) > 4000 || strlen(t->f->out) > 3900)
        return report_fail(EXIT_USAGE, "--out", "a path is too long, want less than 3900 bytes");
    snprintf(t->out, sizeof t->out, "%s", t->f->out);
    for (size_t n = strlen(t->out); n > 1 && t->out[n - 1] == '/'; n--)
        t->out[n - 1] = '\0';
    snprintf(t->checkpoints, sizeof t->checkpoints, "%.3900s/checkpoints", t->out);
    if (!t->out[0]) return report_fail(EXIT_USAGE, "--out", "\"\" is no directory");
    if (!t->verb->finetune) {
        if (!there) return report_fail(EXIT_FILE, given, "%s, want a config.json", strerror(errno));
        const char *name = S_ISDIR(st.st_mode) ? "/config.json" : "";
        snprintf(t->source, sizeof t->source, "%.4000s%s", given, name);
        if (access(t->source, R_OK) == 0) return 0;
        return report_fail(EXIT_FILE, t->source, "%s, want a config.json", strerror(errno));
    }
    struct stat out;
    snprintf(t->source, sizeof t->source, "%s", given);
    if (there && stat(t->out, &out) == 0 && st.st_dev == out.st_dev && st.st_ino == out.st_ino)
        return report_fail(EXIT_USAGE, "--out", "\"%s\" is MODEL, want another directory", t->out);
    return model_check_path(given);
}

static int open_adapter(training *t)
{
    cmoe_error err = {.size = sizeof err};
    if (!t->f->adapter) return 0;
    const cmoe_status status =
        cmoe_adapter_open(&t->adapter, t->session.ctx, t->f->adapter, CMOE_PEFT_AUTO, &err);
    t->o.start = t->adapter;
    return model_fail(status, t->f->adapter, &err);
}

static int create_trainer(training *t)
{
    cmoe_error err = {.size = sizeof err};
    machine m;
    machine_read(&m);
    /* Some is left for what is written and drawn. */
    t->budget = m.available_bytes > 0 ? t->taken + m.available_bytes - m.available_bytes / 32 : 0;
    report_progress(t->f->common.quiet, "%s", t->verb->finetune ? "loading" : "making weights");
    const cmoe_status status =
        cmoe_trainer_create(&t->trainer, t->session.ctx, t->source, &t->o, &err);
    report_progress(t->f->common.quiet, "%s", "");
    if (status == CMOE_ERR_MEMORY && t->budget > 0 && t->refused > t->budget) {
        return report_fail(EXIT_MEMORY, t->f->source,
                           "training it needs more than %s, %s are there: try --pass 1, "
                           "--recompute, a smaller --length or --sequences%s",
                           size_of(t->refused).s, size_of(t->budget).s,
                           t->o.what == CMOE_TRAIN_LORA ? ", --frozen int8" : "");
    }
    t->budget = 0;
    if (status != CMOE_OK) return model_fail(status, t->f->source, &err);
    t->info = (cmoe_trainer_info){.size = sizeof t->info};
    return model_fail(cmoe_trainer_describe(t->trainer, &t->info, &err), t->f->source, &err);
}

/* A tokenizer of another model would give ids that there are no weights for. */
static int check_vocab(const training *t)
{
    const int64_t size = cmoe_tokenizer_size(t->tokenizer);
    if (size <= t->info.vocab) return 0;
    return report_fail(EXIT_FILE, t->tokenizer_path,
                       "its tokenizer has %lld ids, want at most %lld (vocab_size of %s)",
                       (long long)size, (long long)t->info.vocab, t->f->source);
}

static int resume(training *t)
{
    cmoe_error err = {.size = sizeof err};
    if (t->fresh) return 0;
    const cmoe_status status = cmoe_trainer_resume(t->trainer, t->checkpoints, &t->began, &err);
    if (status == CMOE_ERR_FORMAT) {
        const size_t used = strlen(err.text);
        snprintf(err.text + used, sizeof err.text - used, "; --restart begins anew");
    }
    if (status == CMOE_OK && t->began == 0)
        return report_fail(EXIT_FILE, t->checkpoints,
                           "none of its checkpoints is whole; --restart begins anew");
    t->saved = t->report.step = t->began;
    return model_fail(status, t->checkpoints, &err);
}

/* ---- what comes out -------------------------------------------------------------------------- */

static const char *const kinds[] = {"experts", "shared",    "router", "attention",
                                    "dense",   "embedding", "head",   "norms"};
enum { EXPERTS, SHARED, ROUTER, ATTENTION, DENSE, EMBEDDING, HEAD, NORMS, KINDS };

static int kind_of(const char *name)
{
    if (strstr(name, "norm")) return NORMS;
    if (strstr(name, "shared")) return SHARED;
    if (strstr(name, "expert")) return EXPERTS;
    if (strstr(name, "router") || strstr(name, ".gate.")) return ROUTER;
    if (strstr(name, "attn") || strstr(name, "attention")) return ATTENTION;
    if (strstr(name, "embed")) return EMBEDDING;
    return strstr(name, "lm_head") ? HEAD : DENSE;
}

static const char *weights_name(const training *t)
{
    return t->o.what == CMOE_TRAIN_LORA ? "adapter_model.safetensors" : "model.safetensors";
}

/* Numbers of weights by kind, as they lie in a file. */
static int count_kinds(training *t, const char *folder)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_checkpoint *c = NULL;
    char path[TRAINING_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", folder, weights_name(t));
    memset(t->by_kind, 0, sizeof t->by_kind);
    cmoe_status status = cmoe_checkpoint_open(&c, t->session.ctx, path, &err);
    for (int64_t i = 0; status == CMOE_OK && i < cmoe_checkpoint_count(c); i++) {
        cmoe_tensor x = {.size = sizeof x};
        status = cmoe_checkpoint_tensor(c, i, &x, &err);
        int64_t n = 1;
        for (int32_t k = 0; status == CMOE_OK && k < x.rank; k++)
            n *= x.dims[k];
        if (status == CMOE_OK) t->by_kind[kind_of(x.name)] += n;
    }
    cmoe_checkpoint_free(c);
    return report_status(status, path, &err);
}

static int export_to(training *t, const char *folder)
{
    cmoe_error err = {.size = sizeof err};
    const int32_t dtype = model_format(t->f->export_dtype);
    const cmoe_status status = cmoe_trainer_export(t->trainer, folder, dtype, &err);
    if (status == CMOE_ERR_UNSUPPORTED) return model_fail(status, t->f->source, &err);
    return report_status(status, folder, &err);
}

/* A type that can be trained but not written, or a disk without room, is known now. */
static int try_export(training *t)
{
    char folder[TRAINING_PATH];
    if (!t->fresh) return 0;
    snprintf(folder, sizeof folder, "%.4000s/.first", t->out);
    const int status = export_to(t, folder);
    return status ? status : count_kinds(t, folder);
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Sums of two spans of steps, so that a picture shows at least the last whole one. */
static void add_load(training *t)
{
    enum { SPAN = 100 };
    const int64_t n = t->info.moe_layers * t->info.experts;
    if (t->load_steps == SPAN) {
        memcpy(t->load + n, t->load, (size_t)n * sizeof *t->load);
        memset(t->load, 0, (size_t)n * sizeof *t->load);
        t->load_before = t->load_steps;
        t->load_steps = 0;
    }
    for (int64_t i = 0; i < n; i++)
        t->load[i] += t->report.load[i];
    t->load_steps++;
}

static int evaluate(training *t)
{
    cmoe_error err = {.size = sizeof err};
    double loss;
    int64_t targets;
    const cmoe_dataset_info *d = &t->held_info;
    const cmoe_status status =
        cmoe_trainer_evaluate(t->trainer, t->held, t->f->eval_tokens, &loss, &targets, &err);
    if (status != CMOE_OK) return report_status(status, "evaluation", &err);
    if (!isfinite(loss))
        return report_fail(EXIT_ERROR, "evaluation",
                           "step %lld: the loss on text that is not "
                           "learned is %g",
                           (long long)t->report.step, loss);
    /* Bits of all tokens over bytes of all text; of chats only some tokens count, and no byte of text
     * belongs to them alone. */
    const bool part = t->f->eval_tokens > 0 && t->f->eval_tokens < d->tokens - 1;
    const double tokens = (double)(part ? d->tokens - 1 : targets);
    const bool whole = d->bytes > 0 && d->learned >= d->tokens - d->documents;
    t->last = (training_eval){loss, whole ? loss * tokens / log(2) / (double)d->bytes : NAN,
                              t->report.step};
    int bad = training_record_eval(t);
    if (bad) return bad;
    training_board_step(t, t->speed, true);
    if (t->best.step > 0 && !(loss < t->best.loss)) return 0;
    t->best = t->last;
    return t->f->keep_best ? export_to(t, t->out) : 0;
}

static int save(training *t)
{
    cmoe_error err = {.size = sizeof err};
    if (t->saved == t->report.step) return 0;
    const cmoe_status status =
        cmoe_trainer_save(t->trainer, t->checkpoints, t->f->keep, t->note, &err);
    if (status != CMOE_OK) {
        const int bad = report_status(status, t->checkpoints, &err);
        if (t->saved > 0)
            fprintf(stderr,
                    "cmoe: note: the checkpoint of step %lld is there; the same command goes "
                    "on from it\n",
                    (long long)t->saved);
        return bad;
    }
    t->saved = t->report.step;
    return training_write_pictures(t);
}

static int step_failed(const training *t, cmoe_status status, const cmoe_error *err)
{
    if (status != CMOE_ERR_RANGE) return report_status(status, "training", err);
    char last[TRAINING_PATH + 96] = "there is no checkpoint yet";
    if (t->saved > 0)
        snprintf(last, sizeof last, "the checkpoint of step %lld stays in %s", (long long)t->saved,
                 t->checkpoints);
    return report_fail(EXIT_ERROR, "training", "%s; %s; try a smaller --lr or a longer --warmup",
                       err->text, last);
}

static int one_step(training *t)
{
    cmoe_error err = {.size = sizeof err};
    const double start = crew_now();
    t->report.size = sizeof t->report;
    const cmoe_status status = cmoe_trainer_step(t->trainer, t->data, &t->report, &err);
    if (status != CMOE_OK) return step_failed(t, status, &err);
    const double seconds = crew_now() - start, speed = (double)t->info.tokens / seconds;
    t->seconds += seconds;
    t->steps_here++;
    /* What is shown follows slowly: one step is no measure. */
    t->speed = t->speed > 0 ? 0.95 * t->speed + 0.05 * speed : speed;
    add_load(t);
    const int bad = training_record_step(t, speed);
    if (bad == 0) training_board_step(t, t->speed, false);
    return bad;
}

static bool is_due(const training *t, int64_t every)
{
    const int64_t step = t->report.step;
    return step == t->f->steps || (every > 0 && step % every == 0);
}

static int cancelled_early(void)
{
    return report_fail(EXIT_CANCELLED, "training", "cancelled before the first step");
}

static int interrupted(training *t)
{
    if (t->report.step == 0) return cancelled_early();
    const int status = save(t);
    if (status) return status;
    return report_fail(EXIT_CANCELLED, "training",
                       "interrupted after step %lld of %lld, saved in %s: the same command goes on",
                       (long long)t->report.step, (long long)t->f->steps, t->checkpoints);
}

static int work(training *t)
{
    int status = 0;
    while (status == 0 && t->report.step < t->f->steps) {
        if (report_cancelled()) return interrupted(t);
        status = one_step(t);
        if (status == 0 && t->held && is_due(t, t->f->eval_every)) status = evaluate(t);
        if (status == 0 && is_due(t, t->f->save_every)) status = save(t);
    }
    return status;
}

/* ---- the end --------------------------------------------------------------------------------- */

static int finish(training *t)
{
    char path[TRAINING_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", t->out, weights_name(t));
    const bool there = t->f->keep_best && t->best.step > 0 && access(path, R_OK) == 0;
    int status = there ? 0 : export_to(t, t->out);
    if (!there && t->f->keep_best) t->best = t->last;
    if (status == 0) status = training_copy_files(t);
    if (status == 0) status = training_write_pictures(t);
    return status ? status : count_kinds(t, t->out);
}

static json_t *number_or_null(bool given, double value)
{
    return given && isfinite(value) ? json_real(value) : json_null();
}

static int print_json(const training *t, const training_eval *e, double loss, int64_t peak)
{
    json_t *by_kind = json_object();
    for (int i = 0; i < KINDS; i++)
        if (t->by_kind[i] > 0)
            json_object_set_new(by_kind, kinds[i], json_integer((json_int_t)t->by_kind[i]));
    const double tokens = (double)t->steps_here * (double)t->info.tokens;
    return report_json(json_pack(
        "{sI sI sI so so so sI sf so sI sI sI so sI sI so}", "steps", (json_int_t)t->report.step,
        "resumed_from", (json_int_t)t->began, "tokens",
        (json_int_t)(t->report.step * t->info.tokens), "loss", number_or_null(true, loss),
        "eval_loss", number_or_null(e->step > 0, e->loss), "bits_per_byte",
        number_or_null(e->step > 0, e->bits_per_byte), "best_step", (json_int_t)t->best.step,
        "seconds", t->seconds, "tokens_per_second",
        number_or_null(t->seconds > 0, tokens / t->seconds), "parameters",
        (json_int_t)t->info.parameters, "active", (json_int_t)t->info.active, "trained",
        (json_int_t)t->info.trained, "trained_by_kind", by_kind, "bytes", (json_int_t)t->info.bytes,
        "peak_rss", (json_int_t)peak, "out", report_json_text(t->out)));
}

static void print_next(FILE *to, const training *t)
{
    const char *model = t->f->source, *out = t->out;
    fprintf(to, "\nnext\n");
    if (t->o.what == CMOE_TRAIN_LORA) {
        fprintf(to,
                "  cmoe generate %s --adapter %s --prompt \"Once upon a time\"\n"
                "  cmoe merge %s %s %s-merged\n",
                model, out, model, out, out);
        return;
    }
    fprintf(to, "  cmoe generate %s --prompt \"Once upon a time\" --temperature 0.8\n", out);
    if (t->f->eval_file) fprintf(to, "  cmoe eval %s --file %s\n", out, t->f->eval_file);
    if (t->info.moe_layers > 0)
        fprintf(to, "  cmoe experts %s --prompt-file %s\n", out,
                t->f->eval_file ? t->f->eval_file : t->f->data);
    fprintf(to, "  cmoe inspect %s\n", out);
}

static void print_files(FILE *to, const training *t)
{
    static const char *const names[] = {"config.json",
                                        "model.safetensors",
                                        "adapter_config.json",
                                        "adapter_model.safetensors",
                                        "tokenizer.json",
                                        "training.jsonl",
                                        "loss.svg",
                                        "load.svg"};
    const char *before = "";
    fprintf(to, "%s: ", t->out);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[TRAINING_PATH + 64];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", t->out, names[i]);
        if (stat(path, &st) != 0) continue;
        fprintf(to, "%s%s", before, names[i]);
        if (strstr(names[i], "safetensors")) fprintf(to, " (%s)", size_of((int64_t)st.st_size).s);
        before = ", ";
    }
    fputc('\n', to);
}

static int print(const training *t)
{
    struct rusage use;
    report out;
    getrusage(RUSAGE_SELF, &use);
    const int64_t peak = (int64_t)use.ru_maxrss * 1024;
    const training_eval *e = t->f->keep_best ? &t->best : &t->last;
    const double loss = t->losses.count > 0 ? t->losses.value[t->losses.count - 1] : NAN;
    if (t->f->common.json) return print_json(t, e, loss, peak);
    const int status = report_begin(&out);
    if (status) return status;
    fprintf(out.to, "step %lld  loss %.4f", (long long)t->report.step, loss);
    if (e->step > 0) fprintf(out.to, "  held-out loss %.4f", e->loss);
    if (e->step > 0 && !isnan(e->bits_per_byte))
        fprintf(out.to, " (%.4f bits per byte)", e->bits_per_byte);
    if (t->f->keep_best) fprintf(out.to, " of step %lld, which was kept", (long long)e->step);
    fprintf(out.to, "\n%lld steps in %.1f s, %.0f tokens/s, memory at most %s\ntrained ",
            (long long)t->steps_here, t->seconds,
            t->seconds > 0 ? (double)t->steps_here * (double)t->info.tokens / t->seconds : 0,
            size_of(peak).s);
    fprintf(out.to, "%lld of %lld weights:", (long long)t->info.trained,
            (long long)t->info.parameters);
    const char *before = " ";
    for (int i = 0; i < KINDS; i++) {
        if (t->by_kind[i] == 0) continue;
        fprintf(out.to, "%s%s %lld", before, kinds[i], (long long)t->by_kind[i]);
        before = ", ";
    }
    fputc('\n', out.to);
    print_files(out.to, t);
    print_next(out.to, t);
    return report_end(&out, 0);
}

/* ---- in order -------------------------------------------------------------------------------- */

static int prepare(training *t)
{
    int status = training_options(t);
    if (status == 0) status = find_source(t);
    if (status == 0) status = open_session(t);
    if (status == 0) status = training_identify(t);
    if (status == 0) status = training_check_out(t);
    if (status == 0) status = open_adapter(t);
    if (status == 0) status = training_open_data(t);
    if (status == 0 && report_cancelled()) status = cancelled_early();
    if (status == 0) status = create_trainer(t);
    if (status == 0) status = check_vocab(t);
    if (status == 0) status = resume(t);
    if (status == 0) status = try_export(t);
    if (status) return status;
    const int64_t n = t->info.moe_layers * t->info.experts;
    t->load = calloc((size_t)(2 * n + 1), sizeof *t->load);
    if (!t->load) return report_fail(EXIT_MEMORY, "training", "no memory");
    if (t->f->restart) status = training_clear(t);
    return status ? status : training_open_record(t);
}

static void leave(training *t)
{
    if (t->record) fclose(t->record);
    training_leave(t);
    if (t->lock >= 0) close(t->lock);
    plot_free(&t->losses);
    plot_free(&t->evals);
    free(t->load);
    free(t->note);
    json_decref(t->identity);
    cmoe_trainer_free(t->trainer);
    cmoe_dataset_free(t->data);
    cmoe_dataset_free(t->held);
    cmoe_adapter_free(t->adapter);
    cmoe_template_free(t->chat);
    cmoe_tokenizer_free(t->tokenizer);
    session_close(&t->session);
}

int training_main(const training_verb *verb, int argc, char **argv)
{
    training_flags f = {0};
    training t = {.f = &f, .verb = verb, .lock = -1};
    int status = options_parse(verb->about, argc, argv, &f);
    if (status) return status;
    report_catch_signals();
    status = prepare(&t);
    if (status == 0) {
        training_board_open(&t.board, f.common.quiet);
        training_board_begin(&t);
        status = training_copy_files(&t);
    }
    if (status == 0) status = work(&t);
    if (status == 0) status = finish(&t);
    if (status == 0) status = print(&t);
    leave(&t);
    return status;
}
