/* What the two files of the reactor share: reactor.c (life, tick) and reactor_move.c (another thread). */
#ifndef UL_REACTOR_PARTS_H
#define UL_REACTOR_PARTS_H

#include "reactor.h"

/* Ask the ring to tell of wakes. */
void ul_reactor_arm_wake(struct ul_reactor *reactor);

/* Hand a completion to whose it is. */
void ul_reactor_complete(struct ul_reactor *reactor, const struct io_uring_cqe *cqe);

/* reactor_move.c */
/* Over to a ring of the calling thread's own. 0, or -errno: then nothing has been made again, nothing can be asked of the old ring any more
 * (move_failed), and it may be tried again. */
int ul_reactor_move(struct ul_reactor *reactor);

#endif
