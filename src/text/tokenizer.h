/* SPDX-License-Identifier: MIT
 *
 * tokenizer.h - what a tokenizer.json became.
 *
 *     text -> added tokens cut out -> normalizers -> added tokens cut out (normalized ones)
 *          -> pre-tokenizers -> byte-pair encoding -> ids, between those of the post-processor
 *     ids -> texts -> decoders -> text
 */
#ifndef CMOE_TEXT_TOKENIZER_H
#define CMOE_TEXT_TOKENIZER_H

#include "bpe.h"
#include "cmoe/text.h"
#include "pre_pattern.h"

enum { CMOEI_TOKENIZER_STEPS = 16 }; /* most normalizers, pre-tokenizers, decoders */

/* Bytes with their number. */
typedef struct cmoei_text {
    const char *s;
    int64_t bytes;
} cmoei_text;

typedef enum cmoei_normalizer_kind {
    CMOEI_NORMALIZER_FORM,
    CMOEI_NORMALIZER_PREPEND,
    CMOEI_NORMALIZER_REPLACE,
    CMOEI_NORMALIZER_STRIP
} cmoei_normalizer_kind;

typedef struct cmoei_normalizer {
    cmoei_normalizer_kind kind;
    int32_t form;        /* CMOEI_NFC ... */
    cmoei_text from, to; /* Prepend: to */
    bool left, right;    /* Strip */
} cmoei_normalizer;

typedef enum cmoei_pre_kind {
    CMOEI_PRE_SPLIT,
    CMOEI_PRE_DIGITS,
    CMOEI_PRE_METASPACE,
    CMOEI_PRE_BYTES /* ByteLevel's blank in front; the bytes themselves are the model's affair */
} cmoei_pre_kind;

enum { CMOEI_PREPEND_NEVER, CMOEI_PREPEND_FIRST, CMOEI_PREPEND_ALWAYS };

typedef struct cmoei_pre {
    cmoei_pre_kind kind;
    cmoei_pattern pattern;      /* Split */
    bool keep_match, keep_rest; /* Split: Isolated keeps both */
    bool individual;            /* Digits */
    cmoei_text blank;           /* Metaspace: what stands for one */
    int32_t prepend;            /* Metaspace, ByteLevel: never or always */
    bool split;                 /* Metaspace */
} cmoei_pre;

typedef enum cmoei_decoder_kind {
    CMOEI_DECODER_BYTES,
    CMOEI_DECODER_REPLACE,
    CMOEI_DECODER_BYTE_FALLBACK,
    CMOEI_DECODER_FUSE,
    CMOEI_DECODER_STRIP,
    CMOEI_DECODER_METASPACE,
    CMOEI_DECODER_JOIN /* no decoder: blanks between tokens */
} cmoei_decoder_kind;

typedef struct cmoei_decoder {
    cmoei_decoder_kind kind;
    cmoei_text from, to; /* Replace; Strip and Metaspace: from is one character */
    int64_t start, stop; /* Strip */
    bool prepend;        /* Metaspace: the first token's blanks are not there */
} cmoei_decoder;

/* Added tokens as a tree of bytes, read from their ends; node 0 is the root. */
typedef struct cmoei_tree_node {
    int32_t child, sibling; /* 0: none */
    int32_t fall;           /* the longest other way down that ends in the same bytes, 0: none */
    int32_t token;          /* index into added of the longest that is complete here, -1: none */
    uint8_t byte;
} cmoei_tree_node;

typedef struct cmoei_added {
    cmoei_text content;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} cmoei_added;

typedef struct cmoei_tree {
    cmoei_tree_node *node;
    int64_t nodes;
    int32_t first[256]; /* root's children, 0: none */
} cmoei_tree;

struct cmoe_tokenizer {
    cmoe_ctx *ctx;
    cmoei_text_pool pool;
    pcre2_general_context *memory;
    cmoei_names names; /* every token, size = largest id + 1 */
    uint8_t *special;  /* [size] */
    int32_t *added_of; /* [size] 1 + index into added, 0: not added */
    cmoei_added *added;
    int64_t added_count;
    cmoei_tree raw, normalized; /* which added tokens are looked for where */
    cmoei_normalizer normalizer[CMOEI_TOKENIZER_STEPS];
    cmoei_pre pre[CMOEI_TOKENIZER_STEPS];
    cmoei_decoder decoder[CMOEI_TOKENIZER_STEPS];
    int32_t normalizers, pres, decoders;
    cmoei_bpe bpe;
    int32_t *prefix, *suffix; /* what the post-processor puts around */
    int64_t prefix_count, suffix_count;
    int64_t bos, eos;
};

