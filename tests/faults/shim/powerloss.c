/* Power loss for one process, played from inside of it.
 *
 * Preloaded into a process, this library keeps beside the data folder (KV_POWERLOSS_ROOT) a shadow of it
 * (KV_POWERLOSS_SHADOW) that holds what a disk would hold after a power loss, by the strictest reading of POSIX:
 *
 *   - the bytes of a file as of its last fsync or fdatasync (or O_SYNC / O_DSYNC write);
 *   - the entries of a directory as of the directory's last fsync; syncing a file does not make its name durable.
 *
 * Layout of the shadow. An inode's id is "INO-BIRTHTIME", so that a reused inode number is another id.
 *
 *   files/ID        synced bytes of a file, whatever its names
 *   dirs/ID/NAME    synced entries of a directory: a hard link to files/ID, or a symbolic link to ../ID of a directory
 *   tmp/            where entries are made before they are renamed into place
 *   attached.PID    proof that the library was loaded
 *
 * Names need no interception: a directory's entries are read when it is synced. Bytes do: each inode has a list of
 * ranges that were written and not yet synced, and a sync copies just these. An inode met for the first time is
 * dirty as a whole, so nothing depends on what an earlier process did. Every call finds its inode with statx, so
 * duplicated and inherited descriptors are no special case. Real syncs are left out: only the process dies, not the
 * machine.
 *
 * What would pass unseen ends the process with a message instead: writable shared mappings, io_uring, sync(), raw
 * system calls that write. Files written through FILE streams are copied whole at each sync.
 *
 * One process at a time may write below a root.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* More separate dirty ranges than these are merged into one: a sync copies more than it must, never less. */
#define MAX_RANGES 32
#define BUCKETS 16384
#define COPY_BYTES (64 * 1024)
#define END_OF_FILE ((off_t)INT64_MAX)

struct range {
    off_t begin, end;
};

/* An inode below the root, or one known not to be. Never freed: the table is as large as the process is old. */
struct inode {
    struct inode *next;
    uint64_t device, number, birth;
    bool below_root, is_directory;
    /* Written in ways that are not seen: every sync copies all of it. */
    bool opaque;
    /* Some descriptor was opened with O_SYNC or O_DSYNC. */
    bool synchronous;
    /* Held during each write and sync of this inode, so that a sync covers the writes that returned before it. */
    pthread_mutex_t lock;
    struct range dirty[MAX_RANGES];
    int ranges;
};

static bool enabled;
static char root[PATH_MAX], shadow[PATH_MAX - 300];
static size_t root_length;
static struct inode *table[BUCKETS];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t next_temporary;

#define REAL(name)                                                                                                  \
    ({                                                                                                              \
        static __typeof__(&name) found;                                                                            \
        if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                             \
        found;                                                                                                      \
    })

static void die(const char *what) __attribute__((noreturn));
static void die(const char *what) {
    char message[512];
    int length = snprintf(message, sizeof message, "power-loss shim: %s (errno %d: %s)\n", what, errno, strerror(errno));
    if (length > (int)sizeof message - 1) length = sizeof message - 1;
    if (REAL(write)(STDERR_FILENO, message, length) < 0) { /* nowhere left to complain */ }
    abort();
}

/* ---- Inodes ------------------------------------------------------------------------------------------------- */

/* 0: the file system (such as /proc) tells none. */
static uint64_t birth_of(const struct statx *status) {
    if (!(status->stx_mask & STATX_BTIME)) return 0;
    return (uint64_t)status->stx_btime.tv_sec * 1000000000u + status->stx_btime.tv_nsec;
}

static bool is_below_root(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) die("a descriptor has no path in /proc");
    path[length] = 0;
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0 ||
                                                     path[root_length] == ' ' /* "… (deleted)" */);
}

static void mark(struct inode *inode, off_t begin, off_t end) {
    for (int i = 0; i < inode->ranges; i++) {
        struct range *range = &inode->dirty[i];
        if (begin <= range->end && range->begin <= end) {
            if (begin < range->begin) range->begin = begin;
            if (end > range->end) range->end = end;
            return;
        }
    }
    if (inode->ranges == MAX_RANGES) {
        for (int i = 0; i < inode->ranges; i++) {
            if (inode->dirty[i].begin < begin) begin = inode->dirty[i].begin;
            if (inode->dirty[i].end > end) end = inode->dirty[i].end;
        }
        inode->ranges = 0;
    }
    inode->dirty[inode->ranges++] = (struct range){begin, end};
}

