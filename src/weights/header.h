/* SPDX-License-Identifier: MIT
 *
 * header.h - the one validator of safetensors headers.
 *
 * A file is 8 bytes of length (little endian), so many bytes of JSON, then the data:
 *
 *     {"__metadata__": {"format": "pt"},
 *      "model.norm.weight": {"dtype": "BF16", "shape": [2048], "data_offsets": [0, 4096]}, ...}
 *
 * What comes out is a table in which names, shapes, formats and bytes agree with each other and
 * with the size of the file, so that nobody else has to look at the header, and no byte of the file
 * belongs to two tensors or to none.  A pure function of memory: it opens nothing, and tests/fuzz
 * feeds it with anything.
 */
#ifndef CMOE_WEIGHTS_HEADER_H
#define CMOE_WEIGHTS_HEADER_H

#include "core/core.h"

enum {
    CMOEI_HEADER_MAX = 100000000, /* bytes of JSON, as in the reference reader */
    CMOEI_METADATA_MAX = 4096     /* pairs in __metadata__ */
};

/* A format of the file: its word, bits of one value, and which of ours it is. */
typedef struct cmoei_stored {
    const char *name;
    int32_t bits;
    int32_t dtype; /* CMOE_...; 0: none */
} cmoei_stored;

extern const cmoei_stored cmoei_stored_formats[];
const cmoei_stored *cmoei_stored_of(int32_t dtype); /* NULL: files have no word for it */

typedef struct cmoei_entry {
    const char *name;     /* ends in NUL; valid UTF-8 without control characters */
    int64_t begin, bytes; /* of the file */
    int64_t dims[CMOE_MAX_RANK];
    int32_t rank;
    int32_t stored; /* row of cmoei_stored_formats */
} cmoei_entry;

typedef struct cmoei_header {
    int64_t count;
    cmoei_entry *entries; /* [count], as the header lists them */
    int32_t *order;       /* [count] entries by name */
    void *block;          /* all of it, names too */
    int64_t block_bytes;
} cmoei_header;

/* How long the header is, from the first 8 bytes of a file of file_bytes (`first` is not read when
 * the file is shorter).  `file` stands in texts. */
cmoe_status cmoei_header_length(const void *first, int64_t file_bytes, const char *file,
                                int64_t *length, cmoe_error *err);

/* The table from the header's text, which must not change meanwhile: it is read twice, once to
 * check and count, once to fill a table of exactly that size. */
cmoe_status cmoei_header_read(cmoei_header *out, cmoe_ctx *ctx, const char *text, int64_t length,
                              int64_t file_bytes, const char *file, cmoe_error *err);
void cmoei_header_free(cmoei_header *h, cmoe_ctx *ctx);

/* Sorts [n] indices; stable, n log n at worst, one pass when they are in order.  Not on qsort: that
 * takes memory of its own. */
typedef int (*cmoei_compare)(const void *table, int32_t a, int32_t b);
void cmoei_sort(int32_t *order, int32_t *scratch, int64_t n, cmoei_compare compare,
                const void *table);

#endif
