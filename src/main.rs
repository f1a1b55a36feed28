//! The program: reads the command line and does what it says.

use forebay::cli::{self, Command, Exit};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Gives memory back when a cache shrinks, and costs a hit less than the system's does.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            // Where even the terminal is gone there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success }.into();
        }
    };
    let environment = cli::environment();
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let exit = match command {
        Command::Serve(arguments) => cli::serve(&arguments, &environment, &mut out, &mut err),
        Command::Demo(arguments) => cli::demo(&arguments, &mut out, &mut err),
        Command::Check(arguments) => cli::check(&arguments, &environment, &mut out, &mut err),
        Command::Health(arguments) => cli::health(&arguments, &environment, &mut out, &mut err),
        Command::Explain(arguments) => cli::explain(&arguments, &environment, &mut out, &mut err),
    };
    exit.unwrap_or_else(|error| {
        if error.kind() == ErrorKind::BrokenPipe {
            // Whoever read our output has read enough.
            return Exit::Success;
        }
        // Where even standard error is closed there is nobody to tell.
        let _ = writeln!(err, "forebay: {error}");
        Exit::Unavailable
    })
    .into()
}
