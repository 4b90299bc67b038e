FROM alpine:3.20
RUN addgroup -S -g 1000 redis && adduser -S -G redis -u 999 redis
RUN apk add --no-cache 'su-exec>=0.2' tzdata
ENV REDIS_VERSION=7.2.5 REDIS_SHA=5981179706f8391f03be91d951acafaeda91af7fac56beffb2701963103e423d
RUN set -eux; \
	\
	apk add --no-cache --virtual .build-deps gcc make musl-dev; \
	wget -O redis.tar.gz "https://example.com/redis-${REDIS_VERSION}.tar.gz"; \
	echo "$REDIS_SHA *redis.tar.gz" | sha256sum -c -; \
	apk del --no-network .build-deps
RUN mkdir /data && chown redis:redis /data
VOLUME /data
WORKDIR /data
COPY docker-entrypoint.sh /usr/local/bin/
ENTRYPOINT ["docker-entrypoint.sh"]
EXPOSE 6379
CMD ["redis-server"]
