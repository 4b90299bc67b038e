FROM app-onbuild:1
EXPOSE 3000
