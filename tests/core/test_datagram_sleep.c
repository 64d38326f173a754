/* No tick sleeps over a datagram. The last of those that waited for room is offered at the end of a tick, and submitted with the next: what is written
 * or asked in between must not wait for the end of a sleep, since the one that is offered has no completion that would end it. */
#include <sys/socket.h>

#include "check.h"
#include "driver.h"

static const struct setting *setting; /* of the tests that are run now */

struct pair {
    struct driver *driver;
    int fd, peer;
    int32_t token;
    uint32_t written, got;
};

static void write_next(struct pair *pair) {
    CHECK_INT(ul_endpoint_write(pair->driver->endpoints, pair->token, (char *)&pair->written, sizeof pair->written, "", 0), >, 0);
    pair->written++;
}

static bool peer_gets_next(struct pair *pair) {
    uint32_t number;
    if (recv(pair->peer, &number, sizeof number, MSG_DONTWAIT) < 0)
        return false;
    CHECK_INT(number, ==, pair->got);
    pair->got++;
    return true;
}

static struct pair offered_and_not_submitted(void) {
    int fds[2];
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    struct pair pair = {.driver = driver_open(&setting->options), .fd = fds[0], .peer = fds[1]};
    pair.token = ul_endpoint_open(pair.driver->endpoints, pair.fd, 8);
    CHECK_INT(pair.token, >=, 0);
    driver_fence(pair.driver);
    while (!driver_report(pair.driver).stats.datagram_waits) {
        write_next(&pair);
        driver_tick(pair.driver, 0);
    }
    while (peer_gets_next(&pair))
        continue;
    driver_tick(pair.driver, CHECK_PATIENCE_NS); /* there is room */
    return pair;
}

static void pair_close(struct pair *pair) {
    size_t before = pair->driver->note_count;
    CHECK_INT(ul_endpoint_close(pair->driver->endpoints, pair->token), ==, 0);
    CHECK_UNTIL(pair->driver->note_count > before, driver_tick(pair->driver, CHECK_PATIENCE_NS));
    CHECK_INT(pair->driver->notes[before].kind, ==, UL_EVENT_ENDPOINT_LOST);
    close(pair->fd);
    close(pair->peer);
    driver_close(pair->driver);
}

static void a_datagram_behind_one_that_is_offered(void) {
    struct pair pair = offered_and_not_submitted();
    write_next(&pair);
    CHECK_UNTIL(peer_gets_next(&pair), driver_tick(pair.driver, CHECK_PATIENCE_NS));
    CHECK_UNTIL(peer_gets_next(&pair), driver_tick(pair.driver, 0));
    CHECK_INT(pair.got, ==, pair.written);
    pair_close(&pair);
}

static void low_water_behind_one_that_is_offered(void) {
    struct pair pair = offered_and_not_submitted();
    CHECK_INT(ul_endpoint_set_low_water(pair.driver->endpoints, pair.token, 0), ==, 0);
    CHECK_UNTIL(pair.driver->note_count, driver_tick(pair.driver, CHECK_PATIENCE_NS));
    CHECK_INT(pair.driver->notes[0].kind, ==, UL_EVENT_ENDPOINT_DRAINED);
    pair_close(&pair);
}

static void an_end_behind_one_that_is_offered(void) {
    struct pair pair = offered_and_not_submitted();
    pair_close(&pair);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(a_datagram_behind_one_that_is_offered);
        RUN(low_water_behind_one_that_is_offered);
        RUN(an_end_behind_one_that_is_offered);
    }
    return check_end();
}
