/* The child: from the clone to the program. Docker's words where something cannot be.
 *
 * The first program gets a mount, pid, ipc and uts namespace of its own, so that it is process 1
 * and sees what it would see in a container; what comes later joins those.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <linux/capability.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "guest.h"

static const unsigned long QUIET = MS_NOSUID | MS_NODEV | MS_NOEXEC;

void refuse(int report, int code, const char *format, ...)
{
    char text[2048];
    va_list arguments;
    int length;
    text[0] = 'E';
    text[1] = (char)code;
    va_start(arguments, format);
    length = vsnprintf(text + 2, sizeof text - 2, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 3)
        length = sizeof text - 3;
    send(report, text, (size_t)length + 2, MSG_NOSIGNAL);
    _exit(code);
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
}

/* --- the first program's view --------------------------------------------------------------- */

static void mount_new(int report, const char *kind, const char *target, unsigned long flags,
                      const char *data)
{
    struct stat status;
    mkdir(target, 0755);
    if (lstat(target, &status) || !S_ISDIR(status.st_mode))
        refuse(report, CANNOT_SET_UP, "cannot mount on %s: it is no directory in the image",
               target + strlen("/root"));
    if (mount(kind, target, kind, flags, data))
        refuse(report, CANNOT_SET_UP, "cannot mount %s: %s", target + strlen("/root"),
               strerror(errno));
}

static void node(const char *path, unsigned number, mode_t mode)
{
    mknod(path, S_IFCHR | mode, makedev(1, number));
    chmod(path, mode);
}

static void make_devices(int report)
{
    char shm[64];
    mount_new(report, "tmpfs", "/root/dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=64k");
    node("/root/dev/null", 3, 0666);
    node("/root/dev/zero", 5, 0666);
    node("/root/dev/full", 7, 0666);
    node("/root/dev/random", 8, 0666);
    node("/root/dev/urandom", 9, 0666);
    mknod("/root/dev/tty", S_IFCHR | 0666, makedev(5, 0));
    chmod("/root/dev/tty", 0666);
    if (symlink("/proc/self/fd", "/root/dev/fd") || symlink("/proc/self/fd/0", "/root/dev/stdin")
        || symlink("/proc/self/fd/1", "/root/dev/stdout")
        || symlink("/proc/self/fd/2", "/root/dev/stderr")
        || symlink("pts/ptmx", "/root/dev/ptmx"))
        refuse(report, CANNOT_SET_UP, "cannot make /dev: %s", strerror(errno));
    mount_new(report, "devpts", "/root/dev/pts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5,max=1024");
    snprintf(shm, sizeof shm, "mode=1777,size=%llu",
             (unsigned long long)(machine.shm_size ? machine.shm_size : 64ull << 20));
    mount_new(report, "tmpfs", "/root/dev/shm", QUIET, shm);
    mount_new(report, "mqueue", "/root/dev/mqueue", QUIET, NULL);
}

/* A path of the image, resolved within it: openat2(2) with RESOLVE_IN_ROOT. */
static int in_root(const char *path, uint64_t flags)
{
    struct { uint64_t flags, mode, resolve; } how = {.flags = flags | O_CLOEXEC, .resolve = 0x10};
    int root = open("/root", O_PATH | O_DIRECTORY | O_CLOEXEC), found;
    if (flags & O_CREAT)
        how.mode = 0644;
    found = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    close(root);
    return found;
}

