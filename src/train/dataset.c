/* SPDX-License-Identifier: MIT
 *
 * dataset.c - files of text as datasets.
 *
 * A document is encoded as a whole: pieces of a text have the ids of the text only where its tokenizer cuts,
 * which none tells in advance.
 */
#include "dataset.h"

#include <inttypes.h>
#include <string.h>

static const cmoe_dataset_options defaults = {
    .size = sizeof defaults, .from = 0, .to = 1, .end = -1};

void cmoe_dataset_options_default(cmoe_dataset_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- tokens ------------------------------------------------------------------------------------ */

cmoe_status cmoei_reader_encode(cmoei_reader *r, cmoei_buffer *ids, bool special, const char *text,
                                int64_t bytes)
{
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    o.add_special = special;
    int64_t room = bytes + 16, count = 0; /* a token has a byte, unless a normalizer adds some */
    for (;;) {
        CMOEI_TRY(cmoei_buffer_reserve(ids, room * 4, r->err));
        int32_t *out = (int32_t *)(void *)(ids->data + ids->bytes);
        CMOEI_TRY(
            cmoe_tokenizer_encode(r->o.tokenizer, &o, text, bytes, out, room, &count, r->err));
        if (count <= room) break;
        room = count;
    }
    ids->bytes += count * 4;
    return CMOE_OK;
}

/* A byte of `learn` for every token up to now. */
static cmoe_status learn_up_to(cmoei_reader *r, int64_t tokens, bool learned)
{
    const int64_t more = tokens - r->learn.bytes;
    CMOEI_TRY(cmoei_buffer_reserve(&r->learn, more, r->err));
    if (more > 0) memset(r->learn.data + r->learn.bytes, learned, (size_t)more);
    r->learn.bytes += more;
    r->learned += learned ? more : 0;
    return CMOE_OK;
}

cmoe_status cmoei_reader_learn(cmoei_reader *r, int64_t end, bool learned)
{
    return learn_up_to(r, CMOEI_MAX(end, r->learn.bytes), learned);
}

cmoe_status cmoei_reader_document(cmoei_reader *r, int64_t begin, bool learn_end)
{
    int64_t tokens = r->ids.bytes / 4;
    const int32_t end = (int32_t)r->end, *ids = (const int32_t *)(const void *)r->ids.data;
    CMOEI_TRY(learn_up_to(r, tokens, learn_end));
    if (end >= 0 && (tokens == begin || ids[tokens - 1] != end)) {
        CMOEI_TRY(cmoei_buffer_add(&r->ids, &end, sizeof end, r->err));
        CMOEI_TRY(learn_up_to(r, ++tokens, learn_end));
    }
    if (tokens == begin) return CMOE_OK;
    return cmoei_buffer_add(&r->documents, &begin, sizeof begin, r->err);
}

/* ---- files ------------------------------------------------------------------------------------- */

static cmoe_status read_text(cmoei_reader *r, const cmoei_text_file *f)
{
    CMOEI_TRY(cmoei_text_file_check(f, r->err));
    if (f->bytes > INT32_MAX)
        return cmoei_fail(r->err, CMOE_ERR_RANGE,
                          "%s: a document of %" PRId64
                          " bytes, want at most %d (from and to take a part, "
                          ".jsonl has many)",
                          f->shown.text, f->bytes, INT32_MAX);
    if (f->bytes == 0) return CMOE_OK;
    r->text_bytes = f->bytes;
    CMOEI_TRY(cmoei_reader_encode(r, &r->ids, true, f->text, f->bytes));
    return cmoei_reader_document(r, 0, true);
}

static cmoe_status reader_make(const cmoei_reader *r, cmoe_dataset **out)
{
    cmoe_dataset *d;
    const int64_t tokens = r->ids.bytes / 4, documents = r->documents.bytes / 8;
    CMOEI_TRY(cmoei_dataset_alloc(&d, r->ctx, tokens, documents, r->err));
    if (tokens > 0) {
        memcpy(d->ids, r->ids.data, (size_t)r->ids.bytes);
        memcpy(d->learn, r->learn.data, (size_t)r->learn.bytes);
        memcpy(d->documents, r->documents.data, (size_t)r->documents.bytes);
    }
    d->documents[documents] = tokens;
    d->learned = r->learned;
    d->bytes = r->text_bytes;
    *out = d;
    return CMOE_OK;
}

static cmoe_status check_end(cmoei_reader *r)
{
    const int64_t size = cmoe_tokenizer_size(r->o.tokenizer);
    r->end = r->o.end == -1 ? cmoe_tokenizer_eos(r->o.tokenizer) : r->o.end;
    if (r->o.end == -1 && r->end < 0)
        return cmoei_fail(r->err, CMOE_ERR_RANGE,
                          "end = -1, but the tokenizer has no eos, want an id, or -2 (none)");
    if (r->end < -2 || r->end >= size)
        return cmoei_fail(r->err, CMOE_ERR_RANGE,
                          "end = %" PRId64 ", want 0 <= end < %" PRId64
                          " (the tokenizer's), -1 (its eos) or -2 (none)",
                          r->o.end, size);
    return CMOE_OK;
}

cmoe_status cmoe_dataset_open(cmoe_dataset **out, cmoe_ctx *ctx, const char *path,
                              const cmoe_dataset_options *o, cmoe_error *err)
{
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "dataset_open: %s is NULL",
                          !out   ? "out"
                          : !ctx ? "ctx"
                                 : "path");
    cmoei_reader r = {.ctx = ctx, .err = err, .o = defaults};
    r.ids.ctx = r.learn.ctx = r.documents.ctx = r.part.ctx = r.joined.ctx = ctx;
    CMOEI_TRY(cmoei_options_read(&r.o, sizeof r.o, o, "dataset options", err));
    CMOEI_TRY(cmoei_check_flag(r.o.all_turns, "all_turns", err));
    if (!r.o.tokenizer) return cmoei_fail(err, CMOE_ERR_ARG, "dataset_open: tokenizer is NULL");
    CMOEI_TRY(check_end(&r));
    cmoei_text_file f;
    CMOEI_TRY(cmoei_text_file_open(&f, ctx, path, r.o.from, r.o.to, err));
    cmoe_status status = f.lines ? cmoei_reader_lines(&r, &f) : read_text(&r, &f);
    cmoei_text_file_close(&f, ctx);
    if (status == CMOE_OK) status = reader_make(&r, out);
    cmoei_buffer_free(&r.ids);
    cmoei_buffer_free(&r.learn);
    cmoei_buffer_free(&r.documents);
    cmoei_buffer_free(&r.part);
    cmoei_buffer_free(&r.joined);
    return status;
}
