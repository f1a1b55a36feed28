//! The load generator: one thread, many connections, and one of four plans.
//!
//! - `for`: each connection asks again as soon as it has its answer, for some seconds;
//! - `count`: the same, until so many requests are answered;
//! - `storm`: each connection asks once, all at the same moment or evenly over a while;
//! - `rate`: so many requests a second, whether the last ones are answered or not. Latency counts from the moment at
//!   which a request was due, so that a server that stalls cannot hide those that it kept from being sent.
//!
//! Connections stand before the clock starts. Every answer's length is checked, and with `--check` every byte.
#![expect(clippy::disallowed_methods, reason = "one thread without a runtime measures real time")]

mod answer;
mod origin;
mod report;

use crate::{Failure, wait};
use answer::{Answer, Progress};
use clap::{Args, Subcommand, ValueEnum};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use origin::Origin;
use report::Report;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

/// What to ask for, and how.
#[derive(Args)]
pub(crate) struct Settings {
    /// The server.
    to: SocketAddr,
    /// The path; {} in it stands for the number of the key.
    path: String,
    #[arg(long, default_value_t = 1)]
    keys: usize,
    /// In which order the keys are asked for.
    #[arg(long, value_enum, default_value = "each")]
    draw: Draw,
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Compare every byte of every body.
    #[arg(long)]
    check: bool,
    /// Never sleep: for a core that the load has for itself, so that no server pays for waking it.
    #[arg(long)]
    spin: bool,
    /// Be the upstream of the server as well, at this address, in the same thread.
    #[arg(long)]
    origin: Option<SocketAddr>,
    /// Give up what is not answered after so many seconds.
    #[arg(long, default_value_t = 30.0)]
    limit: f64,
    #[command(subcommand)]
    plan: Plan,
}

#[derive(Clone, Copy, ValueEnum)]
enum Draw {
    /// One after the other.
    Each,
    /// Any, all equally likely.
    Uniform,
    /// By Zipf's law with exponent 1: the second half as often as the first, the third a third as often.
    Zipf,
}

#[derive(Clone, Copy, Subcommand)]
enum Plan {
    /// Closed loop, for so many seconds.
    For { seconds: f64 },
    /// Closed loop, so many requests.
    Count { requests: u64 },
    /// One request on each connection, evenly over so many milliseconds (0: at once).
    Storm {
        #[arg(default_value_t = 0.0)]
        over: f64,
    },
    /// Open loop: so many requests a second, for so many seconds.
    Rate { per_second: f64, seconds: f64 },
}

/// Runs the plan and prints its report.
pub(crate) fn run(settings: Settings) -> Result<(), Failure> {
    let report = Load::new(settings)?.run()?;
    println!("{}", report.json());
    Ok(())
}

struct Load {
    settings: Settings,
    poll: Poll,
    clients: Vec<Client>,
    origin: Option<Origin>,
    requests: Vec<Vec<u8>>,
    paths: Vec<String>,
    order: Vec<u32>,
    next: usize,
    sent: u64,
    report: Report,
    buffer: Vec<u8>,
}

/// One connection.
struct Client {
    stream: TcpStream,
    asked: Option<Asked>,
}

/// A request that is not answered yet.
struct Asked {
    key: usize,
    due: Instant,
    answer: Answer,
}

/// What one look at a connection came to.
enum Seen {
    Pending,
    Answered,
    Broken(&'static str),
}

impl Load {
    fn new(settings: Settings) -> Result<Self, Failure> {
        let poll = Poll::new()?;
        let origin = settings.origin.map(|address| Origin::listen(&poll, address)).transpose()?;
        let mut clients = Vec::new();
        for token in 0..settings.connections {
            clients.push(connect(&poll, settings.to, token as usize)?);
        }
        let paths: Vec<String> =
            (0..settings.keys).map(|key| settings.path.replace("{}", &key.to_string())).collect();
        let requests = paths
            .iter()
            .map(|path| {
                format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nUser-Agent: forebay-bench\r\n\r\n")
                    .into_bytes()
            })
            .collect();
        let order = order(settings.draw, settings.keys);
        // Whoever accepts one connection at a time shall have done so.
        std::thread::sleep(Duration::from_millis(50));
        let buffer = vec![0; 256 << 10];
        let report = Report::default();
        Ok(Self { settings, poll, clients, origin, requests, paths, order, next: 0, sent: 0, report, buffer })
    }

