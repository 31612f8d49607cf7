/* SPDX-License-Identifier: MIT
 *
 * status.c - statuses, error texts, option structs that can grow, and sizes that cannot overflow.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

const char *cmoe_status_name(cmoe_status status)
{
    switch (status) {
    case CMOE_OK:
        return "CMOE_OK";
    case CMOE_ERR_ARG:
        return "CMOE_ERR_ARG";
    case CMOE_ERR_SHAPE:
        return "CMOE_ERR_SHAPE";
    case CMOE_ERR_DTYPE:
        return "CMOE_ERR_DTYPE";
    case CMOE_ERR_RANGE:
        return "CMOE_ERR_RANGE";
    case CMOE_ERR_UNSUPPORTED:
        return "CMOE_ERR_UNSUPPORTED";
    case CMOE_ERR_MEMORY:
        return "CMOE_ERR_MEMORY";
    case CMOE_ERR_IO:
        return "CMOE_ERR_IO";
    case CMOE_ERR_FORMAT:
        return "CMOE_ERR_FORMAT";
    case CMOE_ERR_DEVICE:
        return "CMOE_ERR_DEVICE";
    case CMOE_ERR_COMM:
        return "CMOE_ERR_COMM";
    case CMOE_ERR_CANCELLED:
        return "CMOE_ERR_CANCELLED";
    case CMOE_ERR_INTERNAL:
        return "CMOE_ERR_INTERNAL";
    }
    return "CMOE_ERR_UNKNOWN";
}

#define CMOEI_TEXT_(x) #x
#define CMOEI_TEXT(x)  CMOEI_TEXT_(x)

const char *cmoe_version(void)
{
    return CMOEI_TEXT(CMOE_VERSION_MAJOR) "." CMOEI_TEXT(CMOE_VERSION_MINOR) "." CMOEI_TEXT(
        CMOE_VERSION_PATCH);
}

const char *cmoei_core_version(void)
{
    return cmoe_version();
}

uint32_t cmoe_abi_version(void)
{
    return CMOE_VERSION_MAJOR << 16 | CMOE_VERSION_MINOR; /* below 1.0 every minor may break */
}

cmoe_status cmoei_fail(cmoe_error *err, cmoe_status status, const char *format, ...)
{
    if (!err) return status;
    const size_t size = err->size ? err->size : sizeof *err;
    const size_t head = offsetof(cmoe_error, text);
    if (size >= head) err->status = status;
    if (size > head) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, CMOEI_MIN(size - head, sizeof err->text), format, args);
        va_end(args);
    }
    return status;
}

cmoe_status cmoei_options_read(void *dst, size_t dst_size, const void *src, const char *what,
                               cmoe_error *err)
{
    size_t size;
    if (!src) return CMOE_OK;
    memcpy(&size, src, sizeof size);
    if (size < sizeof size || size > 65536)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "%s.size = %zu, want sizeof(%s), as its _default sets it", what, size,
                          what);
    for (size_t i = dst_size; i < size; i++) {
        if (((const char *)src)[i])
            return cmoei_fail(
                err, CMOE_ERR_UNSUPPORTED,
                "%s.size = %zu and byte %zu is set: made for a newer cmoe, this is %s "
                "with %zu bytes",
                what, size, i, cmoe_version(), dst_size);
    }
    memcpy(dst, src, CMOEI_MIN(size, dst_size));
    memcpy(dst, &dst_size, sizeof dst_size);
    return CMOE_OK;
}

void cmoei_options_write(void *dst, size_t dst_size, const void *src, size_t src_size)
{
    if (!dst || dst_size < sizeof(size_t)) return;
    memset(dst, 0, dst_size);
    memcpy(dst, src, CMOEI_MIN(dst_size, src_size));
    memcpy(dst, &dst_size, sizeof dst_size);
}

int32_t cmoei_name_find(const char *const *names, int32_t n, const char *name)
{
    for (int32_t i = 0; name && i < n; i++) {
        if (!strcmp(names[i], name)) return i;
    }
    return -1;
}

cmoe_status cmoei_check_flag(int32_t value, const char *name, cmoe_error *err)
{
    if (value == 0 || value == 1) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %d, want 0 or 1", name, value);
}

bool cmoei_mul(int64_t a, int64_t b, int64_t *out)
{
    if (a < 0 || b < 0 || (b != 0 && a > INT64_MAX / b)) return false;
    *out = a * b;
    return true;
}

bool cmoei_add(int64_t a, int64_t b, int64_t *out)
{
    if (a < 0 || b < 0 || a > INT64_MAX - b) return false;
    *out = a + b;
    return true;
}
