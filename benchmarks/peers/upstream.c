// Engines that cost next to nothing: HTTP ports that answer chat completions, one thread, epoll.
//
//   upstream FIRST_PORT PORTS STEP_US [CHANNEL_DIR]
//
// A completion is answered at once; a stream gets one chunk per step of STEP_US, as an engine's do. "stream" and
// "max_tokens" must be among the first bytes of the body, of which the rest is read and forgotten. With CHANNEL_DIR the
// engine at FIRST_PORT + i also speaks the plugin's side of the channel (agentserving/contract/channel.py) on
// CHANNEL_DIR/i/rank0.sock: hello, heartbeats, and a terminal record for each call that carries a ticket.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "msgpack.h"

enum { MOST = 60000, ENGINES = 64, KEPT = 16384, TICKET = 2048, READ = 1 << 17, BEAT_US = 400000 };
enum Kind { FREE, LISTENER, CLIENT, CHANNEL_LISTENER, CHANNEL, TIMER };

typedef struct {
  enum Kind kind;
  int fd, engine, streaming, place, tokens_left, tokens, ticket_bytes, chunked;
  long head_bytes, body_left, began_us;
  Byte ticket[TICKET], tail[5];
  char *in;
  size_t in_bytes, in_size;
  char *out;
  size_t out_bytes;
} Peer;

static Peer peers[MOST];
static int poll_fd, streams[MOST], stream_count, engines, channels[ENGINES];
static unsigned long long steps, requests, tokens_out[ENGINES];

static long now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static Peer *add(int fd, enum Kind kind, int engine) {
  if (fd >= MOST) { close(fd); return NULL; }
  Peer *p = &peers[fd];
  char *in = p->in;
  size_t size = p->in_size;
  memset(p, 0, sizeof *p);
  p->in = in, p->in_size = size, p->kind = kind, p->fd = fd, p->engine = engine;
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
  return p;
}

static void stop_stream(Peer *p) {
  if (!p->streaming) return;
  streams[p->place] = streams[--stream_count];
  peers[streams[p->place]].place = p->place;
  p->streaming = 0;
}

static void drop(Peer *p) {
  stop_stream(p);
  if (p->kind == CHANNEL && channels[p->engine] == p->fd) channels[p->engine] = -1;
  free(p->out);
  p->out = NULL, p->out_bytes = 0, p->kind = FREE;
  close(p->fd);
}

static void watch(Peer *p, unsigned events) {
  struct epoll_event event = {.events = events, .data.fd = p->fd};
  epoll_ctl(poll_fd, EPOLL_CTL_MOD, p->fd, &event);
}

static void put(Peer *p, const void *data, size_t n) {
  if (p->kind == FREE) return;
  if (!p->out_bytes) {
    ssize_t sent = send(p->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) { drop(p); return; }
    if (sent > 0) data = (const char *)data + sent, n -= sent;
  }
  if (!n) return;
  p->out = realloc(p->out, p->out_bytes + n);
  memcpy(p->out + p->out_bytes, data, n);
  p->out_bytes += n;
  watch(p, EPOLLIN | EPOLLOUT);
}

static void flush(Peer *p) {
  ssize_t sent = send(p->fd, p->out, p->out_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) { if (errno != EAGAIN) drop(p); return; }
  p->out_bytes -= sent;
  memmove(p->out, p->out + sent, p->out_bytes);
  if (!p->out_bytes) watch(p, EPOLLIN);
}

// -- the channel: msgpack in frames of a length and a message ---------------------------------------------------------

static void send_message(int engine, const Message *m) {
  Byte length[4] = {m->n >> 24, m->n >> 16, m->n >> 8, m->n};
  Peer *p = &peers[channels[engine]];
  put(p, length, 4);
  put(p, m->data, m->n);
}

static void load(Message *m, int engine) {
  unsigned long long fields[20] = {
      stream_count, 0, 100000, 100000, steps, 1000, 0, 0, 0, 0, 0, 0, steps * 30, requests * 100, 0,
      tokens_out[engine]};
  byte(m, 0xdc), byte(m, 0), byte(m, 20);
  for (int i = 0; i < 20; i++) number(m, fields[i]);
}

