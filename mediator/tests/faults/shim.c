/* A disk and a clock that misbehave, for the tests of faults: preloaded into the mediator.
 *
 * ADIT_FAULT names a directory. Its files say what happens, and can change at any time:
 *   mode     one letter: n nothing, w writes fail with EIO, s syncs fail with EIO,
 *            f writes fail with ENOSPC; only files whose path contains ".db"
 *   clock    seconds that are added to the time of day
 *   root     the folder that is watched, read once, when the program begins to use files
 *   journal  if it is there: every write, truncation and sync of files under that folder is
 *            appended to it, with its bytes, before (writes) or after (syncs) it is done; and
 *            what happens to the names in it and the folders below: files and folders that are
 *            made, names that change or go, after it is done
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define FILES 4096

static char kind[FILES]; /* 0 unknown, 'd' database or its log, 'o' others that are watched, '-' */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char root[PATH_MAX];

static long control(const char *name, char *out, size_t size)
{
    const char *dir = getenv("ADIT_FAULT");
    char path[512];
    if (!dir)
        return -1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    long n = syscall(SYS_read, fd, out, size - 1);
    syscall(SYS_close, fd);
    if (n < 0)
        return -1;
    out[n] = 0;
    return n;
}

static char mode(void)
{
    char text[8];
    return control("mode", text, sizeof text) > 0 ? text[0] : 'n';
}

static void begin(void)
{
    char text[PATH_MAX];
    if (control("root", text, sizeof text) > 0 && !realpath(text, root))
        root[0] = 0;
}

static int ends(const char *text, const char *end)
{
    size_t n = strlen(text), tail = strlen(end);
    return n >= tail && !strcmp(text + n - tail, end);
}

/* What of a whole path is below the folder that is watched; shared memory is no file on disk. */
static const char *below(const char *path)
{
    pthread_once(&once, begin);
    size_t n = strlen(root);
    if (!n || strncmp(path, root, n) || (path[n] && path[n] != '/') || ends(path, "-shm"))
        return 0;
    return path[n] ? path + n + 1 : path + n;
}

/* The same of a name as it was given: its folder is there, itself need not be. */
static const char *name_below(const char *given, char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(given, '/');
    size_t n = slash ? (size_t)(slash - given) : 0;
    if (!slash || n >= sizeof folder)
        return 0;
    memcpy(folder, given, n);
    folder[n] = 0;
    if (!realpath(n ? folder : "/", path) || strlen(path) + strlen(slash) >= PATH_MAX)
        return 0;
    strcat(path, slash);
    return below(path);
}

/* Path of an open file, below the folder that is watched. */
static const char *path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0)
        return 0;
    path[n] = 0;
    return path[0] != '/' || ends(path, " (deleted)") ? 0 : below(path);
}

static char what(int fd)
{
    char link[64], path[PATH_MAX];
    if (fd < 0 || fd >= FILES)
        return '-';
    if (kind[fd])
        return kind[fd];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    char found = '-';
    if (n > 0) {
        path[n] = 0;
        if (ends(path, "-wal") || ends(path, ".db"))
            found = 'd';
        else if (path[0] == '/' && below(path))
            found = 'o';
    }
    kind[fd] = found;
    return found;
}

/* One record: act, offset, lengths of path and data, path, data. */
static void note(char act, const char *name, uint64_t offset, const void *data, uint64_t length)
{
    const char *dir = getenv("ADIT_FAULT");
    char path[512], head[25];
    if (!dir || !name)
        return;
    snprintf(path, sizeof path, "%s/journal", dir);
    uint64_t named = strlen(name);
    pthread_mutex_lock(&lock);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd >= 0) {
        head[0] = act;
        memcpy(head + 1, &offset, 8);
        memcpy(head + 9, &named, 8);
        memcpy(head + 17, &length, 8);
        syscall(SYS_write, fd, head, sizeof head);
        syscall(SYS_write, fd, name, named);
        if (data && length)
            syscall(SYS_write, fd, data, length);
        syscall(SYS_close, fd);
    }
    pthread_mutex_unlock(&lock);
}

static int broken(char file, int sync)
{
    if (file != 'd')
        return 0;
    switch (mode()) {
    case 'w':
        return sync ? 0 : EIO;
    case 's':
        return sync ? EIO : 0;
    case 'f':
        return sync ? 0 : ENOSPC;
    }
    return 0;
}

