/* SPDX-License-Identifier: MIT
 *
 * match.c - patterns of tensor names: {l} a layer, {e} an expert, {*} anything.
 *
 * Numbers must be written as they are counted, without leading zeros: "layers.01" would otherwise be
 * a second name of layer 1.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "resolve.h"

/* Digits at *s, and moves behind them; -1: there is no such number. */
static int64_t number(const char **s)
{
    enum { MOST_DIGITS = 9 };
    const char *p = *s;
    int64_t n = 0;
    while (*p >= '0' && *p <= '9' && p - *s < MOST_DIGITS)
        n = n * 10 + (*p++ - '0');
    if (p == *s || (**s == '0' && p - *s > 1) || (*p >= '0' && *p <= '9')) return -1;
    *s = p;
    return n;
}

static bool fits(const char *pattern, const char *s, cmoei_match *m)
{
    for (const char *p = pattern; *p;) {
        if (*p != '{') {
            if (*p++ != *s++) return false;
            continue;
        }
        const char kind = p[1];
        p += 3; /* one letter in braces */
        if (kind == '*') {
            if (*p == '\0') return *s != '\0';
            for (; *s; s++)
                if (*s == *p && fits(p, s, m)) return true;
            return false;
        }
        const int64_t n = number(&s);
        if (n < 0) return false;
        *(kind == 'l' ? &m->layer : &m->expert) = n;
    }
    return *s == '\0';
}

bool cmoei_match_name(const cmoei_decoder *d, const char *name, cmoei_match *m)
{
    for (const cmoei_tensor_name *const *list = d->arch->names; *list; list++) {
        for (const cmoei_tensor_name *n = *list; n->pattern; n++) {
            *m = (cmoei_match){.role = n->role, .how = n->how, .layer = -1, .expert = -1};
            if (!fits(n->pattern, name, m)) continue;
            const bool behind = m->layer >= d->layers;
            /* An ignored name with a layer is meant for those behind the last. */
            if (n->role == CMOEI_IGNORED && m->layer >= 0 && !behind) continue;
            if (behind) m->role = CMOEI_IGNORED;
            return true;
        }
    }
    return false;
}

bool cmoei_match_in(const cmoei_tensor_name *list, const char *name, cmoei_match *m)
{
    for (const cmoei_tensor_name *n = list; n->pattern; n++) {
        *m = (cmoei_match){.role = n->role, .how = n->how, .layer = -1, .expert = -1};
        if (fits(n->pattern, name, m)) return true;
    }
    return false;
}

static void fill(const char *pattern, const cmoei_match *m, char name[CMOEI_NAME])
{
    size_t used = 0;
    for (const char *p = pattern; *p && used + 24 < CMOEI_NAME;) {
        if (*p != '{') {
            name[used++] = *p++;
            continue;
        }
        used += (size_t)snprintf(name + used, CMOEI_NAME - used, "%" PRId64,
                                 p[1] == 'l' ? m->layer : m->expert);
        p += 3;
    }
    name[used] = '\0';
}

bool cmoei_match_fill(const cmoei_decoder *d, const cmoei_match *m, char name[CMOEI_NAME])
{
    for (const cmoei_tensor_name *const *list = d->arch->names; *list; list++)
        for (const cmoei_tensor_name *n = *list; n->pattern; n++)
            if (n->role == m->role && !(n->how & CMOEI_SCALES)) {
                fill(n->pattern, m, name);
                return true;
            }
    return false;
}
