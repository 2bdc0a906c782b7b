/* Reference: a multi-threaded greeting server, one connection at a time per thread.
 *
 * Per connection: accept, recv to end-of-stream, one flushed "Hello, NAME" line (one write(2)),
 * close. Each thread owns its log file, LOG_DIR/worker-<n>.log. Blocking calls throughout.
 *
 * The log is plain text, not JSON: this is the yardstick that greeterd is held against. */
#include "server.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>

static atomic_bool ending;

struct worker {
    pthread_t thread;
    int listener;
    FILE *log;
    double work_us;
    unsigned short random[3];
};

/* Keep the worker for an exponential time. It sleeps, so that there may be more workers than CPUs:
 * what is looked at is who waits for whom, not what computing costs. */
static void work(struct worker *worker)
{
    double us = -worker->work_us * log1p(-erand48(worker->random));
    struct timespec pause = {.tv_sec = (time_t)(us / 1e6),
                             .tv_nsec = (long)(fmod(us, 1e6) * 1e3)};

    while (nanosleep(&pause, &pause) < 0 && errno == EINTR)
        ;
}

static void greet(struct worker *worker, int connection)
{
    char name[MAX_NAME_BYTES];
    size_t length = 0;
    ssize_t count;

    while (length < sizeof name &&
           (count = recv(connection, name + length, sizeof name - length, 0)) > 0)
        length += (size_t)count;
    if (length > 0 && name[length - 1] == '\n')
        length--;
    if (length == 0)
        return;
    if (worker->work_us > 0)
        work(worker);
    fprintf(worker->log, "Hello, %.*s\n", (int)length, name);
    fflush(worker->log);
}

static void *serve(void *argument)
{
    struct worker *worker = argument;

    while (!ending) {
        int connection = accept4(worker->listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) {
            if (!ending && errno != EINTR && errno != ECONNABORTED && errno != EAGAIN)
                fail("accept");
            continue;
        }
        greet(worker, connection);
        close(connection);
    }
    return NULL;
}

/* Accepted connections inherit it (Linux), so that no client can keep a thread. accept() wakes up
 * as often, and goes on. */
static void limit_waiting(int listener)
{
    struct timeval limit = {.tv_sec = CLIENT_TIMEOUT_S};

    if (setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
        fail("SO_RCVTIMEO");
}

int main(int argc, char **argv)
{
    struct options options = parse_options(argc, argv);
    static int listeners[MAX_WORKERS];
    static struct worker workers[MAX_WORKERS];
    sigset_t ends;
    int signal_number;

    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    die_with(getppid());
    open_listeners(&options, listeners, 0);
    for (int i = 0; i < options.workers; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/worker-%d.log", options.log_dir, i + 1);
        limit_waiting(listeners[i]);
        workers[i].listener = listeners[i];
        workers[i].work_us = options.work_us;
        workers[i].random[0] = (unsigned short)(i + 1);
        workers[i].log = fopen(path, "ae");
        if (workers[i].log == NULL)
            fail(path);
        if (pthread_create(&workers[i].thread, NULL, serve, &workers[i]) != 0)
            fail("pthread_create");
    }
    say_ready(&options);
    sigwait(&ends, &signal_number);
    ending = true;
    for (int i = 0; i < options.workers; i++)
        shutdown(listeners[i], SHUT_RD); /* wakes whoever waits in accept() */
    for (int i = 0; i < options.workers; i++)
        pthread_join(workers[i].thread, NULL);
    return EXIT_SUCCESS;
}
