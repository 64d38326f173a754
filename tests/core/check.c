#include "check.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>

#define EXIT_SKIPPED 77
#define TEST_SECONDS 30 /* a test takes milliseconds; this is for one that hangs */
#define TEXT_BYTES 200

static struct {
    char **words;
    char section[TEXT_BYTES];
    char *skip_reason; /* shared with the test's process */
    int passed, failed, skipped;
    uint64_t random_state;
} state;

/* --- checks ------------------------------------------------------------------------------------------------------------------------ */

void check_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    printf("      %s:%d: ", file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    _exit(EXIT_FAILURE);
}

void check_int(bool holds, intmax_t left, intmax_t right, const char *file, int line, const char *text) {
    if (holds)
        return;
    /* Small negative numbers are most often errors. */
    const char *error = left < 0 && left > -4096 ? strerror((int)-left) : "";
    check_fail(file, line, "not %s: %jd, %jd %s", text, left, right, error);
}

int check_system(long result, const char *file, int line, const char *call) {
    if (result < 0)
        check_fail(file, line, "%s: %s", call, strerror(errno));
    return (int)result;
}

int64_t check_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void check_skip(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(state.skip_reason, TEXT_BYTES, format, arguments);
    va_end(arguments);
    _exit(EXIT_SKIPPED);
}

/* --- chance ------------------------------------------------------------------------------------------------------------------------ */

void check_seed(void) {
    const char *wanted = getenv("CHECK_SEED");
    if (wanted)
        state.random_state = strtoull(wanted, NULL, 10);
    else
        SYSTEM(getrandom(&state.random_state, sizeof state.random_state, 0));
    printf("CHECK_SEED=%" PRIu64 "\n", state.random_state);
}

uint64_t check_random(void) { /* splitmix64 */
    uint64_t bits = state.random_state += UINT64_C(0x9E3779B97F4A7C15);
    bits = (bits ^ bits >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94D049BB133111EB);
    return bits ^ bits >> 31;
}

uint32_t check_below(uint32_t limit) { return (uint32_t)(check_random() % limit); }
bool check_one_in(uint32_t count) { return check_below(count) == 0; }

/* --- running ----------------------------------------------------------------------------------------------------------------------- */

void check_begin(char **arguments) {
    state.words = arguments + 1;
    state.skip_reason = mmap(NULL, TEXT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

void check_section(const char *section) { snprintf(state.section, sizeof state.section, "%s", section); }

static bool is_wanted(const char *name) {
    for (char **word = state.words; *word; word++)
        if (strstr(name, *word))
            return true;
    return !*state.words;
}

static bool is_excepted(const char *name) {
    const char *listed = getenv("CHECK_EXCEPT");
    char words[PATH_MAX];
    snprintf(words, sizeof words, "%s", listed ? listed : "");
    for (char *rest, *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        if (strstr(name, word))
            return true;
    return false;
}

/* How many descriptors are open. */
static int count_open_files(void) {
    int count = 0;
    DIR *listing = opendir("/proc/self/fd");
    while (readdir(listing))
        count++;
    closedir(listing);
    return count;
}

static void tell_open_files(void) {
    char target[PATH_MAX];
    DIR *listing = opendir("/proc/self/fd");
    for (struct dirent *file; (file = readdir(listing));) {
        ssize_t length = readlinkat(dirfd(listing), file->d_name, target, sizeof target);
        if (length > 0 && atoi(file->d_name) > STDERR_FILENO && atoi(file->d_name) != dirfd(listing))
            printf("      open: %s %.*s\n", file->d_name, (int)length, target);
    }
    closedir(listing);
}

static _Noreturn void be_the_test(void (*test)(void)) {
    int open_before = count_open_files();
    alarm(TEST_SECONDS);
    test();
    if (count_open_files() != open_before) {
        tell_open_files();
        check_fail(__FILE__, __LINE__, "the test leaves descriptors open");
    }
    exit(EXIT_SUCCESS); /* the usual way out, on which the sanitizer looks for leaks */
}

static void tell_outcome(const char *name, int status, double milliseconds) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS) {
        state.passed++;
        printf("ok    %s (%.0f ms)\n", name, milliseconds);
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
        state.skipped++;
        printf("skip  %s: %s\n", name, state.skip_reason);
    } else {
        state.failed++;
        if (WIFSIGNALED(status))
            printf("      killed by signal %d: %s\n", WTERMSIG(status), WTERMSIG(status) == SIGALRM ? "it hangs" : strsignal(WTERMSIG(status)));
        printf("FAIL  %s (%.0f ms)\n", name, milliseconds);
    }
}

void check_run(const char *test_name, void (*test)(void)) {
    char name[2 * TEXT_BYTES];
    int status = 0;
    snprintf(name, sizeof name, "%s%s%s", state.section, *state.section ? ": " : "", test_name);
    if (!is_wanted(name))
        return;
    if (is_excepted(name)) {
        state.skipped++;
        printf("skip  %s: it is in CHECK_EXCEPT\n", name);
        return;
    }
    fflush(stdout);
    int64_t started = check_now_ns();
    pid_t process = SYSTEM(fork());
    if (process == 0)
        be_the_test(test);
    SYSTEM(waitpid(process, &status, 0));
    tell_outcome(name, status, (double)(check_now_ns() - started) / 1e6);
}

int check_end(void) {
    printf("%d passed, %d failed, %d skipped\n", state.passed, state.failed, state.skipped);
    if (state.failed || state.passed + state.skipped == 0)
        return EXIT_FAILURE;
    return state.passed ? EXIT_SUCCESS : EXIT_SKIPPED;
}
