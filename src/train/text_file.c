/* SPDX-License-Identifier: MIT
 *
 * text_file.c - see text_file.h.
 *
 * Text is read, not mapped: it is checked once and then trusted, and a mapping changes with its file.
 */
#include "text_file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "text/unicode.h"

enum { CHARACTER = 4 }; /* most bytes of one */

static int64_t place(double part, int64_t n)
{
    return part >= 1 ? n : (int64_t)(part * (double)n);
}

/* The first place at or behind `at` of n bytes where a character begins; in what is no UTF-8, `at` or
 * close to it. */
static cmoe_status character_at(int fd, const char *shown, int64_t at, int64_t n, int64_t *out,
                                cmoe_error *err)
{
    char next[CHARACTER];
    const int64_t room = CMOEI_MIN(n - at, CHARACTER - 1);
    int64_t k = 0;
    *out = at;
    if (at == 0) return CMOE_OK;
    CMOEI_TRY(cmoei_file_read(fd, shown, next, room, at, err));
    while (k < room && ((unsigned char)next[k] & 0xc0) == 0x80)
        k++;
    *out = at + k;
    return CMOE_OK;
}

static cmoe_status read_bytes(cmoei_text_file *f, cmoe_ctx *ctx, int fd, int64_t begin, int64_t end,
                              cmoe_error *err)
{
    f->memory_bytes = end - begin;
    f->begin = begin;
    CMOEI_TRY(cmoei_alloc(ctx, CMOEI_MAX(f->memory_bytes, 1), "text", (void **)&f->memory, err));
    f->text = f->memory;
    f->bytes = f->memory_bytes;
    return cmoei_file_read(fd, f->shown.text, f->memory, f->bytes, begin, err);
}

/* Bytes before line i, i at most the number of lines. */
static int64_t line_at(const char *text, int64_t bytes, int64_t i)
{
    int64_t at = 0;
    for (; i > 0 && at < bytes; i--) {
        const char *end = memchr(text + at, '\n', (size_t)(bytes - at));
        at = end ? end - text + 1 : bytes;
    }
    return at;
}

static void cut_lines(cmoei_text_file *f, double from, double to)
{
    int64_t lines = 0;
    for (int64_t at = 0; at < f->bytes; lines++)
        at += line_at(f->text + at, f->bytes - at, 1);
    const int64_t first = place(from, lines), last = place(to, lines);
    const int64_t begin = line_at(f->text, f->bytes, first);
    const int64_t bytes = line_at(f->text + begin, f->bytes - begin, last - first);
    f->text += begin;
    f->bytes = bytes;
    f->begin = first + 1;
}

static cmoe_status read_part(cmoei_text_file *f, cmoe_ctx *ctx, int fd, int64_t n, double from,
                             double to, cmoe_error *err)
{
    int64_t begin = 0, end = n;
    if (!f->lines) {
        CMOEI_TRY(character_at(fd, f->shown.text, place(from, n), n, &begin, err));
        CMOEI_TRY(character_at(fd, f->shown.text, place(to, n), n, &end, err));
    }
    CMOEI_TRY(read_bytes(f, ctx, fd, begin, end, err));
    if (f->lines) cut_lines(f, from, to);
    return CMOE_OK;
}

cmoe_status cmoei_text_file_open(cmoei_text_file *f, cmoe_ctx *ctx, const char *path, double from,
                                 double to, cmoe_error *err)
{
    int fd;
    int64_t n;
    const size_t length = strlen(path);
    if (!(from >= 0 && from < to && to <= 1))
        return cmoei_fail(err, CMOE_ERR_RANGE, "from = %g, to = %g, want 0 <= from < to <= 1", from,
                          to);
    *f = (cmoei_text_file){.shown = cmoei_path_shown(path),
                           .lines = length >= 6 && !strcmp(path + length - 6, ".jsonl")};
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, path, f->shown.text, "", &fd, &n, err));
    const cmoe_status status = read_part(f, ctx, fd, n, from, to, err);
    (void)close(fd);
    if (status != CMOE_OK) cmoei_text_file_close(f, ctx);
    return status;
}

void cmoei_text_file_close(cmoei_text_file *f, cmoe_ctx *ctx)
{
    if (f->memory) cmoei_free(ctx, f->memory, CMOEI_MAX(f->memory_bytes, 1));
    f->memory = NULL;
}

cmoe_status cmoei_text_file_check(const cmoei_text_file *f, cmoe_error *err)
{
    const int64_t bad = cmoei_utf8_check(f->text, f->bytes);
    if (bad < 0) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: byte %" PRId64 " (0x%02x) is no UTF-8",
                      f->shown.text, f->begin + bad, (unsigned)(unsigned char)f->text[bad]);
}

bool cmoei_text_file_line(const cmoei_text_file *f, int64_t *at, const char **line, int64_t *bytes)
{
    if (*at >= f->bytes) return false;
    const int64_t next = *at + line_at(f->text + *at, f->bytes - *at, 1);
    *line = f->text + *at;
    *bytes = next - *at - (f->text[next - 1] == '\n');
    *at = next;
    return true;
}
