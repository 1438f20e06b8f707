//! `computers`.

use adit_runtime::{
    cli::{CliError, escape_text},
    time::format_ms,
};
use serde_json::json;

use super::{note, table};
use crate::{
    cli::ComputersArgs,
    config::Context,
    learning,
    link::{Caller, list_computers},
    state::KnownComputer,
};

/// `computers [QUERY]`.
pub async fn list(context: &Context, args: &ComputersArgs) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let online = caller.connect(Vec::new()).await?;
    let list = async |query: &str| {
        let found = list_computers(&online.peer, query, &args.client, args.online).await;
        found.map_err(|error| caller.explain(error))
    };
    let mut computers = list(names_part(&args.query)).await?;
    if computers.is_empty() && !args.query.is_empty() {
        // The mediator looks at names and ids: it may be the client's.
        computers = list("").await?;
        computers.retain(|computer| is_meant(&args.query, computer));
    } else if args.query.contains('/') {
        computers.retain(|computer| is_meant(&args.query, computer));
    }
    let told = tell(context, &computers);
    let complete = args.query.is_empty() && args.client.is_empty() && !args.online;
    learning::at_list(context, &caller, &online, computers, complete).await;
    told
}

/// What of a query can be a part of a computer's own name: the mediator knows it by no other.
fn names_part(query: &str) -> &str {
    query.rsplit_once('/').map_or(query, |(_, name)| name)
}

/// Whether a query is a part of `partner/client/name`.
fn is_meant(query: &str, computer: &KnownComputer) -> bool {
    computer.path().to_lowercase().contains(&query.to_lowercase())
}

fn tell(context: &Context, computers: &[KnownComputer]) -> Result<(), CliError> {
    let output = context.global.output();
    if output.json {
        return computers.iter().try_for_each(|computer| output.emit(&object(computer)));
    }
    if computers.is_empty() {
        note("no computer matches");
        return Ok(());
    }
    let mut rows = table(&["NAME", "CLIENT", "STATE", "OS", "LAST SEEN", "REDIRECTORS"]);
    for computer in computers {
        let names: Vec<&str> = computer.redirectors.iter().map(|r| r.name.as_str()).collect();
        rows.add_row([
            escape_text(&computer.name),
            escape_text(&computer.client),
            if computer.online { "online" } else { "offline" }.to_owned(),
            escape_text(&computer.os),
            format_ms(computer.last_seen_ms),
            escape_text(&names.join(" ")),
        ]);
    }
    output.human(rows)
}

fn object(computer: &KnownComputer) -> serde_json::Value {
    let names: Vec<&str> = computer.redirectors.iter().map(|r| r.name.as_str()).collect();
    json!({
        "computer_id": computer.id.to_string(),
        "name": computer.name,
        "client": computer.client,
        "online": computer.online,
        "os": computer.os,
        "last_seen": format_ms(computer.last_seen_ms),
        "agent_key": computer.identity.fingerprint().to_string(),
        "redirectors": names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::computer::tests::computer;

    #[test]
    fn queries_are_parts_of_what_open_takes() {
        let reception = computer(1, "main/berlin", "reception");
        for query in
            ["main/berlin/reception", "berlin/reception", "Berlin/rec", "berlin", "berlin/"]
        {
            assert!(is_meant(query, &reception), "{query}");
            assert!("reception".contains(&names_part(query).to_lowercase()) || query == "berlin");
        }
        assert!(!is_meant("paris/reception", &reception));
        assert_eq!(names_part("web"), "web");
    }

    #[test]
    fn objects_have_the_keys_of_the_contract() {
        let object = object(&computer(1, "p/c", "pc"));
        let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "computer_id",
                "name",
                "client",
                "online",
                "os",
                "last_seen",
                "agent_key",
                "redirectors"
            ]
        );
        assert_eq!(object["redirectors"], json!(["ssh"]));
        assert!(object["agent_key"].as_str().unwrap().starts_with("sha256:"));
    }
}
