"""Names that are known: Docker's official images, common publishers, common registries.

The official names are those of docker-library/official-images as of 2026-08-21. Being in a list
says that the name is what many people mean, not that its content is good: that is what signatures
are for (``verdict``).

Not for: names that one site knows; those come from its configuration.
"""

from __future__ import annotations

from typing import Final

OFFICIAL: Final = frozenset(
    """
    adminer aerospike almalinux alpine alt amazoncorretto amazonlinux api-firewall arangodb
    archlinux azul-zulu backdrop bash bonita buildpack-deps busybox caddy cassandra chronograf
    cirros clearlinux clefos clickhouse clojure composer convertigo couchbase couchdb crate dart
    debian docker drupal eclipse-mosquitto eclipse-temurin eggdrop elasticsearch elixir emqx
    erlang espocrm fedora flink fluentd friendica gazebo gcc geonetwork ghost golang gradle
    groovy haproxy haskell haxe hello-world hitch httpd hylang ibm-semeru-runtimes ibmjava
    influxdb irssi jetty joomla jruby julia kapacitor kibana kong krakend lightstreamer
    liquibase logstash mageia mariadb matomo maven mediawiki memcached mongo mongo-express
    monica mysql nats neo4j neurodebian nextcloud nginx nim node notary odoo open-liberty
    openjdk oraclelinux orientdb percona perl photon php php-zendserver phpmyadmin plone
    postfixadmin postgres pypy python r-base rabbitmq rakudo-star redis redmine registry
    rethinkdb rocket.chat rockylinux ros ruby rust sapmachine satosa silverpeas solr sonarqube
    spark spiped storm swift swipl teamspeak telegraf tomcat tomee traefik ubuntu unit varnish
    websphere-liberty wordpress xwiki yourls znc zookeeper
    """.split()  # noqa: SIM905  # a list of this length is read as words
)

ARCHIVED: Final = frozenset(
    """
    adoptopenjdk celery centos consul couchdb-nouveau crux django docker-dev euleros
    express-gateway fsharp glassfish hello-seattle hipache hola-mundo iojs java jenkins jobber
    kaazing-gateway known lightstreamer-server mono mosquitto nats-streaming notary-server
    notary-signer nuxeo opensuse owncloud piwik rails rapidoid sentry sl sourcemage swarm thrift
    ubuntu-debootstrap ubuntu-upstart vault zend-php
    """.split()  # noqa: SIM905
)
"""Official once: still to be had, maintained by nobody."""

INSTEAD: Final = {
    "adoptopenjdk": "eclipse-temurin",
    "centos": "almalinux or rockylinux",
    "consul": "hashicorp/consul",
    "java": "eclipse-temurin",
    "jenkins": "jenkins/jenkins",
    "mosquitto": "eclipse-mosquitto",
    "opensuse": "opensuse/leap",
    "sentry": "getsentry/sentry",
    "vault": "hashicorp/vault",
}
"""What to use in the place of some of them."""

PUBLISHERS: Final = frozenset(
    """
    airbyte alpine amd64 apache appwrite aquasec argoproj arm32v6 arm32v7 arm64v8 atlassian
    authelia balena balenalib bitnami bitnamicharts bitnamilegacy bitwarden blacktop budibase
    buildkite calico cilium circleci clamav clickhouse cloudflare cockroachdb codeception
    codercom collabora confluentinc containrrr continuumio coredns cypress datadog dbeaver
    debezium directus dockage docker dockerswarm dpage eclipse elastic emberstack envoyproxy
    esphome etherpad excalidraw fluent flyway foundry frrouting gitea gitlab goharbor golangci
    google googlecontainer gotenberg gotify grafana graphiteapp graylog guacamole hadolint
    hashicorp haskell haugene homeassistant homebridge huginn i386 immich influxdata istio itzg
    jaegertracing jboss jellyfin jenkins jetbrains jgraph jitsi jupyter jupyterhub k3sprod
    kalilinux kasmweb keycloak kindest kiwigrid koenkk kong kubernetesui lansible library
    librenms lightbend linuxserver listmonk localstack loftsh louislam mailcow mailhog mailu
    matomo matrixdotorg mattermost maven mcp meilisearch metabase metallb microsoft milvusdb
    minio mips64le mitmproxy mlflow moby mockserver n8nio nats natsio neo4j netboxcommunity
    netdata nextcloud nginx nginxinc nginxproxy nocodb nodered nvidia ollama onlyoffice
    openapitools openpolicyagent openproject openresty opensearchproject opentelemetry openvpn
    openzipkin oracle osixia outlinewiki owasp owncloud paperlessngx percona phpipam pihole
    pingcap plantuml plexinc portainer postgis postgrest ppc64le prefecthq prom
    prometheuscommunity provectuslabs puppet pytorch qdrant qmcgaw quay rabbitmqoperator rancher
    rapid7 redhat redis redislabs renovate restic riscv64 rocker rockylinux rundeck rustlang
    s390x saltstack sameersbn schemaspy scylladb selenium semgrep sentry sickcodes signoz
    sonarsource sonatype sourcegraph spotify squidfunk statsd strapi streamlit supabase
    swaggerapi syncthing teamspeak tecnativa telegraf temporalio tensorflow teslamate thanosio
    timescale traefik trinodb tykio ubuntu umputun unbound vaultwarden vectordotdev verdaccio
    victoriametrics vimagick wallabag weaviate wiremock wodby woodpeckerci wurstmeister xwiki
    yandex zabbix zerotier
    """.split()  # noqa: SIM905
)
"""Namespaces of Docker Hub that many people use."""

REGISTRIES: Final = (
    "docker.io",
    "registry-1.docker.io",
    "index.docker.io",
    "ghcr.io",
    "quay.io",
    "gcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "registry.gitlab.com",
    "registry.k8s.io",
    "nvcr.io",
    "cgr.dev",
    "dhi.io",
    "docker.elastic.co",
    "registry.access.redhat.com",
    "registry.redhat.io",
    "icr.io",
    "lscr.io",
    "codeberg.org",
    "registry.suse.com",
    "container-registry.oracle.com",
    "registry.fedoraproject.org",
)

BELOW: Final = ("pkg.dev", "gcr.io", "dkr.ecr.amazonaws.com", "azurecr.io")
"""Domains below which every customer has a registry."""
