#include "table.h"

#include <stdlib.h>
#include <string.h>

#define UL_INDEX_MASK ((1 << UL_INDEX_BITS) - 1)
#define UL_GENERATION_MASK ((1 << UL_GENERATION_BITS) - 1)

void ul_table_init(struct ul_table *table, size_t entry_bytes) {
    memset(table, 0, sizeof *table);
    table->entry_bytes = entry_bytes;
    table->first_free = UL_ENTRY_LAST;
}

void ul_table_destroy(struct ul_table *table) {
    for (uint32_t i = 0; i < table->chunk_count; i++)
        free(table->chunks[i]);
    free(table->chunks);
    ul_table_init(table, table->entry_bytes);
}

static struct ul_entry *ul_table_at(const struct ul_table *table, uint32_t index) {
    char *chunk = table->chunks[index / UL_CHUNK_ENTRIES];
    return (struct ul_entry *)(void *)(chunk + (index % UL_CHUNK_ENTRIES) * table->entry_bytes);
}

static int ul_table_grow(struct ul_table *table) {
    uint32_t first = table->chunk_count * UL_CHUNK_ENTRIES;
    if (first + UL_CHUNK_ENTRIES > (1U << UL_INDEX_BITS))
        return -1;
    char **chunks = realloc(table->chunks, (table->chunk_count + 1) * sizeof *chunks);
    if (!chunks)
        return -1;
    table->chunks = chunks;
    char *chunk = calloc(UL_CHUNK_ENTRIES, table->entry_bytes);
    if (!chunk)
        return -1;
    table->chunks[table->chunk_count++] = chunk;
    for (uint32_t i = UL_CHUNK_ENTRIES; i-- > 0;) {
        struct ul_entry *entry = ul_table_at(table, first + i);
        entry->token = (int32_t)(first + i);
        entry->next_free = table->first_free;
        table->first_free = (int32_t)(first + i);
    }
    return 0;
}

void *ul_table_allocate(struct ul_table *table) {
    if (table->first_free == UL_ENTRY_LAST && ul_table_grow(table) < 0)
        return NULL;
    struct ul_entry *entry = ul_table_at(table, (uint32_t)table->first_free);
    table->first_free = entry->next_free;
    memset(entry + 1, 0, table->entry_bytes - sizeof *entry);
    entry->next_free = UL_ENTRY_LIVE;
    table->live++;
    return entry;
}

void ul_table_free(struct ul_table *table, void *freed) {
    struct ul_entry *entry = freed;
    int32_t index = entry->token & UL_INDEX_MASK;
    int32_t generation = ((entry->token >> UL_INDEX_BITS) + 1) & UL_GENERATION_MASK;
    entry->token = generation << UL_INDEX_BITS | index;
    entry->next_free = table->first_free;
    table->first_free = index;
    table->live--;
}

void *ul_table_get(const struct ul_table *table, int32_t token) {
    uint32_t index = (uint32_t)token & UL_INDEX_MASK;
    if (token < 0 || index >= table->chunk_count * UL_CHUNK_ENTRIES)
        return NULL;
    struct ul_entry *entry = ul_table_at(table, index);
    return entry->token == token && entry->next_free == UL_ENTRY_LIVE ? entry : NULL;
}

void *ul_table_next(const struct ul_table *table, uint32_t *index) {
    while (*index < table->chunk_count * UL_CHUNK_ENTRIES) {
        struct ul_entry *entry = ul_table_at(table, (*index)++);
        if (entry->next_free == UL_ENTRY_LIVE)
            return entry;
    }
    return NULL;
}

void ul_token_list_destroy(struct ul_token_list *list) {
    free(list->tokens);
    memset(list, 0, sizeof *list);
}

static int ul_token_list_grow(struct ul_token_list *list) {
    uint32_t capacity = list->capacity ? list->capacity * 2 : 64;
    int32_t *tokens = malloc(capacity * sizeof *tokens);
    if (!tokens)
        return -1;
    for (uint32_t i = 0; i < list->count; i++)
        tokens[i] = list->tokens[(list->head + i) & (list->capacity - 1)];
    free(list->tokens);
    list->tokens = tokens;
    list->capacity = capacity;
    list->head = 0;
    return 0;
}

int ul_token_list_reserve(struct ul_token_list *list, uint32_t room) {
    while (list->capacity < room)
        if (ul_token_list_grow(list) < 0)
            return -1;
    return 0;
}

int ul_token_list_push(struct ul_token_list *list, int32_t token) {
    if (list->count == list->capacity && ul_token_list_grow(list) < 0)
        return -1;
    list->tokens[(list->head + list->count++) & (list->capacity - 1)] = token;
    return 0;
}

bool ul_token_list_pop(struct ul_token_list *list, int32_t *token) {
    if (!list->count)
        return false;
    *token = list->tokens[list->head];
    list->head = (list->head + 1) & (list->capacity - 1);
    list->count--;
    return true;
}
