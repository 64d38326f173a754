/* The lock on a ring: what it may do at all, whoever writes into its queue.
 *
 * Facts: restrictions are put on a ring while it is disabled, once, and nothing takes them off. From then on the kernel answers EACCES to all
 * that was not named: opcodes, SQE flags, register operations. What is registered before the ring is enabled is not asked about.
 * So: a ring of a hardened loop may do what the engines do, which is networking; files go through the loop's executor instead, where every
 * open and unlink is a system call that seccomp and auditing see.
 * Cost: a test of a bit for each request, and the threads for files.
 */
#ifndef UL_RESTRICTIONS_H
#define UL_RESTRICTIONS_H

#include "ring.h"

/* Restrict this ring, which is not enabled yet. 0 or -errno. */
int ul_restrictions_register(struct ul_ring *ring);

/* True if a restricted ring may do this operation (enum io_uring_op). */
bool ul_restrictions_allow(uint8_t opcode);

#endif
