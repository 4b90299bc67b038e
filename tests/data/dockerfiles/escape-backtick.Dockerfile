# escape=`
FROM busybox:1.36
WORKDIR C:\data
ENV DIR=C:\tools`
    OTHER=`$HOME
COPY file.txt `
     C:\target\
RUN echo one && `
    echo two
