//! `open` and `forward`: from a bound port to the end of the session.
//!
//! In this order, so that what can fail without asking anybody fails first: viewer of the
//! configuration, local ports, mediator, known agents, viewer of the redirector, session.

mod ended;
pub mod explain;
mod no_path;
mod refusal;
mod run;

use std::{pin::pin, time::Instant};

use adit_control::Peer;
use adit_net::identity::DeviceIdentity;
use adit_protocol::{
    code::failure as codes,
    ids::SessionId,
    keys::Fingerprint,
    limits::MAX_TEXT,
    target::{Target, Transport},
    wire::{self, frame::Body},
};
use adit_runtime::{
    cli::{CliError, Exit, escape_text},
    datadir::DataDir,
    shutdown::Shutdown,
    time::{format_ms, now_rfc3339},
};

use crate::{
    cli::{ForwardArgs, OpenArgs, SessionArgs},
    config::Context,
    credentials,
    events::Reporter,
    failure,
    forward::{Local, Protocol, Users},
    learning,
    link::{Caller, REQUEST_TIMEOUT, list_request, matching, only_one, tell_refusal},
    session::{ABANDON, Enrolment, OpenRequest, Session, Sessions, Wanted, wish},
    state::{
        KnownAgents, KnownComputer, KnownRedirector, MediatorTrust, Selector, Verdict,
        account::pin_first,
        book::{self, Book, Owner},
        recent::{self, Recent},
    },
    viewer::{
        self, Choice, Values,
        credential::{Handover, Usable, Way},
    },
};

pub use run::Running;

/// What this console refuses where nobody else sees it; everything else the mediator refuses and
/// records itself.
const OWN_REFUSALS: [&str; 5] = [
    "agent_key_changed",
    "agent_untrusted",
    codes::AUDIT_UNPROVEN,
    codes::AUDIT_FORKED,
    codes::AUDIT_FOREIGN,
];
/// The console had the computer described otherwise than it is.
const STALE: [&str; 2] = [codes::STALE_KEY, codes::STALE_DESCRIPTION];
/// A port where the web service speaks TLS, unless the redirector's name says it.
const HTTPS_PORTS: [u16; 2] = [443, 8443];
/// The kind of viewer of web services.
const BROWSER: &str = "browser";

/// `open COMPUTER REDIRECTOR`.
pub async fn open(
    context: &Context,
    args: &OpenArgs,
    shutdown: &Shutdown,
    started: Instant,
) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let identity = caller.identity();
    let local = Local::tcp(args.local, None).await?.serving(context.local_users()?);
    let mut reporter = Reporter::new(context.global.output(), started)?;
    warn_if_open(&reporter, &local);
    // As the address book has the computer; what does not fit then is found out below.
    let guess = |computer: &KnownComputer, first_contact| {
        let redirector = computer.redirector(&args.redirector)?;
        let viewer = choose_viewer(context, args, &redirector).ok()?;
        Some(wish(computer, &wanted_of(&redirector, viewer.as_ref(), args), first_contact))
    };
    let start = Start { context, given: &args.computer, options: &args.session, shutdown };
    let mut opening = Opening::start(start, caller, &guess).await?;
    let planned = async {
        let redirector = opening.redirector(&args.redirector).await?;
        let viewer = choose_viewer(context, args, &redirector)?;
        Ok((redirector, viewer))
    };
    let (redirector, viewer) = match planned.await {
        Ok(planned) => planned,
        Err(error) => {
            opening.sessions.abandon().await;
            return Err(error);
        }
    };
    let values = viewer.as_ref().map(|_| viewer_values(&local, &redirector, &opening, args));
    let mut local = local.leading_to(redirector.target.clone());
    if redirector.viewer == BROWSER {
        local = local.leading_to_web(context.local_hosts()?);
    }
    let wanted = wanted_of(&redirector, viewer.as_ref(), args);
    let mut running = Running::new(args.session.carrier, shutdown);
    let mut begun = opening.begin(&wanted, vec![local], &mut running, &mut reporter).await;
    if let (Ok(()), Some(choice), Some(values)) = (&begun, viewer, values) {
        let session = running.first_session();
        let given = give(&opening.sessions.peer, &identity, session, &choice, values, args);
        let given = tokio::select! {
            given = running.meanwhile(given, &mut reporter) => given,
            () = shutdown.token().cancelled_owned() => Err(CliError::interrupted()),
        };
        begun = given.and_then(|(values, handover)| {
            running.launch(&choice, &values, handover, args.keep, &mut reporter)
        });
    }
    running.run(opening.sessions, begun, &mut reporter).await
}

