/* A scripted model server, for measuring what stands in front of it. One thread, epoll, loopback.
 *
 *   upstream [PORT]        0, or nothing, takes any free port; the port is printed
 *
 * POST .../chat/completions speaks Chat Completions, POST .../messages the Messages API, both
 * streamed or whole. What is answered stands in the prompt, so that no proxy can lose it:
 *
 *   bench-200x10           200 chunks of text, one every 10 ms; x0: as fast as they are taken
 *   bench-200x10-tool      the same as pieces of a tool call's arguments
 *   bench-200x10-after500  the answer begins after 500 ms
 *
 * Every chunk has the stamp [SEQUENCE@NANOSECONDS], CLOCK_MONOTONIC just before it is sent, and
 * leaves in a send of its own, as a model's tokens do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST_REQUEST = 64 << 20, READ_BYTES = 256 << 10, MOST_CHUNKS = 1000000, TURN_CHUNKS = 64 };
enum { STAMP_BYTES = 28, SEQUENCE_DIGITS = 6, TIME_DIGITS = 19 };

typedef struct { char *at; size_t size, room; } Bytes;
typedef struct { int count, tool, streamed, usage; int64_t pace, after; } Plan;

/* ---- what is said --------------------------------------------------------------------------- */

typedef struct {
    const char *opening[4];             /* events before the chunks */
    const char *before, *after;         /* around a chunk's text */
    const char *closing[6];             /* events behind the chunks */
    const char *whole_before, *whole_after;
} Script;

#define CHUNK_HEAD "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000," \
    "\"model\":\"bench\",\"system_fingerprint\":\"fp_bench\",\"choices\":["
#define CHUNK_BEFORE "data: " CHUNK_HEAD "{\"index\":0,\"delta\":"
#define CHUNK_AFTER(finish) ",\"logprobs\":null,\"finish_reason\":" finish "}]}\n\n"
#define CHUNK(delta, finish) CHUNK_BEFORE delta CHUNK_AFTER(finish)
#define CHAT_BEFORE "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000," \
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
#define CHAT_AFTER(finish) "},\"logprobs\":null,\"finish_reason\":" finish "}]," USAGE "}"
#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":34,\"total_tokens\":46}"
#define CALL_BEFORE "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\""

#define EVENT_BEFORE(name) "event: " name "\ndata: {\"type\":\"" name "\""
#define EVENT(name, members) EVENT_BEFORE(name) members "}\n\n"
#define MESSAGE "{\"id\":\"msg_bench\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"stop_sequence\":null,"
#define MESSAGE_USAGE "\"usage\":{\"input_tokens\":12,\"output_tokens\":34}"
#define MESSAGE_START EVENT("message_start", \
    ",\"message\":" MESSAGE "\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":12,\"output_tokens\":1}}")
#define MESSAGE_DELTA(reason) EVENT("message_delta", \
    ",\"delta\":{\"stop_reason\":\"" reason "\",\"stop_sequence\":null}," MESSAGE_USAGE)
#define BLOCK_START(block) EVENT("content_block_start", ",\"index\":0,\"content_block\":" block)
#define BLOCK_BEFORE(delta) EVENT_BEFORE("content_block_delta") ",\"index\":0,\"delta\":" delta
#define BLOCK_END EVENT("content_block_stop", ",\"index\":0")
#define JSON_PIECE "{\"type\":\"input_json_delta\",\"partial_json\":\""
#define CALL_OPEN "{\\\"content\\\": \\\""
#define CALL_CLOSE "\\\"}"

