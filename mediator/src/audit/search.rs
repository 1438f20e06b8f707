//! Search: pages of entries, newest first by sequence, within what a person may read.
//!
//! Each filter is one or more streams of sequence numbers, read downwards from an index that has
//! all it needs. The streams are intersected by leaping: whoever is highest goes down to the
//! lowest. Only what all of them agree on is read from the table. Times are filtered by blocks of
//! entries, so that a clock that jumped hides nothing, and costs no more than its own block.
//!
//! INVARIANT: one call reads at most [`MAX_KEYS_READ`] index rows and [`MAX_ROWS_READ`] entries,
//! whatever the filter and however long the log, and begins no further read after [`MAX_TIME`]; a
//! page may then be short and says where to go on, further down than it began. Must never show an
//! entry of another partner, or one outside the places that a person's roles cover.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use adit_ledger::Entry;
use sqlx::AnyPool;

use super::keys::{BLOCK, fold};
use crate::{
    authz::{Decision, Holder},
    roles::{Act, Object, Permission, Scope, conditions::Facts},
    store::{
        Columns, StoreError,
        access::filter::{self, Clause},
        bigint,
    },
};

/// Entries in one page.
pub(crate) const MAX_PAGE: u32 = 500;
/// Index rows that one call reads.
const MAX_KEYS_READ: usize = 20_000;
/// Entries that one call reads.
const MAX_ROWS_READ: usize = 2_000;
/// Longest search on a disk that is slow or a machine that is busy, as soon as it got somewhere.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Index rows read at once: few at first, more where many are needed.
const CHUNKS: (u32, u32) = (64, 2_048);
/// Entries read at once.
const GROUP: usize = 100;
/// Values of one filter, such as names of events.
pub(crate) const MAX_VALUES: usize = 16;
/// Bytes of a value.
pub(crate) const MAX_VALUE: usize = 256;
/// Streams for the places of a restricted reader; with more places every entry is looked at.
const MAX_PLACE_STREAMS: usize = 32;

/// What is searched for; empty lists and `None` are not filtered by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Names of people: who acted, or whom it was about.
    pub(crate) persons: Vec<String>,
    /// Names or ids of computers.
    pub(crate) computers: Vec<String>,
    /// `partner/client`.
    pub(crate) clients: Vec<String>,
    pub(crate) redirectors: Vec<String>,
    pub(crate) sessions: Vec<String>,
    /// Names like `session.granted`.
    pub(crate) events: Vec<String>,
    /// Milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Milliseconds since 1970; that moment is not in it.
    pub(crate) until_ms: Option<u64>,
}

/// Why a filter or cursor cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSearch {
    /// A list is too long.
    #[error("at most {MAX_VALUES} values can be given for one filter")]
    TooMany,
    /// A value is too long.
    #[error("a value to search for must have 1 to {MAX_VALUE} bytes")]
    Value,
    /// The cursor is not one of ours.
    #[error("the cursor is not one that a search gave")]
    Cursor,
}

impl Filter {
    /// Checks the bounds.
    pub(crate) fn check(&self) -> Result<(), BadSearch> {
        for list in self.lists() {
            if list.len() > MAX_VALUES {
                return Err(BadSearch::TooMany);
            }
            if list.iter().any(|value| value.is_empty() || value.len() > MAX_VALUE) {
                return Err(BadSearch::Value);
            }
        }
        Ok(())
    }

    fn lists(&self) -> [&Vec<String>; 6] {
        [
            &self.persons,
            &self.computers,
            &self.clients,
            &self.redirectors,
            &self.sessions,
            &self.events,
        ]
    }

