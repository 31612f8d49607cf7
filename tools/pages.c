/* SPDX-License-Identifier: MIT
 *
 * pages.c - roff and completion scripts from the option tables.
 *
 * One man page for all verbs, so that it can be searched.  The completions know verbs of one and of
 * two words, the flags of each, the words of flags that take one of a few, and leave the rest to the
 * shell's file names.
 */
#include "pages.h"

#include <string.h>

/* ---- man page -------------------------------------------------------------------------------- */

/* Text as roff shows it unchanged: "-" as itself, no line taken for a request. */
static void roff(FILE *to, const char *text)
{
    bool begins = true; /* a line */
    for (; *text; text++) {
        if (begins && (*text == '.' || *text == '\'')) fputs("\\&", to);
        if (*text == '\\')
            fputs("\\e", to);
        else if (*text == '-')
            fputs("\\-", to);
        else
            fputc(*text, to);
        begins = *text == '\n';
    }
}

static void man_group(FILE *to, const char *group)
{
    fputs(".PP\n", to);
    roff(to, group);
    fputs(":\n", to);
}

static void man_option(FILE *to, const option *o)
{
    char text[1024];
    fputs(".TP\n\\fB", to);
    roff(to, o->positional ? "" : "--");
    roff(to, o->name);
    fputs("\\fR", to);
    if (o->argument && !o->positional) {
        fputs(" \\fI", to);
        roff(to, o->argument);
        fputs("\\fR", to);
    }
    fputc('\n', to);
    options_about(o, text, sizeof text);
    roff(to, text);
    fputc('\n', to);
}

static void man_verb(FILE *to, const option_verb *v)
{
    fputs(".SS cmoe ", to);
    roff(to, v->name);
    fputc('\n', to);
    roff(to, v->summary);
    fputs(".\n.PP\n.nf\n", to);
    roff(to, v->examples);
    fputs(".fi\n", to);
    for (const option *o = v->options; o->name && o->positional; o++)
        man_option(to, o);
    options_each(v, to, man_group, man_option);
    if (!v->text) return;
    fputs(".PP\n", to);
    for (const char *p = v->text; *p;) {
        const char *end = strstr(p, "\n\n");
        char paragraph[2048];
        const size_t n = end ? (size_t)(end - p) : strlen(p);
        snprintf(paragraph, sizeof paragraph, "%.*s", (int)n, p);
        roff(to, paragraph);
        fputs(end ? "\n.PP\n" : "\n", to);
        p += n + (end ? 2 : 0);
    }
}

static void man_files(FILE *to)
{
    fputs(".SH FILES\nIn MODEL:\n"
          ".TP\n.I config.json\nwhat the model is\n"
          ".TP\n.IR model.safetensors \", or \" model.safetensors.index.json \" and its shards\"\n"
          "the weights\n"
          ".TP\n.IR tokenizer.json \", \" tokenizer_config.json\ntext to ids and back; verbs that "
          "are "
          "given ids need none\n"
          ".TP\n.I generation_config.json\nhow to sample, and which tokens end an answer; need not "
          "be "
          "there\n"
          ".TP\n.I chat_template.jinja\nhow a conversation is written; else chat_template in "
          "tokenizer_config.json or chat_template.json\n"
          ".PP\nOf the user:\n"
          ".TP\n.IR $XDG_CACHE_HOME/cmoe \", else \" \\(ti/.cache/cmoe\n"
          "packed weights that generate and chat keep (\\-\\-cache\\-dir says where else), one "
          "file for "
          "each model directory and format. One made of files that have changed, or by another "
          "version, is replaced; one that is broken is made again. Any of them may be removed at "
          "any time.\n"
          ".SH ENVIRONMENT\n"
          ".TP\n.BR XDG_CACHE_HOME \", \" HOME\nwhere packed weights are kept\n"
          ".TP\n.B NO_COLOR\nnot empty: no colours; nor are there any when TERM is dumb\n"
          ".TP\n.BR LC_ALL \", \" LC_CTYPE \", \" LANG\nwhether the terminal shows UTF\\-8\n",
          to);
}

