//! The picker as a state machine: keys and lists of computers in, one thing to do out. No
//! terminal, no network, no clock.
//!
//! INVARIANT: what Enter opens is the computer that was marked when the key was pressed, whatever
//! lists came in between: the mark stays with a computer, not with a line.

use std::{cmp::Reverse, collections::BTreeMap};

use adit_protocol::{code::failure as codes, ids::ComputerId};
use adit_runtime::cli::{CliError, escape_text};

use super::rank::{Fit, Searched, words};
use crate::state::{KnownComputer, recent::Recent};

/// Longest query, characters.
pub const MAX_QUERY: usize = 120;
/// Longest reason or ticket, characters; each has at most four bytes.
const MAX_ANSWER: usize = adit_protocol::limits::MAX_TEXT / 4;

/// What the user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// More of a query.
    Text(String),
    /// The last letter of the query goes.
    Backspace,
    /// Its last word goes.
    DropWord,
    /// All of it goes.
    Clear,
    /// Lines up (negative) or down.
    Move(isize),
    /// To the first line.
    First,
    /// To the last line.
    Last,
    /// Another redirector.
    Redirector(Turn),
    /// Open it.
    Open,
    /// Away with what is in the way: message, query, picker.
    Escape,
    /// Away with the picker.
    Quit,
    /// Ctrl-C.
    Interrupt,
    /// Ask the mediator again, now.
    Refresh,
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Forth.
    Next,
    /// Back.
    Previous,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a redirector.
    Open {
        /// On this computer.
        computer: ComputerId,
        /// Name of the redirector.
        redirector: String,
        /// Why, if it was asked for.
        reason: String,
        /// Ticket number, if it was asked for.
        ticket: String,
    },
    /// Leave.
    Quit,
    /// Leave, interrupted.
    Interrupt,
    /// Ask the mediator again.
    Refresh,
}

/// What the mediator wants to know before it opens something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Why.
    Reason,
    /// For which ticket.
    Ticket,
}

impl Question {
    /// By the code of the mediator's refusal.
    fn of(code: &str) -> Option<Self> {
        match code {
            codes::REASON_REQUIRED => Some(Self::Reason),
            codes::TICKET_REQUIRED => Some(Self::Ticket),
            _ => None,
        }
    }

    /// In front of the answer.
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Reason => "reason> ",
            Self::Ticket => "ticket> ",
        }
    }
}

/// What was opened last, with the answers that it took.
#[derive(Debug)]
struct Wish {
    computer: ComputerId,
    redirector: String,
    reason: String,
    ticket: String,
}

/// How the mediator can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// The first answer is awaited.
    Waiting,
    /// The list is fresh.
    Fresh,
    /// The list is of before: why.
    Stale(String),
}

/// A computer as shown; all text is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Which.
    pub id: ComputerId,
    /// Its name.
    pub name: String,
    /// `partner/client`.
    pub client: String,
    /// Operating system.
    pub os: String,
    /// Whether its agent is connected.
    pub online: bool,
    /// Milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Names of its redirectors.
    pub redirectors: Vec<String>,
    searched: Searched,
}

/// The picker.
#[derive(Debug)]
pub struct Picker {
    lines: Vec<Line>,
    /// Indices of the lines that fit the query, best first.
    shown: Vec<usize>,
    query: String,
    /// Stays when its computer has gone from the list: then no line is marked.
    marked: Option<ComputerId>,
    /// Where the mark is, or was.
    place: usize,
    /// Redirectors chosen here, by computer.
    chosen: BTreeMap<ComputerId, String>,
    recent: Vec<Recent>,
    reach: Reach,
    message: Option<CliError>,
    wish: Option<Wish>,
    /// What is asked in place, and the answer so far.
    asking: Option<(Question, String)>,
    actions: Vec<Action>,
}

impl Picker {
    /// Without any list yet. `recent`: the latest first.
    pub fn new(recent: Vec<Recent>) -> Self {
        Self {
            lines: Vec::new(),
            shown: Vec::new(),
            query: String::new(),
            marked: None,
            place: 0,
            chosen: BTreeMap::new(),
            recent,
            reach: Reach::Waiting,
            message: None,
            wish: None,
            asking: None,
            actions: Vec::new(),
        }
    }

