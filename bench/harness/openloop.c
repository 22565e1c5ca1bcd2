/* An open-loop HTTP/1.1 load generator: it sends requests at a rate that the server cannot slow down.
 *
 *   openloop HOST PORT RATE SECONDS CONNECTIONS MAX_CONNECTIONS TIMEOUT SEED FILE...
 *
 * Request i is due at start + i / RATE if SEED is 0; else at random, as requests of many independent
 * users are (a Poisson process). Its latency starts at that time, not when a connection is
 * free, so a stall counts for every request that it delays (no coordinated omission). CONNECTIONS are
 * opened before the first request. If no connection is free, requests wait in order, and one more
 * connection is opened for each, up to MAX_CONNECTIONS. A request without a complete answer TIMEOUT
 * seconds after it was due is given up. Idle connections are used in turn, which spreads the load
 * over a server's processes.
 *
 * Each FILE is one complete raw request with Content-Length and keep-alive; they are sent in turn.
 * The result is one JSON object on standard output, even after SIGINT or SIGTERM.
 *
 * Not supported: TLS, pipelining, redirects. A chunked answer ends where its last bytes say so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16384, STATUSES = 1000, EVENTS = 256 };
typedef enum { CLOSED, CONNECTING, IDLE, BUSY } State;

typedef struct {
    char *bytes;
    size_t length;
} Request;

typedef struct {
    State state;
    int fd;
    bool wants_write; /* last setting of epoll */
    bool close_after;
    bool chunked;
    bool in_ring; /* among the idle connections, even after the server closes it */
    int64_t due;
    const Request *request;
    size_t sent;
    size_t used;    /* bytes of the answer's head in `head` */
    int64_t remain; /* bytes of the body still to come; -1 while the head is read */
    int status;
    char tail[5];
    char head[HEAD];
} Connection;

static struct addrinfo *address;
static Request *requests;
static int request_count, epoll_fd, limit, opened, connecting, refused;
static Connection *connections;
static int *idle, idle_first, idle_count; /* a ring */
static uint32_t *latencies[STATUSES];     /* microseconds, by status */
static size_t counts[STATUSES], sizes[STATUSES];
static int64_t sent, sent_in_time, connect_errors, resets, timeouts, last_done, in_time, schedule_end;
static volatile sig_atomic_t stopped;

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void push_idle(Connection *c) {
    c->state = IDLE;
    if (c->in_ring) return;
    c->in_ring = true;
    idle[(idle_first + idle_count++) % limit] = (int)(c - connections);
}

static Connection *pop_idle(void) {
    while (idle_count > 0) {
        Connection *c = &connections[idle[idle_first]];
        idle_first = (idle_first + 1) % limit;
        idle_count--;
        c->in_ring = false;
        if (c->state == IDLE) return c; /* the server may have closed it meanwhile */
    }
    return NULL;
}

static void record(int status, int64_t due, int64_t now) {
    if (counts[status] == sizes[status]) {
        sizes[status] = sizes[status] ? sizes[status] * 2 : 4096;
        latencies[status] = realloc(latencies[status], sizes[status] * sizeof(uint32_t));
        if (!latencies[status]) die("realloc");
    }
    latencies[status][counts[status]++] = (uint32_t)((now - due) / 1000);
    if (status == 200 && now <= schedule_end) in_time++;
    last_done = now;
}

static void watch(Connection *c, bool write, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0u), .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0) die("epoll_ctl");
    c->wants_write = write;
}

static void shut(Connection *c) {
    if (c->state == CLOSED) return;
    if (c->state == CONNECTING) connecting--;
    close(c->fd);
    c->state = CLOSED;
    opened--;
}

/* Close a connection that ended; count its request, if any, in `counter`. */
static void fail(Connection *c, int64_t *counter) {
    if (c->state == BUSY) ++*counter;
    shut(c);
}

/* Start to connect; a failure counts in `refused`, at once or later. */
static void open_connection(void) {
    Connection *c = connections;
    while (c->state != CLOSED) c++;
    c->fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        refused++;
        return;
    }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, address->ai_addr, address->ai_addrlen) < 0 && errno != EINPROGRESS) {
        close(c->fd);
        refused++;
        return;
    }
    c->state = CONNECTING;
    connecting++;
    opened++;
    watch(c, true, EPOLL_CTL_ADD);
}

static void send_more(Connection *c) {
    while (c->sent < c->request->length) {
        ssize_t n = send(c->fd, c->request->bytes + c->sent, c->request->length - c->sent,
                         MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return; /* the answer, or the reset, is read next */
            if (!c->wants_write) watch(c, true, EPOLL_CTL_MOD);
            return;
        }
        c->sent += (size_t)n;
    }
    if (c->wants_write) watch(c, false, EPOLL_CTL_MOD);
}

