// The certified OpenID Connect server oidc-provider with some clients, and a login already done for
// most of them. Arguments: the port, the PEM file with certificate and key, and the folder that
// gets a token file NAME.json for each login; the last one is written when the server listens.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import * as module from 'oidc-provider';

const [port, pem, folder] = process.argv.slice(2);
const Provider = module.Provider ?? module.default;
const client = (client_id, method, client_secret) => ({
  client_id,
  client_secret,
  token_endpoint_auth_method: method,
  application_type: 'native',
  grant_types: ['authorization_code', 'refresh_token'],
  redirect_uris: ['http://127.0.0.1/callback'],
});
const provider = new Provider(`https://localhost:${port}`, {
  clients: [
    client('public', 'none'),
    client('secret-in-form', 'client_secret_post', 'form secret: +/=&%~'),
    client('secret in header:+', 'client_secret_basic', 'basic secret: +/=&%~'),
    client('without-rotation', 'client_secret_post', 'form secret: +/=&%~'),
    {
      ...client('job', 'client_secret_basic', 'job secret: +/=&%~'),
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    },
  ],
  features: { clientCredentials: { enabled: true }, introspection: { enabled: true } },
  rotateRefreshToken: (context) => context.oidc.client.clientId !== 'without-rotation',
  findAccount: (_, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
});

// What a login in a browser leaves behind: a grant and its first refresh token.
async function logIn(name, clientId) {
  const grant = new provider.Grant({ accountId: 'user', clientId });
  grant.addOIDCScope('openid offline_access');
  const refreshToken = new provider.RefreshToken({
    accountId: 'user',
    client: await provider.Client.find(clientId),
    grantId: await grant.save(),
    gty: 'authorization_code',
    scope: 'openid offline_access',
  });
  const document = { refresh_token: await refreshToken.save(), note: 'kept' };
  writeFileSync(`${folder}/${name}.new`, `${JSON.stringify(document, null, 2)}\n`);
  renameSync(`${folder}/${name}.new`, `${folder}/${name}.json`);
}

const tls = { cert: readFileSync(pem), key: readFileSync(pem) };
createServer(tls, provider.callback()).listen(Number(port), '127.0.0.1', async () => {
  await logIn('public', 'public');
  await logIn('form', 'secret-in-form');
  await logIn('basic', 'secret in header:+');
  await logIn('without-rotation', 'without-rotation');
  await logIn('copied', 'public');
  await logIn('last', 'public');
});
