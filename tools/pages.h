/* SPDX-License-Identifier: MIT
 *
 * pages.h - the man page and the shells' completions, from the tables that --help comes from.
 */
#ifndef TOOLS_PAGES_H
#define TOOLS_PAGES_H

#include <stdio.h>

#include "options.h"

/* `verbs` ends in NULL. */
void pages_man(FILE *to, const option_verb *const *verbs, const char *version);

/* For `shell` "bash", "zsh" or "fish"; false when it is another one. */
bool pages_completion(FILE *to, const option_verb *const *verbs, const char *shell);

#endif
