FROM php:8.3-apache
RUN set -eux; \
	apt-get update; \
	apt-get install -y --no-install-recommends libpng-dev; \
	docker-php-ext-install -j "$(nproc)" gd; \
	rm -rf /var/lib/apt/lists/*
RUN { \
		echo 'opcache.memory_consumption=128'; \
		echo 'opcache.revalidate_freq=2'; \
	} > /usr/local/etc/php/conf.d/opcache.ini
COPY --chown=www-data . /var/www/html
VOLUME /var/www/html/uploads
