# check=skip=JSONArgsRecommended,UntaggedBaseImage;experimental=InvalidDefinitionDescription
# VERSION is the release to build
ARG VERSION=1
# not a description
FROM busybox AS app
# check=skip=LegacyKeyValueFormat
ENV a b
ENV c d
CMD sh
