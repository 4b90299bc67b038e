/* The guest's interfaces: found by their hardware address, named, addressed and routed. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"

struct request {
    struct nlmsghdr header;
    union { struct ifaddrmsg address; struct rtmsg route; } body;
    char rest[256];
};

struct target { int family, length, prefix; unsigned char bytes[16]; };

/* "ADDRESS" or "ADDRESS/PREFIX"; 0 when it is neither. */
static int parse(const char *text, struct target *out)
{
    char copy[64], *slash;
    snprintf(copy, sizeof copy, "%s", text);
    slash = strchr(copy, '/');
    if (slash)
        *slash++ = 0;
    out->family = strchr(copy, ':') ? AF_INET6 : AF_INET;
    out->length = out->family == AF_INET ? 4 : 16;
    out->prefix = slash ? atoi(slash) : out->length * 8;
    return inet_pton(out->family, copy, out->bytes) == 1;
}

static void add(struct request *request, int type, const void *data, int length)
{
    struct rtattr *at = (struct rtattr *)((char *)request + NLMSG_ALIGN(request->header.nlmsg_len));
    at->rta_type = (unsigned short)type;
    at->rta_len = (unsigned short)RTA_LENGTH(length);
    memcpy(RTA_DATA(at), data, (size_t)length);
    request->header.nlmsg_len = NLMSG_ALIGN(request->header.nlmsg_len) + RTA_ALIGN(at->rta_len);
}

/* Sends one request and waits for its acknowledgement; the errno, 0 if it is done. */
static int ask(struct request *request)
{
    struct { struct nlmsghdr header; struct nlmsgerr error; char rest[512]; } answer;
    int channel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), wrong = EIO;
    request->header.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    if (channel >= 0 && send(channel, request, request->header.nlmsg_len, 0) > 0
        && recv(channel, &answer, sizeof answer, 0) > 0
        && answer.header.nlmsg_type == NLMSG_ERROR)
        wrong = -answer.error.error;
    close(channel);
    return wrong;
}

static int add_address(unsigned index, const char *text)
{
    struct request request = {0};
    struct target target;
    if (!parse(text, &target))
        return EINVAL;
    request.header.nlmsg_len = NLMSG_LENGTH(sizeof request.body.address);
    request.header.nlmsg_type = RTM_NEWADDR;
    request.header.nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
    request.body.address.ifa_family = (unsigned char)target.family;
    request.body.address.ifa_prefixlen = (unsigned char)target.prefix;
    request.body.address.ifa_flags = target.family == AF_INET6 ? IFA_F_NODAD : 0;
    request.body.address.ifa_index = index;
    add(&request, IFA_LOCAL, target.bytes, target.length);
    add(&request, IFA_ADDRESS, target.bytes, target.length);
    return ask(&request);
}

static int add_route(unsigned index, const char *destination, const char *gateway)
{
    struct request request = {0};
    struct target to, via;
    if (!parse(destination, &to) || (*gateway && !parse(gateway, &via)))
        return EINVAL;
    request.header.nlmsg_len = NLMSG_LENGTH(sizeof request.body.route);
    request.header.nlmsg_type = RTM_NEWROUTE;
    request.header.nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
    request.body.route.rtm_family = (unsigned char)to.family;
    request.body.route.rtm_dst_len = (unsigned char)to.prefix;
    request.body.route.rtm_table = RT_TABLE_MAIN;
    request.body.route.rtm_protocol = RTPROT_BOOT;
    request.body.route.rtm_scope = *gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    request.body.route.rtm_type = RTN_UNICAST;
    if (to.prefix)
        add(&request, RTA_DST, to.bytes, to.length);
    if (*gateway)
        add(&request, RTA_GATEWAY, via.bytes, via.length);
    add(&request, RTA_OIF, &index, sizeof index);
    return ask(&request);
}

static void set_name(const char *old, const char *name)
{
    struct ifreq request = {0};
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(request.ifr_name, old, IFNAMSIZ - 1);
    strncpy(request.ifr_newname, name, IFNAMSIZ - 1);
    ioctl(control, SIOCSIFNAME, &request);
    close(control);
}

void raise_interface(const char *name, int mtu)
{
    struct ifreq request = {0};
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (mtu) {
        request.ifr_mtu = mtu;
        ioctl(control, SIOCSIFMTU, &request);
    }
    ioctl(control, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    ioctl(control, SIOCSIFFLAGS, &request);
    close(control);
}

static int has_address(const char *name, const char *mac)
{
    char path[300], text[64] = "";
    int descriptor;
    snprintf(path, sizeof path, "/sys/class/net/%s/address", name);
    descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return 0;
    if (read(descriptor, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(descriptor);
    return strncasecmp(text, mac, 17) == 0;
}

/* Gives the interface with that hardware address its name; whoever has it gets another one. */
static int claim(const char *name, const char *mac)
{
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    char found[IFNAMSIZ] = "";
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] != '.' && has_address(entry->d_name, mac))
            snprintf(found, sizeof found, "%.15s", entry->d_name);
    if (directory)
        closedir(directory);
    if (!*found)
        return 0;
    if (strcmp(found, name)) {
        char other[IFNAMSIZ];
        snprintf(other, sizeof other, "was%u", if_nametoindex(name));
        if (if_nametoindex(name))
            set_name(name, other);
        set_name(found, name);
    }
    return 1;
}

static int apply(unsigned index, const char *item)
{
    const char *rest = item + 2, *via;
    char destination[64];
    switch (*item) {
    case 'a':
        return add_address(index, rest);
    case 'g':
        return add_route(index, strchr(rest, ':') ? "::/0" : "0.0.0.0/0", rest);
    case 'r':
        via = strchr(rest, ' ');
        snprintf(destination, sizeof destination, "%.*s", (int)(via - rest), rest);
        return add_route(index, destination, via + 1);
    default:
        return EINVAL;
    }
}

/* "NAME\0MAC\0MTU\0ipv6?\0" and then "a ADDRESS/PREFIX", "g GATEWAY", "r DESTINATION GATEWAY". */
const char *set_network(struct field *field)
{
    char *end = field->value + field->length, *words[4], *at = field->value;
    char path[128];
    unsigned index;
    for (int i = 0; i < 4; i++) {
        if (at >= end)
            return "a network interface is not described";
        words[i] = at;
        at += strlen(at) + 1;
    }
    load_later("failover", "net_failover", "virtio_net", NULL);
    if (!claim(words[0], words[1]))
        return sentence("there is no network interface %s", words[1]);
    if (*words[3] != '1') {
        snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", words[0]);
        write_file(path, "1", 1);
    }
    raise_interface(words[0], atoi(words[2]));
    index = if_nametoindex(words[0]);
    for (; at < end; at += strlen(at) + 1) {
        int wrong = apply(index, at);
        if (wrong && wrong != EEXIST)
            return sentence("cannot set up %s (%s): %s", words[0], at, strerror(wrong));
    }
    return NULL;
}
