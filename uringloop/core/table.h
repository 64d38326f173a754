/* A growing table of equal entries named by tokens.
 *
 * A token is an index with a generation: 20 bits of index, 11 of generation, so that it is a positive int32. Freeing an entry moves its
 * generation on, and whoever still holds the old token, be it Python or a completion in the kernel, finds nothing instead of a stranger.
 * Entries never move, so a pointer to one is good until it is freed, and still points at an entry of the table after that.
 */
#ifndef UL_TABLE_H
#define UL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UL_INDEX_BITS 20 /* a million entries: more than RLIMIT_NOFILE allows connections on any common system */
#define UL_GENERATION_BITS 11
#define UL_CHUNK_ENTRIES 64 /* entries are allocated by chunks, so that an idle loop stays small */

/* The head of every entry; an entry type begins with it. */
struct ul_entry {
    int32_t token;     /* of the entry's present or next life */
    int32_t next_free; /* index; UL_ENTRY_LIVE while in use, UL_ENTRY_LAST at the end of the free list */
};
#define UL_ENTRY_LAST (-1)
#define UL_ENTRY_LIVE (-2)

struct ul_table {
    size_t entry_bytes;
    char **chunks;
    uint32_t chunk_count;
    uint32_t live; /* entries in use */
    int32_t first_free;
};

void ul_table_init(struct ul_table *table, size_t entry_bytes);
void ul_table_destroy(struct ul_table *table);

/* A zeroed entry, but for its head; NULL when memory or indices are out. */
void *ul_table_allocate(struct ul_table *table);
void ul_table_free(struct ul_table *table, void *entry);

/* The live entry of this token, or NULL. Any int32 is allowed. */
void *ul_table_get(const struct ul_table *table, int32_t token);

/* The live entry at or after *index, or NULL at the end; moves *index past it. */
void *ul_table_next(const struct ul_table *table, uint32_t *index);

/* A first-in first-out list of tokens. */
struct ul_token_list {
    int32_t *tokens;
    uint32_t capacity, head, count;
};
void ul_token_list_destroy(struct ul_token_list *list);
int ul_token_list_reserve(struct ul_token_list *list, uint32_t room); /* 0, or -1 when memory is out */
int ul_token_list_push(struct ul_token_list *list, int32_t token); /* 0, or -1 when memory is out */
bool ul_token_list_pop(struct ul_token_list *list, int32_t *token);

#endif
