// An identity provider for the tests: `oidc-provider` on a free port of 127.0.0.1, over TLS, with
// its own small login page. It believes every name, and tells how it asked in `amr`.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const [, , cert, keyFile, redirect, secret] = process.argv;
const server = createServer({ cert: readFileSync(cert), key: readFileSync(keyFile) });
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const issuer = `https://localhost:${server.address().port}`;
const algorithm = process.env.ADIT_ID_TOKEN_ALG || "RS256";
const kinds = {
  RS256: ["rsa", { modulusLength: 2048 }],
  ES256: ["ec", { namedCurve: "P-256" }],
  EdDSA: ["ed25519", {}],
};
// A key as PEM and read again: exporting the very object that was generated shares a lock with the
// generating, and node 20 stops for ever where garbage is collected meanwhile.
const privateKey = (kind, options) => {
  const privateKeyEncoding = { type: "pkcs8", format: "pem" };
  const publicKeyEncoding = { type: "spki", format: "pem" };
  const made = generateKeyPairSync(kind, { ...options, privateKeyEncoding, publicKeyEncoding });
  return createPrivateKey(made.privateKey);
};
// One key of each kind: the token's must be found among them.
const keys = Object.entries(kinds).map(([alg, [kind, options]]) => ({
  ...privateKey(kind, options).export({ format: "jwk" }), kid: `key-${alg}`, alg, use: "sig",
}));
const provider = new Provider(issuer, {
  jwks: { keys },
  enabledJWA: { idTokenSigningAlgValues: Object.keys(kinds) },
  clients: [{
    client_id: "adit", client_secret: secret, redirect_uris: [redirect],
    response_types: ["code"], grant_types: ["authorization_code"],
    id_token_signed_response_alg: algorithm,
  }],
  pkce: { required: () => true },
  claims: { openid: ["sub", "amr"], acr: null, auth_time: null },
  conformIdTokenClaims: false,
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, amr: ["pwd", "otp"] }) }),
});
provider.use(async (ctx, next) => {
  const found = ctx.path.match(/^\/interaction\/([\w-]+)$/);
  if (!found) return next();
  const details = await provider.interactionDetails(ctx.req, ctx.res);
  if (ctx.method === "GET" && details.prompt.name === "login") {
    ctx.body = `<!doctype html><title>Provider</title><form method="post">
      <input name="login" id="login"><button id="go">Go</button></form>`;
    return;
  }
  const chunks = [];
  for await (const chunk of ctx.req) chunks.push(chunk);
  const login = new URLSearchParams(Buffer.concat(chunks).toString()).get("login");
  let result;
  if (details.prompt.name === "login") {
    result = { login: { accountId: login, amr: ["pwd", "otp"] } };
  } else {
    const grant = new provider.Grant({
      accountId: details.session.accountId, clientId: details.params.client_id,
    });
    grant.addOIDCScope("openid");
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(ctx.req, ctx.res, result);
  ctx.respond = false;
});
server.on("request", provider.callback());
process.stdout.write(`${JSON.stringify({ issuer })}\n`);
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
