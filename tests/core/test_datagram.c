/* Datagram endpoints: whole, in order, with their addresses; errors of one datagram; and nothing left when they end. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "check.h"
#include "driver.h"

#define QUEUED 1000U /* more than a Unix socket takes */

static const struct setting *setting; /* of the tests that are run now */

/* An endpoint, and a plain socket that it talks to. */
struct pair {
    struct driver *driver;
    int fd, peer;
    int32_t token;
    struct sockaddr_in name, peer_name;
};

static int bound_socket(struct sockaddr_in *name) {
    socklen_t length = sizeof *name;
    int fd = SYSTEM(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    SYSTEM(bind(fd, (struct sockaddr *)name, sizeof *name));
    SYSTEM(getsockname(fd, (struct sockaddr *)name, &length));
    return fd;
}

static struct pair pair_open(void) {
    struct pair pair = {.driver = driver_open(&setting->options)};
    pair.fd = bound_socket(&pair.name);
    pair.peer = bound_socket(&pair.peer_name);
    pair.token = ul_endpoint_open(pair.driver->endpoints, pair.fd, 8);
    CHECK_INT(pair.token, >=, 0);
    CHECK_INT(ul_endpoint_read(pair.driver->endpoints, pair.token, true), ==, 0);
    return pair;
}

/* The same over a Unix socket, which is connected, and whose kernel queue is short. */
static struct pair pair_open_unix(void) {
    struct pair pair = {.driver = driver_open(&setting->options)};
    int fds[2];
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    pair.fd = fds[0];
    pair.peer = fds[1];
    pair.token = ul_endpoint_open(pair.driver->endpoints, pair.fd, 8);
    CHECK_INT(ul_endpoint_read(pair.driver->endpoints, pair.token, true), ==, 0);
    return pair;
}

static size_t times(const struct driver *driver, int32_t kind) {
    size_t count = 0;
    for (size_t i = 0; i < driver->note_count; i++)
        count += driver->notes[i].kind == kind;
    return count;
}

static const struct note *last_note(const struct driver *driver) { return &driver->notes[driver->note_count - 1]; }

static void pair_close(struct pair *pair) {
    if (!times(pair->driver, UL_EVENT_ENDPOINT_LOST))
        CHECK_INT(ul_endpoint_close(pair->driver->endpoints, pair->token), ==, 0);
    UNTIL(pair->driver, times(pair->driver, UL_EVENT_ENDPOINT_LOST));
    CHECK_INT(times(pair->driver, UL_EVENT_ENDPOINT_LOST), ==, 1);
    CHECK_INT(last_note(pair->driver)->kind, ==, UL_EVENT_ENDPOINT_LOST);
    close(pair->fd);
    close(pair->peer);
    driver_close(pair->driver);
}

static int64_t write_to_peer(struct pair *pair, const void *data, size_t length) {
    bool named = pair->peer_name.sin_family == AF_INET;
    return ul_endpoint_write(pair->driver->endpoints, pair->token, data, length, (const char *)&pair->peer_name,
                             named ? sizeof pair->peer_name : 0);
}

static void send_to_endpoint(struct pair *pair, const void *data, size_t length) {
    CHECK_INT(SYSTEM(sendto(pair->peer, data, length, 0, (struct sockaddr *)&pair->name, sizeof pair->name)), ==, length);
}

/* The next datagram of the peer is this number. */
static bool peer_gets(struct pair *pair, uint32_t number) {
    uint32_t got;
    ssize_t length = recv(pair->peer, &got, sizeof got, MSG_DONTWAIT);
    if (length < 0)
        return false;
    CHECK_INT(length, ==, sizeof got);
    CHECK_INT(got, ==, number);
    return true;
}

/* --- receiving --------------------------------------------------------------------------------------------------------------------- */

static void datagrams_come_whole_with_their_sender(void) {
    static const size_t sizes[] = {1, 0, 0, 1500, 65507, 3};
    struct pair pair = pair_open();
    char *data = malloc(65507);
    pattern_fill(data, 65507, 1, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        send_to_endpoint(&pair, data, sizes[i]);
        UNTIL(pair.driver, pair.driver->note_count == i + 1);
        CHECK_INT(last_note(pair.driver)->data.length, ==, sizes[i]);
        CHECK_INT(last_note(pair.driver)->name_length, ==, sizeof pair.name);
        pattern_check(&last_note(pair.driver)->data, 1);
    }
    free(data);
    CHECK_INT(driver_report(pair.driver).stats.datagrams_truncated, ==, 0);
    pair_close(&pair);
}

static void more_datagrams_than_buffers_all_come_in_order(void) {
    struct pair pair = pair_open();
    driver_tick(pair.driver, 0);
    for (uint32_t i = 0; i < 200; i++)
        send_to_endpoint(&pair, &i, sizeof i);
    UNTIL(pair.driver, pair.driver->note_count == 200);
    for (uint32_t i = 0; i < 200; i++)
        CHECK(memcmp(pair.driver->notes[i].data.data, &i, sizeof i) == 0);
    pair_close(&pair);
}

static void a_datagram_larger_than_a_buffer_is_cut_and_counted(void) {
    struct pair pair = pair_open_unix();
    size_t length = UL_DATAGRAM_BYTES_MAX + 1000;
    char *data = calloc(1, length);
    int room = 1 << 20;
    if (setsockopt(pair.peer, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) < 0)
        check_skip("a send buffer of 1 MiB needs CAP_NET_ADMIN");
    CHECK_INT(SYSTEM(send(pair.peer, data, length, 0)), ==, length);
    UNTIL(pair.driver, pair.driver->note_count == 1);
    CHECK_INT(last_note(pair.driver)->data.length, ==, UL_DATAGRAM_BYTES_MAX);
    CHECK_INT(driver_report(pair.driver).stats.datagrams_truncated, ==, 1);
    free(data);
    pair_close(&pair);
}

static void starved_endpoints_are_all_fed(void) {
    struct driver *driver = driver_open(&setting->options);
    enum { ENDPOINTS = 12 };
    struct sockaddr_in names[ENDPOINTS], name;
    int fds[ENDPOINTS], sender = bound_socket(&name);
    int32_t tokens[ENDPOINTS];
    for (int i = 0; i < ENDPOINTS; i++) {
        fds[i] = bound_socket(&names[i]);
        tokens[i] = ul_endpoint_open(driver->endpoints, fds[i], 0);
        ul_endpoint_read(driver->endpoints, tokens[i], true);
    }
    driver_tick(driver, 0);
    for (int turn = 0; turn < 5; turn++)
        for (int i = 0; i < ENDPOINTS; i++)
            SYSTEM(sendto(sender, "x", 1, 0, (struct sockaddr *)&names[i], sizeof names[i]));
    UNTIL(driver, times(driver, UL_EVENT_DATAGRAM) == 5 * ENDPOINTS);
    for (int i = 0; i < ENDPOINTS; i++)
        ul_endpoint_close(driver->endpoints, tokens[i]);
    UNTIL(driver, times(driver, UL_EVENT_ENDPOINT_LOST) == ENDPOINTS);
    for (int i = 0; i < ENDPOINTS; i++)
        close(fds[i]);
    close(sender);
    driver_close(driver);
}

static void a_stop_leaves_datagrams_in_the_socket(void) {
    struct pair pair = pair_open();
    driver_tick(pair.driver, 0);
    ul_endpoint_read(pair.driver->endpoints, pair.token, false);
    driver_fence(pair.driver);
    send_to_endpoint(&pair, "kept", 4);
    driver_fence(pair.driver);
    CHECK_INT(pair.driver->note_count, ==, 0);
    ul_endpoint_read(pair.driver->endpoints, pair.token, true);
    UNTIL(pair.driver, pair.driver->note_count == 1);
    pair_close(&pair);
}

/* --- sending ----------------------------------------------------------------------------------------------------------------------- */

static void one_and_several_are_sent_in_order(void) {
    struct pair pair = pair_open();
    uint32_t sent = 0, got = 0;
    for (uint32_t several = 1; several <= 150; several *= 3) {
        for (uint32_t i = 0; i < several; i++, sent++)
            CHECK_INT(write_to_peer(&pair, &sent, sizeof sent), ==, (i + 1) * (sizeof sent + 8));
        UNTIL(pair.driver, ul_endpoint_queued(pair.driver->endpoints, pair.token) == 0);
        while (got < sent)
            CHECK(peer_gets(&pair, got++));
    }
    CHECK_INT(driver_report(pair.driver).stats.datagrams_sent, ==, sent);
    CHECK_INT(pair.driver->note_count, ==, 0);
    pair_close(&pair);
}

static void empty_datagrams_are_sent(void) {
    struct pair pair = pair_open();
    for (int several = 1; several <= 2; several++) {
        for (int i = 0; i < several; i++)
            CHECK_INT(write_to_peer(&pair, "", 0), ==, 8 * (i + 1));
        UNTIL(pair.driver, ul_endpoint_queued(pair.driver->endpoints, pair.token) == 0);
        char byte;
        for (int i = 0; i < several; i++)
            CHECK_INT(SYSTEM(recv(pair.peer, &byte, 1, MSG_DONTWAIT)), ==, 0);
    }
    pair_close(&pair);
}

static void write_lengths(struct pair *pair, const char *bytes, const uint32_t *lengths, size_t count) {
    for (size_t i = 0; i < count; i++)
        write_to_peer(pair, bytes + i, lengths[i]);
    UNTIL(pair->driver, ul_endpoint_queued(pair->driver->endpoints, pair->token) == 0);
}

/* What a byte after the other of a pattern begins, so that no two are alike. */
static void peer_gets_lengths(struct pair *pair, const char *bytes, const uint32_t *lengths, size_t count) {
    char *got = malloc(65507);
    for (size_t i = 0; i < count; i++) {
        CHECK_INT(SYSTEM(recv(pair->peer, got, 65507, MSG_DONTWAIT)), ==, lengths[i]);
        CHECK(memcmp(got, bytes + i, lengths[i]) == 0);
    }
    CHECK_INT(recv(pair->peer, got, 65507, MSG_DONTWAIT), ==, -1);
    free(got);
}

static void those_of_one_length_are_joined_and_arrive_as_they_were(void) {
    static const uint32_t lengths[] = {100, 100, 100, 40, 40, 0, 100, 7, 8, 30000, 30000, 30000, 30000, 65507, 1, 1};
    const size_t count = sizeof lengths / sizeof *lengths;
    struct pair pair = pair_open();
    char *bytes = malloc(70000);
    pattern_fill(bytes, 70000, 1, 0);
    write_lengths(&pair, bytes, lengths, count);
    peer_gets_lengths(&pair, bytes, lengths, count);
    /* 100 100 100 40; 100 7; 30000 30000, twice; 1 1 */
    CHECK_INT(driver_report(pair.driver).stats.datagrams_joined, ==, 12);
    CHECK_INT(driver_report(pair.driver).stats.datagrams_sent, ==, count);
    CHECK_INT(pair.driver->note_count, ==, 0);
    free(bytes);
    pair_close(&pair);
}

static void what_is_refused_when_joined_is_sent_by_itself(void) {
    static const uint32_t lengths[] = {100, 100, 100, 100, 20, 20};
    struct pair pair = pair_open();
    char bytes[200];
    int yes = 1, no = 0;
    pattern_fill(bytes, sizeof bytes, 1, 0);
    SYSTEM(setsockopt(pair.fd, SOL_SOCKET, SO_NO_CHECK, &yes, sizeof yes)); /* as cutting needs checksums */
    write_lengths(&pair, bytes, lengths, 4);
    peer_gets_lengths(&pair, bytes, lengths, 4);
    SYSTEM(setsockopt(pair.fd, SOL_SOCKET, SO_NO_CHECK, &no, sizeof no));
    write_lengths(&pair, bytes, lengths, 6);
    peer_gets_lengths(&pair, bytes, lengths, 6);
    CHECK_INT(driver_report(pair.driver).stats.datagrams_joined, ==, 2); /* the shorter ones: they had not been refused */
    CHECK_INT(pair.driver->note_count, ==, 0);
    pair_close(&pair);
}

static void a_refusal_by_the_network_costs_one_datagram_of_those_joined(void) {
    struct pair pair = pair_open();
    struct sockaddr_in nobody = pair.peer_name;
    SYSTEM(connect(pair.fd, (struct sockaddr *)&nobody, sizeof nobody));
    close(pair.peer);
    ul_endpoint_write(pair.driver->endpoints, pair.token, "x", 1, "", 0);
    UNTIL(pair.driver, pair.driver->note_count == 1); /* by the receive that waits */
    ul_endpoint_read(pair.driver->endpoints, pair.token, false);
    driver_fence(pair.driver);
    ul_endpoint_write(pair.driver->endpoints, pair.token, "x", 1, "", 0);
    driver_fence(pair.driver); /* its refusal is kept for whoever asks next */
    pair.peer = SYSTEM(socket(AF_INET, SOCK_DGRAM, 0));
    SYSTEM(bind(pair.peer, (struct sockaddr *)&nobody, sizeof nobody));
    for (const char *each = "abcd"; *each; each++)
        ul_endpoint_write(pair.driver->endpoints, pair.token, each, 1, "", 0);
    UNTIL(pair.driver, ul_endpoint_queued(pair.driver->endpoints, pair.token) == 0);
    CHECK_INT(pair.driver->note_count, ==, 2);
    CHECK_INT(last_note(pair.driver)->error, ==, ECONNREFUSED);
    for (const char *each = "bcd"; *each; each++) {
        char got = 0;
        CHECK_INT(SYSTEM(recv(pair.peer, &got, 1, MSG_DONTWAIT)), ==, 1);
        CHECK_INT(got, ==, *each);
    }
    pair_close(&pair);
}

static void a_full_socket_is_waited_for_and_loses_nothing(void) {
    struct pair pair = pair_open_unix();
    uint32_t sent = 0, got = 0;
    for (; sent < QUEUED; sent++) {
        write_to_peer(&pair, &sent, sizeof sent);
        if (sent < 30) /* at first one by one, so that an offer is refused too */
            driver_tick(pair.driver, 0);
    }
    driver_fence(pair.driver);
    CHECK_INT(ul_endpoint_queued(pair.driver->endpoints, pair.token), >, 0);
    ul_endpoint_set_low_water(pair.driver->endpoints, pair.token, 0);
    CHECK_UNTIL(got == sent, {
        while (got < sent && peer_gets(&pair, got))
            got++;
        driver_tick(pair.driver, MILLISECOND);
    });
    UNTIL(pair.driver, times(pair.driver, UL_EVENT_ENDPOINT_DRAINED) == 1);
    CHECK_INT(driver_report(pair.driver).stats.datagram_waits, >, 0);
    CHECK_INT(times(pair.driver, UL_EVENT_ENDPOINT_ERROR), ==, 0);
    pair_close(&pair);
}

static void errors_concern_one_datagram_each(void) {
    struct pair pair = pair_open();
    char *large = calloc(1, 65508);
    uint32_t number = 0;
    write_to_peer(&pair, large, 65508);
    UNTIL(pair.driver, pair.driver->note_count == 1);
    write_to_peer(&pair, &number, sizeof number);
    number++;
    for (int i = 0; i < 2000; i++) /* more than there is room for events */
        write_to_peer(&pair, large, 65508);
    write_to_peer(&pair, &number, sizeof number);
    UNTIL(pair.driver, pair.driver->note_count == 2001);
    for (size_t i = 0; i < pair.driver->note_count; i++) {
        CHECK_INT(pair.driver->notes[i].kind, ==, UL_EVENT_ENDPOINT_ERROR);
        CHECK_INT(pair.driver->notes[i].error, ==, EMSGSIZE);
    }
    UNTIL(pair.driver, ul_endpoint_queued(pair.driver->endpoints, pair.token) == 0);
    CHECK(peer_gets(&pair, 0) && peer_gets(&pair, 1));
    free(large);
    pair_close(&pair);
}

static void a_refusal_by_the_network_is_told_and_receiving_goes_on(void) {
    struct pair pair = pair_open();
    SYSTEM(connect(pair.fd, (struct sockaddr *)&pair.peer_name, sizeof pair.peer_name));
    close(pair.peer);
    for (size_t i = 1; i <= 3; i++) {
        ul_endpoint_write(pair.driver->endpoints, pair.token, "x", 1, "", 0);
        UNTIL(pair.driver, pair.driver->note_count == i);
        CHECK_INT(last_note(pair.driver)->error, ==, ECONNREFUSED);
    }
    pair.peer = SYSTEM(socket(AF_INET, SOCK_DGRAM, 0));
    SYSTEM(bind(pair.peer, (struct sockaddr *)&pair.peer_name, sizeof pair.peer_name));
    send_to_endpoint(&pair, "here", 4);
    UNTIL(pair.driver, times(pair.driver, UL_EVENT_DATAGRAM) == 1);
    pair_close(&pair);
}

static void what_is_no_socket_is_told_once(void) {
    struct driver *driver = driver_open(&setting->options);
    int32_t token = ul_endpoint_open(driver->endpoints, 987654, 0);
    ul_endpoint_read(driver->endpoints, token, true);
    UNTIL(driver, driver->note_count == 1);
    driver_fence(driver);
    CHECK_INT(driver->note_count, ==, 1);
    CHECK_INT(driver->notes[0].error, ==, EBADF);
    ul_endpoint_close(driver->endpoints, token);
    UNTIL(driver, times(driver, UL_EVENT_ENDPOINT_LOST) == 1);
    driver_close(driver);
}

static void a_flush_between_ticks_sends(void) {
    struct pair pair = pair_open();
    for (uint32_t i = 0; i < 100; i++)
        write_to_peer(&pair, &i, sizeof i);
    CHECK_INT(ul_reactor_flush(pair.driver->reactor), ==, 0);
    for (uint32_t i = 0; i < 100; i++)
        CHECK(peer_gets(&pair, i));
    pair_close(&pair);
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void close_waits_for_a_full_socket_and_abort_does_not(void) {
    for (int aborted = 0; aborted < 2; aborted++) {
        struct pair pair = pair_open_unix();
        uint32_t got = 0;
        for (uint32_t i = 0; i < QUEUED; i++)
            write_to_peer(&pair, &i, sizeof i);
        driver_fence(pair.driver);
        CHECK_INT((aborted ? ul_endpoint_abort : ul_endpoint_close)(pair.driver->endpoints, pair.token), ==, 0);
        if (!aborted) {
            driver_fence(pair.driver);
            CHECK_INT(pair.driver->note_count, ==, 0);
        }
        CHECK_UNTIL(times(pair.driver, UL_EVENT_ENDPOINT_LOST), {
            while (!aborted && peer_gets(&pair, got))
                got++;
            driver_tick(pair.driver, MILLISECOND);
        });
        while (peer_gets(&pair, got))
            got++;
        CHECK(aborted ? got < QUEUED : got == QUEUED);
        CHECK_INT(ul_endpoint_close(pair.driver->endpoints, pair.token), ==, -ENOENT);
        pair_close(&pair);
    }
}

static void abort_sends_what_the_socket_has_room_for(void) {
    for (uint32_t count = 1; count <= 150; count *= 5) {
        struct pair pair = pair_open();
        for (uint32_t i = 0; i < count; i++)
            write_to_peer(&pair, &i, sizeof i);
        CHECK_INT(ul_endpoint_abort(pair.driver->endpoints, pair.token), ==, 0);
        for (uint32_t i = 0; i < count; i++) /* no tick: they are gone already */
            CHECK(peer_gets(&pair, i));
        CHECK_INT(ul_endpoint_queued(pair.driver->endpoints, pair.token), ==, 0);
        CHECK_INT(driver_report(pair.driver).stats.datagrams_sent, ==, count);
        pair_close(&pair);
    }
}

static void abort_passes_over_what_fails_and_tells_of_nothing(void) {
    struct pair pair = pair_open();
    char *large = calloc(1, 65508);
    uint32_t number = 0;
    write_to_peer(&pair, large, 65508);
    write_to_peer(&pair, &number, sizeof number);
    CHECK_INT(ul_endpoint_abort(pair.driver->endpoints, pair.token), ==, 0);
    CHECK(peer_gets(&pair, 0));
    free(large);
    pair_close(&pair);
    struct pair full = pair_open_unix();
    uint32_t got = 0;
    for (uint32_t i = 0; i < QUEUED; i++)
        write_to_peer(&full, &i, sizeof i);
    CHECK_INT(ul_endpoint_abort(full.driver->endpoints, full.token), ==, 0);
    UNTIL(full.driver, times(full.driver, UL_EVENT_ENDPOINT_LOST));
    CHECK_INT(full.driver->note_count, ==, 1);
    while (peer_gets(&full, got))
        got++;
    CHECK(got > 0 && got < QUEUED);
    pair_close(&full);
}

static void the_port_is_free_once_it_is_lost(void) {
    struct pair pair = pair_open();
    driver_fence(pair.driver);
    write_to_peer(&pair, "last", 4);
    ul_endpoint_close(pair.driver->endpoints, pair.token);
    UNTIL(pair.driver, times(pair.driver, UL_EVENT_ENDPOINT_LOST));
    close(pair.fd);
    pair.fd = SYSTEM(socket(AF_INET, SOCK_DGRAM, 0));
    SYSTEM(bind(pair.fd, (struct sockaddr *)&pair.name, sizeof pair.name));
    pair_close(&pair);
}

static void a_reactor_closes_with_endpoints_open(void) {
    struct pair pair = pair_open();
    struct pair full = pair_open_unix();
    for (uint32_t i = 0; i < QUEUED; i++)
        write_to_peer(&full, &i, sizeof i);
    send_to_endpoint(&pair, "unread", 6);
    driver_tick(full.driver, 0);
    struct pair *both[] = {&pair, &full};
    for (int i = 0; i < 2; i++) {
        ul_reactor_end(both[i]->driver->reactor);
        CHECK_INT(ul_reactor_close(both[i]->driver->reactor), ==, 0);
        free(both[i]->driver->notes);
        free(both[i]->driver);
        close(both[i]->fd);
        close(both[i]->peer);
    }
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(datagrams_come_whole_with_their_sender);
        RUN(more_datagrams_than_buffers_all_come_in_order);
        RUN(a_datagram_larger_than_a_buffer_is_cut_and_counted);
        RUN(starved_endpoints_are_all_fed);
        RUN(a_stop_leaves_datagrams_in_the_socket);
        RUN(one_and_several_are_sent_in_order);
        RUN(empty_datagrams_are_sent);
        RUN(those_of_one_length_are_joined_and_arrive_as_they_were);
        RUN(what_is_refused_when_joined_is_sent_by_itself);
        RUN(a_refusal_by_the_network_costs_one_datagram_of_those_joined);
        RUN(a_full_socket_is_waited_for_and_loses_nothing);
        RUN(errors_concern_one_datagram_each);
        RUN(a_refusal_by_the_network_is_told_and_receiving_goes_on);
        RUN(what_is_no_socket_is_told_once);
        RUN(a_flush_between_ticks_sends);
        RUN(close_waits_for_a_full_socket_and_abort_does_not);
        RUN(abort_sends_what_the_socket_has_room_for);
        RUN(abort_passes_over_what_fails_and_tells_of_nothing);
        RUN(the_port_is_free_once_it_is_lost);
        RUN(a_reactor_closes_with_endpoints_open);
    }
    return check_end();
}
