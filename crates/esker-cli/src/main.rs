//! The `esker` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    esker_cli::main()
}
