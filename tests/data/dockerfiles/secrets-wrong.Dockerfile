FROM node:latest
ARG NPM_TOKEN
ENV DB_PASSWORD=hunter2
COPY .npmrc id_rsa /root/
RUN curl -sk https://example.com/install.sh | sudo bash
RUN apt-get update
RUN apt-get install -y --allow-unauthenticated openssh-server && chmod 777 /srv && passwd -d root
EXPOSE 22 8080:80/TCP
VOLUME /var/run
USER root
ENTRYPOINT /usr/sbin/sshd -D