enum { CHAT, MESSAGES };
static const Script SCRIPTS[2][2] = {
    { { { CHUNK("{\"role\":\"assistant\",\"content\":\"\"}", "null") },
        CHUNK_BEFORE "{\"content\":\"", "\"}" CHUNK_AFTER("null"),
        { CHUNK("{}", "\"stop\"") },
        CHAT_BEFORE "\"", "\"" CHAT_AFTER("\"stop\"") },
      { { CHUNK("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"index\":0,\"id\":\"call_bench\","
                "\"type\":\"function\",\"function\":{\"name\":\"Write\",\"arguments\":\"\"}}]}", "null"),
          CHUNK(CALL_BEFORE CALL_OPEN "\"}}]}", "null") },
        CHUNK_BEFORE CALL_BEFORE, "\"}}]}" CHUNK_AFTER("null"),
        { CHUNK(CALL_BEFORE CALL_CLOSE "\"}}]}", "null"), CHUNK("{}", "\"tool_calls\"") },
        CHAT_BEFORE "null,\"tool_calls\":[{\"id\":\"call_bench\",\"type\":\"function\",\"function\":"
                    "{\"name\":\"Write\",\"arguments\":\"" CALL_OPEN,
        CALL_CLOSE "\"}}]" CHAT_AFTER("\"tool_calls\"") } },
    { { { MESSAGE_START, BLOCK_START("{\"type\":\"text\",\"text\":\"\"}"), EVENT("ping", "") },
        BLOCK_BEFORE("{\"type\":\"text_delta\",\"text\":\""), "\"}}\n\n",
        { BLOCK_END, MESSAGE_DELTA("end_turn"), EVENT("message_stop", "") },
        MESSAGE "\"content\":[{\"type\":\"text\",\"text\":\"", "\"}],\"stop_reason\":\"end_turn\"," MESSAGE_USAGE "}" },
      { { MESSAGE_START,
          BLOCK_START("{\"type\":\"tool_use\",\"id\":\"toolu_bench\",\"name\":\"Write\",\"input\":{}}"),
          BLOCK_BEFORE(JSON_PIECE) CALL_OPEN "\"}}\n\n" },
        BLOCK_BEFORE(JSON_PIECE), "\"}}\n\n",
        { BLOCK_BEFORE(JSON_PIECE) CALL_CLOSE "\"}}\n\n", BLOCK_END, MESSAGE_DELTA("tool_use"), EVENT("message_stop", "") },
        MESSAGE "\"content\":[{\"type\":\"tool_use\",\"id\":\"toolu_bench\",\"name\":\"Write\",\"input\":{\"content\":\"",
        "\"}}],\"stop_reason\":\"tool_use\"," MESSAGE_USAGE "}" } },
};
static const char USAGE_CHUNK[] = "data: " CHUNK_HEAD "]," USAGE "}\n\n", DONE_MARK[] = "data: [DONE]\n\n";

/* What follows the stamp in a chunk: words of a model, as a JSON string has them, and as a string
   within the JSON of a tool call's arguments, which is escaped twice. */
static const char *WORDS[2][8] = {
    { " the", " function", "\\n", " returns", " \\\"name\\\"", " caf\xc3\xa9", ",", " unless" },
    { " the", " function", "\\\\n", " returns", " \\\\\\\"name\\\\\\\"", " caf\xc3\xa9", ",", " unless" },
};

/* ---- bytes ---------------------------------------------------------------------------------- */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(Bytes *b, const char *at, size_t size)
{
    if (b->size + size + 1 > b->room) {
        b->room = (b->size + size) * 2 + 512;
        b->at = realloc(b->at, b->room);
        if (!b->at) abort();
    }
    memcpy(b->at + b->size, at, size);
    b->size += size;
    b->at[b->size] = 0;
}

static void put_text(Bytes *b, const char *text) { put(b, text, strlen(text)); }

/* One HTTP chunk. */
static void put_chunk(Bytes *b, const char *at, size_t size)
{
    char line[24];
    put(b, line, snprintf(line, sizeof line, "%zx\r\n", size));
    put(b, at, size);
    put(b, "\r\n", 2);
}

static void put_events(Bytes *b, const char *const *events, int most)
{
    for (int i = 0; i < most && events[i]; i++) put_chunk(b, events[i], strlen(events[i]));
}

