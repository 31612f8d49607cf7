/* SPDX-License-Identifier: MIT
 *
 * training_identity.c - what a training is, and whether a directory holds the same one.
 *
 * It is written down once, as the note of its checkpoints: every flag that weights depend on, and sums
 * of the files that it learns from.  A directory that holds another one is left alone, and what differs
 * is said by the name of the flag.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "report.h"
#include "training.h"

/* ---- sums ------------------------------------------------------------------------------------ */

/* FNV-1a: tells versions of a file apart, guards against nobody. */
static uint64_t sum_more(uint64_t sum, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ p[i]) * UINT64_C(0x100000001b3);
    return sum;
}

/* At most `most` bytes, and the length of the whole; 0: any. */
static bool sum_file(const char *path, int64_t most, uint64_t *sum)
{
    enum { PIECE = 1 << 16 };
    char piece[PIECE];
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return false; /* a FIFO is not waited for */
    FILE *from = fopen(path, "r");
    if (!from) return false;
    int64_t left = most > 0 ? most : INT64_MAX;
    size_t n;
    while (left > 0 && (n = fread(piece, 1, left < PIECE ? (size_t)left : PIECE, from)) > 0) {
        *sum = sum_more(*sum, piece, n);
        left -= (int64_t)n;
    }
    const int64_t length = (int64_t)st.st_size;
    *sum = sum_more(*sum, &length, sizeof length);
    fclose(from);
    return true;
}

static const uint64_t sum_begin = UINT64_C(0xcbf29ce484222325);

static json_t *sum_text(uint64_t sum)
{
    char text[24];
    snprintf(text, sizeof text, "%016" PRIx64, sum);
    return json_string(text);
}

static int add_file(json_t *to, const char *key, const char *path)
{
    uint64_t sum = sum_begin;
    if (!path) return 0;
    errno = EINVAL;
    if (!sum_file(path, 0, &sum))
        return report_fail(EXIT_FILE, path, "%s", errno == EINVAL ? "is no file" : strerror(errno));
    json_object_set_new(to, key, sum_text(sum));
    return 0;
}

/* Weights are many and large: of each file its length and its first MiB, names and places of all
 * tensors and some numbers. */
static void add_folder(json_t *to, const char *key, const char *folder)
{
    struct dirent **names = NULL;
    uint64_t sum = sum_begin;
    const int n = scandir(folder, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char path[TRAINING_LONGER];
        const char *dot = strrchr(names[i]->d_name, '.');
        training_inside(path, folder, names[i]->d_name);
        if (dot && (!strcmp(dot, ".safetensors") || !strcmp(names[i]->d_name, "config.json") ||
                    !strcmp(names[i]->d_name, "adapter_config.json")))
            (void)sum_file(path, 1 << 20, &sum);
        free(names[i]);
    }
    free(names);
    json_object_set_new(to, key, sum_text(sum));
}

/* ---- what a training is ---------------------------------------------------------------------- */

static void add_number(json_t *to, const char *key, double value)
{
    json_object_set_new(to, key, json_real(value));
}

static void add_int(json_t *to, const char *key, int64_t value)
{
    json_object_set_new(to, key, json_integer((json_int_t)value));
}

static void add_word(json_t *to, const char *key, const char *word)
{
    json_object_set_new(to, key, word ? report_json_text(word) : json_null());
}

static void identify_flags(json_t *j, const training *t)
{
    const training_flags *f = t->f;
    const cmoe_train_options *o = &t->o;
    add_word(j, "verb", t->verb->about->name);
    add_int(j, "--steps", o->steps);
    add_int(j, "--units", o->units);
    add_int(j, "--sequences", o->sequences);
    add_int(j, "--length", o->length);
    add_word(j, "--dtype", f->dtype);
    add_word(j, "--objective", f->objective);
    add_int(j, "--block-length", o->block);
    add_int(j, "--seed", f->seed);
    add_word(j, "--optimizer", f->optimizer);
    add_word(j, "--schedule", f->schedule);
    add_number(j, "--lr", o->lr);
    add_number(j, "--final-lr", o->final_lr);
    add_int(j, "--warmup", o->warmup);
    add_int(j, "--cooldown", o->cooldown);
    add_number(j, "--beta1", o->beta1);
    add_number(j, "--beta2", o->beta2);
    add_number(j, "--eps", o->eps);
    add_number(j, "--weight-decay", o->weight_decay);
    add_number(j, "--momentum", o->momentum);
    add_number(j, "--clip", o->clip);
    add_number(j, "--balance", f->balance);
    add_number(j, "--z-loss", f->z_loss);
    add_number(j, "--bias-rate", f->bias_rate);
    add_number(j, "--dropout", o->dropout);
    json_object_set_new(j, "--all-turns", json_boolean(f->all_turns));
    add_number(j, "--hold-out", f->eval_file ? 0 : f->hold_out);
    if (!t->verb->finetune) return;
    json_object_set_new(j, "--full", json_boolean(f->full));
    add_int(j, "--rank", o->rank);
    add_number(j, "--alpha", o->alpha);
    json_object_set_new(j, "--rslora", json_boolean(f->rslora));
    add_word(j, "--targets", f->targets);
    add_word(j, "--frozen", f->frozen);
}

