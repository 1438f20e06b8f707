//! A long log: verifying an export of it, and searching it.

use std::{
    fs,
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use adit_ledger::time::format_time;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Plan, entries, percentile, site::Site, web::Web};

/// The bars.
const SEARCH_MS: f64 = 200.0;
const VERIFY_SECONDS: f64 = 10.0;
/// Times that each search is asked; the slowest counts.
const TIMES: usize = 9;

/// How long the command takes that verifies an export with the root's key.
pub(super) async fn verify(plan: &Plan, events: u64) -> Result<Vec<Bar>> {
    let site = Site::new(plan, "verify")?;
    eprintln!("writing {events} entries");
    entries::fill(&site.dir, events, now_ms()?).await?;
    let file = site.dir.join("export.jsonl");
    let file = file.to_str().context("path")?;
    let timed = |args: &[&str]| -> Result<f64> {
        let start = Instant::now();
        site.run(args)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let exported = timed(&["audit", "export", "--output", file])?;
    let bytes = fs::metadata(file)?.len();
    eprintln!("the export of {bytes} bytes took {exported:.1} s");
    let key = &site.fingerprint;
    let seconds = timed(&["audit", "verify", "--file", file, "--key", key])?;
    let stored = timed(&["audit", "verify", "--key", key])?;
    Ok(vec![
        Bar::at_most(format!("verifying an export of {events}, s"), seconds, VERIFY_SECONDS),
        Bar::at_most(format!("verifying a database of {events}, s"), stored, VERIFY_SECONDS),
    ])
}

/// How long searches by the API take: filters that fit few entries and many, first pages and
/// later ones, the slowest of several times.
pub(super) async fn search(plan: &Plan) -> Result<Vec<Bar>> {
    let (mut site, there) = match &plan.kept {
        Some(dir) => Site::kept(plan, dir)?,
        None => (Site::new(plan, "search")?, false),
    };
    if !there {
        eprintln!("writing {} entries to {}", plan.events, site.dir.display());
        entries::fill(&site.dir, plan.events, now_ms()?).await?;
        if plan.kept.is_some() {
            site.keep()?;
        }
    }
    size(&site.dir)?;
    site.serve()?;
    let console = site.console().await?;
    let mut web = Web::open(&site, &console).await?;
    let version = web.get("/api/v1/computers").await?.ms;
    eprintln!("a request that reads next to nothing takes {version:.0} ms");
    let newest = web.get("/api/v1/audit/events?limit=1").await?;
    let events =
        newest.body.pointer("/items/0/seq").and_then(Value::as_u64).context("no newest entry")? + 1;
    ensure!(events >= plan.events, "the log in {} has {events} entries", site.dir.display());
    let mut bars = Vec::new();
    for (name, query) in searches(now_ms()?) {
        let target = format!("/api/v1/audit/events?limit=100&{query}");
        bars.push(measure((&site, &mut web), name, &target).await?);
        // A page in the depth of what was found.
        let mut cursor = None;
        for _ in 0..5 {
            let page = web.get(&page(&target, cursor.as_deref())).await?;
            cursor = page.body.get("next").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        if cursor.is_some() {
            let name = format!("{name}, sixth page");
            bars.push(measure((&site, &mut web), &name, &page(&target, cursor.as_deref())).await?);
        }
    }
    // In the middle of the log, far from what is in any memory.
    let deep = format!("/api/v1/audit/events?limit=100&cursor=1-{}", events / 2);
    bars.push(measure((&site, &mut web), "everything, from the middle on", &deep).await?);
    Ok(bars)
}

fn page(target: &str, cursor: Option<&str>) -> String {
    match cursor {
        Some(cursor) => format!("{target}&cursor={cursor}"),
        None => target.to_owned(),
    }
}

fn searches(now_ms: u64) -> Vec<(&'static str, String)> {
    let ago = |days: u64| format_time(now_ms - days * 24 * 3_600_000);
    let hour = format_time(now_ms - 40 * 24 * 3_600_000 + 3_600_000);
    vec![
        ("everything", String::new()),
        ("a person, one in a hundred", "person=person17".to_owned()),
        ("a computer, one in 10,000", "computer=pc-4711".to_owned()),
        ("a redirector, two in five", "redirector=rdp".to_owned()),
        ("a session", "session=session-123456".to_owned()),
        ("an event, every fourth", "event=login.failed".to_owned()),
        ("a person and a redirector", "person=person1&redirector=rdp".to_owned()),
        ("a person on a computer", "person=person1&computer=pc-4711".to_owned()),
        ("a client and an event", "client=main%2Fclient7&event=session.ended".to_owned()),
        ("nobody", "person=nobody".to_owned()),
        // Many of each, none of both: what the bounds on one call are for.
        ("two that never meet", "event=login.failed&redirector=rdp".to_owned()),
        ("an hour 40 days ago", format!("since={}&until={hour}", ago(40))),
        ("a person in that hour", format!("person=person3&since={}&until={hour}", ago(40))),
        ("a time before all", "until=2001-01-01T00:00:00Z".to_owned()),
    ]
}

async fn measure((site, web): (&Site, &mut Web<'_>), name: &str, target: &str) -> Result<Bar> {
    let mut times = Vec::new();
    let mut found = 0;
    let before = site.cpu()?;
    for _ in 0..TIMES {
        let answer = web.get(target).await?;
        times.push(answer.ms);
        found = answer.body.get("items").and_then(Value::as_array).map_or(0, Vec::len);
    }
    // What a busy machine changes least.
    let cpu = (site.cpu()? - before) * 1e3 / f64::from(u32::try_from(TIMES)?);
    let first = times.first().copied().unwrap_or(f64::NAN);
    times.sort_by(f64::total_cmp);
    let (median, worst) = (percentile(&times, 50), percentile(&times, 100));
    eprintln!(
        "{name}: {found} found, first {first:.0} ms, median {median:.0}, most {worst:.0}; the \
         mediator used {cpu:.0} ms of a processor for each"
    );
    Ok(Bar::at_most(format!("search for {name}, ms"), worst, SEARCH_MS))
}

fn size(dir: &Path) -> Result<()> {
    let bytes = fs::metadata(dir.join("mediator.db"))?.len();
    eprintln!("the database has {bytes} bytes");
    Ok(())
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
