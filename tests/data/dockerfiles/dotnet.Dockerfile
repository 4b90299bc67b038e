FROM dotnet-sdk:8.0 AS build
WORKDIR /source
COPY *.sln .
COPY app/*.csproj ./app/
RUN dotnet restore
COPY app/. ./app/
WORKDIR /source/app
RUN dotnet publish -c release -o /app --no-restore

FROM dotnet-aspnet:8.0
WORKDIR /app
COPY --from=build /app ./
ENTRYPOINT ["dotnet", "aspnetapp.dll"]
