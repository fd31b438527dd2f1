//! `attune top`: the queue, the runs, the machines and the replicas. On a terminal, the screen is redrawn; otherwise,
//! the tables are printed again. Needs a key with the scope `admin`.

/// The text of a status.
mod tables;

use std::{io::IsTerminal, time::Duration};

use serde_json::Value;

use crate::{
    connection::client::Client,
    error::{CliError, Result},
    output,
};

/// The interval between two polls.
const EVERY: Duration = Duration::from_secs(2);
/// The rows of each table on a screen that is redrawn. Rows above the top of a terminal would be lost.
const SCREEN_ROWS: usize = 10;
/// The escape sequences that clear a terminal and move its cursor to the first line.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// The API path of the status.
const PATH: [&str; 2] = ["organization", "status"];

/// The flags of `attune top`.
#[derive(Debug, clap::Args)]
pub(crate) struct TopArgs {
    /// Print the tables once, without clearing the screen
    #[arg(long)]
    once: bool,
    /// The maximum number of rows of each table [default: 10 on a screen that is redrawn, otherwise 100]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
}

/// Runs until Ctrl-C, or until stdout is closed; with `--once` or `--json`, prints the status once.
///
/// # Errors
/// [`CliError`]: errors of the API. An API that cannot be reached any more is polled until it answers again.
pub(crate) async fn run(client: &Client, args: &TopArgs, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&client.get(&PATH).await?);
    }
    let screen = Screen::new(args, std::io::stdout().is_terminal());
    if args.once {
        return output::line(&screen.page(&client.get(&PATH).await?));
    }
    tokio::select! {
        ended = refresh(client, &screen) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Prints the status at an interval, until stdout is closed.
async fn refresh(client: &Client, screen: &Screen) -> Result<()> {
    let mut page = String::new();
    let mut is_open = true;
    while is_open {
        is_open = match client.get(&PATH).await {
            Ok(status) => {
                page = screen.page(&status);
                screen.show(&page)?
            }
            Err(error @ CliError::Unreachable { .. }) if !page.is_empty() => screen.show_error(&error, &page)?,
            Err(error) => return Err(error),
        };
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}

/// The output of `attune top`.
struct Screen {
    /// Clears the terminal before each page.
    redraws: bool,
    /// The maximum number of rows of each table.
    rows: usize,
}

impl Screen {
    fn new(args: &TopArgs, is_terminal: bool) -> Self {
        let redraws = is_terminal && !args.once;
        Self { redraws, rows: args.rows.unwrap_or(if redraws { SCREEN_ROWS } else { usize::MAX }) }
    }

    fn page(&self, status: &Value) -> String {
        tables::page(status, self.rows)
    }

    /// Shows a page; returns whether stdout is still open.
    fn show(&self, page: &str) -> Result<bool> {
        if !self.redraws {
            return output::line_while_open(&format!("{page}\n"));
        }
        output::line_while_open(&format!("{CLEAR}{}", clipped(page, output::terminal_width().unwrap_or(usize::MAX))))
    }

    /// Shows that the API does not answer; on a terminal, above the last page. Returns whether stdout is still open.
    fn show_error(&self, error: &CliError, page: &str) -> Result<bool> {
        if self.redraws {
            return self.show(&format!("{error}\n\n{page}"));
        }
        output::note(&error.to_string());
        Ok(true)
    }
}

/// Truncates each line to the width of the terminal, so that no line is wrapped.
fn clipped(page: &str, width: usize) -> String {
    let lines = page.lines().map(|line| match line.char_indices().nth(width) {
        Some((end, _)) => &line[..end],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_that_is_redrawn_has_few_rows_and_short_lines() {
        let rows = |once, rows, is_terminal| {
            let screen = Screen::new(&TopArgs { once, rows }, is_terminal);
            (screen.redraws, screen.rows)
        };
        assert_eq!(rows(false, None, true), (true, SCREEN_ROWS));
        assert_eq!(rows(false, Some(3), true), (true, 3));
        assert_eq!(rows(true, None, true), (false, usize::MAX));
        assert_eq!(rows(false, None, false), (false, usize::MAX));
        assert_eq!(clipped("wörter\nab\n\nabc", 3), "wör\nab\n\nabc");
    }
}
