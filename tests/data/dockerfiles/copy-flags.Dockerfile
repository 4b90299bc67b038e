FROM alpine:3.20
COPY --link --chown=1000:1000 --chmod=u=rwX,go=rX src/ /app/
COPY --parents ./lib/./a/x.txt lib/*/y.txt /parents/
COPY --exclude=*.md --exclude=**/node_modules . /site/
COPY a.txt b?.txt [cd].txt /some/
COPY --from=alpine:3.19 --link=false /etc/alpine-release /old-release
COPY "quoted" 'single' /q/
