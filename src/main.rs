//! The `dalcore` command: see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dalcore::cli::run()
}
