/* A small or slow volume for one process, played from inside of it.
 *
 * Preloaded into a process, this library makes the folder KV_VOLUME_ROOT look like a volume of its own, of the size
 * that the file KV_VOLUME_CONTROL says: "CAPACITY-BYTES SYNC-DELAY-MS", read anew all the time. What the files below
 * the root occupy is measured, so that removing some makes room:
 *
 *   - statvfs tells size and free space by that;
 *   - a write or a reservation of blocks for which there is no room fails with ENOSPC;
 *   - fsync and fdatasync take longer by the delay.
 *
 * Simplifications: overwriting needs room too, and what was measured is up to MEASURE_NS old, but for the process's own
 * writes since. Calls that the compiler turns into raw system calls are not seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MEASURE_NS (10 * 1000 * 1000LL)
#define BLOCK 4096

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
static void *real(void **found, const char *name) {
    if (!*found) *found = dlsym(RTLD_NEXT, name);
    return *found;
}
#define DECLARE(name) static void *real_##name
DECLARE(write); DECLARE(writev); DECLARE(pwrite); DECLARE(pwrite64); DECLARE(pwritev); DECLARE(pwritev64);
DECLARE(fallocate); DECLARE(fallocate64); DECLARE(posix_fallocate); DECLARE(posix_fallocate64);
DECLARE(fsync); DECLARE(fdatasync);
DECLARE(statvfs); DECLARE(statvfs64); DECLARE(fstatvfs); DECLARE(fstatvfs64);

static bool enabled;
static char root[PATH_MAX], control[PATH_MAX];
static size_t root_length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t used, measured_at = INT64_MIN / 2;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Bytes that the files below an open folder occupy. Closes it. */
static int64_t occupied(int folder) {
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (!entries) return 0;
    int64_t bytes = 0;
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (fstatat(dirfd(entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
        bytes += status.st_blocks * 512LL;
        if (S_ISDIR(status.st_mode))
            bytes += occupied(openat(dirfd(entries), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    }
    closedir(entries);
    return bytes;
}

static void settings(int64_t *capacity, int64_t *delay_ms) {
    long long bytes = INT64_MAX, delay = 0;
    char text[64];
    int fd = open(control, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (length > 0) {
        text[length] = 0;
        if (sscanf(text, "%lld %lld", &bytes, &delay) < 1) bytes = INT64_MAX;
    }
    *capacity = bytes;
    *delay_ms = delay;
}

/* With the lock held. */
static void measure(int64_t older_than_ns) {
    if (now_ns() - measured_at < older_than_ns) return;
    used = occupied(open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    measured_at = now_ns();
}

static bool below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == 0 || path[root_length] == '/');
}

static bool is_ours(int fd) {
    if (!enabled) return false;
    int saved = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return false;
    path[length] = 0;
    return below(path);
}

/* Whether so many more bytes fit; they count as taken then. */
static bool take(int fd, int64_t bytes) {
    if (!is_ours(fd)) return true;
    int saved = errno;
    int64_t capacity, delay;
    settings(&capacity, &delay);
    pthread_mutex_lock(&lock);
    measure(MEASURE_NS);
    /* Something may have been removed since. */
    if (used + bytes > capacity) measure(0);
    bool fits = used + bytes <= capacity;
    if (fits) used += bytes;
    pthread_mutex_unlock(&lock);
    errno = fits ? saved : ENOSPC;
    return fits;
}

static int64_t total(const struct iovec *parts, int count) {
    int64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += (int64_t)parts[i].iov_len;
    return bytes;
}

#define WRITE(name, parameters, arguments, bytes)                                                                   \
    ssize_t name parameters { return take(fd, bytes) ? REAL(name) arguments : -1; }
WRITE(write, (int fd, const void *from, size_t length), (fd, from, length), length)
WRITE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), total(parts, count))
WRITE(pwrite, (int fd, const void *from, size_t length, off_t offset), (fd, from, length, offset), length)
WRITE(pwrite64, (int fd, const void *from, size_t length, off64_t offset), (fd, from, length, offset), length)
WRITE(pwritev, (int fd, const struct iovec *parts, int count, off_t offset), (fd, parts, count, offset),
      total(parts, count))
WRITE(pwritev64, (int fd, const struct iovec *parts, int count, off64_t offset), (fd, parts, count, offset),
      total(parts, count))

int fallocate(int fd, int mode, off_t offset, off_t length) {
    return take(fd, mode & FALLOC_FL_PUNCH_HOLE ? 0 : length) ? REAL(fallocate)(fd, mode, offset, length) : -1;
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    return take(fd, mode & FALLOC_FL_PUNCH_HOLE ? 0 : length) ? REAL(fallocate64)(fd, mode, offset, length) : -1;
}
int posix_fallocate(int fd, off_t offset, off_t length) {
    return take(fd, length) ? REAL(posix_fallocate)(fd, offset, length) : ENOSPC;
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return take(fd, length) ? REAL(posix_fallocate64)(fd, offset, length) : ENOSPC;
}

static void delay(int fd) {
    if (!is_ours(fd)) return;
    int64_t capacity, delay_ms;
    settings(&capacity, &delay_ms);
    struct timespec left = {delay_ms / 1000, delay_ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

int fsync(int fd) {
    delay(fd);
    return REAL(fsync)(fd);
}
int fdatasync(int fd) {
    delay(fd);
    return REAL(fdatasync)(fd);
}

#define TELL(volume)                                                                                                \
    do {                                                                                                            \
        int64_t capacity, delay_ms;                                                                                 \
        settings(&capacity, &delay_ms);                                                                             \
        pthread_mutex_lock(&lock);                                                                                  \
        measure(0);                                                                                                 \
        int64_t left = capacity - used;                                                                             \
        pthread_mutex_unlock(&lock);                                                                                \
        (volume)->f_bsize = (volume)->f_frsize = BLOCK;                                                             \
        (volume)->f_blocks = capacity / BLOCK;                                                                      \
        (volume)->f_bfree = (volume)->f_bavail = left > 0 ? left / BLOCK : 0;                                       \
    } while (0)

static bool is_ours_by_path(const char *path) {
    char resolved[PATH_MAX];
    return enabled && realpath(path, resolved) && below(resolved);
}

int statvfs(const char *path, struct statvfs *volume) {
    int result = REAL(statvfs)(path, volume);
    if (result == 0 && is_ours_by_path(path)) TELL(volume);
    return result;
}
int statvfs64(const char *path, struct statvfs64 *volume) {
    int result = REAL(statvfs64)(path, volume);
    if (result == 0 && is_ours_by_path(path)) TELL(volume);
    return result;
}
int fstatvfs(int fd, struct statvfs *volume) {
    int result = REAL(fstatvfs)(fd, volume);
    if (result == 0 && is_ours(fd)) TELL(volume);
    return result;
}
int fstatvfs64(int fd, struct statvfs64 *volume) {
    int result = REAL(fstatvfs64)(fd, volume);
    if (result == 0 && is_ours(fd)) TELL(volume);
    return result;
}

__attribute__((constructor)) static void attach(void) {
    const char *given_root = getenv("KV_VOLUME_ROOT"), *given_control = getenv("KV_VOLUME_CONTROL");
    if (!given_root || !given_control) return;
    if (!realpath(given_root, root) || strlen(given_control) >= sizeof control) {
        fprintf(stderr, "volume: KV_VOLUME_ROOT is no folder, or KV_VOLUME_CONTROL too long\n");
        abort();
    }
    strcpy(control, given_control);
    root_length = strlen(root);
    enabled = true;
}