static struct inode *find(const struct statx *status, int fd) {
    uint64_t device = ((uint64_t)status->stx_dev_major << 32) | status->stx_dev_minor;
    uint64_t birth = birth_of(status);
    struct inode **bucket = &table[(status->stx_ino * 0x9e3779b97f4a7c15u >> 32) % BUCKETS];
    pthread_mutex_lock(&table_lock);
    struct inode *inode = *bucket;
    while (inode && !(inode->number == status->stx_ino && inode->device == device && inode->birth == birth))
        inode = inode->next;
    if (!inode) {
        inode = calloc(1, sizeof *inode);
        if (!inode) die("no memory");
        inode->device = device, inode->number = status->stx_ino, inode->birth = birth;
        inode->below_root = is_below_root(fd);
        if (inode->below_root && !birth) die("the file system tells no birth times: use another folder");
        inode->is_directory = S_ISDIR(status->stx_mode);
        pthread_mutex_init(&inode->lock, NULL);
        mark(inode, 0, END_OF_FILE);
        inode->next = *bucket;
        *bucket = inode;
    }
    pthread_mutex_unlock(&table_lock);
    return inode;
}

/* The file or directory behind `fd` if it lies below the root, else NULL. Keeps errno. */
static struct inode *below_root(int fd) {
    if (!enabled || fd < 0) return NULL;
    int saved = errno;
    struct statx status;
    struct inode *inode = NULL;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_INO | STATX_BTIME, &status) == 0 &&
        (S_ISREG(status.stx_mode) || S_ISDIR(status.stx_mode)))
        inode = find(&status, fd);
    errno = saved;
    return inode && inode->below_root ? inode : NULL;
}

static off_t size_of(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0) die("fstat");
    return status.st_size;
}

/* ---- Syncing into the shadow -------------------------------------------------------------------------------- */

static void file_path(char *path, size_t size, uint64_t number, uint64_t birth) {
    snprintf(path, size, "%s/files/%llu-%llu", shadow, (unsigned long long)number, (unsigned long long)birth);
}

static void copy_range(int from, int into, off_t begin, off_t end) {
    char bytes[COPY_BYTES];
    while (begin < end) {
        size_t wanted = end - begin < COPY_BYTES ? (size_t)(end - begin) : COPY_BYTES;
        ssize_t length = pread(from, bytes, wanted, begin);
        if (length < 0 && errno == EINTR) continue;
        if (length < 0) die("a synced file cannot be read");
        if (length == 0) return;
        for (ssize_t done = 0; done < length;) {
            ssize_t written = REAL(pwrite)(into, bytes + done, length - done, begin + done);
            if (written < 0 && errno != EINTR) die("the shadow cannot be written");
            if (written > 0) done += written;
        }
        begin += length;
    }
}

/* With the inode's lock held. */
static void sync_file(struct inode *inode, int fd) {
    if (inode->ranges == 0 && !inode->opaque) return;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int from = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (from < 0) die("a synced file cannot be opened for reading");
    file_path(path, sizeof path, inode->number, inode->birth);
    int into = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (into < 0) die("the shadow of a file cannot be opened");
    off_t size = size_of(from);
    if (inode->opaque) mark(inode, 0, END_OF_FILE);
    for (int i = 0; i < inode->ranges; i++) {
        struct range range = inode->dirty[i];
        copy_range(from, into, range.begin, range.end < size ? range.end : size);
    }
    if (REAL(ftruncate)(into, size) != 0) die("the shadow of a file cannot be cut");
    inode->ranges = 0;
    close(from);
    close(into);
}

static void temporary_path(char *path, size_t size) {
    uint64_t number = __atomic_fetch_add(&next_temporary, 1, __ATOMIC_RELAXED);
    snprintf(path, size, "%s/tmp/%d-%llu", shadow, (int)getpid(), (unsigned long long)number);
}

static void put_in_place(const char *temporary, const char *entry) {
    if (rename(temporary, entry) != 0) die("an entry of the shadow cannot be put in place");
}

static void link_file(const char *entry, const struct statx *status) {
    char path[PATH_MAX], temporary[PATH_MAX];
    file_path(path, sizeof path, status->stx_ino, birth_of(status));
    /* A name may be durable before any byte is: then the file is empty. */
    int file = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    struct stat wanted, found;
    if (file < 0 || fstat(file, &wanted) != 0) die("the shadow of a file cannot be made");
    close(file);
    if (lstat(entry, &found) == 0 && found.st_ino == wanted.st_ino) return;
    temporary_path(temporary, sizeof temporary);
    if (link(path, temporary) != 0) die("an entry of the shadow cannot be linked");
    put_in_place(temporary, entry);
}

