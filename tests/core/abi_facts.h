/* What the core relies on in the kernel's interface, as a list: expanded once over the core's declarations and documented numbers
 * (test_abi.c), and once over those of the machine's <linux/io_uring.h> (abi_host.c). The two cannot be included together. */
#ifndef ABI_FACTS_H
#define ABI_FACTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct abi_fact {
    const char *name;
    uint64_t value;
};

/* FIELD(struct, the core's name, the kernel's name, offset): they differ where the kernel has a union or a newer name. */
#define ABI_FIELDS(FIELD)                                             \
    FIELD(io_uring_sqe, opcode, opcode, 0)                            \
    FIELD(io_uring_sqe, flags, flags, 1)                              \
    FIELD(io_uring_sqe, ioprio, ioprio, 2)                            \
    FIELD(io_uring_sqe, fd, fd, 4)                                    \
    FIELD(io_uring_sqe, off, off, 8)                                  \
    FIELD(io_uring_sqe, addr, addr, 16)                               \
    FIELD(io_uring_sqe, len, len, 24)                                 \
    FIELD(io_uring_sqe, op_flags, msg_flags, 28)                      \
    FIELD(io_uring_sqe, op_flags, poll32_events, 28)                  \
    FIELD(io_uring_sqe, op_flags, accept_flags, 28)                   \
    FIELD(io_uring_sqe, op_flags, cancel_flags, 28)                   \
    FIELD(io_uring_sqe, user_data, user_data, 32)                     \
    FIELD(io_uring_sqe, buf_group, buf_group, 40)                     \
    FIELD(io_uring_sqe, personality, personality, 42)                 \
    FIELD(io_uring_sqe, file_index, file_index, 44)                   \
    FIELD(io_uring_sqe, addr3, addr3, 48)                             \
    FIELD(io_uring_cqe, user_data, user_data, 0)                      \
    FIELD(io_uring_cqe, res, res, 8)                                  \
    FIELD(io_uring_cqe, flags, flags, 12)                             \
    FIELD(io_sqring_offsets, head, head, 0)                           \
    FIELD(io_sqring_offsets, tail, tail, 4)                           \
    FIELD(io_sqring_offsets, ring_mask, ring_mask, 8)                 \
    FIELD(io_sqring_offsets, ring_entries, ring_entries, 12)          \
    FIELD(io_sqring_offsets, flags, flags, 16)                        \
    FIELD(io_sqring_offsets, dropped, dropped, 20)                    \
    FIELD(io_sqring_offsets, array, array, 24)                        \
    FIELD(io_cqring_offsets, head, head, 0)                           \
    FIELD(io_cqring_offsets, tail, tail, 4)                           \
    FIELD(io_cqring_offsets, ring_mask, ring_mask, 8)                 \
    FIELD(io_cqring_offsets, ring_entries, ring_entries, 12)          \
    FIELD(io_cqring_offsets, overflow, overflow, 16)                  \
    FIELD(io_cqring_offsets, cqes, cqes, 20)                          \
    FIELD(io_cqring_offsets, flags, flags, 24)                        \
    FIELD(io_uring_params, sq_entries, sq_entries, 0)                 \
    FIELD(io_uring_params, cq_entries, cq_entries, 4)                 \
    FIELD(io_uring_params, flags, flags, 8)                           \
    FIELD(io_uring_params, features, features, 20)                    \
    FIELD(io_uring_params, sq_off, sq_off, 40)                        \
    FIELD(io_uring_params, cq_off, cq_off, 80)                        \
    FIELD(__kernel_timespec, tv_sec, tv_sec, 0)                       \
    FIELD(__kernel_timespec, tv_nsec, tv_nsec, 8)                     \
    FIELD(io_uring_getevents_arg, sigmask, sigmask, 0)                \
    FIELD(io_uring_getevents_arg, sigmask_sz, sigmask_sz, 8)          \
    FIELD(io_uring_getevents_arg, ts, ts, 16)                         \
    FIELD(io_uring_rsrc_register, nr, nr, 0)                          \
    FIELD(io_uring_rsrc_register, flags, flags, 4)                    \
    FIELD(io_uring_rsrc_register, data, data, 16)                     \
    FIELD(io_uring_rsrc_register, tags, tags, 24)                     \
    FIELD(io_uring_rsrc_update, offset, offset, 0)                    \
    FIELD(io_uring_rsrc_update, data, data, 8)                        \
    FIELD(io_uring_buf, addr, addr, 0)                                \
    FIELD(io_uring_buf, len, len, 8)                                  \
    FIELD(io_uring_buf, bid, bid, 12)                                 \
    FIELD(io_uring_buf, resv, resv, 14)                               \
    FIELD(io_uring_buf_reg, ring_addr, ring_addr, 0)                  \
    FIELD(io_uring_buf_reg, ring_entries, ring_entries, 8)            \
    FIELD(io_uring_buf_reg, bgid, bgid, 12)                           \
    FIELD(io_uring_recvmsg_out, namelen, namelen, 0)                  \
    FIELD(io_uring_recvmsg_out, controllen, controllen, 4)            \
    FIELD(io_uring_recvmsg_out, payloadlen, payloadlen, 8)            \
    FIELD(io_uring_recvmsg_out, flags, flags, 12)                     \
    FIELD(io_uring_sqe, off, addr2, 8)                                \
    FIELD(io_uring_sqe, file_index, addr_len, 44)                     \
    FIELD(io_uring_probe, ops_len, ops_len, 1)                        \
    FIELD(io_uring_probe, ops, ops, 16)                               \
    FIELD(io_uring_probe_op, flags, flags, 2)                         \
    FIELD(io_uring_restriction, opcode, opcode, 0)                    \
    FIELD(io_uring_restriction, what, register_op, 2)

