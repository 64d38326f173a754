/* Included before everything else in the core's sources (cc -include) when they are built for the fuzzer: every way from the core to the
 * system and to the heap leads to kernel.c instead. System headers then declare these names, with the types of the real ones. */
#ifndef SEAM_H
#define SEAM_H

#define syscall fuzz_syscall
#define mmap fuzz_mmap
#define munmap fuzz_munmap
#define madvise fuzz_madvise
#define close fuzz_close
#define eventfd fuzz_eventfd
#define write fuzz_write
#define send fuzz_send
#define sendmmsg fuzz_sendmmsg
#define getsockopt fuzz_getsockopt
#define shutdown fuzz_shutdown
#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define realloc fuzz_realloc
#define free fuzz_free

#endif
