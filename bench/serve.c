/* An HTTP server for the benchmark of published ports: one process, epoll, keep-alive, and the
 * same short answer to each request. It understands of HTTP that an empty line ends a request.
 *
 * serve PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char ANSWER[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhere\n";

int main(int argc, char **argv)
{
    if (argc != 2)
        errx(2, "usage: serve PORT");
    int on = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (server < 0 || bind(server, (struct sockaddr *)&where, sizeof where) || listen(server, 512))
        err(1, "cannot listen");
    int poll = epoll_create1(0);
    struct epoll_event told[64], event = {.events = EPOLLIN, .data.fd = server};
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &event);
    if (write(1, "ready\n", 6) != 6)
        return 1;
    for (;;) {
        int count = epoll_wait(poll, told, 64, -1);
        for (int i = 0; i < count; i++) {
            int one = told[i].data.fd;
            if (one == server) {
                while ((one = accept4(server, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    event.data.fd = one;
                    epoll_ctl(poll, EPOLL_CTL_ADD, one, &event);
                }
                continue;
            }
            char request[4096];
            ssize_t had = read(one, request, sizeof request);
            if (had < 0 && errno == EAGAIN)
                continue;
            if (had < 4 || memcmp(request + had - 4, "\r\n\r\n", 4) ||
                write(one, ANSWER, sizeof ANSWER - 1) < 0)
                close(one);
        }
    }
}
