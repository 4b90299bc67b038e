FROM alpine:3.20 AS base
RUN apk add --no-cache ca-certificates
FROM base AS a
RUN echo a > /a
FROM base AS b
RUN echo b > /b
FROM base AS c
COPY --from=a /a /
COPY --from=b /b /
FROM base AS unused
RUN exit 1
FROM scratch AS test
COPY --from=c / /
RUN cat /a /b
FROM scratch
COPY --from=3 /a /b /out/
COPY --from=busybox:1.36 /bin/busybox /bin/
