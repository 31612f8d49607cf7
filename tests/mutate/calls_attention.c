/* SPDX-License-Identifier: MIT
 *
 * calls_attention.c - the cache of keys and values and what reads it; see mutate.h.
 */
#include "layout.h"

DEFAULTS(cmoe_attention_options)

static void kv_init(void *o, size_t size)
{
    *(cmoe_kv *)o = (cmoe_kv){.size = size};
}
void batch_init(void *o, size_t size)
{
    *(cmoe_batch *)o = (cmoe_batch){.size = size};
}

/* ---- what may be tried ----------------------------------------------------------------------- */

/* The library cannot know how large the cache is, either. */
static bool kv_fits(const cmoe_kv *given)
{
    cmoe_kv kv = *given;
    int64_t bytes = 0;
    kv.size = sizeof kv;
    if (cmoe_kv_page_bytes(&kv, &bytes, NULL) != CMOE_OK || kv.pages < 0) return true;
    if (kv.page_stride > bytes) bytes = kv.page_stride;
    return kv.pages == 0 || kv.pages > INT64_MAX / bytes || bytes <= (BUFFER - MIDDLE) / kv.pages;
}

/* Numbers are read in order, up to the first that makes no sense: what is behind a table of the right
 * length is none that goes on. */
bool batch_fits(const cmoe_batch *b, int corrupted)
{
    enum { MOST_SEQUENCES = 64, MOST_PAGES = 1024 };
    if (b->sequences <= 0 || b->page_columns <= 0) return true;
    if (b->page_columns > INT64_MAX / 8 / b->sequences) return true;
    if (b->sequences > MOST_SEQUENCES) return corrupted == 1;
    return b->page_columns <= MOST_PAGES / b->sequences;
}

static bool may_attend(const args *a, int corrupted)
{
    return kv_fits((const cmoe_kv *)a->block[0].bytes) &&
           batch_fits((const cmoe_batch *)a->block[1].bytes, corrupted);
}

/* ---- calls ----------------------------------------------------------------------------------- */

enum { D = 2, PAGES = 3, PAGE_BYTES = (D + D) * CMOE_KV_PAGE * 4 };

/* Tables are views that no function takes, so that their values are corrupted too. */
void with_batch(args *a, memory *m, cmoe_batch *b, size_t offset)
{
    static const int64_t first[3] = {0, 4, T}, start[2] = {62, 0};
    static const int32_t pages[4] = {2, 0, 1, -1};
    const cmoe_view v[3] = {a->view[in1(a, m, CMOE_I64, 0, 3)].in,
                            a->view[in1(a, m, CMOE_I64, 0, 2)].in,
                            a->view[in1(a, m, CMOE_I32, 0, 4)].in};
    memcpy((void *)(uintptr_t)v[0].data, first, sizeof first);
    memcpy((void *)(uintptr_t)v[1].data, start, sizeof start);
    memcpy((void *)(uintptr_t)v[2].data, pages, sizeof pages);
    *b = (cmoe_batch){sizeof *b, 2, v[0].data, v[1].data, v[2].data, 2};
    place_pointer(a, offset + offsetof(cmoe_batch, first));
    place_pointer(a, offset + offsetof(cmoe_batch, start));
    place_pointer(a, offset + offsetof(cmoe_batch, pages));
}

static void with_cache(args *a, memory *m, bool written)
{
    const int i = in1(a, m, CMOE_F32, 0, PAGES * PAGE_BYTES / 4);
    cmoe_kv *kv = options(a, sizeof *kv, kv_init);
    kv->heads = 1;
    kv->key_dim = kv->value_dim = D;
    kv->format = CMOE_F32;
    kv->pages = PAGES;
    kv->base = m->buffer[i] + MIDDLE;
    place_pointer(a, offsetof(cmoe_kv, base));
    if (written) a->written |= 1u << i;
    with_batch(a, m, options(a, sizeof(cmoe_batch), batch_init), 0);
    a->may = may_attend;
}

static void set_kv_write(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, D);
    in2(a, m, CMOE_F32, 0, T, D);
    with_cache(a, m, true);
}
static cmoe_status run_kv_write(args *a, cmoe_error *err)
{
    return cmoe_kv_write(a->stream, a->options[0], a->options[1], IN(0), IN(1), err);
}

static void set_attention(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, 2 * D);
    in1(a, m, CMOE_F32, 0, 2);
    out2(a, m, CMOE_F32, 0, T, 2 * D);
    with_cache(a, m, false);
    cmoe_attention_options *o = OPTIONS(a, cmoe_attention_options);
    o->heads = 2;
    with_arena(a, m);
}
static cmoe_status run_attention(args *a, cmoe_error *err)
{
    return cmoe_attention(a->stream, a->options[2], IN(0), a->options[0], a->options[1], IN(1),
                          OUT(2), a->arena_at, err);
}

static void set_attention_bytes(args *a, memory *m)
{
    with_cache(a, m, false);
    cmoe_attention_options *o = OPTIONS(a, cmoe_attention_options);
    o->heads = 2;
    pointer(a, &a->ctx);
    pointer(a, &a->result[0]);
    pointer(a, &a->result[1]);
}
static cmoe_status run_attention_bytes(args *a, cmoe_error *err)
{
    return cmoe_attention_bytes(a->ctx, a->options[2], a->options[0], a->options[1], a->result[0],
                                a->result[1], err);
}

static void set_page_bytes(args *a, memory *m)
{
    with_cache(a, m, false);
    pointer(a, &a->result[0]);
}
static cmoe_status run_page_bytes(args *a, cmoe_error *err)
{
    return cmoe_kv_page_bytes(a->options[0], a->result[0], err);
}

const call attention_calls[] = {
    {"kv_write", set_kv_write, run_kv_write, NULL, false},
    {"attention", set_attention, run_attention, NULL, false},
    {"attention_bytes", set_attention_bytes, run_attention_bytes, NULL, false},
    {"kv_page_bytes", set_page_bytes, run_page_bytes, NULL, false},
};
const int n_attention_calls = (int)(sizeof attention_calls / sizeof attention_calls[0]);
