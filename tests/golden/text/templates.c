/* SPDX-License-Identifier: MIT
 *
 * templates.c - rendered templates against what transformers and Jinja gave.
 *
 *     templates/cases.jsonl     conversations through the templates beside it
 *     expressions/cases.jsonl   hundreds of small sources; the first line holds their variables
 *
 * Where Python raised, rendering must fail; where it was the template that raised, or a value was not
 * what it should be, with the same words.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/text.h"

typedef struct tally {
    cmoe_ctx *ctx;
    int passed, failed;
} tally;

static char *read_all(const char *folder, const char *file, size_t *bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "rb");
    char *data = malloc(1 << 20);
    *bytes = f && data ? fread(data, 1, (1 << 20) - 1, f) : 0;
    if (f) fclose(f);
    if (data) data[*bytes] = '\0';
    return data;
}

/* The text, or NULL with the error. */
static char *render(tally *t, const char *source, size_t source_bytes, json_t *variables,
                    int64_t *bytes, cmoe_error *err)
{
    cmoe_template *template = NULL;
    char *text = NULL, *json = json_dumps(variables, JSON_COMPACT | JSON_REAL_PRECISION(17));
    *err = (cmoe_error){0};
    if (cmoe_template_parse(&template, t->ctx, source, (int64_t)source_bytes, "golden", err) ==
        CMOE_OK)
        cmoe_template_render(template, NULL, json, (int64_t)strlen(json), &text, bytes, err);
    cmoe_template_free(template);
    free(json);
    return text;
}

/* Errors that a user is meant to read keep Python's words. */
static bool same_error(const char *python, const char *ours)
{
    static const char *const kept[] = {
        "TemplateError: ", "UndefinedError: ", "TypeError: can only"};
    for (int i = 0; i < 3; i++)
        if (!strncmp(python, kept[i], strlen(kept[i]))) {
            const char *words = strstr(python, ": ") + 2;
            return strstr(ours, words) != NULL;
        }
    return strstr(ours, "template golden, line ") == ours;
}

static void check(tally *t, json_t *c, const char *source, size_t source_bytes, json_t *variables)
{
    cmoe_error err;
    int64_t bytes = 0;
    char *text = render(t, source, source_bytes, variables, &bytes, &err);
    json_t *want = json_object_get(c, "rendered");
    const char *raised = json_string_value(json_object_get(c, "error"));
    bool good = false;
    if (want)
        good = text && (size_t)bytes == json_string_length(want) &&
               !memcmp(text, json_string_value(want), (size_t)bytes);
    else
        good = !text && raised && same_error(raised, err.text);
    t->passed += good;
    t->failed += !good;
    if (!good)
        printf("%.*s\n  got  %.*s\n  want %s\n", (int)source_bytes, source,
               text ? (int)bytes : (int)strlen(err.text), text ? text : err.text,
               want ? json_string_value(want) : raised);
    cmoe_text_free(t->ctx, text, bytes);
}

/* One case of templates/: its fields are the variables, as apply_chat_template passes them. */
static void check_conversation(tally *t, const char *folder, json_t *c)
{
    char file[128];
    size_t bytes = 0;
    json_t *variables = json_object();
    snprintf(file, sizeof file, "%s.jinja", json_string_value(json_object_get(c, "template")));
    char *source = read_all(folder, file, &bytes);
    static const char *const names[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                        "eos_token"};
    for (int i = 0; i < 5; i++)
        json_object_set(variables, names[i], json_object_get(c, names[i]));
    json_object_set_new(variables, "documents", json_null());
    json_object_update(variables, json_object_get(c, "kwargs"));
    check(t, c, source, bytes, variables);
    json_decref(variables);
    free(source);
}

static void check_folder(tally *t, const char *root, const char *name, bool conversations)
{
    char folder[900];
    size_t bytes = 0;
    snprintf(folder, sizeof folder, "%s/%s", root, name);
    char *all = read_all(folder, "cases.jsonl", &bytes);
    json_t *variables = NULL;
    for (char *line = all, *end = NULL; line && (end = strchr(line, '\n')); line = end + 1) {
        json_t *c = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, NULL);
        json_t *source = json_object_get(c, "source");
        if (conversations)
            check_conversation(t, folder, c);
        else if (source)
            check(t, c, json_string_value(source), json_string_length(source), variables);
        else if (json_object_get(c, "variables"))
            variables = json_incref(json_object_get(c, "variables"));
        else
            t->failed++;
        json_decref(c);
    }
    json_decref(variables);
    free(all);
}

int main(int argc, char **argv)
{
    tally t = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    if (argc < 2 || cmoe_ctx_create(&t.ctx, &o, NULL) != CMOE_OK) return 1;
    check_folder(&t, argv[1], "templates", true);
    check_folder(&t, argv[1], "expressions", false);
    if (t.passed + t.failed < 1000) t.failed++; /* files are missing */
    cmoe_ctx_free(t.ctx);
    printf("templates: %d passed, %d failed\n", t.passed, t.failed);
    return t.failed != 0;
}
