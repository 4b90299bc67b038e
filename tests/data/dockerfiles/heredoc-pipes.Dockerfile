FROM alpine:3.20
RUN cat <<ONE - <<TWO > /both 3<<THREE
first
ONE
second # no comment
TWO
third
THREE
RUN echo "<<NOT" && echo done <<<'not either' || true
CMD ["cat", "/both"]
