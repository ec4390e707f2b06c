//! The program `esker`, built with its feature `fjall`, for the tests that run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    esker_cli::main()
}