static void link_directory(const char *entry, const struct statx *status) {
    char path[PATH_MAX], target[64], found[64], temporary[PATH_MAX];
    snprintf(target, sizeof target, "../%llu-%llu", (unsigned long long)status->stx_ino,
             (unsigned long long)birth_of(status));
    snprintf(path, sizeof path, "%s/dirs/%s", shadow, target + 3);
    if (mkdir(path, 0700) != 0 && errno != EEXIST) die("the shadow of a directory cannot be made");
    ssize_t length = readlink(entry, found, sizeof found);
    if (length == (ssize_t)strlen(target) && memcmp(found, target, length) == 0) return;
    temporary_path(temporary, sizeof temporary);
    if (symlink(target, temporary) != 0) die("an entry of the shadow cannot be linked");
    put_in_place(temporary, entry);
}

static bool is_dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

/* Names that the shadow has already are left alone unless they may be replaced. */
static void add_entries(int live, const char *into, bool replaces) {
    DIR *entries = fdopendir(live);
    if (!entries) die("a synced directory cannot be listed");
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (is_dots(entry->d_name)) continue;
        struct statx status;
        char path[PATH_MAX];
        unsigned wanted = STATX_TYPE | STATX_INO | STATX_BTIME;
        /* Removed in the meantime: as good as never there. */
        if (statx(dirfd(entries), entry->d_name, AT_SYMLINK_NOFOLLOW, wanted, &status) != 0) continue;
        if (snprintf(path, sizeof path, "%s/%s", into, entry->d_name) >= (int)sizeof path) die("a path is too long");
        struct stat known;
        if (!replaces && lstat(path, &known) == 0) continue;
        if (S_ISREG(status.stx_mode)) link_file(path, &status);
        else if (S_ISDIR(status.stx_mode)) link_directory(path, &status);
        else die("something else than files and directories lies below the root");
    }
    closedir(entries);
}

static void remove_entries(int live, const char *from) {
    DIR *entries = opendir(from);
    if (!entries) die("the shadow of a directory cannot be listed");
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        struct stat status;
        if (is_dots(entry->d_name) || fstatat(live, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0) continue;
        if (unlinkat(dirfd(entries), entry->d_name, 0) != 0) die("an entry of the shadow cannot be removed");
    }
    closedir(entries);
}

/* With the inode's lock held. A process that is killed in between leaves what a journal could have left: new names come first,
 * then those that took the place of others, which may speak of new ones, and at last what is gone goes. */
