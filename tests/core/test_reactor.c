/* The reactor at work: what a tick costs and brings, what ends its sleep, and whose it is. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"
#include "driver.h"

static const struct setting *setting; /* of the tests that are run now */

static struct driver *open_driver(void) { return driver_open(&setting->options); }

static uint64_t enters(const struct driver *driver) { return driver_report(driver).enters; }

/* --- what a tick costs ------------------------------------------------------------------------------------------------------------- */

static void a_tick_with_nothing_to_do_makes_no_system_call(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_TCP);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    driver_tick(driver, 0); /* arms the wake again, and the like */
    uint64_t before = enters(driver);
    for (int i = 0; i < 100; i++)
        CHECK_INT(driver_tick(driver, 0), ==, 0);
    CHECK_INT(enters(driver), ==, before);
    CHECK_INT(driver_report(driver).stats.ticks, >=, 100);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void all_writes_of_a_turn_go_out_in_one_system_call(void) {
    enum { STREAMS = 16 };
    struct driver *driver = driver_open(&usual_setting->options);
    struct connection connections[STREAMS];
    for (int i = 0; i < STREAMS; i++)
        connections[i] = connection_open(driver, FAMILY_TCP);
    driver_fence(driver);
    uint64_t before = enters(driver);
    for (int i = 0; i < STREAMS; i++)
        ul_stream_write(driver->streams, connections[i].token, "ping", 4);
    driver_tick(driver, 0);
    CHECK_INT(enters(driver), ==, before + 1);
    for (int i = 0; i < STREAMS; i++) {
        CHECK_UNTIL(peer_has(&connections[i].peer, 4), (void)0);
        connection_close(driver, &connections[i]);
    }
    driver_close(driver);
}

static void a_write_and_a_close_go_out_in_one_system_call(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    struct connection connection = connection_open(driver, FAMILY_TCP);
    driver_fence(driver);
    uint64_t before = enters(driver);
    ul_stream_write(driver->streams, connection.token, "bye", 3);
    ul_stream_close(driver->streams, connection.token);
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 1);
    CHECK_INT(enters(driver), ==, before + 1);
    CHECK(peer_has(&connection.peer, 3));
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* A socket that was full has made sends wait, and be completed; once it has room they complete in silence again. */
static void sends_to_a_socket_with_room_again_have_no_completions(void) {
    static char large[400000];
    struct driver *driver = driver_open(&usual_setting->options);
    struct connection connection = connection_open_small(driver, FAMILY_UNIX);
    CHECK_INT(ul_stream_write_pinned(driver->streams, connection.token, large, sizeof large), >, 0);
    UNTIL(driver, peer_has(&connection.peer, sizeof large));
    UNTIL(driver, driver_heard(driver, connection.token)->released == 1);
    uint64_t before = driver_report(driver).completions;
    for (size_t i = 1; i <= 10; i++) {
        ul_stream_write(driver->streams, connection.token, "x", 1);
        driver_tick(driver, 0);
        CHECK(peer_has(&connection.peer, sizeof large + i));
    }
    CHECK_INT(driver_report(driver).completions, ==, before);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* --- what a tick brings ------------------------------------------------------------------------------------------------------------ */

enum { PIPES = 60 };

static void open_polled_pipes(struct driver *driver, int pipes[PIPES][2]) {
    for (int i = 0; i < PIPES; i++) {
        SYSTEM(pipe(pipes[i]));
        ul_operation_start(driver->operations, IORING_OP_POLL_ADD, pipes[i][0], 0, 0, 0, POLLIN, 0, 0);
    }
    driver_tick(driver, 0);
    CHECK_INT(driver->done_count, ==, 0);
}

static void close_pipes(int pipes[PIPES][2]) {
    for (int i = 0; i < PIPES; i++) {
        close(pipes[i][0]);
        close(pipes[i][1]);
    }
}

/* A kernel with deferred work hands over 20 completions at a time, and one after a sleep. */
static void a_tick_brings_all_that_is_ready(void) {
    int pipes[PIPES][2];
    struct driver *driver = driver_open(&usual_setting->options);
    open_polled_pipes(driver, pipes);
    for (int i = 0; i < PIPES; i++)
        SYSTEM(write(pipes[i][1], "x", 1));
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, PIPES);
    close_pipes(pipes);
    driver_close(driver);
}

static void an_overflown_cq_loses_nothing(void) {
    int pipes[PIPES][2];
    struct driver *driver = driver_open(&tiny_setting->options);
    open_polled_pipes(driver, pipes);
    for (int i = 0; i < PIPES; i++)
        SYSTEM(write(pipes[i][1], "x", 1));
    UNTIL(driver, driver->done_count == PIPES);
    CHECK_INT(driver_report(driver).overflows, >, 0);
    close_pipes(pipes);
    driver_close(driver);
}

