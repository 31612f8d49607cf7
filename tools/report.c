/* SPDX-License-Identifier: MIT
 *
 * report.c - error lines, gathered output, colours, cancelling.
 */
#include "report.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool progress_shown; /* the program's own; a verb runs once */

void report_plain(FILE *to, const char *text)
{
    for (; *text; text++)
        fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, to);
}

int report_fail(int status, const char *what, const char *format, ...)
{
    char why[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    report_progress(false, "%s", "");
    fputs("cmoe: ", stderr);
    report_plain(stderr, what);
    fputs(": ", stderr);
    report_plain(stderr, why);
    fputc('\n', stderr);
    return status;
}

/* The library's texts may begin with the path that was given, or with the file's name. */
int report_error(int code, const char *what, cmoe_status status, const cmoe_error *err)
{
    const char *text = err->text[0] ? err->text : cmoe_status_name(status);
    const char *slash = strrchr(what, '/'), *file = slash ? slash + 1 : what;
    const size_t whole = strlen(what), part = strlen(file);
    if (whole > 0 && !strncmp(text, what, whole)) {
        char longer[sizeof err->text];
        const char *colon = strstr(text + whole, ": ");
        if (colon) {
            snprintf(longer, sizeof longer, "%.*s", (int)(colon - text), text);
            return report_fail(code, longer, "%s", colon + 2);
        }
    }
    if (part > 0 && !strncmp(text, file, part) && !strncmp(text + part, ": ", 2)) text += part + 2;
    return report_fail(code, what, "%s", text);
}

int report_status(cmoe_status status, const char *what, const cmoe_error *err)
{
    int code = EXIT_ERROR;
    if (status == CMOE_OK) return 0;
    if (status == CMOE_ERR_MEMORY) code = EXIT_MEMORY;
    if (status == CMOE_ERR_FORMAT) code = EXIT_FILE;
    if (status == CMOE_ERR_COMM) code = EXIT_RANK;
    if (status == CMOE_ERR_CANCELLED) code = EXIT_CANCELLED;
    return report_error(code, what, status, err);
}

int report_begin(report *r)
{
    *r = (report){0};
    r->to = open_memstream(&r->text, &r->bytes);
    return r->to ? 0 : report_fail(EXIT_MEMORY, "output", "%s", strerror(errno));
}

static int write_stdout(const char *text, size_t bytes)
{
    report_progress(false, "%s", "");
    if (fwrite(text, 1, bytes, stdout) == bytes && fflush(stdout) == 0) return 0;
    return report_fail(EXIT_ERROR, "stdout", "%s", strerror(errno));
}

int report_end(report *r, int status)
{
    if (r->to && fclose(r->to) != 0 && status == 0)
        status = report_fail(EXIT_MEMORY, "output", "%s", strerror(errno));
    if (status == 0) status = write_stdout(r->text, r->bytes);
    free(r->text);
    *r = (report){0};
    return status;
}

int report_json(json_t *object)
{
    char *text = object ? json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(8)) : NULL;
    json_decref(object);
    if (!text) return report_fail(EXIT_MEMORY, "output", "no memory for the JSON text");
    report r;
    int status = report_begin(&r);
    if (status == 0) {
        fprintf(r.to, "%s\n", text);
        status = report_end(&r, 0);
    }
    free(text);
    return status;
}

json_t *report_json_text(const char *text)
{
    char plain[4096];
    json_t *string = json_string(text);
    if (string) return string;
    snprintf(plain, sizeof plain, "%s", text);
    for (char *p = plain; *p; p++) {
        if (*p & 0x80) *p = '?';
    }
    return json_string(plain);
}

void report_progress(bool quiet, const char *format, ...)
{
    va_list args;
    if (quiet || !isatty(STDERR_FILENO)) return;
    if (progress_shown) fputs("\r\033[K", stderr);
    va_start(args, format);
    progress_shown = vfprintf(stderr, format, args) > 0;
    va_end(args);
    fflush(stderr);
}

static bool locale_is_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strstr(value, "UTF-8") || strstr(value, "utf8");
    }
    return false;
}

report_style report_style_of_stdout(void)
{
    report_style plain = {.bold = "", .good = "", .bad = "", .off = "", .utf8 = locale_is_utf8()};
    const char *none = getenv("NO_COLOR"), *term = getenv("TERM");
    if (!isatty(STDOUT_FILENO) || (none && *none) || !term || !strcmp(term, "dumb")) return plain;
    return (report_style){.bold = "\033[1m",
                          .good = "\033[32m",
                          .bad = "\033[31m",
                          .off = "\033[0m",
                          .utf8 = plain.utf8};
}

static volatile sig_atomic_t cancelled, patient;

static void on_signal(int signal)
{
    if (cancelled && !(patient && signal == SIGINT)) _exit(EXIT_CANCELLED);
    cancelled = 1;
}

void report_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* A file that grows beyond `ulimit -f` is an error of its write, which removes what was begun. */
    signal(SIGXFSZ, SIG_IGN);
}

bool report_cancelled(void)
{
    return cancelled != 0;
}

void report_go_on(bool be_patient)
{
    patient = be_patient;
    cancelled = 0;
}

void report_warning(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level <= CMOE_LOG_WARN) fprintf(stderr, "cmoe: note: %s\n", text);
}
