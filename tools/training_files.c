/* SPDX-License-Identifier: MIT
 *
 * training_files.c - the directory of a training: made, locked, cleared, and what is copied into it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "report.h"
#include "training.h"

void training_inside(char path[TRAINING_LONGER], const char *folder, const char *name)
{
    snprintf(path, TRAINING_LONGER, "%s/%s", folder, name);
}

/* ---- the directory --------------------------------------------------------------------------- */

static bool is_there(const training *t, const char *name)
{
    char path[TRAINING_LONGER];
    struct stat st;
    training_inside(path, t->out, name);
    return lstat(path, &st) == 0;
}

static int make_out(training *t)
{
    char path[TRAINING_PATH];
    struct stat st;
    snprintf(path, sizeof path, "%s", t->out);
    for (char *p = path + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        (void)mkdir(path, 0777);
        *p = '/';
    }
    t->made_out = mkdir(path, 0777) == 0;
    if (!t->made_out && errno != EEXIST)
        return report_fail(EXIT_ERROR, t->out, "cannot be made: %s", strerror(errno));
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return report_fail(EXIT_USAGE, "--out", "\"%s\" is there and not a directory", t->out);
    if (access(path, W_OK | X_OK) != 0)
        return report_fail(EXIT_ERROR, t->out, "cannot be written: %s", strerror(errno));
    t->lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    t->locked = t->lock >= 0 && flock(t->lock, LOCK_EX | LOCK_NB) == 0;
    if (t->lock >= 0 && !t->locked && errno == EWOULDBLOCK)
        return report_fail(EXIT_ERROR, t->out, "another training is at work there");
    return 0;
}

/* "model.safetensors.1234-0.tmp": what the library writes before it gets its name. */
static bool is_left(const char *name)
{
    static const char *const names[] = {"model.safetensors.", "adapter_model.safetensors.",
                                        "config.json.", "adapter_config.json."};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t n = strlen(names[i]);
        if (strncmp(name, names[i], n) != 0) continue;
        const size_t digits = strspn(name + n, "0123456789-");
        return digits > 0 && !strcmp(name + n + digits, ".tmp");
    }
    return false;
}

/* A run that was killed while it exported left what it had; the directory is ours alone now. */
static void sweep(const training *t)
{
    char path[TRAINING_LONGER];
    DIR *dir = opendir(t->out);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!is_left(e->d_name)) continue;
        training_inside(path, t->out, e->d_name);
        (void)unlink(path);
    }
    if (dir) closedir(dir);
}

int training_check_out(training *t)
{
    bool found;
    int status = make_out(t);
    if (status) return status;
    const bool model = is_there(t, "model.safetensors") ||
                       is_there(t, "adapter_model.safetensors") ||
                       is_there(t, "model.safetensors.index.json");
    json_t *note = training_read_note(t, &found);
    t->fresh = !found || t->f->restart;
    if (found && note && !t->f->restart) status = training_compare(t, note);
    json_decref(note);
    if (!found && model && !is_there(t, "training.jsonl") && !t->f->restart)
        status = report_fail(EXIT_USAGE, "--out",
                             "\"%s\" holds a model and no training: want another directory, or "
                             "--restart to write over it",
                             t->out);
    if (status == 0 && t->locked) sweep(t);
    return status;
}

/* A checkpoint is a folder of a few files. */
static void remove_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[TRAINING_LONGER];
        training_inside(path, folder, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlink(path);
    }
    if (dir) closedir(dir);
    rmdir(folder);
}

int training_clear(training *t)
{
    int64_t step;
    char path[TRAINING_LONGER];
    DIR *dir = opendir(t->checkpoints);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!training_is_step(e->d_name, &step)) continue;
        training_inside(path, t->checkpoints, e->d_name);
        remove_folder(path);
    }
    if (dir) closedir(dir);
    training_inside(path, t->out, "training.jsonl");
    if (unlink(path) != 0 && errno != ENOENT)
        return report_fail(EXIT_ERROR, path, "cannot be removed: %s", strerror(errno));
    return 0;
}

