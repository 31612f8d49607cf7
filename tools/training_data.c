/* SPDX-License-Identifier: MIT
 *
 * training_data.c - tokenizer, text to learn, text to be tested on.
 *
 * What is kept for evaluation is the end of the data, not pieces of it: no sentence of it has been
 * learned, and no tokenizer has been made from it.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"
#include "report.h"
#include "template.h"
#include "training.h"

/* ---- tokenizer ------------------------------------------------------------------------------- */

static bool has_file(const char *folder, const char *name)
{
    char path[TRAINING_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, R_OK) == 0;
}

/* A number of config.json; -1: it has none. */
static int64_t config_number(const training *t, const char *key)
{
    char path[TRAINING_PATH + 64];
    struct stat st;
    snprintf(path, sizeof path, "%s", t->source);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        snprintf(path, sizeof path, "%s/config.json", t->source);
    json_t *config = json_load_file(path, 0, NULL);
    const json_t *value = json_object_get(config, key);
    const int64_t n = json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
    json_decref(config);
    return n;
}

/* One made from what is learned.  It waits in a folder of its own until the training begins. */
static int make_tokenizer(training *t)
{
    static const char *const masks[] = {"<|endoftext|>", "<|MASK|>", NULL};
    cmoe_error err = {.size = sizeof err};
    cmoe_bpe_options o;
    const int64_t vocab = config_number(t, "vocab_size");
    if (vocab < 0)
        return report_fail(EXIT_FILE, t->f->source,
                           "it has no vocab_size, and there is no tokenizer: want a config.json of "
                           "a model, or --tokenizer DIR");
    cmoe_bpe_options_default(&o, sizeof o);
    o.vocab = vocab;
    o.to = t->f->eval_file ? 1 : 1 - t->f->hold_out;
    if (t->o.objective == CMOE_OBJECTIVE_DIFFUSION) o.special = masks;
    if (mkdir(t->tokenizer_path, 0777) != 0 && errno != EEXIST)
        return report_fail(EXIT_ERROR, t->tokenizer_path, "cannot be made: %s", strerror(errno));
    report_progress(t->f->common.quiet, "making a tokenizer of %lld ids", (long long)vocab);
    const cmoe_status status =
        cmoe_bpe_train(t->session.ctx, &t->f->data, 1, &o, t->tokenizer_path, &err);
    report_progress(t->f->common.quiet, "%s", "");
    if (status == CMOE_ERR_RANGE) return report_error(EXIT_FILE, t->f->source, status, &err);
    if (status == CMOE_ERR_IO && strstr(err.text, t->tokenizer_path))
        return report_status(status, t->tokenizer_path, &err);
    return model_fail(status, t->f->data, &err);
}

static int open_tokenizer(training *t)
{
    const char *given = t->f->tokenizer ? t->f->tokenizer : t->source;
    struct stat st;
    char folder[TRAINING_PATH];
    snprintf(folder, sizeof folder, "%s", given);
    if (stat(folder, &st) == 0 && !S_ISDIR(st.st_mode)) { /* config.json, or tokenizer.json */
        char *slash = strrchr(folder, '/');
        if (slash)
            slash[slash == folder] = '\0';
        else
            snprintf(folder, sizeof folder, ".");
    }
    int status = 0;
    snprintf(t->tokenizer_path, sizeof t->tokenizer_path, "%s", folder);
    if (!t->f->tokenizer && !t->verb->finetune && !has_file(folder, "tokenizer.json")) {
        t->own_tokenizer = true;
        const bool kept = !t->fresh && has_file(t->out, "tokenizer.json");
        snprintf(t->tokenizer_path, sizeof t->tokenizer_path,
                 kept ? "%.4000s" : "%.4000s/.tokenizer", t->out);
        if (!kept) status = make_tokenizer(t);
    }
    if (status) return status;
    cmoe_error err = {.size = sizeof err};
    const cmoe_status opened =
        cmoe_tokenizer_open(&t->tokenizer, t->session.ctx, t->tokenizer_path, &err);
    return model_fail(opened, t->tokenizer_path, &err);
}

