FROM haskell:9.6-slim AS build
WORKDIR /work
COPY stack.yaml package.yaml ./
RUN stack build --only-dependencies
COPY app/ app/
RUN stack install --local-bin-path /out

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgmp10 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
CMD ["app-exe"]
