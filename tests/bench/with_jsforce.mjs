// What a user writes with jsforce. Arguments: endpoint, token file; roots in NODE_EXTRA_CA_CERTS.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import jsforce from 'jsforce';

const [endpoint, path] = process.argv.slice(2);
const token = JSON.parse(readFileSync(path, 'utf8'));
const loginUrl = new URL(endpoint).origin;
const oauth2 = new jsforce.OAuth2({ clientId: 'CONSUMER_KEY', loginUrl });
Object.assign(token, await oauth2.refreshToken(token.refresh_token));
writeFileSync(`${path}.new`, `${JSON.stringify(token, null, 2)}\n`);
renameSync(`${path}.new`, path);
console.log(token.access_token);
