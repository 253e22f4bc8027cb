// HTTP/1.1 load in an open or a closed loop: one thread, epoll. A latency counts from the time the call was due.
//
//   load -a IP:PORT [-P PATH] -b BODY_FILE [-r CALLS_PER_S | -c CALLERS] [-d SECONDS] [-w WARM_UP_S]
//        [-n HEADER -p PROGRAMS] [-s SEED]
//
// Without a rate, CALLERS callers each send their next call when the last one has been answered. HEADER carries one of
// PROGRAMS ids, drawn at random. Prints one line of JSON: milliseconds, counts.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 12000, HEAD = 8192, READ = 1 << 17 };
static const long SECOND = 1000000000L, GRACE = 3 * 1000000000L;

typedef struct {
  int fd, busy, connected, has_head, chunked, close_after, head_bytes;
  long due, first_byte, left;  // left: bytes of the body that have not come; -1 = unknown
  char head[HEAD], tail[5];
  char *out;
  size_t out_bytes, written;
} Connection;

static Connection *connections;
static int used, free_slots[MOST], free_count, idle[MOST], idle_count, poll_fd, in_flight;
static struct sockaddr_in server;
static const char *path = "/v1/chat/completions", *header = "x-agentserving-program-id";
static char *body;
static size_t body_bytes;
static int programs = 0, closed_loop;
static long *latencies, *first_bytes, measured, capacity, errors, not_sent, done_in_all;
static int last_bad_status;
static long measure_from, ends;
static unsigned long long seed = 88172645463325252ULL;

static unsigned long long draw(void) {  // xorshift64
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return seed;
}

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

static void send_call(int slot, long due);

static void watch(int slot, int operation, unsigned events) {
  struct epoll_event event = {.events = events, .data.u32 = slot};
  epoll_ctl(poll_fd, operation, connections[slot].fd, &event);
}

static int take_slot(void) { return free_count ? free_slots[--free_count] : used < MOST ? used++ : -1; }

static void drop(int slot) {
  Connection *c = &connections[slot];
  close(c->fd);
  free(c->out);
  c->out = NULL, c->fd = -1;
  free_slots[free_count++] = slot;
}

static int connected_slot(void) {
  int slot = take_slot(), one = 1;
  if (slot < 0) return -1;
  Connection *c = &connections[slot];
  memset(c, 0, sizeof *c);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) { free_slots[free_count++] = slot; return -1; }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (void *)&server, sizeof server) && errno != EINPROGRESS) { drop(slot); return -1; }
  watch(slot, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
  return slot;
}

static void flush(int slot) {
  Connection *c = &connections[slot];
  while (c->written < c->out_bytes) {
    ssize_t n = send(c->fd, c->out + c->written, c->out_bytes - c->written, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EAGAIN) return;  // EPOLLOUT is watched
      c->written = c->out_bytes;    // the read sees why
    } else c->written += n;
  }
  watch(slot, EPOLL_CTL_MOD, EPOLLIN);
}

static void again(long due) {
  if (!closed_loop || due >= ends) return;
  int slot = connected_slot();
  if (slot >= 0) send_call(slot, due);
}

static void record(Connection *c, int ok) {
  if (c->due < measure_from || c->due >= ends) return;
  if (!ok) { errors++; return; }
  if (measured == capacity) {
    capacity = capacity ? 2 * capacity : 65536;
    latencies = realloc(latencies, capacity * sizeof *latencies);
    first_bytes = realloc(first_bytes, capacity * sizeof *first_bytes);
  }
  first_bytes[measured] = c->first_byte - c->due;
  latencies[measured++] = now() - c->due;
}

static void finish(int slot, int ok) {
  Connection *c = &connections[slot];
  if (c->busy) in_flight--, c->busy = 0, done_in_all++, record(c, ok);
  if (!ok || c->close_after) {
    drop(slot);
    again(now());
  } else if (closed_loop && now() < ends) send_call(slot, now());
  else idle[idle_count++] = slot;
}

static void send_call(int slot, long due) {
  Connection *c = &connections[slot];
  char head[2048];
  int n = snprintf(head, sizeof head,
                   "POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                   "authorization: Bearer sk-1234\r\ncontent-length: %zu\r\n", path, body_bytes);
  if (programs) n += snprintf(head + n, sizeof head - n, "%s: live-%llu\r\n", header, draw() % programs);
  n += snprintf(head + n, sizeof head - n, "\r\n");
  c->busy = 1, c->due = due, c->first_byte = 0, c->has_head = c->head_bytes = c->chunked = c->close_after = 0;
  c->left = -1;
  memset(c->tail, 0, sizeof c->tail);
  in_flight++;
  c->out = realloc(c->out, n + body_bytes);
  memcpy(c->out, head, n);
  memcpy(c->out + n, body, body_bytes);
  c->out_bytes = n + body_bytes, c->written = 0;
  if (!c->connected) return;
  watch(slot, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  flush(slot);
}

// Gives the bytes of `data` that belong to the head; -1 when the head is bad, and 0 while it is not whole.
static long read_head(Connection *c, const char *data, long n) {
  long before = c->head_bytes, take = n < HEAD - 1 - before ? n : HEAD - 1 - before;
  memcpy(c->head + before, data, take);
  c->head_bytes += take;
  c->head[c->head_bytes] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (!end) return c->head_bytes >= HEAD - 1 ? -1 : 0;
  *end = 0;
  c->has_head = 1, c->first_byte = now();
  int status = atoi(c->head + 9);
  if (status != 200) { last_bad_status = status; return -1; }
  char *length = strcasestr(c->head, "\ncontent-length:");
  if (length) c->left = atol(length + 16);
  else c->chunked = strcasestr(c->head, "\ntransfer-encoding: chunked") != NULL;
  c->close_after = strcasestr(c->head, "\nconnection: close") != NULL;
  return end + 4 - c->head - before;
}

// True once the body is whole.
static int read_body(Connection *c, const char *data, long n) {
  if (!c->chunked) return (c->left -= n) <= 0;
  if (n >= 5) memcpy(c->tail, data + n - 5, 5);
  else memmove(c->tail, c->tail + n, 5 - n), memcpy(c->tail + 5 - n, data, n);
  return !memcmp(c->tail, "0\r\n\r\n", 5);
}

static void closed_by_server(int slot) {
  if (connections[slot].busy) { finish(slot, 0); return; }
  for (int i = 0; i < idle_count; i++)
    if (idle[i] == slot) { idle[i] = idle[--idle_count]; break; }
  drop(slot);
}

static void readable(int slot) {
  static char data[READ];
  for (;;) {
    Connection *c = &connections[slot];
    long n = recv(c->fd, data, sizeof data, MSG_DONTWAIT), head = 0;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { closed_by_server(slot); return; }
    if (!c->busy) continue;
    if (!c->has_head) {
      head = read_head(c, data, n);
      if (head < 0) { finish(slot, 0); return; }
      if (!c->has_head) continue;
    }
    if (read_body(c, data + head, n - head)) { finish(slot, 1); return; }
  }
}

static void ready(int slot, unsigned events) {
  Connection *c = &connections[slot];
  if (c->fd < 0) return;
  if (!c->connected && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) { finish(slot, 0); return; }
    c->connected = 1;
  }
  if (events & EPOLLOUT) flush(slot);
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(slot);
}

static int ascending(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x > y) - (x < y);
}

