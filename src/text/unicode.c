/* SPDX-License-Identifier: MIT
 *
 * unicode.c - see unicode.h.
 *
 * What a pattern calls a letter is not left to PCRE2, whose version of Unicode is the one of the
 * distribution: classes become sets of our own, made from one table of categories.
 */
#include "unicode.h"

#include <string.h>

#include <utf8proc.h>

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

int32_t cmoei_utf8_scan(const char *s, int64_t bytes, bool *whole)
{
    *whole = true;
    if (bytes <= 0) return 0;
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return -2;
    const int32_t want = cmoei_utf8_bytes(s[0]);
    /* Only the second byte has limits of its own: no overlong forms, no surrogates, no end beyond
     * U+10FFFF. */
    const unsigned low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    for (int32_t i = 1; i < want; i++) {
        if (i >= bytes) return *whole = false, i;
        if (p[i] < (i == 1 ? low : 0x80) || p[i] > (i == 1 ? high : 0xbf)) return -1 - i;
    }
    return want;
}

int64_t cmoei_utf8_check(const char *text, int64_t bytes)
{
    int64_t at = 0;
    while (at < bytes) {
        while (at + 8 <= bytes) { /* eight at a time while they are ASCII */
            uint64_t word;
            memcpy(&word, text + at, 8);
            if (word & 0x8080808080808080u) break;
            at += 8;
        }
        if (at >= bytes) break;
        bool whole;
        const int32_t n = cmoei_utf8_scan(text + at, bytes - at, &whole);
        if (n < 0 || !whole) return at;
        at += n;
    }
    return -1;
}

int32_t cmoei_utf8_put(char out[4], uint32_t c)
{
    if (c < 0x80) return out[0] = (char)c, 1;
    const int32_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    const uint32_t lead[] = {0xc0, 0xe0, 0xf0};
    for (int32_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n - 2] | c);
    return n;
}

/* ---- single code points ------------------------------------------------------------------------ */

/* The last entry whose first code point is not above c. */
static int64_t run_of(uint32_t c)
{
    int64_t low = 0, high = cmoei_unicode_run_count;
    while (high - low > 1) {
        const int64_t mid = low + (high - low) / 2;
        if (cmoei_unicode_runs[mid] >> 8 <= c)
            low = mid;
        else
            high = mid;
    }
    return low;
}

static uint32_t run_end(int64_t i)
{
    return i + 1 < cmoei_unicode_run_count ? cmoei_unicode_runs[i + 1] >> 8 : CMOEI_CODE_POINTS;
}

int32_t cmoei_unicode_category(uint32_t c)
{
    return (int32_t)(cmoei_unicode_runs[run_of(c)] & 0xff);
}

typedef struct range {
    uint32_t first, last;
} range;

static bool in(const range *r, int64_t n, uint32_t c)
{
    for (int64_t i = 0; i < n; i++)
        if (c >= r[i].first && c <= r[i].last) return true;
    return false;
}

static const range spaces[] = {
    {0x9, 0xd},       {0x20, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
    {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};

bool cmoei_unicode_is_space(uint32_t c)
{
    return c < 0x80 ? c == 0x20 || (c >= 9 && c <= 13) : in(spaces, CMOEI_COUNT(spaces), c);
}

/* Rust's standard library is one version of Unicode ahead. */
static const range newer_numbers[] = {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}};

bool cmoei_unicode_is_number(uint32_t c)
{
    if (c < 0x80) return c >= '0' && c <= '9';
    const int32_t k = cmoei_unicode_category(c);
    return (k >= CMOEI_CAT_ND && k <= CMOEI_CAT_NO) ||
           in(newer_numbers, CMOEI_COUNT(newer_numbers), c);
}

/* Alphabetic, but neither letter nor mark. */
static const range alphabetic[] = {
    {0x16ee, 0x16f0},   {0x2160, 0x2182},   {0x2185, 0x2188},   {0x24b6, 0x24e9},
    {0x3007, 0x3007},   {0x3021, 0x3029},   {0x3038, 0x303a},   {0xa6e6, 0xa6ef},
    {0x10140, 0x10174}, {0x10341, 0x10341}, {0x1034a, 0x1034a}, {0x103d1, 0x103d5},
    {0x12400, 0x1246e}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189}};

/* What Oniguruma's \w has beside that: superscripts and fractions of Latin-1. */
static const range latin_numbers[] = {{0xb2, 0xb3}, {0xb9, 0xb9}, {0xbc, 0xbe}};

static bool is_word_category(int32_t k)
{
    return (k >= CMOEI_CAT_LU && k <= CMOEI_CAT_ND) || k == CMOEI_CAT_PC;
}

bool cmoei_unicode_is_word(uint32_t c)
{
    return is_word_category(cmoei_unicode_category(c)) || c == 0x200c || c == 0x200d ||
           in(alphabetic, CMOEI_COUNT(alphabetic), c);
}

/* ---- sets ---------------------------------------------------------------------------------------- */

