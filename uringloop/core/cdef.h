/* What Python sees of the core: the subset of the headers that cffi parses. The compiler checks it against them. */

enum ul_event_kind {
    UL_EVENT_DATA,
    UL_EVENT_ACCEPTED,
    UL_EVENT_EOF,
    UL_EVENT_LOST,
    UL_EVENT_DRAINED,
    UL_EVENT_DONE,
    UL_EVENT_DATAGRAM,
    UL_EVENT_ENDPOINT_ERROR,
    UL_EVENT_ENDPOINT_DRAINED,
    UL_EVENT_ENDPOINT_LOST,
    UL_EVENT_READABLE,
    ...
};
#define UL_BULK_BYTES_MAX ...
#define UL_SOCKET_NAME_BYTES ...
#define UL_EVENTS_MAX ...
#define UL_TURN_DUE ...
#define UL_DATAGRAM_BUFFER_BYTES ...
#define UL_NAME_BYTES ...
#define UL_NAME_BITS ...

#define IORING_OP_POLL_ADD ...
#define IORING_OP_READV ...
#define IORING_OP_WRITEV ...
#define IORING_OP_FSYNC ...
#define IORING_OP_FALLOCATE ...
#define IORING_OP_OPENAT ...
#define IORING_OP_CLOSE ...
#define IORING_OP_STATX ...
#define IORING_OP_READ ...
#define IORING_OP_WRITE ...
#define IORING_OP_SPLICE ...
#define IORING_OP_RENAMEAT ...
#define IORING_OP_UNLINKAT ...
#define IORING_OP_MKDIRAT ...
#define IORING_OP_SYMLINKAT ...
#define IORING_OP_LINKAT ...
#define IORING_OP_FSETXATTR ...
#define IORING_OP_SETXATTR ...
#define IORING_OP_FGETXATTR ...
#define IORING_OP_GETXATTR ...
#define IORING_OP_FTRUNCATE ...
#define IOSQE_ASYNC ...
#define IORING_SETUP_DEFER_TASKRUN ...
#define IORING_SETUP_NO_SQARRAY ...

struct ul_options {
    uint32_t sq_entries, cq_entries;
    uint32_t buffer_count, buffer_size;
    uint32_t datagram_buffers;
    int32_t files;
    bool incremental;
    bool rewinding;
    bool register_ring;
    bool limited_receives;
    bool inline_sends;
    bool late_slots;
    bool hardened;
    uint32_t without_flags;
};

enum ul_request {
    UL_REQUEST_RECV,
    UL_REQUEST_READABLE,
    UL_REQUEST_SEND_INLINE,
    UL_REQUEST_SEND_WAITING,
    UL_REQUEST_SLOT_FILL,
    UL_REQUEST_SLOT_CLEAR,
    UL_REQUEST_CANCEL,
    UL_REQUEST_ACCEPT,
    UL_REQUEST_ACCEPTABLE,
    UL_REQUEST_RECVMSG,
    UL_REQUEST_DATAGRAM,
    UL_REQUEST_DATAGRAM_ROOM,
    UL_REQUEST_OPERATION,
    UL_REQUEST_WAKE,
    UL_REQUEST_KINDS,
    ...
};

enum ul_end {
    UL_END_BY_ITSELF,
    UL_END_STARVED,
    UL_END_CANCELLED,
    UL_END_INTERRUPTED,
    UL_END_NOT_READY,
    UL_END_FAILED,
    UL_END_KINDS,
    ...
};

struct ul_stats {
    uint64_t ticks;
    uint64_t completions[...], receive_ends[...], accept_ends[...];
    uint64_t receives, receive_arms, receive_rearms, receive_starved, receives_bulk, bytes_received, sleeps_coalesced;
    uint64_t sends, sends_direct, sends_short, bytes_sent;
    uint64_t accepts, accept_rearms;
    uint64_t datagrams_received, datagrams_truncated, datagrams_sent, datagrams_joined, datagram_batches, datagram_waits, datagram_errors;
    uint64_t fixed_file_fallbacks, stale_completions;
    ...;
};

struct ul_report {
    struct ul_stats stats;
    uint64_t completions, enters, overflows, in_flight;
    uint32_t setup_flags, sq_entries, cq_entries;
    uint32_t streams, listeners, endpoints, operations;
    uint32_t files, slots_in_use;
    uint32_t buffer_count, buffer_size, buffers_in_use;
    uint32_t datagram_buffers, datagram_buffers_in_use;
    bool enabled, incremental, ring_registered, hardened;
    ...;
};