/// The credential for a viewer: the one that was named, else the one that is used by itself.
async fn give(
    peer: &Peer,
    identity: &DeviceIdentity,
    session: SessionId,
    choice: &Choice,
    mut values: Values,
    args: &OpenArgs,
) -> Result<(Values, Option<Handover>), CliError> {
    let name = args.credential.as_deref();
    if args.no_credential || !choice.takes_secrets() {
        return match name {
            Some(_) => Err(choice.unsupported("credential")),
            None => Ok((values, None)),
        };
    }
    let Some(usable) = credentials::fetch(peer, identity, session, name).await? else {
        return Ok((values, None));
    };
    // Somebody who says who to be is not somebody else's credential.
    let other = args.user.is_some() && usable.user.is_some() && args.user != usable.user;
    let Some(way) = choice.way(&usable.kind).filter(|_| !other) else {
        return match name {
            Some(_) if other => {
                let text = "--user is not the user of that credential";
                Err(CliError::usage("usage", text).hint("leave --user out"))
            }
            Some(_) => Err(choice.unsupported(&usable.kind)),
            None => Ok((values, None)),
        };
    };
    values.user = values.user.or_else(|| usable.user.clone());
    Ok((values, Some(hand_over(way, usable).await?)))
}

#[cfg(unix)]
async fn hand_over(way: Way, usable: Usable) -> Result<Handover, CliError> {
    viewer::handover::prepare(way, usable).await
}

#[cfg(not(unix))]
async fn hand_over(_: Way, usable: Usable) -> Result<Handover, CliError> {
    let text = format!("on this system no viewer can be given a stored {}", usable.kind);
    Err(CliError::failed("credential_unsupported", text))
}

/// `forward COMPUTER (-L|-U|-D)…`: a session for each kind, since each is permitted on its own.
pub async fn forward(
    context: &Context,
    args: &ForwardArgs,
    shutdown: &Shutdown,
    started: Instant,
) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let locals = bind_all(args, context.local_users()?).await?;
    let mut reporter = Reporter::new(context.global.output(), started)?;
    locals.iter().for_each(|local| warn_if_open(&reporter, local));
    let mut groups: Vec<(Protocol, Vec<Local>)> = Vec::new();
    for local in locals {
        let protocol = local.protocol();
        match groups.iter_mut().find(|(p, _)| *p == protocol) {
            Some((_, group)) => group.push(local),
            None => groups.push((protocol, vec![local])),
        }
    }
    let guess = |computer: &KnownComputer, first_contact| {
        let (protocol, group) = groups.first()?;
        Some(wish(computer, &wanted_of_group(*protocol, group, args), first_contact))
    };
    let start = Start { context, given: &args.computer, options: &args.session, shutdown };
    let mut opening = Opening::start(start, caller, &guess).await?;
    let mut running = Running::new(args.session.carrier, shutdown);
    let mut begun = Ok(());
    for (protocol, group) in groups {
        let wanted = wanted_of_group(protocol, &group, args);
        begun = opening.begin(&wanted, group, &mut running, &mut reporter).await;
        if begun.is_err() {
            // All or nothing: those that were granted before end in `run`.
            break;
        }
    }
    running.run(opening.sessions, begun, &mut reporter).await
}

