ARG ELIXIR=1.16.2
ARG OTP=26.2
ARG BUILDER="elixir:${ELIXIR}-otp-${OTP%.*}"
ARG RUNNER="debian:bookworm-slim"
FROM ${BUILDER} AS builder
ENV MIX_ENV=prod
WORKDIR /app
COPY mix.exs mix.lock ./
RUN mix deps.get --only $MIX_ENV
COPY lib lib
RUN mix release

FROM ${RUNNER}
ENV LANG=en_US.UTF-8 LANGUAGE=en_US:en
COPY --from=builder --chown=nobody:root /app/_build/prod/rel/app /app
USER nobody
CMD ["/app/bin/server"]
