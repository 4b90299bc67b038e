FROM alpine:3.20
ARG SUM=24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d
ADD --checksum=sha256:${SUM} https://example.com/file.txt /files/
ADD rootfs.tar.xz /
ADD --unpack=false data.tar.gz /archives/
ADD --unpack=true https://example.com/pkg.tgz /pkg/
ADD --keep-git-dir=true https://example.com/repo.git#v1.0:sub /src
ADD --chown=root:root --chmod=644 --link --exclude=*.tmp conf/ /etc/app/