/// No viewer if none is wanted, or the redirector names none.
fn choose_viewer(
    context: &Context,
    args: &OpenArgs,
    redirector: &KnownRedirector,
) -> Result<Option<Choice>, CliError> {
    if args.no_launch || redirector.viewer.is_empty() {
        return Ok(None);
    }
    viewer::choose(&redirector.viewer, &context.config, context.global.json).map(Some)
}

fn wanted_of<'a>(
    redirector: &'a KnownRedirector,
    viewer: Option<&Choice>,
    args: &'a OpenArgs,
) -> Wanted<'a> {
    Wanted {
        redirector: &redirector.name,
        targets: vec![redirector.target.clone()],
        any_target: false,
        viewer: viewer.map(Choice::name).unwrap_or_default(),
        options: &args.session,
    }
}

fn wanted_of_group<'a>(protocol: Protocol, group: &[Local], args: &'a ForwardArgs) -> Wanted<'a> {
    let mut targets: Vec<Target> = group.iter().filter_map(|l| l.target().cloned()).collect();
    targets.sort();
    targets.dedup();
    Wanted {
        redirector: protocol.redirector(),
        targets,
        any_target: protocol == Protocol::Socks,
        viewer: String::new(),
        options: &args.session,
    }
}

async fn bind_all(args: &ForwardArgs, users: Users) -> Result<Vec<Local>, CliError> {
    let count = args.tcp.len().max(args.udp.len());
    if count > adit_protocol::limits::MAX_TARGETS_PER_GRANT {
        return Err(CliError::usage("usage", "more forwards than one session may have")
            .hint("use -D, or several commands"));
    }
    let wrong = |error| CliError::usage("usage", format!("target: {error}"));
    let mut locals = Vec::new();
    for spec in &args.tcp {
        let target = spec.target(Transport::Tcp).map_err(wrong)?;
        locals.push(Local::tcp(spec.listen, Some(target)).await?);
    }
    for spec in &args.udp {
        let target = spec.target(Transport::Udp).map_err(wrong)?;
        locals.push(Local::udp(spec.listen, target).await?);
    }
    for spec in &args.socks {
        locals.push(Local::tcp(spec.0, None).await?);
    }
    Ok(locals.into_iter().map(|local| local.serving(users)).collect())
}

fn warn_if_open(reporter: &Reporter, local: &Local) {
    if local.is_open_to_others() {
        let address = local.address();
        reporter.remark(&format!("{address}: others than this machine may be able to connect"));
    }
}

fn is_https(redirector: &KnownRedirector) -> bool {
    redirector.name.ends_with("https") || HTTPS_PORTS.contains(&redirector.target.port())
}

fn viewer_values(
    local: &Local,
    redirector: &KnownRedirector,
    opening: &Opening<'_>,
    args: &OpenArgs,
) -> Values {
    let address = local.connect_address();
    Values {
        host: address.ip(),
        port: address.port(),
        user: args.user.clone(),
        https: is_https(redirector),
        own_computer: redirector.target.ip().is_some_and(|ip| ip.is_loopback()),
        computer: opening.computer.id,
        title: opening.computer.name.clone(),
    }
}

/// A computer as it was described last.
struct Remembered {
    computer: KnownComputer,
    first_contact: bool,
    /// Of the installation whose mediator described it.
    root: Option<Fingerprint>,
}

/// The computer from the address book, unless its key is not the known one.
fn remembered(
    directory: &DataDir,
    (owner, installation): (&Owner, &str),
    selector: &Selector,
) -> Option<Remembered> {
    let book = Book::load(directory, owner);
    let computer = book.find(selector)?;
    let known = KnownAgents::load(directory).ok()?;
    let first_contact = match known.check(&computer.presented(installation)) {
        Verdict::Known => false,
        Verdict::FirstContact => true,
        Verdict::Changed { .. } => return None,
    };
    Some(Remembered { computer, first_contact, root: book.root })
}