    /// Whether an entry is meant, for exports, which look at every entry.
    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        let event = entry.event();
        let keys = super::keys::Keys::of(event);
        let any = |wanted: &[String], found: [Option<&str>; 2]| {
            let hit = |value: &String| found.iter().flatten().any(|text| *text == fold(value));
            wanted.is_empty() || wanted.iter().any(hit)
        };
        let exactly = |wanted: &[String], found: Option<&str>| {
            wanted.is_empty() || wanted.iter().any(|value| Some(value.as_str()) == found)
        };
        let time = entry.time_ms();
        any(&self.persons, [keys.actor.as_deref(), keys.subject.as_deref()])
            && any(&self.computers, [keys.computer.as_deref(), keys.computer_id.as_deref()])
            && any(&self.clients, [keys.client.as_deref(), None])
            && exactly(&self.redirectors, keys.redirector.as_deref())
            && exactly(&self.sessions, keys.session.as_deref())
            && exactly(&self.events, Some(&event.name))
            && self.since_ms.is_none_or(|since| time >= since)
            && self.until_ms.is_none_or(|until| time < until)
    }

    /// One list of streams for each filter that is used.
    fn streams(&self) -> Vec<Streams> {
        let streams = |columns: &[&'static str], values: &[String], folded: bool| {
            let each = values.iter().flat_map(|value| {
                let value = if folded { fold(value) } else { value.clone() };
                columns.iter().map(move |column| Stream::new(column, value.clone()))
            });
            Streams(each.collect())
        };
        let all = [
            streams(&["session_id"], &self.sessions, false),
            streams(&["computer_key", "computer_id"], &self.computers, true),
            streams(&["actor_key", "subject_key"], &self.persons, true),
            streams(&["client_key"], &self.clients, true),
            streams(&["redirector"], &self.redirectors, false),
            streams(&["event"], &self.events, false),
        ];
        all.into_iter().filter(|streams| !streams.0.is_empty()).collect()
    }
}

/// What a person may read of a partner's log.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// `None`: all partners'.
    partner: Option<String>,
    places: Option<Places>,
}

/// Clients by path and computers by the clause that lists are filtered with.
#[derive(Clone, Debug)]
struct Places {
    clients: Vec<String>,
    computers: Clause,
    /// All computers, if they are few.
    ids: Option<Vec<String>>,
}

impl Reach {
    /// Everything of all partners: for the machine's administrator alone.
    pub(crate) fn installation() -> Self {
        Self { partner: None, places: None }
    }

    /// Everything of a partner (by id).
    pub(crate) fn whole(partner: impl Into<String>) -> Self {
        Self { partner: Some(partner.into()), places: None }
    }

    /// What this person may do `permission` with ([`Permission::ReadAudit`] to search,
    /// [`Permission::ExportAudit`] to take away); `Err`: nothing, and why.
    pub(crate) async fn of(
        pool: &AnyPool,
        holder: &Holder,
        permission: Permission,
        facts: Facts,
    ) -> Result<Result<Self, Decision>, StoreError> {
        let object = Object::Partner(holder.partner.clone());
        let decision = holder.decide(Act::of(permission), &object, facts.clone());
        if decision.is_allowed() {
            return Ok(Ok(Self::whole(holder.partner.clone())));
        }
        let now = facts.now_ms;
        let usable = holder.rules.iter().filter(|rule| {
            !holder.disabled
                && rule.is_current(now)
                && rule.role.grants(permission, None)
                && rule.check(permission.needs(), &facts).is_ok()
        });
        let mut any = false;
        let mut clients = Vec::new();
        for rule in usable {
            any = true;
            if let Scope::Client { partner, client } = &rule.scope
                && *partner == holder.partner
                && let Some(path) = client_path(pool, partner, client).await?
            {
                clients.push(fold(&path));
            }
        }
        if !any {
            return Ok(Err(decision));
        }
        let computers = holder.filter(permission, facts, &filter::COMPUTER);
        let ids = few_computers(pool, &computers).await?;
        let places = Places { clients, computers, ids };
        Ok(Ok(Self { partner: Some(holder.partner.clone()), places: Some(places) }))
    }

