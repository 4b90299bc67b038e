FROM busybox:1.36
RUN echo a && \
    echo b
COPY <<EOF /x
line
EOF
CMD ["sh"]
