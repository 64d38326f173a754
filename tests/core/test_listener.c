/* Listeners: connections come as they are made, and stop coming when they should. */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "check.h"
#include "driver.h"

#define CLIENTS 100

static const struct setting *setting; /* of the tests that are run now */
static int listener;

static struct driver *open_listening(int32_t *token) {
    struct driver *driver = driver_open(&setting->options);
    listener = listen_on_loopback(2 * CLIENTS);
    *token = ul_listener_open(driver->listeners, listener);
    CHECK_INT(*token, >=, 0);
    return driver;
}

static void close_listening(struct driver *driver) {
    close(listener);
    driver_close(driver);
}

/* True once the other end is closed. */
static bool is_over(int client) {
    char byte;
    ssize_t length = recv(client, &byte, 1, MSG_DONTWAIT);
    return length == 0 || (length < 0 && errno != EAGAIN);
}

static void connections_come_ready_for_use(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    int client = connect_to(listener);
    UNTIL(driver, driver->accepted_count == 1);
    int fd = driver->accepted[0].fd;
    CHECK_INT(driver->accepted[0].listener, ==, token);
    CHECK(SYSTEM(fcntl(fd, F_GETFL)) & O_NONBLOCK);
    CHECK(SYSTEM(fcntl(fd, F_GETFD)) & FD_CLOEXEC);
    SYSTEM(send(fd, "x", 1, 0));
    char byte;
    CHECK_UNTIL(recv(client, &byte, 1, 0) == 1, (void)0);
    close(fd);
    close(client);
    ul_listener_close(driver->listeners, token);
    close_listening(driver);
}

static void many_connections_come_once_each(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    int clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_to(listener);
    UNTIL(driver, driver->accepted_count >= CLIENTS);
    driver_fence(driver);
    CHECK_INT(driver->accepted_count, ==, CLIENTS);
    CHECK_INT(driver_report(driver).stats.accepts, ==, CLIENTS);
    for (int i = 0; i < CLIENTS; i++)
        close(SYSTEM(driver->accepted[i].fd));
    for (int i = 0; i < CLIENTS; i++) {
        CHECK_UNTIL(is_over(clients[i]), (void)0);
        close(clients[i]);
    }
    ul_listener_close(driver->listeners, token);
    close_listening(driver);
}

static void one_accept_serves_many_connections(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    for (size_t i = 0; i < CLIENTS; i++) {
        int client = connect_to(listener);
        UNTIL(driver, driver->accepted_count == i + 1);
        close(SYSTEM(driver->accepted[i].fd));
        close(client);
    }
    CHECK_INT(driver_report(driver).stats.accept_rearms, ==, 0);
    ul_listener_close(driver->listeners, token);
    close_listening(driver);
}

static void several_listeners_do_not_mix(void) {
    struct driver *driver = driver_open(&setting->options);
    int fds[4], clients[4];
    int32_t tokens[4];
    for (int i = 0; i < 4; i++) {
        fds[i] = listen_on_loopback(4);
        tokens[i] = ul_listener_open(driver->listeners, fds[i]);
    }
    for (size_t i = 0; i < 4; i++) {
        clients[i] = connect_to(fds[i]);
        UNTIL(driver, driver->accepted_count == i + 1);
        CHECK_INT(driver->accepted[i].listener, ==, tokens[i]);
    }
    for (int i = 0; i < 4; i++) {
        close(driver->accepted[i].fd);
        close(clients[i]);
        CHECK_INT(ul_listener_close(driver->listeners, tokens[i]), ==, 0);
        UNTIL(driver, driver_report(driver).listeners == (uint32_t)(3 - i));
        close(fds[i]);
    }
    driver_close(driver);
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void a_closed_listener_accepts_no_more(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    driver_fence(driver);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    int client = connect_to(listener);
    driver_fence(driver);
    CHECK_INT(driver->accepted_count, ==, 0);
    CHECK_INT(driver_report(driver).listeners, ==, 0);
    int fd = SYSTEM(accept(listener, NULL, NULL)); /* it waits for whoever accepts next on this socket */
    close(fd);
    close(client);
    close_listening(driver);
}

/* A connection that the kernel has accepted already, when the listener is closed before that is heard. */
static void a_connection_that_comes_after_the_close_is_closed(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    driver_fence(driver);
    int client = connect_to(listener);
    ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    UNTIL(driver, driver_report(driver).listeners == 0);
    CHECK_INT(driver->accepted_count, ==, 0);
    CHECK_UNTIL(is_over(client), (void)0);
    close(client);
    close_listening(driver);
}

static void closing_a_listener_before_it_has_begun_is_harmless(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    UNTIL(driver, driver_report(driver).listeners == 0);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, -ENOENT);
    CHECK_INT(ul_listener_start(driver->listeners, token), ==, -ENOENT);
    CHECK_INT(driver->accepted_count, ==, 0);
    close_listening(driver);
}