int training_identify(training *t)
{
    const training_flags *f = t->f;
    char path[TRAINING_LONGER];
    struct stat st;
    json_t *j = t->identity = json_object();
    identify_flags(j, t);
    int status = add_file(j, "--data", f->data);
    if (status == 0) status = add_file(j, "--eval-file", f->eval_file);
    if (status == 0) status = add_file(j, "--chat-template", f->chat_template);
    if (status) return status;
    if (f->tokenizer) {
        const bool folder = stat(f->tokenizer, &st) == 0 && S_ISDIR(st.st_mode);
        snprintf(path, sizeof path, folder ? "%s/tokenizer.json" : "%s", f->tokenizer);
        status = add_file(j, "--tokenizer", path);
    }
    if (f->adapter) add_folder(j, "--adapter", f->adapter);
    if (t->verb->finetune)
        add_folder(j, "MODEL", t->source);
    else if (status == 0)
        status = add_file(j, "CONFIG", t->source);
    t->note = json_dumps(j, JSON_COMPACT);
    if (status == 0 && !t->note) status = report_fail(EXIT_MEMORY, "training", "no memory");
    return status;
}

/* ---- another training ------------------------------------------------------------------------ */

bool training_is_step(const char *name, int64_t *step)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0) return false;
    *step = strtoll(name + 5, &end, 10);
    return end != name + 5 && !*end;
}

json_t *training_read_note(const training *t, bool *found)
{
    char path[TRAINING_LONGER + 64];
    int64_t best = -1, step;
    char name[256] = "";
    DIR *dir = opendir(t->checkpoints);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!training_is_step(e->d_name, &step) || step <= best) continue;
        best = step;
        snprintf(name, sizeof name, "%s", e->d_name);
    }
    if (dir) closedir(dir);
    *found = best >= 0;
    if (!*found) return NULL;
    snprintf(path, sizeof path, "%s/%s/manifest.json", t->checkpoints, name);
    json_t *manifest = json_load_file(path, 0, NULL);
    const char *text = json_string_value(json_object_get(manifest, "note"));
    json_t *note = text ? json_loads(text, 0, NULL) : NULL;
    json_decref(manifest);
    return note;
}

static void shown(const json_t *value, char text[80])
{
    char *dump = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(8)) : NULL;
    snprintf(text, 80, "%s", !dump || json_is_null(value) ? "not given" : dump);
    free(dump);
}

static bool is_sum(const char *key)
{
    static const char *const sums[] = {"--data",    "--eval-file", "--chat-template", "--tokenizer",
                                       "--adapter", "MODEL",       "CONFIG"};
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        if (!strcmp(key, sums[i])) return true;
    return false;
}

#define OR_RESTART "want the same, another --out, or --restart to begin anew"

int training_compare(const training *t, json_t *note)
{
    const char *key;
    json_t *mine;
    json_object_foreach(t->identity, key, mine)
    {
        const json_t *theirs = json_object_get(note, key);
        char a[80], b[80];
        if (theirs ? json_equal(mine, theirs) : json_is_null(mine)) continue;
        shown(mine, a);
        shown(theirs, b);
        if (is_sum(key))
            return report_fail(EXIT_FILE, key,
                               "is another file than the training in %s began with: " OR_RESTART,
                               t->out);
        return report_fail(EXIT_USAGE, key, "%s, and the training in %s has %s: " OR_RESTART, a,
                           t->out, b);
    }
    json_object_foreach(note, key, mine)
    {
        if (!json_object_get(t->identity, key))
            return report_fail(EXIT_USAGE, key,
                               "not given, and the training in %s has one: " OR_RESTART, t->out);
    }
    return 0;
}