/* ---- texts ----------------------------------------------------------------------------------- */

static bool is_jsonl(const char *path)
{
    const size_t n = strlen(path);
    return n > 6 && !strcmp(path + n - 6, ".jsonl");
}

/* For chats; a model without one can learn from everything else. */
static int open_template(training *t)
{
    const training_flags *f = t->f;
    const bool chats = is_jsonl(f->data) || (f->eval_file && is_jsonl(f->eval_file));
    if (f->chat_template) return template_open(&t->session, NULL, f->chat_template, &t->chat);
    if (chats &&
        cmoe_template_open(&t->chat, t->session.ctx, t->tokenizer_path, NULL, NULL) != CMOE_OK)
        t->chat = NULL;
    return 0;
}

static int open_part(training *t, const char *path, double from, double to, cmoe_dataset **out,
                     cmoe_dataset_info *info)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_dataset_options o;
    cmoe_dataset_options_default(&o, sizeof o);
    o.tokenizer = t->tokenizer;
    o.chat = t->chat;
    o.from = from;
    o.to = to;
    o.all_turns = t->f->all_turns;
    *info = (cmoe_dataset_info){.size = sizeof *info};
    report_progress(t->f->common.quiet, "reading %s", path);
    cmoe_status status = cmoe_dataset_open(out, t->session.ctx, path, &o, &err);
    if (status == CMOE_OK) status = cmoe_dataset_describe(*out, info, &err);
    report_progress(t->f->common.quiet, "%s", "");
    if (status == CMOE_OK || status == CMOE_ERR_MEMORY) return model_fail(status, path, &err);
    return report_error(EXIT_FILE, path, status, &err);
}

static bool too_short(const cmoe_dataset_info *held)
{
    return held->tokens < 2 || held->learned == 0;
}

/* A few lines have no twentieth part: nothing is kept then, unless it was asked for. */
static void give_up_held(training *t)
{
    if (!t->held || t->f->eval_file || t->f->has_hold_out || !too_short(&t->held_info)) return;
    cmoe_dataset_free(t->held);
    t->held = NULL;
    if (!t->f->common.quiet)
        fprintf(stderr, "cmoe: note: %s is too short to keep some of it for evaluation\n",
                t->f->data);
}

static int check_texts(const training *t)
{
    const training_flags *f = t->f;
    const int64_t window = f->length + 1;
    const bool shared = t->held && !f->eval_file;
    if (t->data_info.tokens < window)
        return report_fail(EXIT_FILE, f->data,
                           "has %lld tokens to learn%s, a window has %lld: want more text or a "
                           "smaller --length",
                           (long long)t->data_info.tokens,
                           shared ? " beside those that --hold-out keeps" : "", (long long)window);
    if (t->data_info.learned == 0)
        return report_fail(EXIT_FILE, f->data, "has no token that is to be learned");
    if (t->held && too_short(&t->held_info))
        return report_fail(EXIT_FILE, f->eval_file ? f->eval_file : f->data,
                           "has %lld tokens to evaluate on, want at least 2: want more text%s",
                           (long long)t->held_info.tokens,
                           f->eval_file ? "" : ", a larger --hold-out, or --hold-out 0");
    return 0;
}

int training_open_data(training *t)
{
    const training_flags *f = t->f;
    const double share = f->eval_file ? 0 : f->hold_out;
    int status = open_tokenizer(t);
    if (status == 0) status = open_template(t);
    if (status == 0) status = open_part(t, f->data, 0, 1 - share, &t->data, &t->data_info);
    if (status == 0 && f->eval_file)
        status = open_part(t, f->eval_file, 0, 1, &t->held, &t->held_info);
    if (status == 0 && share > 0)
        status = open_part(t, f->data, 1 - share, 1, &t->held, &t->held_info);
    if (status) return status;
    give_up_held(t);
    return check_texts(t);
}