static void sync_directory(struct inode *inode, int fd) {
    char path[PATH_MAX - 260];
    snprintf(path, sizeof path, "%s/dirs/%llu-%llu", shadow, (unsigned long long)inode->number,
             (unsigned long long)inode->birth);
    if (mkdir(path, 0700) != 0 && errno != EEXIST) die("the shadow of a directory cannot be made");
    for (int replaces = 0; replaces <= 1; replaces++) {
        int live = REAL(openat)(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (live < 0) {
            if (errno == ENOENT) return;
            die("a synced directory cannot be opened");
        }
        add_entries(live, path, replaces);
    }
    int live = REAL(openat)(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (live < 0) return;
    remove_entries(live, path);
    close(live);
}

/* True if `fd` was ours and is synced now. */
static bool sync_to_shadow(int fd) {
    struct inode *inode = below_root(fd);
    if (!inode) return false;
    pthread_mutex_lock(&inode->lock);
    if (inode->is_directory) sync_directory(inode, fd);
    else sync_file(inode, fd);
    pthread_mutex_unlock(&inode->lock);
    return true;
}

int fsync(int fd) { return sync_to_shadow(fd) ? 0 : REAL(fsync)(fd); }

int fdatasync(int fd) { return sync_to_shadow(fd) ? 0 : REAL(fdatasync)(fd); }

void sync(void) {
    if (enabled) die("sync() is not played");
    REAL(sync)();
}

int syncfs(int fd) {
    if (below_root(fd)) die("syncfs() is not played");
    return REAL(syncfs)(fd);
}

/* ---- Opening ------------------------------------------------------------------------------------------------ */

static int opened(int fd, int flags) {
    struct inode *inode = fd < 0 ? NULL : below_root(fd);
    if (!inode || inode->is_directory) return fd;
    if (flags & (O_TRUNC | O_SYNC | O_DSYNC)) {
        pthread_mutex_lock(&inode->lock);
        if (flags & O_TRUNC) mark(inode, 0, END_OF_FILE);
        if (flags & (O_SYNC | O_DSYNC)) inode->synchronous = true;
        pthread_mutex_unlock(&inode->lock);
    }
    return fd;
}

static mode_t mode_after(int flags, va_list arguments) {
    return flags & (O_CREAT | __O_TMPFILE) ? (mode_t)va_arg(arguments, int) : 0;
}

#define OPEN(name)                                                                                                  \
    int name(const char *path, int flags, ...) {                                                                    \
        va_list arguments;                                                                                          \
        va_start(arguments, flags);                                                                                 \
        mode_t mode = mode_after(flags, arguments);                                                                 \
        va_end(arguments);                                                                                          \
        return opened(REAL(name)(path, flags, mode), flags);                                                        \
    }
#define OPENAT(name)                                                                                                \
    int name(int folder, const char *path, int flags, ...) {                                                        \
        va_list arguments;                                                                                          \
        va_start(arguments, flags);                                                                                 \
        mode_t mode = mode_after(flags, arguments);                                                                 \
        va_end(arguments);                                                                                          \
        return opened(REAL(name)(folder, path, flags, mode), flags);                                                \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
/* What open becomes under _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }
int __openat64_2(int folder, const char *path, int flags) { return openat64(folder, path, flags); }

static FILE *opened_stream(FILE *stream) {
    struct inode *inode = stream ? below_root(fileno(stream)) : NULL;
    if (inode) {
        pthread_mutex_lock(&inode->lock);
        inode->opaque = true;
        pthread_mutex_unlock(&inode->lock);
    }
    return stream;
}

FILE *fopen(const char *path, const char *mode) { return opened_stream(REAL(fopen)(path, mode)); }
FILE *fopen64(const char *path, const char *mode) { return opened_stream(REAL(fopen64)(path, mode)); }
FILE *fdopen(int fd, const char *mode) { return opened_stream(REAL(fdopen)(fd, mode)); }
FILE *freopen(const char *path, const char *mode, FILE *old) { return opened_stream(REAL(freopen)(path, mode, old)); }

/* ---- Writing ------------------------------------------------------------------------------------------------ */

/* Ends a write of `length` bytes at `offset` (-1: at the descriptor's position) and lets go of the inode. */
static ssize_t written(struct inode *inode, int fd, ssize_t length, off_t offset) {
    int saved = errno;
    if (length > 0) {
        int flags = fcntl(fd, F_GETFL);
        off_t end = offset >= 0 ? offset + length : lseek(fd, 0, SEEK_CUR);
        /* Linux appends then, whatever the offset says. */
        if (flags & O_APPEND) end = size_of(fd);
        mark(inode, end - length, end);
        if (inode->synchronous && (flags & (O_SYNC | O_DSYNC))) sync_file(inode, fd);
    }
    pthread_mutex_unlock(&inode->lock);
    errno = saved;
    return length;
}

#define WRITE(name, parameters, arguments, offset)                                                                  \
    ssize_t name parameters {                                                                                       \
        struct inode *inode = below_root(fd);                                                                       \
        if (!inode) return REAL(name) arguments;                                                                    \
        pthread_mutex_lock(&inode->lock);                                                                           \
        return written(inode, fd, REAL(name) arguments, offset);                                                    \
    }
WRITE(write, (int fd, const void *bytes, size_t length), (fd, bytes, length), -1)
WRITE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), -1)
WRITE(pwrite, (int fd, const void *bytes, size_t length, off_t offset), (fd, bytes, length, offset), offset)
WRITE(pwrite64, (int fd, const void *bytes, size_t length, off64_t offset), (fd, bytes, length, offset), offset)
WRITE(pwritev, (int fd, const struct iovec *parts, int count, off_t offset), (fd, parts, count, offset), offset)
WRITE(pwritev64, (int fd, const struct iovec *parts, int count, off64_t offset), (fd, parts, count, offset), offset)

static void refuse_synchronous(int flags) {
    if (flags & (RWF_SYNC | RWF_DSYNC)) die("pwritev2 with RWF_SYNC is not played");
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    struct inode *inode = below_root(fd);
    if (!inode) return REAL(pwritev2)(fd, parts, count, offset, flags);
    refuse_synchronous(flags);
    pthread_mutex_lock(&inode->lock);
    return written(inode, fd, REAL(pwritev2)(fd, parts, count, offset, flags), offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return pwritev2(fd, parts, count, offset, flags);
}

/* After a change of any kind from `begin` on. */
static void changed_from(int fd, off_t begin) {
    struct inode *inode = below_root(fd);
    if (!inode) return;
    pthread_mutex_lock(&inode->lock);
    mark(inode, begin, END_OF_FILE);
    pthread_mutex_unlock(&inode->lock);
}

int ftruncate(int fd, off_t length) {
    int result = REAL(ftruncate)(fd, length);
    if (result == 0) changed_from(fd, length);
    return result;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int truncate(const char *path, off_t length) {
    int result = REAL(truncate)(path, length);
    int fd = result == 0 ? REAL(open)(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        changed_from(fd, length);
        close(fd);
    }
    return result;
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    int result = REAL(fallocate)(fd, mode, offset, length);
    /* Mere reservation of blocks behind the end changes nothing that a reader sees. */
    if (result == 0 && mode != FALLOC_FL_KEEP_SIZE) changed_from(fd, offset);
    return result;
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

int posix_fallocate(int fd, off_t offset, off_t length) {
    int result = REAL(posix_fallocate)(fd, offset, length);
    if (result == 0) changed_from(fd, offset);
    return result;
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

ssize_t copy_file_range(int from, off64_t *from_offset, int into, off64_t *into_offset, size_t length, unsigned flags) {
    ssize_t result = REAL(copy_file_range)(from, from_offset, into, into_offset, length, flags);
    if (result > 0) changed_from(into, 0);
    return result;
}

ssize_t sendfile(int into, int from, off_t *offset, size_t length) {
    ssize_t result = REAL(sendfile)(into, from, offset, length);
    if (result > 0) changed_from(into, 0);
    return result;
}
ssize_t sendfile64(int into, int from, off64_t *offset, size_t length) { return sendfile(into, from, offset, length); }

ssize_t splice(int from, off64_t *from_offset, int into, off64_t *into_offset, size_t length, unsigned flags) {
    ssize_t result = REAL(splice)(from, from_offset, into, into_offset, length, flags);
    if (result > 0) changed_from(into, 0);
    return result;
}

/* ---- What would pass unseen --------------------------------------------------------------------------------- */

static void refuse_mapping(int protection, int flags, int fd) {
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_TYPE) != MAP_PRIVATE && below_root(fd))
        die("a file below the root is mapped for writing: its writes cannot be seen");
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (enabled) refuse_mapping(protection, flags, fd);
    return REAL(mmap)(address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
    if (enabled) refuse_mapping(protection, flags, fd);
    return REAL(mmap64)(address, length, protection, flags, fd, offset);
}

static bool writes_first_argument(long number) {
    switch (number) {
    case SYS_write: case SYS_writev: case SYS_pwrite64: case SYS_pwritev: case SYS_pwritev2: case SYS_ftruncate:
    case SYS_fallocate: case SYS_fsync: case SYS_fdatasync: case SYS_syncfs: case SYS_sendfile:
        return true;
    default:
        return false;
    }
}

long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (enabled) {
        if (number == SYS_io_uring_setup) die("io_uring is not played");
        if (number == SYS_sync) die("sync() is not played");
        if (writes_first_argument(number) && below_root((int)a[0])) die("a raw system call writes below the root");
        if ((number == SYS_copy_file_range || number == SYS_splice) && below_root((int)a[2]))
            die("a raw system call writes below the root");
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- Beginning ---------------------------------------------------------------------------------------------- */

__attribute__((constructor)) static void attach(void) {
    const char *given_root = getenv("KV_POWERLOSS_ROOT"), *given_shadow = getenv("KV_POWERLOSS_SHADOW");
    if (!given_root || !given_shadow) return;
    if (!realpath(given_root, root)) die("KV_POWERLOSS_ROOT is no folder");
    if (strlen(given_shadow) >= sizeof shadow) die("KV_POWERLOSS_SHADOW is too long");
    strcpy(shadow, given_shadow);
    root_length = strlen(root);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/attached.%d", shadow, (int)getpid());
    int fd = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) die("KV_POWERLOSS_SHADOW is no shadow");
    close(fd);
    enabled = true;
}