/* SIZE(struct, bytes) */
#define ABI_SIZES(SIZE)               \
    SIZE(io_uring_sqe, 64)            \
    SIZE(io_uring_cqe, 16)            \
    SIZE(io_sqring_offsets, 40)       \
    SIZE(io_cqring_offsets, 40)       \
    SIZE(io_uring_params, 120)        \
    SIZE(__kernel_timespec, 16)       \
    SIZE(io_uring_getevents_arg, 24)  \
    SIZE(io_uring_rsrc_register, 32)  \
    SIZE(io_uring_rsrc_update, 16)    \
    SIZE(io_uring_buf, 16)            \
    SIZE(io_uring_buf_reg, 40)        \
    SIZE(io_uring_recvmsg_out, 16)    \
    SIZE(io_uring_probe_op, 8)        \
    SIZE(io_uring_probe, 16)          \
    SIZE(io_uring_restriction, 16)

/* VALUE(name, number): what a header of Linux 6.1, the oldest that the loop runs on, has. */
#define ABI_VALUES(VALUE)                        \
    VALUE(IORING_OFF_SQ_RING, 0)                 \
    VALUE(IORING_OFF_SQES, 0x10000000)           \
    VALUE(IORING_SETUP_CQSIZE, 0x8)              \
    VALUE(IORING_SETUP_CLAMP, 0x10)              \
    VALUE(IORING_SETUP_R_DISABLED, 0x40)         \
    VALUE(IORING_SETUP_SUBMIT_ALL, 0x80)         \
    VALUE(IORING_SETUP_COOP_TASKRUN, 0x100)      \
    VALUE(IORING_SETUP_TASKRUN_FLAG, 0x200)      \
    VALUE(IORING_SETUP_SINGLE_ISSUER, 0x1000)    \
    VALUE(IORING_SETUP_DEFER_TASKRUN, 0x2000)    \
    VALUE(IORING_FEAT_SINGLE_MMAP, 0x1)          \
    VALUE(IORING_FEAT_NODROP, 0x2)               \
    VALUE(IORING_FEAT_SUBMIT_STABLE, 0x4)        \
    VALUE(IORING_FEAT_EXT_ARG, 0x100)            \
    VALUE(IORING_ENTER_GETEVENTS, 0x1)           \
    VALUE(IORING_ENTER_EXT_ARG, 0x8)             \
    VALUE(IORING_ENTER_REGISTERED_RING, 0x10)    \
    VALUE(IORING_SQ_CQ_OVERFLOW, 0x2)            \
    VALUE(IORING_SQ_TASKRUN, 0x4)                \
    VALUE(IORING_REGISTER_FILES, 2)              \
    VALUE(IORING_UNREGISTER_FILES, 3)            \
    VALUE(IO_URING_OP_SUPPORTED, 0x1)            \
    VALUE(IORING_REGISTER_PROBE, 8)              \
    VALUE(IORING_REGISTER_RESTRICTIONS, 11)      \
    VALUE(IORING_REGISTER_ENABLE_RINGS, 12)      \
    VALUE(IORING_RESTRICTION_REGISTER_OP, 0)     \
    VALUE(IORING_RESTRICTION_SQE_OP, 1)          \
    VALUE(IORING_RESTRICTION_SQE_FLAGS_ALLOWED, 2)\
    VALUE(IORING_REGISTER_FILES2, 13)            \
    VALUE(IORING_REGISTER_RING_FDS, 20)          \
    VALUE(IORING_UNREGISTER_RING_FDS, 21)        \
    VALUE(IORING_REGISTER_PBUF_RING, 22)         \
    VALUE(IORING_UNREGISTER_PBUF_RING, 23)       \
    VALUE(IORING_RSRC_REGISTER_SPARSE, 0x1)      \
    VALUE(IORING_OP_NOP, 0)                      \
    VALUE(IORING_OP_READV, 1)                    \
    VALUE(IORING_OP_WRITEV, 2)                   \
    VALUE(IORING_OP_FSYNC, 3)                    \
    VALUE(IORING_OP_POLL_ADD, 6)                 \
    VALUE(IORING_OP_SENDMSG, 9)                  \
    VALUE(IORING_OP_RECVMSG, 10)                 \
    VALUE(IORING_OP_ACCEPT, 13)                  \
    VALUE(IORING_OP_ASYNC_CANCEL, 14)            \
    VALUE(IORING_OP_FALLOCATE, 17)               \
    VALUE(IORING_OP_OPENAT, 18)                  \
    VALUE(IORING_OP_CLOSE, 19)                   \
    VALUE(IORING_OP_FILES_UPDATE, 20)            \
    VALUE(IORING_OP_STATX, 21)                   \
    VALUE(IORING_OP_READ, 22)                    \
    VALUE(IORING_OP_WRITE, 23)                   \
    VALUE(IORING_OP_SEND, 26)                    \
    VALUE(IORING_OP_RECV, 27)                    \
    VALUE(IORING_OP_SPLICE, 30)                  \
    VALUE(IORING_OP_RENAMEAT, 35)                \
    VALUE(IORING_OP_UNLINKAT, 36)                \
    VALUE(IORING_OP_MKDIRAT, 37)                 \
    VALUE(IORING_OP_SYMLINKAT, 38)               \
    VALUE(IORING_OP_LINKAT, 39)                  \
    VALUE(IORING_OP_FSETXATTR, 41)               \
    VALUE(IORING_OP_SETXATTR, 42)                \
    VALUE(IORING_OP_FGETXATTR, 43)               \
    VALUE(IORING_OP_GETXATTR, 44)                \
    VALUE(IOSQE_FIXED_FILE, 0x1)                 \
    VALUE(IOSQE_ASYNC, 0x10)                     \
    VALUE(IOSQE_BUFFER_SELECT, 0x20)             \
    VALUE(IOSQE_CQE_SKIP_SUCCESS, 0x40)          \
    VALUE(IORING_RECV_MULTISHOT, 0x2)            \
    VALUE(IORING_ACCEPT_MULTISHOT, 0x1)          \
    VALUE(IORING_POLL_ADD_MULTI, 0x1)            \
    VALUE(IORING_ASYNC_CANCEL_ALL, 0x1)          \
    VALUE(IORING_ASYNC_CANCEL_ANY, 0x4)          \
    VALUE(IORING_CQE_F_BUFFER, 0x1)              \
    VALUE(IORING_CQE_F_MORE, 0x2)                \
    VALUE(IORING_CQE_BUFFER_SHIFT, 16)

/* What later headers have. */
#define ABI_VALUES_6_6(VALUE) VALUE(IORING_SETUP_NO_SQARRAY, 0x10000)
#define ABI_VALUES_6_12(VALUE)             \
    VALUE(IORING_OP_FTRUNCATE, 55)         \
    VALUE(IORING_CQE_F_BUF_MORE, 0x10)     \
    VALUE(IORING_FEAT_MIN_TIMEOUT, 0x8000) \
    VALUE(IOU_PBUF_RING_INC, 2)
#define ABI_VALUES_6_15(VALUE)            \
    VALUE(IORING_FEAT_NO_IOWAIT, 0x20000) \
    VALUE(IORING_ENTER_NO_IOWAIT, 0x80)
#define ABI_ALL_VALUES(VALUE) ABI_VALUES(VALUE) ABI_VALUES_6_6(VALUE) ABI_VALUES_6_12(VALUE) ABI_VALUES_6_15(VALUE)

/* The facts as the machine's header has them, ended by a NULL name; empty if there is no such header, or one older than 6.1. */
extern const struct abi_fact abi_host_facts[];

#endif