/* tokenizer_load.c: fills an empty one. */
cmoe_status cmoei_tokenizer_load(cmoe_tokenizer *t, const char *path, cmoe_error *err);
/* From the bytes of the two files; config NULL: there is none. */
cmoe_status cmoei_tokenizer_parse(cmoe_tokenizer *t, const char *json, int64_t bytes,
                                  const char *config, int64_t config_bytes, cmoe_error *err);

void cmoei_tokenizer_clear(cmoe_tokenizer *t); /* all but the struct itself */

/* ---- encoding -------------------------------------------------------------------------------- */

typedef struct cmoei_encoder {
    const cmoe_tokenizer *t;
    cmoe_error *err;
    bool parse_special;
    cmoei_ids ids;
    cmoei_matcher matcher;
    cmoei_bpe_work work;
    cmoei_buffer normal[2];
    cmoei_buffer found[2]; /* added tokens in the text, and in a normalised stretch of it */
    cmoei_buffer step[CMOEI_TOKENIZER_STEPS];
} cmoei_encoder;

/* tokenizer_added.c: what stands between added tokens goes to `rest`; first: s begins the text. */
typedef cmoe_status (*cmoei_rest_fn)(cmoei_encoder *e, const char *s, int64_t bytes, bool first);
cmoe_status cmoei_added_split(cmoei_encoder *e, const cmoei_tree *tree, const char *s,
                              int64_t bytes, bool first, cmoei_rest_fn rest);
/* token[i]: index into t->added of content[i]. */
cmoe_status cmoei_tree_build(cmoe_tokenizer *t, cmoei_tree *tree, const cmoei_text *content,
                             const int32_t *token, int64_t count, cmoe_error *err);

/* What normalizers may make of a text: `more` bytes and so many times its own, twice what the worst
 * character and form need (U+FDFA in NFKD).  Replacements in a row multiply. */
enum { CMOEI_NORMAL_MORE = 1 << 20, CMOEI_NORMAL_TIMES = 32 };

/* pre_normalize.c: the result is *s itself or lies in one of the two buffers. */
cmoe_status cmoei_normalizers_run(const cmoe_tokenizer *t, cmoei_buffer work[2], cmoei_text *s,
                                  cmoe_error *err);

/* pre.c: a normalised stretch, through all steps and the model.  bytes <= INT32_MAX */
cmoe_status cmoei_pre_run(cmoei_encoder *e, const char *s, int64_t bytes, bool first);

/* ---- decoding -------------------------------------------------------------------------------- */

/* Where text goes: all is counted, the first `capacity` bytes are written. */
typedef struct cmoei_sink {
    char *text;
    int64_t capacity, bytes;
    cmoei_buffer *grows; /* or here, if not NULL */
} cmoei_sink;

typedef struct cmoei_decode_stage {
    cmoei_buffer held; /* bytes that wait for more, or scratch */
    int64_t tokens;    /* that came in */
    int64_t start;     /* Strip: how many may still be dropped */
    int64_t waiting;   /* Strip: held characters at the end */
} cmoei_decode_stage;

typedef struct cmoei_decode {
    const cmoe_tokenizer *t;
    bool skip_special;
    cmoei_sink sink;
    cmoei_decode_stage stage[CMOEI_TOKENIZER_STEPS];
} cmoei_decode;

void cmoei_decode_open(cmoei_decode *d, const cmoe_tokenizer *t, bool skip_special);
cmoe_status cmoei_decode_push(cmoei_decode *d, int32_t id, cmoe_error *err);
cmoe_status cmoei_decode_finish(cmoei_decode *d, cmoe_error *err);
void cmoei_decode_close(cmoei_decode *d);

/* Appends s with every `from` replaced by `to`, left to right.  CMOE_ERR_RANGE: more than `most` bytes. */
cmoe_status cmoei_replace(cmoei_buffer *out, const char *s, int64_t bytes, cmoei_text from,
                          cmoei_text to, int64_t most, cmoe_error *err);

#endif
