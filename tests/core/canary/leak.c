/* Memory is lost on purpose: this program must fail, or the others' success says nothing about leaks. */
#include "check.h"

static void memory_is_lost(void) {
    void *volatile lost = malloc(100);
    CHECK(lost);
    lost = NULL;
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    RUN(memory_is_lost);
    return check_end();
}
