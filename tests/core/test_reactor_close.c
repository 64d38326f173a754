/* The end of a reactor: whatever is open, close gives it all back at once; where it cannot, it leaks, and says how much. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "check.h"
#include "driver.h"

/* A close that took the second which it allows the kernel has failed to find out that it was done. */
#define PROMPT_NS (900 * MILLISECOND)

#define STREAMS 60

static const struct setting *setting; /* of the tests that are run now */

/* Not a driver: nothing is at rest when these tests close. */
static struct ul_reactor *begin_reactor(void) {
    struct ul_reactor *reactor = reactor_open(&setting->options);
    CHECK_INT(ul_reactor_begin(reactor), ==, 0);
    return reactor;
}

static void close_promptly(struct ul_reactor *reactor) {
    int64_t started = check_now_ns();
    CHECK_INT(ul_reactor_close(reactor), ==, 0);
    CHECK_INT(check_now_ns() - started, <, PROMPT_NS);
}

/* --- with everything open ---------------------------------------------------------------------------------------------------------- */

struct everything {
    int listener;
    uint16_t port;
    int fds[STREAMS];
    struct peer peers[STREAMS];
    int pipe[2];
};

static char large[1 << 20];

static void open_everything(struct ul_reactor *reactor, struct everything *everything) {
    struct ul_streams *streams = ul_reactor_streams(reactor);
    everything->listener = listen_on_loopback(10);
    everything->port = port_of(everything->listener);
    CHECK_INT(ul_listener_open(ul_reactor_listeners(reactor), everything->listener), >=, 0);
    for (int i = 0; i < STREAMS; i++) {
        everything->fds[i] = peer_connect(&everything->peers[i], i % 2 ? FAMILY_TCP : FAMILY_UNIX);
        int32_t token = ul_stream_open(streams, everything->fds[i]);
        CHECK_INT(token, >=, 0);
        if (i % 3)
            ul_stream_read(streams, token, true);
        if (i % 4 == 0)
            (i % 8 == 0 ? ul_stream_write_pinned : ul_stream_write)(streams, token, large, sizeof large);
        if (i % 5 == 0)
            peer_send(&everything->peers[i], large, 50000);
        if (i % 7 == 0)
            ul_stream_close(streams, token);
    }
    SYSTEM(pipe2(everything->pipe, O_CLOEXEC));
    for (int i = 0; i < 20; i++)
        ul_operation_start(ul_reactor_operations(reactor), IORING_OP_POLL_ADD, everything->pipe[0], 0, 0, 0, POLLIN, 0, 0);
}

/* The reactor is gone: nothing of it keeps a socket open. */
static void close_everything(struct everything *everything) {
    close(everything->listener);
    CHECK(port_is_free(everything->port));
    for (int i = 0; i < STREAMS; i++) {
        close(everything->fds[i]);
        CHECK_UNTIL(peer_is_at_the_end(&everything->peers[i]), (void)0);
        peer_free(&everything->peers[i]);
    }
    close(everything->pipe[0]);
    close(everything->pipe[1]);
}

static void check_close_after(int ticks, bool end) {
    struct everything everything;
    struct ul_reactor *reactor = begin_reactor();
    open_everything(reactor, &everything);
    for (int i = 0; i < ticks; i++)
        CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    if (end)
        ul_reactor_end(reactor);
    close_promptly(reactor);
    close_everything(&everything);
}

static void close_gives_back_what_has_just_been_asked(void) { check_close_after(0, false); }
static void close_gives_back_what_has_just_been_submitted(void) { check_close_after(0, true); }
static void close_gives_back_what_is_under_way(void) { check_close_after(1, true); }
static void close_gives_back_what_has_settled(void) { check_close_after(50, true); }

static void close_gives_back_what_was_never_begun(void) {
    struct everything everything;
    struct ul_reactor *reactor = reactor_open(&setting->options);
    open_everything(reactor, &everything);
    close_promptly(reactor);
    close_everything(&everything);
}