void pages_man(FILE *to, const option_verb *const *verbs, const char *version)
{
    fprintf(to,
            ".\\\" SPDX-License-Identifier: MIT\n.TH CMOE 1 \"\" \"cmoe %s\" \"User Commands\"\n",
            version);
    fputs(
        ".SH NAME\ncmoe \\- Mixture\\-of\\-Experts models: exact, fast, the same bits everywhere\n"
        ".SH SYNOPSIS\n.B cmoe\n.I VERB\n.RI [ MODEL ]\n.RI [ flags ]\n"
        ".SH DESCRIPTION\nMODEL is a directory as it lies on a model hub: config.json and "
        "*.safetensors.\nErrors go to stderr as \"cmoe: what: why\", and stdout is then empty.\n",
        to);
    fputs(".SH OPTIONS\nWithout a verb:\n"
          ".TP\n\\fBhelp\\fR [\\fIVERB\\fR], \\fB\\-\\-help\\fR, \\fB\\-h\\fR\nshow what there is, "
          "or what "
          "a verb does\n"
          ".TP\n\\fB\\-\\-version\\fR\nshow the version\n"
          ".TP\n\\fB\\-\\-man\\fR\nwrite this page\n"
          ".TP\n\\fB\\-\\-completion\\fR \\fISHELL\\fR\nwrite completions of bash, zsh or fish\n"
          ".SH VERBS\n",
          to);
    for (; *verbs; verbs++)
        man_verb(to, *verbs);
    fputs(".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nfailure\n.TP\n2\na flag or a prompt is wrong\n"
          ".TP\n3\na file is not what it should be: a model, a tokenizer, data\n"
          ".TP\n4\nout of memory\n.TP\n5\na rank was lost\n.TP\n130\ncancelled by a signal\n",
          to);
    man_files(to);
}

/* ---- completions ----------------------------------------------------------------------------- */

/* "bench layer" -> "bench_layer" */
static void underscored(FILE *to, const char *name)
{
    for (; *name; name++)
        fputc(*name == ' ' ? '_' : *name, to);
}

/* Text between single quotes. */
static void quoted(FILE *to, const char *text)
{
    fputc('\'', to);
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", to);
        else
            fputc(*text == '\n' ? ' ' : *text, to);
    }
    fputc('\'', to);
}

/* The first words of all verbs, each once. */
static void first_words(FILE *to, const option_verb *const *verbs)
{
    const char *last = "";
    for (; *verbs; verbs++) {
        const char *name = (*verbs)->name;
        const size_t n = strcspn(name, " ");
        if (strncmp(last, name, n) != 0 || (last[n] && last[n] != ' ')) {
            fprintf(to, "%.*s ", (int)n, name);
        }
        last = name;
    }
    fputs("help --help --version --man --completion", to);
}

/* Verbs of two words, as rows of a case: "bench) words='layer model' ;;" */
static void second_words(FILE *to, const option_verb *const *verbs)
{
    const char *open = NULL;
    for (; *verbs; verbs++) {
        const char *name = (*verbs)->name, *blank = strchr(name, ' ');
        const bool same = blank && open && !strncmp(open, name, (size_t)(blank - name) + 1);
        if (open && !same) fputs("' ;;\n", to);
        if (blank && !same) fprintf(to, "        %.*s) words='", (int)(blank - name), name);
        if (blank) fprintf(to, "%s%s", same ? " " : "", blank + 1);
        open = blank ? name : NULL;
    }
    if (open) fputs("' ;;\n", to);
}

static void choices(FILE *to, const option *o)
{
    for (int i = 0; o->choices[i]; i++)
        fprintf(to, "%s%s", i ? " " : "", o->choices[i]);
}

