// google-auth-library at work on a token file; arguments and output are those of libraries.py.
import { readFileSync, writeFileSync } from 'node:fs';
import { OAuth2Client } from 'google-auth-library';

const [action, issuer, path] = process.argv.slice(2);
const token = JSON.parse(readFileSync(path, 'utf8'));
const save = (value) => writeFileSync(path, JSON.stringify(value, null, 2));
const client = new OAuth2Client({
  clientId: 'without-rotation',
  clientSecret: 'form secret: +/=&%~',
  endpoints: { oauth2TokenUrl: `${issuer}/token` },
});
let renewed = false;
client.on('tokens', () => (renewed = true));

if (action === 'renew') {
  client.setCredentials(token);
  await client.getAccessToken();
  save(client.credentials);
  console.log(renewed ? 'renewed' : 'still valid');
} else {
  if (action === 'age') save({ ...token, expiry_date: (token.expiry_date -= 4000_000) });
  // Without a refresh token the library says what it would do.
  client.setCredentials({ ...token, refresh_token: undefined });
  try {
    const { data } = await client.request({ url: `${issuer}/me` });
    console.log(`valid: ${data.sub}`);
  } catch (error) {
    console.log(/refresh token/.test(error.message) ? 'expired' : error.message);
  }
}
