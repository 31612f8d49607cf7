/* SPDX-License-Identifier: MIT
 *
 * template.h - what others of the engine ask a template.
 */
#ifndef CMOE_TEXT_TEMPLATE_H
#define CMOE_TEXT_TEMPLATE_H

#include "cmoe/text.h"

/* Where rendered text comes from and goes back to. */
cmoe_ctx *cmoei_template_ctx(const cmoe_template *t);

#endif
