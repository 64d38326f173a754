/* The core's own declarations of the kernel's interface: against the documented numbers, and against the machine's header. */
#include "abi.h"

#include "abi_facts.h"
#include "check.h"

#define FIELD(type, ours, kernels, offset) {#type "." #kernels, offsetof(struct type, ours)},
#define SIZE(type, bytes) {"sizeof " #type, sizeof(struct type)},
#define VALUE(name, number) {#name, (uint64_t)(name)},
static const struct abi_fact core_facts[] = {
    ABI_FIELDS(FIELD) ABI_SIZES(SIZE) ABI_ALL_VALUES(VALUE){NULL, 0},
};
#undef FIELD
#undef SIZE
#undef VALUE

#define FIELD(type, ours, kernels, offset) {#type "." #kernels, offset},
#define SIZE(type, bytes) {"sizeof " #type, bytes},
#define VALUE(name, number) {#name, number},
static const struct abi_fact documented_facts[] = {
    ABI_FIELDS(FIELD) ABI_SIZES(SIZE) ABI_ALL_VALUES(VALUE){NULL, 0},
};

/* Both lists are in the order of abi_facts.h; the expected one may lack some. */
static void compare(const struct abi_fact *expected) {
    const struct abi_fact *fact = core_facts;
    for (; expected->name; expected++) {
        while (strcmp(fact->name, expected->name) != 0)
            fact++;
        if (fact->value != expected->value)
            check_fail(__FILE__, __LINE__, "%s is %" PRIu64 ", not %" PRIu64, fact->name, fact->value, expected->value);
    }
}

static void declarations_are_as_documented(void) { compare(documented_facts); }

static void declarations_are_as_in_the_header_of_this_machine(void) {
    if (!abi_host_facts[0].name)
        check_skip("no <linux/io_uring.h> of 6.1 or newer");
    compare(abi_host_facts);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    RUN(declarations_are_as_documented);
    RUN(declarations_are_as_in_the_header_of_this_machine);
    return check_end();
}
