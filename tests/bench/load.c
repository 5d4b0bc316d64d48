/* Asks a proxy, and measures its answers. One thread, epoll, loopback.
 *
 *   load port=8765 path=/v1/messages body=FILE fields=FILE [NAME=NUMBER ...]
 *
 * `connections` connections are opened evenly over `ramp_ms`; each makes `requests` requests, one
 * after the other, on one connection or (close=1) each on a new one, and begins none after
 * `for_ms`. Whatever is not done after `limit_ms` is given up. `chunks` are expected of each streamed
 * answer; 0 means that it is a whole one. The file of fields has header lines, each with its CRLF.
 *
 * The upstream's stamps, [SEQUENCE@NANOSECONDS], are looked for in whatever comes: so every chunk
 * has a latency of its own, from the send there to the end of the recv here. An answer is good if its
 * status is 200, every chunk came, in order, and `message_stop` behind them. Prints one JSON object.
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
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 << 10, STAMP_BYTES = 28, AT = 7, NOTED_BYTES = 160 };

typedef struct { char *at; size_t size, room; } Bytes;
typedef struct { int64_t *at; size_t size, room; } Numbers;
typedef enum { UNBORN, CONNECTING, SENDING, HEAD, BODY, OVER } Phase;
typedef enum { BY_LENGTH, BY_CHUNKS, BY_CLOSE } Framing;
typedef enum { SIZE_LINE, DATA, DATA_END, TRAILER } ChunkStep;
typedef enum { REFUSED, STATUS, CUT, LOST, REORDERED, LATE, PROBLEMS } Problem;

static const char *PROBLEM_NAMES[] = { "refused", "status", "cut", "lost", "reordered", "late" };

typedef struct {
    Phase phase;
    Framing framing;
    ChunkStep step;
    int fd, left, status, closing, wants_out;
    int next, disorder, has_data, stopped;      /* of the answer: chunks, and its events */
    int64_t starts, asked, first_event, first_text, body_left;
    size_t sent;
    Bytes head, line;
    char size_line[20];
    int size_digits;
} Conn;

static int poller, over, connections = 1, requests = 1, chunks = 1, close_each, port;
static int64_t ramp_ms, for_ms, limit_ms = 60000;
static const char *path = "/v1/messages", *body_file, *fields_file;
static Bytes request;
static Conn *all;

static Numbers latency, first_event, first_text, total;
static int64_t problems[PROBLEMS], good, events, reads, reads_with_events, merged, begun, ended, arrival;
static int events_in_read;
static char noted[NOTED_BYTES];

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *grown(void *at, size_t bytes)
{
    if (!(at = realloc(at, bytes))) abort();
    return at;
}

static void add(Numbers *n, int64_t value)
{
    if (n->size == n->room) n->at = grown(n->at, (n->room = n->room * 2 + 1024) * sizeof value);
    n->at[n->size++] = value;
}

static void put(Bytes *b, const char *at, size_t size)
{
    if (b->size + size + 1 > b->room) b->at = grown(b->at, b->room = (b->size + size) * 2 + 512);
    memcpy(b->at + b->size, at, size);
    b->size += size;
    b->at[b->size] = 0;
}

/* ---- one answer ----------------------------------------------------------------------------- */

/* The first thing that went wrong, for people; without what would upset JSON. */
static void note(const char *what, const char *text, size_t size)
{
    if (*noted) return;
    size_t used = snprintf(noted, sizeof noted, "%s: ", what);
    for (size_t i = 0; i < size && used < sizeof noted - 1; i++)
        noted[used++] = text[i] < ' ' || text[i] > '~' || strchr("\"\\", text[i]) ? ' ' : text[i];
    noted[used] = 0;
}

static void see_stamp(Conn *c, const char *at)
{
    int sequence = atoi(at + 1);
    c->disorder |= sequence != c->next;
    c->next = sequence + 1;
    if (!c->first_text) add(&first_text, (c->first_text = arrival) - c->asked);
    add(&latency, arrival - strtoll(at + AT + 1, 0, 10));
}

static void see_stamps(Conn *c, const char *at, size_t size)
{
    const char *end = at + size;
    for (int seen = 0; (at = memchr(at, '[', end - at)); at++) {
        if (end - at < STAMP_BYTES || at[AT] != '@' || at[STAMP_BYTES - 1] != ']') continue;
        see_stamp(c, at);
        merged += seen++ > 0;
        at += STAMP_BYTES - 1;
    }
}

