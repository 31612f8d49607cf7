/* SPDX-License-Identifier: MIT
 *
 * decode.c - ids to text, token by token: the decoders as stages that hold back what may still change.
 *
 * A stage gets tokens as stretches of text; `begin` says that a token begins, so that a fused token may
 * come in parts.  What is held back: ByteLevel, the bytes of a character that is not whole; ByteFallback,
 * a run of byte tokens, for all of it becomes U+FFFD when any of it is no UTF-8; Strip, blanks at the end
 * that it may have to drop.  Decoding at once and streaming are the same code.
 */
#include <string.h>

#include "tokenizer.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

static cmoe_status stage_in(cmoei_decode *d, int32_t i, const char *s, int64_t bytes, bool begin,
                            cmoe_error *err);

static cmoe_status sink_add(cmoei_sink *k, const char *s, int64_t bytes, cmoe_error *err)
{
    if (k->grows) return cmoei_buffer_add(k->grows, s, bytes, err);
    const int64_t fits = CMOEI_MIN(bytes, CMOEI_MAX(k->capacity - k->bytes, 0));
    if (fits) memcpy(k->text + k->bytes, s, (size_t)fits);
    k->bytes += bytes;
    return CMOE_OK;
}

/* ---- ByteLevel --------------------------------------------------------------------------------- */

/* The token's characters as bytes; if one of them is none, its UTF-8. */
static cmoe_status add_bytes(cmoei_buffer *out, const char *s, int64_t bytes, cmoe_error *err)
{
    const int64_t before = out->bytes;
    CMOEI_TRY(cmoei_buffer_reserve(out, bytes, err));
    for (int64_t at = 0; at < bytes;) {
        int32_t length;
        const int32_t byte = cmoei_byte_of(cmoei_utf8_get(s + at, &length));
        if (byte < 0) {
            out->bytes = before;
            return cmoei_buffer_add(out, s, bytes, err);
        }
        out->data[out->bytes++] = (char)byte;
        at += length;
    }
    return CMOE_OK;
}

/* Hands on what is whole, or can never be; at the end all of it. */
static cmoe_status give_bytes(cmoei_decode *d, int32_t i, bool end, cmoe_error *err)
{
    cmoei_buffer *b = &d->stage[i].held;
    int64_t at = 0, good = 0; /* [good, at) is whole */
    if (!b->bytes) return CMOE_OK;
    while (at < b->bytes) {
        bool whole;
        const int32_t n = cmoei_utf8_scan(b->data + at, b->bytes - at, &whole);
        if (n > 0 && whole) {
            at += n;
            continue;
        }
        if (n > 0 && !end) break;
        CMOEI_TRY(stage_in(d, i + 1, b->data + good, at - good, false, err));
        CMOEI_TRY(stage_in(d, i + 1, replacement, 3, false, err));
        at += n > 0 ? n : -1 - n;
        good = at;
    }
    CMOEI_TRY(stage_in(d, i + 1, b->data + good, at - good, false, err));
    if (at) memmove(b->data, b->data + at, (size_t)(b->bytes - at));
    b->bytes -= at;
    return CMOE_OK;
}

static cmoe_status byte_level(cmoei_decode *d, int32_t i, const char *s, int64_t bytes,
                              cmoe_error *err)
{
    if (d->stage[i].tokens == 1) CMOEI_TRY(stage_in(d, i + 1, "", 0, true, err));
    CMOEI_TRY(add_bytes(&d->stage[i].held, s, bytes, err));
    return give_bytes(d, i, false, err);
}

/* ---- ByteFallback ------------------------------------------------------------------------------ */

