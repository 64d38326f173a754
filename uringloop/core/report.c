/* What the reactor can tell of itself, for loop.stats(). */
#include "reactor.h"

void ul_reactor_report(const struct ul_reactor *reactor, struct ul_report *report) {
    const struct ul_engine *engine = &reactor->engine;
    *report = (struct ul_report){
        .stats = engine->stats,
        .completions = ul_completions_of_all_kinds(&engine->stats),
        .enters = engine->ring.enters,
        .overflows = engine->ring.overflows,
        .in_flight = engine->in_flight,
        .setup_flags = engine->ring.setup_flags,
        .sq_entries = engine->ring.sq_entries,
        .cq_entries = engine->ring.cq_entries,
        .streams = reactor->streams.table.live,
        .listeners = reactor->listeners.table.live,
        .endpoints = reactor->endpoints.table.live,
        .operations = reactor->operations.table.live,
        .files = (uint32_t)engine->files.capacity,
        .slots_in_use = (uint32_t)ul_files_in_use(&engine->files),
        .buffer_count = engine->buffers.count,
        .buffer_size = engine->buffers.size,
        .buffers_in_use = engine->buffers.count - engine->buffers.kernel_count,
        .datagram_buffers = reactor->endpoints.buffer_count,
        .datagram_buffers_in_use = reactor->endpoints.buffers.count - reactor->endpoints.buffers.kernel_count,
        .enabled = reactor->state == UL_REACTOR_ENABLED,
        .incremental = engine->buffers.incremental,
        .ring_registered = engine->ring.registered_index >= 0,
        .hardened = reactor->options.hardened,
    };
}
