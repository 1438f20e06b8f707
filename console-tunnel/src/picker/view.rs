//! Draws the picker. Reads the machine, changes nothing; fits any terminal, from 20 columns on
//! usefully.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Position, Rect},
    style::{Color, Modifier, Style},
    text::{Line as TextLine, Span},
    widgets::{Cell, Paragraph, Row, Table},
};

use adit_runtime::cli::escape_text;

use super::model::{Line, Picker, Reach};

/// From this width on, a column is shown.
const CLIENT_FROM: u16 = 44;
const OS_FROM: u16 = 62;
const SEEN_FROM: u16 = 78;
/// Columns of what was seen when.
const SEEN: u16 = 10;
/// Lines of a message at most.
const MESSAGE_LINES: u16 = 3;

/// How it is drawn.
#[derive(Debug)]
pub struct View {
    color: bool,
    /// First line of the list that is in sight.
    first: usize,
}

impl View {
    /// With colours or without.
    pub fn new(color: bool) -> Self {
        Self { color, first: 0 }
    }

    /// How many lines of the list a terminal of that height shows.
    pub fn page(height: u16) -> usize {
        usize::from(height.saturating_sub(3).max(1))
    }

    /// Draws all of it. `now_ms`: milliseconds since 1970.
    pub fn draw(&mut self, picker: &Picker, now_ms: u64, frame: &mut Frame<'_>) {
        let foot = self.foot(picker, frame.area().width);
        let height = u16::try_from(foot.len()).unwrap_or(MESSAGE_LINES).min(MESSAGE_LINES);
        let [top, list, redirectors, bottom] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
            Constraint::Length(height),
        ])
        .areas(frame.area());
        self.draw_query(picker, top, frame);
        self.draw_list(picker, now_ms, list, frame);
        frame.render_widget(Paragraph::new(self.redirectors(picker)), redirectors);
        frame.render_widget(Paragraph::new(foot), bottom);
    }

    fn draw_query(&self, picker: &Picker, area: Rect, frame: &mut Frame<'_>) {
        let (fitting, all) = picker.counts();
        let count = match picker.reach() {
            Reach::Waiting => "…".to_owned(),
            _ => format!("{fitting}/{all}"),
        };
        let width = u16::try_from(count.len()).unwrap_or(0) + 1;
        let [left, right] =
            Layout::horizontal([Constraint::Min(4), Constraint::Length(width)]).areas(area);
        let asking = picker.asking();
        let typed = asking.map_or(picker.query(), |(_, answer)| answer);
        let prompt = asking.map_or("> ", |(question, _)| question.prompt());
        let indent = u16::try_from(prompt.len()).unwrap_or(0);
        // The end of a long query is what is being typed.
        let query = Span::raw(typed);
        let room = usize::from(left.width.saturating_sub(indent + 1));
        let hidden = query.width().saturating_sub(room);
        let tail = end_of(typed, hidden);
        let prompt = Span::styled(prompt, self.paint(Color::Cyan).add_modifier(Modifier::BOLD));
        let cursor = indent + u16::try_from(Span::raw(tail).width()).unwrap_or(0);
        frame.render_widget(Paragraph::new(TextLine::from(vec![prompt, Span::raw(tail)])), left);
        let count = Paragraph::new(Span::styled(count, self.faint())).right_aligned();
        frame.render_widget(count, right);
        let column = left.x.saturating_add(cursor).min(area.right().saturating_sub(1));
        frame.set_cursor_position(Position::new(column, area.y));
    }

    fn draw_list(&mut self, picker: &Picker, now_ms: u64, area: Rect, frame: &mut Frame<'_>) {
        let height = usize::from(area.height);
        let marked = picker.place();
        self.first = self.first.min(marked).max((marked + 1).saturating_sub(height));
        if picker.counts().0 == 0 {
            let text = match (picker.reach(), picker.counts().1) {
                (Reach::Waiting, _) => "asking the mediator…",
                (_, 0) => "no computer that you may see",
                _ => "no computer matches",
            };
            frame.render_widget(Paragraph::new(Span::styled(text, self.faint())), area);
            return;
        }
        let rows = picker.shown().enumerate().skip(self.first).take(height).map(|(at, line)| {
            let is_marked = at == marked && picker.marked().is_some();
            let style = match (is_marked, line.online) {
                (true, _) => Style::new().add_modifier(Modifier::REVERSED),
                (false, true) => Style::new(),
                (false, false) => self.faint(),
            };
            Row::new(self.cells(line, now_ms, area.width)).style(style)
        });
        frame.render_widget(Table::new(rows, columns(area.width)), area);
    }

    fn cells<'a>(&self, line: &'a Line, now_ms: u64, width: u16) -> Vec<Cell<'a>> {
        let (mark, color) = if line.online { ("●", Color::Green) } else { ("○", Color::Gray) };
        let mut cells =
            vec![Cell::new(Span::styled(mark, self.paint(color))), Cell::new(line.name.as_str())];
        if width >= CLIENT_FROM {
            cells.push(Cell::new(line.client.as_str()));
        }
        if width >= OS_FROM {
            cells.push(Cell::new(line.os.as_str()));
        }
        if width >= SEEN_FROM {
            cells.push(Cell::new(seen(line, now_ms)));
        }
        cells
    }

    fn redirectors(&self, picker: &Picker) -> TextLine<'static> {
        let mut spans = Vec::new();
        if let Some(line) = picker.marked() {
            let now = picker.redirector(line);
            for name in &line.redirectors {
                let style = match Some(name.as_str()) == now {
                    true => {
                        self.paint(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::REVERSED)
                    }
                    false => Style::new(),
                };
                let span = Span::styled(format!(" {} ", escape_text(name)), style);
                // The one that Enter opens is always in sight.
                if style == Style::new() { spans.push(span) } else { spans.insert(0, span) }
            }
        }
        TextLine::from(spans)
    }

    /// What went wrong, or which keys there are.
    fn foot(&self, picker: &Picker, width: u16) -> Vec<TextLine<'static>> {
        if let (Some(error), Some(_)) = (picker.message(), picker.asking()) {
            let text = escape_text(&format!("{}: type it, Enter; Esc leaves it", error.message));
            return folded(&text, width, self.paint(Color::Yellow));
        }
        if let Some(error) = picker.message() {
            let hint = error.hint.as_ref().map(|hint| format!("; try: {hint}")).unwrap_or_default();
            let text = escape_text(&format!("{} ({}){hint}", error.message, error.code));
            let style = self.paint(Color::Red).add_modifier(Modifier::BOLD);
            return folded(&text, width, style);
        }
        if let Reach::Stale(why) = picker.reach() {
            return folded(&format!("not up to date: {why}"), width, self.paint(Color::Yellow));
        }
        let keys = match width {
            0..40 => "Enter Tab Esc",
            40..60 => "Enter open  Tab other  Esc leave",
            _ => "type to search  Enter open  Tab other redirector  Ctrl-R refresh  Esc leave",
        };
        vec![TextLine::styled(keys, self.faint())]
    }

    fn paint(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn faint(&self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }
}

