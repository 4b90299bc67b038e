FROM alpine:3.20 AS web
HEALTHCHECK --interval=1m30s --timeout=10s --retries=5 --start-period=1h --start-interval=500ms \
  CMD wget -q -O /dev/null http://localhost/ || exit 1
FROM web AS none
HEALTHCHECK NONE
FROM web
healthcheck cmd ["/bin/true"]