    /// A list came.
    pub fn handle_computers(&mut self, computers: &[KnownComputer]) {
        self.lines = computers.iter().map(line).collect();
        self.reach = Reach::Fresh;
        self.arrange();
    }

    /// The mediator cannot be reached; what is shown is of before.
    pub fn handle_unreachable(&mut self, why: &str) {
        self.reach = Reach::Stale(escape_text(why));
    }

    /// What was asked for came to an end; `recent` as it is now.
    pub fn handle_done(&mut self, outcome: Result<(), CliError>, recent: Vec<Recent>) {
        self.message = outcome.err();
        let code = self.message.as_ref().map(|error| error.code);
        let question = code.and_then(Question::of).filter(|question| match &self.wish {
            None => false,
            Some(wish) if *question == Question::Reason => wish.reason.is_empty(),
            Some(wish) => wish.ticket.is_empty(),
        });
        self.asking = question.map(|question| (question, String::new()));
        self.recent = recent;
        self.arrange();
    }

    /// The user did something.
    pub fn handle_input(&mut self, input: Input) {
        let Some(input) = self.answer(input) else { return };
        // A message is read with the next key.
        let message = self.message.take();
        match input {
            Input::Text(text) => {
                let free = MAX_QUERY.saturating_sub(self.query.chars().count());
                let printable = text.chars().filter(|c| !c.is_control());
                self.query.extend(printable.take(free));
                self.search();
            }
            Input::Backspace => {
                self.query.pop();
                self.search();
            }
            Input::DropWord => {
                let kept = self.query.trim_end();
                let kept = kept.rfind(char::is_whitespace).map_or(0, |at| at + 1);
                self.query.truncate(kept);
                self.search();
            }
            Input::Clear => self.clear(),
            Input::Move(by) => self.go_to(self.place.saturating_add_signed(by)),
            Input::First => self.go_to(0),
            Input::Last => self.go_to(usize::MAX),
            Input::Redirector(turn) => self.turn(turn),
            Input::Open => self.open(),
            Input::Escape if message.is_some() => {}
            Input::Escape if !self.query.is_empty() => self.clear(),
            Input::Escape | Input::Quit => self.actions.push(Action::Quit),
            Input::Interrupt => self.actions.push(Action::Interrupt),
            Input::Refresh => self.actions.push(Action::Refresh),
        }
    }

    /// While a question is asked, what is typed is its answer; gives back what is not for it.
    fn answer(&mut self, input: Input) -> Option<Input> {
        let Some((question, answer)) = &mut self.asking else { return Some(input) };
        match input {
            Input::Text(text) => {
                let printable = text.chars().filter(|c| !c.is_control());
                let free = MAX_ANSWER.saturating_sub(answer.chars().count());
                answer.extend(printable.take(free));
            }
            Input::Backspace => _ = answer.pop(),
            Input::DropWord | Input::Clear => answer.clear(),
            Input::Open if !answer.trim().is_empty() => {
                let (question, answer) = (*question, answer.trim().to_owned());
                self.asking = None;
                self.message = None;
                if let Some(wish) = &mut self.wish {
                    match question {
                        Question::Reason => wish.reason = answer,
                        Question::Ticket => wish.ticket = answer,
                    }
                }
                self.ask_for_wish();
            }
            Input::Escape => {
                self.asking = None;
                self.message = None;
            }
            Input::Quit | Input::Interrupt => return Some(input),
            // The list waits.
            _ => {}
        }
        None
    }

    fn ask_for_wish(&mut self) {
        if let Some(Wish { computer, redirector, reason, ticket }) = &self.wish {
            self.actions.push(Action::Open {
                computer: *computer,
                redirector: redirector.clone(),
                reason: reason.clone(),
                ticket: ticket.clone(),
            });
        }
    }

