/* SPDX-License-Identifier: MIT
 *
 * jinja_env.c - errors, memory, limits, and text under construction.
 */
#include "text/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct jj_chunk {
    struct jj_chunk *next;
    int64_t bytes, used; /* this head included */
};

enum { CHUNK = 1 << 15, HEAD = 64 };

bool cmoei_jj_fail(jj_env *e, const char *format, ...)
{
    if (e->status != CMOE_OK) return false; /* the first one is the cause */
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    e->status =
        cmoei_fail(e->err, CMOE_ERR_FORMAT, "template %.80s, line %d: %s", e->name, e->line, text);
    return false;
}

bool cmoei_jj_fail_undefined(jj_env *e, jj_value v)
{
    const jj_hint *h = v.u.hint;
    const int bytes = h ? (int)CMOEI_MIN(h->name->bytes, 200) : 0;
    if (!h) return cmoei_jj_fail(e, "an undefined value is used");
    if (h->object && !*h->object) return cmoei_jj_fail(e, "%.*s", bytes, h->name->data);
    if (!h->object) return cmoei_jj_fail(e, "'%.*s' is undefined", bytes, h->name->data);
    if (h->element)
        return cmoei_jj_fail(e, "%s has no element %.*s", h->object, bytes, h->name->data);
    return cmoei_jj_fail(e, "'%s' has no attribute '%.*s'", h->object, bytes, h->name->data);
}

/* A new chunk: large things get one of their own, behind the first so that its rest stays in use. */
static jj_chunk *chunk_make(jj_env *e, int64_t bytes)
{
    const int64_t size = CMOEI_MAX(bytes + HEAD, (int64_t)CHUNK);
    if (e->memory_limit - e->memory < size) {
        cmoei_jj_fail(e, "needs more than %lld bytes of memory", (long long)e->memory_limit);
        return NULL;
    }
    void *memory = NULL;
    const cmoe_status status = cmoei_alloc(e->ctx, size, "template", &memory, e->err);
    if (status != CMOE_OK) {
        e->status = status;
        return NULL;
    }
    jj_chunk *c = memory;
    *c = (jj_chunk){.bytes = size, .used = HEAD};
    e->memory += size;
    if (e->chunks && bytes > CHUNK / 4) {
        c->next = e->chunks->next;
        e->chunks->next = c;
    } else {
        c->next = e->chunks;
        e->chunks = c;
    }
    return c;
}

void *cmoei_jj_take(jj_env *e, int64_t n, int64_t size)
{
    int64_t bytes = 0;
    if (!cmoei_mul(n, size, &bytes) || bytes > INT64_MAX / 2) {
        cmoei_jj_fail(e, "needs more than %lld bytes of memory", (long long)e->memory_limit);
        return NULL;
    }
    bytes = cmoei_round_up(CMOEI_MAX(bytes, (int64_t)1), 16);
    jj_chunk *c = e->chunks;
    if (!c || c->bytes - c->used < bytes) c = chunk_make(e, bytes);
    if (!c) return NULL;
    void *p = (char *)c + c->used;
    c->used += bytes;
    memset(p, 0, (size_t)bytes);
    return p;
}

void cmoei_jj_env_close(jj_env *e)
{
    while (e->chunks) {
        jj_chunk *next = e->chunks->next;
        cmoei_free(e->ctx, e->chunks, e->chunks->bytes);
        e->chunks = next;
    }
    cmoei_free(e->ctx, e->out, e->out_capacity);
    e->out = NULL;
}

bool cmoei_jj_step(jj_env *e)
{
    if (++e->steps <= e->steps_limit) return true;
    return cmoei_jj_fail(e, "takes more than %lld steps", (long long)e->steps_limit);
}

bool cmoei_jj_work(jj_env *e, int64_t n)
{
    e->steps += n / JJ_WORK;
    return e->steps < e->steps_limit || cmoei_jj_step(e);
}

bool cmoei_jj_deeper(jj_env *e)
{
    if (++e->data_depth <= JJ_DATA_DEPTH) return true;
    return cmoei_jj_fail(e, "values are nested more than %d deep", JJ_DATA_DEPTH);
}

void cmoei_jj_shallower(jj_env *e)
{
    e->data_depth--;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Room for more bytes at the end of out. */
static bool out_reserve(jj_env *e, int64_t bytes)
{
    if (bytes > e->out_limit - e->out_bytes)
        return cmoei_jj_fail(e, "gives more than %lld bytes of text", (long long)e->out_limit);
    if (e->out_capacity - e->out_bytes >= bytes) return true;
    const int64_t capacity = CMOEI_MAX(CMOEI_MAX(e->out_capacity * 2, e->out_bytes + bytes), 4096);
    void *grown = NULL;
    const cmoe_status status = cmoei_alloc(e->ctx, capacity, "template text", &grown, e->err);
    if (status != CMOE_OK) {
        e->status = status;
        return false;
    }
    if (e->out_bytes) memcpy(grown, e->out, (size_t)e->out_bytes);
    cmoei_free(e->ctx, e->out, e->out_capacity);
    e->out = grown;
    e->out_capacity = capacity;
    return true;
}

bool cmoei_jj_put(jj_env *e, const char *data, int64_t bytes)
{
    JJ_TRY(cmoei_jj_work(e, bytes) && out_reserve(e, bytes));
    if (bytes) memcpy(e->out + e->out_bytes, data, (size_t)bytes);
    e->out_bytes += bytes;
    return true;
}

bool cmoei_jj_put_text(jj_env *e, const char *text)
{
    return cmoei_jj_put(e, text, (int64_t)strlen(text));
}

bool cmoei_jj_put_char(jj_env *e, int32_t c, int64_t times)
{
    char text[4];
    const int64_t bytes = cmoei_jj_utf8_write(c, text);
    int64_t all = 0;
    if (times <= 0) return true;
    if (!cmoei_mul(times, bytes, &all)) all = INT64_MAX;
    JJ_TRY(out_reserve(e, all) && cmoei_jj_work(e, all));
    for (int64_t i = 0; i < times; i++)
        memcpy(e->out + e->out_bytes + i * bytes, text, (size_t)bytes);
    e->out_bytes += all;
    return true;
}

bool cmoei_jj_cut(jj_env *e, int64_t mark, jj_value *out)
{
    JJ_TRY(cmoei_jj_string_make(e, e->out ? e->out + mark : "", e->out_bytes - mark, out));
    e->out_bytes = mark;
    return true;
}
