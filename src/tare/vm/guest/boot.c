/* Making the machine: modules, disks, the overlay, hostname, clock, entropy and network. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

static int by_name(const struct dirent **left, const struct dirent **right)
{
    return strcmp((*left)->d_name, (*right)->d_name);
}

static int load(int directory, const char *name)
{
    int descriptor = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return -1;
    syscall(SYS_finit_module, descriptor, "", 0);
    close(descriptor);
    return unlinkat(directory, name, 0);  /* the file's memory is the guest's */
}

static int later = -1;  /* modules that only some machines need; out of sight after the move */

/* The initramfs holds them in the order of their dependencies. */
void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, by_name);
    int directory = open("/modules", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < count; i++)
        if (names[i]->d_name[0] != '.')
            load(directory, names[i]->d_name);
    close(directory);
    later = open("/later", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Loads modules by name, NULL at the end; those that are loaded already have no file any more. */
void load_later(const char *name, ...)
{
    va_list names;
    va_start(names, name);
    for (; name; name = va_arg(names, const char *)) {
        char file[64];
        snprintf(file, sizeof file, "%s.ko", name);
        load(later, file);
    }
    va_end(names);
}

/* The disk whose serial number is *serial: QEMU gives each the name that its purpose has. */
static const char *disk(const char *serial)
{
    static char path[300];
    DIR *directory = opendir("/sys/block");
    struct dirent *entry;
    if (!directory)
        return NULL;
    while ((entry = readdir(directory))) {
        char text[32] = "";
        int descriptor;
        ssize_t length = -1;
        if (entry->d_name[0] != 'v')
            continue;
        snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
        descriptor = open(path, O_RDONLY | O_CLOEXEC);
        if (descriptor >= 0) {
            length = read(descriptor, text, sizeof text - 1);
            close(descriptor);
        }
        if (length >= 0 && strcmp(text, serial) == 0) {
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            closedir(directory);
            return path;
        }
    }
    closedir(directory);
    return NULL;
}

static const char *mount_layers(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        char serial[16], target[32];
        const char *found;
        snprintf(serial, sizeof serial, "L%u", i);
        snprintf(target, sizeof target, "/l/%u", i);
        found = disk(serial);
        if (!found)
            return sentence("disk %s of the image is missing", serial);
        mkdir(target, 0755);
        if (mount(found, target, "erofs", MS_RDONLY | MS_NODEV, NULL))
            return sentence("cannot mount layer %u: %s", i, strerror(errno));
    }
    return NULL;
}

static const char *mount_overlay(unsigned count)
{
    const char *found = disk("upper");
    struct stat status;
    char top[32], *options;
    size_t used;
    const char *data = machine.flags & VOLATILE ? "nobarrier,noauto_da_alloc" : "";
    if (!found)
        return "the machine has no disk to write to";
    if (mount(found, "/upper", "ext4", MS_NOATIME | MS_NODEV, data))
        return sentence("cannot mount the writable disk: %s", strerror(errno));
    snprintf(top, sizeof top, "/l/%u", count - 1);
    if (mkdir("/upper/u", 0755) == 0 && stat(top, &status) == 0) {
        if (chown("/upper/u", status.st_uid, status.st_gid) || chmod("/upper/u", status.st_mode))
            return "cannot prepare the writable disk";
    }
    mkdir("/upper/w", 0700);
    options = malloc(count * 8 + 200);
    used = (size_t)sprintf(options, "upperdir=/upper/u,workdir=/upper/w,redirect_dir=nofollow,"
                           "metacopy=off,index=off,xino=off%s,lowerdir=",
                           machine.flags & VOLATILE ? ",volatile" : "");
    for (unsigned i = count; i-- > 0;)
        used += (size_t)sprintf(options + used, "/l/%u%s", i, i ? ":" : "");
    if (mount("overlay", "/root", "overlay", MS_NODEV, options))
        return sentence("cannot mount the overlay: %s", strerror(errno));
    free(options);
    return NULL;
}

static void set_clock(uint64_t nanoseconds)
{
    struct timespec now = {.tv_sec = (time_t)(nanoseconds / 1000000000u),
                           .tv_nsec = (long)(nanoseconds % 1000000000u)};
    clock_settime(CLOCK_REALTIME, &now);
}

/* random(4): credited, so that nothing in the guest waits for it at its first second. */
static void add_entropy(const struct field *field)
{
    struct { int bits, size; char bytes[512]; } pool;
    int descriptor = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (descriptor < 0 || field->length > sizeof pool.bytes)
        return;
    pool.bits = (int)field->length * 8;
    pool.size = (int)field->length;
    memcpy(pool.bytes, field->value, field->length);
    ioctl(descriptor, RNDADDENTROPY, &pool);
    ioctl(descriptor, RNDRESEEDCRNG);
    explicit_bzero(&pool, sizeof pool);
    close(descriptor);
}

int shares[MOST_SHARES] = {[0 ... MOST_SHARES - 1] = -1};

/* "NUMBER\0TARGET\0NAME\0ro": a directory of the host, asked for through our own loop. */
const char *mount_share(struct field *field)
{
    const char *target = field->value + strlen(field->value) + 1;
    const char *name = target + strlen(target) + 1, *mode = name + strlen(name) + 1;
    unsigned number = (unsigned)atoi(field->value);
    unsigned long flags = MS_NODEV | (strcmp(mode, "ro") == 0 ? MS_RDONLY : 0);
    char path[64], options[128];
    if (number >= MOST_SHARES)
        return "too many binds and volumes";
    load_later("fuse", NULL);
    shares[number] = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (shares[number] < 0)
        return sentence("cannot share %s: %s", target, strerror(errno));
    mkdir("/shares", 0755);
    snprintf(path, sizeof path, "/shares/%u", number);
    mkdir(path, 0755);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,"
             "default_permissions,max_read=65536", shares[number]);
    if (mount("tare", path, "fuse", flags, options))
        return sentence("cannot share %s: %s", target, strerror(errno));
    return NULL;
}

static const char *apply(struct field *field, unsigned *layers)
{
    switch (field->key) {
    case C_LAYERS: *layers = (unsigned)number_of(field); return NULL;
    case C_FLAGS: machine.flags = (uint32_t)number_of(field); return NULL;
    case C_SHM: machine.shm_size = number_of(field); return NULL;
    case C_CLOCK: set_clock(number_of(field)); return NULL;
    case C_ENTROPY: add_entropy(field); return NULL;
    case C_NETWORK: return set_network(field);
    case C_SHARE: return mount_share(field);
    case C_HOSTNAME: sethostname(field->value, field->length); return NULL;
    case C_DOMAIN: setdomainname(field->value, field->length); return NULL;
    default: return NULL;  /* of the first program's mounts: see program.c */
    }
}

const char *assemble(uint8_t *payload, size_t length)
{
    uint8_t *copy = malloc(length + 1), *at = copy;
    struct field field;
    unsigned layers = 0;
    const char *wrong = NULL;
    memcpy(copy, payload, length);
    raise_interface("lo", 0);
    while (!wrong && next_field(&at, copy + length, &field))
        wrong = apply(&field, &layers);
    free(copy);
    if (!wrong && (layers < 1 || layers > 500))
        wrong = "the image has no layers";
    if (!wrong)
        wrong = mount_layers(layers);
    if (!wrong)
        wrong = mount_overlay(layers);
    return wrong;
}

/* What was written is on the disks when this returns. */
void settle_disks(void)
{
    int upper = open("/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Not sync(2): that would wait for the shares, which are asked for through our own loop. */
    if (!(machine.flags & VOLATILE))
        syncfs(upper);
    close(upper);
}