    /// What is asked in place, and the answer so far.
    pub fn asking(&self) -> Option<(Question, &str)> {
        self.asking.as_ref().map(|(question, answer)| (*question, answer.as_str()))
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        (!self.actions.is_empty()).then(|| self.actions.remove(0))
    }

    /// Lines that fit, best first.
    pub fn shown(&self) -> impl Iterator<Item = &Line> {
        self.shown.iter().filter_map(|at| self.lines.get(*at))
    }

    /// How many lines fit, and how many there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.shown.len(), self.lines.len())
    }

    /// Which of the shown lines is marked, or would be.
    pub fn place(&self) -> usize {
        self.place
    }

    /// The marked line; none if there is none, or if its computer has just gone.
    pub fn marked(&self) -> Option<&Line> {
        let at = self.shown.get(self.place)?;
        self.lines.get(*at).filter(|line| Some(line.id) == self.marked)
    }

    /// The redirector that Enter opens on a line.
    pub fn redirector<'a>(&'a self, line: &'a Line) -> Option<&'a str> {
        let has = |name: &str| line.redirectors.iter().any(|known| known == name);
        let chosen = self.chosen.get(&line.id).map(String::as_str);
        let before = self.recent.iter().filter(|r| r.computer == line.id);
        let before = before.map(|r| r.redirector.as_str());
        let usual = usual(&line.os).into_iter();
        let first = line.redirectors.iter().map(String::as_str);
        chosen.into_iter().chain(before).chain(usual).chain(first).find(|name| has(name))
    }

    /// The query.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// How the mediator can be reached.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What went wrong last, until the next key.
    pub fn message(&self) -> Option<&CliError> {
        self.message.as_ref()
    }

    fn clear(&mut self) {
        self.query.clear();
        self.search();
    }

    /// A changed query marks its best line.
    fn search(&mut self) {
        self.marked = None;
        self.arrange();
    }

    /// Sorts again. The mark stays with its computer.
    fn arrange(&mut self) {
        let words = words(&self.query);
        let mut used: BTreeMap<ComputerId, usize> = BTreeMap::new();
        for (at, recent) in self.recent.iter().enumerate() {
            used.entry(recent.computer).or_insert(at);
        }
        let mut fitting: Vec<_> = self
            .lines
            .iter()
            .enumerate()
            .filter_map(|(at, line)| {
                let fit = line.searched.fit(&words)?;
                let used = used.get(&line.id).copied().unwrap_or(usize::MAX);
                let key = (fit == Fit::Letters, Reverse(line.online), fit, used);
                Some((key, &line.searched, &line.client, line.id, at))
            })
            .collect();
        fitting.sort_by(|a, b| (a.0, a.1.name(), a.2, a.3).cmp(&(b.0, b.1.name(), b.2, b.3)));
        self.shown = fitting.into_iter().map(|entry| entry.4).collect();
        let marked = |at: &usize| self.lines.get(*at).map(|line| line.id) == self.marked;
        match self.marked.map(|_| self.shown.iter().position(marked)) {
            None => self.go_to(0),
            Some(Some(place)) => self.place = place,
            Some(None) => self.place = self.place.min(self.shown.len().saturating_sub(1)),
        }
    }

    fn go_to(&mut self, place: usize) {
        self.place = place.min(self.shown.len().saturating_sub(1));
        let at = self.shown.get(self.place);
        self.marked = at.and_then(|at| self.lines.get(*at)).map(|line| line.id);
    }

    fn turn(&mut self, turn: Turn) {
        let Some(line) = self.marked() else { return };
        let names = &line.redirectors;
        let Some(now) = self.redirector(line) else { return };
        let at = names.iter().position(|name| name == now).unwrap_or(0);
        let next = match turn {
            Turn::Next => at + 1,
            Turn::Previous => (at + names.len()).saturating_sub(1),
        };
        let (id, next) = (line.id, names.get(next % names.len().max(1)).cloned());
        if let Some(next) = next {
            self.chosen.insert(id, next);
        }
    }

    fn open(&mut self) {
        let Some(line) = self.marked() else {
            // Its computer has just gone: another one is not opened by the same key.
            return self.go_to(self.place);
        };
        match self.redirector(line) {
            Some(redirector) => {
                let (computer, redirector) = (line.id, redirector.to_owned());
                let (reason, ticket) = (String::new(), String::new());
                self.wish = Some(Wish { computer, redirector, reason, ticket });
                self.ask_for_wish();
            }
            None => {
                let message = format!("{} has nothing that could be opened", line.name);
                self.message = Some(CliError::not_there("no_such_redirector", message));
            }
        }
    }
}

