#!/not/a/directive
# escape=`
# That line was no directive, for it was not the first.

  # indented comment
FROM busybox:1.36
RUN echo a \
# a comment inside
    && echo b \
    # an indented one inside

    && echo c
# the last line ends without a newline
CMD ["sh"] # not a comment in shell form: JSON is broken by it