static int begins(const char *at, size_t size, const char *word) { return size >= strlen(word) && !memcmp(at, word, strlen(word)); }

static void see_event(Conn *c)
{
    if (!c->has_data) return;
    c->has_data = 0;
    events++;
    events_in_read++;
    if (!c->first_event) add(&first_event, (c->first_event = arrival) - c->asked);
}

/* A line of an event stream without its end. */
static void see_line(Conn *c, const char *at, size_t size)
{
    if (size && at[size - 1] == '\r') size--;
    if (!size) { see_event(c); return; }
    if (begins(at, size, "event: error")) note("event", at, size);
    if (begins(at, size, "event: message_stop")) c->stopped = 1;
    if (!begins(at, size, "data:")) return;
    c->has_data = 1;
    if (c->disorder && size > 20) note("in disorder", at, size);
    see_stamps(c, at, size);
}

/* The body, whatever pieces it comes in. Lines within a piece are looked at where they are. */
static void see_body(Conn *c, const char *at, size_t size)
{
    if (!chunks) { put(&c->line, at, size); return; }
    for (const char *end; size && (end = memchr(at, '\n', size)); size -= end + 1 - at, at = end + 1) {
        if (!c->line.size) { see_line(c, at, end - at); continue; }
        put(&c->line, at, end - at);
        see_line(c, c->line.at, c->line.size);
        c->line.size = 0;
    }
    if (size) put(&c->line, at, size);
}

static int problem_of(const Conn *c)
{
    if (c->status != 200) return STATUS;
    if (c->disorder) return REORDERED;
    return c->next != (chunks ? chunks : 1) || (chunks && !c->stopped) ? LOST : -1;
}

/* ---- connections ---------------------------------------------------------------------------- */

static void watch(Conn *c, int out, int change)
{
    c->wants_out = out;
    struct epoll_event e = { EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0), { .ptr = c } };
    epoll_ctl(poller, change, c->fd, &e);
}

static void finish(Conn *c, int problem, int stays);

static void connect_it(Conn *c)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    c->phase = CONNECTING;
    c->asked = now();
    if (!begun) begun = c->asked;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->fd < 0 || (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS)) { finish(c, REFUSED, 0); return; }
    watch(c, 1, EPOLL_CTL_ADD);
}

static void begin_request(Conn *c)
{
    c->phase = SENDING;
    c->status = c->next = c->disorder = c->has_data = c->stopped = c->size_digits = 0;
    c->first_event = c->first_text = 0;
    c->sent = c->head.size = c->line.size = 0;
    c->step = SIZE_LINE;
}

static void send_request(Conn *c)
{
    while (c->sent < request.size) {
        ssize_t size = send(c->fd, request.at + c->sent, request.size - c->sent, MSG_NOSIGNAL);
        if (size < 0 && errno == EAGAIN) { if (!c->wants_out) watch(c, 1, EPOLL_CTL_MOD); return; }
        if (size < 0) { finish(c, CUT, 0); return; }
        c->sent += size;
    }
    c->phase = HEAD;
    if (c->wants_out) watch(c, 0, EPOLL_CTL_MOD);
}

static void count_problem(Conn *c, int problem)
{
    const char *text = c->line.size ? c->line.at : "";
    problems[problem]++;
    note(PROBLEM_NAMES[problem], text, strlen(text));
}

/* Count an answer that ended or cannot, and ask the next question if there is one. */
static void finish(Conn *c, int problem, int stays)
{
    ended = now();
    if (problem < 0) { good++; add(&total, ended - c->asked); } else count_problem(c, problem);
    c->left = for_ms && ended - begun > for_ms * 1000000 ? 0 : c->left - 1;
    if (stays && c->left > 0 && !close_each) {
        begin_request(c);
        c->asked = now();
        send_request(c);
        return;
    }
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->left > 0 && problem != REFUSED) { connect_it(c); return; }
    c->phase = OVER;
    over++;
}

static void end_answer(Conn *c, int stays)
{
    if (c->line.size) chunks ? see_line(c, c->line.at, c->line.size) : see_stamps(c, c->line.at, c->line.size);
    finish(c, problem_of(c), stays && !c->closing);
}

/* ---- HTTP ----------------------------------------------------------------------------------- */

