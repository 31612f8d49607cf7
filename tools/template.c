/* SPDX-License-Identifier: MIT
 *
 * template.c - chat templates for the verbs.
 */
#include "template.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "model.h"
#include "report.h"

int template_open(const tool_session *session, const char *model_path, const char *file,
                  cmoe_template **out)
{
    cmoe_error err = {.size = sizeof err};
    const char *path = file ? file : model_path;
    const cmoe_status status = cmoe_template_open(out, session->ctx, path, NULL, &err);
    const size_t used = strlen(err.text);
    if (status == CMOE_ERR_IO && !file && strstr(err.text, "no chat template"))
        snprintf(err.text + used, sizeof err.text - used, ", or --chat-template F");
    return model_fail(status, path, &err);
}

json_t *template_variables(const char *model_path, bool generation_prompt)
{
    char path[4096];
    const char *key;
    json_t *value;
    snprintf(path, sizeof path, "%s/tokenizer_config.json", model_path);
    struct stat st;
    const bool there = stat(path, &st) == 0 && S_ISREG(st.st_mode); /* a FIFO is not waited for */
    json_t *config = there ? json_load_file(path, 0, NULL) : NULL, *v = json_object();
    json_object_set_new(v, "add_generation_prompt", json_boolean(generation_prompt));
    /* "bos_token": a string, or an object that says how it is matched, too. */
    json_object_foreach(config, key, value)
    {
        const size_t n = strlen(key);
        if (n < 6 || strcmp(key + n - 6, "_token") != 0) continue;
        if (json_is_object(value)) value = json_object_get(value, "content");
        if (json_is_string(value)) json_object_set(v, key, value);
    }
    json_decref(config);
    return v;
}

int template_render(const tool_session *session, const cmoe_template *t, const char *what,
                    const json_t *variables, char **text, int64_t *bytes)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_render_options o;
    char *rendered = NULL, *given = json_dumps(variables, 0);
    *text = NULL;
    if (!given) return report_fail(EXIT_MEMORY, what, "no memory for the messages");
    cmoe_render_options_default(&o, sizeof o);
    o.now = (int64_t)time(NULL);
    const cmoe_status status =
        cmoe_template_render(t, &o, given, (int64_t)strlen(given), &rendered, bytes, &err);
    free(given);
    if (status != CMOE_OK) return model_fail(status, what, &err);
    *text = malloc((size_t)*bytes + 1);
    if (*text) {
        memcpy(*text, rendered, (size_t)*bytes);
        (*text)[*bytes] = '\0';
    }
    cmoe_text_free(session->ctx, rendered, *bytes);
    return *text ? 0 : report_fail(EXIT_MEMORY, what, "no memory for the text");
}
