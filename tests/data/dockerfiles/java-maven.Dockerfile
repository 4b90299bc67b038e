FROM maven:3.9-eclipse-temurin-21 AS build
WORKDIR /build
COPY pom.xml .
RUN mvn -B dependency:go-offline
COPY src src
RUN mvn -B package -DskipTests

FROM eclipse-temurin:21-jre
ARG JAR=app.jar
ENV JAVA_OPTS="-Xmx256m -XX:+UseSerialGC"
COPY --from=build /build/target/*.jar /opt/${JAR}
VOLUME ["/data", "/tmp"]
ENTRYPOINT exec java $JAVA_OPTS -jar /opt/app.jar
