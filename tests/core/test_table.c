/* The table of tokens, and the token list, against plain models. */
#include "table.h"

#include "check.h"

struct item {
    struct ul_entry entry;
    uint64_t value;
};

#define GENERATIONS (1 << UL_GENERATION_BITS)
#define LIVE_MOST 1000
#define STEPS 100000

/* --- the table --------------------------------------------------------------------------------------------------------------------- */

/* What the table must hold: the tokens in use with their values, and the last tokens that went out of use. */
struct model {
    int32_t tokens[LIVE_MOST];
    uint64_t values[LIVE_MOST];
    uint32_t live;
    int32_t stale[LIVE_MOST];
    uint32_t stale_count;
};

static void allocate(struct ul_table *table, struct model *model) {
    struct item *item = ul_table_allocate(table);
    CHECK(item);
    CHECK_INT(item->entry.token, >=, 0);
    CHECK_INT(item->value, ==, 0);
    for (uint32_t i = 0; i < model->live; i++)
        CHECK_INT(item->entry.token, !=, model->tokens[i]);
    model->tokens[model->live] = item->entry.token;
    model->values[model->live++] = item->value = check_random();
}

static void free_any(struct ul_table *table, struct model *model) {
    uint32_t chosen = check_below(model->live);
    int32_t token = model->tokens[chosen];
    ul_table_free(table, ul_table_get(table, token));
    CHECK(!ul_table_get(table, token));
    model->stale[model->stale_count++ % LIVE_MOST] = token;
    model->tokens[chosen] = model->tokens[--model->live];
    model->values[chosen] = model->values[model->live];
}

static void compare_one(const struct ul_table *table, const struct model *model) {
    uint32_t chosen = check_below(model->live);
    struct item *item = ul_table_get(table, model->tokens[chosen]);
    CHECK(item);
    CHECK_INT(item->entry.token, ==, model->tokens[chosen]);
    CHECK_INT(item->value, ==, model->values[chosen]);
}

static void find_no_stale_one(const struct ul_table *table, const struct model *model) {
    uint32_t kept = model->stale_count < LIVE_MOST ? model->stale_count : LIVE_MOST;
    for (uint32_t i = 0; i < kept; i++)
        CHECK(!ul_table_get(table, model->stale[i]));
}

static void compare_all(const struct ul_table *table, const struct model *model) {
    uint64_t sum = 0, model_sum = 0;
    uint32_t index = 0, count = 0;
    for (struct item *item; (item = ul_table_next(table, &index)); count++)
        sum += item->value;
    for (uint32_t i = 0; i < model->live; i++)
        model_sum += model->values[i];
    CHECK_INT(count, ==, model->live);
    CHECK_INT(table->live, ==, model->live);
    CHECK_INT(sum, ==, model_sum);
    find_no_stale_one(table, model);
}

/* Fills and empties in waves, so that the table is at times full to its last chunk and at times empty. */
static void random_lives_are_as_in_the_model(void) {
    static struct model model;
    struct ul_table table;
    ul_table_init(&table, sizeof(struct item));
    for (int step = 0; step < STEPS; step++) {
        bool filling = step / 2500 % 2 == 0;
        bool grow = model.live == 0 || (model.live < LIVE_MOST && check_one_in(4) != filling);
        if (grow)
            allocate(&table, &model);
        else
            free_any(&table, &model);
        if (model.live)
            compare_one(&table, &model);
        if (step % 1000 == 0)
            compare_all(&table, &model);
    }
    compare_all(&table, &model);
    CHECK_INT(table.chunk_count * UL_CHUNK_ENTRIES, <, LIVE_MOST + UL_CHUNK_ENTRIES);
    ul_table_destroy(&table);
}

static void a_stale_token_finds_nothing_in_the_next_life_of_its_entry(void) {
    struct ul_table table;
    ul_table_init(&table, sizeof(struct item));
    struct item *item = ul_table_allocate(&table);
    int32_t first = item->entry.token;
    item->value = 1;
    ul_table_free(&table, item);
    CHECK(ul_table_allocate(&table) == item);
    CHECK_INT(item->value, ==, 0);
    CHECK(!ul_table_get(&table, first));
    CHECK(ul_table_get(&table, item->entry.token) == item);
    ul_table_destroy(&table);
}

