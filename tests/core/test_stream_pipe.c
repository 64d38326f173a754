/* Streams on what is no socket: pipes, FIFOs, terminals, /dev/null. They are read in bulk mode, and end. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

#define MESSAGE_BYTES 12000U /* a socket's would change its mode */

static const struct setting *setting; /* of the tests that are run now */

static char message[MESSAGE_BYTES];

struct pipe {
    int32_t token;
    int fd, write_end;
    size_t written;
};

static struct pipe pipe_open(struct driver *driver) {
    int ends[2];
    SYSTEM(pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    struct pipe pipe = {.token = ul_stream_open_pipe(driver->streams, ends[0]), .fd = ends[0], .write_end = ends[1]};
    CHECK_INT(pipe.token, >=, 0);
    ul_stream_read(driver->streams, pipe.token, true);
    return pipe;
}

static void pipe_send(struct pipe *pipe, size_t length) {
    pattern_fill(message, length, 1, pipe->written);
    ssize_t written = write(pipe->write_end, message, length);
    pipe->written += written < 0 ? 0 : (size_t)written;
}

static struct heard *heard_of(struct driver *driver, const struct pipe *pipe) { return driver_heard(driver, pipe->token); }

static void exchange(struct driver *driver, struct pipe *pipe, size_t length) {
    pipe_send(pipe, length);
    UNTIL(driver, heard_of(driver, pipe)->got.length == pipe->written);
}

static void pipe_close(struct driver *driver, struct pipe *pipe) {
    pattern_check(&heard_of(driver, pipe)->got, 1);
    ul_stream_close(driver->streams, pipe->token);
    UNTIL(driver, heard_of(driver, pipe)->lost);
    close(pipe->fd);
    /* Nothing keeps it open, but for a ring that another thread has left, which the kernel closes some time later. */
    CHECK_UNTIL(write(pipe->write_end, "x", 1) < 0 && errno == EPIPE, (void)0);
    close(pipe->write_end);
}

static void it_is_read_to_its_end(void) {
    struct driver *driver = driver_open(&setting->options);
    struct pipe pipe = pipe_open(driver);
    for (size_t length = 1; length < MESSAGE_BYTES; length = length * 3 + 1)
        exchange(driver, &pipe, length);
    pipe_send(&pipe, 100); /* and the end at once */
    close(pipe.write_end);
    UNTIL(driver, heard_of(driver, &pipe)->eof);
    CHECK_INT(heard_of(driver, &pipe)->got.length, ==, pipe.written);
    pattern_check(&heard_of(driver, &pipe)->got, 1);
    ul_stream_close(driver->streams, pipe.token);
    UNTIL(driver, heard_of(driver, &pipe)->lost);
    CHECK_INT(heard_of(driver, &pipe)->error, ==, 0);
    close(pipe.fd);
    driver_close(driver);
}

static void packets_come_whole(void) {
    struct driver *driver = driver_open(&setting->options);
    int ends[2];
    SYSTEM(pipe2(ends, O_CLOEXEC | O_NONBLOCK | O_DIRECT));
    struct pipe pipe = {.token = ul_stream_open_pipe(driver->streams, ends[0]), .fd = ends[0], .write_end = ends[1]};
    ul_stream_read(driver->streams, pipe.token, true);
    for (size_t i = 0; i < 200; i++)
        exchange(driver, &pipe, 1 + i * 20);
    pipe_close(driver, &pipe);
    driver_close(driver);
}

static void pauses_at_random_lose_nothing(void) {
    struct driver *driver = driver_open(&setting->options);
    struct pipe pipe = pipe_open(driver);
    for (int i = 0; i < 2000; i++) {
        bool large = i / 8 % 2;
        pipe_send(&pipe, large ? 9000 + check_below(3000) : 1 + check_below(100));
        if (check_one_in(10))
            ul_stream_read(driver->streams, pipe.token, false);
        if (check_one_in(2))
            driver_tick(driver, 0);
        ul_stream_read(driver->streams, pipe.token, true);
    }
    UNTIL(driver, heard_of(driver, &pipe)->got.length == pipe.written);
    pipe_close(driver, &pipe);
    driver_close(driver);
}

static void a_fifo_without_a_writer_has_not_ended(void) {
    struct driver *driver = driver_open(&setting->options);
    char path[64];
    snprintf(path, sizeof path, "/tmp/uringloop-fifo-%d", (int)getpid());
    SYSTEM(mkfifo(path, 0600));
    int fd = SYSTEM(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    struct pipe pipe = {.token = ul_stream_open_pipe(driver->streams, fd), .fd = fd};
    ul_stream_read(driver->streams, pipe.token, true);
    driver_fence(driver);
    CHECK(!heard_of(driver, &pipe)->eof);
    pipe.write_end = SYSTEM(open(path, O_WRONLY | O_CLOEXEC));
    unlink(path);
    exchange(driver, &pipe, 10);
    CHECK(!heard_of(driver, &pipe)->eof);
    pipe_close(driver, &pipe);
    driver_close(driver);
}

/* A file that cannot be waited for. */
static void dev_null_ends(void) {
    struct driver *driver = driver_open(&setting->options);
    int fd = SYSTEM(open("/dev/null", O_RDONLY | O_CLOEXEC));
    int32_t token = ul_stream_open_pipe(driver->streams, fd);
    ul_stream_read(driver->streams, token, true);
    UNTIL(driver, driver_heard(driver, token)->eof);
    ul_stream_close(driver->streams, token);
    UNTIL(driver, driver_heard(driver, token)->lost);
    close(fd);
    driver_close(driver);
}

static void the_hang_up_of_a_terminal_is_its_error(void) {
    struct driver *driver = driver_open(&setting->options);
    int near = SYSTEM(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
    SYSTEM(grantpt(near));
    SYSTEM(unlockpt(near));
    int far = SYSTEM(open(ptsname(near), O_RDWR | O_NOCTTY | O_CLOEXEC));
    int32_t token = ul_stream_open_pipe(driver->streams, near);
    ul_stream_read(driver->streams, token, true);
    for (int i = 0; i < 3; i++) {
        size_t before = driver_heard(driver, token)->got.length;
        CHECK_INT(write(far, "hello", 5), ==, 5);
        UNTIL(driver, driver_heard(driver, token)->got.length == before + 5);
    }
    close(far);
    UNTIL(driver, driver_heard(driver, token)->lost);
    CHECK_INT(driver_heard(driver, token)->error, ==, EIO);
    close(near);
    driver_close(driver);
}

static void *go_on(void *argument) {
    struct driver *driver = argument;
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    while (driver_tick(driver, 0) > 0)
        continue;
    ul_reactor_end(driver->reactor);
    return NULL;
}

static void another_thread_goes_on_reading(void) {
    struct driver *driver = driver_open(&setting->options);
    struct pipe pipes[2] = {pipe_open(driver), pipe_open(driver)};
    exchange(driver, &pipes[0], 10);
    ul_reactor_end(driver->reactor);
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, go_on, driver), ==, 0);
    pthread_join(thread, NULL);
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    for (int i = 0; i < 2; i++) {
        exchange(driver, &pipes[i], 100);
        pipe_close(driver, &pipes[i]);
    }
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    signal(SIGPIPE, SIG_IGN);
    check_begin(arguments);
    check_seed();
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(it_is_read_to_its_end);
        RUN(packets_come_whole);
        RUN(pauses_at_random_lose_nothing);
        RUN(a_fifo_without_a_writer_has_not_ended);
        RUN(dev_null_ends);
        RUN(the_hang_up_of_a_terminal_is_its_error);
        RUN(another_thread_goes_on_reading);
    }
    return check_end();
}