static void the_port_is_free_once_the_listener_is_closed(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    uint16_t port = port_of(listener);
    driver_fence(driver);
    ul_listener_close(driver->listeners, token);
    close(listener);
    CHECK(!port_is_free(port)); /* the armed accept keeps the socket */
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0); /* no tick: an owner may bind again at once */
    CHECK(port_is_free(port));
    driver_close(driver);
}

/* --- errors ------------------------------------------------------------------------------------------------------------------------ */

/* Two descriptors are left. An armed accept keeps the limit under which it was armed. */
static void limit_descriptors(void) {
    struct rlimit limit;
    int first = SYSTEM(dup(STDIN_FILENO)), second = SYSTEM(dup(STDIN_FILENO));
    SYSTEM(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = (rlim_t)second + 1;
    SYSTEM(setrlimit(RLIMIT_NOFILE, &limit));
    close(first);
    close(second);
}

static void without_descriptors_accepting_stops_until_it_is_started_again(void) {
    struct driver *driver = driver_open(&setting->options);
    int clients[3];
    listener = listen_on_loopback(3);
    for (int i = 0; i < 3; i++)
        clients[i] = connect_to(listener);
    limit_descriptors();
    int32_t token = ul_listener_open(driver->listeners, listener);
    UNTIL(driver, driver->accepted_count == 3);
    CHECK_INT(driver->accepted[2].fd, ==, -EMFILE);
    CHECK_INT(driver->accepted[2].listener, ==, token);
    close(SYSTEM(driver->accepted[0].fd));
    close(SYSTEM(driver->accepted[1].fd));
    driver_fence(driver);
    CHECK_INT(driver->accepted_count, ==, 3); /* not before it is told to */
    CHECK_INT(ul_listener_start(driver->listeners, token), ==, 0);
    CHECK_INT(ul_listener_start(driver->listeners, token), ==, 0); /* twice is once */
    UNTIL(driver, driver->accepted_count == 4);
    close(SYSTEM(driver->accepted[3].fd));
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    CHECK_INT(driver_report(driver).stats.accepts, ==, 3);
    ul_listener_close(driver->listeners, token);
    close_listening(driver);
}

/* It might be another process: a loop that is busy takes no connection that another would accept at once. */
static void one_that_is_busy_leaves_connections_to_the_others(void) {
    struct driver *busy = driver_open(&setting->options), *other = driver_open(&setting->options);
    listener = listen_on_loopback(CLIENTS);
    int32_t first = ul_listener_open_shared(busy->listeners, listener);
    driver_fence(busy); /* it waits for connections, and is the first to */
    int32_t second = ul_listener_open_shared(other->listeners, listener);
    driver_fence(other);
    int clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = connect_to(listener);
        UNTIL(other, other->accepted_count == (size_t)i + 1);
    }
    driver_fence(busy); /* it was told of them all, and finds none */
    CHECK_INT(busy->accepted_count, ==, 0);
    for (int i = 0; i < CLIENTS; i++) {
        close(SYSTEM(other->accepted[i].fd));
        close(clients[i]);
    }
    ul_listener_close(busy->listeners, first);
    ul_listener_close(other->listeners, second);
    driver_close(other);
    close_listening(busy);
}

static void a_broken_listener_is_told_and_can_be_closed(void) {
    int32_t token;
    struct driver *driver = open_listening(&token);
    driver_fence(driver);
    SYSTEM(shutdown(listener, SHUT_RDWR));
    UNTIL(driver, driver->accepted_count == 1);
    CHECK_INT(driver->accepted[0].fd, ==, -EINVAL);
    driver_fence(driver);
    CHECK_INT(driver->accepted_count, ==, 1);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    CHECK_INT(driver_report(driver).listeners, ==, 0);
    close_listening(driver);
}

static void what_is_no_listener_is_told(void) {
    struct driver *driver = driver_open(&setting->options);
    int32_t token = ul_listener_open(driver->listeners, 987654);
    UNTIL(driver, driver->accepted_count == 1);
    CHECK_INT(driver->accepted[0].fd, ==, -EBADF);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(connections_come_ready_for_use);
        RUN(many_connections_come_once_each);
        RUN(one_accept_serves_many_connections);
        RUN(several_listeners_do_not_mix);
        RUN(a_closed_listener_accepts_no_more);
        RUN(a_connection_that_comes_after_the_close_is_closed);
        RUN(closing_a_listener_before_it_has_begun_is_harmless);
        RUN(the_port_is_free_once_the_listener_is_closed);
        RUN(without_descriptors_accepting_stops_until_it_is_started_again);
        RUN(one_that_is_busy_leaves_connections_to_the_others);
        RUN(a_broken_listener_is_told_and_can_be_closed);
        RUN(what_is_no_listener_is_told);
    }
    return check_end();
}
