/* What the parts of the guest's init share: buffers, frames, fields, and the programs it runs.
 *
 * The frames and fields are those of tare/vm/protocol.py; a change there is a change here.
 */
#ifndef TARE_GUEST_H
#define TARE_GUEST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PROTOCOL = 1, HEADER = 12, MAXIMUM = 1 << 17, CHUNK = 1 << 15, WINDOW = 1 << 18 };

enum to_guest {
    CONFIGURE = 1, START, INPUT, GRANT, SIGNAL, RESIZE, CLOCK, STOP, LIST, FILES_ANSWER
};
enum to_host {
    HELLO = 1, READY, STARTED, FAILED, OUTPUT, CREDIT, EXITED, BROKEN, LISTED, FILES
};

/* Fields of CONFIGURE */
enum {
    C_HOSTNAME = 1, C_DOMAIN, C_LAYERS, C_FLAGS, C_FILE, C_CLOCK, C_ENTROPY, C_SHM, C_SYSCTL,
    C_TMPFS, C_NETWORK, C_SHARE
};
/* Fields of START */
enum { P_ARG = 1, P_ENV, P_CWD, P_USER, P_GROUP, P_FLAGS, P_CAPS, P_RLIMIT, P_SIZE };

enum { VOLATILE = 1, READ_ONLY = 2, PRIVILEGED = 4 };
enum { TTY = 1, STDIN = 2, NO_NEW_PRIVILEGES = 4 };

enum { CANNOT_SET_UP = 125, CANNOT_EXECUTE = 126, NOT_FOUND = 127 };

struct buffer { uint8_t *data; size_t length, room; };

void append(struct buffer *to, const void *data, size_t length);
void consume(struct buffer *from, size_t length);

/* One field of a frame's payload; the value is followed by a NUL that is not part of it. */
struct field { uint8_t key; uint32_t length; char *value; };

/* Takes the next field off *at; 0 at the end. The payload has one spare byte behind it. */
int next_field(uint8_t **at, uint8_t *end, struct field *out);
uint64_t number_of(const struct field *field);

/* How a program is to be run; the strings lie in the frame. */
struct program {
    char **args, **env, **groups;
    size_t arg_count, env_count, group_count;
    const char *cwd, *user;
    uint32_t flags;
    uint64_t caps;
    struct { uint32_t number; uint64_t soft, hard; } limits[16];
    size_t limit_count;
    uint16_t rows, columns;
};

int parse_program(uint8_t *payload, size_t length, struct program *out);
void free_program(struct program *program);

/* What CONFIGURE said, kept for the set-up of the first program. */
struct machine {
    uint8_t *payload;
    size_t length;
    uint32_t flags;
    uint64_t shm_size;
    int first;           /* pidfd of the first program, or -1 */
};
extern struct machine machine;

/* Mounts the disks and the overlay below /root; a sentence on failure, else NULL. */
const char *assemble(uint8_t *payload, size_t length);
void load_modules(void);
void load_later(const char *name, ...);
void raise_interface(const char *name, int mtu);
const char *set_network(struct field *field);
void settle_disks(void);

/* In the child: never returns. Reports on *report and executes, or ends. */
void run_first(struct program *program, int report, int stdio[3]) __attribute__((noreturn));
void run_more(struct program *program, int report, int stdio[3]) __attribute__((noreturn));

/* For the child: tells what went wrong on its report socket and ends. */
void refuse(int report, int code, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

/* The shares: their FUSE descriptors, by number; -1 where there is none. */
enum { MOST_SHARES = 64 };
extern int shares[MOST_SHARES];
const char *mount_share(struct field *field);

int write_file(const char *path, const char *content, size_t length);
char *sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