/* zsh runs the same function through its bashcompinit. */
static void bash(FILE *to, const option_verb *const *verbs)
{
    fputs("# cmoe: completion for bash, made by `cmoe --completion bash`\n_cmoe()\n{\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= verb=\n"
          "    COMPREPLY=()\n    if [ \"$COMP_CWORD\" = 1 ]; then\n"
          "        COMPREPLY=($(compgen -W \"",
          to);
    first_words(to, verbs);
    fputs("\" -- \"$cur\"))\n        return\n    fi\n    verb=${COMP_WORDS[1]}\n"
          "    if [ \"$COMP_CWORD\" = 2 ]; then\n        case $verb in\n",
          to);
    second_words(to, verbs);
    fputs("        esac\n        if [ -n \"$words\" ]; then\n"
          "            COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n            return\n"
          "        fi\n    fi\n    case $verb\" \"${COMP_WORDS[2]} in\n",
          to);
    for (const option_verb *const *v = verbs; *v; v++) {
        const bool two = strchr((*v)->name, ' ') != NULL;
        fprintf(to, "    \"%s\"%s)\n        case $prev in\n", (*v)->name, two ? "" : "\" \"*");
        for (const option *o = (*v)->options; o->name; o++) {
            if (!o->choices) continue;
            fprintf(to, "        --%s) words=\"", o->name);
            choices(to, o);
            fputs("\" ;;\n", to);
        }
        fputs("        *) words=\"", to);
        for (const option *o = (*v)->options; o->name; o++) {
            if (!o->positional) fprintf(to, "--%s ", o->name);
        }
        fputs("\" ;;\n        esac ;;\n", to);
    }
    fputs("    esac\n    case $words$cur in\n    --*-*|[!-]*)\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n    esac\n"
          "    [ ${#COMPREPLY[@]} -gt 0 ] && [ -n \"$cur\" ] || "
          "COMPREPLY+=($(compgen -f -- \"$cur\"))\n}\n"
          "complete -o filenames -F _cmoe cmoe\n",
          to);
}

static void fish_flag(FILE *to, const option_verb *v, const option *o)
{
    fputs("complete -c cmoe -n '__cmoe_verb ", to);
    underscored(to, v->name);
    fprintf(to, "' -l %s", o->name);
    if (o->type != OPTION_FLAG) fputs(o->choices ? " -x" : " -r", to);
    if (o->choices) {
        fputs(" -a '", to);
        choices(to, o);
        fputc('\'', to);
    }
    fputs(" -d ", to);
    quoted(to, o->help);
    fputc('\n', to);
}

static void fish(FILE *to, const option_verb *const *verbs)
{
    fputs("# cmoe: completion for fish, made by `cmoe --completion fish`\n"
          "function __cmoe_verb\n    set -l words (commandline -opc)\n"
          "    test (count $words) -ge 2; or return 1\n"
          "    test $words[2] = $argv[1]; and return 0\n"
          "    test (count $words) -ge 3; and test $words[2]_$words[3] = $argv[1]\nend\n",
          to);
    fputs("complete -c cmoe -n __fish_use_subcommand -f -a '", to);
    first_words(to, verbs);
    fputs("'\n", to);
    for (const option_verb *const *v = verbs; *v; v++) {
        const char *blank = strchr((*v)->name, ' ');
        if (blank) {
            fprintf(to, "complete -c cmoe -n '__cmoe_verb %.*s' -f -a %s -d ",
                    (int)(blank - (*v)->name), (*v)->name, blank + 1);
            quoted(to, (*v)->summary);
            fputc('\n', to);
        }
        for (const option *o = (*v)->options; o->name; o++) {
            if (!o->positional) fish_flag(to, *v, o);
        }
    }
}

bool pages_completion(FILE *to, const option_verb *const *verbs, const char *shell)
{
    if (!strcmp(shell, "fish")) {
        fish(to, verbs);
        return true;
    }
    const bool zsh = !strcmp(shell, "zsh");
    if (!zsh && strcmp(shell, "bash") != 0) return false;
    if (zsh) fputs("#compdef cmoe\nautoload -U +X bashcompinit && bashcompinit\n", to);
    bash(to, verbs);
    return true;
}
