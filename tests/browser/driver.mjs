// Chromium for the tests: reads one command a line (JSON), does it, answers with one line.
// What is tested is in the test; here is only what a browser can do.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [, , profile, spki] = process.argv;
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.ADIT_CHROMIUM || "/usr/bin/chromium",
  headless: true,
  viewport: { width: 900, height: 900 },
  args: [
    "--no-sandbox", `--ignore-certificate-errors-spki-list=${spki}`,
    // A name of somebody's that means this computer.
    "--host-resolver-rules=MAP rebound.test 127.0.0.1",
  ],
});
let page = context.pages()[0] ?? (await context.newPage());
page.setDefaultTimeout(15000);
let cdp = null;
let key = null;

const commands = {
  goto: async ({ url }) => { await page.goto(url); },
  // A page of its own without cookies, as another browser would have.
  fill: async ({ selector, value }) => { await page.fill(selector, value); },
  // Pages are forms: what is clicked leads to another page.
  click: async ({ selector }) => {
    await Promise.all([page.waitForNavigation(), page.click(selector)]);
  },
  press: async ({ selector }) => { await page.click(selector); },
  wait: async ({ selector }) => { await page.waitForSelector(selector); },
  see: async () => ({
    url: page.url(), title: await page.title(), text: await page.innerText("body"),
  }),
  attribute: async ({ selector, name }) => ({ value: await page.getAttribute(selector, name) }),
  cookies: async () => ({ cookies: await context.cookies() }),
  forget: async () => { await context.clearCookies(); },
  scheme: async ({ scheme }) => { await page.emulateMedia({ colorScheme: scheme }); },
  script: async ({ on }) => {
    cdp ??= await context.newCDPSession(page);
    await cdp.send("Emulation.setScriptExecutionDisabled", { value: !on });
  },
  shot: async ({ file }) => { await page.screenshot({ path: file, fullPage: true }); },
  // A security key of CTAP2 that is touched at once (WebAuthn §11).
  plug: async () => {
    cdp ??= await context.newCDPSession(page);
    await cdp.send("WebAuthn.enable");
    const options = {
      protocol: "ctap2", transport: "usb", hasResidentKey: false, hasUserVerification: false,
      automaticPresenceSimulation: true,
    };
    key = (await cdp.send("WebAuthn.addVirtualAuthenticator", { options })).authenticatorId;
  },
  unplug: async () => {
    await cdp.send("WebAuthn.removeVirtualAuthenticator", { authenticatorId: key });
  },
  // The counter of a copied key is behind.
  rewind: async () => {
    const { credentials } = await cdp.send("WebAuthn.getCredentials", { authenticatorId: key });
    for (const credential of credentials) {
      await cdp.send("WebAuthn.removeCredential",
        { authenticatorId: key, credentialId: credential.credentialId });
      await cdp.send("WebAuthn.addCredential",
        { authenticatorId: key, credential: { ...credential, signCount: 0 } });
    }
  },
};

const answer = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
answer({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  try {
    const command = JSON.parse(line);
    answer({ ok: (await commands[command.do](command)) ?? {} });
  } catch (error) {
    answer({ error: String(error) });
  }
}
await context.close();