/// What is usually opened on an operating system.
fn usual(os: &str) -> [&'static str; 5] {
    let os = os.to_lowercase();
    match os {
        os if os.contains("windows") => ["rdp", "vnc", "ssh", "https", "http"],
        os if os.contains("mac") || os.contains("darwin") => ["vnc", "ssh", "rdp", "https", "http"],
        _ => ["ssh", "rdp", "vnc", "https", "http"],
    }
}

fn line(computer: &KnownComputer) -> Line {
    let (name, client) = (escape_text(&computer.name), escape_text(&computer.client));
    let os = escape_text(&computer.os);
    let id = computer.id.to_string();
    Line {
        id: computer.id,
        searched: Searched::new(&name, &[&client, &os, &id]),
        name,
        client,
        os,
        online: computer.online,
        last_seen_ms: computer.last_seen_ms,
        redirectors: computer.redirector_names(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::computer::tests::computer;

    fn pc(id: u8, name: &str, online: bool) -> KnownComputer {
        KnownComputer { online, ..computer(id, "main/acme", name) }
    }

    fn names(picker: &Picker) -> String {
        picker.shown().map(|line| line.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn text(picker: &mut Picker, text: &str) {
        picker.handle_input(Input::Text(text.to_owned()));
    }

    fn opened(picker: &mut Picker) -> Option<u8> {
        picker.handle_input(Input::Open);
        match picker.poll_action() {
            Some(Action::Open { computer, .. }) => Some(computer.0[0]),
            _ => None,
        }
    }

    #[test]
    fn online_comes_before_offline_and_what_was_used_before_the_rest() {
        let used = Recent { computer: ComputerId([3; 16]), redirector: "ssh".into() };
        let mut picker = Picker::new(vec![used]);
        assert_eq!(*picker.reach(), Reach::Waiting);
        picker.handle_computers(&[
            pc(1, "beta", false),
            pc(2, "alpha", true),
            pc(3, "web", true),
            pc(4, "aaa", false),
        ]);
        assert_eq!(names(&picker), "web alpha aaa beta");
        text(&mut picker, "a");
        assert_eq!(names(&picker), "alpha web aaa beta");
        text(&mut picker, "lpa");
        assert_eq!(names(&picker), "alpha");
        assert_eq!(picker.counts(), (1, 4));
        picker.handle_input(Input::Escape);
        assert_eq!(picker.poll_action(), None);
        assert_eq!(picker.query(), "");
        picker.handle_input(Input::Escape);
        assert_eq!(picker.poll_action(), Some(Action::Quit));
    }

    #[test]
    fn what_the_mediator_demands_is_asked_in_place() {
        let mut picker = Picker::new(Vec::new());
        picker.handle_computers(&[pc(1, "a", true)]);
        let refused = |code| Err(CliError::refused(code, "m"));
        let asked = |picker: &mut Picker| match picker.poll_action() {
            Some(Action::Open { reason, ticket, .. }) => (reason, ticket),
            other => panic!("{other:?}"),
        };
        picker.handle_input(Input::Open);
        assert_eq!(asked(&mut picker), Default::default());
        picker.handle_done(refused("reason_required"), Vec::new());
        assert_eq!(picker.asking(), Some((Question::Reason, "")));
        // Nothing is no answer; what is typed is not a query.
        picker.handle_input(Input::Open);
        assert_eq!(picker.poll_action(), None);
        text(&mut picker, "disk\u{7} full");
        picker.handle_computers(&[pc(1, "a", true), pc(2, "b", true)]);
        assert_eq!((picker.query(), picker.counts().0), ("", 2));
        picker.handle_input(Input::Open);
        assert_eq!(asked(&mut picker), ("disk full".into(), String::new()));
        picker.handle_done(refused("ticket_required"), Vec::new());
        text(&mut picker, "T-1");
        picker.handle_input(Input::Open);
        assert_eq!(asked(&mut picker), ("disk full".into(), "T-1".into()));
        // An answer that does not help is not asked for again; Esc leaves the question alone.
        picker.handle_done(refused("ticket_required"), Vec::new());
        assert!(picker.asking().is_none() && picker.message().is_some());
        assert_eq!(opened(&mut picker), Some(1));
        picker.handle_done(refused("reason_required"), Vec::new());
        picker.handle_input(Input::Escape);
        assert!(picker.asking().is_none() && picker.poll_action().is_none());
    }

    #[test]
    fn a_new_list_never_moves_the_mark_to_another_computer() {
        let mut picker = Picker::new(Vec::new());
        picker.handle_computers(&[pc(1, "b", true), pc(2, "c", true)]);
        picker.handle_input(Input::Move(1));
        picker.handle_computers(&[pc(3, "a", true), pc(2, "c", false), pc(1, "b", true)]);
        assert_eq!(names(&picker), "a b c");
        assert_eq!(opened(&mut picker), Some(2));
        // Gone: the first Enter only marks what took its place.
        picker.handle_computers(&[pc(3, "a", true), pc(1, "b", true)]);
        assert!(picker.marked().is_none());
        assert_eq!(opened(&mut picker), None);
        assert_eq!(opened(&mut picker), Some(1));
        picker.handle_computers(&[]);
        assert_eq!(opened(&mut picker), None);
        picker.handle_input(Input::Last);
        picker.handle_input(Input::Redirector(Turn::Next));
    }

    #[test]
    fn tab_goes_round_the_redirectors_and_the_last_used_is_the_first() {
        let mut windows = pc(1, "pc", true);
        windows.redirectors.clear();
        windows.os = "Windows 11".into();
        let mut picker = Picker::new(Vec::new());
        picker.handle_computers(&[windows.clone()]);
        let now = |picker: &Picker| picker.redirector(picker.marked().unwrap()).unwrap().to_owned();
        assert_eq!(now(&picker), "rdp");
        let mut seen = vec![now(&picker)];
        for _ in 0..4 {
            picker.handle_input(Input::Redirector(Turn::Next));
            seen.push(now(&picker));
        }
        seen.sort();
        assert_eq!(seen, ["http", "https", "rdp", "ssh", "vnc"]);
        picker.handle_input(Input::Redirector(Turn::Next));
        assert_eq!(now(&picker), "rdp");
        picker.handle_input(Input::Redirector(Turn::Previous));
        picker.handle_input(Input::Redirector(Turn::Next));
        assert_eq!(now(&picker), "rdp");
        let used = Recent { computer: windows.id, redirector: "ssh".into() };
        let mut picker = Picker::new(vec![used]);
        picker.handle_computers(&[windows]);
        assert_eq!(now(&picker), "ssh");
    }

    #[test]
    fn errors_stay_until_the_next_key_and_names_cannot_draw() {
        let mut picker = Picker::new(Vec::new());
        picker.handle_computers(&[pc(1, "pc\u{1b}[2J", true)]);
        assert!(!names(&picker).contains('\u{1b}'));
        picker.handle_done(Err(CliError::not_there("agent_offline", "off")), Vec::new());
        assert_eq!(picker.message().unwrap().code, "agent_offline");
        picker.handle_input(Input::Escape);
        assert!(picker.message().is_none() && picker.poll_action().is_none());
        text(&mut picker, &"x\u{1b}\n".repeat(500));
        assert_eq!(picker.query(), "x".repeat(MAX_QUERY));
        picker.handle_input(Input::Clear);
        text(&mut picker, "one two ");
        picker.handle_input(Input::DropWord);
        assert_eq!(picker.query(), "one ");
        picker.handle_unreachable("no\nnetwork");
        assert_eq!(*picker.reach(), Reach::Stale("no\\nnetwork".into()));
    }
}
