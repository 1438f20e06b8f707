// Asks the browser for a security key and puts its answer into the form. Nothing else on these
// pages needs a script.
"use strict";
(() => {
  const form = document.querySelector("form[data-key]");
  if (!form) return;
  const status = form.querySelector("[data-status]");
  const button = form.querySelector("[data-needs-script]");
  const say = (text) => { status.textContent = text; status.hidden = false; };
  const toText = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  const toBytes = (text) => Uint8Array.from(
    atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const data = form.dataset;
  const known = (data.ids || "").split(" ").filter(Boolean)
    .map((id) => ({ type: "public-key", id: toBytes(id) }));

  const shown = async () => {
    const publicKey = {
      challenge: toBytes(data.challenge), rpId: data.rp, allowCredentials: known,
      userVerification: "preferred", timeout: 120000,
    };
    const { rawId, response } = await navigator.credentials.get({ publicKey });
    return {
      id: rawId, client_data: response.clientDataJSON,
      authenticator_data: response.authenticatorData, signature: response.signature,
    };
  };
  const created = async () => {
    const publicKey = {
      challenge: toBytes(data.challenge), rp: { id: data.rp, name: "Adit" },
      user: { id: new TextEncoder().encode(data.userId), name: data.user, displayName: data.user },
      pubKeyCredParams: [-8, -7, -257].map((alg) => ({ type: "public-key", alg })),
      excludeCredentials: known, attestation: "none", timeout: 120000,
      authenticatorSelection: { residentKey: "discouraged", userVerification: "preferred" },
    };
    const { response } = await navigator.credentials.create({ publicKey });
    return { client_data: response.clientDataJSON, attestation: response.attestationObject };
  };

  if (!window.PublicKeyCredential) {
    say("This browser has no support for security keys on this page. They work with https and a valid certificate.");
    return;
  }
  button.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    status.hidden = true;
    try {
      const answer = await (data.key === "get" ? shown() : created());
      for (const [name, value] of Object.entries(answer)) {
        const field = document.createElement("input");
        field.type = "hidden";
        field.name = name;
        field.value = toText(value);
        form.append(field);
      }
      form.submit();
    } catch (error) {
      button.disabled = false;
      say({
        NotAllowedError: "No key was shown, or it took too long. Try again.",
        InvalidStateError: "This key is registered already.",
        SecurityError: "Security keys do not work under this address. Open the page under its own name.",
      }[error.name] || "The key could not be used. Try again, or take another.");
    }
  });
})();