/* Takes a made tokenizer to its place; what is left of a run that failed goes, too. */
static int settle_tokenizer(training *t)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    char from[TRAINING_LONGER], to[TRAINING_LONGER];
    if (!t->own_tokenizer || !strcmp(t->tokenizer_path, t->out)) return 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        training_inside(from, t->tokenizer_path, names[i]);
        training_inside(to, t->out, names[i]);
        if (rename(from, to) != 0)
            return report_fail(EXIT_ERROR, to, "cannot be written: %s", strerror(errno));
    }
    snprintf(t->tokenizer_path, sizeof t->tokenizer_path, "%s", t->out);
    return 0;
}

void training_leave(const training *t)
{
    char folder[TRAINING_PATH];
    if (t->lock < 0) return;
    snprintf(folder, sizeof folder, "%.4000s/.tokenizer", t->out);
    remove_folder(folder);
    snprintf(folder, sizeof folder, "%.4000s/.first", t->out);
    remove_folder(folder);
    if (t->made_out) rmdir(t->out); /* which fails when anything is in it */
}

static int copy_file(const char *from_folder, const char *to_folder, const char *name)
{
    char from[TRAINING_LONGER], to[TRAINING_LONGER];
    struct stat st;
    size_t bytes;
    training_inside(from, from_folder, name);
    training_inside(to, to_folder, name);
    if (stat(from, &st) != 0 || !S_ISREG(st.st_mode) || files_same(from, to)) return 0;
    char *text = files_read(from, &bytes);
    if (!text) return report_fail(EXIT_FILE, from, "%s", strerror(errno));
    const int status = files_write(to, text, bytes);
    free(text);
    return status;
}

/* Who ends: what the tokenizer says, for config.json may have been written for another one. */
static int write_generation(const training *t)
{
    char path[TRAINING_LONGER];
    const int64_t eos = cmoe_tokenizer_eos(t->tokenizer), bos = cmoe_tokenizer_bos(t->tokenizer);
    training_inside(path, t->tokenizer_path, "generation_config.json");
    if (eos < 0 || (!t->own_tokenizer && access(path, R_OK) == 0)) return 0;
    json_t *j = json_pack("{sI}", "eos_token_id", (json_int_t)eos);
    if (bos >= 0) json_object_set_new(j, "bos_token_id", json_integer((json_int_t)bos));
    char *text = json_dumps(j, JSON_INDENT(2));
    json_decref(j);
    if (!text) return report_fail(EXIT_MEMORY, "generation_config.json", "no memory");
    training_inside(path, t->out, "generation_config.json");
    const int status = files_write(path, text, strlen(text));
    free(text);
    return status;
}

int training_copy_files(training *t)
{
    static const char *const of_tokenizer[] = {"tokenizer.json",          "tokenizer_config.json",
                                               "special_tokens_map.json", "chat_template.jinja",
                                               "chat_template.json",      "generation_config.json"};
    int status = settle_tokenizer(t);
    if (t->o.what == CMOE_TRAIN_LORA) return status;
    for (size_t i = 0; i < sizeof of_tokenizer / sizeof of_tokenizer[0] && status == 0; i++) {
        if (!t->own_tokenizer) status = copy_file(t->tokenizer_path, t->out, of_tokenizer[i]);
    }
    if (status == 0 && t->f->chat_template) {
        size_t bytes;
        char to[TRAINING_LONGER], *text = files_read(t->f->chat_template, &bytes);
        training_inside(to, t->out, "chat_template.jinja");
        if (!text) return report_fail(EXIT_FILE, t->f->chat_template, "%s", strerror(errno));
        status = files_write(to, text, bytes);
        free(text);
    }
    return status ? status : write_generation(t);
}