struct ul_reactor;
struct ul_streams;
struct ul_listeners;
struct ul_endpoints;
struct ul_operations;
struct ul_wake;

struct ul_reactor *ul_reactor_open(const struct ul_options *options, int *error);
uint64_t ul_reactor_close(struct ul_reactor *reactor);
int ul_reactor_begin(struct ul_reactor *reactor);
void ul_reactor_end(struct ul_reactor *reactor);
int ul_reactor_flush(struct ul_reactor *reactor);
int ul_reactor_tick(struct ul_reactor *reactor, int64_t timeout_ns);
void ul_reactor_set_deadline(struct ul_reactor *reactor, int64_t deadline_ns);
int ul_reactor_wait(struct ul_reactor *reactor);
int ul_reactor_look(struct ul_reactor *reactor);
int ul_reactor_glance(struct ul_reactor *reactor);
void ul_reactor_keep_events(struct ul_reactor *reactor);
struct ul_wake *ul_reactor_waker(struct ul_reactor *reactor);
void ul_wake(struct ul_wake *wake);
void ul_wake_release(struct ul_wake *wake);
void ul_reactor_abandon(struct ul_reactor *reactor);
void ul_reactor_report(const struct ul_reactor *reactor, struct ul_report *report);
bool ul_reactor_has(const struct ul_reactor *reactor, uint8_t opcode);
struct ul_streams *ul_reactor_streams(struct ul_reactor *reactor);
struct ul_listeners *ul_reactor_listeners(struct ul_reactor *reactor);
struct ul_endpoints *ul_reactor_endpoints(struct ul_reactor *reactor);
struct ul_operations *ul_reactor_operations(struct ul_reactor *reactor);
const int32_t *ul_reactor_events(const struct ul_reactor *reactor);
char *ul_reactor_pool(const struct ul_reactor *reactor);
char *ul_reactor_datagram_pool(const struct ul_reactor *reactor);

int32_t ul_stream_open(struct ul_streams *streams, int fd);
int32_t ul_stream_open_pipe(struct ul_streams *streams, int fd);
int ul_stream_read(struct ul_streams *streams, int32_t token, bool wanted);
int ul_stream_received(struct ul_streams *streams, int32_t token, int32_t result);
int64_t ul_stream_write(struct ul_streams *streams, int32_t token, const char *data, size_t length);
int64_t ul_stream_write_pinned(struct ul_streams *streams, int32_t token, const char *data, size_t length);
int64_t ul_stream_send_now(struct ul_streams *streams, int32_t token, const char *data, size_t length);
int64_t ul_stream_queued(const struct ul_streams *streams, int32_t token);
int ul_stream_set_low_water(struct ul_streams *streams, int32_t token, int64_t bytes);
int ul_stream_write_eof(struct ul_streams *streams, int32_t token);
int ul_stream_close(struct ul_streams *streams, int32_t token);
int ul_stream_abort(struct ul_streams *streams, int32_t token, int error);

int32_t ul_listener_open(struct ul_listeners *listeners, int fd);
int32_t ul_listener_open_shared(struct ul_listeners *listeners, int fd);
int ul_listener_start(struct ul_listeners *listeners, int32_t token);
int ul_listener_close(struct ul_listeners *listeners, int32_t token);

int32_t ul_endpoint_open(struct ul_endpoints *endpoints, int fd, uint32_t overhead);
int ul_endpoint_read(struct ul_endpoints *endpoints, int32_t token, bool wanted);
int64_t ul_endpoint_write(struct ul_endpoints *endpoints, int32_t token, const char *data, size_t length, const char *name, uint32_t name_length);
int64_t ul_endpoint_queued(const struct ul_endpoints *endpoints, int32_t token);
int ul_endpoint_set_low_water(struct ul_endpoints *endpoints, int32_t token, int64_t bytes);
int ul_endpoint_close(struct ul_endpoints *endpoints, int32_t token);
int ul_endpoint_abort(struct ul_endpoints *endpoints, int32_t token);

int32_t ul_operation_start(struct ul_operations *operations, uint16_t opcode, int fd, uint64_t addr, uint32_t len, uint64_t off, uint32_t op_flags,
                           int32_t file_index, uint64_t addr3);
int32_t ul_operation_poll(struct ul_operations *operations, int fd, uint32_t mask);
int ul_operation_cancel(struct ul_operations *operations, int32_t token);

int64_t ul_sendfile_cached(int socket, int file, uint64_t offset, size_t count);

int ul_socket_names(int fd, char *names);
