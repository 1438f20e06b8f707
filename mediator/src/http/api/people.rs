//! Users, their second factors and logins, devices, API keys.

use super::{
    Api, Call,
    Method::{Delete, Get, Post, Put},
    Nothing, One, Operation, Page,
    kinds::*,
    typed,
};
use crate::{
    admin::{
        AdminRequest,
        access::{AccessAct, ScopeArg},
        accounts::AccountAct,
        actor::Kind,
        api_keys::{ApiKeyAct, NewKey},
        oidc::OidcAct,
    },
    http::Problem,
    oidc::MfaClaims,
    roles::Rule,
};

type Answer<T> = Result<One<T>, Problem>;

const USERS: &[&str] = &["users.manage"];
const SET_UP: &[&str] = &["policy.manage and users.manage"];
const SEE_PROVIDERS: &[&str] = &["policy.manage", "users.manage", "audit.read"];
const SEE_USERS: &[&str] = &["users.manage", "roles.manage", "audit.read"];

pub(super) fn mount(api: &mut Api) {
    let op = |method, path, id, summary, needs| Operation { method, path, id, summary, needs };
    api.operation(op(Get, "/me", "me", "Who asks, and by which rules", &[]), me);
    api.operation(op(Get, "/users", "users.list", "List users", SEE_USERS), users);
    api.operation(op(Post, "/users", "users.add", "Add a user", USERS), add);
    api.operation(op(Get, "/users/{user}", "users.show", "Show a user", SEE_USERS), show);
    let text = "Disable a user; logins and live sessions end";
    api.operation(op(Post, "/users/{user}/disable", "users.disable", text, USERS), disable);
    let text = "Enable a disabled user";
    api.operation(op(Post, "/users/{user}/enable", "users.enable", text, USERS), enable);
    let text = "Set a password, or generate one; logins and live sessions end";
    api.operation(op(Post, "/users/{user}/password", "users.password", text, USERS), password);
    let text = "End all logins and live sessions of a user";
    api.operation(op(Post, "/users/{user}/logout", "users.logout", text, USERS), logout);
    let text = "List the logins and live sessions of a user";
    api.operation(op(Get, "/users/{user}/sessions", "users.sessions", text, USERS), logins);
    let text = "Show the second factors of a user";
    api.operation(op(Get, "/users/{user}/mfa", "users.mfa", text, USERS), mfa);
    let text = "Require a second factor before there is one, or not";
    api.operation(op(Put, "/users/{user}/mfa/policy", "users.mfa_policy", text, USERS), policy);
    let text = "Remove all second factors of a user; logins and live sessions end";
    api.operation(op(Post, "/users/{user}/mfa/reset", "users.mfa_reset", text, USERS), reset);
    let text = "Put a user into a group";
    api.operation(op(Put, "/users/{user}/groups/{group}", "users.group", text, USERS), group);
    let text = "Take a user out of a group";
    api.operation(
        op(Delete, "/users/{user}/groups/{group}", "users.ungroup", text, USERS),
        ungroup,
    );
    let text = "List devices with which somebody logged in, and those that are switched off";
    api.operation(op(Get, "/devices", "devices.list", text, USERS), devices);
    let text = "Switch a technician's device off; its logins and live sessions end";
    api.operation(
        op(Post, "/devices/{device}/disable", "devices.disable", text, USERS),
        device_off,
    );
    let text = "Switch a device on again";
    api.operation(op(Post, "/devices/{device}/enable", "devices.enable", text, USERS), device_on);
    let path = "/installation/devices/{device}/disable";
    let text = "Switch a device off for the users of all partners";
    api.operation(op(Post, path, "devices.disable_everywhere", text, USERS), device_off_everywhere);
    let path = "/installation/devices/{device}/enable";
    let text = "Undo that a device is switched off for all partners";
    api.operation(op(Post, path, "devices.enable_everywhere", text, USERS), device_on_everywhere);
    let text = "List identity providers";
    api.operation(op(Get, "/identity-providers", "providers.list", text, SEE_PROVIDERS), providers);
    let text = "Add an identity provider";
    api.operation(op(Post, "/identity-providers", "providers.add", text, SET_UP), add_provider);
    let text = "Remove an identity provider and all links with it";
    let path = "/identity-providers/{provider}";
    api.operation(op(Delete, path, "providers.remove", text, SET_UP), remove_provider);
    let path = "/users/{user}/links/{provider}";
    let text = "Link a user with a subject of an identity provider";
    api.operation(op(Put, path, "users.link", text, USERS), link);
    let text = "End a user's links with an identity provider";
    api.operation(op(Delete, path, "users.unlink", text, USERS), unlink);
    api.operation(op(Get, "/api-keys", "api_keys.list", "List API keys", USERS), keys);
    let text = "Register an API key with its first role";
    let needs = &["users.manage and roles.manage"];
    api.operation(op(Post, "/api-keys", "api_keys.create", text, needs), create_key);
    let text = "Revoke an API key for ever";
    api.operation(op(Delete, "/api-keys/{key}", "api_keys.revoke", text, USERS), revoke_key);
}

