/*
 * Load for Corosync's ordered multicast: joins a group, sends messages of a given size as fast as flow control lets
 * it, and counts what is delivered.  usage: cpgload SIZE SECONDS MEMBERS
 *
 * Prints one line: messages delivered in the measured seconds. The count starts when all members have joined, so
 * run as many of these as there are members, one at each node.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include <corosync/cpg.h>

static unsigned long delivered;
static size_t members_now;

static void deliver(cpg_handle_t handle, const struct cpg_name *group, uint32_t node, uint32_t pid, void *message,
                    size_t length)
{
	(void)handle, (void)group, (void)node, (void)pid, (void)message, (void)length;
	delivered++;
}

static void changed(cpg_handle_t handle, const struct cpg_name *group, const struct cpg_address *members,
                    size_t member_count, const struct cpg_address *left, size_t left_count,
                    const struct cpg_address *joined, size_t joined_count)
{
	(void)handle, (void)group, (void)members, (void)left, (void)left_count, (void)joined, (void)joined_count;
	members_now = member_count;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: cpgload SIZE SECONDS MEMBERS\n");
		return 2;
	}
	size_t size = strtoul(argv[1], NULL, 10);
	double seconds = strtod(argv[2], NULL);
	size_t expected = strtoul(argv[3], NULL, 10);
	char *body = calloc(1, size ? size : 1);
	struct iovec part = {.iov_base = body, .iov_len = size};
	cpg_callbacks_t callbacks = {.cpg_deliver_fn = deliver, .cpg_confchg_fn = changed};
	struct cpg_name group = {.length = 4, .value = "load"};
	cpg_handle_t handle;
	int fd;

	if (!body || cpg_initialize(&handle, &callbacks) != CS_OK || cpg_join(handle, &group) != CS_OK ||
	    cpg_fd_get(handle, &fd) != CS_OK) {
		fprintf(stderr, "cpgload: cannot join\n");
		return 1;
	}
	double limit = now() + 60;
	while (members_now < expected) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		poll(&ready, 1, 100);
		cpg_dispatch(handle, CS_DISPATCH_ALL);
		if (now() > limit) {
			fprintf(stderr, "cpgload: %zu of %zu members after 60 s\n", members_now, expected);
			return 1;
		}
	}
	/* One second to reach a steady state, then the measured time, then one in which the others still measure. */
	double start = now() + 1, end = start + seconds;
	unsigned long before = 0, after = 0;
	int counting = 0;
	for (double time = now(); time < end + 1; time = now()) {
		if (!counting && time >= start) {
			before = delivered;
			counting = 1;
		}
		if (time < end)
			after = delivered;
		cs_error_t result = CS_OK;
		for (int burst = 0; burst < 64 && result == CS_OK; burst++)
			result = cpg_mcast_joined(handle, CPG_TYPE_AGREED, &part, 1);
		/* The daemon is full: leave the processor to it until it delivers something. */
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		poll(&ready, 1, result == CS_OK ? 0 : 2);
		cpg_dispatch(handle, CS_DISPATCH_ALL);
	}
	printf("%lu\n", after - before);
	return 0;
}