/* /proc/self/fd/N for *path in the image, made as a directory or an empty file if missing. */
static const char *target_of(int report, const char *path, int directory)
{
    static char name[64];
    int found = in_root(path, O_PATH | (directory ? O_DIRECTORY : 0));
    if (found < 0 && errno == ENOENT) {
        char done[PATH_MAX] = "";
        char *copy = strdup(path), *save = NULL, *part = strtok_r(copy, "/", &save), *next;
        int parent = in_root("/", O_PATH | O_DIRECTORY);
        for (; part; part = next) {
            next = strtok_r(NULL, "/", &save);
            strncat(done, "/", sizeof done - strlen(done) - 1);
            strncat(done, part, sizeof done - strlen(done) - 1);
            found = in_root(done, O_PATH | (next ? O_DIRECTORY : 0));
            if (found < 0) {
                if (next || directory)
                    mkdirat(parent, part, 0755);
                else
                    close(openat(parent, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
                found = in_root(done, O_PATH | (next ? O_DIRECTORY : 0));
            }
            close(parent);
            parent = found;
        }
        free(copy);
    }
    if (found < 0)
        refuse(report, CANNOT_SET_UP, "cannot mount on %s: %s", path, strerror(errno));
    snprintf(name, sizeof name, "/proc/self/fd/%d", found);
    return name;
}

static void place_file(int report, struct field *field, int number)
{
    char source[64];
    const char *path = field->value, *content = path + strlen(path) + 1;
    size_t length = field->length - strlen(path) - 1;
    snprintf(source, sizeof source, "/files/%d", number);
    if (write_file(source, content, length)
        || mount(source, target_of(report, path, 0), NULL, MS_BIND, NULL))
        refuse(report, CANNOT_SET_UP, "cannot write %s: %s", path, strerror(errno));
}

static void place_tmpfs(int report, struct field *field)
{
    const char *path = field->value, *options = path + strlen(path) + 1;
    unsigned long flags = (unsigned long)strtoul(options, NULL, 10);
    if (mount("tmpfs", target_of(report, path, 1), "tmpfs", flags, strchr(options, ' ') + 1))
        refuse(report, CANNOT_SET_UP, "cannot mount %s: %s", path, strerror(errno));
}

/* Written from within the new namespaces: some of these are theirs. */
static void set_sysctl(int report, struct field *field)
{
    const char *name = field->value, *value = name + strlen(name) + 1;
    char path[512] = "/proc/sys/", *out = path + strlen(path);
    if (strlen(name) + 1 >= field->length || strlen(name) > 400 || strstr(name, ".."))
        refuse(report, CANNOT_SET_UP, "invalid sysctl %s", name);
    for (; *name; name++)
        *out++ = *name == '.' ? '/' : *name;
    *out = 0;
    if (write_file(path, value, strlen(value)))
        refuse(report, CANNOT_SET_UP, "cannot set sysctl %s: %s", field->value, strerror(errno));
}

static void place_share(int report, struct field *field)
{
    const char *path = field->value + strlen(field->value) + 1, *name = path + strlen(path) + 1;
    char source[300];
    snprintf(source, sizeof source, "/shares/%s%s%s", field->value, *name ? "/" : "", name);
    if (mount(source, target_of(report, path, !*name), NULL, MS_BIND, NULL))
        refuse(report, CANNOT_SET_UP, "cannot mount %s: %s", path, strerror(errno));
}

static void place_mounts(int report)
{
    uint8_t *at = machine.payload, *end = at + machine.length;
    struct field field;
    int files = 0;
    while (next_field(&at, end, &field)) {
        if (field.key == C_FILE)
            place_file(report, &field, files++);
        else if (field.key == C_TMPFS)
            place_tmpfs(report, &field);
        else if (field.key == C_SYSCTL)
            set_sysctl(report, &field);
        else if (field.key == C_SHARE)
            place_share(report, &field);
    }
}

static void read_only(const char *path)
{
    mount(path, path, NULL, MS_BIND, NULL);
    mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | QUIET, NULL);
}

static void make_view(int report)
{
    int privileged = machine.flags & PRIVILEGED;
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    mount_new(report, "proc", "/root/proc", QUIET, NULL);
    mount_new(report, "sysfs", "/root/sys", privileged ? QUIET : QUIET | MS_RDONLY, NULL);
    make_devices(report);
    place_mounts(report);
    if (!privileged) {
        read_only("/root/proc/sys");
        read_only("/root/proc/sysrq-trigger");
    }
    if (machine.flags & READ_ONLY
        && mount(NULL, "/root", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV, NULL))
        refuse(report, CANNOT_SET_UP, "cannot make the root read-only: %s", strerror(errno));
    if (chdir("/root") || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH)
        || chdir("/"))
        refuse(report, CANNOT_SET_UP, "cannot enter the root: %s", strerror(errno));
}

/* --- who it runs as -------------------------------------------------------------------------- */

static char *read_accounts(const char *path)
{
    enum { MOST = 1 << 20 };
    struct stat status;
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    char *content = calloc(1, MOST + 1);
    if (descriptor < 0)
        return content;
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) {
        ssize_t length, at = 0;
        while (at < MOST && (length = read(descriptor, content + at, (size_t)(MOST - at))) > 0)
            at += length;
    }
    close(descriptor);
    return content;
}

/* Splits the next line into at most *most fields; their number, 0 at the end. */
static int next_line(char **at, char *fields[], int most)
{
    int count = 0;
    char *line = *at, *end;
    if (!*line)
        return 0;
    end = strchr(line, '\n');
    if (end)
        *end = 0;
    *at = end ? end + 1 : line + strlen(line);
    while (count < most && line)
        fields[count++] = strsep(&line, ":");
    return count;
}