/// The computer that is meant, from the answer to the question that went with `Hello`.
async fn look_up(
    sessions: &mut Sessions,
    caller: &Caller,
    question: Body,
    (selector, given): (&Selector, &str),
) -> Result<KnownComputer, CliError> {
    let answer = match sessions.answer.take() {
        Some(answer) => answer.await,
        // The connection was made in a second attempt.
        None => sessions.peer.request(question, REQUEST_TIMEOUT).await,
    };
    let first = match answer {
        Ok(Body::Computers(page)) => page,
        Err(error) => return Err(caller.explain(failure::request(&error))),
        _ => return Err(failure::unexpected()),
    };
    let found: Vec<KnownComputer> = match first.next.is_empty() {
        true => {
            let usable = first.computers.into_iter().filter_map(KnownComputer::from_wire);
            usable.filter(|computer| selector.matches(computer)).collect()
        }
        // More than a page contains the name: read them all.
        false => matching(&sessions.peer, selector).await?,
    };
    match only_one(&found, given) {
        Ok(computer) => Ok(computer.clone()),
        Err(error) => {
            // Several that match are no refusal: nothing was asked for yet.
            if found.is_empty() {
                tell_refusal(&sessions.peer, refusal(&error, given)).await;
            }
            Err(error)
        }
    }
}

/// What the mediator is told of a refusal before a computer is known.
fn refusal(error: &CliError, given: &str) -> wire::ConsoleRefusal {
    let mut computer = given.to_owned();
    while computer.len() > MAX_TEXT {
        computer.pop();
    }
    wire::ConsoleRefusal { computer, code: error.code.to_owned(), ..Default::default() }
}

/// A computer that was found, on the way to sessions with it.
struct Opening<'a> {
    context: &'a Context,
    sessions: Sessions,
    installation: String,
    given: &'a str,
    selector: Selector,
    computer: KnownComputer,
    owner: Owner,
    /// The address book was not looked after yet.
    learns: bool,
    shutdown: &'a Shutdown,
}

/// What an opening begins with.
struct Start<'a> {
    context: &'a Context,
    given: &'a str,
    options: &'a SessionArgs,
    shutdown: &'a Shutdown,
}

/// What will be asked of a computer that is in the address book, perhaps at first contact.
type Guess<'g> = &'g (dyn Fn(&KnownComputer, bool) -> Option<OpenRequest> + Sync);

impl<'a> Opening<'a> {
    /// Connects and finds the computer. The question travels with `Hello`, and if the computer is in
    /// the address book, so does the wish for a session; it is dropped if the answer shows that it
    /// was made for something else.
    async fn start(start: Start<'a>, caller: Caller, guess: Guess<'_>) -> Result<Self, CliError> {
        let interrupt = start.shutdown.token();
        let mut found = pin!(Self::find(start, caller, guess));
        tokio::select! {
            started = &mut found => return started,
            () = interrupt.cancelled() => {}
        }
        // The wish may have left already, and be granted.
        let abandon = async {
            if let Ok(mut opening) = found.await {
                opening.sessions.abandon().await;
            }
        };
        if tokio::time::timeout(ABANDON, abandon).await.is_err() {
            tracing::debug!("nothing was heard of a session that may have been asked for");
        }
        Err(CliError::interrupted())
    }

    async fn find(start: Start<'a>, caller: Caller, guess: Guess<'_>) -> Result<Self, CliError> {
        let Start { context, given, options, shutdown } = start;
        let selector = Selector::from(given);
        let installation = caller.account.installation();
        let owner = Owner::of(&caller.account);
        let (place, whose) = (context.directory.clone(), (owner.clone(), installation.clone()));
        let meant = selector.clone();
        let look = move || remembered(&place, (&whose.0, &whose.1), &meant);
        let trust = caller.account.trust;
        let wish = async {
            let found = tokio::task::spawn_blocking(look).await.ok().flatten()?;
            let root = match trust {
                MediatorTrust::Root(root) => root,
                MediatorTrust::WebPki => found.root?,
            };
            Some((guess(&found.computer, found.first_contact)?, root))
        };
        let question = list_request(&selector.query(), "", false, "");
        let mut sessions =
            Sessions::start(context, &caller, options.carrier, wish, question.clone()).await?;
        let found = look_up(&mut sessions, &caller, question, (&selector, given));
        let computer = match found.await {
            Ok(computer) => computer,
            Err(error) => {
                sessions.abandon().await;
                return Err(error);
            }
        };
        let learns = true;
        let opening = Self {
            context,
            sessions,
            installation,
            given,
            selector,
            computer,
            owner,
            learns,
            shutdown,
        };
        Ok(opening)
    }