static void close_gives_back_completions_that_were_not_taken(void) {
    struct everything everything;
    struct ul_reactor *reactor = begin_reactor();
    open_everything(reactor, &everything);
    CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    for (int i = 0; i < STREAMS; i++)
        peer_send(&everything.peers[i], large, 1000);
    SYSTEM(write(everything.pipe[1], "x", 1));
    int client = connect_to(everything.listener);
    ul_operation_start(ul_reactor_operations(reactor), IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(reactor), ==, 0);
    close_promptly(reactor);
    close_everything(&everything);
    char byte; /* accepted by the kernel or not: over */
    CHECK_UNTIL(recv(client, &byte, 1, MSG_DONTWAIT) == 0 || errno != EAGAIN, (void)0);
    close(client);
}

static void close_after_a_wake_that_was_not_taken(void) {
    struct ul_reactor *reactor = begin_reactor();
    CHECK_INT(ul_reactor_tick(reactor, 0), ==, 0);
    ul_wake(reactor->wake);
    ul_operation_start(ul_reactor_operations(reactor), IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(reactor), ==, 0);
    close_promptly(reactor);
}

static void close_after_a_wake_that_is_on_its_way(void) {
    struct ul_reactor *reactor = begin_reactor();
    CHECK_INT(ul_reactor_tick(reactor, 0), ==, 0);
    ul_wake(reactor->wake);
    ul_reactor_end(reactor);
    close_promptly(reactor);
}

static void *go_on_waking(void *waker) {
    for (int i = 0; i < 2000; i++)
        ul_wake(waker);
    ul_wake_release(waker);
    return NULL;
}

static void wakes_may_come_while_it_closes(void) {
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        struct ul_reactor *reactor = begin_reactor();
        CHECK_INT(pthread_create(&thread, NULL, go_on_waking, ul_reactor_waker(reactor)), ==, 0);
        for (int ticks = 0; ticks < i; ticks++)
            CHECK_INT(ul_reactor_tick(reactor, 0), ==, 0);
        ul_reactor_end(reactor);
        close_promptly(reactor);
        CHECK_INT(pthread_join(thread, NULL), ==, 0);
    }
}

static void close_without_an_end_takes_the_registration_back(void) {
    for (int i = 0; i < 20; i++) { /* a thread has sixteen places */
        struct ul_report report;
        struct ul_reactor *reactor = begin_reactor();
        ul_reactor_report(reactor, &report);
        CHECK_INT(report.ring_registered, ==, setting->options.register_ring);
        close_promptly(reactor);
    }
}

static void hundreds_of_streams_are_given_back(void) {
    enum { MANY = 600 };
    int fds[MANY];
    static struct peer peers[MANY];
    struct ul_reactor *reactor = begin_reactor();
    for (int i = 0; i < MANY; i++) {
        fds[i] = peer_connect(&peers[i], FAMILY_UNIX);
        int32_t token = ul_stream_open(ul_reactor_streams(reactor), fds[i]);
        ul_stream_read(ul_reactor_streams(reactor), token, true);
    }
    for (int i = 0; i < MANY; i++)
        CHECK_INT(ul_reactor_tick(reactor, 0), ==, 0);
    close_promptly(reactor);
    for (int i = 0; i < MANY; i++) {
        close(fds[i]);
        CHECK(peer_is_at_the_end(&peers[i]));
        peer_free(&peers[i]);
    }
}

/* Their last completions fill a small CQ hundreds of times over. */
static void thousands_of_operations_are_given_back(void) {
    int ends[2];
    struct ul_reactor *reactor = begin_reactor();
    SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    for (int i = 0; i < 5000; i++)
        CHECK_INT(ul_operation_start(ul_reactor_operations(reactor), IORING_OP_POLL_ADD, ends[0], 0, 0, 0, POLLIN, 0, 0), >=, 0);
    CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    CHECK_INT(ul_reactor_close(reactor), ==, 0);
    close(ends[0]);
    close(ends[1]);
}

static void a_reactor_that_cannot_be_made_leaves_nothing(void) {
    int error = 0;
    close_promptly(reactor_open(&setting->options));
    struct ul_options options = setting->options;
    options.buffer_count = 3; /* not a power of two */
    CHECK(!ul_reactor_open(&options, &error));
    CHECK_INT(error, ==, -EINVAL);
}

/* --- in another process ------------------------------------------------------------------------------------------------------------ */

