FROM alpine:3.20
ARG PORT=8080
COPY <<app.conf <<-'notes.txt' /etc/app/
port = ${PORT}
name = "$NAME"
app.conf
	costs $5
	notes.txt
ADD --chmod=755 <<"run.sh" /usr/local/bin/run
#!/bin/sh
exec "$@"
run.sh
ENTRYPOINT ["run"]