static ssize_t put(int fd, const void *data, size_t size, off_t at, int seek)
{
    char file = what(fd), path[PATH_MAX];
    int error = broken(file, 0);
    if (error) {
        errno = error;
        return -1;
    }
    if (file != '-') {
        int behind = seek && fcntl(fd, F_GETFL) & O_APPEND;
        off_t offset = seek ? lseek(fd, 0, behind ? SEEK_END : SEEK_CUR) : at;
        if (offset >= 0)
            note('w', path_of(fd, path), (uint64_t)offset, data, size);
    }
    return seek ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, at);
}

ssize_t write(int fd, const void *data, size_t size)
{
    return put(fd, data, size, 0, 1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return put(fd, data, size, at, 0);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at)
{
    return put(fd, data, size, at, 0);
}

static int cut(int fd, off_t size)
{
    char path[PATH_MAX];
    if (what(fd) != '-')
        note('t', path_of(fd, path), (uint64_t)size, 0, 0);
    return (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate(int fd, off_t size)
{
    return cut(fd, size);
}

int ftruncate64(int fd, off_t size)
{
    return cut(fd, size);
}

static int settle(int fd, long call)
{
    char file = what(fd), path[PATH_MAX];
    int error = broken(file, 1);
    if (error) {
        errno = error;
        return -1;
    }
    int done = (int)syscall(call, fd);
    if (done == 0 && file != '-')
        note('s', path_of(fd, path), 0, 0, 0);
    return done;
}

int fsync(int fd)
{
    return settle(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return settle(fd, SYS_fdatasync);
}

/* Files that are made, or emptied. */
static int opened(int folder, const char *name, int flags, mode_t rights)
{
    char path[PATH_MAX];
    int made = flags & O_CREAT && syscall(SYS_faccessat, folder, name, F_OK) != 0;
    int fd = (int)syscall(SYS_openat, folder, name, flags, rights);
    int error = errno;
    /* Streams of the C library are closed past us. */
    if (fd >= 0 && fd < FILES)
        kind[fd] = 0;
    if (fd >= 0 && made)
        note('c', path_of(fd, path), 0, 0, 0);
    else if (fd >= 0 && flags & O_TRUNC)
        note('t', path_of(fd, path), 0, 0, 0);
    errno = error;
    return fd;
}

#define OPEN(name, before, folder)                                                                 \
    int name(before const char *path, int flags, ...)                                             \
    {                                                                                              \
        mode_t rights = 0;                                                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                       \
            va_list rest;                                                                          \
            va_start(rest, flags);                                                                 \
            rights = va_arg(rest, mode_t);                                                         \
            va_end(rest);                                                                          \
        }                                                                                          \
        return opened(folder, path, flags, rights);                                                \
    }

#define NONE
#define FOLDER int folder,
OPEN(open, NONE, AT_FDCWD)
OPEN(open64, NONE, AT_FDCWD)
OPEN(openat, FOLDER, folder)
OPEN(openat64, FOLDER, folder)

int mkdir(const char *name, mode_t rights)
{
    char path[PATH_MAX];
    int done = (int)syscall(SYS_mkdirat, AT_FDCWD, name, rights), error = errno;
    if (done == 0)
        note('m', name_below(name, path), 0, 0, 0);
    errno = error;
    return done;
}

int unlink(const char *name)
{
    char path[PATH_MAX];
    int done = (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0), error = errno;
    if (done == 0)
        note('u', name_below(name, path), 0, 0, 0);
    errno = error;
    return done;
}

int rename(const char *from, const char *to)
{
    char old[PATH_MAX], new[PATH_MAX];
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0), error = errno;
    if (done == 0) {
        const char *was = name_below(from, old), *is = name_below(to, new);
        if (is)
            note('r', was, 0, is, strlen(is));
    }
    errno = error;
    return done;
}

int close(int fd)
{
    if (fd >= 0 && fd < FILES)
        kind[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    static int (*real)(clockid_t, struct timespec *);
    char text[32];
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, time);
    if (done == 0 && clock == CLOCK_REALTIME && control("clock", text, sizeof text) > 0)
        time->tv_sec += atoll(text);
    return done;
}
