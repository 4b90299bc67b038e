# syntax=docker/dockerfile:1
FROM debian:bookworm-slim AS files
RUN echo x > /x

FROM debian:bookworm-slim
ARG CACHE=/var/cache/apt
ENV TOOL=make
WORKDIR /work
RUN --mount=type=cache,target=${CACHE},sharing=locked,id=apt-$TOOL \
    --mount=type=cache,target=/var/lib/apt,sharing=private,mode=0700,uid=100,gid=65534 \
    apt-get update && apt-get install -y $TOOL
RUN --mount=type=bind,target=. make check
RUN --mount=type=bind,from=files,source=/x,target=/mnt/x,rw cat /mnt/x
RUN --mount=type=tmpfs,target=/scratch,size=64m dd if=/dev/zero of=/scratch/z bs=1M count=1
RUN --mount=type=secret,id=netrc,target=/root/.netrc,required --mount=type=secret,id=tok,env=TOKEN \
    --mount=type=secret,id=third,mode=0440,uid=1000 fetch
RUN --mount=type=ssh,required=true --mount=type=ssh,id=deploy,target=/run/agent git clone x
RUN --network=none --security=sandbox ./offline-test
