FROM debian:bookworm AS src
ARG KVER=6.6.30
ADD https://example.com/linux-${KVER}.tar.xz /usr/src/
RUN tar -C /usr/src -xf /usr/src/linux-${KVER}.tar.xz
FROM src AS config
WORKDIR /usr/src/linux-${KVER}
COPY config .config
RUN make olddefconfig
FROM config AS build
ARG JOBS
RUN make -j${JOBS:-$(nproc)} bzImage
FROM scratch AS export
ARG KVER
COPY --from=build /usr/src/linux-${KVER:-6.6.30}/arch/x86/boot/bzImage /vmlinuz
