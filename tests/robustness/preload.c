/* Preloaded into a server: keeps, beside its directory, a copy of what a power cut would leave of it. See disk.py.

   Under the root, fsync and fdatasync copy what they make safe into the shadow instead of flushing it: a file's content,
   a directory's names. The shadow holds a link to each inode that it knows, so that no number is used twice. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Shared with the harness; disk.py has the same fields in the same order. */
struct control {
  int32_t full;          /* every write under the root fails: no space */
  int32_t delay_us;      /* each flush takes so long */
  int32_t kill_kind;     /* 0: none; else the kind of file whose flush kills the process */
  int32_t kill_after;    /* 0: before the flush has done anything; 1: when it is done */
  int32_t kill_countdown;
  int32_t flushes;
  int32_t refused;
};
enum { LOG = 1, DATABASE, SNAPSHOT, DIRECTORY, OTHER };

static struct control *control;
static char root[PATH_MAX], shadow[PATH_MAX];
static size_t root_length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name, ...) ((__typeof__(&name))real_of(&real_##name, #name))(__VA_ARGS__)
static void *real_of(void **place, const char *name) {
  if (!*place) *place = dlsym(RTLD_NEXT, name);
  return *place;
}
static void *real_fsync, *real_fdatasync, *real_write, *real_pwrite, *real_pwrite64, *real_writev, *real_pwritev,
    *real_pwritev64;

static void give_up(const char *what) {
  dprintf(2, "preload.c: %s: %s\n", what, strerror(errno));
  abort();
}

/* Called once, in the server. */
int gradwire_shadow_begin(const char *directory, const char *beside) {
  char path[PATH_MAX + 16];
  if (!realpath(directory, root) || !realpath(beside, shadow)) return -1;
  root_length = strlen(root);
  snprintf(path, sizeof path, "%s/control", shadow);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (page == MAP_FAILED) return -1;
  control = page;
  return 0;
}

/* Whether the descriptor's file is the root or under it; where so, its path. */
static int ours(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < (ssize_t)root_length) return 0;
  path[length] = 0;
  return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static void copy_file(int fd, uint64_t inode) {
  static char buffer[1 << 16];
  char from[64], to[PATH_MAX + 64];
  snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
  snprintf(to, sizeof to, "%s/inodes/%llu", shadow, (unsigned long long)inode);
  linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW); /* it may be there, or the file have no name any more */
  snprintf(to, sizeof to, "%s/data/%llu", shadow, (unsigned long long)inode);
  int source = open(from, O_RDONLY | O_CLOEXEC), sink = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (source < 0 || sink < 0) give_up(to);
  off_t at = 0;
  ssize_t size;
  while ((size = pread(source, buffer, sizeof buffer, at)) > 0) {
    if (REAL(pwrite, sink, buffer, size, at) != size) give_up(to);
    at += size;
  }
  if (size < 0 || ftruncate(sink, at)) give_up(to);
  close(source);
  close(sink);
}

static void copy_names(const char *path, uint64_t inode) {
  char from[2 * PATH_MAX], to[PATH_MAX + 64], unfinished[PATH_MAX + 64];
  snprintf(to, sizeof to, "%s/names/%llu", shadow, (unsigned long long)inode);
  snprintf(unfinished, sizeof unfinished, "%s/unfinished", shadow);
  DIR *directory = opendir(path);
  FILE *list = fopen(unfinished, "w");
  if (!directory || !list) give_up(to);
  struct dirent *entry;
  while ((entry = readdir(directory))) {
    struct stat info;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(from, sizeof from, "%s/%s", path, entry->d_name);
    if (lstat(from, &info)) continue; /* removed meanwhile */
    fprintf(list, "%llu %c %s\n", (unsigned long long)info.st_ino, S_ISDIR(info.st_mode) ? 'd' : 'f', entry->d_name);
    if (S_ISREG(info.st_mode)) {
      char link[PATH_MAX + 64];
      snprintf(link, sizeof link, "%s/inodes/%llu", shadow, (unsigned long long)info.st_ino);
      linkat(AT_FDCWD, from, AT_FDCWD, link, 0);
    }
  }
  closedir(directory);
  if (fclose(list) || rename(unfinished, to)) give_up(to);
}

static int ends(const char *path, const char *end) {
  size_t length = strlen(path), size = strlen(end);
  return length >= size && !strcmp(path + length - size, end);
}

static int kind_of(const char *path, mode_t mode) {
  if (S_ISDIR(mode)) return DIRECTORY;
  if (ends(path, "-wal")) return LOG;
  if (ends(path, ".sqlite3")) return DATABASE;
  if (ends(path, ".tmp")) return SNAPSHOT;
  return OTHER;
}

static void die_where_asked(int kind, int after) {
  if (control->kill_kind == kind && control->kill_after == after && --control->kill_countdown <= 0) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
}

static int flush(int fd, const char *path) {
  struct stat info;
  if (fstat(fd, &info)) return -1;
  int kind = kind_of(path, info.st_mode);
  die_where_asked(kind, 0);
  if (control->delay_us) usleep(control->delay_us);
  pthread_mutex_lock(&lock);
  if (kind == DIRECTORY) copy_names(path, info.st_ino);
  else copy_file(fd, info.st_ino);
  control->flushes++;
  pthread_mutex_unlock(&lock);
  die_where_asked(kind, 1);
  return 0;
}

int fsync(int fd) {
  char path[PATH_MAX];
  return control && ours(fd, path) ? flush(fd, path) : REAL(fsync, fd);
}

int fdatasync(int fd) {
  char path[PATH_MAX];
  return control && ours(fd, path) ? flush(fd, path) : REAL(fdatasync, fd);
}

static int no_room(int fd) {
  char path[PATH_MAX];
  if (!control || !control->full || !ours(fd, path)) return 0;
  control->refused++;
  errno = ENOSPC;
  return 1;
}

ssize_t write(int fd, const void *data, size_t size) { return no_room(fd) ? -1 : REAL(write, fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return no_room(fd) ? -1 : REAL(pwrite, fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return no_room(fd) ? -1 : REAL(pwrite64, fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return no_room(fd) ? -1 : REAL(writev, fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
  return no_room(fd) ? -1 : REAL(pwritev, fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
  return no_room(fd) ? -1 : REAL(pwritev64, fd, parts, count, at);
}
