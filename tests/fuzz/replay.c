/* SPDX-License-Identifier: MIT
 *
 * replay.c - feeds every file of a folder to a target; for compilers without libFuzzer.
 *
 *     fuzz_<name> FOLDER
 */
#include "fuzz.h"

#include <dirent.h>

/* The input being tried, for whoever reads why the program died. */
static int replay(const char *folder, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    uint8_t *data = malloc(1 << 20);
    const size_t n = fread(data, 1, 1 << 20, f);
    fclose(f);
    printf("%s (%zu bytes)\n", name, n);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, n);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    const char *program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    DIR *list = argc == 2 ? opendir(argv[1]) : NULL;
    int passed = 0;
    for (const struct dirent *e; list && (e = readdir(list));) {
        if (e->d_name[0] != '.') passed += replay(argv[1], e->d_name);
    }
    if (list) closedir(list);
    /* A finding ends the program; an empty folder is a failure too. */
    printf("%s: %d passed, %d failed\n", program, passed, passed == 0);
    return passed == 0;
}