fn columns(width: u16) -> Vec<Constraint> {
    let mut columns = vec![Constraint::Length(1), Constraint::Fill(3)];
    if width >= CLIENT_FROM {
        columns.push(Constraint::Fill(3));
    }
    if width >= OS_FROM {
        columns.push(Constraint::Fill(2));
    }
    if width >= SEEN_FROM {
        columns.push(Constraint::Length(SEEN));
    }
    columns
}

/// `online`, or how long ago it was seen.
fn seen(line: &Line, now_ms: u64) -> String {
    if line.online {
        return "online".to_owned();
    }
    if line.last_seen_ms == 0 {
        return "never".to_owned();
    }
    match now_ms.saturating_sub(line.last_seen_ms) / 1000 {
        seconds @ 0..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// The text without its first `hidden` columns.
fn end_of(text: &str, hidden: usize) -> &str {
    let mut rest = text;
    let width = Span::raw(text).width();
    while !rest.is_empty() && Span::raw(rest).width() > width.saturating_sub(hidden) {
        let mut letters = rest.chars();
        letters.next();
        rest = letters.as_str();
    }
    rest
}

/// At most as many lines as a message may have, cut where the line is full.
fn folded(text: &str, width: u16, style: Style) -> Vec<TextLine<'static>> {
    let mut lines = vec![String::new()];
    for letter in text.chars() {
        let mut buffer = [0; 4];
        let letter: &str = letter.encode_utf8(&mut buffer);
        let Some(last) = lines.last_mut() else { break };
        if Span::raw(last.as_str()).width() + Span::raw(letter).width() <= usize::from(width) {
            last.push_str(letter);
        } else if lines.len() < usize::from(MESSAGE_LINES) {
            lines.push(letter.to_owned());
        } else {
            break;
        }
    }
    lines.into_iter().map(|line| TextLine::styled(line, style)).collect()
}

#[cfg(test)]
mod tests {
    use adit_runtime::cli::CliError;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        picker::model::Input,
        state::{KnownComputer, computer::tests::computer},
    };

    fn drawn(picker: &Picker, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut view = View::new(false);
        terminal.draw(|frame| view.draw(picker, 10_000_000, frame)).unwrap();
        if width == 0 { String::new() } else { terminal.backend().to_string() }
    }

    fn picker(count: u8) -> Picker {
        let mut picker = Picker::new(Vec::new());
        let pc = |id: u8| KnownComputer {
            online: id % 2 == 1,
            last_seen_ms: 10_000_000 - 120_000,
            ..computer(id, "main/acme", &format!("computer-東京-{id:02}"))
        };
        let list: Vec<KnownComputer> = (1..=count).map(pc).collect();
        picker.handle_computers(&list);
        picker
    }

    #[test]
    fn what_there_is_room_for_is_shown() {
        let picker = picker(4);
        let wide = drawn(&picker, 100, 8);
        for text in ["4/4", "main/acme", "linux", "online", "2 min ago", "ssh", "Enter open"] {
            assert!(wide.contains(text), "{text} is not in\n{wide}");
        }
        let narrow = drawn(&picker, 20, 6);
        assert!(narrow.contains("● computer") && narrow.contains("ssh"), "{narrow}");
        assert!(!narrow.contains("acme"), "{narrow}");
    }

    #[test]
    fn the_marked_line_is_always_in_sight_and_no_size_is_too_small() {
        let mut picker = picker(60);
        let mut view = View::new(true);
        for (by, name) in [(0, "-01"), (45, "-32"), (-40, "-11"), (100, "-60")] {
            picker.handle_input(Input::Move(by));
            let mut terminal = Terminal::new(TestBackend::new(40, 12)).unwrap();
            terminal.draw(|frame| view.draw(&picker, 0, frame)).unwrap();
            let text = terminal.backend().to_string();
            assert!(text.contains(name), "{name}\n{text}");
        }
        picker.handle_input(Input::Text("東京".repeat(30)));
        picker.handle_done(
            Err(CliError::failed("viewer_failed", "東京 failed ".repeat(40)).hint("look")),
            Vec::new(),
        );
        for (width, height) in [(0, 0), (1, 1), (2, 9), (19, 2), (20, 5), (300, 3)] {
            drawn(&picker, width, height);
        }
    }

    #[test]
    fn errors_are_shown_in_place_with_what_to_do() {
        let mut picker = picker(2);
        let error = CliError::not_there("agent_offline", "pc is\u{1b}[31m off").hint("start it");
        picker.handle_done(Err(error), Vec::new());
        let text = drawn(&picker, 80, 8);
        assert!(text.contains("off (agent_offline); try: start it") && text.contains("computer"));
        picker.handle_input(Input::Open);
        picker.handle_done(Err(CliError::refused("reason_required", "say why")), Vec::new());
        picker.handle_input(Input::Text("because".into()));
        let text = drawn(&picker, 60, 8);
        assert!(text.contains("reason> because") && text.contains("say why: type it"), "{text}");
        for width in [0, 3, 9] {
            drawn(&picker, width, 3);
        }
        picker.handle_input(Input::Escape);
        picker.handle_unreachable("no network");
        assert!(drawn(&picker, 80, 8).contains("not up to date: no network"));
    }
}
