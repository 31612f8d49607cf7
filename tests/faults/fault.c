/* SPDX-License-Identifier: MIT
 *
 * fault.c - see fault.h.
 */
#include "fault.h"

#include <errno.h>
#include <pthread.h>

fault_state fault;

/* True when this call is the one to fail. */
static bool due(int64_t *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **p, size_t align, size_t bytes);
void __real_free(void *p);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg);
int __real_pthread_join(pthread_t t, void **result);

void *__wrap_malloc(size_t bytes)
{
    fault.libc_calls++;
    return due(&fault.fail_libc) ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    fault.libc_calls++;
    return due(&fault.fail_libc) ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    fault.libc_calls++;
    return due(&fault.fail_libc) ? NULL : __real_realloc(p, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    fault.libc_calls++;
    return due(&fault.fail_libc) ? NULL : __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **p, size_t align, size_t bytes)
{
    fault.libc_calls++;
    return due(&fault.fail_libc) ? ENOMEM : __real_posix_memalign(p, align, bytes);
}

void __wrap_free(void *p)
{
    fault.libc_calls++;
    __real_free(p);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg)
{
    if (due(&fault.fail_thread)) return EAGAIN;
    fault.threads++;
    return __real_pthread_create(t, a, f, arg);
}

int __wrap_pthread_join(pthread_t t, void **result)
{
    fault.threads--;
    return __real_pthread_join(t, result);
}

/* Each block carries its size in front, so that a free with another size is noticed. */
static void *counted_alloc(void *user, size_t bytes, size_t align)
{
    fault_memory *m = user;
    m->calls++;
    if (due(&m->fail_at)) return NULL;
    char *block = __real_aligned_alloc(align, (align + bytes + align - 1) / align * align);
    assert_non_null(block);
    memcpy(block, &bytes, sizeof bytes);
    m->blocks++;
    m->bytes += (int64_t)bytes;
    return block + align;
}

static void counted_free(void *user, void *ptr, size_t bytes)
{
    fault_memory *m = user;
    char *block = (char *)ptr - 64;
    size_t asked;
    memcpy(&asked, block, sizeof asked);
    assert_int_equal(asked, bytes);
    m->blocks--;
    m->bytes -= (int64_t)bytes;
    __real_free(block);
}

cmoe_allocator fault_allocator(fault_memory *m)
{
    return (cmoe_allocator){m, counted_alloc, counted_free};
}

unit_env fault_env(fault_memory *m, int32_t threads)
{
    unit_env e = {0};
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = threads;
    o.allocator = fault_allocator(m);
    if (cmoe_ctx_create(&e.ctx, &o, &err) != CMOE_OK ||
        cmoe_stream_create(&e.stream, e.ctx, &err) != CMOE_OK)
        fail_msg("%s", err.text);
    return e;
}

static void normals(float *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
}

void fault_fill(fault_data *d)
{
    normals(d->x, FT * FH, 1, 1);
    normals(d->gate, FE * FH, 2, 0.2f);
    normals(d->logits, FT * FE, 3, 1);
    normals(d->w13, FE * 2 * FI * FH, 4, 0.15f);
    normals(d->w2, FE * FH * FI, 5, 0.2f);
    normals(d->bias13, FE * 2 * FI, 6, 0.1f);
    normals(d->bias2, FE * FH, 7, 0.1f);
    normals(d->shared, FT * FH, 8, 1);
    normals(d->weights, FT * FK, 9, 1);
    normals(d->rows, FT * FK * FH, 10, 1);
    for (int i = 0; i < FT * FK; i++)
        d->ids[i] = (int32_t)(cmoe_random_u64(11, (uint64_t)i, 0) % FE);
}
