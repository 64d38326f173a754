/* The interface as the machine's own header declares it. See abi_facts.h. */
#include "abi_facts.h"

#ifdef __has_include
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <linux/time_types.h>
#endif
#endif

#define FIELD(type, ours, kernels, offset) {#type "." #kernels, offsetof(struct type, kernels)},
#define SIZE(type, bytes) {"sizeof " #type, sizeof(struct type)},
#define VALUE(name, number) {#name, (uint64_t)(name)},

const struct abi_fact abi_host_facts[] = {
#ifdef IORING_SETUP_DEFER_TASKRUN
    ABI_FIELDS(FIELD)
    ABI_SIZES(SIZE)
    ABI_VALUES(VALUE)
#endif
#ifdef IORING_SETUP_NO_SQARRAY
    ABI_VALUES_6_6(VALUE)
#endif
#ifdef IORING_CQE_F_BUF_MORE
    ABI_VALUES_6_12(VALUE)
#endif
#ifdef IORING_ENTER_NO_IOWAIT
    ABI_VALUES_6_15(VALUE)
#endif
    {NULL, 0},
};
