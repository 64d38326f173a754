/* What the three files of the datagram engine share: datagram.c (life), datagram_receive.c, datagram_send.c. */
#ifndef UL_DATAGRAM_PARTS_H
#define UL_DATAGRAM_PARTS_H

#include <netinet/udp.h>

#include "datagram.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* glibc's headers have it from 2.28 on */
#endif

/* An SQE on the endpoint's socket; counted if it waits, listed for confirmation if it is inline. NULL when memory is out. */
struct io_uring_sqe *ul_endpoint_request(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, uint8_t opcode, enum ul_request request);

/* Look at it again at the end of the turn, or of the enter. */
void ul_endpoint_list_for_flush(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);

/* What there was no memory for is done again by the next flush, and the loop does not sleep before. */
void ul_endpoint_try_again(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);

/* Cancel a request of this endpoint. */
void ul_endpoint_cancel(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, enum ul_request request);

/* Tell of an error that concerns one datagram. */
void ul_endpoint_tell_error(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, int error);

/* datagram_receive.c */
void ul_endpoint_stop_reading(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, enum ul_endpoint_read at_rest);
void ul_endpoint_on_recvmsg(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, const struct io_uring_cqe *cqe, struct ul_span span);
void ul_endpoints_feed_starved(struct ul_endpoints *endpoints);

/* datagram_send.c. `send_queued` returns false if it stopped for want of room in the event array. */
bool ul_endpoint_send_queued(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);
void ul_endpoint_on_offer_refused(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, int32_t result);
void ul_endpoint_on_room(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);
void ul_endpoint_confirm_send(struct ul_endpoint *endpoint, struct ul_stats *stats);
void ul_endpoint_send_what_goes(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);
void ul_endpoint_send_at_last(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint);
void ul_endpoint_drop_queue(struct ul_endpoint *endpoint);

#endif
