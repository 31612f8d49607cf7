/* SPDX-License-Identifier: MIT
 *
 * template.h - chat templates for the verbs: messages in, the text that a model was taught to read out.
 */
#ifndef TOOLS_TEMPLATE_H
#define TOOLS_TEMPLATE_H

#include <jansson.h>

#include "cmoe/text.h"
#include "machine.h"

/* `file`: Jinja source that is taken instead of the model's own template; or NULL.  0, or 3. */
int template_open(const tool_session *session, const char *model_path, const char *file,
                  cmoe_template **out);

/* What templates see beside messages: the special tokens that tokenizer_config.json names. */
json_t *template_variables(const char *model_path, bool generation_prompt);

/* *text is freed by free().  0, or 3 after an error line. */
int template_render(const tool_session *session, const cmoe_template *t, const char *what,
                    const json_t *variables, char **text, int64_t *bytes);

#endif
