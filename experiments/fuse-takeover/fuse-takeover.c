/*
 * A FUSE file that outlives its server, by the raw protocol.
 *
 * The holder opens /dev/fuse, mounts, and keeps the descriptor; servers come and go. A successor gets the same
 * descriptor (here by fork; SCM_RIGHTS does the same between strangers) and asks the kernel with FUSE_NOTIFY_RESEND
 * (Linux 6.9) to hand out again what its predecessor had read and not answered.
 *
 * usage: fuse-takeover MOUNTPOINT BACKING SIZE, then commands on standard input, one word each; every command is
 * answered with a line:
 *   start        a server; the first one also answers INIT
 *   resend       a server that first sends FUSE_NOTIFY_RESEND
 *   stall        like resend, but it reads requests and answers none
 *   flusher      servers from now on set PR_SET_IO_FLUSHER and lock their memory
 *   hungry       servers from now on touch 4 MiB of fresh memory for each write of 64 KiB or more
 *   kill         SIGKILL the server
 *   pid          its process id
 *   quit         unmount and end
 *
 * One file, "disk", in the root. Writes go to BACKING with direct I/O; FSYNC is fdatasync.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Newer than the headers of Debian 12. */
#ifndef FUSE_HAS_RESEND
#define FUSE_HAS_RESEND (1ULL << 39)
#define FUSE_NOTIFY_RESEND 7
#endif
#define UNIQUE_RESEND (1ULL << 63)
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define MAX_WRITE (1 << 20)
#define DISK 2

static int device, backing;
static uint64_t size;
static int flusher, hungry;
/* Requests that came with the mark of being sent again; shared by all servers. */
static unsigned long *again;

static void reply(uint64_t unique, int error, const void *body, size_t length)
{
	struct fuse_out_header header = {.len = sizeof header + length, .error = error, .unique = unique};
	struct iovec parts[] = {{&header, sizeof header}, {(void *)body, length}};
	if (writev(device, parts, length ? 2 : 1) < 0 && errno != ENOENT)
		fprintf(stderr, "server: reply: %s\n", strerror(errno));
}

static struct fuse_attr attributes(uint64_t node)
{
	struct fuse_attr attr = {.ino = node, .mode = node == DISK ? S_IFREG | 0600 : S_IFDIR | 0700, .nlink = 1};
	if (node == DISK) {
		attr.size = size;
		attr.blocks = size / 512;
		attr.blksize = 4096;
	}
	return attr;
}

static void init(const struct fuse_in_header *in, const struct fuse_init_in *asked)
{
	uint64_t offered = asked->flags | (asked->flags & FUSE_INIT_EXT ? (uint64_t)asked->flags2 << 32 : 0);
	uint64_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_INIT_EXT |
	                  FUSE_PARALLEL_DIROPS | FUSE_HAS_RESEND;
	uint64_t flags = offered & wanted;
	struct fuse_init_out out = {
	        .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_readahead = asked->max_readahead,
	        .flags = (uint32_t)flags, .flags2 = (uint32_t)(flags >> 32), .max_background = 64,
	        .congestion_threshold = 48, .max_write = MAX_WRITE, .max_pages = MAX_WRITE / 4096, .time_gran = 1,
	};
	fprintf(stderr, "server: kernel speaks %u.%u, FUSE_HAS_RESEND %s\n", asked->major, asked->minor,
	        offered & FUSE_HAS_RESEND ? "offered" : "not offered");
	reply(in->unique, 0, &out, sizeof out);
}

static void disk_io(const struct fuse_in_header *in, const void *body, char *bounce)
{
	if (in->opcode == FUSE_READ) {
		const struct fuse_read_in *read_in = body;
		size_t length = read_in->size > MAX_WRITE ? MAX_WRITE : read_in->size;
		ssize_t got = pread(backing, bounce, (length + 4095) & ~4095UL, read_in->offset);
		if (got < 0)
			reply(in->unique, -errno, NULL, 0);
		else
			reply(in->unique, 0, bounce, (size_t)got > length ? length : (size_t)got);
		return;
	}
	const struct fuse_write_in *write_in = body;
	memcpy(bounce, write_in + 1, write_in->size);
	if (hungry && write_in->size >= 65536) {
		char *fresh = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (fresh != MAP_FAILED) {
			memset(fresh, 1, 4 << 20);
			munmap(fresh, 4 << 20);
		}
	}
	ssize_t put = pwrite(backing, bounce, write_in->size, write_in->offset);
	if (put < 0) {
		fprintf(stderr, "server: write of %u at %llu: %s\n", write_in->size,
		        (unsigned long long)write_in->offset, strerror(errno));
		reply(in->unique, -errno, NULL, 0);
		return;
	}
	struct fuse_write_out out = {.size = (uint32_t)put};
	reply(in->unique, 0, &out, sizeof out);
}

