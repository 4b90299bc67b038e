/* Buffers and the fields of frames: what tare/vm/protocol.py writes, read in C. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

static void *must(void *memory)
{
    if (!memory)
        abort();  /* the first process of a machine without memory has nothing left to do */
    return memory;
}

void append(struct buffer *to, const void *data, size_t length)
{
    if (to->length + length > to->room) {
        to->room = (to->length + length) * 2;
        to->data = must(realloc(to->data, to->room));
    }
    memcpy(to->data + to->length, data, length);
    to->length += length;
}

void consume(struct buffer *from, size_t length)
{
    from->length -= length;
    memmove(from->data, from->data + length, from->length);
    if (!from->length && from->room > (1 << 16)) {
        free(from->data);
        *from = (struct buffer){0};
    }
}

int next_field(uint8_t **at, uint8_t *end, struct field *out)
{
    if (end - *at < 5)
        return 0;
    out->key = **at;
    memcpy(&out->length, *at + 1, 4);
    if (out->length > (size_t)(end - *at) - 5)
        return 0;
    /* Values end where the next key begins: the NUL goes there once the key has been read. */
    memmove(*at, *at + 5, out->length);
    out->value = (char *)*at;
    (*at)[out->length] = 0;
    *at += 5 + out->length;
    return 1;
}

uint64_t number_of(const struct field *field)
{
    uint64_t value = 0;
    memcpy(&value, field->value, field->length < 8 ? field->length : 8);
    return value;
}

static void add(char ***list, size_t *count, char *value)
{
    *list = must(realloc(*list, (*count + 2) * sizeof(char *)));
    (*list)[(*count)++] = value;
    (*list)[*count] = NULL;
}

int parse_program(uint8_t *payload, size_t length, struct program *out)
{
    uint8_t *at = payload, *end = payload + length;
    struct field field;
    memset(out, 0, sizeof *out);
    out->cwd = "/";
    out->user = "";
    while (next_field(&at, end, &field)) {
        switch (field.key) {
        case P_ARG: add(&out->args, &out->arg_count, field.value); break;
        case P_ENV: add(&out->env, &out->env_count, field.value); break;
        case P_GROUP: add(&out->groups, &out->group_count, field.value); break;
        case P_CWD: out->cwd = field.value; break;
        case P_USER: out->user = field.value; break;
        case P_FLAGS: out->flags = (uint32_t)number_of(&field); break;
        case P_CAPS: out->caps = number_of(&field); break;
        case P_SIZE:
            if (field.length == 4) {
                memcpy(&out->rows, field.value, 2);
                memcpy(&out->columns, field.value + 2, 2);
            }
            break;
        case P_RLIMIT:
            if (field.length == 20 && out->limit_count < 16) {
                memcpy(&out->limits[out->limit_count].number, field.value, 4);
                memcpy(&out->limits[out->limit_count].soft, field.value + 4, 8);
                memcpy(&out->limits[out->limit_count].hard, field.value + 12, 8);
                out->limit_count++;
            }
            break;
        }
    }
    return out->arg_count > 0;
}

void free_program(struct program *program)
{
    free(program->args);
    free(program->env);
    free(program->groups);
}

int write_file(const char *path, const char *content, size_t length)
{
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ssize_t written;
    if (descriptor < 0)
        return -1;
    written = write(descriptor, content, length);
    close(descriptor);
    return written == (ssize_t)length ? 0 : -1;
}

char *sentence(const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        text = NULL;
    va_end(arguments);
    return must(text);
}