// CallRecord out of the fields of a ticket.
static void call_record(Message *m, const Byte *ticket, long service_us, int tokens) {
  const Byte *at = ticket + (*ticket == 0xdc ? 3 : 1), *engine;
  byte(m, 0xdc), byte(m, 0), byte(m, 17);
  copy(m, &at, 6);  // call, attempt, program, root, tenant, thread
  engine = at;
  skip(&at, 1);
  copy(m, &at, 1);  // attained service
  unsigned long long counters[] = {service_us, 10, 100, 0, tokens, 0, 0};
  for (int i = 0; i < 7; i++) number(m, counters[i]);
  byte(m, 0xc2), text(m, "completed");
  skip(&at, 6);  // wait, policy, epoch, expiry, arrival, class
  int others = (*at & 0xf0) == 0x90 ? *at++ & 15 : 0;
  byte(m, others ? 0x91 + others : 0x90);
  if (others) copy(m, &engine, 1), copy(m, &at, others);
}

static void report(int engine, const Peer *call) {
  if (channels[engine] < 0) return;
  Message m = {.n = 0};
  byte(&m, 0x84), named_text(&m, "type", "report"), text(&m, "load"), load(&m, engine), text(&m, "calls");
  byte(&m, call ? 0x91 : 0x90);
  if (call) call_record(&m, call->ticket + 1, now_us() - call->began_us + 1000, call->tokens);
  named(&m, "policy_version", 1);
  send_message(engine, &m);
}

static void hello(int engine) {
  Message m = {.n = 0};
  char boot[64];
  snprintf(boot, sizeof boot, "boot-%d-%d-%ld", engine, (int)getpid(), now_us());
  byte(&m, 0x8d), named_text(&m, "type", "hello"), named_text(&m, "boot_id", boot), named(&m, "pid", getpid());
  named_text(&m, "engine_kind", "SIMULATOR"), named_text(&m, "engine_version", "1");
  named_text(&m, "plugin_version", "0.1.0"), named(&m, "max_num_seqs", 2000), named(&m, "max_model_len", 1000000);
  named(&m, "block_size", 16), named(&m, "num_blocks", 100000), named(&m, "data_parallel_size", 1);
  text(&m, "async_scheduling"), byte(&m, 0xc2), named(&m, "policy_version", 0);
  send_message(engine, &m);
  report(engine, NULL);
}

// Accepts every policy.
static void policy_result(Peer *p, const char *message, size_t n) {
  if (!memmem(message, n < 16 ? n : 16, "\xa6policy", 7)) return;
  const Byte *version = memmem(message, n, "\xa7version", 8);
  Message m = {.n = 0};
  byte(&m, 0x83), named_text(&m, "type", "policy_result"), text(&m, "version");
  version += 8;
  copy(&m, &version, 1);
  named_text(&m, "error", "");
  send_message(p->engine, &m);
}

static void frames(Peer *p) {
  size_t at = 0;
  for (; p->in_bytes - at >= 4;) {
    const Byte *l = (Byte *)p->in + at;
    size_t n = (size_t)l[0] << 24 | l[1] << 16 | l[2] << 8 | l[3];
    if (p->in_bytes - at < 4 + n) break;
    policy_result(p, p->in + at + 4, n);
    at += 4 + n;
  }
  p->in_bytes -= at;
  memmove(p->in, p->in + at, p->in_bytes);
}

// -- HTTP -------------------------------------------------------------------------------------------------------------

static const char CHUNK[] =
    "data: {\"id\":\"cmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"tiny\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" %05d\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char COMPLETION[] =
    "{\"id\":\"cmpl-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"tiny\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"token\"},\"logprobs\":null,\"finish_reason\":\"length\"}],"
    "\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":1,\"total_tokens\":101}}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"vllm\","
    "\"root\":\"tiny\",\"parent\":null,\"max_model_len\":1000000}]}";