    fn run(mut self) -> Result<Report, Failure> {
        let start = Instant::now();
        let limit = start + Duration::from_secs_f64(self.settings.limit);
        match self.settings.plan {
            Plan::For { seconds } => {
                self.closed(start, limit.min(start + Duration::from_secs_f64(seconds)), u64::MAX)?;
            }
            Plan::Count { requests } => self.closed(start, limit, requests)?,
            Plan::Storm { over } => self.storm(start, limit, over)?,
            Plan::Rate { per_second, seconds } => self.open(start, limit, per_second, seconds)?,
        }
        self.report.seconds = start.elapsed().as_secs_f64();
        self.report.arrived = self.origin.as_ref().map(|origin| origin.requests);
        self.report.unanswered = self.clients.iter().filter(|client| client.asked.is_some()).count();
        Ok(self.report)
    }

    fn closed(&mut self, start: Instant, until: Instant, requests: u64) -> Result<(), Failure> {
        for client in 0..self.clients.len() {
            if self.sent < requests {
                self.ask(client, start)?;
            }
        }
        let mut events = Events::with_capacity(1_024);
        loop {
            let now = Instant::now();
            if now >= until || self.report.answered + self.report.failed() >= requests {
                break;
            }
            let timeout = if self.settings.spin { Duration::ZERO } else { until - now };
            wait(&mut self.poll, &mut events, Some(timeout))?;
            for event in &events {
                if let Some(origin) = &mut self.origin
                    && origin.takes(&self.poll, event.token(), &mut self.buffer)?
                {
                    continue;
                }
                let client = event.token().0;
                let now = Instant::now();
                if self.look(client, now)? && self.sent < requests {
                    self.ask(client, now)?;
                }
            }
        }
        if requests == u64::MAX {
            // What was under way when the time was up is neither answered nor missing.
            self.clients.iter_mut().for_each(|client| client.asked = None);
        }
        Ok(())
    }

    fn storm(&mut self, start: Instant, limit: Instant, over: f64) -> Result<(), Failure> {
        let pause = Duration::from_secs_f64(over / 1_000.0 / f64::from(self.settings.connections));
        let mut events = Events::with_capacity(1_024);
        let mut asked = 0;
        while asked < self.clients.len() || self.clients.iter().any(|client| client.asked.is_some()) {
            if Instant::now() >= limit {
                break;
            }
            let clients = u32::try_from(asked).unwrap_or(u32::MAX);
            if asked < self.clients.len() && Instant::now() >= start + pause * clients {
                self.ask(asked, Instant::now())?;
                asked += 1;
                if !pause.is_zero() {
                    self.look_at_all(&mut events, Duration::ZERO)?;
                }
                continue;
            }
            let is_staggered = asked < self.clients.len();
            self.look_at_all(&mut events, Duration::from_millis(if is_staggered { 0 } else { 20 }))?;
        }
        Ok(())
    }

    /// Those that are due while all connections are busy wait, and their wait counts.
    fn open(&mut self, start: Instant, limit: Instant, per_second: f64, seconds: f64) -> Result<(), Failure> {
        let pause = Duration::from_secs_f64(1.0 / per_second);
        let end = start + Duration::from_secs_f64(seconds);
        let mut idle: VecDeque<usize> = (0..self.clients.len()).collect();
        let (mut due, mut events) = (start, Events::with_capacity(1_024));
        loop {
            let now = Instant::now();
            while due <= now && due < end {
                let Some(client) = idle.pop_front() else { break };
                self.ask(client, due)?;
                due += pause;
            }
            if now >= limit || (due >= end && idle.len() == self.clients.len()) {
                return Ok(());
            }
            wait(&mut self.poll, &mut events, Some(Duration::ZERO))?;
            if events.is_empty() {
                // A busy loop would take the core from the server under test where both share it.
                std::thread::sleep(Duration::from_micros(20));
            }
            for event in &events {
                let client = event.token().0;
                let was_asked = self.clients[client].asked.is_some();
                if self.look(client, Instant::now())? && was_asked {
                    idle.push_back(client);
                }
            }
        }
    }

