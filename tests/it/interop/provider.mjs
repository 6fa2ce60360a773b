// A certified OpenID provider (npm oidc-provider) for the interop tests. Reads one JSON command a
// line on standard input, answers one JSON line on standard output. Ends with its standard input.
//   {"do":"token","alg":"ES256","flow":"client_credentials"|"authorization_code","audience":"urn:..","ttl":60}
//   {"do":"rotate","overlap":true|false}
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
      { client_id: 'web', client_secret: SECRET, redirect_uris: [CALLBACK], response_types: ['code'], grant_types: ['authorization_code'] },
    ],
    scopes: ['openid', 'orders:read'],
    pkce: { required: () => true },
    enabledJWA: { idTokenSigningAlgValues: Object.keys(ALGORITHMS) },
    findAccount: async (_context, sub) => ({ accountId: sub, claims: async () => ({ sub }) }),
    interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
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
  callback = provider.callback();
}

async function post(form, client) {
  const authorization = `Basic ${Buffer.from(`${client}:${SECRET}`).toString('base64')}`;
  const response = await fetch(`${issuer}/token`, { method: 'POST', headers: { authorization }, body: new URLSearchParams(form) });
  return response.json();
}

async function authorizationCode(resource) {
  const verifier = randomBytes(32).toString('base64url');
  const jar = new Map();
  let url = `${issuer}/auth?${new URLSearchParams({ client_id: 'web', response_type: 'code', redirect_uri: CALLBACK, resource,
    scope: 'openid orders:read', prompt: 'consent', code_challenge_method: 'S256',
    code_challenge: createHash('sha256').update(verifier).digest('base64url') })}`;
  for (let hop = 0; hop < 12 && !url.startsWith(CALLBACK); hop += 1) {
    const response = await fetch(url, { redirect: 'manual', headers: { cookie: [...jar].map(([k, v]) => `${k}=${v}`).join('; ') } });
    for (const cookie of response.headers.getSetCookie()) {
      const [pair] = cookie.split(';');
      jar.set(pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1));
    }
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
