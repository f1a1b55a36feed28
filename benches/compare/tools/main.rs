//! The programs of the comparison in one: `upstream` answers and counts, `load` asks and measures, `bare` is the least
//! that a server can do. `benches/compare/run` starts them.

mod bare;
mod load;
mod upstream;

use clap::{Parser, Subcommand};
use mio::{Events, Poll};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Why a program cannot go on.
type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers as the path orders, and counts; prints "listens on ADDRESS" first.
    Upstream,
    /// Answers every request with the same bytes; prints "listens on ADDRESS" first.
    Bare(bare::Settings),
    /// Sends requests, and prints what came of them as one line of JSON.
    Load(load::Settings),
}

fn main() -> Result<(), Failure> {
    match Arguments::parse().program {
        Program::Upstream => upstream::run(),
        Program::Bare(settings) => bare::run(&settings),
        Program::Load(settings) => load::run(settings),
    }
}

/// The body of what has this path: the path and a line feed, over and over. Whoever reads it knows each byte of it.
fn body_of(path: &str, bytes: usize) -> Vec<u8> {
    path.bytes().chain([b'\n']).cycle().take(bytes).collect()
}

/// Waits for events. A signal that stops and continues the program is none.
fn wait(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        other => other,
    }
}