    /// The filter for an export: within the clients that may be read. `None`: a person whose
    /// roles cover single computers only cannot take the log away, nor can one who asks for
    /// other clients.
    pub(crate) fn narrow(&self, mut filter: Filter) -> Option<Filter> {
        let Some(places) = &self.places else { return Some(filter) };
        let mine = |path: &String| places.clients.contains(&fold(path));
        if filter.clients.is_empty() {
            filter.clients = places.clients.clone();
        } else {
            filter.clients.retain(mine);
        }
        (!filter.clients.is_empty()).then_some(filter)
    }

    fn streams(&self) -> Option<Streams> {
        let places = self.places.as_ref()?;
        let ids = places.ids.as_ref()?;
        if places.clients.len() + ids.len() > MAX_PLACE_STREAMS {
            return None;
        }
        let clients = places.clients.iter().map(|path| Stream::new("client_key", path.clone()));
        let computers = ids.iter().map(|id| Stream::new("computer_id", id.clone()));
        Some(Streams(clients.chain(computers).collect()))
    }

    /// The condition on an entry `e` of the log `t`; `$1` is the partner's id, if there is one.
    fn clause(&self) -> Clause {
        let Some(places) = &self.places else {
            let text = if self.partner.is_some() { "t.partner_id = $1" } else { "1 = 1" };
            let values = self.partner.iter().cloned().collect();
            return Clause { text: text.to_owned(), values };
        };
        let mut clause = places.computers.clone();
        let paths: Vec<String> =
            places.clients.iter().map(|path| clause.bind(path.clone())).collect();
        let by_client = match paths.as_slice() {
            [] => "1 = 0".to_owned(),
            paths => format!("e.client_key IN ({})", paths.join(", ")),
        };
        clause.text = format!(
            "t.partner_id = $1 AND ({by_client} OR EXISTS (SELECT 1 FROM computer k WHERE k.id = e.computer_id AND {}))",
            clause.text
        );
        clause
    }
}

async fn client_path(
    pool: &AnyPool,
    partner: &str,
    client: &str,
) -> Result<Option<String>, StoreError> {
    let row = sqlx::query(
        "SELECT c.name AS name, p.name AS partner FROM client c \
         JOIN partner p ON p.id = c.partner_id WHERE c.id = $1 AND p.id = $2",
    )
    .bind(client.to_owned())
    .bind(partner.to_owned())
    .fetch_optional(pool)
    .await?;
    row.map(|row| Ok(format!("{}/{}", row.text("partner")?, row.text("name")?))).transpose()
}

async fn few_computers(pool: &AnyPool, clause: &Clause) -> Result<Option<Vec<String>>, StoreError> {
    let limit = MAX_PLACE_STREAMS + 1;
    let statement =
        format!("SELECT k.id AS id FROM computer k WHERE {} LIMIT {limit}", clause.text);
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement)).persistent(false);
    for value in &clause.values {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(pool).await?;
    if rows.len() > MAX_PLACE_STREAMS {
        return Ok(None);
    }
    rows.iter().map(|row| row.text("id")).collect::<Result<_, _>>().map(Some)
}

/// Where a page begins: below this entry of this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    log: u64,
    below: u64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.log, self.below)
    }
}

impl std::str::FromStr for Cursor {
    type Err = BadSearch;
    fn from_str(text: &str) -> Result<Self, BadSearch> {
        let (log, below) = text.split_once('-').ok_or(BadSearch::Cursor)?;
        let number = |text: &str| match text.parse::<u64>() {
            Ok(number) if number <= adit_ledger::MAX_INTEGER => Ok(number),
            _ => Err(BadSearch::Cursor),
        };
        Ok(Self { log: number(log)?, below: number(below)? })
    }
}

/// Which page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// From where on; `None`: the newest.
    pub(crate) after: Option<Cursor>,
    /// At most so many entries, and at most [`MAX_PAGE`].
    pub(crate) limit: u32,
}

/// An entry that was found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    /// Id of its tree.
    pub(crate) tree: String,
    pub(crate) seq: u64,
    /// The line as it was written.
    pub(crate) line: String,
}

