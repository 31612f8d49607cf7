/* SPDX-License-Identifier: MIT
 *
 * pre_match.c - text as symbols, and the matches of a compiled pattern in them.
 *
 * The compiled pattern is shared; what a match writes to, PCRE2's stack for machine code among it,
 * belongs to one call.  Every search has a number of steps that grows with its text, so that a pattern
 * that would take exponentially many ends in a text instead.
 */
#include <string.h>

#include "pre_pattern.h"

/* ---- memory ---------------------------------------------------------------------------------- */

/* free() is not told the size, so it stands before each block. */
static void *pcre_alloc(PCRE2_SIZE bytes, void *user)
{
    void *p;
    if (bytes > INT64_MAX - CMOEI_ALIGN ||
        cmoei_alloc(user, (int64_t)bytes + CMOEI_ALIGN, "pattern", &p, NULL) != CMOE_OK)
        return NULL;
    const int64_t size = (int64_t)bytes + CMOEI_ALIGN;
    memcpy(p, &size, sizeof size);
    return (char *)p + CMOEI_ALIGN;
}

static void pcre_free(void *p, void *user)
{
    if (!p) return;
    int64_t size;
    memcpy(&size, (char *)p - CMOEI_ALIGN, sizeof size);
    cmoei_free(user, (char *)p - CMOEI_ALIGN, size);
}

pcre2_general_context *cmoei_pattern_memory(cmoe_ctx *ctx)
{
    return pcre2_general_context_create(pcre_alloc, pcre_free, ctx);
}

/* ---- matching -------------------------------------------------------------------------------- */

enum {
    STACK_FIRST = 1 << 15,
    STACK_MOST = 1 << 23,
    STEPS = 1 << 20, /* most of one search, and so many more a character: */
    STEPS_EACH = 16, /* published patterns need about one */
    MOST_HEAP_KIB = 1 << 17
};

cmoe_status cmoei_matcher_open(cmoei_matcher *m, pcre2_general_context *memory, cmoe_error *err)
{
    m->context = pcre2_match_context_create(memory);
    m->data = pcre2_match_data_create(1, memory);
    m->stack = pcre2_jit_stack_create(STACK_FIRST, STACK_MOST, memory);
    if (!m->context || !m->data) {
        cmoei_matcher_close(m);
        return cmoei_fail(err, CMOE_ERR_MEMORY, "pattern: no memory for matching");
    }
    pcre2_set_heap_limit(m->context, MOST_HEAP_KIB);
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return CMOE_OK;
}

void cmoei_matcher_close(cmoei_matcher *m)
{
    pcre2_jit_stack_free(m->stack);
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    *m = (cmoei_matcher){0};
}

int64_t cmoei_pattern_symbols(const cmoei_pattern *p, const char *s, int64_t bytes, uint8_t *out)
{
    int64_t at = 0, n = 0;
    while (at < bytes) {
        while (at + 8 <= bytes) {
            uint64_t word;
            memcpy(&word, s + at, 8);
            if (word & 0x8080808080808080u) break;
            memcpy(out + n, &word, 8);
            at += 8;
            n += 8;
        }
        while (at < bytes && !(s[at] & 0x80) && (at + 8 > bytes || (at & 7)))
            out[n++] = (uint8_t)s[at++];
        while (at < bytes && s[at] & 0x80) {
            int32_t length;
            const uint32_t c = cmoei_utf8_get(s + at, &length);
            out[n++] = p->block[(int64_t)p->page[c >> 8] * 256 + (c & 0xff)];
            at += length;
        }
        if (at < bytes && !(s[at] & 0x80)) out[n++] = (uint8_t)s[at++];
    }
    return n;
}

cmoe_status cmoei_pattern_next(const cmoei_pattern *p, const cmoei_matcher *m,
                               const uint8_t *symbols, int64_t n, int64_t from, bool *found,
                               int64_t *begin, int64_t *end, cmoe_error *err)
{
    /* A call of PCRE2's costs more than most pieces are long. */
    while (p->first && from < n && !(p->first[symbols[from] >> 3] >> (symbols[from] & 7) & 1))
        from++;
    *found = false;
    if (p->first && from == n) return CMOE_OK;
    const int64_t steps = CMOEI_MIN(STEPS + STEPS_EACH * (n - from), (int64_t)UINT32_MAX);
    pcre2_set_match_limit(m->context, (uint32_t)steps);
    const PCRE2_SIZE length = (PCRE2_SIZE)n, start = (PCRE2_SIZE)from;
    const int rc = p->jit ? pcre2_jit_match(p->code, symbols, length, start, 0, m->data, m->context)
                          : pcre2_match(p->code, symbols, length, start, 0, m->data, m->context);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return CMOE_OK;
    if (rc < 0) {
        char text[128];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text);
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "pre_tokenizer: pattern gave up at character %lld of %lld: %s",
                          (long long)from, (long long)n, text);
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(m->data);
    *begin = (int64_t)at[0];
    *end = (int64_t)at[1];
    return CMOE_OK;
}