static const char METRICS[] =
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 0\n"
    "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"tiny\",engine=\"0\"} 0\n"
    "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0.1\n"
    "# TYPE vllm:cache_config_info gauge\n"
    "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100000\",engine=\"0\"} 1.0\n";

static void ended(Peer *p) {
  tokens_out[p->engine] += p->tokens;
  if (p->ticket_bytes) report(p->engine, p);
}

static void reply(Peer *p, const char *type, const char *content) {
  char out[2048];
  int n = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", type,
                   strlen(content), content);
  put(p, out, n);
}

static void step(Peer *p) {
  char data[512], out[640];
  int n = snprintf(data, sizeof data, CHUNK, p->tokens_left--);
  n = snprintf(out, sizeof out, "%x\r\n%s\r\n%s", n, data, p->tokens_left ? "" : "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  int last = !p->tokens_left;
  if (last) stop_stream(p);
  put(p, out, n);
  if (last && p->kind == CLIENT) ended(p);
}

static int base64_value(int c) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const char *found = c ? strchr(digits, c) : NULL;
  return found ? (int)(found - digits) : -1;
}

static void read_ticket(Peer *p, const char *head) {
  const char *at = strcasestr(head, "\nx-session-id:");
  unsigned bits = 0;
  int have = 0, n = 0;
  p->ticket_bytes = 0;
  if (!at) return;
  for (at += 14; *at == ' ';) at++;
  for (int value; (value = base64_value(*at)) >= 0 && n < TICKET; at++) {
    bits = bits << 6 | value, have += 6;
    if (have >= 8) have -= 8, p->ticket[n++] = bits >> have & 255;
  }
  // The first byte names the issuer: the control plane, or a gateway, whose calls nobody reports.
  p->ticket_bytes = n > 64 && p->ticket[0] == 2 ? n : 0;
}

// `in` holds the head and as much of the body as was kept, with a zero after it.
static void answer(Peer *p) {
  const char *head = p->in, *content = p->in + p->head_bytes, *found;
  requests++;
  if (strncmp(head, "POST", 4)) {
    int models = strstr(head, "/v1/models") != NULL, metrics = !strncmp(head, "GET /metrics", 12);
    reply(p, metrics ? "text/plain; version=0.0.4" : "application/json", models ? MODELS : metrics ? METRICS : "{}");
    return;
  }
  p->began_us = now_us();
  read_ticket(p, head);
  found = strstr(content, "\"max_tokens\":");
  p->tokens = found ? atoi(found + 13) : 1;
  found = strstr(content, "\"stream\":");
  if (found && strspn(found + 9, " ") < 2 && strchr(found + 9, 't') == found + 9 + strspn(found + 9, " ")) {
    static const char begin[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                "transfer-encoding: chunked\r\n\r\n";
    p->streaming = 1, p->tokens_left = p->tokens, p->place = stream_count, streams[stream_count++] = p->fd;
    put(p, begin, sizeof begin - 1);
    return;
  }
  reply(p, "application/json", COMPLETION);
  if (p->kind == CLIENT) ended(p);
}

static int begin_request(Peer *p) {
  p->in[p->in_bytes] = 0;
  char *end = strstr(p->in, "\r\n\r\n");
  if (!end) return 0;
  *end = 0;
  char *length = strcasestr(p->in, "\ncontent-length:");
  p->chunked = strcasestr(p->in, "\ntransfer-encoding: chunked") != NULL;
  if (strcasestr(p->in, "\nexpect: 100")) put(p, "HTTP/1.1 100 Continue\r\n\r\n", 25);
  *end = '\r';
  p->head_bytes = end + 4 - p->in;
  p->body_left = (length ? atol(length + 16) : 0) - (long)(p->in_bytes - p->head_bytes);
  return 1;
}

// One request at a time on a connection, no pipelining.
static void http(Peer *p, const char *data, size_t n) {
  size_t room = KEPT - p->in_bytes, kept = n < room ? n : room;
  int begun = p->head_bytes > 0;
  memcpy(p->in + p->in_bytes, data, kept);
  p->in_bytes += kept;
  if (n >= 5) memcpy(p->tail, data + n - 5, 5);
  if (begun) p->body_left -= n;
  else if (!begin_request(p)) return;
  else p->body_left -= n - kept;
  if (p->chunked ? memcmp(p->tail, "0\r\n\r\n", 5) != 0 : p->body_left > 0) return;
  p->in[p->in_bytes] = 0;
  answer(p);
  if (p->kind == CLIENT) p->in_bytes = p->head_bytes = 0;
}

static void readable(Peer *p) {
  static char data[READ];
  ssize_t n = recv(p->fd, data, sizeof data, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) { drop(p); return; }
  size_t need = p->kind == CHANNEL ? p->in_bytes + n + 1 : KEPT + 1;
  if (p->in_size < need) p->in = realloc(p->in, need), p->in_size = need;
  if (p->kind == CLIENT) { http(p, data, n); return; }
  memcpy(p->in + p->in_bytes, data, n);
  p->in_bytes += n;
  frames(p);
}

// -- sockets and the loop ---------------------------------------------------------------------------------------------

static void listen_on(int engine, int port, const char *directory) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) { perror("port"); exit(1); }
  add(fd, LISTENER, engine);
  channels[engine] = -1;
  if (!directory) return;
  struct sockaddr_un path = {.sun_family = AF_UNIX};
  snprintf(path.sun_path, sizeof path.sun_path, "%s/%d", directory, engine);
  mkdir(path.sun_path, 0755);
  snprintf(path.sun_path, sizeof path.sun_path, "%s/%d/rank0.sock", directory, engine);
  unlink(path.sun_path);
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(fd, (void *)&path, sizeof path) || listen(fd, 8)) { perror(path.sun_path); exit(1); }
  add(fd, CHANNEL_LISTENER, engine);
}

