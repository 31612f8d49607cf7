/* SPDX-License-Identifier: MIT
 *
 * pre_pattern.h - the regular expressions of Split, in Oniguruma's syntax, matched by PCRE2.
 */
#ifndef CMOE_TEXT_PRE_PATTERN_H
#define CMOE_TEXT_PRE_PATTERN_H

#include <pcre2.h>

#include "unicode.h"

extern const char cmoei_gpt2_pattern[]; /* what ByteLevel cuts by; tokenizer_steps.c */

/* Immutable once compiled. */
typedef struct cmoei_pattern {
    cmoe_ctx *ctx;
    pcre2_code *code;
    const uint8_t *first; /* bits of the symbols a match can begin with; NULL: not known */
    bool jit;             /* compiled to machine code */
    uint16_t *page;       /* [CMOEI_CODE_POINTS / 256] which block */
    uint8_t *block;       /* [blocks, 256] symbols */
    int64_t blocks;
} cmoei_pattern;

/* `source` in UTF-8; `what` names the pattern in texts. */
cmoe_status cmoei_pattern_compile(cmoei_pattern *p, pcre2_general_context *memory, cmoe_ctx *ctx,
                                  const char *source, int64_t bytes, const char *what,
                                  cmoe_error *err);
void cmoei_pattern_free(cmoei_pattern *p);

/* What one thread needs to match any pattern. */
typedef struct cmoei_matcher {
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
} cmoei_matcher;

cmoe_status cmoei_matcher_open(cmoei_matcher *m, pcre2_general_context *memory, cmoe_error *err);
void cmoei_matcher_close(cmoei_matcher *m);

/* Checked UTF-8 as symbols, one byte a character; returns how many. */
int64_t cmoei_pattern_symbols(const cmoei_pattern *p, const char *s, int64_t bytes, uint8_t *out);

/* The next match at or behind symbol `from` of n.  *found false: there is none. */
cmoe_status cmoei_pattern_next(const cmoei_pattern *p, const cmoei_matcher *m,
                               const uint8_t *symbols, int64_t n, int64_t from, bool *found,
                               int64_t *begin, int64_t *end, cmoe_error *err);

/* PCRE2's allocations through the context; `user` is the cmoe_ctx. */
pcre2_general_context *cmoei_pattern_memory(cmoe_ctx *ctx);

#endif
