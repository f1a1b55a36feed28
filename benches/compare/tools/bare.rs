//! The least that a server of the same bytes can do, against which the others are held.
//!
//! `hyper` clones a ready head and body for each request, in the runtime that the proxy has. `raw` does not even read the
//! request: one `recv`, one `send`. Its cost is that of the kernel.

use crate::{Failure, upstream, wait};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::convert::Infallible;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// How, and what.
#[derive(Args)]
pub(crate) struct Settings {
    /// With hyper, or without anything.
    #[arg(value_enum)]
    how: How,
    /// A file with a whole answer as it is to be sent, head and body.
    answer: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    Hyper,
    Raw,
}

/// Serves until it is stopped.
pub(crate) fn run(settings: &Settings) -> Result<(), Failure> {
    let answer = fs::read(&settings.answer)?;
    match settings.how {
        How::Hyper => hyper(&answer),
        How::Raw => raw(&answer),
    }
}

fn hyper(answer: &[u8]) -> Result<(), Failure> {
    let (headers, body) = parse(answer)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = upstream::listen()?;
        println!("listens on {}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (headers, body) = (headers.clone(), body.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let mut response = Response::new(Full::new(body.clone()));
                *response.headers_mut() = headers.clone();
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.writev(false).header_read_timeout(None);
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    })
}

fn parse(answer: &[u8]) -> Result<(HeaderMap, Bytes), Failure> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n").ok_or("the answer has no end of its head")?;
    let head = std::str::from_utf8(&answer[..end])?;
    let mut headers = HeaderMap::new();
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(':').ok_or("a field has no colon")?;
        headers.append(name.parse::<HeaderName>()?, HeaderValue::from_str(value.trim())?);
    }
    Ok((headers, Bytes::copy_from_slice(&answer[end + 4..])))
}

const ACCEPT: Token = Token(usize::MAX);

fn raw(answer: &[u8]) -> Result<(), Failure> {
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    println!("listens on {}", listener.local_addr()?);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, ACCEPT, Interest::READABLE)?;
    let (mut events, mut clients) = (Events::with_capacity(1_024), Slab::<TcpStream>::new());
    let mut buffer = vec![0; 16 << 10];
    loop {
        wait(&mut poll, &mut events, None)?;
        for event in &events {
            if event.token() == ACCEPT {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let place = clients.vacant_entry();
                    poll.registry().register(&mut stream, Token(place.key()), Interest::READABLE)?;
                    place.insert(stream);
                }
                continue;
            }
            let Some(client) = clients.get_mut(event.token().0) else { continue };
            // A request is one packet here, and an answer always fits the socket's buffer.
            match client.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => drop(clients.remove(event.token().0)),
                Ok(_) => client.write_all(answer)?,
            }
        }
    }
}