/// A page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Newest first.
    pub(crate) hits: Vec<Hit>,
    /// Where to go on; `None`: there is no more. A page may be short, or empty, and still go on.
    pub(crate) next: Option<Cursor>,
}

/// Finds entries. The caller has checked the filter and records the search.
pub(crate) async fn search(
    pool: &AnyPool,
    reach: &Reach,
    filter: &Filter,
    page: Page,
) -> Result<Found, StoreError> {
    within(pool, (reach, filter), page, MAX_TIME).await
}

/// The same with another bound on its time.
pub(super) async fn within(
    pool: &AnyPool,
    (reach, filter): (&Reach, &Filter),
    page: Page,
    time: Duration,
) -> Result<Found, StoreError> {
    let over = Instant::now() + time;
    let limit = page.limit.clamp(1, MAX_PAGE) as usize;
    let highest = page.after.map_or(i64::MAX, |cursor| bigint(cursor.log));
    let logs = match &reach.partner {
        Some(partner) => sqlx::query(
            "SELECT id, number FROM audit_tree WHERE number <= $1 AND partner_id = $2 \
             ORDER BY number DESC",
        )
        .bind(highest)
        .bind(partner.clone()),
        None => {
            sqlx::query("SELECT id, number FROM audit_tree WHERE number <= $1 ORDER BY number DESC")
                .bind(highest)
        }
    };
    let logs = logs.fetch_all(pool).await?;
    let (found, moved) = (Found::default(), false);
    let mut run = Run { pool, reach, filter, limit, keys: 0, rows: 0, over, moved, found };
    for row in &logs {
        let (tree, log) = (row.text("id")?, row.number("number")?);
        let below = match page.after {
            Some(cursor) if cursor.log == log => cursor.below,
            _ => adit_ledger::MAX_INTEGER,
        };
        run.log(&tree, log, below).await?;
        if run.found.next.is_some() {
            break;
        }
    }
    Ok(run.found)
}

struct Run<'a> {
    pool: &'a AnyPool,
    reach: &'a Reach,
    filter: &'a Filter,
    limit: usize,
    keys: usize,
    rows: usize,
    over: Instant,
    /// Did it get further down? Before that no lack of time ends it: the next page would begin
    /// where this one did.
    moved: bool,
    found: Found,
}

