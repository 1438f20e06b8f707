//! The picker: `console-tunnel` on a terminal. Search a computer, press Enter, have it open.
//!
//! - [`model`]: the state machine; [`rank`]: what a query means
//! - [`view`]: drawing; [`terminal`]: the terminal while it is ours
//!
//! Keys are never held up by the network: a task of its own asks the mediator, again and again,
//! and the latest answer is taken when it is there. While a session runs the terminal is given
//! back to it; afterwards the picker is there again, with what went wrong if anything did.

pub mod model;
pub mod rank;
pub mod terminal;
pub mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use adit_control::{
    Incoming, Peer,
    client::{DownReason, Event, Persistent},
};
use adit_protocol::ids::ComputerId;
use adit_runtime::{
    cli::{CliError, GlobalArgs},
    output::color_allowed,
    shutdown::Shutdown,
    time::unix_ms,
};
use clap::Parser;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    cli::{Cli, Command, OpenArgs},
    config::Context,
    failure, learning,
    link::{Caller, list_computers, refuse},
    open,
    state::{KnownComputer, book::Owner, recent},
};
use model::{Action, Picker};
use terminal::{FromTerminal, Screen};
use view::View;

/// Rest between two lists.
const REFRESH: Duration = Duration::from_secs(2);
/// The rest is at least as many times what the list took: thousands of computers are asked for
/// less often.
const REFRESH_SHARE: u32 = 20;
/// Longest rest between two lists.
const MAX_REFRESH: Duration = Duration::from_secs(60);
/// How often "seen … ago" is drawn again.
const TICK: Duration = Duration::from_secs(5);

/// Why a turn of the picker ended.
enum End {
    Leave,
    Open(OpenArgs),
}

/// What is known from the mediator.
type News = Option<Result<Arc<Vec<KnownComputer>>, String>>;

/// Runs the picker until the user leaves it.
pub async fn run(context: &Context, shutdown: &Shutdown) -> Result<(), CliError> {
    let caller = Caller::load(context)?;
    let owner = Owner::of(&caller.account);
    let mut picker = Picker::new(recent::load(&context.directory).unwrap_or_default());
    let mut view = View::new(color_allowed());
    let (news_in, mut news) = watch::channel(News::None);
    let refresh = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(ask_again_and_again(caller, news_in, Arc::clone(&refresh)));
    loop {
        let end = choose(&mut picker, &mut view, &mut news, &refresh, shutdown).await?;
        let End::Open(args) = end else { return Ok(()) };
        let picked = match &*news.borrow() {
            Some(Ok(computers)) => {
                computers.iter().find(|known| known.id.to_string() == args.computer).cloned()
            }
            _ => None,
        };
        if let Some(computer) = picked {
            learning::at_pick(&context.directory, &owner, computer).await;
        }
        let outcome = open::open(context, &args, shutdown, Instant::now()).await;
        if shutdown.token().is_cancelled() {
            return outcome;
        }
        let recent = recent::load(&context.directory).unwrap_or_default();
        picker.handle_done(outcome, recent);
        refresh.notify_one();
    }
}