static long number(const char *text)
{
    char *end;
    unsigned long value;
    if (*text < '0' || *text > '9')
        return -1;
    value = strtoul(text, &end, 10);
    return *end || value > 0x7fffffff ? -1 : (long)value;
}

struct identity { uid_t uid; gid_t gid; gid_t groups[256]; size_t count; char *home; };

static gid_t group_named(int report, const char *name, const char *content)
{
    char *copy = strdup(content), *at = copy, *fields[4];
    long found = number(name);
    int count;
    while (found < 0 && (count = next_line(&at, fields, 4)))
        if (count >= 3 && strcmp(fields[0], name) == 0)
            found = number(fields[2]);
    free(copy);
    if (found < 0)
        refuse(report, CANNOT_SET_UP,
               "unable to find group %s: no matching entries in group file", name);
    return (gid_t)found;
}

static int lists(const char *members, const char *login)
{
    size_t length = strlen(login);
    for (const char *at = members; (at = strstr(at, login)); at += length)
        if ((at == members || at[-1] == ',') && (!at[length] || at[length] == ','))
            return 1;
    return 0;
}

static void resolve(int report, struct program *program, struct identity *who)
{
    char *user = strdup(program->user), *group = strchr(user, ':');
    char *passwd = read_accounts("/etc/passwd"), *groups = read_accounts("/etc/group");
    char *at = passwd, *fields[7], *login = NULL;
    long uid;
    int count;
    memset(who, 0, sizeof *who);
    who->home = "/";
    if (group)
        *group++ = 0;
    uid = number(*user ? user : "0");
    while (!login && (count = next_line(&at, fields, 7)))
        if (count >= 6 && (uid >= 0 ? number(fields[2]) == uid : strcmp(fields[0], user) == 0)
            && number(fields[2]) >= 0 && number(fields[3]) >= 0) {
            login = fields[0];
            uid = number(fields[2]);
            who->gid = (gid_t)number(fields[3]);
            who->home = *fields[5] ? fields[5] : "/";
        }
    if (uid < 0)
        refuse(report, CANNOT_SET_UP,
               "unable to find user %s: no matching entries in passwd file", user);
    who->uid = (uid_t)uid;
    if (group && *group) {
        who->gid = group_named(report, group, groups);
    } else if (login) {
        char *copy = strdup(groups), *line = copy;
        while ((count = next_line(&line, fields, 4)))
            if (count >= 4 && who->count < 200 && number(fields[2]) >= 0
                && lists(fields[3], login))
                who->groups[who->count++] = (gid_t)number(fields[2]);
        free(copy);
    }
    for (size_t i = 0; i < program->group_count && who->count < 250; i++)
        who->groups[who->count++] = group_named(report, program->groups[i], groups);
}

static int capset_to(uint64_t permitted, uint64_t inheritable)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {
        {(uint32_t)permitted, (uint32_t)permitted, (uint32_t)inheritable},
        {(uint32_t)(permitted >> 32), (uint32_t)(permitted >> 32),
         (uint32_t)(inheritable >> 32)}};
    return (int)syscall(SYS_capset, &header, data);
}

static void become(int report, struct identity *who, uint64_t caps)
{
    for (int i = 0; i < 64; i++)
        if (!(caps >> i & 1) && prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1)
            prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
    if (setgroups(who->count, who->groups) || setresgid(who->gid, who->gid, who->gid)
        || setresuid(who->uid, who->uid, who->uid))
        refuse(report, CANNOT_SET_UP, "cannot become the user: %s", strerror(errno));
    if (who->uid == 0 && capset_to(caps, 0))
        refuse(report, CANNOT_SET_UP, "cannot set capabilities: %s", strerror(errno));
}

/* --- streams and the end --------------------------------------------------------------------- */

