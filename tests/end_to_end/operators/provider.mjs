// A certified OpenID Connect provider (npm: oidc-provider) with the settings of the test that starts it:
// node provider.mjs SETTINGS.json
import { readFileSync } from 'node:fs';
import Provider from 'oidc-provider';

const settings = JSON.parse(readFileSync(process.argv[2]));
const grants = ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'];
const client = (id, alg) => ({
  client_id: id,
  token_endpoint_auth_method: 'none',
  application_type: 'native',
  redirect_uris: ['http://127.0.0.1/callback'],
  grant_types: grants,
  response_types: ['code'],
  id_token_signed_response_alg: alg,
});
const provider = new Provider(settings.issuer, {
  clients: Object.entries(settings.clients).map(([id, alg]) => client(id, alg)),
  jwks: { keys: settings.keys },
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA', 'Ed25519', 'PS256'] },
  claims: { openid: ['sub'], profile: ['name', 'groups'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false,
  cookies: { keys: ['of this test'] },
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
  },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, ...settings.people[id] }) }),
  issueRefreshToken: async () => true,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: {
    IdToken: 600, AccessToken: 600, RefreshToken: 3600, Grant: 3600, Session: 3600,
    Interaction: 600, AuthorizationCode: 60, DeviceCode: 600,
  },
});
provider.listen(settings.port, '127.0.0.1');