static void use_after_abandoning(struct ul_reactor *reactor, int fd) {
    struct ul_streams *streams = ul_reactor_streams(reactor);
    ul_reactor_abandon(reactor);
    CHECK_INT(ul_reactor_begin(reactor), ==, -EOWNERDEAD);
    CHECK_INT(ul_reactor_tick(reactor, -1), ==, -EOWNERDEAD);
    CHECK_INT(ul_reactor_flush(reactor), ==, 0);
    ul_wake(reactor->wake);
    int32_t token = ul_stream_open(streams, fd);
    CHECK_INT(ul_stream_read(streams, token, true), ==, 0);
    CHECK_INT(ul_stream_write(streams, token, "x", 1), ==, 1);
    CHECK_INT(ul_stream_close(streams, token), ==, 0);
    CHECK_INT(ul_stream_close(streams, 0), ==, 0); /* the parent's */
    CHECK_INT(ul_operation_start(ul_reactor_operations(reactor), IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0), >=, 0);
    ul_reactor_end(reactor);
    CHECK_INT(ul_reactor_close(reactor), ==, 0);
}

static void a_forked_child_abandons_and_the_parent_goes_on(void) {
    int status;
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    fflush(stdout);
    pid_t child = SYSTEM(fork());
    if (child == 0) {
        use_after_abandoning(driver->reactor, connection.fd);
        struct driver *own = driver_open(&setting->options); /* a reactor of its own works */
        driver_fence(own);
        driver_close(own);
        _exit(EXIT_SUCCESS);
    }
    SYSTEM(waitpid(child, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS);
    peer_send(&connection.peer, "still there", 11);
    UNTIL(driver, driver_heard(driver, connection.token)->got.length == 11);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* Keeps all that it has inherited but what the owner of a reactor opens, until the parent is done. */
static _Noreturn void be_a_child_that_knows_nothing(struct everything *everything, int parent) {
    char byte;
    close(everything->listener);
    close(everything->pipe[0]);
    for (int i = 0; i < STREAMS; i++) {
        close(everything->fds[i]);
        peer_close(&everything->peers[i]);
    }
    SYSTEM(write(parent, "x", 1));
    _exit(read(parent, &byte, 1) == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}

static void a_child_that_knows_nothing_does_not_keep_the_port(void) {
    struct everything everything;
    int line[2], status;
    char byte;
    struct ul_reactor *reactor = begin_reactor();
    open_everything(reactor, &everything);
    CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
    fflush(stdout);
    pid_t child = SYSTEM(fork());
    if (child == 0) {
        close(line[0]);
        be_a_child_that_knows_nothing(&everything, line[1]);
    }
    CHECK_INT(read(line[0], &byte, 1), ==, 1);
    ul_reactor_end(reactor);
    close_promptly(reactor);
    close_everything(&everything);
    close(line[0]);
    close(line[1]);
    SYSTEM(waitpid(child, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS);
}

/* --- after an end that left events -------------------------------------------------------------------------------------------------- */

static int open_fds(void) {
    int count = 0;
    for (int fd = 0; fd < 1000; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* More completions than the CQ has room for, and so taken by the end itself; connections are among them. */
static void what_an_end_left_untold_is_closed(void) {
    enum { CLIENTS = 40 };
    static struct ul_options options;
    options = setting->options;
    options.sq_entries = 4;
    options.cq_entries = 8;
    struct ul_reactor *reactor = reactor_open(&options);
    CHECK_INT(ul_reactor_begin(reactor), ==, 0);
    int before = open_fds();
    int listener = listen_on_loopback(CLIENTS);
    CHECK_INT(ul_listener_open(ul_reactor_listeners(reactor), listener), >=, 0);
    CHECK_INT(ul_reactor_flush(reactor), ==, 0);
    int clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_to(listener);
    for (int i = 0; i < 3 * (int)options.cq_entries; i++)
        ul_operation_start(ul_reactor_operations(reactor), IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    ul_reactor_end(reactor);
    CHECK_INT(ul_ring_ready(&reactor->engine.ring), >, options.cq_entries);
    int rings_own = 2; /* its fd, and the one that it is woken by */
    close_promptly(reactor);
    close(listener);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    CHECK_INT(open_fds(), ==, before - rings_own);
}

/* --- in another thread ------------------------------------------------------------------------------------------------------------- */

static char read_to[100];

static void *begin_open_everything_and_read(void *argument) {
    struct everything *everything = argument;
    struct ul_reactor *reactor = begin_reactor();
    open_everything(reactor, everything);
    ul_operation_start(ul_reactor_operations(reactor), IORING_OP_READ, everything->pipe[0], (uint64_t)(uintptr_t)read_to, sizeof read_to, (uint64_t)-1, 0, 0, 0);
    CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    ul_reactor_end(reactor);
    return reactor;
}

static void *begin_and_open_everything(void *argument) {
    struct ul_reactor *reactor = begin_reactor();
    open_everything(reactor, argument);
    CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    ul_reactor_end(reactor);
    return reactor;
}

static bool is_mapped(void *address) {
    unsigned char residency;
    return mincore(address, 1, &residency) == 0;
}

static struct ul_reactor *reactor_of_a_thread(void *(*runs)(void *), void *with) {
    pthread_t thread;
    void *reactor;
    CHECK_INT(pthread_create(&thread, NULL, runs, with), ==, 0);
    CHECK_INT(pthread_join(thread, &reactor), ==, 0);
    return reactor;
}

static void close_everything_some_time(struct everything *everything) {
    close(everything->listener);
    CHECK_UNTIL(port_is_free(everything->port), (void)0); /* the kernel lets go of a closed ring in its own time */
    for (int i = 0; i < STREAMS; i++) {
        close(everything->fds[i]);
        CHECK_UNTIL(peer_is_at_the_end(&everything->peers[i]), (void)0);
        peer_free(&everything->peers[i]);
    }
    close(everything->pipe[0]);
    close(everything->pipe[1]);
}

static void a_close_from_another_thread_gives_all_back(void) {
    struct everything everything;
    struct ul_reactor *reactor = reactor_of_a_thread(begin_and_open_everything, &everything);
    char *pool = ul_reactor_pool(reactor);
    int clients[5];
    for (int i = 0; i < 5; i++)
        clients[i] = SYSTEM(connect_to(everything.listener)); /* accepted, or not, by a ring that nobody looks at */
    close_promptly(reactor);
    CHECK(!is_mapped(pool));
    close_everything_some_time(&everything);
    for (int i = 0; i < 5; i++) {
        char byte;
        CHECK_INT(recv(clients[i], &byte, 1, 0), <=, 0); /* the end, or a reset */
        close(clients[i]);
    }
}

static void a_close_from_another_thread_while_memory_is_in_use_leaks_and_counts(void) {
    struct everything everything;
    struct ul_reactor *reactor = reactor_of_a_thread(begin_open_everything_and_read, &everything);
    static struct ul_reactor *kept; /* what is leaked stays reachable, and so no leak to the sanitizer */
    kept = reactor;
    struct ul_report report;
    ul_reactor_report(kept, &report);
    if (!(report.setup_flags & IORING_SETUP_DEFER_TASKRUN))
        check_skip("without deferred work any thread may close");
    char *pool = ul_reactor_pool(reactor);
    int64_t started = check_now_ns();
    uint64_t leaked = ul_reactor_close(reactor);
    CHECK_INT(check_now_ns() - started, <, PROMPT_NS);
    CHECK_INT(leaked, >, report.buffer_count * report.buffer_size);
    CHECK(is_mapped(pool));
    close_everything_some_time(&everything);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(close_gives_back_what_has_just_been_asked);
        RUN(close_gives_back_what_has_just_been_submitted);
        RUN(close_gives_back_what_is_under_way);
        RUN(close_gives_back_what_has_settled);
        RUN(close_gives_back_what_was_never_begun);
        RUN(close_gives_back_completions_that_were_not_taken);
        RUN(close_after_a_wake_that_was_not_taken);
        RUN(close_after_a_wake_that_is_on_its_way);
        RUN(wakes_may_come_while_it_closes);
        RUN(close_without_an_end_takes_the_registration_back);
        RUN(hundreds_of_streams_are_given_back);
        RUN(thousands_of_operations_are_given_back);
        RUN(a_reactor_that_cannot_be_made_leaves_nothing);
        RUN(a_forked_child_abandons_and_the_parent_goes_on);
        RUN(a_child_that_knows_nothing_does_not_keep_the_port);
        RUN(what_an_end_left_untold_is_closed);
        RUN(a_close_from_another_thread_gives_all_back);
        RUN(a_close_from_another_thread_while_memory_is_in_use_leaks_and_counts);
    }
    return check_end();
}