void cmoei_charset_free(cmoei_charset *s)
{
    cmoei_free(s->ctx, s->range, s->capacity * 8);
    *s = (cmoei_charset){.ctx = s->ctx};
}

static cmoe_status charset_reserve(cmoei_charset *s, int64_t count, cmoe_error *err)
{
    if (count <= s->capacity) return CMOE_OK;
    const int64_t capacity = CMOEI_MAX(count, CMOEI_MAX(16, 2 * s->capacity));
    void *p;
    CMOEI_TRY(cmoei_alloc(s->ctx, capacity * 8, "set of characters", &p, err));
    if (s->count) memcpy(p, s->range, (size_t)s->count * 8);
    cmoei_free(s->ctx, s->range, s->capacity * 8);
    s->range = p;
    s->capacity = capacity;
    return CMOE_OK;
}

/* The first range that does not end before c. */
static int64_t range_at(const cmoei_charset *s, uint32_t c)
{
    int64_t low = 0, high = s->count;
    while (low < high) {
        const int64_t mid = low + (high - low) / 2;
        if (s->range[2 * mid + 1] < c)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

cmoe_status cmoei_charset_add(cmoei_charset *s, uint32_t first, uint32_t last, cmoe_error *err)
{
    /* The first range that could touch the new one; most come in ascending order. */
    int64_t i = s->count;
    if (i && s->range[2 * i - 1] + 1 >= first) i = range_at(s, first ? first - 1 : 0);
    int64_t j = i; /* behind the last one that does */
    for (; j < s->count && s->range[2 * j] <= last + 1; j++) {
        first = CMOEI_MIN(first, s->range[2 * j]);
        last = CMOEI_MAX(last, s->range[2 * j + 1]);
    }
    CMOEI_TRY(charset_reserve(s, s->count + 1, err));
    if (j != i + 1 && j < s->count)
        memmove(s->range + 2 * (i + 1), s->range + 2 * j, (size_t)(s->count - j) * 8);
    s->count += i + 1 - j;
    s->range[2 * i] = first;
    s->range[2 * i + 1] = last;
    return CMOE_OK;
}

/* One walk through both: put in range by range, each would move what lies behind it. */
cmoe_status cmoei_charset_union(cmoei_charset *s, const cmoei_charset *other, cmoe_error *err)
{
    cmoei_charset out = {.ctx = s->ctx};
    if (!other->count) return CMOE_OK;
    CMOEI_TRY(charset_reserve(&out, s->count + other->count, err));
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0, j = 0; (i < s->count || j < other->count) && status == CMOE_OK;) {
        const bool mine =
            j == other->count || (i < s->count && s->range[2 * i] < other->range[2 * j]);
        const uint32_t *r = mine ? s->range + 2 * i++ : other->range + 2 * j++;
        status = cmoei_charset_add(&out, r[0], r[1], err);
    }
    cmoei_charset_free(s);
    *s = out;
    return status;
}

cmoe_status cmoei_charset_invert(cmoei_charset *s, cmoe_error *err)
{
    cmoei_charset out = {.ctx = s->ctx};
    uint32_t next = 0;
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < s->count && status == CMOE_OK; i++) {
        if (s->range[2 * i] > next)
            status = cmoei_charset_add(&out, next, s->range[2 * i] - 1, err);
        next = s->range[2 * i + 1] + 1;
    }
    if (status == CMOE_OK && next < CMOEI_CODE_POINTS)
        status = cmoei_charset_add(&out, next, CMOEI_CODE_POINTS - 1, err);
    if (status != CMOE_OK) {
        cmoei_charset_free(&out);
        return status;
    }
    cmoei_charset_free(s);
    *s = out;
    return CMOE_OK;
}

bool cmoei_charset_has(const cmoei_charset *s, uint32_t c)
{
    const int64_t i = range_at(s, c);
    return i < s->count && s->range[2 * i] <= c;
}

/* first..last is in s already; the other case is mostly in there. */
static cmoe_status fold_one(cmoei_charset *s, uint32_t c, uint32_t first, uint32_t last,
                            cmoe_error *err)
{
    /* Two letters of ASCII have a partner outside of it: the long s and the Kelvin sign. */
    const uint32_t upper = (uint32_t)utf8proc_toupper((int32_t)c);
    const uint32_t other[] = {upper, (uint32_t)utf8proc_tolower((int32_t)c),
                              (uint32_t)utf8proc_tolower((int32_t)upper),
                              upper == 'S'   ? 0x17f
                              : upper == 'K' ? 0x212a
                                             : c};
    for (int64_t i = 0; i < CMOEI_COUNT(other); i++)
        if ((other[i] < first || other[i] > last) && other[i] < CMOEI_CODE_POINTS &&
            !cmoei_charset_has(s, other[i]))
            CMOEI_TRY(cmoei_charset_add(s, other[i], other[i], err));
    return CMOE_OK;
}

