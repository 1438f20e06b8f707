//! The terminal while the picker has it: raw mode, the alternate screen, keys.
//!
//! However it ends, by return, error, signal or panic, the terminal is given back as it was.

use std::{
    io::{Stdout, stdout},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use adit_runtime::cli::CliError;
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{
            self, DisableBracketedPaste, EnableBracketedPaste, Event, KeyCode, KeyEvent,
            KeyEventKind, KeyModifiers,
        },
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::sync::mpsc;

use super::model::{Input, Turn};

/// How soon the thread that reads keys notices that it is to stop.
const POLL: Duration = Duration::from_millis(100);
/// Time for that thread to end. On a terminal that is gone it may not: then it ends with us.
const READER_END: Duration = Duration::from_millis(500);
/// Keys that wait.
const KEYS: usize = 64;

/// Whether the terminal is ours just now.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// What came from the terminal.
#[derive(Debug)]
pub enum FromTerminal {
    /// A key that means something.
    Input(Input),
    /// Lines to scroll: pages, up (negative) or down.
    Page(isize),
    /// Draw again: another size.
    Resized,
    /// The terminal is gone.
    Gone,
}

/// The terminal, ours until dropped.
pub struct Screen {
    /// To draw on.
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
    keys: mpsc::Receiver<FromTerminal>,
    go_on: Option<Sender<()>>,
    /// Closed when nothing reads the terminal any more.
    reading: Receiver<()>,
}

impl Screen {
    /// Takes the terminal.
    pub fn take() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::failed("terminal_failed", format!("cannot use the terminal: {error}"))
                .hint("console-tunnel computers lists them, console-tunnel open opens one")
        };
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode().map_err(failed)?;
        TAKEN.store(true, Ordering::SeqCst);
        let made = execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        let terminal = made.inspect_err(|_| give_back()).map_err(failed)?;
        let (sender, keys) = mpsc::channel(KEYS);
        let (go_on, may_go_on) = channel();
        let (ends_with_it, reading) = channel::<()>();
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || {
                let _ends_with_it = ends_with_it;
                read_keys(&sender, &may_go_on);
            })
            .inspect_err(|_| give_back())
            .map_err(failed)?;
        Ok(Self { terminal, keys, go_on: Some(go_on), reading })
    }

    /// Waits for the next thing from the terminal. May be dropped and called again.
    pub async fn next(&mut self) -> FromTerminal {
        self.keys.recv().await.unwrap_or(FromTerminal::Gone)
    }

    /// What was received is dealt with: more may be read. Until then nothing is taken from the
    /// terminal that may be for the program that gets it next.
    pub fn go_on(&self) {
        if let Some(go_on) = &self.go_on {
            // It has ended if the terminal is gone.
            let _ = go_on.send(());
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.go_on = None;
        self.keys.close();
        // It ends within `POLL`; who has the terminal next must not share it.
        let _ = self.reading.recv_timeout(READER_END);
        give_back();
    }
}

/// Gives the terminal back, once.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Nothing can be done about a terminal that takes no more.
        let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Reads until nobody listens, one at a time.
fn read_keys(out: &mpsc::Sender<FromTerminal>, go_on: &Receiver<()>) {
    while !out.is_closed() {
        let read = match event::poll(POLL) {
            Ok(true) => event::read(),
            Ok(false) => continue,
            Err(error) => Err(error),
        };
        let told = match read {
            Ok(event) => match meaning(event) {
                Some(told) => told,
                None => continue,
            },
            Err(_) => FromTerminal::Gone,
        };
        let last = matches!(told, FromTerminal::Gone);
        if out.blocking_send(told).is_err() || last || go_on.recv().is_err() {
            return;
        }
    }
}

fn meaning(event: Event) -> Option<FromTerminal> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => meaning_of_key(key),
        // What is pasted is a query; a line end in it opens nothing.
        Event::Paste(text) => Some(FromTerminal::Input(Input::Text(first_line(&text)))),
        Event::Resize(..) => Some(FromTerminal::Resized),
        _ => None,
    }
}

fn first_line(text: &str) -> String {
    text.split(['\n', '\r']).next().unwrap_or_default().to_owned()
}

fn meaning_of_key(key: KeyEvent) -> Option<FromTerminal> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let input = match key.code {
        KeyCode::Char(letter) if control => match letter.to_ascii_lowercase() {
            'c' => Input::Interrupt,
            'd' | 'q' => Input::Quit,
            'h' => Input::Backspace,
            'j' | 'm' => Input::Open,
            'l' => return Some(FromTerminal::Resized),
            'n' => Input::Move(1),
            'p' => Input::Move(-1),
            'r' => Input::Refresh,
            'u' => Input::Clear,
            'w' => Input::DropWord,
            _ => return None,
        },
        KeyCode::Char(_) if key.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(letter) => Input::Text(letter.to_string()),
        KeyCode::Backspace => Input::Backspace,
        KeyCode::Up => Input::Move(-1),
        KeyCode::Down => Input::Move(1),
        KeyCode::PageUp => return Some(FromTerminal::Page(-1)),
        KeyCode::PageDown => return Some(FromTerminal::Page(1)),
        KeyCode::Home => Input::First,
        KeyCode::End => Input::Last,
        KeyCode::Tab | KeyCode::Right => Input::Redirector(Turn::Next),
        KeyCode::BackTab | KeyCode::Left => Input::Redirector(Turn::Previous),
        KeyCode::Enter => Input::Open,
        KeyCode::Esc => Input::Escape,
        _ => return None,
    };
    Some(FromTerminal::Input(input))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(event: Event) -> Option<Input> {
        match meaning(event) {
            Some(FromTerminal::Input(input)) => Some(input),
            _ => None,
        }
    }

    #[test]
    fn keys_mean_what_they_do_elsewhere_and_a_paste_opens_nothing() {
        let key = |code, modifiers| input(Event::Key(KeyEvent::new(code, modifiers)));
        let none = KeyModifiers::NONE;
        assert_eq!(key(KeyCode::Enter, none), Some(Input::Open));
        assert_eq!(key(KeyCode::Char('c'), none), Some(Input::Text("c".into())));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Input::Interrupt));
        assert_eq!(key(KeyCode::Char('x'), KeyModifiers::ALT), None);
        assert_eq!(input(Event::Paste("web01\nrm\n".into())), Some(Input::Text("web01".into())));
    }
}
