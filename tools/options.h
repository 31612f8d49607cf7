/* SPDX-License-Identifier: MIT
 *
 * options.h - the one table from which a verb's flags are parsed and its --help is written.
 *
 * A verb describes its flags once, as rows of option; each row says where in the verb's own struct
 * the value goes.  Defaults are texts and run through the same parser as what the user typed.
 */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum option_type {
    OPTION_FLAG, /* bool; takes no value */
    OPTION_INT,  /* int64_t */
    OPTION_INTS, /* option_ints, separated by commas */
    OPTION_LIST, /* option_list, likewise, of any length, or @FILE; the range is the verb's affair */
    OPTION_FLOAT,  /* double */
    OPTION_TEXT,   /* const char * */
    OPTION_TEXTS,  /* option_texts: the flag may be given several times */
    OPTION_CHOICE, /* const char *, one of `choices` */
} option_type;

enum { OPTION_INTS_MAX = 64 };
typedef struct option_ints {
    int64_t n, v[OPTION_INTS_MAX];
} option_ints;

enum { OPTION_TEXTS_MAX = 16 };
typedef struct option_texts {
    int64_t n;
    const char *v[OPTION_TEXTS_MAX];
} option_texts;

/* Of any length; v is the verb's, freed by free(). */
typedef struct option_list {
    int64_t n, *v;
} option_list;

typedef struct option {
    const char *name;     /* without the dashes; of a positional argument, "MODEL" */
    const char *argument; /* what stands for the value in --help; NULL for a flag */
    option_type type;
    size_t offset;       /* of the field in the verb's struct */
    const char *initial; /* default, as the user would type it; NULL: zero, nothing to show */
    double least, most;  /* range of INT, INTS (each) and FLOAT */
    const char *const *choices; /* ends in NULL */
    const char *const *later;   /* known words that this version refuses; ends in NULL; or NULL */
    size_t given;               /* of a bool that becomes true when the flag is there; 0: none */
    bool required;
    bool positional;   /* TEXT only: given without a flag, in the order of the table */
    const char *group; /* heading in --help; NULL: the verb's own */
    const char *help;
} option;

/* The flags that every verb has; put OPTIONS_COMMON(struct) at the end of its table, and a field
 * `common_options common` into its struct. */
typedef struct common_options {
    bool help, json, quiet; /* help: main.c answers it before the verb is called */
    int64_t threads;
    const char *device, *isa, *comm;
} common_options;

extern const char *const option_devices[], *const option_isas[], *const option_comms[];

#define OPTIONS_COMMON(owner)                                                               \
    {.name = "threads",                                                                     \
     .group = "Every verb",                                                                 \
     .argument = "N",                                                                       \
     .type = OPTION_INT,                                                                    \
     .initial = "0",                                                                        \
     .offset = offsetof(owner, common.threads),                                             \
     .most = 4096,                                                                          \
     .help = "threads to work with; 0: one for every CPU this process may use"},            \
        {.name = "isa",                                                                     \
         .group = "Every verb",                                                             \
         .argument = "LEVEL",                                                               \
         .type = OPTION_CHOICE,                                                             \
         .choices = option_isas,                                                            \
         .offset = offsetof(owner, common.isa),                                             \
         .help = "use no newer instructions than these; without it, the best of this CPU"}, \
        {.name = "device",                                                                  \
         .group = "Every verb",                                                             \
         .argument = "NAME",                                                                \
         .type = OPTION_CHOICE,                                                             \
         .choices = option_devices,                                                         \
         .offset = offsetof(owner, common.device),                                          \
         .initial = "cpu",                                                                  \
         .help = "where to compute"},                                                       \
        {.name = "comm",                                                                    \
         .group = "Every verb",                                                             \
         .argument = "NAME",                                                                \
         .type = OPTION_CHOICE,                                                             \
         .choices = option_comms,                                                           \
         .offset = offsetof(owner, common.comm),                                            \
         .initial = "auto",                                                                 \
         .help = "how ranks talk; this version knows one rank, itself"},                    \
        {.name = "json",                                                                    \
         .group = "Every verb",                                                             \
         .type = OPTION_FLAG,                                                               \
         .offset = offsetof(owner, common.json),                                            \
         .help = "print one JSON object on stdout, and nothing else"},                      \
        {.name = "quiet",                                                                   \
         .group = "Every verb",                                                             \
         .type = OPTION_FLAG,                                                               \
         .offset = offsetof(owner, common.quiet),                                           \
         .help = "no progress on stderr"},                                                  \
        {.name = "help",                                                                    \
         .group = "Every verb",                                                             \
         .type = OPTION_FLAG,                                                               \
         .offset = offsetof(owner, common.help),                                            \
         .help = "show this text"},                                                         \
    {                                                                                       \
        .name = NULL                                                                        \
    }

/* Everything that --help says about a verb. */
typedef struct option_verb {
    const char *name;     /* "bench layer" */
    const char *group;    /* heading in the program's help */
    const char *summary;  /* one line, no full stop */
    const char *examples; /* lines, each ending in a newline */
    const char *text;     /* paragraphs behind the flags; may be NULL */
    const option *options;
} option_verb;

/* Fills the zeroed struct `values` from argv.  0, or 2 (4: no memory) after saying on stderr what was
 * wrong. */
int options_parse(const option_verb *verb, int argc, char **argv, void *values);

void options_help(const option_verb *verb, FILE *to);

/* Help, range and default of an option, in one line. */
void options_about(const option *o, char *text, size_t size);

/* All flags, group by group, the verb's own first. */
void options_each(const option_verb *verb, FILE *to, void (*begin)(FILE *to, const char *group),
                  void (*show)(FILE *to, const option *o));

/* `text` in words, lines of at most 80 columns, each after `indent` blanks; the first one continues
 * a line that has `column` characters already. */
void options_wrap(FILE *to, const char *text, int indent, int column);

/* The name nearest to `text`, or NULL when none is near.  `names` ends in NULL. */
const char *options_nearest(const char *text, const char *const *names);

#endif
