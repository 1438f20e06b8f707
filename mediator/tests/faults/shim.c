/* A disk and a clock that misbehave, for the tests of faults: preloaded into the mediator.
 *
 * ADIT_FAULT names a directory. Its files say what happens, and can change at any time:
 *   mode     one letter: n nothing, w writes fail with EIO, s syncs fail with EIO,
 *            f writes fail with ENOSPC; only files whose path contains ".db"
 *   clock    seconds that are added to the time of day
 *   journal  if it is there: every write, truncation and sync of such files is appended to it,
 *            with its bytes, before (writes) or after (syncs) it is done; and each file that takes
 *            the place of audit-heads.jsonl, before it does
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define FILES 4096

static char kind[FILES]; /* 0 unknown, 'd' database, 'w' write-ahead log, '-' others */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

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

static char what(int fd)
{
    char link[64], path[512];
    if (fd < 0 || fd >= FILES)
        return '-';
    if (kind[fd])
        return kind[fd];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    char found = '-';
    if (n > 0) {
        path[n] = 0;
        if (n > 4 && !strcmp(path + n - 4, "-wal"))
            found = 'w';
        else if (n > 3 && !strcmp(path + n - 3, ".db"))
            found = 'd';
    }
    kind[fd] = found;
    return found;
}

/* One record: file, act, offset, length, bytes. */
static void note(char file, char act, uint64_t offset, const void *data, uint64_t length)
{
    const char *dir = getenv("ADIT_FAULT");
    char path[512], head[18];
    if (!dir)
        return;
    snprintf(path, sizeof path, "%s/journal", dir);
    pthread_mutex_lock(&lock);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd >= 0) {
        head[0] = file;
        head[1] = act;
        memcpy(head + 2, &offset, 8);
        memcpy(head + 10, &length, 8);
        syscall(SYS_write, fd, head, sizeof head);
        if (data && length)
            syscall(SYS_write, fd, data, length);
        syscall(SYS_close, fd);
    }
    pthread_mutex_unlock(&lock);
}

static int broken(char file, int sync)
{
    if (file == '-')
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
    char file = what(fd);
    int error = broken(file, 0);
    if (error) {
        errno = error;
        return -1;
    }
    if (file != '-') {
        off_t offset = seek ? lseek(fd, 0, SEEK_CUR) : at;
        note(file, 'w', (uint64_t)offset, data, size);
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
    char file = what(fd);
    if (file != '-')
        note(file, 't', (uint64_t)size, 0, 0);
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
    char file = what(fd);
    int error = broken(file, 1);
    if (error) {
        errno = error;
        return -1;
    }
    int done = (int)syscall(call, fd);
    if (done == 0 && file != '-')
        note(file, 's', 0, 0, 0);
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

/* The heads noted beside the database: a file is written, then takes the old one's place. */
int rename(const char *from, const char *to)
{
    static const char heads[] = "audit-heads.jsonl";
    static char bytes[65536];
    size_t length = strlen(to), tail = sizeof heads - 1;
    if (length >= tail && !strcmp(to + length - tail, heads)) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, from, O_RDONLY | O_CLOEXEC, 0);
        long n = fd < 0 ? -1 : syscall(SYS_read, fd, bytes, sizeof bytes);
        if (n >= 0)
            note('h', 'w', 0, bytes, (uint64_t)n);
        if (fd >= 0)
            syscall(SYS_close, fd);
    }
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
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
