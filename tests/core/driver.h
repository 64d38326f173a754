/* A minimal loop around a reactor: it ticks, and writes down what it is told, as the owner of a reactor would act on it.
 *
 * With every event it checks what holds whatever happens: tokens are of what is alive, spans lie inside the pool, nothing comes for a
 * stream after its LOST, and no bytes after its EOF.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include "check.h"
#include "peers.h"
#include "reactor.h"

/* What has been heard of one stream. */
struct heard {
    int32_t token;
    struct bytes got;
    bool eof, lost;
    int error;         /* of LOST */
    uint32_t drained;  /* how often */
    uint32_t released; /* pinned buffers, all together */
    int32_t room;      /* of READABLE, until it is answered */
};

struct accepted {
    int32_t listener;
    int fd; /* or -errno */
};

struct done {
    int32_t operation;
    int32_t result;
};

/* What has been heard of an endpoint, in order. */
struct note {
    int32_t kind, endpoint;
    int32_t error;     /* of ENDPOINT_ERROR */
    struct bytes data; /* of DATAGRAM */
    uint32_t name_length;
};

struct driver {
    struct ul_reactor *reactor;
    struct ul_endpoints *endpoints;
    struct note *notes;
    size_t note_count;
    struct ul_streams *streams;
    struct ul_listeners *listeners;
    struct ul_operations *operations;
    struct heard *heard; /* by the index in the token */
    size_t heard_count;
    struct accepted *accepted;
    size_t accepted_count;
    struct done *done;
    size_t done_count;
    bool holds_readable; /* the test answers READABLE itself */
};

/* Answers READABLE. */
void driver_received(struct driver *driver, int32_t token, int32_t result);

/* The reactors that a test should hold on: a plain one, that of the loop, and those on which what is rare elsewhere is the rule. */
struct setting {
    const char *name;
    struct ul_options options;
};
extern const struct setting settings[];
extern const size_t settings_count;
extern const struct setting *const usual_setting;
extern const struct setting *const tiny_setting; /* 4 SQEs, 8 CQEs, 2 buffers */

/* A reactor of this setting. The test is skipped where the kernel has no such thing; a kernel that leaks fixed files gets no table. */
struct ul_reactor *reactor_open(const struct ul_options *options);

/* The same, begun, with its driver. */
struct driver *driver_open(const struct ul_options *options);

/* End and close. Before that, all that the test used must have been given back. */
void driver_close(struct driver *driver);

/* One tick: how many events. */
int driver_tick(struct driver *driver, int64_t timeout_ns);

struct ul_report driver_report(const struct driver *driver);
struct heard *driver_heard(struct driver *driver, int32_t token);
const struct done *driver_done(const struct driver *driver, int32_t operation); /* NULL: not yet */
size_t driver_done_times(const struct driver *driver, int32_t operation);

/* Tick until the condition holds. */
#define UNTIL(driver, condition) CHECK_UNTIL(condition, driver_tick(driver, MILLISECOND))

/* Ticks until all that the kernel has ready has been heard: for what must not happen. */
void driver_fence(struct driver *driver);

/* A stream and the peer that it talks to. */
struct connection {
    int fd;
    int32_t token;
    struct peer peer;
};
struct connection connection_open(struct driver *driver, enum family family);
struct connection connection_open_small(struct driver *driver, enum family family); /* sends are short */

/* Close it if it is not lost yet, and check that the peer sees the end. */
void connection_close(struct driver *driver, struct connection *connection);

/* The rest of the way, after LOST. */
void connection_finish(struct driver *driver, struct connection *connection);

#endif