async fn me(call: Call<Nothing, Nothing>) -> Answer<Me> {
    let remote = call.actor.remote().ok_or_else(Problem::internal)?;
    Ok(One(Me {
        name: remote.name.clone(),
        kind: match remote.kind {
            Kind::Console => "console".to_owned(),
            Kind::Key => "key".to_owned(),
        },
        partner: remote.partner.clone(),
        roles: remote.holder.rules.iter().map(Rule::name).collect(),
        device: remote.device.fingerprint().to_string(),
        source: remote.source.to_string(),
        mfa: remote.mfa.clone(),
    }))
}

async fn users(call: Call<Paging, Nothing>) -> Result<Page<User>, Problem> {
    call.page(AdminRequest::UserList { only: None }, call.query.page(), "user").await
}

async fn add(call: Call<Nothing, NewUser>) -> Answer<AddedUser> {
    let NewUser { user, role, mfa, password } = call.body.clone();
    let role = role.unwrap_or_else(|| "none".to_owned());
    call.one(AdminRequest::UserAdd { user, partner: None, role, mfa, password }).await.map(One)
}

async fn show(call: Call<Nothing, Nothing>) -> Answer<User> {
    call.one(AdminRequest::UserList { only: Some(call.part("user")) }).await.map(One)
}

async fn disable(call: Call<Nothing, Nothing>) -> Answer<EnabledUser> {
    let user = call.part("user");
    call.one(AdminRequest::UserDisable { user, disabled: true }).await.map(One)
}

async fn enable(call: Call<Nothing, Nothing>) -> Answer<EnabledUser> {
    let user = call.part("user");
    call.one(AdminRequest::UserDisable { user, disabled: false }).await.map(One)
}

async fn password(call: Call<Nothing, NewPassword>) -> Answer<SetPassword> {
    let (user, password) = (call.part("user"), call.body.password.clone());
    call.one(AdminRequest::UserPassword { user, password }).await.map(One)
}

async fn logout(call: Call<Nothing, Nothing>) -> Answer<LoggedOut> {
    let user = call.part("user");
    call.one(AdminRequest::Accounts(AccountAct::Logout { user })).await.map(One)
}

async fn logins(call: Call<Paging, Nothing>) -> Result<Page<Login>, Problem> {
    let act = AdminRequest::Accounts(AccountAct::Logins { user: call.part("user") });
    call.page(act, call.query.page(), "since").await
}

async fn mfa(call: Call<Nothing, Nothing>) -> Answer<MfaState> {
    let user = call.part("user");
    call.one(AdminRequest::Accounts(AccountAct::MfaStatus { user })).await.map(One)
}

async fn policy(call: Call<Nothing, MfaPolicy>) -> Answer<SetMfaPolicy> {
    let (user, MfaPolicy { required, phishing_resistant }) = (call.part("user"), call.body.clone());
    let act = match (required, phishing_resistant) {
        (true, true) => AccountAct::MfaPhishingResistant { user },
        (_, false) => AccountAct::MfaRequire { user, required },
        (false, true) => {
            let text = "phishing_resistant: only of what is required";
            return Err(Problem::bad_request(text));
        }
    };
    call.one(AdminRequest::Accounts(act)).await.map(One)
}

async fn reset(call: Call<Nothing, Nothing>) -> Answer<MfaReset> {
    let user = call.part("user");
    call.one(AdminRequest::Accounts(AccountAct::MfaReset { user })).await.map(One)
}

async fn group(call: Call<Nothing, Nothing>) -> Answer<Member> {
    member(&call, false).await
}

async fn ungroup(call: Call<Nothing, Nothing>) -> Answer<Member> {
    member(&call, true).await
}