    async fn redirector(&self, name: &str) -> Result<KnownRedirector, CliError> {
        if let Some(redirector) = self.computer.redirector(name) {
            return Ok(redirector);
        }
        let names: Vec<&str> = self.computer.redirectors.iter().map(|r| r.name.as_str()).collect();
        let message = format!(
            "{} has no redirector \"{}\"",
            escape_text(&self.computer.name),
            escape_text(name)
        );
        let error = CliError::not_there("no_such_redirector", message)
            .hint(format!("there are: {}", names.join(", ")));
        let refusal = wire::ConsoleRefusal { redirector: name.to_owned(), ..self.refusal(&error) };
        tell_refusal(&self.sessions.peer, refusal).await;
        Err(error)
    }

    /// What the mediator is told of a refusal of ours.
    fn refusal(&self, error: &CliError) -> wire::ConsoleRefusal {
        wire::ConsoleRefusal {
            computer_id: self.computer.id.to_bytes(),
            ..refusal(error, self.given)
        }
    }

    /// Opens a session after comparing the agent's key with what is known of it, tells of it, and
    /// serves its local ends.
    async fn begin(
        &mut self,
        wanted: &Wanted<'_>,
        locals: Vec<Local>,
        running: &mut Running,
        reporter: &mut Reporter,
    ) -> Result<(), CliError> {
        let asked = self.ask_unless_interrupted(wanted);
        let asked = running.meanwhile(asked, reporter).await;
        let (session, first_contact) = match asked {
            Ok(opened) => opened,
            Err(error) => {
                // One that was asked for before its computer was known.
                self.sessions.abandon().await;
                return Err(self.refused(error, wanted).await);
            }
        };
        let enrolment = session.enrolment.map(Enrolment::from);
        let handle = running.granted(session, &self.computer, first_contact, reporter)?;
        if first_contact {
            let key = self.computer.identity.fingerprint();
            reporter.remark(&format!("first contact with the agent of {}", self.computer.path()));
            reporter
                .remark(&format!("its key is {key}: compare it with agent-tunnel status there"));
            if let Some(enrolment) = enrolment {
                reporter.remark(&format!(
                    "enrolled with it on {}, entry {} of the audit log",
                    format_ms(enrolment.time_ms),
                    enrolment.seq
                ));
            }
        }
        // Before anything is carried.
        running.meanwhile(self.remember(), reporter).await?;
        running.serve(&handle, locals, reporter)?;
        let opened =
            Recent { computer: self.computer.id, redirector: wanted.redirector.to_owned() };
        let (directory, owner) = (self.context.directory.clone(), self.owner.clone());
        let (computer, root) = (self.computer.clone(), self.sessions.root);
        if std::mem::take(&mut self.learns) {
            let peer = self.sessions.peer.clone();
            running.aside(learning::quietly(directory.clone(), owner.clone(), root, peer));
        }
        let partner = self.sessions.partner();
        // Files are written while the first bytes are under way, and must not hold them up.
        running.besides(move || {
            recent::remember(&directory, opened);
            book::update(&directory, &owner, |book| {
                book.root = Some(root);
                book.opened(&computer);
            });
            pin_first(&directory, partner.as_deref());
        });
        Ok(())
    }

