/* SPDX-License-Identifier: MIT
 *
 * machine.h - what this machine is: CPU, caches, memory; and the context every verb works in.
 */
#ifndef TOOLS_MACHINE_H
#define TOOLS_MACHINE_H

#include <jansson.h>
#include <stdint.h>

#include "cmoe/base.h"
#include "options.h"

typedef struct machine {
    char cpu[96], os[96], huge_pages[24];  /* huge_pages: always, madvise, never or unknown */
    int32_t cores;                         /* physical ones */
    int32_t cpus;                          /* that this process may run on */
    int64_t l1_bytes, l2_bytes, llc_bytes; /* of one cache; 0: not known */
    int64_t memory_bytes, available_bytes; /* available: what this process may still take */
} machine;

void machine_read(machine *m);

/* The most memory that this process had at once; 0: not known. */
int64_t machine_peak_bytes(void);

/* A context and a stream as --threads and --isa ask for. */
typedef struct tool_session {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
} tool_session;

int session_open(tool_session *s, const common_options *o);
/* With memory from somewhere else than the C library. */
int session_open_with(tool_session *s, const common_options *o, const cmoe_allocator *memory);
void session_close(tool_session *s);

/* Name of the highest level whose features are all there: "avx512_vnni". */
const char *machine_level(uint32_t features);
/* "avx2 avx512 ..." or "none". */
void machine_features(uint32_t features, char *text, size_t size);

json_t *machine_json(const machine *m, const cmoe_ctx *ctx);

#endif