/* Only in these categories does anything have a case. */
enum {
    CASED = 1u << CMOEI_CAT_LU | 1u << CMOEI_CAT_LL | 1u << CMOEI_CAT_LT | 1u << CMOEI_CAT_MN |
            1u << CMOEI_CAT_NL | 1u << CMOEI_CAT_SO
};

static cmoe_status fold_range(cmoei_charset *s, uint32_t first, uint32_t last, cmoe_error *err)
{
    uint32_t c = first;
    for (int64_t k = run_of(first); c <= last; k++) {
        const uint32_t end = CMOEI_MIN(run_end(k), last + 1);
        const bool cased = (unsigned)CASED >> (cmoei_unicode_runs[k] & 0xff) & 1;
        for (; cased && c < end; c++)
            CMOEI_TRY(fold_one(s, c, first, last, err));
        c = end;
    }
    return CMOE_OK;
}

cmoe_status cmoei_charset_fold(cmoei_charset *s, cmoe_error *err)
{
    cmoei_charset before = {.ctx = s->ctx};
    cmoe_status status = cmoei_charset_union(&before, s, err);
    for (int64_t i = 0; i < before.count && status == CMOE_OK; i++)
        status = fold_range(s, before.range[2 * i], before.range[2 * i + 1], err);
    cmoei_charset_free(&before);
    return status;
}

static cmoe_status add_ranges(cmoei_charset *s, const range *r, int64_t n, cmoe_error *err)
{
    for (int64_t i = 0; i < n; i++)
        CMOEI_TRY(cmoei_charset_add(s, r[i].first, r[i].last, err));
    return CMOE_OK;
}

/* Every category k with wanted >> k & 1. */
static cmoe_status add_categories(cmoei_charset *s, uint32_t wanted, cmoe_error *err)
{
    for (int64_t i = 0; i < cmoei_unicode_run_count; i++) {
        if (!(wanted >> (cmoei_unicode_runs[i] & 0xff) & 1)) continue;
        CMOEI_TRY(cmoei_charset_add(s, cmoei_unicode_runs[i] >> 8, run_end(i) - 1, err));
    }
    return CMOE_OK;
}

cmoe_status cmoei_charset_escape(cmoei_charset *s, char letter, cmoe_error *err)
{
    static const range hex[] = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
    switch (letter) {
    case 's':
        return add_ranges(s, spaces, CMOEI_COUNT(spaces), err);
    case 'd':
        return add_categories(s, 1u << CMOEI_CAT_ND, err);
    case 'h':
        return add_ranges(s, hex, CMOEI_COUNT(hex), err);
    default: { /* w */
        uint32_t wanted = 0;
        for (int32_t k = 0; k < CMOEI_CATS; k++)
            wanted |= (uint32_t)is_word_category(k) << k;
        CMOEI_TRY(add_categories(s, wanted, err));
        CMOEI_TRY(add_ranges(s, alphabetic, CMOEI_COUNT(alphabetic), err));
        return add_ranges(s, latin_numbers, CMOEI_COUNT(latin_numbers), err);
    }
    }
}

cmoe_status cmoei_charset_property(cmoei_charset *s, const char *name, int64_t bytes, bool *known,
                                   cmoe_error *err)
{
    static const char names[CMOEI_CATS][3] = {
        "Cn", "Cc", "Cf", "Co", "Cs", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
        "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp"};
    uint32_t wanted = 0;
    for (int32_t k = 0; k < CMOEI_CATS; k++)
        if ((bytes == 1 || bytes == 2) && memcmp(name, names[k], (size_t)bytes) == 0)
            wanted |= 1u << k;
    *known = wanted != 0;
    return add_categories(s, wanted, err);
}

/* ---- memory that grows --------------------------------------------------------------------------- */

cmoe_status cmoei_buffer_reserve(cmoei_buffer *b, int64_t more, cmoe_error *err)
{
    int64_t want;
    if (!cmoei_add(b->bytes, more, &want))
        return cmoei_fail(err, CMOE_ERR_MEMORY, "text: more than 2^63 - 1 bytes");
    if (want <= b->capacity) return CMOE_OK;
    const int64_t capacity = CMOEI_MAX(CMOEI_MAX(want, 256), b->capacity + b->capacity / 2);
    void *p;
    CMOEI_TRY(cmoei_alloc(b->ctx, capacity, "text", &p, err));
    if (b->bytes) memcpy(p, b->data, (size_t)b->bytes);
    cmoei_free(b->ctx, b->data, b->capacity);
    b->data = p;
    b->capacity = capacity;
    return CMOE_OK;
}

cmoe_status cmoei_buffer_add(cmoei_buffer *b, const void *data, int64_t bytes, cmoe_error *err)
{
    CMOEI_TRY(cmoei_buffer_reserve(b, bytes, err));
    if (bytes) memcpy(b->data + b->bytes, data, (size_t)bytes);
    b->bytes += bytes;
    return CMOE_OK;
}

void cmoei_buffer_free(cmoei_buffer *b)
{
    cmoei_free(b->ctx, b->data, b->capacity);
    *b = (cmoei_buffer){.ctx = b->ctx};
}
