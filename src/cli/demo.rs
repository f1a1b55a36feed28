//! `forebay demo`: a stampede, straight at a slow upstream and through the proxy.

use super::serve::runtime;
use super::{DemoArguments, Exit, explained, load};
use crate::app::App;
use crate::config::{self, Config, Overrides};
use crate::demo::{Stampede, clients_max, raise_file_limit};
use crate::reload::{Host, Stage};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Runs the demonstration; it succeeds only if every answer was right.
pub fn demo(arguments: &DemoArguments, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    let limit = raise_file_limit().unwrap_or(1024);
    let clients = arguments.clients as usize;
    if clients > clients_max(limit) {
        let most = clients_max(limit);
        writeln!(
            err,
            "forebay: {limit} open files are allowed, which is enough for {most} clients (ulimit -n)"
        )?;
        return Ok(Exit::Unavailable);
    }
    runtime()?.block_on(run(arguments, clients, out, err))
}

/// There is nothing to load again.
#[derive(Debug)]
struct Unchanging(Config);

impl Host for Unchanging {
    fn load(&self) -> Result<Config, config::Error> {
        Ok(self.0.clone())
    }

    fn filter_log(&self, _: &str) {}

    fn tell(&self, _: Stage) {}
}

async fn run(
    arguments: &DemoArguments,
    clients: usize,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let overrides =
        Overrides { listen: vec![anywhere], admin_listen: Some(anywhere), ..Overrides::default() };
    let started = match load(None, &[], &overrides) {
        Ok(mut config) => {
            config.telemetry.access_log = false;
            let host = Arc::new(Unchanging(config.clone()));
            App::start(config, host, arguments.delay).await.map_err(|error| explained(&error))
        }
        Err(error) => Err(explained(&error)),
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => {
            writeln!(err, "forebay: {error}")?;
            return Ok(Exit::Unavailable);
        }
    };
    let (Some(proxy), Some(upstream)) = (app.data.first(), app.demo.as_ref()) else {
        return Ok(Exit::Failure);
    };
    let stampede = Stampede { clients, keys: arguments.keys as usize, ..Stampede::default() };
    match stampede.run(*proxy, upstream.address(), || app.telemetry.render()).await {
        Ok(report) => {
            writeln!(out, "{report}")?;
            Ok(if report.all_right() { Exit::Success } else { Exit::Failure })
        }
        Err(error) => {
            writeln!(err, "forebay: {}", explained(&error))?;
            Ok(Exit::Failure)
        }
    }
}