static void events_beyond_the_array_come_with_the_next_tick(void) {
    enum { OPERATIONS = 3 * UL_EVENTS_MAX };
    struct driver *driver = open_driver();
    for (int i = 0; i < OPERATIONS; i++)
        ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    /* A tick that has something to tell does not sleep. */
    CHECK_UNTIL(driver->done_count == OPERATIONS, CHECK_INT(driver_tick(driver, 2 * CHECK_PATIENCE_NS), >, 0));
    driver_close(driver);
}

static void a_tick_sleeps_its_time_and_no_more(void) {
    struct driver *driver = open_driver();
    driver_fence(driver);
    driver_tick(driver, 0);
    int64_t started = check_now_ns();
    CHECK_INT(driver_tick(driver, 20 * MILLISECOND), ==, 0);
    CHECK_INT(check_now_ns() - started, >=, 20 * MILLISECOND);
    CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
    driver_close(driver);
}

/* --- what ends a sleep ------------------------------------------------------------------------------------------------------------- */

static void *wake_once(void *argument) {
    const struct ul_reactor *reactor = argument;
    ul_wake(reactor->wake);
    return NULL;
}

static void a_wake_ends_a_sleep(void) {
    struct driver *driver = open_driver();
    for (int i = 0; i < 50; i++) { /* it comes before the sleep or in it, as it happens */
        pthread_t thread;
        int64_t started = check_now_ns();
        CHECK_INT(pthread_create(&thread, NULL, wake_once, driver->reactor), ==, 0);
        CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
        CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
        CHECK_INT(pthread_join(thread, NULL), ==, 0);
    }
    driver_close(driver);
}

static void wakes_before_a_tick_are_one(void) {
    struct driver *driver = open_driver();
    for (int i = 0; i < 1000; i++)
        ul_wake(driver->reactor->wake);
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
    uint64_t count;
    CHECK_INT(read(driver->reactor->wake->fd, &count, sizeof count), ==, sizeof count); /* which nobody else does */
    CHECK_INT(count, ==, 1);                                                           /* one write to the eventfd */
    int64_t started = check_now_ns();
    driver_tick(driver, 20 * MILLISECOND); /* and nothing of them is left */
    CHECK_INT(check_now_ns() - started, >=, 20 * MILLISECOND);
    driver_close(driver);
}

static void a_wake_is_heard_and_none_is_heard_twice_when_the_poll_for_it_has_ended(void) {
    struct driver *driver = open_driver();
    ul_wake(driver->reactor->wake);
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
    uint64_t polls = driver->reactor->engine.stats.completions[UL_REQUEST_WAKE];
    ul_cancel(&driver->reactor->engine, ul_user_data(UL_REQUEST_WAKE, 0));
    UNTIL(driver, driver->reactor->engine.stats.completions[UL_REQUEST_WAKE] > polls);
    int64_t started = check_now_ns();
    CHECK_INT(driver_tick(driver, 20 * MILLISECOND), ==, 0);
    CHECK_INT(check_now_ns() - started, >=, 20 * MILLISECOND);
    ul_wake(driver->reactor->wake);
    started = check_now_ns();
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
    CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
    driver_close(driver);
}

static void a_turn_sleeps_until_its_deadline_and_tells_that_it_has_come(void) {
    struct driver *driver = open_driver();
    CHECK_INT(ul_reactor_look(driver->reactor), ==, 0); /* there is none yet */
    int64_t deadline = check_now_ns() + 20 * MILLISECOND;
    ul_reactor_set_deadline(driver->reactor, deadline);
    CHECK_INT(ul_reactor_look(driver->reactor), ==, 0);
    CHECK_INT(check_now_ns(), <, deadline);
    CHECK_INT(ul_reactor_wait(driver->reactor), ==, UL_TURN_DUE);
    CHECK_INT(check_now_ns(), >=, deadline);
    CHECK_INT(ul_reactor_wait(driver->reactor), ==, UL_TURN_DUE); /* for as long as it is there, without sleep */
    CHECK_INT(ul_reactor_look(driver->reactor), ==, UL_TURN_DUE);
    ul_reactor_set_deadline(driver->reactor, -1);
    CHECK_INT(ul_reactor_look(driver->reactor), ==, 0);
    driver_close(driver);
}

