/* A kernel for the fuzzer: rings in plain memory, requests that complete as the input says.
 *
 * It is of two kinds. The honest one does what a kernel may do, if at the worst moments: requests end once, buffers come from the buffer ring,
 * memory is read and written for as long as the core has promised it. The hostile one sends completions that no kernel would: of any owner,
 * with any result and any flags. It touches no memory: after a lie, say that a request has ended, the core no longer holds what it promised.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- the input: 0 for ever once it is used up --------------------------------------------------------------------------------------- */

void input_begin(const uint8_t *data, size_t size);
bool input_left(void);
uint8_t input_byte(void);
uint32_t input_word(void);
uint32_t input_below(uint32_t limit);
bool input_one_in(uint32_t count);

/* --- the kernel -------------------------------------------------------------------------------------------------------------------- */

struct kernel {
    bool hostile;
    bool old;                /* refuses NO_SQARRAY, ring fds and incremental buffers */
    int thread;              /* that calls now; a ring is for the one that enabled it */
    uint32_t allocations;    /* until one fails; 0: none does */
    bool memory_failed;
    char *datagram_pool;     /* for the hostile one to scribble in; NULL: there is none */
    size_t datagram_bytes, datagram_buffer_bytes;
};
extern struct kernel kernel;

void kernel_begin(void);

/* Everything that the core had from here: how many blocks are left. They are freed. */
size_t kernel_end(void);

#endif
