//! Tables, JSON and errors.

use comfy_table::{Table, presets};
use serde_json::Value;
use std::io::{self, Write};
use tonic::{Code, Status};

/// Prints a line of text to standard output.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Prints JSON.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// A table without lines, as `ps` or `kubectl` print them.
pub(crate) fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Names and values, one pair per line.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

/// A duration for people.
pub(crate) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A moment, as `2026-11-22 18:05:00Z`.
pub(crate) fn moment(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// An error as one line for standard error.
pub(crate) fn describe(problem: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in problem.chain() {
        let text = match cause.downcast_ref::<Status>() {
            Some(status) => status_text(status),
            None => cause.to_string(),
        };
        // Transport errors repeat themselves.
        if !parts.iter().any(|part| part.contains(&text)) && text != "transport error" {
            parts.push(text);
        }
    }
    parts.join(": ")
}

fn status_text(status: &Status) -> String {
    let message = status.message();
    match status.code() {
        Code::Aborted => format!("{message}; try again"),
        Code::Unimplemented => format!("the node does not know this command (another version?): {message}"),
        _ if message.is_empty() => status.code().to_string(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_columns_of_words() {
        let rows = vec![vec!["a".into(), "10 GiB".into()], vec!["longer".into(), String::new()]];
        assert_eq!(table(&["NAME", "SIZE"], rows), "NAME    SIZE\na       10 GiB\nlonger");
        assert_eq!(table(&["NAME"], []), "NAME");
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2");
    }

    #[test]
    fn moments_and_durations() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_709_164_800_000, "2024-02-29 00:00:00Z"),
            (1_735_689_599_999, "2024-12-31 23:59:59Z"),
            (1_795_370_700_000, "2026-11-22 18:05:00Z"),
        ] {
            assert_eq!(moment(ms), text);
        }
        for (ms, text) in [(7, "7 ms"), (59_000, "59 s"), (61_000, "1 min 1 s"), (3_660_000, "1 h 1 min")] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn errors_say_each_thing_once() {
        let problem = anyhow::Error::new(Status::not_found("no VDI \"x\"")).context("cannot delete");
        assert_eq!(describe(&problem), "cannot delete: no VDI \"x\"");
        assert!(describe(&Status::aborted("changed").into()).ends_with("try again"));
    }
}