static const char *field(const Conn *c, const char *name)
{
    const char *at = strcasestr(c->head.at, name);
    return at ? at + strlen(name) : 0;
}

/* What is read of a head: 0 until it is whole, else where in the piece the body begins. */
static size_t read_head(Conn *c, const char *at, size_t size)
{
    size_t before = c->head.size;
    put(&c->head, at, size);
    char *end = strstr(c->head.at, "\r\n\r\n");
    if (!end) return 0;
    end[2] = 0;
    c->status = atoi(c->head.at + 9);
    const char *coding = field(c, "\r\ntransfer-encoding:"), *length = field(c, "\r\ncontent-length:");
    c->framing = coding ? BY_CHUNKS : length ? BY_LENGTH : BY_CLOSE;
    c->body_left = length ? atoll(length) : 0;
    c->closing = field(c, "\r\nconnection: close") || !strncmp(c->head.at, "HTTP/1.0", 8);
    c->phase = BODY;
    return end + 4 - c->head.at - before;
}

/* The number that ends a chunk's size line, or -1 while the line goes on. */
static int64_t size_line(Conn *c, char byte)
{
    if (byte != '\n') {
        if (c->size_digits < 18) c->size_line[c->size_digits++] = byte;
        return -1;
    }
    c->size_line[c->size_digits] = 0;
    c->size_digits = 0;
    return strtoll(c->size_line, 0, 16);
}

/* Take the framing off a piece of a chunked body. 1: the body has ended. */
static int read_chunks(Conn *c, const char *at, size_t size)
{
    const char *end = at + size;
    while (at < end) {
        if (c->step == DATA) {
            size_t part = end - at < c->body_left ? end - at : c->body_left;
            see_body(c, at, part);
            at += part;
            c->body_left -= part;
            if (!c->body_left) c->step = DATA_END;
            continue;
        }
        char byte = *at++;
        if (c->step == TRAILER && byte == '\n') return 1;
        if (c->step == DATA_END && byte == '\n') c->step = SIZE_LINE;
        else if (c->step == SIZE_LINE && (c->body_left = size_line(c, byte)) >= 0) c->step = c->body_left ? DATA : TRAILER;
    }
    return 0;
}

static int read_body(Conn *c, const char *at, size_t size)
{
    if (c->framing == BY_CHUNKS) return read_chunks(c, at, size);
    see_body(c, at, size);
    c->body_left -= size;
    return c->framing == BY_LENGTH && c->body_left <= 0;
}

static void lost_connection(Conn *c)
{
    if (c->phase == BODY && c->framing == BY_CLOSE) end_answer(c, 0);
    else finish(c, CUT, 0);
}

static void receive(Conn *c)
{
    static char bytes[READ_BYTES];
    ssize_t size = recv(c->fd, bytes, sizeof bytes, 0);
    size_t from = 0;
    arrival = now();
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) { lost_connection(c); return; }
    reads++;
    events_in_read = 0;
    if (c->phase != BODY && !(from = read_head(c, bytes, size))) return;
    int whole = read_body(c, bytes + from, size - from);
    reads_with_events += events_in_read > 0;
    if (whole) end_answer(c, 1);
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void handle(Conn *c, uint32_t happened)
{
    if (c->phase == CONNECTING && happened & (EPOLLERR | EPOLLHUP)) { finish(c, REFUSED, 0); return; }
    int fd = c->fd;
    if (happened & EPOLLOUT) {
        if (c->phase == CONNECTING) begin_request(c);
        if (c->phase == SENDING) send_request(c);
    }
    if (happened & ~EPOLLOUT && c->fd == fd && c->phase > CONNECTING && c->phase < OVER) receive(c);
}

static int64_t starts_at(int i) { return connections > 1 ? ramp_ms * 1000000 * i / connections : 0; }

static void give_up(void)
{
    for (int i = 0; i < connections; i++)
        if (all[i].phase != OVER) count_problem(&all[i], LATE);
    ended = now();
}

static void run(void)
{
    struct epoll_event happened[256];
    int64_t start = now();
    for (int born = 0; over < connections;) {
        int64_t since = now() - start;
        if (since > limit_ms * 1000000) { give_up(); return; }
        for (; born < connections && starts_at(born) <= since; born++) connect_it(&all[born]);
        int count = epoll_wait(poller, happened, 256, born < connections ? 1 : 50);
        for (int i = 0; i < count; i++) handle(happened[i].data.ptr, happened[i].events);
    }
}

