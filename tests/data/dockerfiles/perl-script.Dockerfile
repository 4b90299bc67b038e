FROM perl:5.38-slim
COPY --chmod=0755 report.pl /usr/local/bin/report
ENV LANG C.UTF-8
ENTRYPOINT ["report"]
CMD ["--help"]