/// One turn with the terminal.
async fn choose(
    picker: &mut Picker,
    view: &mut View,
    news: &mut watch::Receiver<News>,
    refresh: &Notify,
    shutdown: &Shutdown,
) -> Result<End, CliError> {
    let mut screen = Screen::take()?;
    let stop = shutdown.token();
    let mut hung_up = shutdown.reload();
    // What came while a session ran.
    news.mark_changed();
    loop {
        draw(&mut screen, view, picker)?;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(CliError::interrupted()),
            // For a program on a terminal a hang-up is the terminal's end.
            () = hung_up.next() => return Ok(End::Leave),
            told = screen.next() => {
                match told {
                    FromTerminal::Input(input) => picker.handle_input(input),
                    FromTerminal::Page(pages) => {
                        let page = View::page(screen.terminal.size().map_or(1, |s| s.height));
                        let lines = isize::try_from(page).unwrap_or(1).saturating_mul(pages);
                        picker.handle_input(model::Input::Move(lines));
                    }
                    FromTerminal::Resized => screen.terminal.clear().map_err(cannot_draw)?,
                    FromTerminal::Gone => return Ok(End::Leave),
                }
                match picker.poll_action() {
                    None => {}
                    Some(Action::Refresh) => refresh.notify_one(),
                    Some(Action::Quit) => return Ok(End::Leave),
                    Some(Action::Interrupt) => return Err(CliError::interrupted()),
                    Some(Action::Open { computer, redirector, reason, ticket }) => {
                        return arguments(computer, &redirector, &reason, &ticket).map(End::Open);
                    }
                }
                screen.go_on();
            }
            Ok(()) = news.changed() => match &*news.borrow_and_update() {
                None => {}
                Some(Ok(computers)) => picker.handle_computers(computers),
                Some(Err(why)) => picker.handle_unreachable(why),
            },
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

fn draw(screen: &mut Screen, view: &mut View, picker: &Picker) -> Result<(), CliError> {
    let now = unix_ms();
    screen.terminal.draw(|frame| view.draw(picker, now, frame)).map(drop).map_err(cannot_draw)
}

fn cannot_draw(error: std::io::Error) -> CliError {
    CliError::failed("terminal_failed", format!("cannot draw on the terminal: {error}"))
}

/// Those of `console-tunnel open`.
fn arguments(
    computer: ComputerId,
    redirector: &str,
    reason: &str,
    ticket: &str,
) -> Result<OpenArgs, CliError> {
    let (reason, ticket) = (format!("--reason={reason}"), format!("--ticket={ticket}"));
    let computer = computer.to_string();
    let line = ["console-tunnel", "open", &reason, &ticket, "--", &computer, redirector];
    match Cli::try_parse_from(line).map(|parsed| parsed.command) {
        Ok(Some(Command::Open(args))) => Ok(args),
        _ => Err(CliError::failed("internal", "the picker's command is not understood")),
    }
}

/// Keeps a control connection up and asks for all computers.
async fn ask_again_and_again(caller: Caller, news: watch::Sender<News>, refresh: Arc<Notify>) {
    let owned = caller.clone();
    let (_handle, mut events, keep_up) =
        Persistent::start(move || owned.config(owned.account.trust.into(), Vec::new()));
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_up);
    let mut up: Option<(Peer, Incoming)> = None;
    let mut rest = Duration::ZERO;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => return,
                Some(Event::Up(connected)) => {
                    up = Some((connected.peer, connected.incoming));
                    rest = Duration::ZERO;
                }
                Some(Event::Down { error, .. }) => {
                    up = None;
                    let why = match &error {
                        DownReason::Connect(error) => {
                            caller.explain(failure::connect(error)).message
                        }
                        closed => closed.to_string(),
                    };
                    news.send_replace(Some(Err(why)));
                }
            },
            told = next_list(&mut up, rest, &refresh) => {
                rest = told.1;
                news.send_replace(Some(told.0));
            }
        }
    }
}

/// Waits its time, then asks; for ever without a connection. Requests of the mediator are refused
/// meanwhile: without sessions it has none.
async fn next_list(
    up: &mut Option<(Peer, Incoming)>,
    rest: Duration,
    refresh: &Notify,
) -> (Result<Arc<Vec<KnownComputer>>, String>, Duration) {
    let Some((peer, incoming)) = up else { return std::future::pending().await };
    let asked = async {
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = refresh.notified() => {}
        }
        let began = Instant::now();
        let listed = list_computers(peer, "", "", false).await;
        let rest = began.elapsed().saturating_mul(REFRESH_SHARE).clamp(REFRESH, MAX_REFRESH);
        (listed.map(Arc::new).map_err(|error| error.message), rest)
    };
    let refusing = async {
        while let Some(request) = incoming.recv().await {
            refuse(request);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        told = asked => told,
        () = refusing => std::future::pending().await,
    }
}

/// Whether there is a terminal that can show the picker.
pub fn is_possible(global: &GlobalArgs) -> bool {
    use std::io::IsTerminal;
    !global.json
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
