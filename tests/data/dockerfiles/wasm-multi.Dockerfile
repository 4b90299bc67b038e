# syntax=docker/dockerfile:1.7
FROM --platform=$BUILDPLATFORM rust:1.79 AS build
RUN rustup target add wasm32-wasip1
COPY . /src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=bind,source=Cargo.lock,target=/tmp/Cargo.lock,readonly \
    cd /src && cargo build --release --target wasm32-wasip1
FROM scratch
COPY --from=build /src/target/wasm32-wasip1/release/app.wasm /app.wasm
ENTRYPOINT ["/app.wasm"]
