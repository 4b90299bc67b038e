FROM busybox:1.36
SHELL ["/bin/ash", "-eo", "pipefail", "-c"]
RUN ["echo", "json", "\u00e9\t\"quoted\""]
RUN ['single', 'quotes', 'are', 'shell']
RUN [ -d /tmp ] && echo bracket
CMD ["unterminated"
ENTRYPOINT []
VOLUME ["/with space", "/b"]
VOLUME /c /d
COPY ["with space.txt", "/dst dir/"]