static void start_request(Connection *c, int64_t due, int64_t now) {
    static int64_t turn;
    c->request = &requests[turn++ % request_count];
    c->due = due;
    c->sent = c->used = 0;
    c->remain = -1;
    c->state = BUSY;
    sent++;
    if (now <= schedule_end) sent_in_time++;
    send_more(c);
}

/* Read the status and the framing of the body; false if this is no HTTP answer. */
static bool parse_head(Connection *c, size_t head_length) {
    char *head = c->head;
    head[head_length - 2] = 0;
    c->status = head_length > 12 && !strncmp(head, "HTTP/1.", 7) ? atoi(head + 9) : 0;
    if (c->status < 100 || c->status >= STATUSES) return false;
    char *length = strcasestr(head, "\ncontent-length:");
    c->chunked = strcasestr(head, "\ntransfer-encoding: chunked") != NULL;
    c->close_after = strcasestr(head, "\nconnection: close") != NULL;
    c->remain = c->chunked ? INT64_MAX : length ? atoll(length + 16) : 0;
    memset(c->tail, 0, sizeof c->tail);
    return true;
}

/* Count bytes of the body; true when it is complete. */
static bool take_body(Connection *c, const char *bytes, size_t length) {
    if (!c->chunked) return (c->remain -= (int64_t)length) <= 0;
    size_t kept = length < 5 ? 5 - length : 0;
    memmove(c->tail, c->tail + 5 - kept, kept);
    memcpy(c->tail + kept, bytes + length - (5 - kept), 5 - kept);
    return !memcmp(c->tail, "0\r\n\r\n", 5);
}

static void finish(Connection *c) {
    record(c->status, c->due, now_ns());
    if (c->close_after || c->sent < c->request->length)
        shut(c);
    else
        push_idle(c);
}

static void receive(Connection *c) {
    static char body[65536];
    for (;;) {
        bool in_head = c->state == BUSY && c->remain < 0;
        char *into = in_head ? c->head + c->used : body;
        size_t room = in_head ? HEAD - 1 - c->used : sizeof body;
        ssize_t n = recv(c->fd, into, room, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0 || c->state != BUSY) { /* ended, or sent an answer without a request */
            fail(c, &resets);
            return;
        }
        bool whole;
        if (in_head) {
            c->used += (size_t)n;
            char *end = memmem(c->head, c->used, "\r\n\r\n", 4);
            if (!end) {
                if (c->used < HEAD - 1) continue;
                fail(c, &resets);
                return;
            }
            size_t head_length = (size_t)(end - c->head) + 4;
            if (!parse_head(c, head_length)) {
                fail(c, &resets);
                return;
            }
            whole = take_body(c, c->head + head_length, c->used - head_length);
        } else {
            whole = take_body(c, body, (size_t)n);
        }
        if (whole) {
            finish(c);
            return;
        }
    }
}

static void handle(Connection *c, uint32_t events) {
    if (c->state == CLOSED) return;
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            shut(c);
            refused++;
        } else if (events & EPOLLOUT) {
            connecting--;
            watch(c, false, EPOLL_CTL_MOD);
            push_idle(c);
        }
        return;
    }
    if (c->state == BUSY && events & EPOLLOUT) send_more(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
}

static void give_up_late(int64_t now, int64_t timeout) {
    for (int i = 0; i < limit; i++)
        if (connections[i].state == BUSY && now - connections[i].due > timeout)
            fail(&connections[i], &timeouts);
}

static bool any_busy(void) {
    for (int i = 0; i < limit; i++)
        if (connections[i].state == BUSY) return true;
    return false;
}

