/* Reference: a multi-threaded greeting server, one connection at a time per thread.
 *
 * Per connection: accept, recv to end-of-stream, one flushed "Hello, NAME" line (one write(2)),
 * close. Each thread owns its log file, LOG_DIR/worker-<n>.log. Blocking calls throughout. */
#include "server.h"

#include <pthread.h>

struct worker {
    pthread_t thread;
    int listener;
    FILE *log;
};

static void greet(FILE *log, int connection)
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
    fprintf(log, "Hello, %.*s\n", (int)length, name);
    fflush(log);
}

static void *serve(void *argument)
{
    struct worker *worker = argument;

    for (;;) {
        int connection = accept4(worker->listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) {
            if (errno != EINTR && errno != ECONNABORTED)
                fail("accept");
            continue;
        }
        greet(worker->log, connection);
        close(connection);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct options options = parse_options(argc, argv);
    static int listeners[MAX_WORKERS];
    static struct worker workers[MAX_WORKERS];

    die_with(getppid());
    open_listeners(&options, listeners, 0);
    for (int i = 0; i < options.workers; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/worker-%d.log", options.log_dir, i + 1);
        workers[i].listener = listeners[i];
        workers[i].log = fopen(path, "ae");
        if (workers[i].log == NULL)
            fail(path);
        if (pthread_create(&workers[i].thread, NULL, serve, &workers[i]) != 0)
            fail("pthread_create");
    }
    pthread_join(workers[0].thread, NULL); /* never: SIGTERM ends the process */
    return EXIT_SUCCESS;
}
