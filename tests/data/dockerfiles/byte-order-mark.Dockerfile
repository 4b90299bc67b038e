# escape=`
FROM busybox:1.36
RUN echo a `
 && echo b
LABEL name="größe" sign=☃
