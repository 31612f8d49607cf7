/* SPDX-License-Identifier: MIT
 *
 * ctx.c - context and stream: everything that is chosen once.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* madvise */
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core.h"

/* Weights are read once a token, line by line: on 4 KiB pages every 64th line would wait for a page
 * walk.  So large blocks ask for huge pages, which the system may or may not give. */
static void *libc_alloc(void *user, size_t bytes, size_t align)
{
    enum { LARGE = 4 << 20, HUGE_PAGE = 2 << 20 };
    (void)user;
    if (bytes >= LARGE) align = HUGE_PAGE;
    const size_t padded = (bytes + align - 1) & ~(align - 1); /* aligned_alloc wants a multiple */
    void *p = padded < bytes ? NULL : aligned_alloc(align, padded);
#if defined(MADV_HUGEPAGE)
    if (p && bytes >= LARGE) (void)madvise(p, padded, MADV_HUGEPAGE);
#endif
    return p;
}

static void libc_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

cmoe_status cmoei_alloc(cmoe_ctx *ctx, int64_t bytes, const char *what, void **out, cmoe_error *err)
{
    void *p = bytes < 0 ? NULL
                        : ctx->allocator.alloc(ctx->allocator.user, (size_t)CMOEI_MAX(bytes, 1),
                                               CMOEI_ALIGN);
    if (!p)
        return cmoei_fail(err, CMOE_ERR_MEMORY, "%s: %lld bytes could not be allocated", what,
                          (long long)bytes);
    *out = p;
    return CMOE_OK;
}

void cmoei_free(cmoe_ctx *ctx, void *ptr, int64_t bytes)
{
    if (ptr) ctx->allocator.free(ctx->allocator.user, ptr, (size_t)CMOEI_MAX(bytes, 1));
}

static const cmoe_ctx_options defaults = {
    .size = sizeof defaults,
};

void cmoe_ctx_options_default(cmoe_ctx_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static void say_hello(const cmoe_ctx *ctx)
{
    char text[96];
    const char *level = cmoe_isa_level_name(0);
    for (int32_t i = 0; i < cmoe_isa_levels(); i++) {
        uint32_t mask = 0;
        (void)cmoe_isa_mask(cmoe_isa_level_name(i), &mask, NULL);
        if ((mask & ~(ctx->features | CMOE_CPU_BF16_FIRST)) == 0) level = cmoe_isa_level_name(i);
    }
    snprintf(text, sizeof text, "cmoe %s: %d threads, %s", cmoe_version(), ctx->threads, level);
    ctx->log(ctx->log_user, CMOE_LOG_INFO, text);
}

cmoe_status cmoe_ctx_create(cmoe_ctx **out, const cmoe_ctx_options *options, cmoe_error *err)
{
    enum { MOST_THREADS = 4096 };
    cmoe_ctx_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_ctx_options", err));
    if (!out)
        return cmoei_fail(err, CMOE_ERR_ARG, "ctx: out is NULL, want a place for the context");
    if (o.threads < 0 || o.threads > MOST_THREADS)
        return cmoei_fail(err, CMOE_ERR_RANGE, "threads = %d, want 0 (all) to %d", o.threads,
                          MOST_THREADS);
    if (o.plugin_dir)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "plugin_dir = \"%s\", want NULL: this version has no plugins",
                          o.plugin_dir);
    if (!o.allocator.alloc != !o.allocator.free)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "allocator: only one of alloc and free is given, want both or neither");
    cmoe_ctx c = {
        .allocator = o.allocator,
        .log = o.log,
        .log_user = o.log_user,
        .parallel = o.parallel,
        .parallel_user = o.parallel_user,
        .threads = o.threads ? o.threads : cmoei_cpu_count(),
        .features = cmoe_cpu_features() & (o.isa_mask ? o.isa_mask : UINT32_MAX),
    };
    /* A level stands on those below it, so that a mask with a hole cannot pick a kernel that uses
     * more than was allowed. */
    if (!(c.features & CMOE_CPU_AVX2)) c.features = CMOE_CPU_PLAIN;
    if (!(c.features & CMOE_CPU_AVX512)) c.features &= CMOE_CPU_PLAIN | CMOE_CPU_AVX2;
    if (!(c.features & CMOE_CPU_AVX512_VNNI)) c.features &= ~(uint32_t)CMOE_CPU_AVX512_BF16;
    if (o.isa_mask == 0 && cmoei_cpu_bf16_is_slow()) c.features &= ~(uint32_t)CMOE_CPU_BF16_FIRST;
    if (!c.allocator.alloc) {
        c.allocator.alloc = libc_alloc;
        c.allocator.free = libc_free;
    }
    cmoe_ctx *ctx = NULL;
    CMOEI_TRY(cmoei_alloc(&c, (int64_t)sizeof *ctx, "context", (void **)&ctx, err));
    *ctx = c;
    if (!ctx->parallel && ctx->threads > 1) {
        const cmoe_status status = cmoei_pool_create(&ctx->pool, ctx, ctx->threads, err);
        if (status != CMOE_OK) {
            cmoe_ctx_free(ctx);
            return status;
        }
        ctx->parallel = cmoei_pool_run;
        ctx->parallel_user = ctx->pool;
    }
    if (ctx->log) say_hello(ctx);
    *out = ctx;
    return CMOE_OK;
}

void cmoe_ctx_free(cmoe_ctx *ctx)
{
    if (!ctx) return;
    cmoei_pool_free(ctx->pool, ctx);
    const cmoe_allocator a = ctx->allocator;
    a.free(a.user, ctx, sizeof *ctx);
}

int32_t cmoe_ctx_threads(const cmoe_ctx *ctx)
{
    return ctx ? ctx->threads : 0;
}

uint32_t cmoe_ctx_features(const cmoe_ctx *ctx)
{
    return ctx ? ctx->features : 0;
}

cmoe_status cmoe_stream_create(cmoe_stream **out, cmoe_ctx *ctx, cmoe_error *err)
{
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "stream: %s is NULL", out ? "ctx" : "out");
    cmoe_stream *s = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *s, "stream", (void **)&s, err));
    s->ctx = ctx;
    *out = s;
    return CMOE_OK;
}

void cmoe_stream_free(cmoe_stream *s)
{
    if (s) cmoei_free(s->ctx, s, (int64_t)sizeof *s);
}

cmoe_ctx *cmoe_stream_ctx(const cmoe_stream *s)
{
    return s ? s->ctx : NULL;
}

cmoe_status cmoei_check_stream(const cmoe_stream *s, cmoe_error *err)
{
    return s ? CMOE_OK
             : cmoei_fail(err, CMOE_ERR_ARG, "stream is NULL, want one of cmoe_stream_create");
}