/* A terminal of the program's own devpts; its master goes to the init. */
static void open_terminal(int report, struct program *program)
{
    struct winsize size = {.ws_row = program->rows, .ws_col = program->columns};
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), slave, unlock = 0;
    char control[CMSG_SPACE(sizeof(int))] = {0}, word = 'T', name[32];
    struct iovec part = {&word, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    unsigned index = 0;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &index))
        refuse(report, CANNOT_SET_UP, "cannot make a terminal: %s", strerror(errno));
    if (size.ws_row)
        ioctl(master, TIOCSWINSZ, &size);
    slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    snprintf(name, sizeof name, "/dev/pts/%u", index);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &master, sizeof(int));
    if (slave < 0 || sendmsg(report, &message, MSG_NOSIGNAL) < 0)
        refuse(report, CANNOT_SET_UP, "cannot hand over the terminal: %s", strerror(errno));
    close(master);
    close(open("/dev/console", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    mount(name, "/dev/console", NULL, MS_BIND, NULL);
    ioctl(slave, TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++)
        dup2(slave, i);
    if (slave > 2)
        close(slave);
}

static void find_and_execute(int report, struct program *program)
{
    const char *name = program->args[0], *path = "/usr/local/bin:/usr/bin:/bin";
    char candidate[PATH_MAX];
    int denied = 0;
    for (size_t i = 0; i < program->env_count; i++)
        if (strncmp(program->env[i], "PATH=", 5) == 0)
            path = program->env[i] + 5;
    if (!strchr(name, '/')) {
        const char *found = NULL;
        for (const char *at = path; at && !found; at = strchr(at, ':') ? strchr(at, ':') + 1 : 0) {
            struct stat status;
            size_t length = strcspn(at, ":");
            snprintf(candidate, sizeof candidate, "%.*s/%s", (int)length, length ? at : ".", name);
            if (stat(candidate, &status) || S_ISDIR(status.st_mode))
                continue;
            if (access(candidate, X_OK) == 0)
                found = candidate;
            else
                denied = 1;
        }
        if (!found && denied)
            refuse(report, CANNOT_EXECUTE, "exec: \"%s\": permission denied", name);
        if (!found)
            refuse(report, NOT_FOUND, "exec: \"%s\": executable file not found in $PATH", name);
        name = found;
    }
    execve(name, program->args, program->env);
    if (errno == ENOENT || errno == ENOTDIR)
        refuse(report, NOT_FOUND, "exec: \"%s\": no such file or directory", program->args[0]);
    if (errno == ENOEXEC)
        refuse(report, CANNOT_EXECUTE, "exec: \"%s\": exec format error", program->args[0]);
    refuse(report, CANNOT_EXECUTE, "exec: \"%s\": %s", program->args[0],
           errno == EACCES ? "permission denied" : strerror(errno));
}

static void finish(struct program *program, int report, int stdio[3])
{
    struct identity who;
    sigset_t none;
    char *cwd = strdup(program->cwd);
    int home = 0;
    setsid();
    resolve(report, program, &who);
    if (program->flags & TTY) {
        open_terminal(report, program);
        if (fchown(0, who.uid, (gid_t)-1)) { /* a read-only image may refuse; it works anyway */ }
    } else {
        for (int i = 0; i < 3; i++) {
            if (fchown(stdio[i], who.uid, who.gid)) { /* likewise */ }
            dup2(stdio[i], i);
        }
    }
    for (size_t i = 0; i < program->limit_count; i++) {
        struct rlimit64 limit = {program->limits[i].soft, program->limits[i].hard};
        syscall(SYS_prlimit64, 0, program->limits[i].number, &limit, NULL);
    }
    for (size_t i = 0; i < program->env_count; i++)
        home |= strncmp(program->env[i], "HOME=", 5) == 0;
    if (!home) {
        program->env = realloc(program->env, (program->env_count + 2) * sizeof(char *));
        program->env[program->env_count++] = sentence("HOME=%s", who.home);
        program->env[program->env_count] = NULL;
    }
    umask(022);
    make_parents(cwd);
    mkdir(cwd, 0755);
    if (program->flags & NO_NEW_PRIVILEGES)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    become(report, &who, program->caps);
    if (chdir(cwd))
        refuse(report, errno == EACCES ? CANNOT_EXECUTE : CANNOT_SET_UP,
               "cannot change to the working directory %s: %s", cwd, strerror(errno));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    find_and_execute(report, program);
}

/* Keeps *report out of the way of the standard streams; closes with the exec. */
static int keep(int report)
{
    int high = fcntl(report, F_DUPFD_CLOEXEC, 10);
    close(report);
    return high;
}

void run_first(struct program *program, int report, int stdio[3])
{
    report = keep(report);
    make_view(report);
    finish(program, report, stdio);
    _exit(CANNOT_EXECUTE);
}

void run_more(struct program *program, int report, int stdio[3])
{
    report = keep(report);
    if (setns(machine.first, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC))
        refuse(report, CANNOT_SET_UP, "cannot enter: %s", strerror(errno));
    finish(program, report, stdio);
    _exit(CANNOT_EXECUTE);
}