static void digits(char *at, int count, int64_t value)
{
    for (; count--; value /= 10) at[count] = '0' + value % 10;
}

static char *stamp(char *at, int sequence)
{
    *at = '[';
    digits(at + 1, SEQUENCE_DIGITS, sequence);
    at[1 + SEQUENCE_DIGITS] = '@';
    digits(at + 2 + SEQUENCE_DIGITS, TIME_DIGITS, now());
    at[STAMP_BYTES - 1] = ']';
    return at + STAMP_BYTES;
}

/* ---- connections, and those that wait for their next chunk ----------------------------------- */

typedef struct Conn {
    int fd, dialect, streaming, closing, waits_for_room, next;
    Plan plan;
    int64_t begun, due;
    Bytes in, out;
    size_t sent;
    struct Conn *earlier, *later;       /* in the queue; `queued` says whether it is in there */
    int queued;
} Conn;

static int poller, timer;
static Conn *first, *last;              /* sorted by `due`; what is queued is mostly the latest */

static void queue(Conn *c, int64_t due)
{
    Conn *before = last;
    while (before && before->due > due) before = before->earlier;
    c->due = due;
    c->earlier = before;
    c->later = before ? before->later : first;
    if (before) before->later = c; else first = c;
    if (c->later) c->later->earlier = c; else last = c;
    c->queued = 1;
}

static void unqueue(Conn *c)
{
    if (!c->queued) return;
    if (c->earlier) c->earlier->later = c->later; else first = c->later;
    if (c->later) c->later->earlier = c->earlier; else last = c->earlier;
    c->queued = 0;
}

static void set_timer(void)
{
    static int64_t set = -1;
    int64_t due = first ? first->due : 0;
    if (due == set) return;
    struct itimerspec at = { { 0, 0 }, { due / 1000000000, due % 1000000000 } };
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, 0);
    set = due;
}

static void wait_for_room(Conn *c, int wait)
{
    if (c->waits_for_room == wait) return;
    c->waits_for_room = wait;
    struct epoll_event e = { EPOLLIN | EPOLLRDHUP | (wait ? EPOLLOUT : 0), { .ptr = c } };
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void drop(Conn *c)
{
    unqueue(c);
    close(c->fd);
    free(c->in.at);
    free(c->out.at);
    free(c);
}

/* Send what there is. 1: all is gone, 0: the socket is full, -1: the other side has gone. */
static int flush(Conn *c)
{
    while (c->sent < c->out.size) {
        ssize_t size = send(c->fd, c->out.at + c->sent, c->out.size - c->sent, MSG_NOSIGNAL);
        if (size < 0 && errno != EAGAIN) return -1;
        if (size < 0) { wait_for_room(c, 1); return 0; }
        c->sent += size;
    }
    c->out.size = c->sent = 0;
    wait_for_room(c, 0);
    return 1;
}

/* ---- answers -------------------------------------------------------------------------------- */

static const Script *script(const Conn *c) { return &SCRIPTS[c->dialect][c->plan.tool]; }

static void open_stream(Conn *c)
{
    put_text(&c->out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                      "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
    put_events(&c->out, script(c)->opening, 4);
}

static void put_delta(Conn *c)
{
    char text[1024], *at = text;
    at = stpcpy(at, script(c)->before);
    at = stamp(at, c->next);
    at = stpcpy(at, WORDS[c->plan.tool][c->next % 8]);
    at = stpcpy(at, script(c)->after);
    put_chunk(&c->out, text, at - text);
    c->next++;
}

static void close_stream(Conn *c)
{
    put_events(&c->out, script(c)->closing, 6);
    if (c->dialect == CHAT && c->plan.usage) put_chunk(&c->out, USAGE_CHUNK, sizeof USAGE_CHUNK - 1);
    if (c->dialect == CHAT) put_chunk(&c->out, DONE_MARK, sizeof DONE_MARK - 1);
    put_text(&c->out, "0\r\n\r\n");
    c->streaming = 0;
}

/* Go on with a stream until it has to wait. -1: the other side has gone. */
static int go_on(Conn *c)
{
    int64_t start = c->begun + c->plan.after;
    if (c->next < 0 && now() < start) { queue(c, start); return 0; }
    if (c->next < 0) { open_stream(c); c->next = 0; }
    for (int turn = 0;; turn++) {
        int sent = flush(c);
        if (sent <= 0) return sent;
        if (c->next == c->plan.count) break;
        int64_t due = turn < TURN_CHUNKS ? start + c->next * c->plan.pace : now();
        if (turn == TURN_CHUNKS || due > now()) { queue(c, due); return 0; }
        put_delta(c);
    }
    close_stream(c);
    return flush(c) < 0 ? -1 : 0;
}

static void put_reply(Conn *c, const char *status, const char *at, size_t size)
{
    char head[200];
    put(&c->out, head, snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
                                "Content-Length: %zu\r\n\r\n", status, size));
    put(&c->out, at, size);
}

static void answer_whole(Conn *c)
{
    char text[2048], *at = text;
    at = stpcpy(at, script(c)->whole_before);
    at = stamp(at, 0);
    at = stpcpy(at, script(c)->whole_after);
    put_reply(c, "200 OK", text, at - text);
}

/* ---- requests ------------------------------------------------------------------------------- */

static const char *find(const char *in, size_t size, const char *word) { return memmem(in, size, word, strlen(word)); }

/* Whether a member of the JSON text is true. */
static int is_true(const char *body, size_t size, const char *name)
{
    const char *at = find(body, size, name), *end = body + size;
    if (!at) return 0;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++);
    return at < end && *at == 't';
}

