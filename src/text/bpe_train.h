/* SPDX-License-Identifier: MIT
 *
 * bpe_train.h - byte-pair encoding learned from text.
 *
 *     text -> words (what GPT-2's pattern finds) with their counts -> merges, most frequent pair first
 */
#ifndef CMOE_TEXT_BPE_TRAIN_H
#define CMOE_TEXT_BPE_TRAIN_H

#include "pre_pattern.h"

typedef struct cmoei_word {
    int64_t at; /* first byte, later first symbol */
    int32_t length;
    uint32_t hash;
    int64_t count;
} cmoei_word;

typedef struct cmoei_words {
    cmoe_ctx *ctx;
    pcre2_general_context *memory;
    cmoei_pattern pattern;
    cmoei_matcher matcher;
    cmoei_buffer symbols; /* of a stretch of text, for the pattern */
    cmoei_buffer bytes;   /* of all words */
    cmoei_buffer list;    /* cmoei_word, in the order they were met */
    int32_t *slot;        /* [mask + 1] index of a word, -1: free */
    int64_t mask;
} cmoei_words;

/* To be closed also when opening fails. */
cmoe_status cmoei_words_open(cmoei_words *w, cmoe_ctx *ctx, cmoe_error *err);
void cmoei_words_close(cmoei_words *w);
/* Counts the words of checked UTF-8. */
cmoe_status cmoei_words_add(cmoei_words *w, const char *text, int64_t bytes, cmoe_error *err);

/* Merge i joins left and right into id, a token of its own unless `id` is one that was there. */
typedef struct cmoei_learned_merge {
    int32_t left, right, id;
} cmoei_learned_merge;

typedef struct cmoei_vocabulary {
    cmoei_buffer text;   /* bytes of all tokens */
    cmoei_buffer begin;  /* int64 [tokens + 1] */
    cmoei_buffer merges; /* cmoei_learned_merge */
    int64_t tokens;      /* 256 bytes in the order of their characters, then what merges made */
} cmoei_vocabulary;

/* Up to `most` tokens, from pairs that occur at least `least` times.  Uses up the words. */
cmoe_status cmoei_bpe_learn(cmoei_vocabulary *v, cmoei_words *w, int64_t most, int64_t least,
                            cmoe_error *err);
void cmoei_vocabulary_free(cmoei_vocabulary *v);

#endif
