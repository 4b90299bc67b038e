FROM busybox:1.36
MAINTAINER Someone
ENV PATH /opt/bin:$PATH
ENV KEY value  with   spaces
LABEL key value
ADD http://example.com/x /x
CMD echo   "kept   as   is"
