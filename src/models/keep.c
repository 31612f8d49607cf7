/* SPDX-License-Identifier: MIT
 *
 * keep.c - where a model's packed weights are kept, and what they depend on.
 *
 * A file's name says whose it is: one for each folder of a model and each form that is made of it
 * (format, layout of this CPU's kernels, what a rank keeps).  The key inside says of what it was made:
 * version, files, config.  So what is made of changed files takes the place of what was made before,
 * and nothing is ever left that nobody will read.
 */
#include "keep.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

enum { FORM_SIZE = 384, KEY_SIZE = 768, NAME_SIZE = 256, PATH_SIZE = 4096 };

struct cmoei_keep {
    char key[KEY_SIZE], name[NAME_SIZE], folder[PATH_SIZE];
};

/* ---- key and name -------------------------------------------------------------------------------- */

/* What is made of a model, however the model changes. */
static void make_form(const cmoe_model *m, char form[FORM_SIZE])
{
    const cmoei_share *s = &m->share;
    char layout[64], head[64];
    cmoei_matrix_layout(m->ctx, m->format, layout, sizeof layout);
    cmoei_matrix_layout(m->ctx, cmoei_head_format(m->format), head, sizeof head);
    snprintf(form, FORM_SIZE, "%s %s; head %s; experts %" PRId64 "+%" PRId64 "; tensor %d/%d",
             cmoe_dtype_name(m->format), layout, head, s->experts.first, s->experts.count, s->rank,
             s->ranks);
}

static void make_key(const cmoe_model *m, const cmoe_checkpoint *c, char key[KEY_SIZE])
{
    char form[FORM_SIZE];
    make_form(m, form);
    snprintf(key, KEY_SIZE, "cmoe %s; files %016" PRIx64 "; config %016" PRIx64 "; %s; %s",
             cmoe_version(), cmoei_checkpoint_identity(c), m->d.sum, m->d.arch->type, form);
}

static void make_name(const cmoe_model *m, const char *path, char name[NAME_SIZE])
{
    char form[FORM_SIZE], whole[PATH_SIZE];
    const char *real = realpath(path, whole);
    if (!real) real = path;
    make_form(m, form);
    const uint64_t sum = cmoei_text_sum(real, (int64_t)strlen(real)) ^
                         31 * cmoei_text_sum(form, (int64_t)strlen(form));
    snprintf(name, NAME_SIZE, "%.64s-%s-%016" PRIx64 ".packed", m->d.arch->type,
             cmoe_dtype_name(m->format), sum);
}

cmoe_status cmoei_keep_open(cmoe_model *m, const cmoe_model_options *o, const cmoe_checkpoint *c,
                            const char *path, cmoe_error *err)
{
    CMOEI_TRY(cmoei_alloc(m->ctx, (int64_t)sizeof *m->keep, "name of packed weights",
                          (void **)&m->keep, err));
    cmoei_keep *k = m->keep;
    make_key(m, c, k->key);
    make_name(m, path, k->name);
    const int n = snprintf(k->folder, sizeof k->folder, "%s", o->cache_dir);
    if (n >= 0 && n < (int)sizeof k->folder - NAME_SIZE) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "cache_dir = \"%.200s...\", want a shorter path",
                      o->cache_dir);
}

void cmoei_keep_close(cmoe_model *m)
{
    if (m->keep) cmoei_free(m->ctx, m->keep, (int64_t)sizeof *m->keep);
    m->keep = NULL;
}

void cmoei_keep_say(const cmoe_model *m, const char *what, const cmoe_error *err)
{
    char text[640];
    snprintf(text, sizeof text, "%s: %s", what, err->text);
    if (m->ctx->log) m->ctx->log(m->ctx->log_user, CMOE_LOG_WARN, text);
}

/* ---- reading and writing ------------------------------------------------------------------------- */

/* Who is told how far it is: `all` bytes are what packing them would tell. */
typedef struct listener {
    int32_t (*progress)(void *user, int64_t done, int64_t total);
    void *user;
    int64_t all;
} listener;

static listener listener_of(const cmoe_model *m,
                            int32_t (*progress)(void *user, int64_t done, int64_t total),
                            void *user)
{
    const cmoe_model_bytes *b = &m->info.bytes;
    return (listener){progress, user, b->total - b->router - b->embedding - b->small};
}

static bool ask(void *user, int64_t done, int64_t total)
{
    const listener *l = user;
    const int64_t told = done == total ? l->all : CMOEI_MIN(done, l->all);
    return l->progress && l->progress(l->user, told, l->all) != 0;
}

cmoe_status cmoei_keep_play(cmoe_model *m, const cmoe_model_options *o, cmoe_error *err)
{
    char path[PATH_SIZE];
    listener l = listener_of(m, o->progress, o->progress_user);
    snprintf(path, sizeof path, "%.*s/%s", PATH_SIZE - NAME_SIZE - 1, m->keep->folder,
             m->keep->name);
    return cmoei_tape_open(&m->tape, m->ctx, path, m->keep->key, ask, &l, err);
}

cmoe_status cmoe_model_keep(cmoe_model *m,
                            int32_t (*progress)(void *user, int64_t done, int64_t total),
                            void *user, cmoe_error *err)
{
    if (!m) return cmoei_fail(err, CMOE_ERR_ARG, "model_keep: model is NULL");
    if (!m->keep || !m->tape.records) return CMOE_OK;
    listener l = listener_of(m, progress, user);
    const cmoe_status status =
        cmoei_tape_write(&m->tape, m->keep->folder, m->keep->name, m->keep->key, ask, &l, err);
    cmoei_tape_close(&m->tape);
    return status;
}
