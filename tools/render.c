/* SPDX-License-Identifier: MIT
 *
 * render.c - `cmoe render`: messages through a model's chat template.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "report.h"
#include "template.h"
#include "verbs.h"

typedef struct render_options {
    const char *path, *messages, *tools, *chat_template;
    bool no_generation_prompt;
    common_options common;
} render_options;

#define AT(field) offsetof(render_options, field)

static const option options[] = {
    {.name = "MODEL",
     .argument = "a directory with a chat template",
     .type = OPTION_TEXT,
     .offset = AT(path),
     .required = true,
     .positional = true,
     .help = "directory with chat_template.jinja, or tokenizer_config.json that holds one"},
    {.name = "messages",
     .argument = "F.json",
     .type = OPTION_TEXT,
     .offset = AT(messages),
     .required = true,
     .help = "a list of {\"role\": ..., \"content\": ...}; or an object of all that the template "
             "sees, with such a list in \"messages\" (-: stdin)"},
    {.name = "tools",
     .argument = "F.json",
     .type = OPTION_TEXT,
     .offset = AT(tools),
     .help = "a list of tools, as the template wants them"},
    {.name = "chat-template",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(chat_template),
     .help = "a file with Jinja source, instead of the model's own template"},
    {.name = "no-generation-prompt",
     .type = OPTION_FLAG,
     .offset = AT(no_generation_prompt),
     .help = "end behind the last message, not where the answer begins"},
    OPTIONS_COMMON(render_options),
};

const option_verb render_verb = {
    .name = "render",
    .group = "Text",
    .summary = "messages as the model's chat template writes them",
    .examples = "  cmoe render MODEL --messages chat.json\n"
                "  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | cmoe render MODEL \\\n"
                "                                                    --messages -\n",
    .text = "Prints the text and nothing else; --json: {\"text\":\"...\"}. Templates run in a "
            "sandbox with bounded depth, steps and output. Exit status 3 when template or messages "
            "are not what they should be, with the line.",
    .options = options,
};

enum { FLAGS = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY };

/* A JSON file of type `type`, or of `other`; NULL after an error line. */
static json_t *load(const char *path, json_type type, json_type other, const char *want)
{
    json_error_t why;
    json_t *j =
        strcmp(path, "-") ? json_load_file(path, FLAGS, &why) : json_loadf(stdin, FLAGS, &why);
    if (!j && why.line > 0)
        report_fail(EXIT_FILE, path, "line %d: %s", why.line, why.text);
    else if (!j)
        report_fail(EXIT_FILE, path, "%s", why.text);
    if (!j || json_typeof(j) == type || json_typeof(j) == other) return j;
    report_fail(EXIT_FILE, path, "is not %s", want);
    json_decref(j);
    return NULL;
}

/* Everything that the template sees; NULL after an error line. */
static json_t *variables_of(const render_options *o)
{
    json_t *v = template_variables(o->path, !o->no_generation_prompt), *tools = NULL;
    json_t *given = load(o->messages, JSON_ARRAY, JSON_OBJECT, "a list of messages");
    if (given && o->tools) tools = load(o->tools, JSON_ARRAY, JSON_ARRAY, "a list of tools");
    bool good = v && given && (tools || !o->tools);
    if (good && json_is_array(given)) json_object_set(v, "messages", given);
    if (good && json_is_object(given)) json_object_update(v, given);
    if (tools) json_object_set(v, "tools", tools);
    if (good && !json_is_array(json_object_get(v, "messages"))) {
        report_fail(EXIT_FILE, o->messages, "has no list \"messages\"");
        good = false;
    }
    json_decref(given);
    json_decref(tools);
    if (good) return v;
    json_decref(v);
    return NULL;
}

static int render(const render_options *o, const tool_session *session)
{
    cmoe_template *t = NULL;
    char *text = NULL;
    int64_t bytes = 0;
    report r;
    json_t *variables = NULL;
    int status = template_open(session, o->path, o->chat_template, &t);
    if (status == 0 && !(variables = variables_of(o))) status = EXIT_FILE;
    if (status == 0)
        status = template_render(session, t, o->chat_template ? o->chat_template : o->path,
                                 variables, &text, &bytes);
    if (status == 0 && o->common.json) {
        status = report_json(json_pack("{so}", "text", json_stringn(text, (size_t)bytes)));
    } else if (status == 0) {
        status = report_begin(&r);
        if (status == 0) {
            fwrite(text, 1, (size_t)bytes, r.to);
            status = report_end(&r, 0);
        }
    }
    free(text);
    json_decref(variables);
    cmoe_template_free(t);
    return status;
}

int render_main(int argc, char **argv)
{
    render_options o = {0};
    tool_session session = {0};
    int status = options_parse(&render_verb, argc, argv, &o);
    if (status == 0) status = session_open(&session, &o.common);
    if (status == 0) status = render(&o, &session);
    session_close(&session);
    return status;
}