static void answer(const struct fuse_in_header *in, const void *body, char *bounce)
{
	switch (in->opcode) {
	case FUSE_INIT:
		init(in, body);
		break;
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = {.nodeid = DISK, .attr_valid = 3600, .entry_valid = 3600, .attr = attributes(DISK)};
		if (strcmp(body, "disk") == 0)
			reply(in->unique, 0, &out, sizeof out);
		else
			reply(in->unique, -ENOENT, NULL, 0);
		break;
	}
	case FUSE_GETATTR:
	case FUSE_SETATTR: {
		struct fuse_attr_out out = {.attr_valid = 3600, .attr = attributes(in->nodeid)};
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_OPEN:
	case FUSE_OPENDIR: {
		struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_READ:
	case FUSE_WRITE:
		disk_io(in, body, bounce);
		break;
	case FUSE_FSYNC:
		reply(in->unique, fdatasync(backing) ? -errno : 0, NULL, 0);
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		reply(in->unique, 0, NULL, 0);
		break;
	case FUSE_STATFS: {
		struct fuse_statfs_out out = {.st = {.bsize = 4096, .frsize = 4096, .blocks = size / 4096}};
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(in->unique, -ENOSYS, NULL, 0);
	}
}

static void serve(int resend, int stall)
{
	char *buffer, *bounce;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (posix_memalign((void **)&buffer, 4096, MAX_WRITE + 8192) || posix_memalign((void **)&bounce, 4096, MAX_WRITE))
		_exit(1);
	memset(buffer, 0, MAX_WRITE + 8192);
	memset(bounce, 0, MAX_WRITE);
	if (flusher) {
		if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0))
			fprintf(stderr, "server: PR_SET_IO_FLUSHER: %s\n", strerror(errno));
		if (mlockall(MCL_CURRENT | MCL_FUTURE))
			fprintf(stderr, "server: mlockall: %s\n", strerror(errno));
	}
	if (resend) {
		struct fuse_out_header notify = {.len = sizeof notify, .error = FUSE_NOTIFY_RESEND, .unique = 0};
		if (write(device, &notify, sizeof notify) < 0)
			fprintf(stderr, "server: FUSE_NOTIFY_RESEND: %s\n", strerror(errno));
	}
	for (;;) {
		ssize_t got = read(device, buffer, MAX_WRITE + 8192);
		if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		if (got < (ssize_t)sizeof(struct fuse_in_header)) {
			if (got < 0 && errno != ENODEV)
				fprintf(stderr, "server: read: %s\n", strerror(errno));
			_exit(0);
		}
		const struct fuse_in_header *in = (const void *)buffer;
		if (in->unique & UNIQUE_RESEND)
			__atomic_add_fetch(again, 1, __ATOMIC_RELAXED);
		if (!stall)
			answer(in, in + 1, bounce);
	}
}

static pid_t start(int resend, int stall)
{
	pid_t pid = fork();
	if (pid == 0)
		serve(resend, stall);
	return pid;
}

int main(int argc, char **argv)
{
	char options[128], word[32];
	pid_t server = 0;

	if (argc != 4)
		return fprintf(stderr, "usage: fuse-takeover MOUNTPOINT BACKING SIZE\n"), 2;
	size = strtoull(argv[3], NULL, 10);
	backing = open(argv[2], O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (backing < 0 || device < 0 || ftruncate(backing, size))
		return perror("open"), 1;
	again = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (again == MAP_FAILED)
		return perror("mmap"), 1;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (mount("takeover", argv[1], "fuse", MS_NOSUID | MS_NODEV, options))
		return perror("mount"), 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("mounted\n");
	while (scanf("%31s", word) == 1 && strcmp(word, "quit")) {
		if (!strcmp(word, "kill") && server > 0) {
			kill(server, SIGKILL);
			waitpid(server, NULL, 0);
			server = 0;
		} else if (!strcmp(word, "start") || !strcmp(word, "resend") || !strcmp(word, "stall")) {
			server = start(strcmp(word, "start") != 0, !strcmp(word, "stall"));
		} else if (!strcmp(word, "flusher")) {
			flusher = 1;
		} else if (!strcmp(word, "hungry")) {
			hungry = 1;
		}
		printf("%d\n", server);
	}
	/* By force first: whatever still waits gets an error instead of waiting for ever. */
	umount2(argv[1], MNT_FORCE);
	umount2(argv[1], MNT_DETACH);
	if (server > 0) {
		kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	printf("gone; %lu requests were marked as sent again\n", *again);
	return 0;
}
