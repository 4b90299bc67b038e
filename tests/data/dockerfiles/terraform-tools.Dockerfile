FROM alpine:3.20 AS fetch
ARG TERRAFORM=1.8.5
ARG TARGETARCH
RUN apk add --no-cache curl unzip \
 && curl -fsSLO "https://example.com/terraform_${TERRAFORM}_linux_${TARGETARCH}.zip" \
 && unzip "terraform_${TERRAFORM}_linux_${TARGETARCH}.zip" -d /out
FROM alpine:3.20
COPY --from=fetch --chmod=0555 /out/terraform /usr/local/bin/terraform
RUN adduser -D -u 1000 tf
USER tf
WORKDIR /home/tf
ENTRYPOINT ["terraform"]