static void generations_wrap_to_the_first_token(void) {
    struct ul_table table;
    ul_table_init(&table, sizeof(struct item));
    struct item *item = ul_table_allocate(&table);
    int32_t first = item->entry.token;
    for (int life = 1; life < GENERATIONS; life++) {
        ul_table_free(&table, item);
        item = ul_table_allocate(&table);
        CHECK_INT(item->entry.token, >, 0);
        CHECK_INT(item->entry.token, !=, first);
        CHECK(!ul_table_get(&table, first));
    }
    ul_table_free(&table, item);
    item = ul_table_allocate(&table);
    CHECK_INT(item->entry.token, ==, first);
    ul_table_destroy(&table);
}

static void arbitrary_tokens_find_their_own_entry_or_nothing(void) {
    struct ul_table table;
    int32_t edges[] = {-1, INT32_MIN, INT32_MAX, 0, 1, 1 << UL_INDEX_BITS, (1 << UL_INDEX_BITS) - 1};
    ul_table_init(&table, sizeof(struct item));
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        CHECK(!ul_table_get(&table, edges[i]));
    for (int i = 0; i < 100; i++)
        CHECK(ul_table_allocate(&table));
    for (int i = 0; i < STEPS; i++) {
        int32_t token = (int32_t)(check_one_in(2) ? check_random() : check_below(200));
        struct item *item = ul_table_get(&table, token);
        CHECK(!item || item->entry.token == token);
        CHECK_INT(item != NULL, ==, token >= 0 && token < 100); /* the entries are in their first lives */
    }
    ul_table_destroy(&table);
}

static void entries_do_not_move_when_the_table_grows(void) {
    struct ul_table table;
    ul_table_init(&table, sizeof(struct item));
    struct item *first = ul_table_allocate(&table);
    first->value = 42;
    for (int i = 0; i < 100 * UL_CHUNK_ENTRIES; i++)
        CHECK(ul_table_allocate(&table));
    CHECK(ul_table_get(&table, first->entry.token) == first);
    CHECK_INT(first->value, ==, 42);
    ul_table_destroy(&table);
}

static void indices_end(void) {
    struct ul_table table;
    ul_table_init(&table, sizeof(struct item));
    table.chunk_count = (1 << UL_INDEX_BITS) / UL_CHUNK_ENTRIES; /* as if all were in use */
    CHECK(!ul_table_allocate(&table));
    table.chunk_count = 0;
    CHECK(ul_table_allocate(&table));
    ul_table_destroy(&table);
}

/* --- the list ---------------------------------------------------------------------------------------------------------------------- */

static void tokens_leave_the_list_in_their_order(void) {
    struct ul_token_list list = {0};
    int32_t pushed = 0, popped = 0, token;
    for (int step = 0; step < STEPS; step++) {
        if (check_one_in(2) || check_one_in(50)) {
            CHECK_INT(ul_token_list_push(&list, pushed), ==, 0);
            pushed++;
        } else if (ul_token_list_pop(&list, &token)) {
            CHECK_INT(token, ==, popped);
            popped++;
        } else {
            CHECK_INT(pushed, ==, popped);
        }
        CHECK_INT(list.count, ==, pushed - popped);
    }
    CHECK_INT(popped, >, 1000);
    ul_token_list_destroy(&list);
}

static void reserving_keeps_what_is_in_the_list(void) {
    struct ul_token_list list = {0};
    int32_t token;
    for (int32_t i = 0; i < 50; i++)
        ul_token_list_push(&list, i);
    for (int32_t i = 0; i < 30; i++)
        CHECK(ul_token_list_pop(&list, &token));
    for (int32_t i = 50; i < 90; i++) /* wraps around the end */
        ul_token_list_push(&list, i);
    CHECK_INT(ul_token_list_reserve(&list, 1000), ==, 0);
    CHECK_INT(list.capacity, >=, 1000);
    for (int32_t i = 30; i < 90; i++) {
        CHECK(ul_token_list_pop(&list, &token));
        CHECK_INT(token, ==, i);
    }
    CHECK(!ul_token_list_pop(&list, &token));
    ul_token_list_destroy(&list);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    RUN(random_lives_are_as_in_the_model);
    RUN(a_stale_token_finds_nothing_in_the_next_life_of_its_entry);
    RUN(generations_wrap_to_the_first_token);
    RUN(arbitrary_tokens_find_their_own_entry_or_nothing);
    RUN(entries_do_not_move_when_the_table_grows);
    RUN(indices_end);
    RUN(tokens_leave_the_list_in_their_order);
    RUN(reserving_keeps_what_is_in_the_list);
    return check_end();
}