static void wait_for_events(int64_t until) {
    struct epoll_event events[EVENTS];
    int64_t left = until - now_ns();
    if (left < 0) left = 0;
    struct timespec wait = {left / 1000000000, left % 1000000000};
    int n = epoll_pwait2(epoll_fd, events, EVENTS, &wait, NULL);
    for (int i = 0; i < n; i++) handle(events[i].data.ptr, events[i].events);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(int status, double part) { /* milliseconds, nearest rank */
    size_t rank = (size_t)(part * (double)counts[status] + 0.999999);
    return latencies[status][rank ? rank - 1 : 0] / 1000.0;
}

static void report(double rate, double seconds, int64_t start, int64_t unsent, int most) {
    double elapsed = last_done > schedule_end ? (double)(last_done - start) / 1e9 : seconds;
    printf("{\"rate\": %g, \"seconds\": %g, \"elapsed\": %.6f, \"sent\": %lld, \"unsent\": %lld, "
           "\"connect_errors\": %lld, \"resets\": %lld, \"timeouts\": %lld, \"connections\": %d, "
           "\"achieved_rate\": %.3f, \"goodput\": %.3f, \"statuses\": {",
           rate, seconds, elapsed, (long long)sent, (long long)unsent, (long long)connect_errors,
           (long long)resets, (long long)timeouts, most, (double)sent_in_time / seconds,
           (double)in_time / seconds);
    const char *comma = "";
    for (int s = 0; s < STATUSES; s++)
        if (counts[s]) printf("%s\"%d\": %zu", comma, s, counts[s]), comma = ", ";
    printf("}, \"latency_ms\": {");
    comma = "";
    for (int s = 0; s < STATUSES; s++) {
        if (!counts[s]) continue;
        qsort(latencies[s], counts[s], sizeof(uint32_t), by_value);
        printf("%s\"%d\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}",
               comma, s, percentile(s, .5), percentile(s, .9), percentile(s, .99),
               percentile(s, .999), percentile(s, 1));
        comma = ", ";
    }
    printf("}}\n");
}

/* When each request is due, in nanoseconds after the start. */
static int64_t *schedule(int64_t total, double rate, double seconds, long seed) {
    int64_t *due = malloc((size_t)(total ? total : 1) * sizeof *due);
    if (!due) die("malloc");
    srand48(seed);
    double at = 0; /* sums of exponential distances, scaled below so that all fit */
    for (int64_t i = 0; i < total; i++)
        due[i] = (int64_t)((seed ? (at += -log1p(-drand48())) : (double)i) / rate * 1e9);
    if (!seed) return due;
    at += -log1p(-drand48());
    double scale = seconds * rate / at;
    for (int64_t i = 0; i < total; i++) due[i] = (int64_t)((double)due[i] * scale);
    return due;
}

static void read_requests(char **paths) {
    requests = calloc((size_t)request_count, sizeof *requests);
    for (int i = 0; i < request_count; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (!file) die(paths[i]);
        fseek(file, 0, SEEK_END);
        requests[i].length = (size_t)ftell(file);
        rewind(file);
        requests[i].bytes = malloc(requests[i].length);
        if (fread(requests[i].bytes, 1, requests[i].length, file) != requests[i].length) die(paths[i]);
        fclose(file);
    }
}

static void open_first(int wanted) {
    for (int i = 0; i < wanted; i++) open_connection();
    for (int64_t until = now_ns() + 1000000000; connecting && now_ns() < until && !stopped;)
        wait_for_events(until);
    refused = 0; /* no request waited for them */
}

int main(int argc, char **argv) {
    if (argc < 10) {
        fprintf(stderr, "usage: %s HOST PORT RATE SECONDS CONNECTIONS MAX_CONNECTIONS TIMEOUT SEED FILE...\n",
                argv[0]);
        return 2;
    }
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    int first = atoi(argv[5]);
    int64_t timeout = (int64_t)(atof(argv[7]) * 1e9);
    limit = atoi(argv[6]);
    if (rate <= 0 || seconds <= 0 || first < 0 || limit < 1 || first > limit || timeout <= 0) {
        fprintf(stderr, "openloop: a number is out of range\n");
        return 2;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int error = getaddrinfo(argv[1], argv[2], &hints, &address);
    if (error) {
        fprintf(stderr, "%s:%s: %s\n", argv[1], argv[2], gai_strerror(error));
        return 2;
    }
    request_count = argc - 9;
    read_requests(argv + 9);
    connections = calloc((size_t)limit, sizeof *connections);
    idle = calloc((size_t)limit, sizeof *idle);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !idle || epoll_fd < 0) die("openloop");
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    open_first(first);

    int64_t total = (int64_t)(rate * seconds + 0.5), next = 0, swept = 0;
    int64_t *offsets = schedule(total, rate, seconds, atol(argv[8]));
    int64_t start = now_ns();
    int most = opened;
    schedule_end = start + (int64_t)(seconds * 1e9);
    while (!stopped) {
        int64_t now = now_ns(), due = 0;
        for (; next < total; next++) {
            due = start + offsets[next];
            if (due > now) break;
            Connection *c = NULL;
            if (now - due > timeout) /* given up while it waited for a connection */
                timeouts++;
            else if ((c = pop_idle()))
                start_request(c, due, now);
            else if (refused > 0) /* the connection that was opened for this request */
                refused--, connect_errors++;
            else
                break;
        }
        refused = 0;
        int64_t waiting = due > now || next == total ? 0 : (int64_t)((double)(now - due) * rate / 1e9) + 1;
        if (waiting > total - next) waiting = total - next;
        while (connecting < waiting && opened < limit && refused < waiting) open_connection();
        if (opened > most) most = opened;
        if (now - swept > 20000000) {
            swept = now;
            give_up_late(now, timeout);
            if (next == total && !any_busy()) break;
        }
        int64_t until = now + 20000000;
        if (next < total && due > now && due < until) until = due;
        if (refused) until = now;
        wait_for_events(until);
    }
    report(rate, seconds, start, total - next, most);
    return 0;
}
