FROM postgres:16-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      build-essential \
      postgresql-server-dev-16 \
 && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN make -C /src install DESTDIR=/out
FROM postgres:16-bookworm
COPY --from=build /out/ /
COPY initdb/*.sql /docker-entrypoint-initdb.d/
ENV POSTGRES_DB=app POSTGRES_INITDB_ARGS="--data-checksums --locale=C.UTF-8"
STOPSIGNAL SIGINT