impl Run<'_> {
    fn is_spent(&self) -> bool {
        self.keys >= MAX_KEYS_READ
            || self.rows >= MAX_ROWS_READ
            || (self.moved && Instant::now() >= self.over)
    }

    /// One log, stretch by stretch of what may be of the wanted time.
    async fn log(&mut self, tree: &str, log: u64, mut below: u64) -> Result<(), StoreError> {
        let mut begun = false;
        while let Some((low, high)) = self.window(log, below).await? {
            let full = self.found.hits.len() >= self.limit;
            if begun && (full || self.is_spent()) {
                self.found.next = Some(Cursor { log, below });
                return Ok(());
            }
            self.stretch(tree, log, (low, high)).await?;
            if self.found.next.is_some() {
                return Ok(());
            }
            (below, begun, self.moved) = (low, true, true);
        }
        Ok(())
    }

    async fn stretch(
        &mut self,
        tree: &str,
        log: u64,
        (low, high): (u64, u64),
    ) -> Result<(), StoreError> {
        let mut streams = self.filter.streams();
        streams.extend(self.reach.streams());
        if streams.is_empty() {
            streams.push(Streams(vec![Stream::every(tree)]));
        }
        let mut bound = high;
        loop {
            let mut group = Vec::with_capacity(GROUP);
            let mut more = true;
            while group.len() < GROUP.min(self.limit - self.found.hits.len()).max(1) {
                match self.agree(&mut streams, log, low, &mut bound).await? {
                    Some(seq) => group.push(seq),
                    None => {
                        more = false;
                        break;
                    }
                }
            }
            let spent = self.is_spent();
            self.read(tree, log, &group).await?;
            if self.found.next.is_some() {
                return Ok(());
            }
            let full = self.found.hits.len() >= self.limit;
            if (full || spent || self.is_spent()) && bound > low {
                self.found.next = Some(Cursor { log, below: bound });
                return Ok(());
            }
            if !more || bound <= low {
                return Ok(());
            }
        }
    }

    /// The next entry below `bound` that all streams have; `None` if there is none, or if enough
    /// was read.
    async fn agree(
        &mut self,
        streams: &mut [Streams],
        log: u64,
        low: u64,
        bound: &mut u64,
    ) -> Result<Option<u64>, StoreError> {
        'leap: while *bound > low && !self.is_spent() {
            let mut candidate = *bound - 1;
            for (index, stream) in streams.iter_mut().enumerate() {
                let Some(seq) = stream.at_most(self, log, low, candidate).await? else {
                    // Nothing further down: there is no more, unless reading was stopped.
                    if !self.is_spent() {
                        *bound = low;
                    }
                    return Ok(None);
                };
                if index > 0 && seq < candidate {
                    (*bound, self.moved) = (seq + 1, true);
                    continue 'leap;
                }
                candidate = seq;
            }
            (*bound, self.moved) = (candidate, true);
            return Ok(Some(candidate));
        }
        Ok(None)
    }

    /// The highest entries `low..high` below an entry that may be of the wanted time: neighbouring
    /// blocks. Those between two such stretches are not looked at: a single entry of a clock that
    /// was off would make all between it and the others part of the search.
    async fn window(&self, log: u64, below: u64) -> Result<Option<(u64, u64)>, StoreError> {
        let Some(last) = below.checked_sub(1) else { return Ok(None) };
        if self.filter.since_ms.is_none() && self.filter.until_ms.is_none() {
            return Ok(Some((0, below)));
        }
        let inside = "max_ms >= $3 AND min_ms < $4";
        let Some(top) = self.block(log, last / BLOCK, inside).await? else { return Ok(None) };
        let outside = "(max_ms < $3 OR min_ms >= $4)";
        let gap = match top.checked_sub(1) {
            Some(next) => self.block(log, next, outside).await?,
            None => None,
        };
        let low = gap.map_or(0, |gap| (gap + 1) * BLOCK);
        Ok(Some((low, below.min((top + 1) * BLOCK))))
    }

    /// The highest block that is not above `most` and of which `clause` is true.
    async fn block(&self, log: u64, most: u64, clause: &str) -> Result<Option<u64>, StoreError> {
        let statement = format!(
            "SELECT block FROM audit_block WHERE log_no = $1 AND block <= $2 AND {clause} \
             ORDER BY block DESC LIMIT 1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(bigint(log))
            .bind(bigint(most))
            .bind(bigint(self.filter.since_ms.unwrap_or(0)))
            .bind(bigint(self.filter.until_ms.unwrap_or(u64::MAX)))
            .fetch_optional(self.pool)
            .await?;
        row.map(|row| row.number("block")).transpose()
    }

    /// Reads entries, newest first, and takes those that are in time and reach.
    async fn read(&mut self, tree: &str, log: u64, seqs: &[u64]) -> Result<(), StoreError> {
        if seqs.is_empty() {
            return Ok(());
        }
        let mut clause = self.reach.clause();
        let place = clause.bind(tree);
        let list: Vec<String> = seqs.iter().map(u64::to_string).collect();
        let statement = format!(
            "SELECT e.seq AS seq, e.line AS line FROM audit_entry e \
             JOIN audit_tree t ON t.id = e.tree WHERE e.tree = {place} \
             AND e.seq IN ({}) AND e.time_ms >= {} AND e.time_ms < {} AND e.line <> '' AND {} \
             ORDER BY e.seq DESC",
            list.join(", "),
            bigint(self.filter.since_ms.unwrap_or(0)),
            bigint(self.filter.until_ms.unwrap_or(u64::MAX)),
            clause.text
        );
        // Numbers only are put into the text; it is another one each time.
        let mut query = sqlx::query(sqlx::AssertSqlSafe(statement)).persistent(false);
        for value in &clause.values {
            query = query.bind(value.clone());
        }
        self.rows += seqs.len();
        for row in query.fetch_all(self.pool).await? {
            let (seq, line) = (row.number("seq")?, row.text("line")?);
            if self.found.hits.len() >= self.limit {
                self.found.next = Some(Cursor { log, below: seq + 1 });
                break;
            }
            self.found.hits.push(Hit { tree: tree.to_owned(), seq, line });
        }
        Ok(())
    }
}

