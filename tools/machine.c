/* SPDX-License-Identifier: MIT
 *
 * machine.c - CPU, caches and memory from /proc and /sys; what is not there stays 0 or "unknown".
 */
#include "machine.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "report.h"

/* First line of a file without its newline; false when it cannot be read. */
static bool read_line(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    if (!f) return false;
    const bool ok = fgets(text, (int)size, f) != NULL;
    fclose(f);
    if (ok) text[strcspn(text, "\n")] = '\0';
    return ok;
}

/* The value behind "name : value". */
static const char *value_of(const char *line, const char *name)
{
    const size_t length = strlen(name);
    if (strncmp(line, name, length) != 0) return NULL;
    line += length;
    line += strspn(line, " \t");
    return *line == ':' ? line + 1 + strspn(line + 1, " \t") : NULL;
}

enum { MOST_CORES = 4096 };

/* The CPU's name, and how many different (socket, core) pairs there are. */
static void read_cpuinfo(machine *m)
{
    static int64_t seen[MOST_CORES];
    char line[512];
    const char *v;
    int64_t socket = 0;
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f) return;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if ((v = value_of(line, "model name")) && !m->cpu[0])
            snprintf(m->cpu, sizeof m->cpu, "%s", v);
        if ((v = value_of(line, "physical id"))) socket = atoi(v);
        if ((v = value_of(line, "core id"))) {
            const int64_t core = socket << 32 | atoi(v);
            int32_t i = 0;
            while (i < m->cores && seen[i] != core)
                i++;
            if (i == m->cores && i < MOST_CORES) seen[m->cores++] = core;
        }
    }
    fclose(f);
}

static void read_caches(machine *m)
{
    for (int i = 0; i < 8; i++) {
        char path[96], level[16], type[32], size[32];
        const int stem =
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/", i);
        char *const tail = path + stem;
        const size_t room = sizeof path - (size_t)stem;
        snprintf(tail, room, "level");
        if (!read_line(path, level, sizeof level)) break;
        snprintf(tail, room, "type");
        if (!read_line(path, type, sizeof type) || !strcmp(type, "Instruction")) continue;
        snprintf(tail, room, "size");
        if (!read_line(path, size, sizeof size)) continue;
        char *unit;
        int64_t bytes = strtoll(size, &unit, 10);
        bytes *= *unit == 'K' ? 1 << 10 : *unit == 'M' ? 1 << 20 : 1;
        if (!strcmp(level, "1")) m->l1_bytes = bytes;
        if (!strcmp(level, "2")) m->l2_bytes = bytes;
        if (bytes > m->llc_bytes) m->llc_bytes = bytes;
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (m->llc_bytes == 0 && sysconf(_SC_LEVEL3_CACHE_SIZE) > 0)
        m->llc_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
}

/* What a group may still take; a negative number when it has no limit.  Pages of files count as used
 * there, but they go when memory is short. */
static int64_t cgroup_left(const char *folder)
{
    char path[512], most[32], used[32], line[128];
    snprintf(path, sizeof path, "%s/memory.max", folder);
    if (!read_line(path, most, sizeof most) || !strcmp(most, "max")) return -1;
    snprintf(path, sizeof path, "%s/memory.current", folder);
    if (!read_line(path, used, sizeof used)) return -1;
    int64_t left = atoll(most) - atoll(used);
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        if (!strncmp(line, "inactive_file ", 14)) left += atoll(line + 14);
        if (!strncmp(line, "active_file ", 12)) left += atoll(line + 12);
    }
    if (f) fclose(f);
    return left < 0 ? 0 : left;
}

/* A container or a service may be allowed less than the machine has, by any group above it. */
static void limit_to_cgroups(machine *m)
{
    static const char root[] = "/sys/fs/cgroup";
    char line[384] = "0::", folder[448];
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if (!strncmp(line, "0::", 3)) break;
    }
    if (f) fclose(f);
    snprintf(folder, sizeof folder, "%s%s", root, strncmp(line, "0::", 3) ? "" : line + 3);
    while (strlen(folder) >= sizeof root - 1) {
        const int64_t left = cgroup_left(folder);
        if (left >= 0 && left < m->available_bytes) m->available_bytes = left;
        *strrchr(folder, '/') = '\0'; /* there is one: it begins with root */
    }
}

static void read_memory(machine *m)
{
    char line[256];
    const char *v;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        if ((v = value_of(line, "MemTotal"))) m->memory_bytes = atoll(v) * 1024;
        if ((v = value_of(line, "MemAvailable"))) m->available_bytes = atoll(v) * 1024;
    }
    if (f) fclose(f);
    limit_to_cgroups(m);
}