static void read_options(Plan *plan, char *at)
{
    while (*at == '-') {
        if (!strncmp(at, "-tool", 5)) { plan->tool = 1; at += 5; }
        else if (!strncmp(at, "-after", 6)) plan->after = strtol(at + 6, &at, 10) * 1000000LL;
        else return;
    }
}

static Plan read_plan(const char *body, size_t size)
{
    Plan plan = { .count = 1 };
    const char *end = body + size, *at = body;
    plan.streamed = is_true(body, size, "\"stream\"");
    plan.usage = is_true(body, size, "\"include_usage\"");
    while ((at = find(at, end - at, "bench-")) && (at[6] < '0' || at[6] > '9')) at += 6;
    if (!at) return plan;
    char text[64] = "", *rest;
    size_t left = end - at - 6;
    memcpy(text, at + 6, left < sizeof text ? left : sizeof text - 1);
    plan.count = strtol(text, &rest, 10);
    if (plan.count > MOST_CHUNKS) plan.count = MOST_CHUNKS;
    if (*rest == 'x') plan.pace = strtol(rest + 1, &rest, 10) * 1000000LL;
    read_options(&plan, rest);
    return plan;
}

static int ends_with(const char *path, const char *word)
{
    size_t size = strlen(path), length = strlen(word);
    return size >= length && !strcmp(path + size - length, word);
}

static void answer(Conn *c, const char *head, const char *body, size_t size)
{
    static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"owned_by\":\"bench\"}]}";
    char method[16] = "", path[256] = "";
    sscanf(head, "%15s %255[^ ?]", method, path);
    c->dialect = ends_with(path, "/messages") ? MESSAGES : CHAT;
    if (*method == 'G') { put_reply(c, "200 OK", MODELS, sizeof MODELS - 1); return; }
    if (ends_with(path, "/count_tokens")) { put_reply(c, "200 OK", "{\"input_tokens\":12}", 19); return; }
    if (!ends_with(path, "/chat/completions") && c->dialect == CHAT) { put_reply(c, "404 Not Found", "{}", 2); return; }
    c->plan = read_plan(body, size);
    if (!c->plan.streamed) { answer_whole(c); return; }
    c->streaming = 1;
    c->next = -1;
    c->begun = now();
}