async fn member(call: &Call<Nothing, Nothing>, remove: bool) -> Answer<Member> {
    let (user, group) = (call.part("user"), call.part("group"));
    call.one(AdminRequest::Access(AccessAct::UserGroup { user, group, remove })).await.map(One)
}

async fn devices(call: Call<Paging, Nothing>) -> Result<Page<Device>, Problem> {
    let act = AdminRequest::Accounts(AccountAct::DeviceList);
    call.page(act, call.query.page(), "device").await
}

async fn device_off(call: Call<Nothing, Reason>) -> Answer<EnabledDevice> {
    device(&call, call.body.reason.clone(), (true, false)).await
}

async fn device_on(call: Call<Nothing, Nothing>) -> Answer<EnabledDevice> {
    device(&call, String::new(), (false, false)).await
}

async fn device_off_everywhere(call: Call<Nothing, Reason>) -> Answer<EnabledDevice> {
    device(&call, call.body.reason.clone(), (true, true)).await
}

async fn device_on_everywhere(call: Call<Nothing, Nothing>) -> Answer<EnabledDevice> {
    device(&call, String::new(), (false, true)).await
}

async fn device<B>(
    call: &Call<Nothing, B>,
    reason: String,
    (disabled, everywhere): (bool, bool),
) -> Answer<EnabledDevice> {
    let device = call.part("device");
    let act = AccountAct::Device { device, disabled, reason, partner: None, everywhere };
    call.one(AdminRequest::Accounts(act)).await.map(One)
}

async fn providers(call: Call<Paging, Nothing>) -> Result<Page<IdentityProvider>, Problem> {
    call.page(AdminRequest::Oidc(OidcAct::List), call.query.page(), "provider").await
}

async fn add_provider(call: Call<Nothing, NewProvider>) -> Answer<AddedProvider> {
    let NewProvider { provider, issuer, client_id, secret, ca, mfa } = call.body.clone();
    let MfaClaimsOf { acr, amr, phishing_resistant } = mfa;
    let act = OidcAct::Add {
        name: provider,
        partner: None,
        issuer,
        client_id,
        secret_file: String::new(),
        ca_file: String::new(),
        secret,
        ca,
        mfa: MfaClaims { acr, amr, phishing_resistant },
    };
    call.one(AdminRequest::Oidc(act)).await.map(One)
}

async fn remove_provider(call: Call<Nothing, Nothing>) -> Answer<RemovedProvider> {
    let act = OidcAct::Remove { name: call.part("provider") };
    call.one(AdminRequest::Oidc(act)).await.map(One)
}

async fn link(call: Call<Nothing, NewLink>) -> Answer<Linked> {
    let (user, provider) = (call.part("user"), call.part("provider"));
    let act = OidcAct::Link { user, provider, subject: call.body.subject.clone() };
    call.one(AdminRequest::Oidc(act)).await.map(One)
}

async fn unlink(call: Call<Nothing, Nothing>) -> Answer<Unlinked> {
    let (user, provider) = (call.part("user"), call.part("provider"));
    call.one(AdminRequest::Oidc(OidcAct::Unlink { user, provider })).await.map(One)
}

async fn keys(call: Call<Paging, Nothing>) -> Result<Page<ApiKey>, Problem> {
    call.page(AdminRequest::ApiKeys(ApiKeyAct::List), call.query.page(), "key_id").await
}

async fn create_key(call: Call<Nothing, NewApiKey>) -> Answer<ApiKey> {
    let NewApiKey { name, public_key, role, scope, networks, ttl_ms } = call.body.clone();
    let networks = networks
        .into_iter()
        .map(|network| typed(network.into()))
        .collect::<Result<_, _>>()
        .map_err(|_| Problem::bad_request("networks: like 192.0.2.0/24"))?;
    let scope = scope_arg(scope);
    let new = NewKey { name, partner: None, public_key, role, scope, networks, ttl_ms };
    call.one(AdminRequest::ApiKeys(ApiKeyAct::Create(Box::new(new)))).await.map(One)
}

async fn revoke_key(call: Call<Nothing, Nothing>) -> Answer<RevokedKey> {
    let key = call.part("key");
    call.one(AdminRequest::ApiKeys(ApiKeyAct::Revoke { key })).await.map(One)
}

/// As acts take it.
pub(super) fn scope_arg(scope: ScopeOf) -> ScopeArg {
    let ScopeOf { installation, client, computers, tag, computer } = scope;
    ScopeArg { installation, client, computers, tag, computer }
}
