/* The harness of the core's tests: named tests, each in a process of its own.
 *
 * In a process of its own a crash, a hang, a leak or a descriptor left open is the failure of one test and not of those after it. A test
 * ends at its first failed check.
 *
 *   test_ring              runs every test
 *   test_ring spill eintr  runs those whose name contains one of the words
 *
 * Those whose name contains one of the words in CHECK_EXCEPT, in the environment, are skipped.
 *
 * Exit status: 0; 1 if a test failed; 77 if every test was skipped.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- checks ------------------------------------------------------------------------------------------------------------------------ */

_Noreturn void check_fail(const char *file, int line, const char *format, ...);
void check_int(bool holds, intmax_t left, intmax_t right, const char *file, int line, const char *text);
int check_system(long result, const char *file, int line, const char *call);

#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, "not %s", #condition))

/* Fails with both values. */
#define CHECK_INT(left, operator, right)                                                                              \
    do {                                                                                                              \
        const intmax_t left_ = (intmax_t)(left), right_ = (intmax_t)(right);                                          \
        check_int(left_ operator right_, left_, right_, __FILE__, __LINE__, #left " " #operator " " #right);          \
    } while (0)

/* The value of a system call, which must not fail. */
#define SYSTEM(call) check_system((call), __FILE__, __LINE__, #call)

/* The bound on every wait; it is reached only if what is waited for never happens. */
#define CHECK_PATIENCE_NS INT64_C(10000000000)
#define MILLISECOND INT64_C(1000000) /* of nanoseconds */
int64_t check_now_ns(void);

/* Runs `step` until the condition holds. A step that takes too long fails too. */
#define CHECK_UNTIL(condition, step)                                              \
    for (int64_t deadline_ = check_now_ns() + CHECK_PATIENCE_NS; !(condition);) { \
        step;                                                                     \
        if (check_now_ns() > deadline_)                                           \
            check_fail(__FILE__, __LINE__, "never %s", #condition);               \
    }

/* The kernel or the machine lacks what this test is about. */
_Noreturn void check_skip(const char *format, ...);

/* --- chance ------------------------------------------------------------------------------------------------------------------------ */

/* For programs with random tests, once, in main: prints the seed, which CHECK_SEED in the environment sets. Every test starts from it. */
void check_seed(void);
uint64_t check_random(void);
uint32_t check_below(uint32_t limit);
bool check_one_in(uint32_t count);

/* --- running ----------------------------------------------------------------------------------------------------------------------- */

void check_begin(char **arguments);
void check_section(const char *section); /* goes before the names of the tests that follow; "" for none */
void check_run(const char *name, void (*test)(void));
int check_end(void); /* the exit status */
#define RUN(test) check_run(#test, test)

#endif