static void a_glance_sees_whether_there_is_anything_for_a_look(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_TCP);
    CHECK_INT(ul_stream_read(driver->streams, connection.token, true), ==, 0);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 1); /* a receive is to be submitted */
    driver_fence(driver);
    driver_tick(driver, 0);
    uint64_t ticks = driver_report(driver).stats.ticks;
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 0);
    CHECK_INT(driver_report(driver).stats.ticks, ==, ticks + 1); /* that was one */
    peer_send(&connection.peer, "ping", 4);
    CHECK_UNTIL(ul_reactor_glance(driver->reactor), {});
    UNTIL(driver, driver_heard(driver, connection.token)->got.length == 4);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 1); /* its buffer is to be given back */
    driver_tick(driver, 0);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 0);
    ul_stream_write(driver->streams, connection.token, "pong", 4);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 1);
    driver_fence(driver);
    driver_tick(driver, 0);
    ul_stream_write(driver->streams, connection.token, "pong", 4);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 1); /* it has been sent, and nobody has looked whether it was */
    driver_fence(driver);
    ul_wake(driver->reactor->wake);
    CHECK_UNTIL(ul_reactor_glance(driver->reactor), {});
    driver_tick(driver, 0);
    driver_tick(driver, 0);
    ul_reactor_set_deadline(driver->reactor, check_now_ns() + MILLISECOND);
    CHECK_UNTIL(ul_reactor_glance(driver->reactor), {});
    ul_reactor_set_deadline(driver->reactor, -1);
    CHECK_INT(ul_reactor_glance(driver->reactor), ==, 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void a_deadline_that_comes_with_events_is_told_with_their_number(void) {
    struct driver *driver = open_driver();
    ul_reactor_set_deadline(driver->reactor, 1);
    int32_t operation = ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(operation, >=, 0);
    int count = ul_reactor_wait(driver->reactor);
    if (count == UL_TURN_DUE) /* it was submitted, and its completion comes with the next */
        count = ul_reactor_wait(driver->reactor);
    CHECK_INT(count, ==, 1 | UL_TURN_DUE);
    driver_close(driver);
}

static void a_wake_before_the_beginning_is_heard(void) {
    struct ul_reactor *reactor = reactor_open(&setting->options);
    ul_wake(reactor->wake);
    CHECK_INT(ul_reactor_begin(reactor), ==, 0);
    int64_t started = check_now_ns();
    CHECK_INT(ul_reactor_tick(reactor, CHECK_PATIENCE_NS), ==, 0);
    CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
    ul_reactor_end(reactor);
    CHECK_INT(ul_reactor_close(reactor), ==, 0);
}

static void a_waker_outlives_its_reactor(void) {
    struct driver *driver = open_driver();
    struct ul_wake *waker = ul_reactor_waker(driver->reactor);
    int64_t started = check_now_ns();
    ul_wake(waker);
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
    CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
    driver_close(driver);
    ul_wake(waker);
    ul_wake_release(waker);
}

/* As call_soon_threadsafe does: leave something, then wake. What is left after the last look is followed by a wake that is heard. */
struct mailbox {
    struct ul_reactor *reactor;
    _Atomic int letters;
};
enum { SENDERS = 4, LETTERS = 2000 };

static void *leave_letters(void *argument) {
    struct mailbox *mailbox = argument;
    for (int i = 0; i < LETTERS; i++) {
        atomic_fetch_add(&mailbox->letters, 1);
        ul_wake(mailbox->reactor->wake);
    }
    return NULL;
}

static void no_wake_is_lost(void) {
    struct driver *driver = open_driver();
    struct mailbox mailbox = {.reactor = driver->reactor};
    pthread_t threads[SENDERS];
    for (int i = 0; i < SENDERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, leave_letters, &mailbox), ==, 0);
    CHECK_UNTIL(atomic_load(&mailbox.letters) == SENDERS * LETTERS, driver_tick(driver, CHECK_PATIENCE_NS));
    for (int i = 0; i < SENDERS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), ==, 0);
    driver_close(driver);
}

static void take_signal(int signal) { (void)signal; }

