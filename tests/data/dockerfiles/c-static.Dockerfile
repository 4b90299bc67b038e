# syntax=docker/dockerfile:1
FROM gcc:13-bookworm AS build
WORKDIR /src
COPY Makefile *.c *.h ./
RUN make CFLAGS="-O2 -static" && strip hello

FROM scratch
COPY --from=build /src/hello /hello
ENTRYPOINT ["/hello"]
