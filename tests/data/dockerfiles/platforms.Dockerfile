FROM --platform=$BUILDPLATFORM alpine:3.20 AS tools
ARG BUILDARCH TARGETPLATFORM TARGETVARIANT
RUN echo "$BUILDARCH -> $TARGETPLATFORM $TARGETVARIANT" > /info
FROM --platform=linux/arm64 alpine:3.20 AS arm64-only
FROM --platform=${TARGETPLATFORM:-linux/amd64} alpine:3.20
COPY --from=tools /info /