int64_t machine_peak_bytes(void)
{
    char line[256];
    const char *v;
    int64_t bytes = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        if ((v = value_of(line, "VmHWM"))) bytes = atoll(v) * 1024;
    }
    if (f) fclose(f);
    return bytes;
}

static void read_huge_pages(machine *m)
{
    char line[64];
    snprintf(m->huge_pages, sizeof m->huge_pages, "unknown");
    if (!read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line)) return;
    const char *from = strchr(line, '['), *to = strchr(line, ']');
    if (from && to && to > from)
        snprintf(m->huge_pages, sizeof m->huge_pages, "%.*s", (int)(to - from - 1), from + 1);
}

void machine_read(machine *m)
{
    struct utsname name;
    cpu_set_t set;
    *m = (machine){0};
    read_cpuinfo(m);
    read_caches(m);
    read_memory(m);
    read_huge_pages(m);
    m->cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    if (m->cores == 0) m->cores = m->cpus;
    if (!m->cpu[0]) snprintf(m->cpu, sizeof m->cpu, "unknown");
    snprintf(m->os, sizeof m->os, "unknown");
    if (uname(&name) == 0)
        snprintf(m->os, sizeof m->os, "%.20s %.40s %.20s", name.sysname, name.release,
                 name.machine);
}

int session_open(tool_session *s, const common_options *o)
{
    const cmoe_allocator usual = {0};
    return session_open_with(s, o, &usual);
}

int session_open_with(tool_session *s, const common_options *o, const cmoe_allocator *memory)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_ctx_options c;
    *s = (tool_session){0};
    cmoe_ctx_options_default(&c, sizeof c);
    c.threads = (int32_t)o->threads;
    c.allocator = *memory;
    if (!o->quiet) c.log = report_warning;
    if (o->isa) {
        cmoe_status status = cmoe_isa_mask(o->isa, &c.isa_mask, &err);
        if (status != CMOE_OK) return report_status(status, "--isa", &err);
        if (c.isa_mask & ~cmoe_cpu_features())
            return report_fail(EXIT_USAGE, "--isa",
                               "\"%s\" is more than this CPU has, want %s or a level below it",
                               o->isa, machine_level(cmoe_cpu_features()));
    }
    cmoe_status status = cmoe_ctx_create(&s->ctx, &c, &err);
    if (status == CMOE_OK) status = cmoe_stream_create(&s->stream, s->ctx, &err);
    if (status != CMOE_OK) session_close(s);
    return report_status(status, "context", &err);
}

void session_close(tool_session *s)
{
    cmoe_stream_free(s->stream);
    cmoe_ctx_free(s->ctx);
    *s = (tool_session){0};
}

const char *machine_level(uint32_t features)
{
    const char *best = "ref";
    for (int32_t i = 0; i < cmoe_isa_levels(); i++) {
        uint32_t mask;
        const char *name = cmoe_isa_level_name(i);
        if (cmoe_isa_mask(name, &mask, NULL) != CMOE_OK) continue;
        /* That bit is a preference, not something a CPU has. */
        if (!(mask & ~features & ~(uint32_t)CMOE_CPU_BF16_FIRST)) best = name;
    }
    return best;
}

void machine_features(uint32_t features, char *text, size_t size)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{CMOE_CPU_AVX2, "avx2"},
                 {CMOE_CPU_AVX512, "avx512"},
                 {CMOE_CPU_AVX512_VNNI, "avx512_vnni"},
                 {CMOE_CPU_AVX512_BF16, "avx512_bf16"}};
    text[0] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t used = strlen(text);
        if (features & names[i].bit)
            snprintf(text + used, size - used, "%s%s", used ? " " : "", names[i].name);
    }
    if (!text[0]) snprintf(text, size, "none"); /* CMOE_CPU_PLAIN is always there */
}

json_t *machine_json(const machine *m, const cmoe_ctx *ctx)
{
    char has[96], may[96];
    machine_features(cmoe_cpu_features(), has, sizeof has);
    machine_features(cmoe_ctx_features(ctx), may, sizeof may);
    return json_pack(
        "{ss ss si si si ss ss ss sI sI sI sI sI ss ss}", "cpu", m->cpu, "os", m->os, "cores",
        (int)m->cores, "cpus", (int)m->cpus, "threads", (int)cmoe_ctx_threads(ctx), "isa",
        machine_level(cmoe_ctx_features(ctx)), "features", has, "features_used", may, "l1_bytes",
        (json_int_t)m->l1_bytes, "l2_bytes", (json_int_t)m->l2_bytes, "llc_bytes",
        (json_int_t)m->llc_bytes, "memory_bytes", (json_int_t)m->memory_bytes, "available_bytes",
        (json_int_t)m->available_bytes, "huge_pages", m->huge_pages, "cmoe", cmoe_version());
}
