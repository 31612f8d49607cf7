/* SPDX-License-Identifier: MIT
 *
 * main.c - the cmoe program: which verb is meant, help, version.
 *
 * Errors go to stderr as "cmoe: <what>: <why>", stdout is empty on failure; exit statuses are in
 * report.h.
 */
#include <stdio.h>
#include <string.h>

#include "cmoe/base.h"
#include "pages.h"
#include "report.h"
#include "verbs.h"

typedef struct verb {
    const option_verb *about;
    int (*run)(int argc, char **argv);
} verb;

/* In the order of the help; verbs of a group, and of a first word, stand together. */
static const verb verbs[] = {
    {&generate_verb, generate_main},
    {&chat_verb, chat_main},
    {&inspect_verb, inspect_main},
    {&plan_verb, plan_main},
    {&experts_verb, experts_main},
    {&logits_verb, logits_main},
    {&eval_verb, eval_main},
    {&tokenize_verb, tokenize_main},
    {&render_verb, render_main},
    {&train_verb, train_main},
    {&finetune_verb, finetune_main},
    {&merge_verb, merge_main},
    {&bench_layer_verb, bench_layer_main},
    {&bench_model_verb, bench_model_main},
    {&bench_train_verb, bench_train_main},
    {&doctor_verb, doctor_main},
    {&demo_verb, demo_main},
};
enum { VERBS = sizeof verbs / sizeof verbs[0] };

/* [VERBS + 1] what --help says about each, and NULL. */
static void abouts(const option_verb *list[VERBS + 1])
{
    for (int i = 0; i < VERBS; i++)
        list[i] = verbs[i].about;
    list[VERBS] = NULL;
}

static void help(FILE *to)
{
    const char *group = "";
    fprintf(to,
            "cmoe %s - Mixture-of-Experts models: exact, fast, the same bits everywhere\n\n"
            "Examples:\n"
            "  cmoe demo                   see a layer work, in about ten seconds\n"
            "  cmoe doctor                 what this machine has, and whether all is well\n"
            "  cmoe plan MODEL             does this model fit, and how fast will it be\n"
            "  cmoe generate MODEL --prompt \"Once upon a time\"\n"
            "  cmoe chat MODEL             talk with it\n"
            "  cmoe bench layer --help     flags and examples of one verb\n",
            cmoe_version());
    for (int i = 0; i < VERBS; i++) {
        const option_verb *v = verbs[i].about;
        if (strcmp(v->group, group) != 0) fprintf(to, "\n%s:\n", v->group);
        group = v->group;
        fprintf(to, "  %-18s  %s\n", v->name, v->summary);
    }
    fprintf(to, "\nHelp:\n  %-18s  %s\n  %-18s  %s\n  %-18s  %s\n  %-18s  %s\n", "help [VERB]",
            "show this text, or that of a verb", "--version", "show the version", "--man",
            "write the man page: cmoe --man | man -l -", "--completion SHELL",
            "write completions of bash, zsh or fish");
    fprintf(to,
            "\nMODEL is a directory as it lies on a model hub: config.json, *.safetensors, and\n"
            "tokenizer.json where text is read or written\n"
            "Every verb: --help --json --quiet --threads N --isa LEVEL --device cpu\n"
            "Exit status: 0 done, 1 failure, 2 wrong flag or prompt, 3 bad file (a model, a\n"
            "  tokenizer, a routing, data), 4 out of memory, 5 a rank was lost, 130 cancelled\n");
}

/* How many of argv make up the name of this verb; 0 when it is another one. */
static int matches(const option_verb *about, int argc, char **argv)
{
    const char *name = about->name;
    int used = 0;
    while (*name) {
        const size_t length = strcspn(name, " ");
        if (used == argc || strlen(argv[used]) != length || strncmp(argv[used], name, length) != 0)
            return 0;
        used++;
        name += length + (name[length] == ' ');
    }
    return used;
}

static const verb *find(int argc, char **argv, int *used)
{
    for (int i = 0; i < VERBS; i++) {
        *used = matches(verbs[i].about, argc, argv);
        if (*used) return &verbs[i];
    }
    return NULL;
}

/* Nothing of that name: the verb that was meant, if one is near. */
static int unknown(int argc, char **argv)
{
    const char *names[VERBS + 1];
    char given[64], group[128] = "";
    const size_t length = strlen(argv[0]);
    for (int i = 0; i < VERBS; i++) {
        names[i] = verbs[i].about->name;
        if (strncmp(names[i], argv[0], length) == 0 && names[i][length] == ' ')
            snprintf(group + strlen(group), sizeof group - strlen(group), "%s`cmoe %s`",
                     *group ? ", " : "", names[i]);
    }
    names[VERBS] = NULL;
    const char *near = *group ? NULL : options_nearest(argv[0], names);
    const bool two = !near && argc > 1 && argv[1][0] != '-'; /* "bnech layer" */
    snprintf(given, sizeof given, "%.40s%s%.20s", argv[0], two ? " " : "", two ? argv[1] : "");
    if (*group) return report_fail(EXIT_USAGE, given, "unknown verb, want one of: %s", group);
    if (two) near = options_nearest(given, names);
    if (near) return report_fail(EXIT_USAGE, given, "unknown verb, did you mean `cmoe %s`?", near);
    return report_fail(EXIT_USAGE, given, "unknown verb, see `cmoe help`");
}

/* Help of one verb, or of the program. */
static int print_help(const option_verb *about)
{
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    if (about)
        options_help(about, r.to);
    else
        help(r.to);
    return report_end(&r, 0);
}

static int print_man(void)
{
    const option_verb *list[VERBS + 1];
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    abouts(list);
    pages_man(r.to, list, cmoe_version());
    return report_end(&r, 0);
}

static int print_completion(const char *shell)
{
    const option_verb *list[VERBS + 1];
    report r;
    int status = report_begin(&r);
    if (status) return status;
    abouts(list);
    if (!pages_completion(r.to, list, shell))
        status = report_fail(EXIT_USAGE, "--completion", "\"%s\" is unknown, want one of: %s",
                             shell, "bash zsh fish");
    return report_end(&r, status);
}

static int print_version(void)
{
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    fprintf(r.to, "cmoe %s\n", cmoe_version());
    return report_end(&r, 0);
}

static bool is_help(const char *arg)
{
    return !strcmp(arg, "--help") || !strcmp(arg, "-h");
}

int main(int argc, char **argv)
{
    int used;
    argc--;
    argv++;
    if (argc == 0) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[0], "--version")) return print_version();
    if (!strcmp(argv[0], "--man")) return print_man();
    if (!strcmp(argv[0], "--completion")) return print_completion(argc > 1 ? argv[1] : "");
    const bool asked = !strcmp(argv[0], "help") || is_help(argv[0]);
    if (asked && argc == 1) return print_help(NULL);
    argc -= asked;
    argv += asked;
    const verb *v = find(argc, argv, &used);
    if (!v) return unknown(argc, argv);
    for (int i = used; i < argc; i++) {
        if (is_help(argv[i])) return print_help(v->about);
    }
    return asked ? print_help(v->about) : v->run(argc - used, argv + used);
}
