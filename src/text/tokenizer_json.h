/* SPDX-License-Identifier: MIT
 *
 * tokenizer_json.h - typed reading of tokenizer.json; every text says where in the file.
 */
#ifndef CMOE_TEXT_TOKENIZER_JSON_H
#define CMOE_TEXT_TOKENIZER_JSON_H

#include <jansson.h>

#include "tokenizer.h"

typedef struct cmoei_loader {
    cmoe_tokenizer *t;
    cmoe_error *err;
    const char *file;  /* for texts */
    uint8_t *in_model; /* [names.size] 1: in the vocabulary, not only added */
} cmoei_loader;

/* A place in the file: "pre_tokenizer.pretokenizers[1]". */
typedef struct cmoei_place {
    char text[120];
} cmoei_place;
cmoei_place cmoei_place_at(const char *format, ...) CMOEI_PRINTF(1, 2);

cmoe_status cmoei_loader_fail(const cmoei_loader *l, cmoe_status status, const cmoei_place *at,
                              const char *format, ...) CMOEI_PRINTF(4, 5);

/* A name from the file as texts show it: cut, without control characters. */
typedef struct cmoei_shown_text {
    char text[52];
} cmoei_shown_text;
cmoei_shown_text cmoei_shown_name(const char *s, int64_t bytes);

/* The value must be an object without other keys than these ("a b c"). */
cmoe_status cmoei_json_object(const cmoei_loader *l, const cmoei_place *at, const json_t *value,
                              const char *keys);
/* Keys that are absent or null leave *out as it is. */
cmoe_status cmoei_json_flag(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *key, bool *out);
cmoe_status cmoei_json_int(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                           const char *key, int64_t least, int64_t most, int64_t *out);
/* Required; copied to the pool. */
cmoe_status cmoei_json_text(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *key, cmoei_text *out);
cmoe_status cmoei_json_array(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                             const char *key, const json_t **out);
/* The object's "type" as an index into `names`, which end with NULL; error: "want one of: ...". */
cmoe_status cmoei_json_type(const cmoei_loader *l, const cmoei_place *at, const json_t *object,
                            const char *const *names, int32_t *out);
cmoe_status cmoei_json_copy(const cmoei_loader *l, const json_t *string, cmoei_text *out);

/* tokenizer_steps.c */
cmoe_status cmoei_load_normalizers(cmoei_loader *l, const json_t *value);
cmoe_status cmoei_load_pres(cmoei_loader *l, const json_t *value);
cmoe_status cmoei_load_decoders(cmoei_loader *l, const json_t *value);
cmoe_status cmoei_load_post(cmoei_loader *l, const json_t *value);
/* tokenizer_model.c; names and added tokens first, then the rest of the model. */
cmoe_status cmoei_load_names(cmoei_loader *l, const json_t *model, const json_t *added);
cmoe_status cmoei_load_model(cmoei_loader *l, const json_t *model);
cmoe_status cmoei_load_trees(cmoei_loader *l);

#endif
