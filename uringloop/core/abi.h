/* The kernel's io_uring interface, in our own declarations.
 *
 * Build hosts often carry headers older than the kernel that the program will meet, and an io_uring struct only ever grows inside its
 * reserved space. So nothing here comes from <linux/io_uring.h>: the names are the kernel's, the values are the kernel's binary interface
 * (Linux 6.18, include/uapi/linux/io_uring.h), and every size and offset that this code relies on is asserted at compile time. A wrong
 * offset in a shared ring does not crash; it makes the kernel spin on garbage.
 */
#ifndef UL_ABI_H
#define UL_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/* The three system calls have the same numbers on every architecture but alpha and the MIPS family. */
#if defined(__alpha__) || defined(__mips__)
#error "uringloop does not know this architecture's io_uring system call numbers"
#endif
#define UL_NR_io_uring_setup 425
#define UL_NR_io_uring_enter 426
#define UL_NR_io_uring_register 427

struct io_uring_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* a union in the kernel: msg_flags, poll32_events, cancel_flags, fsync_flags ... */
    uint64_t user_data;
    uint16_t buf_group;
    uint16_t personality;
    int32_t file_index; /* a union in the kernel: optlen, which limits a multishot recv (6.17) */
    uint64_t addr3;
    uint64_t pad2;
};
static_assert(sizeof(struct io_uring_sqe) == 64, "io_uring_sqe size");
static_assert(offsetof(struct io_uring_sqe, off) == 8, "io_uring_sqe off");
static_assert(offsetof(struct io_uring_sqe, addr) == 16, "io_uring_sqe addr");
static_assert(offsetof(struct io_uring_sqe, len) == 24, "io_uring_sqe len");
static_assert(offsetof(struct io_uring_sqe, op_flags) == 28, "io_uring_sqe op_flags");
static_assert(offsetof(struct io_uring_sqe, user_data) == 32, "io_uring_sqe user_data");
static_assert(offsetof(struct io_uring_sqe, buf_group) == 40, "io_uring_sqe buf_group");
static_assert(offsetof(struct io_uring_sqe, file_index) == 44, "io_uring_sqe file_index");
static_assert(offsetof(struct io_uring_sqe, addr3) == 48, "io_uring_sqe addr3");

struct io_uring_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};
static_assert(sizeof(struct io_uring_cqe) == 16, "io_uring_cqe size");

struct io_sqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};
struct io_cqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};
static_assert(sizeof(struct io_sqring_offsets) == 40, "io_sqring_offsets size");
static_assert(sizeof(struct io_cqring_offsets) == 40, "io_cqring_offsets size");

struct io_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct io_sqring_offsets sq_off;
    struct io_cqring_offsets cq_off;
};
static_assert(sizeof(struct io_uring_params) == 120, "io_uring_params size");
static_assert(offsetof(struct io_uring_params, sq_off) == 40, "io_uring_params sq_off");
static_assert(offsetof(struct io_uring_params, cq_off) == 80, "io_uring_params cq_off");

struct __kernel_timespec {
    int64_t tv_sec;
    int64_t tv_nsec;
};
struct io_uring_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};
static_assert(sizeof(struct io_uring_getevents_arg) == 24, "io_uring_getevents_arg size");

struct io_uring_rsrc_register {
    uint32_t nr, flags;
    uint64_t resv2, data, tags;
};
static_assert(sizeof(struct io_uring_rsrc_register) == 32, "io_uring_rsrc_register size");

struct io_uring_rsrc_update { /* also the argument of REGISTER_RING_FDS: `data` is the fd */
    uint32_t offset, resv;
    uint64_t data;
};
static_assert(sizeof(struct io_uring_rsrc_update) == 16, "io_uring_rsrc_update size");

struct io_uring_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t resv; /* entry 0 of a buffer ring holds the ring's tail here */
};
static_assert(sizeof(struct io_uring_buf) == 16, "io_uring_buf size");
static_assert(offsetof(struct io_uring_buf, resv) == 14, "buffer ring tail offset");

struct io_uring_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid, flags;
    uint64_t resv[3];
};
static_assert(sizeof(struct io_uring_buf_reg) == 40, "io_uring_buf_reg size");

struct io_uring_recvmsg_out { /* what a multishot recvmsg writes before the name and the payload */
    uint32_t namelen, controllen, payloadlen, flags;
};
static_assert(sizeof(struct io_uring_recvmsg_out) == 16, "io_uring_recvmsg_out size");

struct io_uring_probe_op {
    uint8_t op, resv;
    uint16_t flags;
    uint32_t resv2;
};
struct io_uring_probe {
    uint8_t last_op, ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct io_uring_probe_op ops[];
};
static_assert(sizeof(struct io_uring_probe_op) == 8, "io_uring_probe_op size");
static_assert(sizeof(struct io_uring_probe) == 16, "io_uring_probe size");
static_assert(offsetof(struct io_uring_probe, ops_len) == 1, "io_uring_probe ops_len");
static_assert(offsetof(struct io_uring_probe_op, flags) == 2, "io_uring_probe_op flags");

struct io_uring_restriction {
    uint16_t opcode;
    uint8_t what; /* a union in the kernel: register_op, sqe_op, sqe_flags; which of them is in `opcode` */
    uint8_t resv;
    uint32_t resv2[3];
};
static_assert(sizeof(struct io_uring_restriction) == 16, "io_uring_restriction size");

/* mmap offsets. FEAT_SINGLE_MMAP (5.4) is required, so the CQ ring needs no mapping of its own. */
#define IORING_OFF_SQ_RING 0ULL
#define IORING_OFF_SQES 0x10000000ULL

