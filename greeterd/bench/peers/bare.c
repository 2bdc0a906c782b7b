/* Reference: what the kernel alone costs. Epoll, accept in bursts, recv to end-of-stream, close.
 *
 * No log: each forked worker counts its finished connections in its own cell of LOG_DIR/count,
 * an array of uint64, one cache line apart. A shared listener is waited for with EPOLLEXCLUSIVE. */
#include "server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { BURST = 64, CELLS_PER_WORKER = 8 };

static volatile sig_atomic_t ending;

static void end(int signal_number)
{
    (void)signal_number;
    ending = 1;
}

static void watch(int epoll, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

/* Read what is there; true when the connection is over and closed. */
static bool finish(int connection, volatile uint64_t *count)
{
    char name[MAX_NAME_BYTES];
    ssize_t got;

    while ((got = recv(connection, name, sizeof name, 0)) > 0)
        continue;
    if (got < 0 && errno == EAGAIN)
        return false;
    (*count)++; /* first: who sees the end finds it counted */
    close(connection);
    return true;
}

/* How many of the accepted connections are not over yet. */
static int accept_burst(int epoll, int listener, volatile uint64_t *count)
{
    int unfinished = 0;

    for (int i = 0; i < BURST; i++) {
        int connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (connection < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                fail("accept");
            break;
        }
        if (!finish(connection, count)) {
            watch(epoll, connection, EPOLLIN);
            unfinished++;
        }
    }
    return unfinished;
}

/* Until SIGTERM, which is let in only while nothing is at hand; then the unfinished are finished,
 * unless none of them does anything for long. SIGINT is the first process's to handle. */
static void serve(int listener, bool shared, volatile uint64_t *count)
{
    struct epoll_event events[BURST];
    struct sigaction on_end = {.sa_handler = end};
    sigset_t but_the_end;
    bool listening = true;
    int open = 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll < 0)
        fail("epoll_create1");
    sigprocmask(SIG_BLOCK, NULL, &but_the_end);
    sigdelset(&but_the_end, SIGTERM);
    sigaction(SIGTERM, &on_end, NULL);
    watch(epoll, listener, EPOLLIN | (shared ? EPOLLEXCLUSIVE : 0));
    while (!ending || open > 0) {
        int ready = epoll_pwait(epoll, events, BURST, ending ? CLIENT_TIMEOUT_S * 1000 : -1,
                                &but_the_end);
        if (ready < 0 && errno != EINTR)
            fail("epoll_pwait");
        if (ready == 0)
            break;
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener)
                open += accept_burst(epoll, listener, count);
            else if (finish(events[i].data.fd, count))
                open--; /* close() also leaves the epoll set */
        }
        if (ending && listening) {
            epoll_ctl(epoll, EPOLL_CTL_DEL, listener, NULL);
            close(listener);
            listening = false;
        }
    }
    exit(EXIT_SUCCESS);
}

static volatile uint64_t *map_counts(const struct options *options)
{
    char path[4096];
    size_t size = (size_t)options->workers * CELLS_PER_WORKER * sizeof(uint64_t);
    void *counts;
    int fd;

    snprintf(path, sizeof path, "%s/count", options->log_dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        fail(path);
    counts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counts == MAP_FAILED)
        fail("mmap");
    close(fd);
    return counts;
}

int main(int argc, char **argv)
{
    struct options options = parse_options(argc, argv);
    static int listeners[MAX_WORKERS];
    static pid_t workers[MAX_WORKERS];
    volatile uint64_t *counts = map_counts(&options);
    pid_t master = getpid();
    struct sigaction only_exits = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
    sigset_t ends;
    int signal_number;
    int bound[2]; /* each worker writes a byte here when it dies with the master */
    char byte;

    /* The master sleeps in sigwait() until it is told to end, or a worker has ended by itself. */
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    sigaction(SIGCHLD, &only_exits, NULL); /* a worker may be stopped and continued */
    die_with(getppid());
    open_listeners(&options, listeners, SOCK_NONBLOCK);
    if (pipe2(bound, O_CLOEXEC) < 0)
        fail("pipe2");
    for (int i = 0; i < options.workers; i++) {
        workers[i] = fork();
        if (workers[i] < 0)
            fail("fork");
        if (workers[i] == 0) {
            die_with(master);
            if (write(bound[1], "", 1) != 1)
                fail("write");
            close(bound[0]);
            close(bound[1]);
            serve(listeners[i], !options.reuseport, counts + i * CELLS_PER_WORKER);
        }
    }
    close(bound[1]);
    for (int i = 0; i < options.workers; i++)
        if (read(bound[0], &byte, 1) != 1)
            exit(EXIT_FAILURE); /* that worker has said why */
    close(bound[0]);
    say_ready(&options);
    sigwait(&ends, &signal_number);
    for (int i = 0; i < options.workers; i++)
        close(listeners[i]); /* one and the same, or one each */
    for (int i = 0; i < options.workers; i++) {
        kill(workers[i], SIGTERM);
        kill(workers[i], SIGCONT); /* it may be stopped */
    }
    while (wait(NULL) > 0)
        continue;
    return signal_number == SIGCHLD ? EXIT_FAILURE : EXIT_SUCCESS;
}
