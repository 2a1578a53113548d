/*
 * Preloaded into user-mode-linux on hosts whose processor state is larger than the buffer it was built with.
 *
 * Debian's 6.1 keeps 2,696 bytes of floating-point state for each task; with AMX the host has more and refuses to set
 * less than all of it (PTRACE_SETREGSET of NT_X86_XSTATE answers EFAULT).  The missing rest is zero: unused components.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE 0x202L
#define STATE_BYTES_MAX 65536

static char state[STATE_BYTES_MAX] __attribute__((aligned(64)));
static size_t state_bytes; /* what this host asks for; 0: not known yet */

static long host_ptrace(long request, long pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

static long set_xstate(long pid, struct iovec *given)
{
	struct iovec whole = { state, sizeof state };

	if (state_bytes == 0 && host_ptrace(PTRACE_GETREGSET, pid, (void *)XSTATE, &whole) == 0)
		state_bytes = whole.iov_len;
	if (given->iov_len >= state_bytes)
		return host_ptrace(PTRACE_SETREGSET, pid, (void *)XSTATE, given);
	memcpy(state, given->iov_base, given->iov_len);
	memset(state + given->iov_len, 0, state_bytes - given->iov_len);
	whole.iov_len = state_bytes;
	return host_ptrace(PTRACE_SETREGSET, pid, (void *)XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list args;
	va_start(args, request);
	long pid = va_arg(args, long);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	if ((long)request == PTRACE_SETREGSET && (long)addr == XSTATE)
		return set_xstate(pid, data);
	if ((long)request == PTRACE_PEEKTEXT || (long)request == PTRACE_PEEKDATA || (long)request == PTRACE_PEEKUSER) {
		long word; /* the system call stores where the C library returns */
		long failed = host_ptrace(request, pid, addr, &word);
		return failed < 0 ? failed : word;
	}
	return host_ptrace(request, pid, addr, data);
}
