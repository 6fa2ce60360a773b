// A certified OpenID provider (npm oidc-provider) for the interop tests. Reads one JSON command a
// line on standard input, answers one JSON line on standard output. Ends with its standard input.
//   {"do":"token","alg":"ES256","flow":"client_credentials"|"authorization_code","audience":"urn:..","ttl":60}
//   {"do":"rotate","overlap":true|false}
//   {"do":"backchannel","uri":"http://.."}   from now on the client `web` is told of logouts there
//   {"do":"logout"}                          ends the session of the last authorization_code; what the client said
import * as http from 'node:http';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// Standard output carries answers alone; the provider's notices would stand between them.
console.info = console.error;

const require = createRequire(`${process.env.PORTCULLIS_OIDC_PROVIDER_DIR}/index.js`);
const oidc = await import(pathToFileURL(require.resolve('oidc-provider')));

const ALGORITHMS = { RS256: ['rsa', { modulusLength: 2048 }], PS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }], EdDSA: ['ed25519', {}] };
const CALLBACK = 'http://127.0.0.1:9/callback';
const SECRET = randomBytes(24).toString('hex');
let ttl = 300;
let generation = 0;
let callback;
let keys = [];
let backchannel = {};
let told;
// The cookies of the last session.
let jar = new Map();

function freshKeys() {
  generation += 1;
  return Object.entries(ALGORITHMS).map(([alg, [type, options]]) => ({
    ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }),
    use: 'sig', alg, kid: `${alg}-${generation}`,
  }));
}

const server = http.createServer((request, response) => callback(request, response));
await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
const issuer = `http://127.0.0.1:${server.address().port}`;

function build(overlap) {
  keys = [...freshKeys(), ...(overlap ? keys : [])];
  const provider = new oidc.Provider(issuer, {
    jwks: { keys },
    cookies: { keys: ['interop'] },
    clients: [
      { client_id: 'service', client_secret: SECRET, redirect_uris: [], response_types: [], grant_types: ['client_credentials'] },
      { client_id: 'web', client_secret: SECRET, redirect_uris: [CALLBACK], response_types: ['code'], grant_types: ['authorization_code'], ...backchannel },
    ],
    scopes: ['openid', 'orders:read'],
    pkce: { required: () => true },
    enabledJWA: { idTokenSigningAlgValues: Object.keys(ALGORITHMS) },
    // Access tokens name their session, so that it can be ended.
    extraTokenClaims: async (_context, token) => (token.sid ? { sid: token.sid } : undefined),
    // The provider's own would not talk to loopback addresses.
    fetch: (url, { dispatcher: _, ...options }) => globalThis.fetch(url, options),
    findAccount: async (_context, sub) => ({ accountId: sub, claims: async () => ({ sub }) }),
    interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      backchannelLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: async () => true,
        getResourceServerInfo: async (_context, indicator) => ({
          scope: 'orders:read', audience: indicator.slice(0, indicator.lastIndexOf(':')), accessTokenTTL: ttl,
          accessTokenFormat: 'jwt', jwt: { sign: { alg: indicator.slice(indicator.lastIndexOf(':') + 1) } },
        }),
      },
    },
  });
  provider.use(async (context, next) => {
    if (!context.path.startsWith('/interaction/')) return next();
    const details = await provider.interactionDetails(context.req, context.res);
    const result = {};
    if (details.prompt.name === 'login') result.login = { accountId: 'alice' };
    else {
      const grant = new provider.Grant({ accountId: details.session.accountId, clientId: details.params.client_id });
      const missing = details.prompt.details;
      if (missing.missingOIDCScope) grant.addOIDCScope(missing.missingOIDCScope.join(' '));
      for (const [resource, scopes] of Object.entries(missing.missingResourceScopes ?? {})) grant.addResourceScope(resource, scopes.join(' '));
      result.consent = { grantId: await grant.save() };
    }
    return provider.interactionFinished(context.req, context.res, result, { mergeWithLastSubmission: true });
  });
  provider.on('backchannel.success', () => { told = { status: 'accepted' }; });
  provider.on('backchannel.error', (_context, error) => { told = { status: 'refused', error: String(error) }; });
  callback = provider.callback();
}

async function post(form, client) {
  const authorization = `Basic ${Buffer.from(`${client}:${SECRET}`).toString('base64')}`;
  const response = await fetch(`${issuer}/token`, { method: 'POST', headers: { authorization }, body: new URLSearchParams(form) });
  return response.json();
}

// As a browser would, as far as cookies go.
async function visit(url, options = {}) {
  const cookie = [...jar].map(([k, v]) => `${k}=${v}`).join('; ');
  const response = await fetch(url, { redirect: 'manual', ...options, headers: { cookie, ...options.headers } });
  for (const line of response.headers.getSetCookie()) {
    const [pair] = line.split(';');
    jar.set(pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1));
  }
  return response;
}

async function logout() {
  told = undefined;
  const page = await (await visit(`${issuer}/session/end`)).text();
  const [, xsrf] = /name="xsrf" value="([^"]+)"/.exec(page);
  await visit(`${issuer}/session/end/confirm`, { method: 'POST', body: new URLSearchParams({ xsrf, logout: 'yes' }) });
  return told ?? { status: 'nobody was told' };
}

async function authorizationCode(resource) {
  const verifier = randomBytes(32).toString('base64url');
  jar = new Map();
  let url = `${issuer}/auth?${new URLSearchParams({ client_id: 'web', response_type: 'code', redirect_uri: CALLBACK, resource,
    scope: 'openid orders:read', prompt: 'consent', code_challenge_method: 'S256',
    code_challenge: createHash('sha256').update(verifier).digest('base64url') })}`;
  for (let hop = 0; hop < 12 && !url.startsWith(CALLBACK); hop += 1) {
    const response = await visit(url);
    url = new URL(response.headers.get('location'), url).href;
  }
  const code = new URL(url).searchParams.get('code');
  return post({ grant_type: 'authorization_code', code, redirect_uri: CALLBACK, code_verifier: verifier, resource }, 'web');
}

build(false);
console.log(JSON.stringify({ issuer }));
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer = {};
  try {
    if (command.do === 'rotate') build(command.overlap);
    else if (command.do === 'logout') answer = await logout();
    else if (command.do === 'backchannel') {
      backchannel = { backchannel_logout_uri: command.uri, backchannel_logout_session_required: true };
      build(true);
    }
    else {
      ttl = command.ttl ?? 300;
      const resource = `${command.audience}:${command.alg}`;
      answer = command.flow === 'authorization_code' ? await authorizationCode(resource)
        : await post({ grant_type: 'client_credentials', resource, scope: 'orders:read' }, 'service');
    }
  } catch (error) { answer = { error: String(error?.stack ?? error) }; }
  console.log(JSON.stringify(answer));
}
process.exit(0);