    fn look_at_all(&mut self, events: &mut Events, timeout: Duration) -> Result<(), Failure> {
        wait(&mut self.poll, events, Some(timeout))?;
        for event in &*events {
            self.look(event.token().0, Instant::now())?;
        }
        Ok(())
    }

    fn ask(&mut self, client: usize, due: Instant) -> Result<(), Failure> {
        let key = self.order[self.next] as usize;
        self.next = (self.next + 1) % self.order.len();
        self.sent += 1;
        let asked = Asked { key, due, answer: Answer::default() };
        let client = &mut self.clients[client];
        client.asked = Some(asked);
        match client.stream.write(&self.requests[key]) {
            Ok(bytes) if bytes == self.requests[key].len() => Ok(()),
            Ok(_) => Err("a request does not fit the socket's buffer".into()),
            // Seen at once by the next look, too, and counted there.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error.into()),
            Err(_) => Ok(()),
        }
    }

    /// Reads what is there. True if the connection may be asked again.
    fn look(&mut self, number: usize, now: Instant) -> Result<bool, Failure> {
        let client = &mut self.clients[number];
        let path =
            self.settings.check.then(|| client.asked.as_ref().map(|asked| self.paths[asked.key].as_str()));
        let seen = client.read(&mut self.buffer, path.flatten(), now);
        let Some(asked) = &client.asked else {
            if matches!(seen, Seen::Broken(_)) {
                self.clients[number] = connect(&self.poll, self.settings.to, number)?;
                self.report.reconnects += 1;
            }
            return Ok(false);
        };
        let must_close = match seen {
            Seen::Pending => return Ok(false),
            Seen::Answered => {
                self.report.answer(&asked.answer, asked.due, now);
                asked.answer.must_close()
            }
            Seen::Broken(why) => {
                self.report.fail(why);
                true
            }
        };
        self.clients[number].asked = None;
        if must_close && !matches!(self.settings.plan, Plan::Storm { .. }) {
            let old =
                std::mem::replace(&mut self.clients[number], connect(&self.poll, self.settings.to, number)?);
            drop(old.stream.shutdown(Shutdown::Both));
            self.report.reconnects += 1;
        }
        Ok(true)
    }
}

impl Client {
    fn read(&mut self, buffer: &mut [u8], path: Option<&str>, now: Instant) -> Seen {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Seen::Broken("closed"),
                Ok(bytes) => {
                    let Some(asked) = &mut self.asked else { return Seen::Broken("unasked") };
                    match asked.answer.take(&buffer[..bytes], path, now) {
                        Progress::Ended => return Seen::Answered,
                        Progress::Wrong(why) => return Seen::Broken(why),
                        // Less than was asked for means that there is no more: the next event comes with more.
                        Progress::More if bytes < buffer.len() => return Seen::Pending,
                        Progress::More => {}
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Seen::Pending,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Seen::Broken("reset"),
            }
        }
    }
}

fn connect(poll: &Poll, to: SocketAddr, token: usize) -> Result<Client, Failure> {
    let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
    Ok(Client { stream, asked: None })
}

/// The order of the keys, the same each time, so that all servers are asked the same.
fn order(draw: Draw, keys: usize) -> Vec<u32> {
    const DRAWS: usize = 1 << 17;
    let mut random = fastrand::Rng::with_seed(1);
    let last = u32::try_from(keys).unwrap_or(u32::MAX);
    match draw {
        Draw::Each => (0..last).collect(),
        Draw::Uniform => (0..DRAWS).map(|_| random.u32(0..last)).collect(),
        Draw::Zipf => {
            let mut sum = 0.0;
            let sums: Vec<f64> = (1..=last)
                .map(|rank| {
                    sum += 1.0 / f64::from(rank);
                    sum
                })
                .collect();
            (0..DRAWS)
                .map(|_| {
                    let drawn = random.f64() * sum;
                    u32::try_from(sums.partition_point(|&upto| upto < drawn)).unwrap_or(0).min(last - 1)
                })
                .collect()
        }
    }
}
