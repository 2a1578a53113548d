/* load: many requests for one file of a 9P2000.L server, in a closed loop, and how many were answered.
 *
 * load PORT ANAME UNAME FILE TEST DEPTH CONNECTIONS SECONDS MSIZE
 *   TEST  getattr | read4k (random) | read | write (one after the other, a payload of a whole message)
 * prints: requests, bytes, seconds.  One thread; it writes whatever it has to say before it waits.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { Tlopen = 12, Tgetattr = 24, Tversion = 100, Tattach = 104, Twalk = 110, Tread = 116, Twrite = 118 };
enum { HEADER = 7, IOHDR = 24, GETATTR_SIZE_AT = HEADER + 8 + 13 + 4 + 4 + 4 + 8 + 8, SMALL = 4096 };
enum { FILE_BYTES_WRITTEN = 256 << 20 };

struct conn {
    int fd;
    uint8_t *out, *in;
    size_t queued, start, end, room;
    uint64_t offset;
    int running;
};

static uint8_t *at; /* where the message that is being made goes on */
static uint8_t *message;
static const char *test;
static uint32_t msize, payload;
static uint64_t size, seed = 88172645463325252u;

static void die(const char *why) {
    fprintf(stderr, "load: %s\n", why);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void number(uint64_t value, int bytes) {
    memcpy(at, &value, bytes);
    at += bytes;
}

static void string(const char *text) {
    number(strlen(text), 2);
    memcpy(at, text, strlen(text));
    at += strlen(text);
}

static void begin(struct conn *c, int type, int tag) {
    message = at = c->out + c->queued;
    number(0, 4);
    number(type, 1);
    number(tag, 2);
}

static void end(struct conn *c) {
    uint32_t length = at - message;
    memcpy(message, &length, 4);
    c->queued += length;
}

static void send_all(struct conn *c) {
    for (size_t sent = 0; sent < c->queued;) {
        ssize_t n = write(c->fd, c->out + sent, c->queued - sent);
        if (n <= 0) die("cannot send");
        sent += n;
    }
    c->queued = 0;
}

/* The next whole message that was received, or 0. */
static uint8_t *next(struct conn *c) {
    uint32_t length;
    if (c->end - c->start < 4) return 0;
    memcpy(&length, c->in + c->start, 4);
    if (c->end - c->start < length) return 0;
    c->start += length;
    return c->in + c->start - length;
}

static void receive(struct conn *c) {
    if (c->start) {
        memmove(c->in, c->in + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    ssize_t n = read(c->fd, c->in + c->end, c->room - c->end);
    if (n <= 0) die("the server hung up");
    c->end += n;
}

static uint8_t *call(struct conn *c, int type) {
    uint8_t *reply;
    send_all(c);
    while (!(reply = next(c))) receive(c);
    if (reply[4] != type + 1) die("not the expected reply");
    return reply;
}

static void request(struct conn *c, int tag) {
    switch (test[0] == 'g' ? Tgetattr : test[0] == 'w' ? Twrite : Tread) {
    case Tgetattr:
        begin(c, Tgetattr, tag), number(1, 4), number(0x7ff, 8), end(c);
        break;
    case Twrite:
        begin(c, Twrite, tag), number(1, 4), number(c->offset, 8), number(payload, 4);
        at += payload; /* whatever lies there */
        end(c);
        c->offset = (c->offset + payload) % FILE_BYTES_WRITTEN;
        break;
    default:
        begin(c, Tread, tag), number(1, 4);
        if (!strcmp(test, "read4k")) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            number(seed % (size / SMALL) * SMALL, 8), number(SMALL, 4);
        } else {
            number(c->offset, 8), number(payload, 4);
            c->offset = c->offset + payload >= size ? 0 : c->offset + payload;
        }
        end(c);
    }
    c->running++;
}

static void open_file(struct conn *c, int port, const char *aname, const char *uname, const char *file) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    uint32_t wanted = msize;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("cannot connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->room = 2 * (size_t)wanted + (1 << 16);
    c->in = malloc(c->room);
    c->out = calloc(64, 4096 + (test[0] == 'w' ? wanted : 0));
    begin(c, Tversion, 0xffff), number(wanted, 4), string("9P2000.L"), end(c);
    memcpy(&msize, call(c, Tversion) + HEADER, 4);
    begin(c, Tattach, 1), number(0, 4), number(~0u, 4), string(uname), string(aname), number(geteuid(), 4), end(c);
    call(c, Tattach);
    begin(c, Twalk, 1), number(0, 4), number(1, 4), number(1, 2), string(file), end(c);
    call(c, Twalk);
    begin(c, Tgetattr, 1), number(1, 4), number(0x7ff, 8), end(c);
    memcpy(&size, call(c, Tgetattr) + GETATTR_SIZE_AT, 8);
    if (test[0] != 'g') {
        begin(c, Tlopen, 1), number(1, 4), number(test[0] == 'w' ? 1 : 0, 4), end(c);
        call(c, Tlopen);
    }
    payload = msize - IOHDR;
    if (payload > 65536) payload = payload / 4096 * 4096;
}

int main(int argc, char **argv) {
    if (argc != 10) die("usage: load PORT ANAME UNAME FILE TEST DEPTH CONNECTIONS SECONDS MSIZE");
    test = argv[5];
    int depth = atoi(argv[6]), count = atoi(argv[7]), stopping = 0;
    double seconds = atof(argv[8]);
    uint32_t wanted = atoi(argv[9]);
    struct conn *conns = calloc(count, sizeof *conns);
    struct pollfd *polls = calloc(count, sizeof *polls);
    for (int i = 0; i < count; i++) {
        msize = wanted;
        open_file(&conns[i], atoi(argv[1]), argv[2], argv[3], argv[4]);
        polls[i] = (struct pollfd){.fd = conns[i].fd, .events = POLLIN};
        if (test[0] == 'w' && depth > 64) die("at most 64 writes at once");
    }
    uint64_t done = 0, bytes = 0;
    double from = now();
    long running = 0;
    for (int i = 0; i < count; i++) {
        for (int tag = 1; tag <= depth; tag++) request(&conns[i], tag);
        send_all(&conns[i]);
        running += depth;
    }
    while (running) {
        if (count > 1 && poll(polls, count, 10000) <= 0) die("no answer");
        for (int i = 0; i < count; i++) {
            struct conn *c = &conns[i];
            if (!c->running || (count > 1 && !polls[i].revents)) continue;
            receive(c);
            for (uint8_t *reply; (reply = next(c));) {
                if (reply[4] != (test[0] == 'g' ? Tgetattr : test[0] == 'w' ? Twrite : Tread) + 1) die("an error reply");
                if (test[0] != 'g') {
                    uint32_t n;
                    memcpy(&n, reply + HEADER, 4);
                    bytes += n;
                }
                done++, c->running--, running--;
                if (!stopping) request(c, reply[5] | reply[6] << 8), running++;
            }
            if (c->queued) send_all(c);
        }
        stopping = stopping || now() - from > seconds;
    }
    printf("%llu %llu %.6f\n", (unsigned long long)done, (unsigned long long)bytes, now() - from);
    return 0;
}
