/* The only state that threads share without a lock: the wake. To be built with ThreadSanitizer too (make threads), which sees an order that is
 * missing also where this machine happens to keep it. */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "wake.h"

enum { WAKERS = 4, ITEMS = 20000 };

/* What wakers leave for the loop: plain memory, as Python's deque is, but with a lock for each waker to add under. */
struct queue {
    pthread_mutex_t lock;
    int items;
};

static struct queue queue = {.lock = PTHREAD_MUTEX_INITIALIZER};
static int note; /* plain: only the wake orders it */
static atomic_bool left; /* relaxed: it orders nothing */

static void *add_items(void *argument) {
    struct ul_wake *wake = argument;
    for (int i = 0; i < ITEMS; i++) {
        pthread_mutex_lock(&queue.lock);
        queue.items++;
        pthread_mutex_unlock(&queue.lock);
        ul_wake(wake);
    }
    ul_wake_release(wake);
    return NULL;
}

/* As the loop does where each poll ends with the first that it tells: wait, empty the eventfd, say so, look. */
static void sleep_until_woken(struct ul_wake *wake) {
    struct pollfd waiting = {.fd = wake->fd, .events = POLLIN};
    CHECK_INT(poll(&waiting, 1, -1), ==, 1);
    ul_wake_empty(wake);
    ul_wake_taken(wake);
}

static void no_wake_is_lost(void) {
    int error;
    pthread_t threads[WAKERS];
    struct ul_wake *wake = ul_wake_open(&error);
    for (int i = 0; i < WAKERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, add_items, ul_wake_retain(wake)), ==, 0);
    for (int taken = 0; taken < WAKERS * ITEMS;) { /* a lost wake would make this sleep for ever */
        sleep_until_woken(wake);
        pthread_mutex_lock(&queue.lock);
        taken += queue.items;
        queue.items = 0;
        pthread_mutex_unlock(&queue.lock);
    }
    for (int i = 0; i < WAKERS; i++)
        pthread_join(threads[i], NULL);
    ul_wake_release(wake);
}

static void *leave_a_note(void *argument) {
    note = 1;
    ul_wake(argument);
    atomic_store_explicit(&left, true, memory_order_relaxed);
    return NULL;
}

/* A wake that joins one that is pending writes nothing, so that the eventfd orders nothing either. */
static void what_was_left_before_a_wake_that_joins_another_is_seen(void) {
    int error;
    pthread_t thread;
    struct ul_wake *wake = ul_wake_open(&error);
    ul_wake(wake);
    CHECK_INT(pthread_create(&thread, NULL, leave_a_note, wake), ==, 0);
    CHECK_UNTIL(atomic_load_explicit(&left, memory_order_relaxed), usleep(100));
    sleep_until_woken(wake);
    CHECK_INT(note, ==, 1);
    pthread_join(thread, NULL);
    ul_wake_release(wake);
}

static void *wake_once(void *argument) {
    ul_wake(argument);
    ul_wake_release(argument);
    return NULL;
}

static void whoever_is_last_frees_it(void) {
    for (int round = 0; round < 500; round++) {
        int error;
        pthread_t threads[WAKERS];
        struct ul_wake *wake = ul_wake_open(&error);
        for (int i = 0; i < WAKERS; i++)
            CHECK_INT(pthread_create(&threads[i], NULL, wake_once, ul_wake_retain(wake)), ==, 0);
        ul_wake_release(wake); /* the loop is closed while they wake it */
        for (int i = 0; i < WAKERS; i++)
            pthread_join(threads[i], NULL);
    }
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    RUN(no_wake_is_lost);
    RUN(what_was_left_before_a_wake_that_joins_another_is_seen);
    RUN(whoever_is_last_frees_it);
    return check_end();
}
