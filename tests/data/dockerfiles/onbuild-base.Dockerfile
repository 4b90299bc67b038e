FROM node:20
WORKDIR /usr/src/app
ONBUILD ARG NODE_ENV
ONBUILD ENV NODE_ENV $NODE_ENV
ONBUILD COPY --chown=node:node package.json /usr/src/app/
ONBUILD RUN npm install && npm cache clean --force
ONBUILD COPY . /usr/src/app
ONBUILD RUN <<EOF
echo "installed for $NODE_ENV"
EOF
CMD [ "npm", "start" ]