/* The size of a chunked body in the buffer, which it takes the framing out of. 0: it is not whole. */
static size_t unchunk(char *body, const char *end, size_t *size)
{
    char *from = body, *to = body;
    for (int pass = 0; pass < 2; pass++)            /* look first: what is not whole must stay as it is */
        for (from = body;;) {
            char *line = memmem(from, end - from, "\r\n", 2);
            if (!line) return 0;
            size_t length = strtoul(from, 0, 16);
            from = line + 2;
            if ((size_t)(end - from) < length + 2) return 0;
            if (pass) { memmove(to, from, length); to += length; }
            from += length + 2;
            if (!length) break;
        }
    *size = to - body;
    return from - body;
}

/* Take one request off the buffer. 1: it is being answered, 0: it is not whole, -1: too large. */
static int take_request(Conn *c)
{
    if (!c->in.size) return 0;
    char *head = c->in.at, *end = head + c->in.size, *body = memmem(head, c->in.size, "\r\n\r\n", 4);
    if (!body) return c->in.size > READ_BYTES ? -1 : 0;
    body[2] = 0;
    body += 4;
    const char *length = strcasestr(head, "\r\ncontent-length:"), *close = strcasestr(head, "\r\nconnection: close");
    int chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != 0;
    size_t size = length ? strtoul(length + 17, 0, 10) : 0, taken = size;
    body[-2] = '\r';
    if (chunked) taken = unchunk(body, end, &size);
    if (size > LARGEST_REQUEST) return -1;
    if ((size_t)(end - body) < size || (chunked && !taken)) return 0;
    c->closing = close != 0;
    answer(c, head, body, size);
    c->in.size -= body + taken - head;
    memmove(head, body + taken, c->in.size);
    return 1;
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* Answer what has been asked, one after the other. -1: this connection is over. */
static int work(Conn *c)
{
    for (;;) {
        if (c->queued) return 0;
        if (c->streaming ? go_on(c) < 0 : flush(c) < 0) return -1;
        if (c->streaming || c->out.size) return 0;
        if (c->closing) return -1;
        int taken = take_request(c);
        if (taken <= 0) return taken;
    }
}

static int receive(Conn *c)
{
    static char bytes[READ_BYTES];
    ssize_t size = recv(c->fd, bytes, sizeof bytes, 0);
    if (size < 0 && errno == EAGAIN) return 0;
    if (size <= 0) return -1;
    put(&c->in, bytes, size);
    return work(c);
}

static void accept_all(int listener)
{
    int one = 1;
    for (int fd; (fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0;) {
        Conn *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = { EPOLLIN | EPOLLRDHUP, { .ptr = c } };
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void handle(Conn *c, uint32_t events)
{
    int gone = events & (EPOLLERR | EPOLLHUP);
    if (!gone && events & (EPOLLIN | EPOLLRDHUP)) gone = receive(c) < 0;
    if (!gone && events & EPOLLOUT) gone = work(c) < 0;
    if (gone) drop(c);
}

static int listen_on(int port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&address, size) || listen(fd, 4096)) { perror("upstream"); exit(3); }
    getsockname(fd, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0);
    struct epoll_event e = { EPOLLIN, { .ptr = &poller } }, clock = { EPOLLIN | EPOLLET, { .ptr = &timer } }, events[256];
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);   /* whoever started this may die */
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &clock);
    for (;;) {
        set_timer();
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &poller) accept_all(listener);
            else if (events[i].data.ptr != &timer) handle(events[i].data.ptr, events[i].events);
        }
        for (int64_t time = now(); first && first->due <= time;) {
            Conn *c = first;
            unqueue(c);
            if (work(c) < 0) drop(c);
        }
    }
}