static void accept_on(Peer *p) {
  int fd = accept4(p->fd, NULL, NULL, SOCK_NONBLOCK), one = 1;
  if (fd < 0) return;
  if (p->kind == LISTENER) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    add(fd, CLIENT, p->engine);
    return;
  }
  if (channels[p->engine] >= 0) drop(&peers[channels[p->engine]]);
  if (!add(fd, CHANNEL, p->engine)) return;
  channels[p->engine] = fd;
  hello(p->engine);
}

static void tick(Peer *timer) {
  static int now_streaming[MOST];
  static long beat;
  unsigned long long expired;
  if (read(timer->fd, &expired, sizeof expired) < 0) return;
  int count = stream_count;
  steps++;
  memcpy(now_streaming, streams, count * sizeof *streams);
  for (int i = 0; i < count; i++)
    if (peers[now_streaming[i]].streaming) step(&peers[now_streaming[i]]);
  if (now_us() - beat < BEAT_US) return;
  beat = now_us();
  for (int i = 0; i < engines; i++) report(i, NULL);
}

static void ready(Peer *p, unsigned events) {
  switch (p->kind) {
    case FREE: return;
    case LISTENER: case CHANNEL_LISTENER: accept_on(p); return;
    case TIMER: tick(p); return;
    case CLIENT: case CHANNEL: break;
  }
  if (events & EPOLLOUT && p->out_bytes) flush(p);
  if (p->kind != FREE && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(p);
}

int main(int argc, char **argv) {
  if (argc < 4 || (engines = atoi(argv[2])) > ENGINES) {
    fprintf(stderr, "upstream FIRST_PORT PORTS STEP_US [CHANNEL_DIR]\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  poll_fd = epoll_create1(0);
  for (int i = 0; i < engines; i++) listen_on(i, atoi(argv[1]) + i, argc > 4 ? argv[4] : NULL);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct timespec every = {atol(argv[3]) / 1000000, atol(argv[3]) % 1000000 * 1000};
  struct itimerspec period = {every, every};
  timerfd_settime(timer, 0, &period, NULL);
  add(timer, TIMER, 0);
  struct epoll_event events[512];
  for (;;) {
    int count = epoll_wait(poll_fd, events, 512, -1);
    for (int i = 0; i < count; i++) ready(&peers[events[i].data.fd], events[i].events);
  }
}