static double quantile(const long *sorted, double q) {
  return measured ? sorted[(long)(q * (measured - 1))] / 1e6 : -1;
}

static void print_figures(double seconds) {
  qsort(latencies, measured, sizeof *latencies, ascending);
  qsort(first_bytes, measured, sizeof *first_bytes, ascending);
  printf("{\"calls\": %ld, \"rate\": %.1f, \"p50\": %.4f, \"p95\": %.4f, \"p99\": %.4f, \"max\": %.4f, "
         "\"first_byte_p50\": %.4f, \"first_byte_p99\": %.4f, \"errors\": %ld, \"not_sent\": %ld, "
         "\"unfinished\": %d, \"calls_in_all\": %ld, \"last_bad_status\": %d}\n",
         measured, measured / seconds, quantile(latencies, .5), quantile(latencies, .95), quantile(latencies, .99),
         quantile(latencies, 1), quantile(first_bytes, .5), quantile(first_bytes, .99), errors, not_sent, in_flight,
         done_in_all, last_bad_status);
}

static void read_file(const char *name) {
  FILE *file = fopen(name, "r");
  if (!file || fseek(file, 0, SEEK_END)) { perror(name); exit(2); }
  body_bytes = ftell(file);
  rewind(file);
  body = malloc(body_bytes + 1);
  if (fread(body, 1, body_bytes, file) != body_bytes) { perror(name); exit(2); }
  fclose(file);
}

static void set_server(char *address) {
  char *colon = strchr(address, ':');
  if (!colon) { fprintf(stderr, "-a IP:PORT\n"); exit(2); }
  *colon = 0;
  server.sin_family = AF_INET, server.sin_port = htons(atoi(colon + 1));
  inet_pton(AF_INET, address, &server.sin_addr);
}

static double gap(double rate) { return -log((draw() >> 11) * 0x1p-53 + 1e-18) / rate * SECOND; }

static void run(double rate, int callers) {
  struct epoll_event events[256];
  double due = now() + (closed_loop ? 0 : gap(rate));
  for (int i = 0; closed_loop && i < callers; i++) again(now());
  for (;;) {
    long t = now();
    if (t >= ends && (!in_flight || t > ends + GRACE)) return;
    for (; !closed_loop && due <= t && due < ends; due += gap(rate)) {
      int slot = idle_count ? idle[--idle_count] : connected_slot();
      if (slot < 0) not_sent++;
      else send_call(slot, (long)due);
    }
    long wait = closed_loop || due >= ends ? SECOND / 20 : (long)due - now();
    struct timespec bound = {wait > 0 ? wait / SECOND : 0, wait > 0 ? wait % SECOND : 0};
    int count = epoll_pwait2(poll_fd, events, 256, &bound, NULL);
    for (int i = 0; i < count; i++) ready(events[i].data.u32, events[i].events);
  }
}

int main(int argc, char **argv) {
  double rate = 0, seconds = 5, warm_up = 1;
  int callers = 16, option;
  signal(SIGPIPE, SIG_IGN);
  while ((option = getopt(argc, argv, "a:P:b:r:c:d:w:n:p:s:")) > 0) {
    switch (option) {
      case 'a': set_server(optarg); break;
      case 'P': path = optarg; break;
      case 'b': read_file(optarg); break;
      case 'r': rate = atof(optarg); break;
      case 'c': callers = atoi(optarg); break;
      case 'd': seconds = atof(optarg); break;
      case 'w': warm_up = atof(optarg); break;
      case 'n': header = optarg; break;
      case 'p': programs = atoi(optarg); break;
      case 's': seed ^= (atoll(optarg) + 1) * 2654435761ULL; break;
      default: return 2;
    }
  }
  if (!body || !server.sin_port) { fprintf(stderr, "-a and -b are needed\n"); return 2; }
  connections = calloc(MOST, sizeof *connections);
  poll_fd = epoll_create1(0);
  for (int i = 0; i < 20; i++) draw();
  closed_loop = rate <= 0;
  measure_from = now() + (long)(warm_up * SECOND);
  ends = measure_from + (long)(seconds * SECOND);
  run(rate, callers);
  print_figures(seconds);
}