/* A timer that goes on firing: a signal that comes before the sleep has begun is followed by one that does not. */
static void a_signal_ends_a_sleep(void) {
    struct driver *driver = open_driver();
    struct sigaction action = {.sa_handler = take_signal, .sa_flags = SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every_5_ms = {{0, 5 * MILLISECOND}, {0, 5 * MILLISECOND}};
    timer_t timer;
    driver_fence(driver);
    SYSTEM(sigaction(SIGUSR1, &action, NULL));
    SYSTEM(timer_create(CLOCK_MONOTONIC, &event, &timer));
    SYSTEM(timer_settime(timer, 0, &every_5_ms, NULL));
    int64_t started = check_now_ns();
    CHECK_INT(driver_tick(driver, CHECK_PATIENCE_NS), ==, 0);
    CHECK_INT(check_now_ns() - started, <, CHECK_PATIENCE_NS / 2);
    SYSTEM(timer_delete(timer));
    driver_close(driver);
}

/* --- whose it is ------------------------------------------------------------------------------------------------------------------- */

static void the_ring_is_registered_from_begin_to_end(void) {
    struct driver *driver = open_driver();
    for (int i = 0; i < 20; i++) { /* a thread has sixteen places */
        CHECK_INT(driver_report(driver).ring_registered, ==, setting->options.register_ring);
        driver_fence(driver);
        ul_reactor_end(driver->reactor);
        CHECK(!driver_report(driver).ring_registered);
        CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    }
    driver_close(driver);
}

static void before_the_beginning_there_is_no_tick(void) {
    struct ul_reactor *reactor = reactor_open(&setting->options);
    CHECK_INT(ul_reactor_tick(reactor, -1), ==, -EBADFD);
    CHECK_INT(ul_reactor_flush(reactor), ==, 0);
    CHECK_INT(ul_reactor_close(reactor), ==, 0);
}

/* An asyncio loop may be made, and given work, before the thread that runs it is there. */
static void what_is_asked_before_the_beginning_is_done_after_it(void) {
    struct driver driver = {.reactor = reactor_open(&setting->options)};
    struct connection connection;
    driver.streams = ul_reactor_streams(driver.reactor);
    connection.fd = peer_connect(&connection.peer, FAMILY_TCP);
    connection.token = ul_stream_open(driver.streams, connection.fd);
    CHECK_INT(ul_stream_write(driver.streams, connection.token, "early", 5), ==, 5);
    CHECK_INT(ul_stream_read(driver.streams, connection.token, true), ==, 0);
    peer_send(&connection.peer, "bird", 4);
    CHECK_INT(ul_reactor_begin(driver.reactor), ==, 0);
    struct heard *heard = driver_heard(&driver, connection.token);
    UNTIL(&driver, heard->got.length == 4 && peer_has(&connection.peer, 5));
    connection_close(&driver, &connection);
    ul_reactor_end(driver.reactor);
    CHECK_INT(ul_reactor_close(driver.reactor), ==, 0);
    bytes_free(&heard->got);
    free(driver.heard);
}

static void *try_to_begin(void *reactor) {
    static int result;
    result = ul_reactor_begin(reactor);
    return &result;
}

static int begin_in_another_thread(struct ul_reactor *reactor) {
    pthread_t thread;
    void *result;
    CHECK_INT(pthread_create(&thread, NULL, try_to_begin, reactor), ==, 0);
    CHECK_INT(pthread_join(thread, &result), ==, 0);
    return *(int *)result;
}

static void another_thread_may_not_begin_what_is_under_way(void) {
    struct driver *driver = open_driver();
    CHECK_INT(begin_in_another_thread(driver->reactor), ==, -EBUSY);
    driver_fence(driver);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(a_tick_with_nothing_to_do_makes_no_system_call);
        RUN(events_beyond_the_array_come_with_the_next_tick);
        RUN(a_tick_sleeps_its_time_and_no_more);
        RUN(a_wake_ends_a_sleep);
        RUN(wakes_before_a_tick_are_one);
        RUN(a_wake_is_heard_and_none_is_heard_twice_when_the_poll_for_it_has_ended);
        RUN(a_turn_sleeps_until_its_deadline_and_tells_that_it_has_come);
        RUN(a_glance_sees_whether_there_is_anything_for_a_look);
        RUN(a_deadline_that_comes_with_events_is_told_with_their_number);
        RUN(a_wake_before_the_beginning_is_heard);
        RUN(a_waker_outlives_its_reactor);
        RUN(no_wake_is_lost);
        RUN(a_signal_ends_a_sleep);
        RUN(the_ring_is_registered_from_begin_to_end);
        RUN(before_the_beginning_there_is_no_tick);
        RUN(what_is_asked_before_the_beginning_is_done_after_it);
        RUN(another_thread_may_not_begin_what_is_under_way);
    }
    check_section("");
    RUN(all_writes_of_a_turn_go_out_in_one_system_call);
    RUN(a_write_and_a_close_go_out_in_one_system_call);
    RUN(sends_to_a_socket_with_room_again_have_no_completions);
    RUN(a_tick_brings_all_that_is_ready);
    RUN(an_overflown_cq_loses_nothing);
    return check_end();
}