/// All that one filter finds: any of its streams.
struct Streams(Vec<Stream>);

impl Streams {
    async fn at_most(
        &mut self,
        run: &mut Run<'_>,
        log: u64,
        low: u64,
        most: u64,
    ) -> Result<Option<u64>, StoreError> {
        let mut best = None;
        for stream in &mut self.0 {
            best = best.max(stream.at_most(run, log, low, most).await?);
        }
        // One that could not be read any more may have a higher one: the next page looks.
        if self.0.iter().any(|stream| stream.buffer.is_empty() && !stream.ended) {
            return Ok(None);
        }
        Ok(best)
    }
}

/// Sequence numbers downwards from an index.
struct Stream {
    column: &'static str,
    value: String,
    buffer: VecDeque<u64>,
    chunk: u32,
    ended: bool,
}

/// Marks the stream of all entries, whose value is the tree.
const EVERY: &str = "";

impl Stream {
    fn new(column: &'static str, value: String) -> Self {
        Self { column, value, buffer: VecDeque::new(), chunk: CHUNKS.0, ended: false }
    }

    fn every(tree: &str) -> Self {
        Self::new(EVERY, tree.to_owned())
    }

    /// The highest that is not above `most`.
    async fn at_most(
        &mut self,
        run: &mut Run<'_>,
        log: u64,
        low: u64,
        most: u64,
    ) -> Result<Option<u64>, StoreError> {
        while self.buffer.front().is_some_and(|seq| *seq > most) {
            self.buffer.pop_front();
        }
        if self.buffer.is_empty() && !self.ended {
            self.fill(run, log, low, most).await?;
        }
        Ok(self.buffer.front().copied())
    }

    async fn fill(
        &mut self,
        run: &mut Run<'_>,
        log: u64,
        low: u64,
        most: u64,
    ) -> Result<(), StoreError> {
        if run.keys >= MAX_KEYS_READ {
            return Ok(());
        }
        let limit = self.chunk;
        self.chunk = (self.chunk * 4).min(CHUNKS.1);
        let keys = match self.column {
            EVERY => "tree = $1 AND seq <= $2 AND seq >= $3".to_owned(),
            column => format!("{column} = $1 AND seq <= $2 AND seq >= $3 AND log_no = $5"),
        };
        // All in one row: thousands of rows would cost ten times what it costs to find them.
        let statement = format!(
            "SELECT string_agg(CAST(seq AS TEXT), ',') AS seqs FROM (SELECT seq FROM audit_entry \
             WHERE {keys} ORDER BY seq DESC LIMIT $4) k"
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(self.value.clone())
            .bind(bigint(most))
            .bind(bigint(low))
            .bind(i64::from(limit));
        if self.column != EVERY {
            query = query.bind(bigint(log));
        }
        let row = query.fetch_one(run.pool).await?;
        let text = row.opt_text("seqs")?.unwrap_or_default();
        let corrupt = |_| StoreError::Corrupt("sequence numbers".to_owned());
        let mut seqs = text
            .split_terminator(',')
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()
            .map_err(corrupt)?;
        // No database promises in which order it adds up.
        seqs.sort_unstable_by_key(|seq| std::cmp::Reverse(*seq));
        run.keys += seqs.len().max(1);
        self.ended = seqs.len() < limit as usize;
        self.buffer.extend(seqs);
        Ok(())
    }
}
