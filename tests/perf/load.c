/* Load generator: a bounded number of greetings to 127.0.0.1:PORT, by forked client processes.
 *
 * argv: PATTERN PORT GREETINGS PROCESSES OUTSTANDING
 *   fire    connect, send the name, close; one after the other in each process
 *   closed  OUTSTANDING connections at a time in each process: connect, send, half-close, wait for
 *           end-of-stream; the latency is from before connect() to end-of-stream
 * stdout: one JSON object (the struct Load of load.py). `late` counts connects that took so long
 * that a SYN must have been dropped by a full accept queue and sent again after a second.
 *
 * The children write into one shared mapping, each into its own tally and its own part of the
 * latencies. The source addresses vary, so ports in TIME_WAIT never run out. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PROCESSES = 64, MAX_OUTSTANDING = 4096, MAX_GREETINGS = 10 * 1000 * 1000 };
enum { SOURCES_PER_PROCESS = 64, PATIENCE_S = 10 };
static const uint64_t LATE_NS = 500 * 1000 * 1000;

struct tally {
    uint64_t done, connect, send, receive, timeout, late;
};

struct client {
    int number;
    uint16_t port;
    int greetings;
    int outstanding;
    struct tally *tally;
    uint64_t *latencies_ns;
};

static void fail(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Connect and send name `i`; the descriptor, or -1 with the failure counted.
 * IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to connect(), where only the whole
 * four-tuple must be free. */
static int send_name(const struct client *client, int i)
{
    struct timeval patience = {.tv_sec = PATIENCE_S};
    struct sockaddr_in address = {.sin_family = AF_INET};
    char name[32];
    int one = 1;
    int length = snprintf(name, sizeof name, "client-%02d-%07d\n", client->number, i);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint64_t start;

    if (fd < 0)
        fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    /* 127.P.0.S with P and S from 1 */
    address.sin_addr.s_addr = htonl(0x7f000001u + ((uint32_t)client->number + 1) * 0x10000u +
                                    (uint32_t)(i % SOURCES_PER_PROCESS));
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(client->port);
    start = now_ns();
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        client->tally->connect++;
        close(fd);
        return -1;
    }
    if (now_ns() - start > LATE_NS)
        client->tally->late++;
    if (send(fd, name, (size_t)length, MSG_NOSIGNAL) != length) {
        client->tally->send++;
        close(fd);
        return -1;
    }
    return fd;
}

static void fire(const struct client *client)
{
    for (int i = 0; i < client->greetings; i++) {
        int fd = send_name(client, i);
        if (fd >= 0) {
            close(fd);
            client->tally->done++;
        }
    }
}

/* Start greeting `i` in place `place`; 1 when it is under way, 0 when it failed. */
static int begin(const struct client *client, int epoll, int *fds, uint64_t *starts, int place,
                 int i)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u32 = (uint32_t)place};

    starts[place] = now_ns();
    fds[place] = send_name(client, i);
    if (fds[place] < 0)
        return 0;
    shutdown(fds[place], SHUT_WR);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fds[place], &event) < 0)
        fail("epoll_ctl");
    return 1;
}

/* Read what is there (a server may reply); 1 when the stream has ended and is closed. */
static int end(const struct client *client, int fd, uint64_t start)
{
    char answer[4096];
    ssize_t got;

    while ((got = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) > 0)
        continue;
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got == 0)
        client->latencies_ns[client->tally->done++] = now_ns() - start;
    else
        client->tally->receive++;
    close(fd);
    return 1;
}

static void closed(const struct client *client)
{
    struct epoll_event events[64];
    int *fds = calloc((size_t)client->outstanding, sizeof *fds);
    uint64_t *starts = calloc((size_t)client->outstanding, sizeof *starts);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int next = 0;
    int open = 0;

    if (fds == NULL || starts == NULL || epoll < 0)
        fail("epoll_create1");
    for (int place = 0; place < client->outstanding && next < client->greetings; place++)
        open += begin(client, epoll, fds, starts, place, next++);
    while (open > 0) {
        int ready = epoll_wait(epoll, events, 64, PATIENCE_S * 1000);
        if (ready == 0) {
            client->tally->timeout += (uint64_t)open;
            break;
        }
        for (int i = 0; i < ready; i++) {
            int place = (int)events[i].data.u32;
            if (!end(client, fds[place], starts[place]))
                continue;
            open--;
            if (next < client->greetings)
                open += begin(client, epoll, fds, starts, place, next++);
        }
    }
    free(fds);
    free(starts);
}