/* ---- what is told --------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile(const Numbers *n, double part) { return n->at[(size_t)((n->size - 1) * part)] / 1e3; }

static void tell_times(const char *name, Numbers *n)
{
    if (!n->size) return;
    qsort(n->at, n->size, sizeof *n->at, compare);
    printf(", \"%s\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, quantile(n, .5), quantile(n, .9),
           quantile(n, .99), quantile(n, 1));
}

static double ratio(double a, double b) { return b ? a / b : 0; }

static void tell(void)
{
    double seconds = (ended - begun) / 1e9;
    int64_t bad = 0;
    for (int i = 0; i < PROBLEMS; i++) bad += problems[i];
    printf("{\"good\": %lld, \"bad\": %lld, \"problems\": {", (long long)good, (long long)bad);
    for (int i = 0; i < PROBLEMS; i++) printf("%s\"%s\": %lld", i ? ", " : "", PROBLEM_NAMES[i], (long long)problems[i]);
    printf("}, \"noted\": \"%s\", \"seconds\": %.4f, \"requests_s\": %.1f, \"chunks\": %zu, \"chunks_s\": %.1f, ", noted, seconds,
           ratio(good, seconds), latency.size, ratio(latency.size, seconds));
    printf("\"events\": %lld, \"reads\": %lld, \"events_per_read\": %.3f, \"reads_per_event\": %.3f, \"merged\": %lld", (long long)events,
           (long long)reads, ratio(events, reads_with_events), ratio(reads, events), (long long)merged);
    tell_times("latency", &latency);
    tell_times("first_event", &first_event);
    tell_times("first_text", &first_text);
    tell_times("total", &total);
    printf("}\n");
}

/* ---- arguments ------------------------------------------------------------------------------ */

static void read_file(Bytes *b, const char *name)
{
    char piece[65536];
    FILE *file = fopen(name, "rb");
    if (!file) { perror(name); exit(2); }
    for (size_t size; (size = fread(piece, 1, sizeof piece, file));) put(b, piece, size);
    fclose(file);
}

static void compose_request(void)
{
    Bytes body = { 0 }, fields = { 0 };
    char line[512];
    put(&fields, "", 0);
    read_file(&body, body_file);
    read_file(&fields, fields_file);
    put(&request, line, snprintf(line, sizeof line, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", path, port));
    put(&request, fields.at, fields.size);
    put(&request, line, snprintf(line, sizeof line, "%sContent-Length: %zu\r\n\r\n", close_each ? "Connection: close\r\n" : "", body.size));
    put(&request, body.at, body.size);
}

static int set(const char *word)
{
    static const struct { const char *name; int *number; int64_t *large; const char **text; } OPTIONS[] = {
        { "port=", &port, 0, 0 }, { "connections=", &connections, 0, 0 }, { "requests=", &requests, 0, 0 },
        { "chunks=", &chunks, 0, 0 }, { "close=", &close_each, 0, 0 }, { "ramp_ms=", 0, &ramp_ms, 0 },
        { "for_ms=", 0, &for_ms, 0 }, { "limit_ms=", 0, &limit_ms, 0 }, { "path=", 0, 0, &path },
        { "body=", 0, 0, &body_file }, { "fields=", 0, 0, &fields_file },
    };
    for (size_t i = 0; i < sizeof OPTIONS / sizeof *OPTIONS; i++) {
        size_t length = strlen(OPTIONS[i].name);
        if (strncmp(word, OPTIONS[i].name, length)) continue;
        if (OPTIONS[i].number) *OPTIONS[i].number = atoi(word + length);
        if (OPTIONS[i].large) *OPTIONS[i].large = atoll(word + length);
        if (OPTIONS[i].text) *OPTIONS[i].text = word + length;
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!set(argv[i])) { fprintf(stderr, "load: %s is not known\n", argv[i]); return 2; }
    if (!port || !body_file || !fields_file) { fprintf(stderr, "load: port=, body= and fields= are needed\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    compose_request();
    poller = epoll_create1(0);
    all = grown(0, connections * sizeof *all);
    memset(all, 0, connections * sizeof *all);
    for (int i = 0; i < connections; i++) all[i].left = requests;
    run();
    tell();
    return 0;
}
