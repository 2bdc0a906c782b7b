/* What the reference servers share: argv, listeners on 127.0.0.1, the parent's death.
 *
 * argv: PORT-or-0 WORKERS inherit|reuseport LOG_DIR [WORK_US]. The one line on stdout, `ready ADDRESS`, is
 * printed when every worker can be connected to. SIGTERM lets the server finish what it has
 * accepted and exit 0; its parent's death kills it. */
#ifndef PEERS_SERVER_H
#define PEERS_SERVER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096, MAX_WORKERS = 512, MAX_NAME_BYTES = 4096, CLIENT_TIMEOUT_S = 10 };

struct options {
    int port;
    int workers;
    bool reuseport;
    const char *log_dir;
    double work_us; /* exponential, on average, that a greeting keeps its worker */
};

static inline void fail(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

/* By SIGKILL, which also ends a stopped process. A parent that died before prctl() would never be
 * noticed, hence the second look. */
static inline void die_with(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        fail("prctl");
    if (getppid() != parent)
        exit(EXIT_FAILURE);
}

static inline struct options parse_options(int argc, char **argv)
{
    struct options options = {0};
    bool complete = argc == 5 || argc == 6;
    bool inherit = complete && strcmp(argv[3], "inherit") == 0;

    if (complete) {
        options.port = atoi(argv[1]);
        options.workers = atoi(argv[2]);
        options.reuseport = strcmp(argv[3], "reuseport") == 0;
        options.log_dir = argv[4];
        options.work_us = argc == 6 ? atof(argv[5]) : 0;
    }
    if (options.workers < 1 || options.workers > MAX_WORKERS || (!inherit && !options.reuseport)) {
        fprintf(stderr, "usage: %s PORT-or-0 WORKERS inherit|reuseport LOG_DIR [WORK_US]\n", argv[0]);
        exit(2);
    }
    return options;
}

static inline int open_listener(int *port, bool reuseport, int type_flags)
{
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type_flags, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t length = sizeof address;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0)
        fail("socket");
    if (reuseport && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0)
        fail("SO_REUSEPORT");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0)
        fail("bind");
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        fail("getsockname");
    *port = ntohs(address.sin_port);
    return fd;
}

/* One listener for all, or one for each. */
static inline void open_listeners(struct options *options, int *listeners, int type_flags)
{
    for (int i = 0; i < options->workers; i++)
        listeners[i] = i > 0 && !options->reuseport
                           ? listeners[0]
                           : open_listener(&options->port, options->reuseport, type_flags);
}

static inline void say_ready(const struct options *options)
{
    printf("ready 127.0.0.1:%d\n", options->port);
    fflush(stdout);
}

#endif
