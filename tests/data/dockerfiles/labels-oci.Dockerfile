FROM alpine:3.20
ARG VERSION=dev REVISION CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Example" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created=$CREATED
LABEL com.example.note This is the old form