static int32_t hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The byte that "<0x41>" stands for, -1: it is another token. */
static int32_t byte_token(const char *s, int64_t bytes)
{
    if (bytes != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const int32_t high = hex(s[3]), low = hex(s[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static cmoe_status give_fallback(cmoei_decode *d, int32_t i, cmoe_error *err)
{
    cmoei_buffer *b = &d->stage[i].held;
    const int64_t n = b->bytes;
    b->bytes = 0;
    if (n && cmoei_utf8_check(b->data, n) < 0) return stage_in(d, i + 1, b->data, n, true, err);
    for (int64_t k = 0; k < n; k++)
        CMOEI_TRY(stage_in(d, i + 1, replacement, 3, true, err));
    return CMOE_OK;
}

static cmoe_status byte_fallback(cmoei_decode *d, int32_t i, const char *s, int64_t bytes,
                                 cmoe_error *err)
{
    const int32_t byte = byte_token(s, bytes);
    if (byte >= 0) return cmoei_buffer_add(&d->stage[i].held, &(char){(char)byte}, 1, err);
    CMOEI_TRY(give_fallback(d, i, err));
    return stage_in(d, i + 1, s, bytes, true, err);
}

/* ---- Strip, Metaspace, Replace ------------------------------------------------------------------- */

static cmoe_status strip(cmoei_decode *d, int32_t i, const char *s, int64_t bytes, bool begin,
                         cmoe_error *err)
{
    const cmoei_decoder *k = &d->t->decoder[i];
    cmoei_decode_stage *g = &d->stage[i];
    if (begin) {
        g->start = k->start;
        g->waiting = 0; /* those of the token before were its end */
        CMOEI_TRY(stage_in(d, i + 1, "", 0, true, err));
    }
    int64_t done = 0, at = 0;
    for (; at < bytes; at += cmoei_utf8_bytes(s[at])) {
        const bool same =
            bytes - at >= k->from.bytes && memcmp(s + at, k->from.s, (size_t)k->from.bytes) == 0;
        if (same && g->start > 0) {
            g->start--;
            done = at + k->from.bytes;
            continue;
        }
        g->start = 0;
        if (k->stop == 0) { /* nothing is dropped from here on */
            at = bytes;
            break;
        }
        CMOEI_TRY(stage_in(d, i + 1, s + done, at - done, false, err));
        done = same ? at + k->from.bytes : at;
        if (same && g->waiting < k->stop) {
            g->waiting++;
            continue;
        }
        /* One more than may be dropped, or something else: then those in front stay. */
        for (; same ? g->waiting >= k->stop : g->waiting > 0; g->waiting--)
            CMOEI_TRY(stage_in(d, i + 1, k->from.s, k->from.bytes, false, err));
        g->waiting += same;
    }
    return stage_in(d, i + 1, s + done, at - done, false, err);
}

static cmoe_status metaspace(cmoei_decode *d, int32_t i, const char *s, int64_t bytes, bool begin,
                             cmoe_error *err)
{
    const cmoei_decoder *k = &d->t->decoder[i];
    cmoei_buffer *b = &d->stage[i].held;
    const cmoei_text blank = {" ", d->stage[i].tokens == 1 && k->prepend ? 0 : 1};
    b->bytes = 0;
    CMOEI_TRY(cmoei_replace(b, s, bytes, k->from, blank, INT64_MAX, err));
    return stage_in(d, i + 1, b->data, b->bytes, begin, err);
}

enum { MOST_MORE = 1 << 20 }; /* bytes that one step adds to one token */

static cmoe_status replace(cmoei_decode *d, int32_t i, const char *s, int64_t bytes, bool begin,
                           cmoe_error *err)
{
    cmoei_buffer *b = &d->stage[i].held;
    b->bytes = 0;
    const int64_t most = MOST_MORE + bytes;
    CMOEI_TRY(cmoei_replace(b, s, bytes, d->t->decoder[i].from, d->t->decoder[i].to, most, err));
    return stage_in(d, i + 1, b->data, b->bytes, begin, err);
}

/* ---- stages ------------------------------------------------------------------------------------ */

static cmoe_status stage_in(cmoei_decode *d, int32_t i, const char *s, int64_t bytes, bool begin,
                            cmoe_error *err)
{
    if (bytes == 0) s = ""; /* not a buffer that never had anything in it */
    if (i == d->t->decoders) return sink_add(&d->sink, s, bytes, err);
    d->stage[i].tokens += begin;
    switch (d->t->decoder[i].kind) {
    case CMOEI_DECODER_BYTES:
        return byte_level(d, i, s, bytes, err);
    case CMOEI_DECODER_REPLACE:
        return replace(d, i, s, bytes, begin, err);
    case CMOEI_DECODER_BYTE_FALLBACK:
        return byte_fallback(d, i, s, bytes, err);
    case CMOEI_DECODER_FUSE:
        return stage_in(d, i + 1, s, bytes, begin && d->stage[i].tokens == 1, err);
    case CMOEI_DECODER_STRIP:
        return strip(d, i, s, bytes, begin, err);
    case CMOEI_DECODER_METASPACE:
        return metaspace(d, i, s, bytes, begin, err);
    case CMOEI_DECODER_JOIN:
        if (begin && d->stage[i].tokens > 1) CMOEI_TRY(stage_in(d, i + 1, " ", 1, true, err));
        return stage_in(d, i + 1, s, bytes, begin, err);
    }
    return cmoei_fail(err, CMOE_ERR_INTERNAL, "decoder: stage %d", (int)i);
}

void cmoei_decode_open(cmoei_decode *d, const cmoe_tokenizer *t, bool skip_special)
{
    *d = (cmoei_decode){.t = t, .skip_special = skip_special};
    for (int32_t i = 0; i < t->decoders; i++)
        d->stage[i].held.ctx = t->ctx;
}

cmoe_status cmoei_decode_push(cmoei_decode *d, int32_t id, cmoe_error *err)
{
    /* Ids without a token are no text: models have more rows than their tokenizer has tokens. */
    if (id < 0 || id >= d->t->names.size || !d->t->names.text[id]) return CMOE_OK;
    if (d->skip_special && d->t->special[id]) return CMOE_OK;
    const int32_t added = d->t->added_of[id];
    if (added && d->t->added[added - 1].normalized) { /* decoders undo what normalizers did to it */
        const cmoei_text s = d->t->added[added - 1].content;
        return stage_in(d, 0, s.s, s.bytes, true, err);
    }
    return stage_in(d, 0, d->t->names.text[id], d->t->names.bytes[id], true, err);
}

cmoe_status cmoei_decode_finish(cmoei_decode *d, cmoe_error *err)
{
    for (int32_t i = 0; i < d->t->decoders; i++) {
        if (d->t->decoder[i].kind == CMOEI_DECODER_BYTES) CMOEI_TRY(give_bytes(d, i, true, err));
        if (d->t->decoder[i].kind == CMOEI_DECODER_BYTE_FALLBACK)
            CMOEI_TRY(give_fallback(d, i, err));
    }
    return CMOE_OK;
}

void cmoei_decode_close(cmoei_decode *d)
{
    for (int32_t i = 0; i < d->t->decoders; i++)
        cmoei_buffer_free(&d->stage[i].held);
}
