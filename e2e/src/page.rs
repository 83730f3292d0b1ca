//! Output that a person reads: numbered steps with times, and a closing page.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes the story of a run to standard output.
pub struct Page {
    start: Instant,
    colour: bool,
    step: u32,
    facts: Vec<Vec<String>>,
}

const WIDTH: usize = 100;

impl Default for Page {
    fn default() -> Page {
        Page::new()
    }
}

impl Page {
    /// Starts the clock. Colours only on a terminal.
    pub fn new() -> Page {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Page { start: Instant::now(), colour, step: 0, facts: Vec::new() }
    }

    fn put(&self, style: &str, text: &str) {
        let mut out = std::io::stdout().lock();
        // Nobody can be told that standard output is gone.
        let _ = if self.colour && !style.is_empty() {
            writeln!(out, "\x1b[{style}m{text}\x1b[0m")
        } else {
            writeln!(out, "{text}")
        };
        let _ = out.flush();
    }

    /// A line across, with a title.
    pub fn title(&self, text: &str) {
        let rest = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 5));
        self.put("1;36", &format!("\n── {text} {rest}"));
    }

    /// The next step begins.
    pub fn step(&mut self, text: &str) {
        self.step += 1;
        let at = self.start.elapsed().as_secs_f64();
        self.put("1", &format!("\n{:>2}. {text}  [{at:.1} s]", self.step));
    }

    /// Something worth saying.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            self.put("", &format!("    {line}"));
        }
    }

    /// Something that turned out as it must.
    pub fn good(&self, text: &str) {
        self.put("32", &format!("    ✔ {text}"));
    }

    /// Something that turned out as it must, and is worth a line at the end.
    pub fn fact(&mut self, what: &str, value: String) {
        self.good(&format!("{what}: {value}"));
        self.facts.push(vec![what.to_owned(), value]);
    }

    /// The closing page: all facts.
    pub fn show_facts(&self) {
        self.title("What you have seen");
        let mut rows = vec![vec![String::new(), "measured".to_owned()]];
        rows.extend(self.facts.iter().cloned());
        self.say(&table(&rows));
    }

    /// Something that did not.
    pub fn bad(&self, text: &str) {
        self.put("1;31", &format!("    ✘ {text}"));
    }

    /// A command as one would type it.
    pub fn command(&self, text: &str) {
        self.put("2", &format!("    $ {text}"));
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Columns aligned to the widest cell; the first row is the heading, cells after the first are right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        if at == 0 {
            text.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
            text.push('\n');
        }
    }
    text
}

/// A duration as a person says it.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let text = table(&[row(&["name", "n"]), row(&["a", "1000"]), row(&["long name", "7"])]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name          n");
        assert_eq!(lines[2], "a          1000");
        assert_eq!(lines[3], "long name     7");
    }
}
