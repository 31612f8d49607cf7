/* SPDX-License-Identifier: MIT
 *
 * tokenizer_json.c - see tokenizer_json.h.
 */
#include "tokenizer_json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

cmoei_place cmoei_place_at(const char *format, ...)
{
    cmoei_place p;
    va_list args;
    va_start(args, format);
    vsnprintf(p.text, sizeof p.text, format, args);
    va_end(args);
    return p;
}

cmoe_status cmoei_loader_fail(const cmoei_loader *l, cmoe_status status, const cmoei_place *at,
                              const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return cmoei_fail(l->err, status, "%s: %s%s%s", l->file, at->text, at->text[0] ? ": " : "",
                      text);
}

cmoei_shown_text cmoei_shown_name(const char *s, int64_t bytes)
{
    cmoei_shown_text shown;
    const int64_t most = (int64_t)sizeof shown.text - 4;
    int64_t n = CMOEI_MIN(bytes, most);
    if (n < bytes)
        while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
            n--;
    for (int64_t i = 0; i < n; i++)
        shown.text[i] = (unsigned char)s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i];
    memcpy(shown.text + n, n < bytes ? "..." : "", n < bytes ? 4 : 1);
    return shown;
}

static const char *kind_of(const json_t *v)
{
    static const char *const names[] = {"an object", "a list", "a text", "a whole number",
                                        "a number",  "true",   "false",  "null"};
    return v ? names[json_typeof(v)] : "not there";
}

cmoe_status cmoei_json_object(const cmoei_loader *l, const cmoei_place *at, const json_t *value,
                              const char *keys)
{
    if (!json_is_object(value))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "is %s, want an object", kind_of(value));
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)value, key, member)
    {
        const size_t n = strlen(key);
        const char *hit = keys;
        while ((hit = strstr(hit, key)) && n &&
               !((hit == keys || hit[-1] == ' ') && (hit[n] == 0 || hit[n] == ' ')))
            hit++;
        if (!hit || !n)
            return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at,
                                     "key \"%s\" not supported, want one of: %s",
                                     cmoei_shown_name(key, (int64_t)n).text, keys);
    }
    return CMOE_OK;
}

cmoe_status cmoei_json_flag(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *key, bool *out)
{
    const json_t *v = json_object_get(object, key);
    if (!v || json_is_null(v)) return CMOE_OK;
    if (!json_is_boolean(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "%s is %s, want true or false", key,
                                 kind_of(v));
    *out = json_is_true(v);
    return CMOE_OK;
}

cmoe_status cmoei_json_int(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                           const char *key, int64_t least, int64_t most, int64_t *out)
{
    const json_t *v = json_object_get(object, key);
    if (!v || json_is_null(v)) return CMOE_OK;
    if (!json_is_integer(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "%s is %s, want a whole number", key,
                                 kind_of(v));
    const int64_t value = json_integer_value(v);
    if (value < least || value > most)
        return cmoei_loader_fail(l, CMOE_ERR_RANGE, at, "%s = %lld, want %lld to %lld", key,
                                 (long long)value, (long long)least, (long long)most);
    *out = value;
    return CMOE_OK;
}

cmoe_status cmoei_json_copy(const cmoei_loader *l, const json_t *string, cmoei_text *out)
{
    const int64_t bytes = (int64_t)json_string_length(string);
    void *p;
    CMOEI_TRY(cmoei_text_alloc(&l->t->pool, bytes + 1, 1, &p, l->err));
    memcpy(p, json_string_value(string), (size_t)bytes);
    *out = (cmoei_text){p, bytes};
    return CMOE_OK;
}

cmoe_status cmoei_json_text(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *key, cmoei_text *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_string(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "%s is %s, want a text", key, kind_of(v));
    return cmoei_json_copy(l, v, out);
}

cmoe_status cmoei_json_array(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                             const char *key, const json_t **out)
{
    *out = json_object_get(object, key);
    if (!json_is_array(*out))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "%s is %s, want a list", key,
                                 kind_of(*out));
    return CMOE_OK;
}

cmoe_status cmoei_json_type(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *const *names, int32_t *out)
{
    if (!json_is_object(object))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "is %s, want an object", kind_of(object));
    const json_t *v = json_object_get(object, "type");
    if (!json_is_string(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "type is %s, want a text", kind_of(v));
    char list[200] = "";
    for (*out = 0; names[*out]; (*out)++) {
        if (strcmp(json_string_value(v), names[*out]) == 0) return CMOE_OK;
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, " %s", names[*out]);
    }
    return cmoei_loader_fail(
        l, CMOE_ERR_UNSUPPORTED, at, "type \"%s\" not supported, want one of:%s",
        cmoei_shown_name(json_string_value(v), (int64_t)json_string_length(v)).text, list);
}