static int by_value(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

/* Close the gaps that failures left, sort, and print. */
static void report(const struct client *clients, int processes, uint64_t *latencies_ns,
                   uint64_t elapsed_ns)
{
    struct tally sum = {0};
    double p50 = 0;
    double p99 = 0;
    uint64_t n = 0;

    for (int p = 0; p < processes; p++) {
        const struct tally *tally = clients[p].tally;
        memmove(latencies_ns + n, clients[p].latencies_ns, tally->done * sizeof *latencies_ns);
        n += tally->done;
        sum.connect += tally->connect;
        sum.send += tally->send;
        sum.receive += tally->receive;
        sum.timeout += tally->timeout;
        sum.late += tally->late;
    }
    qsort(latencies_ns, n, sizeof *latencies_ns, by_value);
    if (n > 0) {
        p50 = (double)latencies_ns[n / 2] / 1e3;
        p99 = (double)latencies_ns[n * 99 / 100] / 1e3;
    }
    printf("{\"done\":%" PRIu64 ",\"connect\":%" PRIu64 ",\"send\":%" PRIu64 ",\"receive\":%" PRIu64
           ",\"timeout\":%" PRIu64 ",\"late\":%" PRIu64 ",\"seconds\":%.6f"
           ",\"p50_us\":%.1f,\"p99_us\":%.1f}\n",
           n, sum.connect, sum.send, sum.receive, sum.timeout, sum.late, (double)elapsed_ns / 1e9,
           p50, p99);
}

static void *map_shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

/* Fork a process that runs `pattern` and exits; it does not outlive its parent. */
static void start(void (*pattern)(const struct client *), const struct client *client)
{
    pid_t parent = getpid();
    pid_t child = fork();

    if (child < 0)
        fail("fork");
    if (child > 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent)
        pattern(client);
    _exit(EXIT_SUCCESS);
}

/* A number from argv within 1..max, or exit status 2. */
static int parse(const char *text, int max)
{
    int number = atoi(text);

    if (number < 1 || number > max) {
        fprintf(stderr, "not within 1..%d: %s\n", max, text);
        exit(2);
    }
    return number;
}

int main(int argc, char **argv)
{
    struct client clients[MAX_PROCESSES];
    struct tally *tallies;
    uint64_t *latencies_ns;
    uint64_t began;
    int greetings, processes, status;
    int failed = 0;

    if (argc != 6 || (strcmp(argv[1], "fire") != 0 && strcmp(argv[1], "closed") != 0)) {
        fprintf(stderr, "usage: %s fire|closed PORT GREETINGS PROCESSES OUTSTANDING\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    greetings = parse(argv[3], MAX_GREETINGS);
    processes = parse(argv[4], MAX_PROCESSES);
    tallies = map_shared((size_t)processes * sizeof *tallies);
    latencies_ns = map_shared((size_t)greetings * sizeof *latencies_ns);
    began = now_ns();
    for (int p = 0, given = 0; p < processes; p++) {
        clients[p] = (struct client){
            .number = p,
            .port = (uint16_t)parse(argv[2], UINT16_MAX),
            .greetings = (greetings - given) / (processes - p),
            .outstanding = parse(argv[5], MAX_OUTSTANDING),
            .tally = &tallies[p],
            .latencies_ns = latencies_ns + given,
        };
        given += clients[p].greetings;
        start(strcmp(argv[1], "closed") == 0 ? closed : fire, &clients[p]);
    }
    while (wait(&status) > 0)
        failed |= status;
    report(clients, processes, latencies_ns, now_ns() - began);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
