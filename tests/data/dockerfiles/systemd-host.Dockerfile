FROM debian:bookworm
ENV container=docker
RUN apt-get update && apt-get install -y --no-install-recommends systemd && \
    rm -f /lib/systemd/system/multi-user.target.wants/* \
      /etc/systemd/system/*.wants/*
VOLUME [ "/sys/fs/cgroup" ]
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