    /// Tells the mediator what we refused ourselves, and the user how to satisfy the mediator.
    async fn refused(&self, error: CliError, wanted: &Wanted<'_>) -> CliError {
        if OWN_REFUSALS.contains(&error.code) {
            tell_refusal(&self.sessions.peer, self.refusal_of(&error, wanted)).await;
        }
        if error.code == codes::APPROVAL_REQUIRED {
            let (computer, redirector) = (escape_text(&self.computer.path()), wanted.redirector);
            return error.hint(format!(
                "console-tunnel requests make {computer} {redirector} --reason TEXT, and open it \
                 when it is approved"
            ));
        }
        error
    }

    fn refusal_of(&self, error: &CliError, wanted: &Wanted<'_>) -> wire::ConsoleRefusal {
        wire::ConsoleRefusal {
            redirector: wanted.redirector.to_owned(),
            targets: wanted.targets.iter().map(Target::to_wire).collect(),
            any_target: wanted.any_target,
            ..self.refusal(error)
        }
    }

    /// A session with the computer, after comparing its key with what is known of it; and whether
    /// that is the first contact.
    async fn ask_unless_interrupted(
        &mut self,
        wanted: &Wanted<'_>,
    ) -> Result<(Session, bool), CliError> {
        let interrupt = self.shutdown.token();
        let mut asked = pin!(self.ask(wanted));
        tokio::select! {
            session = &mut asked => return session,
            () = interrupt.cancelled() => {}
        }
        // The answer may be a grant that is on its way already: one that began here is ended as
        // any other, one that nobody awaits would stay until the agent gives up.
        if tokio::time::timeout(ABANDON, asked).await.is_err() {
            tracing::debug!("a session that was asked for may begin without us");
        }
        Err(CliError::interrupted())
    }

    async fn ask(&mut self, wanted: &Wanted<'_>) -> Result<(Session, bool), CliError> {
        match self.ask_once(wanted).await {
            // It has another Noise key or name since it was described: look it up once again.
            Err(error) if STALE.contains(&error.code) => {
                let found = matching(&self.sessions.peer, &self.selector).await?;
                self.computer = only_one(&found, self.given)?.clone();
                self.ask_once(wanted).await
            }
            other => other,
        }
    }

    async fn ask_once(&mut self, wanted: &Wanted<'_>) -> Result<(Session, bool), CliError> {
        let first_contact = self.check_key()? == Verdict::FirstContact;
        let asked = self.sessions.open(&self.computer, wanted, first_contact).await;
        match asked {
            Ok(session) => Ok((session, first_contact)),
            Err(error) => {
                let unreachable = error.exit == Exit::NoPath;
                let known = OWN_REFUSALS.contains(&error.code) || STALE.contains(&error.code);
                if first_contact && !unreachable && !known {
                    // What is not proved comes before anything else that may be wrong.
                    self.sessions.enrolment(&self.computer).await?;
                }
                Err(error)
            }
        }
    }

    fn check_key(&self) -> Result<Verdict, CliError> {
        let known = KnownAgents::load(&self.context.directory)?;
        let seen = self.computer.presented(&self.installation);
        let verdict = known.check(&seen);
        let Verdict::Changed { known, new_id } = verdict else { return Ok(verdict) };
        let path = escape_text(&self.computer.path());
        let what = if new_id { "is another computer than before" } else { "has another key" };
        let message = format!("{path} {what}: known is {known}, now it presents {}", seen.key);
        Err(CliError::refused("agent_key_changed", message).hint(format!(
            "if it was installed anew, compare the key with agent-tunnel status there, then: \
             console-tunnel trust {} {}",
            self.computer.id, seen.key
        )))
    }

    async fn remember(&self) -> Result<(), CliError> {
        let seen = self.computer.presented(&self.installation);
        if KnownAgents::load(&self.context.directory)?.is_complete(&seen) {
            return Ok(());
        }
        let now = now_rfc3339();
        KnownAgents::update(&self.context.directory, |known| known.remember(&seen, &now)).await?;
        Ok(())
    }
}