/* io_uring_setup flags */
#define IORING_SETUP_CQSIZE (1U << 3)
#define IORING_SETUP_CLAMP (1U << 4)
#define IORING_SETUP_R_DISABLED (1U << 6)
#define IORING_SETUP_SUBMIT_ALL (1U << 7)    /* 5.18 */
#define IORING_SETUP_COOP_TASKRUN (1U << 8)  /* 5.19 */
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)  /* 5.19 */
#define IORING_SETUP_SINGLE_ISSUER (1U << 12) /* 6.0 */
#define IORING_SETUP_DEFER_TASKRUN (1U << 13) /* 6.1 */
#define IORING_SETUP_NO_SQARRAY (1U << 16)   /* 6.6 */

/* features reported by io_uring_setup */
#define IORING_FEAT_SINGLE_MMAP (1U << 0)
#define IORING_FEAT_NODROP (1U << 1)
#define IORING_FEAT_SUBMIT_STABLE (1U << 2)
#define IORING_FEAT_EXT_ARG (1U << 8)
#define IORING_FEAT_MIN_TIMEOUT (1U << 15) /* 6.12 */
#define IORING_FEAT_NO_IOWAIT (1U << 17) /* 6.15 */

/* io_uring_enter flags */
#define IORING_ENTER_GETEVENTS (1U << 0)
#define IORING_ENTER_EXT_ARG (1U << 3)
#define IORING_ENTER_REGISTERED_RING (1U << 4)
#define IORING_ENTER_NO_IOWAIT (1U << 7) /* 6.15 */

/* SQ ring flags, written by the kernel */
#define IORING_SQ_CQ_OVERFLOW (1U << 1)
#define IORING_SQ_TASKRUN (1U << 2)

/* io_uring_register operations */
#define IORING_REGISTER_FILES 2
#define IORING_UNREGISTER_FILES 3
#define IORING_REGISTER_PROBE 8
#define IORING_REGISTER_RESTRICTIONS 11 /* 5.10 */
#define IORING_REGISTER_ENABLE_RINGS 12
#define IORING_REGISTER_FILES2 13
#define IORING_REGISTER_RING_FDS 20
#define IORING_UNREGISTER_RING_FDS 21
#define IORING_REGISTER_PBUF_RING 22
#define IORING_UNREGISTER_PBUF_RING 23
#define IORING_RSRC_REGISTER_SPARSE (1U << 0)
#define IOU_PBUF_RING_INC 2 /* 6.12 */
#define IO_URING_OP_SUPPORTED (1U << 0)

/* io_uring_restriction.opcode */
#define IORING_RESTRICTION_REGISTER_OP 0
#define IORING_RESTRICTION_SQE_OP 1
#define IORING_RESTRICTION_SQE_FLAGS_ALLOWED 2

/* operations */
enum io_uring_op {
    IORING_OP_NOP = 0,
    IORING_OP_READV = 1,
    IORING_OP_WRITEV = 2,
    IORING_OP_FSYNC = 3,
    IORING_OP_POLL_ADD = 6,
    IORING_OP_SENDMSG = 9,
    IORING_OP_RECVMSG = 10,
    IORING_OP_ACCEPT = 13,
    IORING_OP_ASYNC_CANCEL = 14,
    IORING_OP_FALLOCATE = 17,
    IORING_OP_OPENAT = 18,
    IORING_OP_CLOSE = 19,
    IORING_OP_FILES_UPDATE = 20,
    IORING_OP_STATX = 21,
    IORING_OP_READ = 22,
    IORING_OP_WRITE = 23,
    IORING_OP_SEND = 26,
    IORING_OP_RECV = 27,
    IORING_OP_SPLICE = 30,
    IORING_OP_RENAMEAT = 35,
    IORING_OP_UNLINKAT = 36,
    IORING_OP_MKDIRAT = 37,
    IORING_OP_SYMLINKAT = 38,
    IORING_OP_LINKAT = 39,
    IORING_OP_FSETXATTR = 41,
    IORING_OP_SETXATTR = 42,
    IORING_OP_FGETXATTR = 43,
    IORING_OP_GETXATTR = 44,
    IORING_OP_FTRUNCATE = 55, /* 6.9 */
};

/* sqe->flags */
#define IOSQE_FIXED_FILE (1U << 0)
#define IOSQE_ASYNC (1U << 4) /* to a worker thread of the kernel's, without an attempt in place */
#define IOSQE_BUFFER_SELECT (1U << 5)
#define IOSQE_CQE_SKIP_SUCCESS (1U << 6) /* 5.17 */

/* sqe->ioprio for recv, recvmsg and accept */
#define IORING_RECV_MULTISHOT (1U << 1)   /* 6.0 */
#define IORING_ACCEPT_MULTISHOT (1U << 0) /* 5.19 */

/* sqe->len for poll */
#define IORING_POLL_ADD_MULTI (1U << 0) /* 5.13 */

/* sqe->op_flags for ASYNC_CANCEL */
#define IORING_ASYNC_CANCEL_ALL (1U << 0)
#define IORING_ASYNC_CANCEL_ANY (1U << 2)

/* cqe->flags */
#define IORING_CQE_F_BUFFER (1U << 0)
#define IORING_CQE_F_MORE (1U << 1)
#define IORING_CQE_F_BUF_MORE (1U << 4) /* 6.12 */
#define IORING_CQE_BUFFER_SHIFT 16

#endif
